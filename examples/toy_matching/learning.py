"""Training of the matcher, with three ways to differentiate the plan that it is trained through."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from uotlib.nn import FeatureTransport, Matching

from .clouds import CLASSES, SEEN, Clouds, World, one_hot

#: Features that the sides are projected to, and learning rate of Adam.
WIDTH, RATE = 16, 3e-3
#: Iterations that "unrolled" runs, from zero potentials.
UNROLLED = 20
#: eps of an annealed training, and the eps that every matcher is evaluated at besides its own.
ANNEALED = (0.05, 1e-4)
EVALUATED = 1e-4
#: Passes that a converged solve may take, and clouds that a matcher is evaluated on.
MAX_ITER, FRESH = 5000, 4
GRADIENTS = ("implicit", "unrolled", "half-step")


@dataclass(frozen=True)
class Task:
    """What is learned, the same for all trainings of a run.

    Args:
        steps: Of Adam.
        points: A side.
        outliers: Share of them without a class.
        tau: Of both sides.
        masses: "softmax" or "cross", of learned projections, or "uniform": `FeatureTransport`.
    """

    steps: int = 250
    points: int = 128
    outliers: float = 0.25
    tau: float = 0.1
    masses: str = "softmax"


@dataclass(frozen=True)
class Learned:
    """What came out of one training.

    Args:
        eps: Of the training, or "annealed".
        gradient: One of `GRADIENTS`.
        seed: Of the world and the initial maps.
        curve: Share of the plan's mass on right pairs after every step, at the eps of the step.
        share: The same on fresh clouds after training, at the last eps.
        share_sharp: At `EVALUATED`.
        rows: Share of a row on right pairs, a mean over the points of x with a class: a class that masses dropped
            counts like any other.
        kept, kept_outliers: Mean share of mass that fresh points with and without a class keep, at the last eps.
        plan: Plan of fresh clouds at the last eps, sorted by class with the outliers at the end.
        seconds: Of the training.
    """

    eps: str
    gradient: str
    seed: int
    curve: list[float]
    share: float
    share_sharp: float
    rows: float
    kept: float
    kept_outliers: float
    plan: Tensor
    seconds: float


class Matcher(torch.nn.Module):
    """One linear map a side, then transport with learned masses."""

    def __init__(self, eps: float, gradient: str, task: Task) -> None:
        super().__init__()
        self.left, self.right = (torch.nn.Linear(SEEN, WIDTH, bias=False) for _ in range(2))
        unrolled = {"method": "sinkhorn", "grad": "unrolled", "max_iter": UNROLLED, "tol": 0.0}
        settings = unrolled if gradient == "unrolled" else {"max_iter": MAX_ITER}
        learned = None if task.masses == "uniform" else (WIDTH, WIDTH)
        self.transport = FeatureTransport(masses=task.masses, mass_projection=learned, reg=eps, reg_m=task.tau,
                                          **settings)
        self.gradient = gradient

    def forward(self, clouds: Clouds) -> tuple[Tensor, Tensor]:
        """Loss of the labels carried both ways, and the share of the plan's mass on right pairs."""
        x, z = self.left(clouds.x), self.right(clouds.z)
        x_labels, z_labels = one_hot(clouds.x_class), one_hot(clouds.z_class)
        matching = self.transport(x, z)
        if self.gradient == "half-step":
            forth, back = half_steps(x, z, matching, self.transport.reg, self.transport.reg_m)
            at_x, at_z = forth @ z_labels, back @ x_labels
        else:
            at_x, at_z = matching.warp(z_labels), matching.warp_back(x_labels)
        loss = label_error(at_x, x_labels) + label_error(at_z, z_labels)
        return loss, share(matching.solution.plan.detach(), clouds)


def label_error(carried: Tensor, labels: Tensor) -> Tensor:
    """Squared error of labels (points, classes), a mean over points that have one."""
    return (carried - labels).square().sum(1)[labels.sum(1) > 0].mean()


