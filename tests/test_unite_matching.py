"""UNITE's matching: plans against POT and closed forms, what they carry, and gradients of every kind."""

from __future__ import annotations

import math
import warnings

import ot
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from examples.unite.config import MatchConfig, ModelConfig
from examples.unite.matching import Matcher
from examples.unite.structures import Transported
from uotlib import cross_masses

MATCHERS = ("uot", "ot", "cos")
GRADIENTS = ("implicit", "one_step", "unrolled")


def descriptors(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, d, h, w) of unit length with a direction in common, so that masses by Eq. 3 are no floor."""
    random = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(random + 0.5, dim=1).to(dtype)


def pair(batch: int = 1, width: int = 8, height: int = 4, breadth: int = 5,
         dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return tuple(descriptors(batch, width, height, breadth, seed=seed, dtype=dtype) for seed in (1, 2))


def matcher(model: dict | None = None, **match) -> Matcher:
    """A matcher of float64 for descriptors and shared features of 8 channels, in training mode."""
    torch.manual_seed(0)
    settings = {"size": 64, "base": 2, "mask": "none", "descriptor_dim": 8, "levels": ("rgb", "f2", "f4")}
    return Matcher(ModelConfig(**(settings | (model or {}))), MatchConfig(**match)).double()


def carried(height: int = 4, breadth: int = 5, batch: int = 1,
            dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Exemplar, levels and condition: an image four times the grid, f2 twice, f4 once."""
    def drawn(channels: int, ratio: int, seed: int) -> Tensor:
        made = torch.randn(batch, channels, ratio * height, ratio * breadth, dtype=torch.float64,
                           generator=torch.Generator().manual_seed(seed))
        return made.to(dtype)

    return drawn(3, 4, 3), {"f2": drawn(2, 2, 4), "f4": drawn(3, 1, 5)}, drawn(4, 4, 6)


def carry(made: Matcher, x: Tensor, z: Tensor, dtype: torch.dtype = torch.float64) -> Transported:
    exemplar, levels, condition = carried(*z.shape[-2:], batch=len(z), dtype=dtype)
    return made(x, z, exemplar, levels, condition, (x, z))  # descriptors will do as shared features, too


def points(maps: Tensor) -> Tensor:
    return maps.flatten(2).mT


def cosine(x: Tensor, z: Tensor) -> Tensor:
    return functional.normalize(points(x), dim=2) @ functional.normalize(points(z), dim=2).mT


# --- plans ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("masses", ["eq3", "eq3_proj", "softmax", "uniform"])
def test_uot_is_the_plan_of_pot(masses, reg_type):
    made, (x, z) = matcher(masses=masses, reg_type=reg_type, eta_train=0.05, tau_train=0.3, passes=400), pair()
    plan = made.plan(x, z, (x, z))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "the matrix c is overwritten", for the entropy convention
        expected = ot.unbalanced.sinkhorn_unbalanced(
            plan.a.detach().flatten().numpy(), plan.b.detach().flatten().numpy(), (1 - cosine(x, z))[0].numpy(), 0.05,
            0.3, reg_type=reg_type, numItermax=20_000, stopThr=1e-14)
    assert torch.allclose(plan.solution.plan[0].detach(), torch.from_numpy(expected), rtol=1e-8, atol=1e-12)


def test_balanced_plan_is_that_of_pot_and_the_limit_of_unbalanced_ones():
    x, z = pair()
    uniform = torch.full((20,), 1 / 20, dtype=torch.float64).numpy()
    expected = torch.from_numpy(ot.sinkhorn(uniform, uniform, (1 - cosine(x, z))[0].numpy(), 0.05, stopThr=1e-14,
                                            numItermax=20_000))
    balanced = matcher(matcher="ot", eta_train=0.05, passes=400).plan(x, z).solution.plan[0]
    assert torch.allclose(balanced, expected, rtol=1e-8, atol=1e-12)
    errors = [float((matcher(masses="uniform", eta_train=0.05, tau_train=tau, passes=400).plan(x, z).solution.plan[0]
                     - expected).abs().sum()) for tau in (1.0, 10.0, 100.0, 1000.0)]
    for nearer, further in zip(errors[1:], errors, strict=False):
        assert nearer < 0.15 * further  # as 1 / tau
    assert errors[-1] < 1e-3


