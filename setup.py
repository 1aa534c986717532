"""Builds the extension `uotlib._C` with ninja; everything else about the package is in pyproject.toml.

The extension does not link libtorch, so it builds under pip's build isolation without torch.  Environment:

* ``CXX``: the C++ compiler (default: the first of c++, g++, clang++).  Without one the package installs without its
  extension, and says so; with one that fails, the installation fails.
* ``UOTLIB_CUDA``: ``auto`` (default: compile csrc/cuda where nvcc is found), ``0`` (never), ``1`` (nvcc or an error).
* ``UOTLIB_CUDA_ARCHS``: the architectures, as ``90a`` or ``80,90a``, instead of all that uotlib is compiled for.

At run time ``UOTLIB_SIMD`` = ``baseline`` or ``avx2`` holds the CPU kernels below what the machine could do.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU_LEVELS = {
    "baseline": ("16", ""),
    "avx2": ("32", "-mavx2 -mfma"),
    "avx512": ("64", "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma"),
}
#: Files of csrc/cpu that are compiled once per level.
PER_LEVEL = ("kernels", "vectors")
CUDA_ARCHS = ("80", "90a", "100a", "120")
# No fast-math: infinities and NaN must survive.  Contraction to fused multiply-add is meant.
CXX_FLAGS = ("-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast "
             "-Wall -Wextra -pthread")
NO_COMPILER = """
********************************************************************************
uotlib: no C++ compiler was found ({tried}).
The package is installed WITHOUT its compiled extension: the native CPU backend
will not be available.  Install g++ or clang++ (or set CXX), then install again.
********************************************************************************
"""


class BuildError(Exception):
    """A build that must not be passed over in silence, unlike the errors setuptools forgives an optional extension."""


def find_compiler() -> tuple[str | None, str]:
    """The C++ compiler command, or None; and what was tried."""
    tried = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = next((command for command in tried if shutil.which(shlex.split(command)[0])), None)
    return found, ", ".join(tried)


def find_nvcc() -> str | None:
    """nvcc, or None, as UOTLIB_CUDA asks."""
    wish = os.environ.get("UOTLIB_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"UOTLIB_CUDA must be auto, 0 or 1, got {wish!r}")
    nvcc = None if wish == "0" else shutil.which("nvcc")
    if wish == "1" and nvcc is None:
        raise BuildError("UOTLIB_CUDA=1 asks for the CUDA kernels, but no nvcc is on PATH")
    return nvcc


def find_ninja() -> str:
    try:
        import ninja
        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise BuildError("ninja is needed to build uotlib; pip installs it unless build isolation is off") from None
        return found


def version_line(compiler: str) -> str:
    shown = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()[0].replace('"', "")


def cuda_archs(nvcc: str) -> list[str]:
    """Those that UOTLIB_CUDA_ARCHS names, else those of CUDA_ARCHS that this nvcc knows: without one, no kernels.

    nvcc's list leaves out the "a" variants, which came with their base.
    """
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    wish = os.environ.get("UOTLIB_CUDA_ARCHS", "").replace(",", " ").split()
    unknown = [arch for arch in wish if f"sm_{arch.rstrip('a')}" not in known]
    if unknown:
        raise BuildError(f"UOTLIB_CUDA_ARCHS names {unknown[0]!r}, which this nvcc does not compile for: it knows "
                         f"{' '.join(known)}")
    found = wish or [arch for arch in CUDA_ARCHS if f"sm_{arch.rstrip('a')}" in known]
    if not found:
        reason = (f"nvcc knows none of the architectures that uotlib is compiled for ({', '.join(CUDA_ARCHS)}): it "
                  f"knows {' '.join(known) or 'none'}")
        if os.environ.get("UOTLIB_CUDA") == "1":
            raise BuildError(f"UOTLIB_CUDA=1 asks for the CUDA kernels, but {reason}")
        print(f"uotlib: built WITHOUT its CUDA kernels: {reason}", file=sys.stderr, flush=True)
    return found


def ninja_file(cxx: str, nvcc: str | None, build: Path, target: Path) -> str:
    """The text of build.ninja."""
    import pybind11

    sources = ROOT / "csrc"
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    flags = CXX_FLAGS + (" -DUOT_X86" if x86 else "")
    python_includes = " ".join(f"-I{quoted(path)}" for path in
                               {sysconfig.get_path("include"), sysconfig.get_path("platinclude")})
    edges: list[str] = []
    objects: list[Path] = []

    def compile_edge(source: Path, rule: str, extra: str, name: str | None = None) -> None:
        objects.append(build / f"{name or source.stem}.o")
        edges.append(f"build {escaped(objects[-1])}: {rule} {escaped(source)}\n  extra = {extra}\n")

    for level, (vector_bytes, options) in CPU_LEVELS.items():
        if x86 or level == "baseline":
            for stem in PER_LEVEL:
                compile_edge(sources / f"cpu/{stem}.cpp", "cxx",
                             f"{options} -DUOT_LEVEL={level} -DUOT_VECTOR_BYTES={vector_bytes}", f"{stem}_{level}")
    for source in sorted((sources / "cpu").glob("*.cpp")):
        if source.stem not in PER_LEVEL:
            compile_edge(source, "cxx", "")

    archs = cuda_archs(nvcc) if nvcc else []
    cuda_sources = sorted((sources / "cuda").glob("*.cu")) if archs else [sources / "cuda/absent.cpp"]
    for source in cuda_sources:
        compile_edge(source, "nvcc" if archs else "cxx", "", f"cuda_{source.stem}")
    # Only this edge changes with the build environment's temporary directory: the kernels are not compiled anew.
    includes = f"-I{quoted(pybind11.get_include())} {python_includes} "
    for name in ("solve_bindings", "resident_bindings"):
        compile_edge(sources / f"{name}.cpp", "cxx", includes)
    compile_edge(sources / "bindings.cpp", "cxx",
                 f"{includes}-DUOT_COMPILER={quoted(define_string(version_line(cxx)))} "
                 f"-DUOT_CUDA_ARCHS={quoted(define_string(' '.join(f'sm_{arch}' for arch in archs)))}")
    edges.append(f"build {escaped(target)}: link {' '.join(map(escaped, objects))}\n")

    gencode = " ".join(f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in archs)
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared -pthread"
    # nvcc as the linker knows where its static runtime is; that runtime needs rt, dl and pthread, and no driver.
    nvcc_command = f"{quoted(nvcc or '')} -ccbin {quoted(host_compiler(cxx))} {gencode}"
    link = (f"{nvcc_command} -shared -cudart static $in -o $out -lrt -ldl -lpthread" if archs
            else f"{cxx} {shared} $in -o $out")
    rules = f"""\
