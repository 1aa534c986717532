"""How a run was started: the device by name, the processes that a launcher made, and launches that are refused."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs

#: How long processes wait for the main one, which validates alone, before they take it for lost.
PATIENCE = timedelta(hours=1)
#: Tasks of a step of Slurm (a batch script or a shell of salloc is none, whatever SLURM_NTASKS says), and of mpirun.
TASKS = {"SLURM_STEP_NUM_TASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpirun"}
#: Settings of `accelerate config` that wrap or cut up the networks.
WRAPPERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP",
            "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config"}


def check_launch() -> None:
    """Refuse to train where the environment would make another training of it.

    Raises:
        ValueError: Several tasks that know nothing of each other, which would write one folder; or a setting of
            `accelerate config` that training here has not.
    """
    for name, starter in TASKS.items():
        if int(os.environ.get(name, "1")) > 1 and "WORLD_SIZE" not in os.environ:
            raise ValueError(f"{starter} started {os.environ[name]} tasks ({name}), which would train one by one into "
                             f"one folder: let it start one torchrun a node, which starts the processes")
    for name, what in WRAPPERS.items():
        if os.environ.get(name, "").lower() == "true":
            raise ValueError(f"{name} is true, and training here has no {what}: start it with torchrun, or without "
                             "that in accelerate's configuration")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(f"ACCELERATE_DYNAMO_BACKEND is {backend}, and training here compiles no networks: give "
                         "accelerate launch --dynamo_backend no")


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate for a device by name; the devices of several processes are those of their launcher.

    Raises:
        ValueError: There is no such device here, it is one GPU for several processes, or they form no group on it.
    """
    kind, colon, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} was asked for, and torch sees no GPU")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps was asked for, and torch sees none")
    if precision == "fp16" and (kind == "cpu" or not torch.cuda.is_available()):
        raise ValueError("precision fp16 needs a GPU; a CPU has bf16")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device {device} was asked for, and torch sees {torch.cuda.device_count()} GPUs, from cuda:0")
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"device {device} is one GPU, and several processes take one each: give cuda")
    if index:
        torch.cuda.set_device(int(index))
    # accelerate joins processes on a CPU only where it is told that it is one.
    cpu = kind == "cpu" or (kind == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available())
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision,
                              kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
                              # As a plugin: the number alone would give way to one of `accelerate config`.
                              gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise ValueError(f"the launcher started {wanted} processes (WORLD_SIZE), and a group of "
                         f"{accelerator.num_processes} came about on device {device}")
    if kind not in ("auto", accelerator.device.type):
        raise ValueError(f"device {device} was asked for, and accelerate's configuration gives {accelerator.device}")
    return accelerator
