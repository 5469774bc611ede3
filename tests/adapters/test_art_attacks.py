"""The attacks of ART, run as its catalogue says."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, chosen_with_ends, craft_with, spread_decisions

from genrobust import verify
from genrobust.adapters import AttackEntry
from genrobust.contract import Classifier
from genrobust.randomness import isolated_rng

pytest.importorskip("art")
pytest.importorskip("numba")  # or ART does not export Brendel-Bethge
from art.attacks import evasion
from art.attacks.attack import EvasionAttack

from genrobust import wrap_for_art
from genrobust.adapters._art import craft, legacy_numpy
from genrobust.adapters.catalogues.art import ART, EXCLUDED

Make = Callable[..., Any]
EPSILONS = {"linf": 0.3, "l2": 2.0, "l1": 20.0, "l0": 20.0, "other": 0.3}
# The first compiles, for a minute and a half.
MARKS = {"BrendelBethgeAttack": [pytest.mark.matrix], "GRAPHITEBlackbox": [pytest.mark.slow]}
each_entry = pytest.mark.parametrize(
    "entry",
    [pytest.param(entry, id=entry.name, marks=MARKS.get(entry.name, [])) for entry in ART.attacks],
)
each_gradient_entry = pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=MARKS.get(entry.name, []))
        for entry in ART.attacks
        if entry.knowledge == "white"
    ],
)

# Budgets for images of 8 x 8.
CHEAP: dict[str, dict[str, Any]] = {
    "AdversarialPatch": {"max_iter": 3},
    "AdversarialPatchNumpy": {"max_iter": 3},
    "AdversarialPatchPyTorch": {"max_iter": 3},
    "BoundaryAttack": {"max_iter": 5},
    "CarliniL0Method": {"max_iter": 3, "binary_search_steps": 2},
    "CarliniL2Method": {"max_iter": 5, "binary_search_steps": 2},
    "CarliniLInfMethod": {"max_iter": 5},
    "DeepFool": {"max_iter": 5},
    "ElasticNet": {"max_iter": 5},
    "FeatureAdversariesPyTorch": {"max_iter": 5},
    "GRAPHITEBlackbox": {"heat_patch_size": (4, 4), "heat_patch_stride": (4, 4)},
    "GeoDA": {"max_iter": 300, "sub_dim": 4},
    "HopSkipJump": {"max_iter": 2, "init_eval": 10},
    "LaserAttack": {"max_laser_beam": (780, 3.14, 4, 2), "iterations": 10},
    "NewtonFool": {"max_iter": 10},
    "PixelAttack": {"max_iter": 1},
    "SaliencyMapMethod": {"theta": 1.0},
    "ShadowAttack": {"nb_steps": 10},
    "SignOPTAttack": {"num_trial": 20, "k": 10, "max_iter": 2},
    "SimBA": {"max_iter": 50},
    "SquareAttack": {"max_iter": 20, "p_init": 0.3},
    "ThresholdAttack": {"max_iter": 5},
    "Wasserstein": {"max_iter": 10, "conjugate_sinkhorn_max_iter": 10, "projected_sinkhorn_max_iter": 10},
    "ZooAttack": {"max_iter": 2, "nb_parallel": 8},
}


@pytest.fixture
def make_victim(make_model: Make, architectures: dict[str, Any]) -> Make:
    def make(name: str, *, channels: int = 1) -> Any:
        if name != "cnn":
            return make_model(name)
        settings = {"architecture": architectures["abs"]} if channels == 3 else {}
        model = make_model(name, **settings)
        spread_decisions(model)
        return model

    return make


def run(entry: AttackEntry, model: Any, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """Craft with a budget for tiny models, and without the toolkit's own warnings."""
    if obstacle := ART.obstacle(entry, channels=model.input_shape[0]):
        pytest.skip(obstacle)
    settings = {"epsilon": EPSILONS[entry.norm], **CHEAP.get(entry.name, {}), **settings}
    with isolated_rng(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # divisions by zero
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # NumPy 1's of its own matrices
        warnings.filterwarnings("ignore", "function_values is not a list")  # cma, of what ART gives it
        return craft_with(craft, entry, wrap_for_art(model, **entry.options), x, y, **settings).images


# The catalogue.


def test_every_exported_attack_is_in_the_catalogue_or_excluded_with_a_reason() -> None:
    exported = {
        name
        for name, value in vars(evasion).items()
        if inspect.isclass(value) and issubclass(value, EvasionAttack)
    }
    entries = [entry.name for entry in ART.attacks]
    assert len(entries) == len(set(entries)) == 43
    assert set(entries) | EXCLUDED.keys() == exported
    assert not set(entries) & EXCLUDED.keys()
    assert all(EXCLUDED.values())


@each_entry
def test_the_estimator_meets_the_requirements(entry: AttackEntry, make_victim: Make) -> None:
    kind = getattr(evasion, entry.name)
    estimator = wrap_for_art(make_victim("eabs"), **entry.options)
    assert kind.is_estimator_valid(estimator, kind._estimator_requirements)
    black_box = wrap_for_art(make_victim("eabs"), **entry.options, black_box=True)
    if entry.knowledge != "white" and entry.name != "FeatureAdversariesNumpy":
        assert kind.is_estimator_valid(black_box, kind._estimator_requirements)


@each_entry
def test_the_catalogue_says_what_art_takes(entry: AttackEntry) -> None:
    accepted = inspect.signature(getattr(evasion, entry.name)).parameters
    made = {"scale", "maxiter", "min_laser_beam", "max_laser_beam"}  # for `generate` and for generators
    assert entry.parameters.keys() - made <= accepted.keys()
    has_radius = bool({"eps", "th"} & accepted.keys()) or entry.name.startswith(("FeatureAdv", "FrameSal"))
    assert entry.needs_epsilon is (has_radius and entry.name != "Wasserstein")  # whose ball grows
    assert entry.knowledge in ("white", "score") or entry.options == {"output": "decisions"}


# Every attack.


@each_entry
def test_the_attack_runs(entry: AttackEntry, make_victim: Make, capfd: Any, tmp_path: Path) -> None:
    model = make_victim("cnn", channels=entry.channels or 1)
    x, y = chosen_with_ends(model)
    if entry.name == "ThresholdAttack":
        x = (255 * x).round() / 255  # it counts in grey levels
    before, working = x.clone(), list(Path.cwd().iterdir())
    names = {name: hasattr(np, name) for name in ("mat", "asfarray")}
    images = run(entry, model, x, y)
    assert images.shape == x.shape
    assert images.dtype == x.dtype
    assert images.isfinite().all()
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6
    norm: Any = entry.norm if entry.norm != "other" else "linf"
    found = verify(model, x, y, images, norm=norm, epsilon=EPSILONS[norm] if entry.needs_epsilon else None)
    assert not found.outside_ball.any()
    assert torch.equal(x, before)
    assert list(Path.cwd().iterdir()) == working
    assert {name: hasattr(np, name) for name in names} == names
    assert "%|" not in capfd.readouterr().err  # no progress bar


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        pytest.param("AutoAttack", "eabs", marks=pytest.mark.slow),
        pytest.param("AutoProjectedGradientDescent", "abs", marks=pytest.mark.slow),
        pytest.param("BoundaryAttack", "abs", marks=pytest.mark.slow),
        ("DeepFool", "eabs"),
        pytest.param("HopSkipJump", "abs", marks=pytest.mark.slow),
        ("NewtonFool", "eabs"),
        ("ProjectedGradientDescent", "abs"),
        ("ProjectedGradientDescent", "eabs"),
        ("SimBA", "abs"),
        ("SimBA", "eabs"),
        ("UniversalPerturbation", "eabs"),
    ],
)
def test_attacks_fool_models_that_optimise(attack: str, name: str, make_victim: Make) -> None:
    # DeepFool steps to where the linearised margin is zero: the joint gradient is no slope of it.
    model = make_victim(name).with_gradient("envelope" if attack == "DeepFool" else "auto")
    x, y = chosen_with_ends(model)
    images = run(ART.attack(attack), model, x, y)
    assert ((images >= 0) & (images <= 1)).all()
    logits, own = model(images), nn.functional.one_hot(y, model.num_classes).bool()
    margin = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
    assert (margin < (1e-3 if attack == "DeepFool" else 0)).any()  # DeepFool stops at the boundary


