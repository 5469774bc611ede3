import importlib
import inspect
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from counted import Counted
from imported import modules_of, unimported_within
from torch import Tensor, nn
from victims import Linear, Planted, craft_with

from genrobust import attack_every_class, verify
from genrobust.adapters import AttackEntry
from genrobust.adapters.catalogues.advertorch import ADVERTORCH
from genrobust.attack_view import InvalidQueryWarning
from genrobust.eot import expectation
from genrobust.randomness import isolated_rng

scipy = pytest.importorskip("scipy", exc_type=ImportError)
adapter = pytest.importorskip("genrobust.adapters._advertorch", exc_type=ImportError)
craft, successes, wrap = adapter.craft, adapter.successes, adapter.wrap_for_advertorch
import_module("scipy.optimize")
advertorch = adapter.import_advertorch()
attacks = advertorch.attacks

Make = Callable[..., Any]


class Configuration(NamedTuple):
    """One of the toolkit's configurations, and how many of some digits it fools at least."""

    name: str
    norm: str = "linf"
    epsilon: float | Tensor | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012
    targeted: bool = False
    fooled: int = 6
    images: int = 8

    def __str__(self) -> str:
        settings = [
            f"{key}={value}" for key, value in self.parameters.items() if not isinstance(value, Tensor)
        ]
        tensor = ["tensor"] if any(isinstance(value, Tensor) for value in self.parameters.values()) else []
        return "-".join([self.name, *settings, *tensor, *["targeted"] * self.targeted])


L2_STEPS = {"nb_iter": 20, "eps_iter": 0.4}
PER_IMAGE = torch.linspace(0.2, 0.3, 8)

CONFIGURATIONS = [
    Configuration("GradientSignAttack", epsilon=0.3),
    Configuration("GradientAttack", "l2", 3),
    Configuration("LinfBasicIterativeAttack", epsilon=0.3),
    Configuration("L2BasicIterativeAttack", "l2", 3),
    Configuration("PGDAttack", epsilon=0.3),
    Configuration("PGDAttack", "l2", 3, {"ord": 2, **L2_STEPS}),
    Configuration("PGDAttack", "l1", 20, {"ord": 1, "l1_sparsity": 0.95, "eps_iter": 2, "rand_init": False}),
    Configuration("LinfPGDAttack", epsilon=0.3),
    Configuration("LinfPGDAttack", epsilon=0.3, targeted=True),
    Configuration("LinfPGDAttack", epsilon=0.3, parameters={"eps": PER_IMAGE, "eps_iter": PER_IMAGE / 8}),
    Configuration("L2PGDAttack", "l2", 3),
    Configuration("L2PGDAttack", "l2", 3, targeted=True),
    Configuration("L1PGDAttack", "l1", 20, fooled=0),
    Configuration("SparseL1DescentAttack", "l1", 20),
    Configuration("MomentumIterativeAttack", epsilon=0.3),
    Configuration("MomentumIterativeAttack", "l2", 3, {"ord": 2, **L2_STEPS}),
    Configuration("LinfMomentumIterativeAttack", epsilon=0.3),
    Configuration("L2MomentumIterativeAttack", "l2", 3),
    Configuration("FastFeatureAttack", epsilon=0.3),
    Configuration("LinfSPSAAttack", epsilon=0.3),
    Configuration("ChooseBestAttack", epsilon=0.3),
    Configuration("ChooseBestAttack", epsilon=0.3, targeted=True),
    Configuration("CarliniWagnerL2Attack", "l2"),
    Configuration("ElasticNetL1Attack", "l1"),
    Configuration("DDNL2Attack", "l2"),
    Configuration("LBFGSAttack", "l2"),
    Configuration("LBFGSAttack", "l2", targeted=True),
    Configuration("FABAttack"),
    Configuration("FABAttack", "l2", parameters={"norm": "L2"}),
    Configuration("FABAttack", "l1", parameters={"norm": "L1"}),
    Configuration("FABAttack", parameters={"n_restarts": 2, "n_iter": 5}),
    Configuration("LinfFABAttack"),
    Configuration("L2FABAttack", "l2"),
    Configuration("L1FABAttack", "l1"),
    Configuration("JacobianSaliencyMapAttack", "l0", fooled=3, images=4),
    Configuration("SpatialTransformAttack"),
    Configuration("LocalSearchAttack", "l0", 80),
    Configuration("SinglePixelAttack", "l0", parameters={"max_pixels": 20}, fooled=0),
]