ninja_required_version = 1.5
rule cxx
  command = {cxx} {flags} $extra -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {link}
"""
    if archs:
        rules += f"""\
rule nvcc
  command = {nvcc_command} -t 0 -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden $extra -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
"""
    return rules + "".join(edges) + f"default {escaped(target)}\n"


def quoted(text: str) -> str:
    """For the shell, inside a ninja variable."""
    return shlex.quote(text).replace("$", "$$")


def escaped(path: Path) -> str:
    """As a path of a ninja build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def host_compiler(cxx: str) -> str:
    """The compiler in a command such as ``ccache g++ -m64``, for nvcc, which takes no more than that."""
    return [word for word in shlex.split(cxx) if not word.startswith("-")][-1]


def define_string(text: str) -> str:
    return f'"{text}"'


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        cxx, tried = find_compiler()
        if cxx is None:
            if os.environ.get("UOTLIB_CUDA") == "1":
                raise BuildError(f"UOTLIB_CUDA=1 asks for the CUDA kernels, but no C++ compiler was found ({tried})")
            print(NO_COMPILER.format(tried=tried), file=sys.stderr, flush=True)
            return
        # Kept from one build to the next (setuptools gives editable builds a fresh temporary directory each time).
        build = ROOT / "build" / f"ninja-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        built = build / Path(self.get_ext_filename(ext.name)).name
        (build / "build.ninja").write_text(ninja_file(cxx, nvcc, build, built))
        done = subprocess.run([find_ninja(), "-C", str(build), "-f", "build.ninja"])
        if done.returncode != 0:
            raise BuildError(f"compiling uotlib._C with {cxx} failed; the compiler's messages are above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)


setup(
    # Optional: setuptools then goes on where no file was built.
    ext_modules=[Extension("uotlib._C", sources=[], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