@each_entry
def test_targets_are_approached(entry: AttackEntry, make_victim: Make) -> None:
    model = make_victim("cnn", channels=entry.channels or 1)
    x, y = chosen_with_ends(model)
    target = y.flip(0)  # so that the batch has images of the targets
    assert not torch.equal(target, y)
    if not entry.targeted:
        with pytest.raises(ValueError, match=f"can be told its target, but got '{entry.name}'"):
            run(entry, model, x, target, targeted=True)
        return
    images = run(entry, model, x, target, targeted=True)
    assert not torch.equal(images, x)
    if entry.name.startswith(("AdversarialPatch", "FeatureAdversaries", "TargetedUniversal")):
        return  # one perturbation for all, or no more than another image's logits
    losses = [nn.functional.cross_entropy(model(it), target, reduction="none") for it in (x, images)]
    moved = (images != x).flatten(1).any(1) & (y != target)
    assert (losses[1] < losses[0])[moved].float().mean() > 0.5


@pytest.mark.parametrize(
    "attack", ["BoundaryAttack", "HopSkipJump", "ProjectedGradientDescent", "SquareAttack"]
)
def test_an_attack_is_the_same_for_the_same_seed(attack: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, y = chosen_with_ends(model)
    first, second = (run(ART.attack(attack), model, x, y) for _ in range(2))
    assert torch.equal(first, second)


# Surrogate gradients.


class _Surrogate(torch.autograd.Function):
    """Logits whose gradient is counted, and computed anew by every backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: Any, count: list[int]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.model, ctx.count = model, count
        logits: Tensor = model.logits(x)
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.count[0] += 1
        with torch.enable_grad():
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(ctx.model.logits(leaf), leaf, gradients[0])
        return gradient, None, None


class Counting(Classifier):
    """A classifier that hands out another's gradients, through a Function of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__(input_shape=model.input_shape, num_classes=model.num_classes)
        self.model, self.count = model, [0]

    def logits(self, x: Tensor) -> Tensor:
        logits: Tensor = _Surrogate.apply(x, self.model, self.count)
        return logits


@each_gradient_entry
def test_the_models_own_gradient_is_used(entry: AttackEntry, make_victim: Make) -> None:
    plain = make_victim("cnn", channels=entry.channels or 1)
    counting = Counting(plain)
    x, y = chosen_with_ends(plain)
    images = run(entry, counting, x, y)
    assert counting.count[0] > 0
    torch.testing.assert_close(images, run(entry, plain, x, y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss_type", [None, "cross_entropy", "difference_logits_ratio"])
@pytest.mark.parametrize(
    "attack", ["AutoProjectedGradientDescent", "AutoConjugateGradient", "RescalingAutoConjugateGradient"]
)
def test_the_models_own_gradient_is_used_with_every_loss(
    attack: str, loss_type: str | None, make_victim: Make
) -> None:
    plain = make_victim("cnn")
    counting = Counting(plain)
    x, y = chosen_with_ends(plain)
    settings = {"loss_type": loss_type, "max_iter": 10, "epsilon": 2.0 if "Conjugate" in attack else 0.3}
    images = run(ART.attack(attack), counting, x, y, **settings)
    direct = run(ART.attack(attack), plain, x, y, **settings)
    assert counting.count[0] >= 10
    torch.testing.assert_close(images, direct, atol=1e-5, rtol=0)
    assert torch.equal(counting.predict(images).labels, plain.predict(direct).labels)
    assert (plain.predict(images).labels != y).any()


def test_arts_whole_autoattack_uses_the_models_own_gradient_in_silence(make_victim: Make, capfd: Any) -> None:
    counting = Counting(make_victim("cnn"))
    x, y = chosen_with_ends(counting)
    images = run(ART.attack("AutoAttack"), counting, x, y, attacks=None)
    assert counting.count[0] > 0
    assert verify(counting, x, y, images, norm="linf", epsilon=0.3).success.any()
    assert "%|" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AutoProjectedGradientDescent", {"max_iter": 3, "loss_type": "cross_entropy"}),
        ("BoundaryAttack", {"max_iter": 3, "targeted": False}),
        ("CarliniL2Method", {"max_iter": 2, "binary_search_steps": 1}),
        ("DeepFool", {"max_iter": 3}),
        ("FastGradientMethod", {}),
        ("HopSkipJump", {"max_iter": 1, "init_eval": 5}),
        ("ProjectedGradientDescent", {"max_iter": 3}),
        ("ProjectedGradientDescentNumpy", {"max_iter": 3}),
        ("SaliencyMapMethod", {"theta": 1.0}),
        ("SquareAttack", {"max_iter": 3, "p_init": 0.3}),
    ],
)
def test_attacks_take_either_precision(
    name: str, settings: dict[str, Any], dtype: Any, make_victim: Make
) -> None:
    model = make_victim("eabs")
    x, y = chosen_with_ends(model)
    if "verbose" in inspect.signature(getattr(evasion, name)).parameters:
        settings = {**settings, "verbose": False}
    attack = getattr(evasion, name)(wrap_for_art(model), **settings)
    with isolated_rng(0):
        x_adv = attack.generate(x.numpy().astype(dtype), np.eye(4, dtype=np.float32)[y])
    assert x_adv.shape == x.shape
    assert np.isfinite(x_adv).all()


# How attacks are run.


def test_an_attack_that_needs_a_start_gives_back_images_that_have_none() -> None:
    class Stubborn(Classifier):
        def __init__(self) -> None:
            super().__init__(input_shape=(1, 8, 8), num_classes=3)
            self.answer = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def logits(self, x: Tensor) -> Tensor:
            return self.answer.repeat(len(x), 1)

    model = Stubborn()
    x = torch.rand(3, 1, 8, 8)
    images = run(ART.attack("BoundaryAttack"), model, x, torch.zeros(3, dtype=torch.long))
    assert torch.equal(images, x)


def test_starts_can_be_given(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, y = chosen_with_ends(model)
    entry = ART.attack("HopSkipJump")
    starts = torch.stack(
        [bright_images(model)[model.predict(bright_images(model)).labels != it][0] for it in y]
    )
    settings: dict[str, Any] = {"max_iter": 0, "x_adv_init": starts.numpy()}
    torch.testing.assert_close(run(entry, model, x, y, **settings), starts)


@pytest.mark.skipif(hasattr(np, "mat"), reason="NumPy 1 has it")
def test_geoda_needs_the_shim_when_it_is_called_directly(
    make_victim: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # where it leaves a file
    model = make_victim("cnn")
    x, y = chosen_with_ends(model)
    attack = evasion.GeoDA(wrap_for_art(model), max_iter=300, sub_dim=4, verbose=False)
    with pytest.raises(AttributeError, match=r"np\.mat"):
        attack.generate(x.numpy(), y.numpy())
    with legacy_numpy(), isolated_rng(0):
        x_adv = attack.generate(x.numpy(), y.numpy())
    assert (model.predict(torch.from_numpy(x_adv)).labels != y).any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ProjectedGradientDescent", {}, "`epsilon` for ProjectedGradientDescent, but got none"),
        ("DeepFool", {"steps": 3}, r"parameters that DeepFool takes, but got \['steps'\]"),
        ("DeepFool", {"targeted": True}, "can be told its target, but got 'DeepFool'"),
    ],
)
def test_impossible_attacks(name: str, settings: dict[str, Any], message: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    with pytest.raises(ValueError, match=message):
        craft_with(craft, ART.attack(name), wrap_for_art(model), *chosen_with_ends(model), **settings)


def test_an_attack_that_is_not_there(make_victim: Make) -> None:
    model = make_victim("cnn")
    entry = AttackEntry(name="Gradient", norm="l2", knowledge="white")
    with pytest.raises(ValueError, match="that ART exports here, but got 'Gradient'"):
        craft(entry, wrap_for_art(model), *chosen_with_ends(model))
