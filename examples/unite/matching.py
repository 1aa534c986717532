r"""Descriptors in, one plan out, and everything that it carries: the only module that knows uotlib."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from uotlib import CosineCost, unbalanced_sinkhorn
from uotlib.nn import FeatureTransport, Matching

from .config import MatchConfig, ModelConfig
from .descriptors import Projections
from .structures import Transported

#: `MatchConfig.masses` by the library's names.
MASSES = {"eq3": "cross", "eq3_proj": "cross", "softmax": "softmax", "uniform": "uniform"}
#: Penalty of "cos": as tau goes to 0 potentials do, and the plan's rows become softmax(cos / eps).
NO_PENALTY = 1e-12
#: Slope of the learned confidence.
SLOPE = 10.0


@dataclass(frozen=True)
class _HalfSteps:
    r"""A solved plan whose gradients are those of one last half-step, the other side's potential being a constant.

    A row's average is softmax_j(log b_j + (g_j - C_ij) / eps), without f; a column's has f alone.  So rows are averaged
    by a plan that computed g from a constant f, and columns by one that computed f from a constant g.

    Args:
        of_rows: Of the transposed problem (z to x), after one iteration that began with z.
        of_columns: Of the problem (x to z), after one that began with x.
        violation: Of the plan that both began with.
    """

    of_rows: Matching
    of_columns: Matching
    violation: Tensor

    def warp(self, values: Tensor) -> Tensor:
        return self.of_rows.warp_back(values)

    def warp_all(self, levels: list[Tensor]) -> list[Tensor]:
        joined = self.warp(torch.cat(levels, 1))
        return list(joined.split([level.shape[1] for level in levels], 1))

    def warp_back(self, values: Tensor) -> Tensor:
        return self.of_columns.warp_back(values)

    @property
    def a(self) -> Tensor:
        return self.of_columns.a

    @property
    def b(self) -> Tensor:
        return self.of_columns.b

    @property
    def kept(self) -> Tensor:
        return self.of_rows.kept_back

    @property
    def kept_back(self) -> Tensor:
        return self.of_columns.kept_back


class Matcher(nn.Module):
    r"""Feature transport (sections 3.1 of the paper, 2.3 to 2.5 of the specification).

    "uot": min <C,T> + tau KL(T1|a) + tau KL(T'1|b) + eta KL(T|ab'), C = 1 - cos, masses by `MatchConfig.masses`.
    "ot": the same with exact marginals, whose totals must be equal: masses are uniform unless they are "softmax".
    "cos": row softmax of cos / temperature, and for the way back its column softmax; no masses.

    Masses "eq3" are of the descriptors; "eq3_proj" and "softmax", and the learned confidence, of projections of their
    own of the features that the shared layers made, as in the authors' code.

    Solved in float32 outside autocast (float64 for descriptors of float64), by a fixed number of passes, each sample by
    itself.  eta and tau are those of training or of evaluation, as `nn.Module.training` says.

    Attributes:
        progress: Share of the training that is over, in [0, 1]; the trainer sets it, for annealing eta.
    """

    def __init__(self, model: ModelConfig, match: MatchConfig) -> None:
        super().__init__()
        self.model, self.match, self.progress = model, match, 0.0
        kind = match.masses
        if match.matcher == "cos" or (match.matcher == "ot" and kind != "softmax"):
            kind = "uniform"
        self.masses = FeatureTransport(masses=MASSES[kind])
        self.of_masses = Projections(model, alike=True) if kind in ("eq3_proj", "softmax") else None
        self.of_confidence = Projections(model, alike=False) if model.confidence == "learned" else None

    @property
    def eta(self) -> float:
        """Entropic regularisation now; in training it goes down geometrically from ``eta_start``, if that is given."""
        match = self.match
        if not self.training:
            return match.eta_eval
        if match.eta_start is None:
            return match.eta_train
        share = min(max(self.progress, 0.0) / match.anneal_share, 1.0)
        return match.eta_start * (match.eta_train / match.eta_start) ** share

    @property
    def passes(self) -> int:
        """Passes of a solve now."""
        match = self.match
        return match.passes if self.training or match.passes_eval is None else match.passes_eval

    @property
    def tau(self) -> float:
        """Penalty of the marginals now."""
        if self.match.matcher == "ot":
            return math.inf
        return self.match.tau_train if self.training else self.match.tau_eval

    def forward(self, x: Tensor, z: Tensor, exemplar: Tensor, levels: dict[str, Tensor],
                exemplar_condition: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> Transported:
        """Match x to z, and carry what belongs to the exemplar.

        Args:
            x: Descriptors of the condition, (B, d, h, w), of unit length.
            z: Descriptors of the exemplar, (B, d, h', w').
            exemplar: Its image, (B, 3, H, W).
            levels: Its features by name; those of `ModelConfig.levels` are carried.
            exemplar_condition: Its condition, (B, S, H, W).
            shared: `Descriptors.shared_features` of both, (B, d', h, w) and (B, d', h', w'), where masses or confidence
                are made of them.

        Raises:
            ValueError: for descriptors of another width than configured, a level or shared features that are missing.
        """
        width = self.model.descriptor_dim * self.model.match_kernel**2
        for name, features in (("x", x), ("z", z)):
            if features.ndim != 4 or features.shape[1] != width:
                raise ValueError(f"{name} must be descriptors (B, {width}, h, w), got {tuple(features.shape)}")
        missing = [name for name in self.model.levels if name != "rgb" and name not in levels]
        if missing:
            raise ValueError(f"levels must have {missing[0]!r}, got {', '.join(levels) or 'none'}")
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(torch.promote_types(x.dtype, z.dtype), torch.float32)
            x, z = x.to(dtype), z.to(dtype)
            if shared is not None:
                shared = shared[0].to(dtype), shared[1].to(dtype)
            plan = self.plan(x, z, shared)
            return self._carry(plan, self._confidence(shared, plan), exemplar, levels, exemplar_condition)

    def mass(self, x: Tensor, z: Tensor, shared: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Masses (B, h w) and (B, h' w') of descriptors, or of shared features."""
        if self.of_masses is not None:
            if shared is None:
                raise ValueError(f"shared must be given: masses {self.match.masses!r} are made of the shared features")
            x, z = self.of_masses(*shared)
        return self.masses.mass(x.flatten(2).mT, z.flatten(2).mT)

    def plan(self, x: Tensor, z: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> Matching | _HalfSteps:
        """The plan alone, of descriptors (B, d, h, w); differentiable as `MatchConfig.gradients` says."""
        sizes = (x.shape[-2], x.shape[-1]), (z.shape[-2], z.shape[-1])
        a, b = self.mass(x, z, shared)
        x, z = x.flatten(2).mT, z.flatten(2).mT
        if self.match.matcher == "cos":
            return self._cosine(x, z, a, b, sizes)
        settings = {"reg": self.eta, "reg_m": self.tau, "reg_type": self.match.reg_type, "tol": 0.0,
                    "backend": self.match.backend}
        if self.match.gradients == "implicit" or not torch.is_grad_enabled():
            solved = unbalanced_sinkhorn(CosineCost(x, z), a, b, max_iter=self.passes, **settings)
            return _matching(solved, a, b, sizes)
        found = unbalanced_sinkhorn(CosineCost(x.detach(), z.detach()), a.detach(), b.detach(), grad="none",
                                    max_iter=self.passes, **settings)
        settings |= {"method": "sinkhorn", "grad": "unrolled"}
        f, g = found.f, found.g
        if self.match.gradients == "unrolled":
            again = unbalanced_sinkhorn(CosineCost(x, z), a, b, init=(f, g), max_iter=self.match.unrolled_passes,
                                        **settings)
            return _matching(again, a, b, sizes)
        rows = unbalanced_sinkhorn(CosineCost(z, x), b, a, init=(g, f), max_iter=1, **settings)
        columns = unbalanced_sinkhorn(CosineCost(x, z), a, b, init=(f, g), max_iter=1, **settings)
        return _HalfSteps(_matching(rows, b, a, sizes[::-1]), _matching(columns, a, b, sizes), found.violation)

    def _cosine(self, x: Tensor, z: Tensor, a: Tensor, b: Tensor,
                sizes: tuple[tuple[int, int], tuple[int, int]]) -> Matching:
        solved = unbalanced_sinkhorn(CosineCost(x, z), a, b, reg=self.match.temperature, reg_m=NO_PENALTY, tol=0.0,
                                     method="sinkhorn", grad="unrolled", max_iter=1, backend=self.match.backend)
        return _matching(solved, a, b, sizes)

    def _carry(self, plan: Matching | _HalfSteps, confidence: Tensor | None, exemplar: Tensor,
               levels: dict[str, Tensor], exemplar_condition: Tensor) -> Transported:
        here, grid, unfold = plan.a.shape[-2:], (plan.b.shape[-2], plan.b.shape[-1]), self.model.unfold
        named = {"rgb": exemplar} | {name: levels[name] for name in self.model.levels if name != "rgb"}
        small = {name: _to_grid(level, grid, unfold) for name, level in named.items()}
        *carried, condition = plan.warp_all([*small.values(), _to_grid(exemplar_condition, grid, unfold=False)])
        found = dict(zip(small, carried, strict=True))

        # A patch's mean moves as the patch does, so that an unfolded image need not go back whole.
        there, exemplar_small = _mean_colour(found["rgb"]), _mean_colour(small["rgb"])
        returned = [there] + ([found[name] for name in found if name != "rgb"] if self.match.cycle_features else [])
        cycle, *rest = plan.warp_back(torch.cat(returned, 1)).split([level.shape[1] for level in returned], 1)
        feature_cycle = {name: (back, small[name].detach())
                         for name, back in zip([name for name in found if name != "rgb"], rest, strict=False)}

        kept, kept_back = plan.kept, plan.kept_back
        violation = plan.solution.violation if isinstance(plan, Matching) else plan.violation
        if self.match.matcher == "cos":  # it has no marginals to keep, nor to violate
            kept, kept_back, violation = torch.ones_like(kept), torch.ones_like(kept_back), None
        whole = {name: _whole(level, named[name].shape[1]) for name, level in found.items()}
        size = [side * own // other for side, own, other in zip(exemplar.shape[-2:], here, grid, strict=True)]
        warped = _resized(whole["rgb"], size, "bilinear" if self.model.bilinear_warp else "nearest")
        return Transported(
            levels=whole, warped=warped, warped_condition=condition, cycle=cycle, exemplar_small=exemplar_small,
            a=plan.a, b=plan.b, kept=kept, kept_back=kept_back, confidence=confidence,
            feature_cycle=feature_cycle, violation=None if violation is None else violation.detach())

    def _confidence(self, shared: tuple[Tensor, Tensor] | None, plan: Matching | _HalfSteps) -> Tensor | None:
        """How far each position of x can be trusted, (B, 1, h, w), or None where that is off."""
        if self.model.confidence == "off":
            return None
        if self.of_confidence is None:
            return (torch.ones_like(plan.a) if self.match.matcher == "cos" else plan.kept.clamp_max(1.0))[:, None]
        if shared is None:
            raise ValueError("shared must be given: a learned confidence is made of the shared features")
        size = shared[0].shape[-2:]
        x, z = (side.flatten(2).mT for side in self.of_confidence(*shared))
        with torch.no_grad():
            uniform = [side.new_full(side.shape[:2], 1 / side.shape[1]) for side in (x, z)]
            best = self._cosine(x, z, *uniform, ((x.shape[1], 1), (z.shape[1], 1))).solution.argmax()
        highest = (x * z.gather(1, best[:, :, None].expand(-1, -1, z.shape[2]))).sum(-1)
        return torch.sigmoid(SLOPE * (highest - highest.mean(-1, keepdim=True))).unflatten(-1, size)[:, None]


def _matching(solution: object, a: Tensor, b: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]]) -> Matching:
    """Laid out as images of these sizes."""
    return Matching(solution, a.unflatten(-1, sizes[0]), b.unflatten(-1, sizes[1]), *sizes)


def _to_grid(level: Tensor, grid: tuple[int, int], unfold: bool) -> Tensor:
    """On the matching grid: the nearest pixel of each position, or its whole patch as channels."""
    ratio = level.shape[-1] // grid[1]
    if unfold and level.shape[-2:] == (grid[0] * ratio, grid[1] * ratio):
        return functional.pixel_unshuffle(level, ratio)
    return _resized(level, grid, "nearest")


def _whole(level: Tensor, channels: int) -> Tensor:
    """Patches that travelled as channels, folded back."""
    return functional.pixel_shuffle(level, math.isqrt(level.shape[1] // channels))


def _mean_colour(patches: Tensor) -> Tensor:
    """(B, 3 r r, h, w) to (B, 3, h, w)."""
    return patches.unflatten(1, (3, -1)).mean(2)


def _resized(level: Tensor, size: tuple[int, int] | list[int], mode: str) -> Tensor:
    if tuple(level.shape[-2:]) == tuple(size):
        return level
    return functional.interpolate(level, size=tuple(size), mode=mode,
                                  align_corners=False if mode == "bilinear" else None)
