"""The modules: what they solve, what they carry, where gradients go, and what modules are expected to survive."""

from __future__ import annotations

import copy
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from differentiation import features, leaf
from tolerances import assert_close

import uotlib
from uotlib.nn import FeatureTransport, Matching, UnbalancedSinkhornLoss

#: Two solves of one problem to 1e-12, or one solve read in two ways.
RTOL = 1e-10
EXACT = {"tol": 1e-12, "max_iter": 5000}


def sides(n=6, m=8, d=5, batch=(), seed=0):
    """Features that agree a little, so that cross masses are not all at their floor."""
    return (features(*batch, n, d, seed=seed) + 0.7, features(*batch, m, d, seed=seed + 1) + 0.7)


def transport(**settings):
    torch.manual_seed(0)
    return FeatureTransport(**({"reg": 0.1, "reg_m": 0.5} | EXACT | settings)).double()


# Feature transport: the problem.

@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_plan_is_that_of_cosines_and_cross_masses(reg_type):
    x, z = sides(batch=(2,))
    matching = transport(reg_type=reg_type, floor=0.01)(x, z)
    a, b = uotlib.cross_masses(x, z, floor=0.01)
    expected = uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), a, b, reg=0.1, reg_m=0.5, reg_type=reg_type, **EXACT)
    assert_close(matching.solution.plan, expected.plan, RTOL)
    assert_close(matching.a, a, RTOL)
    assert_close(matching.b, b, RTOL)


def test_softmax_masses_are_attention_to_the_mean_of_the_other_side():
    x, z = sides()
    a, b = transport(masses="softmax", normalize=False, temperature=0.3).mass(x, z)
    assert_close(a, (x @ z.mean(0) / 0.3).softmax(0), RTOL)
    assert_close(b, (z @ x.mean(0) / 0.3).softmax(0), RTOL)
    a, _ = transport(masses="softmax").mass(x, z)
    unit = torch.nn.functional.normalize
    assert_close(a, (unit(x) @ unit(z).mean(0)).softmax(0), RTOL)


def test_uniform_masses_with_exact_marginals_are_classical_transport():
    x, z = sides()
    matching = transport(masses="uniform", reg_m=float("inf"))(x, z)
    assert_close(matching.solution.plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64), 1e-9)
    assert_close(matching.kept_back, torch.ones(8, dtype=torch.float64), 1e-9)


def test_a_square_projection_starts_at_the_masses_of_the_features():
    """It starts orthogonal, to float32, and equal on both sides, which keeps every inner product."""
    x, z = sides()
    for masses in ("cross", "softmax"):
        projected = transport(masses=masses, mass_projection=(5, 5)).mass(x, z)
        for found, expected in zip(projected, transport(masses=masses).mass(x, z), strict=True):
            assert_close(found, expected, 1e-6)


def test_projections_are_learned_separately():
    x, z = sides()
    module = transport(mass_projection=(5, 3))
    matching = module(x, z)
    matching.kept[0].backward()
    slopes = [parameter.grad for parameter in module.parameters()]
    assert len(slopes) == 2
    assert all(float(slope.abs().max()) > 0 for slope in slopes)
    assert not torch.allclose(*slopes)


def test_training_and_evaluation_have_their_own_eps_and_tau():
    x, z = sides()
    module = transport(reg_eval=0.03, reg_m_eval=(0.2, float("inf")))
    for mode, reg, reg_m in ((module.train, 0.1, 0.5), (module.eval, 0.03, (0.2, float("inf")))):
        mode()
        expected = transport(reg=reg, reg_m=reg_m)(x, z).solution.plan
        assert_close(module(x, z).solution.plan, expected, 1e-9)
    module.train()
    module.reg = 0.2
    assert_close(module(x, z).solution.plan, transport(reg=0.2)(x, z).solution.plan, RTOL)