def test_cosine_is_a_softmax_of_rows_and_of_columns():
    made, (x, z) = matcher(matcher="cos", temperature=0.02), pair(batch=2)
    x.requires_grad_(), z.requires_grad_()
    found = carry(made, x, z)
    exemplar, levels, _ = carried(batch=2)
    scores = cosine(x, z) / 0.02
    there = scores.softmax(2) @ points(exemplar[:, :, ::4, ::4])
    back = scores.softmax(1).mT @ there
    f4 = scores.softmax(2) @ points(levels["f4"])
    for value, expected in ((found.levels["rgb"], there), (found.cycle, back), (found.levels["f4"], f4)):
        assert torch.allclose(points(value), expected, rtol=1e-8, atol=1e-10)
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        ours = torch.autograd.grad((points(value) * weight).sum(), (x, z), retain_graph=True)
        theirs = torch.autograd.grad((expected * weight).sum(), (x, z), retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-7 * float(other.abs().max()))
    assert bool((found.kept == 1).all())


def test_masses():
    x, z = pair(batch=2)
    a, b = cross_masses(points(x), points(z))
    plan = matcher(masses="eq3").plan(x, z)
    assert torch.equal(plan.a.flatten(1), a)
    assert torch.equal(plan.b.flatten(1), b)
    assert torch.allclose(a.sum(1) + b.sum(1), torch.full((2,), 2.0, dtype=torch.float64))
    made = matcher(masses="softmax")
    plan = made.plan(x, z, (z, x))
    left, right = (functional.normalize(side - side.mean(1, keepdim=True), dim=1)
                   for side in (made.of_masses.x(z), made.of_masses.z(x)))
    relevance = torch.einsum("bdhw,bd->bhw", left, right.mean((2, 3)))
    assert torch.allclose(plan.a, relevance.flatten(1).softmax(1).view_as(relevance))
    for side in (plan.a, plan.b):
        assert torch.allclose(side.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    assert float(plan.a.detach().std()) > 1e-4
    uniform = torch.full((2, 4, 5), 1 / 20, dtype=torch.float64)
    for made in (matcher(masses="uniform"), matcher(matcher="ot"), matcher(matcher="cos")):
        assert torch.allclose(made.plan(x, z).a, uniform)
    balanced = matcher(matcher="ot", masses="softmax", passes=400).plan(x, z, (z, x))  # of the released code
    assert torch.allclose(balanced.kept, torch.ones(2, 4, 5, dtype=torch.float64), atol=1e-6)
    assert torch.equal(balanced.a, plan.a)


@pytest.mark.parametrize("masses", ["eq3_proj", "softmax"])
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_projections_of_masses_learn_from_what_is_carried(masses, gradients):
    made, (x, z) = matcher(masses=masses, gradients=gradients), pair()
    carry(made, x, z).levels["f4"].square().sum().backward()
    for parameter in made.of_masses.parameters():
        assert float(parameter.grad.norm()) > 1e-8
    assert not list(matcher(matcher="ot").parameters())  # nothing that no loss could reach


# --- which match ------------------------------------------------------------------------------------------------------

def clusters(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two sides of 32 clusters of 6, the last 8 without a partner on the other side, and which points are those."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, 16, generator=rng, dtype=torch.float64)
    own = torch.arange(24)
    sides = []
    for ids in (torch.cat([own, torch.arange(24, 32)]), torch.cat([own, torch.arange(32, 40)])):
        noise = torch.randn(192, 16, generator=rng, dtype=torch.float64)
        found = functional.normalize(centres[ids.repeat_interleave(6)] + 0.8 * noise, dim=1)
        sides.append(found.T.reshape(1, 16, 16, 12))
    return *sides, torch.arange(192) >= 144


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_many_to_one_and_outliers(seed):
    x, z, alone = clusters(seed)
    shared, outlying = {}, {}
    for name in MATCHERS:
        made = matcher({"descriptor_dim": 16}, matcher=name, masses="uniform", eta_eval=1e-3, tau_eval=0.3,
                       passes=200).eval()
        with torch.no_grad():
            plan = made.plan(x, z, (x, z))
        shared[name] = 192 - len(plan.matches().unique())
        outlying[name] = float(plan.solution.plan[0][:, alone].sum() / plan.solution.plan.sum())
    assert shared["cos"] > shared["uot"] > shared["ot"]
    assert outlying["ot"] == pytest.approx(0.25, abs=1e-3)  # it has to move all mass
    assert outlying["uot"] < 0.22


def test_mass_kept_tells_outliers():
    x, z, alone = clusters(0)
    kept = matcher({"descriptor_dim": 16}, masses="uniform", tau_eval=0.1).eval().plan(x, z).kept.flatten()
    assert float(kept[~alone].median()) > 2 * float(kept[alone].median())


# --- what is carried --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("unfold", [False, True])
@pytest.mark.parametrize("name", MATCHERS)
def test_shapes(name, unfold):
    made = matcher({"unfold": unfold}, matcher=name, cycle_features=True)
    found = carry(made, *pair(batch=2))
    ratio = {"rgb": 4, "f2": 2, "f4": 1} if unfold else dict.fromkeys(("rgb", "f2", "f4"), 1)
    assert list(found.levels) == ["rgb", "f2", "f4"]
    for level, channels in (("rgb", 3), ("f2", 2), ("f4", 3)):
        assert found.levels[level].shape == (2, channels, 4 * ratio[level], 5 * ratio[level])
    assert found.warped.shape == (2, 3, 16, 20)
    assert found.warped_condition.shape == (2, 4, 4, 5)
    assert found.cycle.shape == found.exemplar_small.shape == (2, 3, 4, 5)
    assert found.a.shape == found.kept.shape == found.b.shape == found.kept_back.shape == (2, 4, 5)
    assert found.confidence is None
    assert list(found.feature_cycle) == ["f2", "f4"]
    for back, level in found.feature_cycle.values():
        assert back.shape == level.shape
        assert not level.requires_grad
    assert not carry(matcher(), *pair()).feature_cycle


def test_grids_of_two_sizes():
    x, z = descriptors(1, 8, 6, 2, seed=1), descriptors(1, 8, 4, 5, seed=2)
    found = carry(matcher({"unfold": True}), x, z)
    assert found.levels["f2"].shape == (1, 2, 12, 4)
    assert found.warped.shape == (1, 3, 24, 8)
    assert found.cycle.shape == (1, 3, 4, 5)
    assert found.kept.shape == (1, 6, 2)
    assert found.kept_back.shape == (1, 4, 5)


def test_a_single_stage_carries_the_image_alone():
    x, z = pair()
    exemplar, _, condition = carried()
    found = matcher({"levels": ("rgb",)})(x, z, exemplar, {}, condition)
    assert list(found.levels) == ["rgb"]
    assert torch.equal(found.warped, carry(matcher(), x, z).warped)


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_a_perfect_match_returns_the_exemplar(name, gradients):
    # Every position is orthogonal to all others but its own partner: x is z, moved by one row.
    z = torch.eye(20, dtype=torch.float64).reshape(1, 20, 4, 5)
    x = z.roll(1, 2)
    made = matcher({"descriptor_dim": 20, "unfold": True}, matcher=name, masses="uniform", eta_train=0.01,
                   gradients=gradients, cycle_features=True)
    found = carry(made, x, z)
    exemplar, levels, condition = carried()
    assert torch.allclose(found.warped, exemplar.roll(4, 2), atol=1e-8)  # whole patches travel
    assert torch.allclose(found.levels["f2"], levels["f2"].roll(2, 2), atol=1e-8)
    assert torch.allclose(found.warped_condition, condition[:, :, ::4, ::4].roll(1, 2), atol=1e-8)
    assert torch.allclose(found.cycle, found.exemplar_small, atol=1e-8)
    assert torch.allclose(found.exemplar_small, functional.avg_pool2d(exemplar, 4))
    for back, level in found.feature_cycle.values():
        assert torch.allclose(back, level, atol=1e-8)


@pytest.mark.parametrize("bilinear", [False, True])
def test_the_warped_image_is_enlarged(bilinear):
    found = carry(matcher({"bilinear_warp": bilinear}), *pair())
    mode = {"mode": "bilinear", "align_corners": False} if bilinear else {"mode": "nearest"}
    assert torch.equal(found.warped, functional.interpolate(found.levels["rgb"], scale_factor=4, **mode))
    assert torch.equal(found.exemplar_small, carried()[0][:, :, ::4, ::4])


def test_confidence():
    x, z = pair(batch=2)
    found = carry(matcher({"confidence": "mass"}), x, z)
    assert torch.equal(found.confidence[:, 0], found.kept.clamp_max(1.0))
    made = matcher({"confidence": "learned"})
    found = carry(made, x, z)
    left, right = (points(functional.normalize(made_of - made_of.mean(1, keepdim=True), dim=1))
                   for made_of in (made.of_confidence.x(x), made.of_confidence.z(z)))
    highest = (left @ right.mT).amax(2)
    expected = torch.sigmoid(10 * (highest - highest.mean(1, keepdim=True)))
    assert torch.allclose(found.confidence.flatten(1), expected)
    found.confidence.square().sum().backward()
    assert float(made.of_confidence.x.weight.grad.norm()) > 0
    assert float(made.of_confidence.z.weight.grad.norm()) > 0


def test_shared_features_that_are_missing_are_asked_for():
    x, z = pair()
    exemplar, levels, condition = carried()
    for made in (matcher(masses="softmax"), matcher({"confidence": "learned"})):
        with pytest.raises(ValueError, match="shared must be given"):
            made(x, z, exemplar, levels, condition)


def test_what_does_not_fit_is_refused_by_name():
    x, z = pair()
    exemplar, levels, condition = carried()
    with pytest.raises(ValueError, match=r"x must be descriptors \(B, 8, h, w\), got \(1, 7, 4, 5\)"):
        matcher()(x[:, :7], z, exemplar, levels, condition)
    with pytest.raises(ValueError, match="levels must have 'f4', got f2"):
        matcher()(x, z, exemplar, {"f2": levels["f2"]}, condition)


# --- settings ---------------------------------------------------------------------------------------------------------

def test_eta_goes_down_in_training_alone():
    made = matcher(eta_start=0.1, eta_train=1e-3, anneal_share=0.5, eta_eval=0.02, tau_train=0.4, tau_eval=0.2)
    for progress, eta in ((0.0, 0.1), (0.25, 0.01), (0.5, 1e-3), (1.0, 1e-3)):
        made.progress = progress
        assert made.eta == pytest.approx(eta)
        assert made.tau == 0.4
    made.eval()
    assert (made.eta, made.tau) == (0.02, 0.2)
    made = matcher(eta_train=0.03)
    made.progress = 0.5
    assert made.eta == 0.03
    assert matcher(matcher="ot").tau == math.inf


def test_settings_reach_the_solver():
    made, (x, z) = matcher(eta_train=0.1, eta_eval=0.01, tau_train=1.0, tau_eval=0.1, passes=37), pair()
    training = made.plan(x, z).solution
    assert training.n_iter.tolist() == [37]
    evaluation = made.eval().plan(x, z).solution
    by_hand = matcher(eta_train=0.01, tau_train=0.1, passes=37).plan(x, z).solution
    assert torch.equal(evaluation.plan, by_hand.plan)
    assert not torch.allclose(evaluation.plan, training.plan, rtol=0.1)


@pytest.mark.parametrize("name", MATCHERS)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    made = matcher(matcher=name, eta_train=1e-3).float()
    x, z = pair(batch=3, dtype=torch.float32)
    exemplar, levels, condition = carried(batch=3, dtype=torch.float32)
    together = made(x, z, exemplar, levels, condition)
    alone = made(x[1:2], z[1:2], exemplar[1:2], {key: level[1:2] for key, level in levels.items()}, condition[1:2])
    for field in ("warped", "cycle", "kept", "a", "warped_condition"):
        assert torch.allclose(getattr(together, field)[1:2], getattr(alone, field), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_small_eta_is_finite_in_float32_and_silent(gradients):
    made = matcher(eta_train=1e-4, passes=100, gradients=gradients).float()
    x, z = pair(batch=2, height=8, breadth=8, dtype=torch.float32)
    x.requires_grad_(), z.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = carry(made, x, z, torch.float32)
        (found.warped.square().mean() + found.cycle.square().mean()).backward()
    for tensor in (found.warped, found.cycle, found.kept, x.grad, z.grad):
        assert bool(tensor.isfinite().all())
    assert float(found.kept.detach().sum()) > 1  # a plan, not an empty matrix
    assert float(x.grad.norm()) > 0


@pytest.mark.parametrize("masses", ["eq3", "eq3_proj"])
def test_autocast_does_not_reach_the_solver(masses):
    made = matcher(masses=masses).float()
    x, z = pair(dtype=torch.float32)
    plain = carry(made, x, z, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = carry(made, x, z, torch.float32)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(plain.warped, cast.warped)
    half = carry(made, x.bfloat16(), z.bfloat16(), torch.bfloat16)
    assert half.warped.dtype == torch.float32


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("gradients", GRADIENTS)
def test_grad_mode_is_left_as_found(name, gradients):
    made, (x, z) = matcher({"confidence": "learned"}, matcher=name, gradients=gradients), pair()
    x.requires_grad_()
    with torch.no_grad():
        found = carry(made, x, z)
        assert not torch.is_grad_enabled()
    assert not found.warped.requires_grad
    assert carry(made, x, z).warped.requires_grad
    assert torch.is_grad_enabled()


# --- gradients --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("unfold", [False, True])
def test_gradcheck_of_the_whole_matcher(unfold):
    made = matcher({"descriptor_dim": 4, "unfold": unfold, "confidence": "mass"}, eta_train=0.2, passes=80,
                   cycle_features=True)
    x, z = pair(width=4, height=2, breadth=3)
    exemplar, levels, condition = carried(2, 3)

    def outputs(x: Tensor, z: Tensor, exemplar: Tensor, f2: Tensor) -> tuple[Tensor, ...]:
        found = made(x, z, exemplar, {"f2": f2, "f4": levels["f4"]}, condition)
        return (*found.levels.values(), found.warped, found.warped_condition, found.cycle, found.a, found.b,
                found.kept, found.kept_back, found.confidence, found.feature_cycle["f4"][0])

    inputs = [part.requires_grad_() for part in (x, z, exemplar, levels["f2"])]
    # Tolerance of the adjoint's linear solve, 1e-6 of its right-hand side.
    assert torch.autograd.gradcheck(outputs, inputs, rtol=1e-4, atol=1e-5, fast_mode=True)


def slope(gradients: str, *, tau: float, eta: float, unrolled_passes: int = 5) -> Tensor:
    """Gradient of a loss of everything carried, to both sides."""
    made = matcher(masses="uniform", eta_train=eta, tau_train=tau, gradients=gradients, passes=200,
                   unrolled_passes=unrolled_passes)
    x, z = (side.requires_grad_() for side in pair())
    found = carry(made, x, z)
    loss = found.levels["f4"].square().sum() + found.warped.square().sum() + found.cycle.sin().sum()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, (x, z))])


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_unrolled_gradients_converge_to_implicit_ones():
    implicit = slope("implicit", tau=0.5, eta=0.1)
    errors = [apart(slope("unrolled", tau=0.5, eta=0.1, unrolled_passes=passes), implicit) for passes in (1, 4, 16, 64)]
    assert all(nearer < further for nearer, further in zip(errors[1:], errors, strict=False))
    assert errors[-1] < 1e-5  # an iteration contracts by (tau / (tau + eta))^2 at least


def test_one_step_is_exact_as_tau_vanishes():
    # What it leaves out is damped by tau / (tau + eta) once more.
    errors = [apart(slope("one_step", tau=tau, eta=0.1), slope("implicit", tau=tau, eta=0.1))
              for tau in (1e-2, 1e-3, 1e-4)]
    assert errors[0] < 0.1
    for nearer, further in zip(errors[1:], errors, strict=False):
        assert nearer < 0.2 * further


@pytest.mark.parametrize("tau", [0.3, math.inf])
def test_one_step_is_one_half_step_with_the_other_potential_a_constant(tau):
    eta, (x, z) = 0.05, pair()
    settings = {"matcher": "ot"} if math.isinf(tau) else {"masses": "eq3", "tau_train": tau}
    made = matcher(**settings, eta_train=eta, gradients="one_step", passes=400)
    x.requires_grad_(), z.requires_grad_()
    found = carry(made, x, z)
    solution = matcher(**settings, eta_train=eta, passes=400).plan(x.detach(), z.detach()).solution
    f, g = solution.f[0], solution.g[0]
    damping = 1.0 if math.isinf(tau) else tau / (tau + eta)
    a, b = (side.flatten() for side in (found.a, found.b))
    scores = (cosine(x, z)[0] - 1) / eta
    g_scaled = -damping * torch.logsumexp(a.log()[:, None] + f[:, None] / eta + scores, 0)
    f_scaled = -damping * torch.logsumexp(b.log() + g / eta + scores, 1)
    values = points(carried()[1]["f4"])[0]
    there = torch.softmax(b.log() + g_scaled + scores, 1) @ values
    exemplar_there = torch.softmax(b.log() + g_scaled + scores, 1) @ points(found.exemplar_small)[0]
    back = torch.softmax(a.log()[:, None] + f_scaled[:, None] + scores, 0).mT @ exemplar_there
    for value, expected in ((found.levels["f4"], there), (found.cycle, back)):
        assert torch.allclose(points(value)[0], expected, rtol=1e-6, atol=1e-9)
        ours = torch.autograd.grad(value.sin().sum(), (x, z), retain_graph=True)
        theirs = torch.autograd.grad(expected.sin().sum(), (x, z), retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            assert apart(one, other) < 1e-6


def test_the_target_of_the_cycle_of_features_is_a_constant():
    made, (x, z) = matcher(cycle_features=True), pair()
    exemplar, levels, condition = carried()
    f4 = levels["f4"].requires_grad_()
    back, target = made(x, z, exemplar, levels | {"f4": f4}, condition).feature_cycle["f4"]
    assert back.requires_grad
    assert not target.requires_grad
