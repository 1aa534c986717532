r"""The matcher of UNITE as a module: features in, masses learned, one plan out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..api import unbalanced_sinkhorn
from ..checks import check_choice, check_flag, check_floating, check_penalty, check_positive
from ..costs import CosineCost, broadcast_batches, unit_vectors
from ..masses import agreement, cross_masses
from ..options import SolverOptions
from .matching import Matching, as_map, as_points

Penalty = float | tuple[float, float]


class FeatureTransport(torch.nn.Module):
    r"""Unbalanced transport between two feature sets, with masses that the features give each other.

    .. math::
        C_{ij} = 1 - \frac{\langle x_i, z_j\rangle}{|x_i||z_j|},\qquad
        (a, b) = \text{masses of } (P x, Q z),\qquad
        T = \arg\min_T \langle C, T\rangle + \tau\,\mathrm{KL}(T\mathbf 1|a) + \tau\,\mathrm{KL}(T^\top\mathbf 1|b)
        + \varepsilon\,\mathrm{KL}(T|ab^\top)

    with P, Q the identity or two learned maps.  Gradients reach features, P, Q and everything that the plan carries.

    Args:
        masses: "cross": relevance to the other set, Eq. 3 of UNITE (`cross_masses`: totals sum to 2 and may differ).
            Points that point away from the other set's mean fall to the floor, and whole classes of them may stay there
            (docs/learning.md).
            "softmax": :math:`a = \mathrm{softmax}_i(\langle x_i, \bar z\rangle / t)` with the mean of the other set,
            and so for b; totals 1 each.  "uniform": 1/n and 1/m.
        mass_projection: (d, k): masses are those of P x and Q z, two learned linear maps from d to k features without
            bias.  None: of the features themselves.
        normalize: Masses of features divided by their length; False takes them as they are.
        floor: Of "cross": total mass that each side gets beside its relevance, before the common division, > 0.
        temperature: t > 0 of "softmax", in units of the inner products.
        reg: eps > 0 while training, in units of the cost.  May be assigned between calls, to anneal.
        reg_m: tau > 0 while training, in units of the cost, or a pair (for x, for z); ``math.inf`` keeps all mass.
        reg_eval, reg_m_eval: eps and tau in evaluation mode (`Module.eval`); None is the same as while training.
        reg_type: "kl" or "entropy", as in `unbalanced_sinkhorn`.
        images: Features and values are images (..., d, H, W), matched pixel by pixel, instead of (..., n, d).
        method, max_iter, tol, grad, backend, options: Of the solver: `unbalanced_sinkhorn`, which refuses wrong ones at
            the first call.

    Shape:
        x (..., n, d) and z (..., m, d), batch dimensions broadcast; or images (..., d, H, W) of any two sizes.

    Returns:
        `Matching`: ``warp`` carries values of z to x, ``warp_back`` those of x to z, ``kept`` is the share of mass that
        each point keeps.  Solved in float32 whatever autocast says; in float64 for features of float64.

    Raises:
        TypeError, ValueError: for a setting or a feature of a wrong type, range or shape, by name.

    Example:
        >>> import torch
        >>> from uotlib.nn import FeatureTransport
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> z = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> matching = FeatureTransport(reg=0.01, reg_m=0.1)(x, z)
        >>> matching.matches()[:2]
        tensor([1, 0])
        >>> (matching.kept > 0.1).tolist()
        [True, True, False]

    Source: Zhan et al. 2021, *Unbalanced Feature Transport for Exemplar-based Image Translation* (CVPR), section 3.1:
    Eq. 2 and 3, plan of Eq. 5.  The paper fixes eps = 1e-4; the default here is what learns well (docs/learning.md).
    """

    def __init__(self, *, masses: str = "cross", mass_projection: tuple[int, int] | None = None,
                 normalize: bool = True, floor: float = 1e-3, temperature: float = 1.0, reg: float = 0.025,
                 reg_m: Penalty = 0.5, reg_eval: float | None = None, reg_m_eval: Penalty | None = None,
                 reg_type: str = "kl", images: bool = False, method: str = "auto", max_iter: int = 1000,
                 tol: float | None = None, grad: str = "implicit", backend: str = "auto",
                 options: SolverOptions | None = None) -> None:
        super().__init__()
        check_choice("masses", masses, ("cross", "softmax", "uniform"))
        check_choice("reg_type", reg_type, ("kl", "entropy"))
        for name, flag in (("normalize", normalize), ("images", images)):
            check_flag(name, flag)
        for name, number in (("floor", floor), ("temperature", temperature), ("reg", reg)):
            check_positive(name, number)
        check_penalty("reg_m", reg_m)
        if reg_eval is not None:
            check_positive("reg_eval", reg_eval)
        if reg_m_eval is not None:
            check_penalty("reg_m_eval", reg_m_eval)
        self.masses, self.normalize, self.floor, self.temperature = masses, normalize, floor, temperature
        self.reg, self.reg_m, self.reg_eval, self.reg_m_eval = reg, reg_m, reg_eval, reg_m_eval
        self.reg_type, self.images = reg_type, images
        self.method, self.max_iter, self.tol = method, max_iter, tol
        self.grad, self.backend, self.options = grad, backend, options
        self.project_x, self.project_z = self._projections(mass_projection)

    def _projections(self, sizes: object) -> tuple[torch.nn.Module, torch.nn.Module]:
        if sizes is None:
            return torch.nn.Identity(), torch.nn.Identity()
        if self.masses == "uniform":
            raise ValueError(f"mass_projection must be None with masses='uniform', got {sizes!r}")
        if not isinstance(sizes, tuple | list) or len(sizes) != 2 \
                or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError(f"mass_projection must be None or a pair of positive ints (d, k), got {sizes!r}")
        project_x, project_z = (torch.nn.Linear(sizes[0], sizes[1], bias=False) for _ in range(2))
        # Two unrelated maps would make about half of all relevances negative, where the clamp stops their gradient.
        torch.nn.init.orthogonal_(project_x.weight)
        project_z.load_state_dict(project_x.state_dict())
        return project_x, project_z

    def forward(self, x: Tensor, z: Tensor, *, init: tuple[Tensor, Tensor] | None = None) -> Matching:
        """Match x to z.

        Args:
            x, z: Features, (..., n, d) and (..., m, d), or images (..., d, H, W).
            init: Potentials (f, g), (..., n) and (..., m), to start from: `unbalanced_sinkhorn`.
        """
        x_size, z_size = (self._size(name, features) for name, features in (("x", x), ("z", z)))
        x, z = as_points("x", x, x_size), as_points("z", z, z_size)
        a, b = self.mass(x, z)
        evaluating = not self.training
        solution = unbalanced_sinkhorn(
            CosineCost(x, z), a, b, reg=self.reg_eval if evaluating and self.reg_eval is not None else self.reg,
            reg_m=self.reg_m_eval if evaluating and self.reg_m_eval is not None else self.reg_m,
            reg_type=self.reg_type, method=self.method, max_iter=self.max_iter, tol=self.tol, init=init,
            grad=self.grad, backend=self.backend, options=self.options)
        return Matching(solution, as_map(a, x_size), as_map(b, z_size), x_size, z_size)

    def mass(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Masses (..., n) and (..., m) of features (..., n, d) and (..., m, d), as `forward` gives them."""
        for name, features, project in (("x", x, self.project_x), ("z", z, self.project_z)):
            if isinstance(project, torch.nn.Linear) and features.shape[-1] != project.in_features:
                raise ValueError(f"{name} must have {project.in_features} features, as mass_projection says, "
                                 f"got {features.shape[-1]}")
        x, z = self.project_x(x), self.project_z(z)
        if self.masses == "cross":
            return cross_masses(x, z, normalize=self.normalize, floor=self.floor)
        dtype = torch.promote_types(torch.promote_types(x.dtype, z.dtype), torch.float32)
        x, z = x.to(dtype), z.to(dtype)
        if self.masses == "uniform":
            batch = broadcast_batches(x.shape[:-2], z.shape[:-2])
            n, m = x.shape[-2], z.shape[-2]
            return x.new_full((*batch, n), 1 / n), z.new_full((*batch, m), 1 / m)
        if self.normalize:
            x, z = unit_vectors(x), unit_vectors(z)
        a, b = agreement(x, z), agreement(z, x)
        return (a / self.temperature).softmax(-1), (b / self.temperature).softmax(-1)

    def extra_repr(self) -> str:
        evaluation = "".join(f", {name}={value}" for name, value in (("reg_eval", self.reg_eval),
                                                                     ("reg_m_eval", self.reg_m_eval))
                             if value is not None)
        return (f"masses={self.masses!r}, reg={self.reg}, reg_m={self.reg_m}{evaluation}, "
                f"reg_type={self.reg_type!r}, grad={self.grad!r}")

    def _size(self, name: str, features: object) -> tuple[int, int] | None:
        features = check_floating(name, features)
        wanted = "(..., d, H, W)" if self.images else "(..., points, d)"
        if features.ndim < (3 if self.images else 2) or 0 in features.shape[(-3 if self.images else -2):]:
            raise ValueError(f"{name} must have shape {wanted} without an empty dimension, "
                             f"got {tuple(features.shape)}")
        return (features.shape[-2], features.shape[-1]) if self.images else None