def test_warm_start_continues():
    x, z = sides()
    solution = transport()(x, z).solution
    again = transport(max_iter=3)(x, z, init=(solution.f, solution.g)).solution
    assert bool(again.converged)
    assert_close(again.plan, solution.plan, 1e-9)


# Feature transport: what the plan carries.

def test_values_are_carried_both_ways_by_one_plan():
    x, z = sides(batch=(2,))
    matching = transport()(x, z)
    plan, forth, back = matching.solution.plan, features(2, 8, 3, seed=5), features(6, 2, seed=6)
    assert_close(matching.warp(forth, normalised=False), plan @ forth, RTOL)
    assert_close(matching.warp(forth), plan @ forth / plan.sum(2, keepdim=True), RTOL)
    assert_close(matching.warp_back(back, normalised=False), plan.mT @ back, RTOL)
    assert_close(matching.warp_back(back), plan.mT @ back / plan.sum(1)[..., None], RTOL)


def test_all_levels_at_once_are_each_alone():
    x, z = sides(batch=(2,))
    matching = transport()(x, z)
    levels = [features(2, 8, 3, seed=5), features(8, 2, seed=6), features(1, 8, 1, seed=7)]
    for normalised in (True, False):
        found = matching.warp_all(levels, normalised=normalised)
        for level, values in zip(found, levels, strict=True):
            assert_close(level, matching.warp(values, normalised=normalised), RTOL)


def test_images_are_their_pixels():
    """Two sizes, features and values as (..., k, H, W): the same numbers as points in row-major order."""
    x, z = features(2, 5, 3, 4) + 0.5, features(2, 5, 2, 6, seed=1) + 0.5
    rgb, own = features(2, 3, 2, 6, seed=2), features(2, 2, 3, 4, seed=3)
    images = transport(images=True)(x, z)
    points = transport()(x.flatten(2).mT, z.flatten(2).mT)
    assert_close(images.warp(rgb).flatten(2).mT, points.warp(rgb.flatten(2).mT), RTOL)
    assert_close(images.warp_back(own).flatten(2).mT, points.warp_back(own.flatten(2).mT), RTOL)
    assert_close(images.warp_all([rgb, rgb])[1], images.warp(rgb), RTOL)
    for found, expected in ((images.kept, points.kept), (images.kept_back, points.kept_back), (images.a, points.a)):
        assert_close(found.flatten(1), expected, RTOL)
    assert images.kept.shape == (2, 3, 4)
    assert images.kept_back.shape == (2, 2, 6)
    assert torch.equal(images.matches().flatten(1), points.matches())


def test_kept_is_the_potential():
    r"""At the optimum T1 = a e^(-f/tau)."""
    x, z = sides()
    matching = transport(reg_m=(0.3, 0.8))(x, z)
    assert_close(matching.kept, torch.exp(-matching.solution.f / 0.3), 1e-9)
    assert_close(matching.kept_back, torch.exp(-matching.solution.g / 0.8), 1e-9)


def test_a_point_without_mass_keeps_nothing():
    """A softmax so sharp that masses underflow: no NaN, neither in the share nor in its gradient."""
    x, z = sides()
    x[0] = -x[0]
    x.requires_grad_()
    matching = transport(masses="softmax", temperature=1e-4)(x, z)
    assert float(matching.a.detach()[0]) == 0
    assert float(matching.kept.detach()[0]) == 0
    matching.kept.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_outliers_keep_less():
    """A quarter of x is opposite to all of z."""
    z = features(12, 6) + 2.0
    x = z + 0.1 * features(12, 6, seed=1)
    x[:3] = -x[:3]
    kept = transport(reg=0.02, reg_m=0.1)(x, z).kept
    assert float(kept[:3].max()) < 0.01 * float(kept[3:].min())


# Feature transport: gradients.