def half_steps(x: Tensor, z: Tensor, matching: Matching, eps: float, tau: float) -> tuple[Tensor, Tensor]:
    r"""Row- and column-normalised plan at the solution, of which only one half-step is differentiated.

    For rows, :math:`g_j = -\lambda\,\mathrm{LSE}_i[\log a_i + (f_i - C_{ij})/\varepsilon]` with f a constant, then
    :math:`\mathrm{softmax}_j(\log b_j + (g_j - C_{ij})/\varepsilon)`, where f and a drop out; columns likewise.
    """
    unit = torch.nn.functional.normalize
    scaled_cost = (1 - unit(x, dim=1) @ unit(z, dim=1).T) / eps
    solution = matching.solution

    def normalised(cost: Tensor, own: Tensor, potential: Tensor, other: Tensor) -> Tensor:
        lse = torch.logsumexp((own.log() + potential.detach() / eps)[:, None] - cost, dim=0)
        return torch.softmax(other.log() - tau / (tau + eps) * lse - cost, dim=1)

    return (normalised(scaled_cost, matching.a, solution.f, matching.b),
            normalised(scaled_cost.T, matching.b, solution.g, matching.a))


def share(plan: Tensor, clouds: Clouds) -> Tensor:
    """Share of a plan's mass on right pairs."""
    return (plan * clouds.right).sum() / plan.sum()


def train(eps: float | None, gradient: str, seed: int, task: Task) -> Learned:
    """Train a matcher on fresh clouds and evaluate it on others.

    Args:
        eps: Fixed, or None for a geometric schedule from the first to the second of `ANNEALED`.
        gradient: One of `GRADIENTS`.
        seed: Of the world and the initial maps.
        task: Everything else.
    """
    torch.manual_seed(seed)
    world = World(seed, task.outliers)
    annealed = torch.logspace(*map(math.log10, ANNEALED), task.steps).tolist()
    schedule = annealed if eps is None else [eps] * task.steps
    matcher = Matcher(ANNEALED[0] if eps is None else eps, gradient, task).double()
    optimiser = torch.optim.Adam(matcher.parameters(), lr=RATE)
    curve, start = [], time.perf_counter()
    for matcher.transport.reg in schedule:
        loss, right = matcher(world.draw(task.points))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(float(right))
    seconds = time.perf_counter() - start
    return Learned("annealed" if eps is None else f"{eps:g}", gradient, seed, curve,
                   *evaluate(matcher, [world.draw(task.points) for _ in range(FRESH)]), seconds)


@torch.no_grad()
def evaluate(matcher: Matcher, fresh: list[Clouds]) -> tuple[float, float, float, float, float, Tensor]:
    """From share to plan of `Learned`, means over clouds (the plan of the last), all of converged solves."""
    transport = copy.deepcopy(matcher.transport)
    transport.method, transport.max_iter, transport.tol, transport.grad = "auto", MAX_ITER, None, "none"
    scores = []
    for clouds in fresh:
        x, z = matcher.left(clouds.x), matcher.right(clouds.z)
        transport.reg = matcher.transport.reg
        matching = transport(x, z)
        inlier = clouds.x_class >= 0
        transport.reg = EVALUATED
        plan = matching.solution.plan
        rows = ((plan * clouds.right).sum(1) / plan.sum(1))[inlier].mean()
        scores.append((share(plan, clouds), share(transport(x, z).solution.plan, clouds), rows,
                       matching.kept[inlier].mean(), matching.kept[~inlier].mean()))
    right, sharp, rows, kept, kept_outliers = torch.tensor(scores).mean(0).tolist()
    order, columns = (labels.where(labels >= 0, CLASSES).argsort() for labels in (clouds.x_class, clouds.z_class))
    return right, sharp, rows, kept, kept_outliers, plan[order][:, columns]
