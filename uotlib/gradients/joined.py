r"""A product and the potentials in one: both reach the cost in one pass.

The gradient to the cost of a product, a weight W of the plan, and that of the potentials, which it has gradients to,
are weights of low rank.  Where the product's own backward writes the first and the potentials' the second, the cost's
gradient exists twice, and is added; here the potentials' backward is told of W and writes the sum, or adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..process import on_threads
from .potentials import potential_gradients
from .products import Weight, operand_gradient, product, weight_of
from .solved import COST, Solved

#: Range of the logarithms of a marginal within which the sum keeps its terms, whatever the type.
LOG_RANGE = 28.0
#: Rank up to which a weight of a dense cost is carried: beyond, adding to a gradient in memory takes less.
FEW_FACTORS = 32


def potentials_and_product(solved: Solved, v: Tensor, side: int,
                           normalised: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f, g and what `product` returns."""
    return solved.pair.f.clone(), solved.pair.g.clone(), *product(solved, v, side, normalised)


def potentials_and_product_gradients(solved: Solved, grad_f: Tensor, grad_g: Tensor, grad: Tensor, v: Tensor,
                                     answer: Tensor, sums: Tensor, side: int, normalised: bool,
                                     needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients to the inputs and to v, from those to f, g and the product; the last arguments are the product's."""
    *needs, needs_v = needs
    with on_threads(1):
        idle = not solved.kernel.backend.asynchronous and not bool(grad.any())
    if idle:  # a loss of the potentials alone
        return [*potential_gradients(solved, grad_f, grad_g, needs), torch.zeros_like(v) if needs_v else None]
    weight = weight_of(solved, grad, v, answer, sums, side, normalised)
    carried = any(needs[COST:]) and not needs[2] and _cheaply(solved, weight) and _even(solved)
    to_cost = [False] * len(needs[COST:]) if carried else needs[COST:]
    direct = weight.gradients(solved, [*needs[:5], True, True, *to_cost])
    grad_f, grad_g = (own if more is None else own + more for own, more in zip((grad_f, grad_g), direct[5:COST],
                                                                                  strict=True))
    into = direct[COST:] if any(to_cost) else None
    del direct[5:]
    gradients = potential_gradients(solved, grad_f, grad_g, needs, weight if carried else None, into)
    for index, part in enumerate(direct):
        total = gradients[index]
        if part is not None:
            gradients[index] = part if total is None else total.add_(part)
    return [*gradients, operand_gradient(solved, grad, v, sums, side, normalised) if needs_v else None]


def _cheaply(solved: Solved, weight: Weight) -> bool:
    """Whether the product of its factors takes less, once more, than a dense gradient that is written once more."""
    return not solved.kernel.cost.dense or weight.weigh.left.shape[2] <= FEW_FACTORS


def _even(solved: Solved) -> bool:
    """Whether the marginals of every problem lie within `LOG_RANGE`."""
    pair = solved.pair
    for log_mass in (pair.log_u + pair.row_lse, pair.log_v + pair.col_lse):
        some = torch.isfinite(log_mass)
        most = torch.where(some, log_mass, -torch.inf).amax(1)
        least = torch.where(some, log_mass, torch.inf).amin(1)
        if bool((most - least > LOG_RANGE).any()):
            return False
    return True