@pytest.mark.parametrize("settings", [{}, {"mass_projection": (3, 2)}, {"masses": "softmax", "normalize": False}])
def test_gradients_reach_features_maps_and_values(settings):
    x, z = (leaf(side) for side in sides(3, 4, 3))
    forth, back = leaf(features(4, 2, seed=5)), leaf(features(3, 1, seed=6))
    module = transport(tol=1e-13, **settings)
    maps = list(module.parameters())
    names = [name for name, _ in module.named_parameters()]

    def outputs(x, z, forth, back, *maps):
        matching = torch.func.functional_call(module, dict(zip(names, maps, strict=True)), (x, z))
        return (matching.warp(forth), matching.warp_back(back, normalised=False), matching.kept,
                matching.warp_back(matching.warp(forth)))

    assert torch.autograd.gradcheck(outputs, (x, z, forth, back, *maps), atol=1e-6)


def test_unrolled_gradients_of_many_iterations_are_the_implicit_ones():
    slopes = []
    for settings in ({}, {"method": "sinkhorn", "grad": "unrolled", "tol": 0.0, "max_iter": 300}):
        x, z = (leaf(side) for side in sides())
        transport(**settings)(x, z).kept[0].backward()
        slopes.append(x.grad)
    assert_close(slopes[1], slopes[0], 1e-8)


def test_autocast_does_not_reach_the_solver():
    """Projections may run in bfloat16; masses, plan and what it carries are float32, and depend on nothing else."""
    torch.manual_seed(0)
    x, z = (side.float() for side in sides(20, 24, 16))
    module, values = FeatureTransport(reg=0.02), features(24, 3, seed=5).float()
    expected = module(x, z).warp(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matching = module(x, z)
        found = matching.warp(values)
        projected = FeatureTransport(mass_projection=(16, 4))(x.requires_grad_(), z)
    assert matching.a.dtype == found.dtype == projected.solution.plan.dtype == torch.float32
    assert torch.equal(found, expected)
    projected.kept.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


# Modules as modules.

def test_state_dict_copies_and_pickles_give_the_same_matching():
    x, z = sides()
    module = transport(mass_projection=(5, 2), options=uotlib.SolverOptions(anderson_depth=4))
    with torch.no_grad():
        module.project_x.weight.mul_(1.3)
    other = transport(mass_projection=(5, 2), options=uotlib.SolverOptions(anderson_depth=4))
    assert float((other(x, z).a - module(x, z).a).detach().abs().max()) < 1e-12  # lengths do not count: directions do
    with torch.no_grad():
        module.project_x.weight[0].mul_(2.0)
    assert float((other(x, z).a - module(x, z).a).detach().abs().max()) > 1e-3
    other.load_state_dict(module.state_dict())
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
                 torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x, z).solution.plan, module(x, z).solution.plan)


def test_no_projection_has_no_state():
    assert not transport().state_dict()


def test_inference_leaves_no_graph():
    x, z = sides()
    module = transport(mass_projection=(5, 2))
    with torch.no_grad():
        matching = module(x, z)
    assert isinstance(matching, Matching)
    assert not matching.kept.requires_grad
    assert not matching.warp(features(8, 2)).requires_grad