SHORT: dict[str, dict[str, Any]] = {
    "CarliniWagnerL2Attack": {"max_iterations": 4, "binary_search_steps": 1},
    "ElasticNetL1Attack": {"max_iterations": 4, "binary_search_steps": 1},
    "LBFGSAttack": {"max_iterations": 2, "binary_search_steps": 1},
    "SpatialTransformAttack": {"max_iterations": 2},
    "JacobianSaliencyMapAttack": {"gamma": 0.1},
    **{f"{norm}FABAttack": {"n_iter": 2} for norm in ("", "Linf", "L2", "L1")},
}
SHORT |= {entry.name: {"nb_iter": 4} for entry in ADVERTORCH.attacks if "nb_iter" in entry.parameters}
WHITE = [entry.name for entry in ADVERTORCH.attacks if entry.knowledge == "white"]


def run_attack(
    name: str, target: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, **settings: Any
) -> Tensor:
    with isolated_rng(seed):
        crafted = craft_with(craft, ADVERTORCH.attack(name), target, x, y, **settings)
    assert crafted.claimed is None
    images: Tensor = crafted.images
    return images


def stock(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """What AdverTorch's own, unrepaired attack returns."""
    images: Tensor = type(attack).perturb.__wrapped__(attack, x, y)
    return images


# The import.


@pytest.fixture
def unimported() -> Iterator[None]:
    """Takes AdverTorch out of the process, and puts it back."""
    with unimported_within("advertorch"):
        yield


def random_states() -> list[str]:
    return [
        repr(state)
        for state in (
            random.getstate(),
            np.random.get_state(),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        )
    ]


TRACES = """
import builtins, importlib, json, random, sys, warnings
import numpy as np, scipy.optimize, torch, torchvision  # AdverTorch imports them
from genrobust import load_model

def snapshot():
    gradcheck = importlib.import_module("torch.autograd.gradcheck")
    spaces = (gradcheck, torch.autograd, torch.nn.functional, scipy.optimize, np, builtins, warnings)
    return {
        "names": [{name: id(value) for name, value in vars(space).items()} for space in spaces],
        "filters": [repr(filter) for filter in warnings.filters],
        "draws": [repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()],
        "paths": [*sys.path, *map(repr, sys.meta_path)],
        "modules": {name for name in sys.modules if name.partition(".")[0] != "advertorch"},
        "grad": torch.is_grad_enabled(),
    }

model = load_model("cnn", dataset="digits")
x, y = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
import genrobust.adapters._advertorch as adapter
model(x)
before = snapshot()
attacks = adapter.import_advertorch().attacks
imported = snapshot()
attacks.LBFGSAttack(adapter.wrap_for_advertorch(model), 10, max_iterations=2).perturb(x, y)
attacked = snapshot()
print([key for key in before if not before[key] == imported[key] == attacked[key]])
"""


def test_the_import_and_its_attacks_leave_no_trace() -> None:
    done = subprocess.run([sys.executable, "-c", TRACES], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.usefixtures("unimported")
def test_wrapping_a_model_imports_no_advertorch(make_victim: Make) -> None:
    model, x, _ = make_victim("cnn")
    importlib.reload(adapter)
    adapter.wrap_for_advertorch(model)(x)
    assert not modules_of("advertorch")


@pytest.mark.usefixtures("unimported")
def test_the_import_works_after_one_that_failed() -> None:
    with pytest.raises(ImportError, match="zero_gradients"):
        import_module("advertorch")
    assert "advertorch.utils" in sys.modules  # left behind
    imported = adapter.import_advertorch()
    assert imported.utils is sys.modules["advertorch.utils"]
    assert imported.attacks.base is sys.modules["advertorch.attacks.base"]


@pytest.mark.usefixtures("unimported")
def test_the_import_takes_a_version_that_needs_no_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(advertorch.__file__).parent
    shutil.copytree(package, tmp_path / "advertorch", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "advertorch" / "attacks" / "fast_adaptive_boundary.py"
    needed = "from torch.autograd.gradcheck import zero_gradients"
    assert needed in module.read_text()
    module.write_text(module.read_text().replace(needed, "def zero_gradients(x): x.grad = None"))
    monkeypatch.syspath_prepend(tmp_path)
    imported = import_module("advertorch")
    assert adapter.import_advertorch() is imported
    assert Path(imported.__file__ or "").is_relative_to(tmp_path)
    assert hasattr(imported.attacks.LBFGSAttack.perturb, "__wrapped__")


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize("blocked", ["advertorch", "torchvision"])
def test_what_is_missing_is_told_with_the_extra(blocked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(ImportError, match=r"pip install 'genrobust\[advertorch\]'") as caught:
        adapter.import_advertorch()
    assert caught.value.name == blocked
    assert modules_of("advertorch").keys() <= {blocked}
    assert not hasattr(import_module("torch.autograd.gradcheck"), "zero_gradients")


def test_a_second_import_repairs_nothing_twice() -> None:
    assert adapter.import_advertorch() is advertorch
    for name in ("LBFGSAttack", "SpatialTransformAttack", "ChooseBestAttack", "LocalSearchAttack"):
        repaired = getattr(attacks, name)
        assert not hasattr(repaired.perturb.__wrapped__, "__wrapped__")
        assert pickle.loads(pickle.dumps(repaired)) is repaired


@pytest.mark.filterwarnings("ignore:Default grid_sample and affine_grid:UserWarning")
@pytest.mark.parametrize("name", ["LBFGSAttack", "SpatialTransformAttack"])
def test_scipy_is_asked_for_nothing_that_it_removes(
    name: str, make_victim: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = scipy.optimize.fmin_l_bfgs_b

    def without(func: Any, x0: Any, args: Any = (), *, bounds: Any, maxiter: int, maxls: int = 20) -> Any:
        return own(func, x0, args=args, bounds=bounds, maxiter=maxiter, maxls=maxls)

    monkeypatch.setattr(scipy.optimize, "fmin_l_bfgs_b", without)
    model, x, y = make_victim("cnn")
    assert run_attack(name, wrap(model), x, y, **SHORT[name]).isfinite().all()
    with pytest.raises(TypeError, match="iprint"):
        stock(getattr(attacks, name)(wrap(model), model.num_classes, targeted=True), x, y)


# The catalogue.


def test_every_exported_attack_is_in_the_catalogue() -> None:
    exported = {
        member.__name__
        for member in vars(attacks).values()
        if isinstance(member, type) and issubclass(member, attacks.Attack) and member is not attacks.Attack
    }
    assert sorted(entry.name for entry in ADVERTORCH.attacks) == sorted(exported)
    assert {configuration.name for configuration in CONFIGURATIONS} == exported


@pytest.mark.parametrize("entry", ADVERTORCH.attacks, ids=lambda entry: entry.name)
def test_the_catalogue_says_what_the_constructors_take(entry: AttackEntry) -> None:
    accepted = inspect.signature(getattr(attacks, entry.name)).parameters
    assert entry.parameters.keys() <= accepted.keys()
    minimising = "FAB" in entry.name
    composed = "base_adversaries" in accepted
    assert entry.needs_epsilon == (("eps" in accepted and not minimising) or composed)
    wrong_way = entry.name == "LocalSearchAttack"
    assert entry.targeted == (("targeted" in accepted and not wrong_way) or entry.name.startswith("Jacobian"))
    assert ADVERTORCH.obstacle(entry) == ""


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_every_configuration_against_a_cnn(
    configuration: Configuration, digits: tuple[Any, Tensor, Tensor]
) -> None:
    model, x, y = digits
    name, norm, epsilon, parameters, targeted, fooled, count = configuration
    x, y = x[:count], y[:count]
    target = wrap(model, **ADVERTORCH.attack(name).options)
    goal = (y + 1) % 10 if targeted else y
    given = None if "eps" in parameters else epsilon
    images = run_attack(name, target, x, goal, epsilon=given, targeted=targeted, **parameters)
    verification = verify(model, x, y, images, norm=norm, epsilon=epsilon)  # type: ignore[arg-type]
    assert verification.success.sum() >= fooled
    flags = verification.flags
    assert not any(
        flags[flag].any() for flag in ("not_finite", "outside_range", "outside_ball", "black", "fell")
    )
    if not targeted:
        assert torch.equal(successes(target, images, y), verification.success)


@pytest.mark.parametrize("name", WHITE)
def test_gradient_attacks_use_the_surrogate_gradient_of_eabs(name: str, make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    entry = ADVERTORCH.attack(name)
    target = wrap(model.with_gradient(counted), **entry.options)
    epsilon = {"linf": 0.2, "l2": 1, "l1": 4}[entry.norm] if entry.needs_epsilon else None
    images = run_attack(name, target, x, y, epsilon=epsilon, **SHORT.get(name, {}))
    assert counted.backwards > 0
    assert images.shape == x.shape
    verification = verify(model, x, y, images, norm="linf", epsilon=None)
    assert not (verification.not_finite | verification.outside_range | verification.black).any()


def test_fab_goes_backward_several_times_through_one_forward(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    images = run_attack("L2FABAttack", wrap(model.with_gradient(counted)), x, y, n_iter=3)
    assert counted.forwards == 3
    assert counted.backwards == 3 * model.num_classes
    assert verify(model, x, y, images, norm="l2", epsilon=None).success.any()


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
def test_fgsm_steps_along_the_sign_of_the_models_gradient(name: str, make_victim: Make) -> None:
    model, x, y = make_victim(name)
    images = run_attack("GradientSignAttack", wrap(model), x, y, epsilon=0.1)
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), y, reduction="sum").backward()
    assert leaf.grad is not None
    torch.testing.assert_close(images, (x + 0.1 * leaf.grad.sign()).clamp(0, 1))


# Where AdverTorch misleads.


def test_the_local_search_leaves_other_pixels_alone(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    attack = attacks.LocalSearchAttack(wrap(model), p=-0.5, r=-1, t=60, seed_ratio=0.5, max_nb_seeds=400)
    with isolated_rng(0):
        rounded = verify(model, x, y, stock(attack, x, y), norm="l0", epsilon=60)
    with isolated_rng(0):
        repaired = verify(model, x, y, attack.perturb(x, y), norm="l0", epsilon=60)
    assert rounded.claimed.all()
    assert not rounded.success.any()
    assert repaired.success.all()


@pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp` and `iprint`:DeprecationWarning")
def test_verification_sees_that_the_toolkits_own_lbfgs_does_nothing(
    digits: tuple[Any, Tensor, Tensor],
) -> None:
    model, x, y = digits
    own = stock(attacks.LBFGSAttack(wrap(model), 10), x, y)
    verification = verify(model, x, y, own, norm="l2", epsilon=None)
    assert (verification.distance < 2e-4).all()  # as far as the gradients that the view raises reach
    assert not verification.success.any()
    attack = attacks.LBFGSAttack(wrap(model), 10, max_iterations=20, binary_search_steps=3, initial_const=1)
    repaired = attack.perturb(x)
    assert verify(model, x, y, repaired, norm="l2", epsilon=None).success.all()


def test_the_repaired_lbfgs_finds_the_nearest_point_behind_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((3, 16), generator=generator) * 5
    x = 0.4 + 0.2 * torch.rand((6, 1, 4, 4), generator=generator)
    model = Linear(weight, -(weight @ x.flatten(1).mean(0)))
    y = model.predict(x).labels
    images = run_attack(
        "LBFGSAttack", wrap(model), x, y, max_iterations=50, binary_search_steps=9, initial_const=0.01
    )
    verification = verify(model, x, y, images, norm="l2", epsilon=None)
    assert verification.success.all()
    logits = model(x).detach()
    margins = logits.gather(1, y[:, None]) - logits
    lengths = (weight[y][:, None] - weight).norm(dim=2)
    optimum = (margins / lengths).masked_fill(lengths == 0, torch.inf).amin(1)
    assert (verification.distance <= 1.1 * optimum + 1e-4).all()
    assert (verification.distance >= 0.999 * optimum).all()


@pytest.mark.filterwarnings(
    "ignore:scipy.optimize. The `disp` and `iprint`:DeprecationWarning",
    "ignore:Default grid_sample and affine_grid:UserWarning",
)
def test_the_spatial_attack_returns_the_clean_image_where_it_fails(
    digits: tuple[Any, Tensor, Tensor],
) -> None:
    model, x, y = digits
    starved = attacks.SpatialTransformAttack(wrap(model), 10, max_iterations=1, initial_const=100)
    own, repaired = stock(starved, x, y), starved.perturb(x, y)
    black = verify(model, x, y, own, norm="linf", epsilon=None).black
    assert black.any()
    assert torch.equal(repaired, torch.where(black[:, None, None, None], x, own))


def test_choosing_the_best_of_attacks_that_do_nothing(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    idle = attacks.LinfPGDAttack(wrap(model), eps=0.0, nb_iter=1, rand_init=False)
    chooser = attacks.ChooseBestAttack(wrap(model), [idle])
    assert verify(model, x, y, stock(chooser, x, y), norm="linf", epsilon=0.1).black.all()
    assert torch.equal(chooser.perturb(x, y), x)


def test_choosing_the_best_of_targeted_attacks(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    goal = (y + 1) % 10
    weak, strong = (
        attacks.LinfPGDAttack(
            wrap(model), eps=epsilon, eps_iter=0.05, nb_iter=10, rand_init=False, targeted=True
        )
        for epsilon in (0.01, 0.3)
    )
    chooser = attacks.ChooseBestAttack(wrap(model), [weak, strong], targeted=True)
    assert successes(wrap(model), strong.perturb(x, goal), goal, targeted=True).sum() >= 6
    assert not successes(wrap(model), stock(chooser, x, goal), goal, targeted=True).any()
    assert torch.equal(chooser.perturb(x, goal), strong.perturb(x, goal))


def test_verification_sees_the_nan_of_the_momentum_attack() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0], [2.0, 1.0, 0.0, 0.0]])  # the last pixel has no gradient
    model = Linear(weight, torch.zeros(2))
    x = torch.full((2, 1, 2, 2), 0.5)
    y = model.predict(x).labels
    with pytest.warns(InvalidQueryWarning):
        images = run_attack("L2MomentumIterativeAttack", wrap(model), x, y, epsilon=0.5)
    verification = verify(model, x, y, images, norm="l2", epsilon=0.5)
    assert verification.not_finite.all()
    assert not verification.success.any()
    with pytest.warns(InvalidQueryWarning):
        assert not successes(wrap(model), images, y).any()


def test_the_l1_attack_stalls_at_pixels_that_have_reached_a_bound(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    settings = {"epsilon": 20, "eps_iter": 1.0, "rand_init": False}
    some, more = (
        run_attack("L1PGDAttack", wrap(model), x, y, nb_iter=steps, **settings) for steps in (30, 90)
    )
    assert torch.equal(some, more)
    assert verify(model, x, y, more, norm="l0", epsilon=None).distance.max() <= 4
    sparse = run_attack("SparseL1DescentAttack", wrap(model), x, y, epsilon=20)
    assert verify(model, x, y, sparse, norm="l1", epsilon=20).success.all()


def test_the_single_pixel_attack_finds_the_pixel_that_decides() -> None:
    weight = torch.zeros(2, 16)
    weight[1, 5] = 1
    model = Linear(weight, torch.tensor([0.5, 0.0]))
    x = torch.full((3, 1, 4, 4), 0.4)
    y = torch.zeros(3, dtype=torch.long)
    images = run_attack("SinglePixelAttack", wrap(model), x, y, max_pixels=16)
    assert verify(model, x, y, images, norm="l0", epsilon=1).success.all()
    assert torch.equal((images != x).flatten(1).nonzero()[:, 1], torch.full((3,), 5))


def test_jsma_untargeted_goes_to_the_runner_up(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    own = attacks.JSMA(wrap(model), model.num_classes).perturb(x, y)
    assert verify(model, x, y, own, norm="l0", epsilon=None).unchanged.all()
    runner_up = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    expected = run_attack("JacobianSaliencyMapAttack", wrap(model), x, runner_up, targeted=True)
    assert torch.equal(run_attack("JacobianSaliencyMapAttack", wrap(model), x, y), expected)


# The wrapper.


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
def test_the_wrapped_model_answers_as_the_model(name: str, make_victim: Make) -> None:
    model, x, _ = make_victim(name)
    target = wrap(model)
    assert torch.equal(target(x), model(x))
    torch.testing.assert_close(wrap(model, output="probabilities")(x).sum(1), torch.ones(len(x)))
    assert not target(x).requires_grad
    assert target(x.double().requires_grad_()).requires_grad


def test_an_attack_that_probes_outside_of_the_bounds_works(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    with pytest.warns(InvalidQueryWarning):
        images = run_attack("LinfSPSAAttack", wrap(model), x, y, epsilon=0.3)
    assert verify(model, x, y, images, norm="linf", epsilon=0.3).success.sum() >= 6


def test_eot_queries_the_expectation(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    target = wrap(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    first, second = target(x), target(x)
    assert torch.equal(first, expected(x))
    assert torch.equal(second, expected(x))
    assert not torch.equal(first, second)
    assert not torch.equal(wrap(model, eot=3, seed=6)(x), first)
    assert torch.equal(torch.get_rng_state(), state)
    images = run_attack("LinfPGDAttack", wrap(model, eot=3), x, y, epsilon=0.2)
    rescored = expectation(model, 20)
    with torch.no_grad():
        rise = nn.functional.cross_entropy(rescored(images), y) - nn.functional.cross_entropy(rescored(x), y)
    assert rise > 0


def test_decision_attacks_meet_a_decision_that_repeats(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    target = wrap(model, eot=3, output="decisions")
    assert torch.equal(target(x), target(x))
    images = run_attack("SinglePixelAttack", target, x, y, max_pixels=3)
    assert torch.equal(successes(target, images, y), target(images).argmax(1) != y)


@pytest.mark.parametrize(
    ("name", "eot", "message"),
    [
        ("eabs", 0, "`eot` to be at least 1, but got 0"),
        ("cnn", 2, "`eot` of 1 for CNN, which draws no noise"),
    ],
)
def test_impossible_expectations(name: str, eot: int, message: str, make_victim: Make) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(make_victim(name)[0], eot=eot)


# Crafting.


def test_an_epsilon_may_be_an_integer(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    whole, real = (run_attack("L2PGDAttack", wrap(model), x, y, epsilon=e, eps_iter=e) for e in (1, 1.0))
    assert torch.equal(whole, real)
    assert verify(model, x, y, whole, norm="l2", epsilon=1).distance.max() > 0.9


def test_crafting_works_without_gradients_and_leaves_the_weights_alone(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    needing = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        images = run_attack("LinfPGDAttack", wrap(model), x, y, epsilon=0.2)
    assert not images.requires_grad
    assert (images != x).any()
    assert [parameter.requires_grad for parameter in model.parameters()] == needing
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_attack_is_the_same_for_the_same_seed(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    states = random_states()
    first, second, other = (
        run_attack("LinfPGDAttack", wrap(model), x, y, epsilon=0.1, seed=seed, nb_iter=1)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert random_states() == states


def test_a_guide_may_be_given(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    target = wrap(model)
    guide = x[y == 8].expand(3, -1, -1, -1)
    images = run_attack("FastFeatureAttack", target, x[:3], y[:3], epsilon=0.4, nb_iter=40, guide=guide)
    assert (model.predict(images).labels == 8).any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("FABAttack", {"targeted": True}, "`targeted` to be False for FABAttack"),
        ("LinfPGDAttack", {}, "an `epsilon` for LinfPGDAttack"),
        ("ChooseBestAttack", {}, "an `epsilon` for ChooseBestAttack"),
        ("DDNL2Attack", {"steps": 3}, r"parameters that DDNL2Attack takes, but got \['steps'\]"),
        ("FastFeatureAttack", {"epsilon": 0.1}, "a `guide` for FastFeatureAttack or images of two classes"),
    ],
)
def test_what_cannot_be_crafted(name: str, settings: dict[str, Any], message: str, make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    with pytest.raises(ValueError, match=message):
        run_attack(name, wrap(model), x[:1], y[:1], **settings)


# Models that may reject.


def test_success_is_wrong_and_not_rejected() -> None:
    x = torch.arange(4).repeat(16)[:, None, None, None] / 8
    y = torch.arange(3).repeat_interleave(22)[:64]
    x[60:] = torch.nan
    target = wrap(Planted())
    with pytest.warns(InvalidQueryWarning):
        reached, left = successes(target, x, y, targeted=True), successes(target, x, y)
    decision = torch.arange(4).repeat(16)
    answered = torch.arange(64) < 60
    assert torch.equal(left, (decision != y) & (decision != 3) & answered)
    assert torch.equal(reached, (decision == y) & answered)
    assert torch.equal(left, verify(Planted(), torch.zeros_like(x), y, x, norm="linf", epsilon=0.5).success)
    with pytest.raises(ValueError, match="what `wrap_for_advertorch` gives for `predict`, but got Planted"):
        successes(Planted(), x, y)


@pytest.mark.parametrize("name", ["LinfPGDAttack", "CarliniWagnerL2Attack", "LBFGSAttack"])
def test_a_rejecting_model_is_fooled_class_by_class(name: str) -> None:
    weight = 10 * torch.eye(4)
    weight[3, 3] = 30  # rejects sooner than it errs
    model = Linear(weight, torch.zeros(4), rejects=True)
    x = torch.tensor([0.6, 0.4, 0.3, 0.15]).reshape(1, 1, 2, 2)
    y = model.predict(x).labels
    entry, target = ADVERTORCH.attack(name), wrap(model)
    norm, epsilon = (entry.norm, 0.2) if entry.needs_epsilon else (entry.norm, None)
    untargeted = run_attack(name, target, x, y, epsilon=epsilon)
    assert verify(model, x, y, untargeted, norm=norm, epsilon=epsilon).rejected.all()  # type: ignore[arg-type]

    def attack(goal: Tensor) -> Tensor:
        return run_attack(name, target, x, goal, epsilon=epsilon, targeted=True)

    images, verification = attack_every_class(model, x, y, attack, norm=norm, epsilon=epsilon)  # type: ignore[arg-type]
    assert verification.success.all()
    assert successes(target, images, y).all()