@pytest.mark.parametrize(("settings", "error", "sentence"), [
    ({"masses": "eq3"}, ValueError, "masses must be 'cross', 'softmax' or 'uniform', got 'eq3'"),
    ({"reg_type": "l2"}, ValueError, "reg_type must be 'kl' or 'entropy', got 'l2'"),
    ({"reg": 0.0}, ValueError, "reg must be positive and finite, got 0.0"),
    ({"reg": "0.1"}, TypeError, "reg must be a number, got str"),
    ({"reg_eval": float("nan")}, ValueError, "reg_eval must be positive and finite, got nan"),
    ({"reg_m": (0.5, -1.0)}, ValueError, r"reg_m\[1\] must be positive, got -1.0"),
    ({"reg_m": (0.5, 1.0, 1.0)}, ValueError, "reg_m must be a number or a pair of numbers, got 3 values"),
    ({"reg_m_eval": True}, TypeError, "reg_m_eval must be a number, got bool"),
    ({"floor": -1.0}, ValueError, "floor must be positive and finite, got -1.0"),
    ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
    ({"images": 1}, TypeError, "images must be True or False, got 1"),
    ({"normalize": None}, TypeError, "normalize must be True or False, got None"),
    ({"mass_projection": (5, 0)}, ValueError, r"mass_projection must be None or a pair of positive ints.*\(5, 0\)"),
    ({"mass_projection": 5}, ValueError, "mass_projection must be None or a pair of positive ints"),
    ({"mass_projection": (5, 2), "masses": "uniform"}, ValueError, "must be None with masses='uniform'"),
])
def test_settings_are_refused_by_name(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        FeatureTransport(**settings)


def test_features_and_values_are_refused_by_name():
    x, z = sides()
    module, images = transport(), transport(images=True)
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        module([1.0], z)
    with pytest.raises(TypeError, match=r"z must have a floating-point dtype, got torch\.int64"):
        module(x, z.long())
    with pytest.raises(ValueError, match=r"x must have shape \(..., d, H, W\).*got \(6, 5\)"):
        images(x, z)
    with pytest.raises(ValueError, match=r"z must have shape \(..., points, d\).*got \(0, 5\)"):
        module(x, z[:0])
    with pytest.raises(ValueError, match="same feature size, got 5 and 4"):
        module(x, z[:, :4])
    with pytest.raises(ValueError, match="x must have 4 features, as mass_projection says, got 5"):
        transport(mass_projection=(4, 2))(x, z)
    matching = images(features(5, 2, 3), features(5, 2, 4, seed=1))
    with pytest.raises(ValueError, match=r"values must be images \(..., k, 2, 4\), got \(3, 2, 3\)"):
        matching.warp(features(3, 2, 3))
    with pytest.raises(ValueError, match=r"levels\[1\] must be images"):
        matching.warp_all([features(3, 2, 4), features(3, 2, 3)])
    points = module(x, z)
    with pytest.raises(TypeError, match=r"levels\[1\] must have a floating-point dtype, got torch\.int64"):
        points.warp_all([features(8, 2), torch.ones(8, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"levels must have shapes \(..., 8, k\), got \(8, 2\), \(7, 2\)"):
        points.warp_all([features(8, 2), features(7, 2)])
    with pytest.raises(ValueError, match=r"levels do not broadcast: \(2, 8, 2\), \(3, 8, 2\)"):
        points.warp_all([features(2, 8, 2), features(3, 8, 2)])
    with pytest.raises(TypeError, match="levels must be a list of at least one tensor"):
        matching.warp_all([])
    with pytest.raises(ValueError, match="method must be 'auto' or 'sinkhorn', got 'newton'"):
        transport(method="newton")(x, z)


def test_example_of_the_documentation_runs():
    text = (Path(__file__).parents[1] / "docs" / "learning.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "learning.md", "exec"), {})


# The loss.

def test_loss_is_the_divergence_or_the_value():
    x, z = sides(batch=(3,))
    a, b = (torch.rand(3, points, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
            for points in (6, 8))
    settings = {"reg": 0.2, "reg_m": 0.5} | EXACT
    for name, kind in (("sqeuclidean", uotlib.SqEuclideanCost), ("cosine", uotlib.CosineCost), ("dot", uotlib.DotCost)):
        divergence = uotlib.sinkhorn_divergence(kind(x, z), a, b, **settings)
        value = uotlib.unbalanced_sinkhorn(kind(x, z), a, b, reg_type="entropy", **settings).value
        for cost in (name, kind):
            assert_close(UnbalancedSinkhornLoss(cost, reduction="none", **settings)(x, z, a, b), divergence, RTOL)
            assert_close(UnbalancedSinkhornLoss(cost, reduction="sum", debiased=False, reg_type="entropy",
                                                **settings)(x, z, a, b), value.sum(), RTOL)
        assert_close(UnbalancedSinkhornLoss(name, **settings)(x, z, a, b), divergence.mean(), RTOL)


class Manhattan(uotlib.Cost):
    """|x - z|_1: a cost that is no inner product."""

    def __init__(self, x, z):
        self.x, self.z = x, z

    @property
    def tensors(self):
        return (("cost.x", self.x), ("cost.z", self.z))

    @property
    def shape(self):
        return self.x.shape[:-2], self.x.shape[-2], self.z.shape[-2]

    def prepare(self, dtype, reg):
        return tuple(side.to(dtype).reshape(-1, *side.shape[-2:]) for side in (self.x, self.z))

    def block(self, prepared, rows, dtype):
        return (prepared[0][:, rows, None] - prepared[1][:, None]).abs().sum(-1)


def test_any_cost_class_has_a_value():
    x, z = sides()
    loss = UnbalancedSinkhornLoss(Manhattan, reg=0.2, reg_m=(0.5, 1.0), debiased=False, **EXACT)
    expected = uotlib.unbalanced_sinkhorn(torch.cdist(x, z, p=1), reg=0.2, reg_m=(0.5, 1.0), **EXACT).value
    assert_close(loss(x, z), expected, RTOL)
    with pytest.raises(TypeError, match="subclass of InnerProductCost"):
        UnbalancedSinkhornLoss(Manhattan, reg=0.2, reg_m=0.5)


def test_descent_moves_one_cloud_onto_the_other():
    """With the debiased loss; the value alone pulls points together instead."""
    target = features(12, 2)
    ends = {}
    for debiased in (True, False):
        x = leaf(features(12, 2, seed=1))
        loss = UnbalancedSinkhornLoss(reg=1.0, reg_m=10.0, debiased=debiased)
        optimiser = torch.optim.SGD([x], lr=2.0)
        for _ in range(60):
            optimiser.zero_grad()
            loss(x, target).backward()
            optimiser.step()
        ends[debiased] = x.detach()
    spread = {debiased: float(end.std(0).sum() / target.std(0).sum()) for debiased, end in ends.items()}
    assert spread[False] < 0.8 < 0.95 < spread[True] < 1.05
    left = float(UnbalancedSinkhornLoss(reg=1.0, reg_m=10.0)(ends[True], target))
    assert left < 1e-3 * float(UnbalancedSinkhornLoss(reg=1.0, reg_m=10.0)(features(12, 2, seed=1), target))


def test_loss_survives_copies_and_pickles():
    x, z = sides()
    loss = UnbalancedSinkhornLoss("cosine", reg=0.1, reg_m=0.5)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(x, z), loss(x, z))


@pytest.mark.parametrize(("settings", "error", "sentence"), [
    ({"cost": "euclidean"}, ValueError, "cost must be 'sqeuclidean', 'cosine' or 'dot', got 'euclidean'"),
    ({"cost": torch.eye(2)}, TypeError, "cost must be 'sqeuclidean', 'cosine', 'dot' or a subclass"),
    ({"reduction": "batchmean"}, ValueError, "reduction must be 'none', 'mean' or 'sum', got 'batchmean'"),
    ({"reg": -0.1}, ValueError, "reg must be positive and finite, got -0.1"),
    ({"reg_m": (0.5, 1.0)}, TypeError, "reg_m must be one penalty for both sides"),
    ({"reg_type": "entropy"}, ValueError, "reg_type must be 'kl' for a divergence, got 'entropy'"),
    ({"debiased": "yes"}, TypeError, "debiased must be True or False, got 'yes'"),
])
def test_settings_of_the_loss_are_refused_by_name(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        UnbalancedSinkhornLoss(**({"reg": 0.1, "reg_m": 0.5} | settings))
