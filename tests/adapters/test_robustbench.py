import math
import random
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, craft_with, spread_decisions

from genrobust import attack_every_class
from genrobust.contract import Classifier
from genrobust.randomness import isolated_rng
from genrobust.verification import AGAIN

pyautoattack = pytest.importorskip("pyautoattack")

from genrobust.adapters._autoattack import ATTACKS, AutoAttackBudget, import_autoattack  # noqa: E402
from genrobust.adapters._robustbench import (  # noqa: E402
    craft,
    run_autoattack,
    successes,
    wrap_for_robustbench,
)
from genrobust.adapters.catalogues.robustbench import ROBUSTBENCH  # noqa: E402

Make = Callable[..., Any]

SMALL = AutoAttackBudget(n_iter=3, n_queries=10, n_restarts=1, n_target_classes=1)
RADIUS = {"linf": 0.2, "l2": 1.0, "l1": 6.0}
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}

each_model = pytest.mark.parametrize("name", ["cnn", "eabs"])


class Quadrants(Classifier):
    """Decides for the brightest quadrant of a 4 x 4 image."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=num_classes)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def scores(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.avg_pool2d(x, 2).flatten(1)[:, : self.num_classes]

    def logits(self, x: Tensor) -> Tensor:
        return self.scores(x)


class Masked(Quadrants):
    """Its gradient is zero wherever there is one."""

    def logits(self, x: Tensor) -> Tensor:
        return self.scores((50 * x).round() / 50)


class Noisy(Quadrants):
    """Draws noise that it does not tell of."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def logits(self, x: Tensor) -> Tensor:
        return self.scores(x) + 0.1 * torch.randn((len(x), 4), generator=self.generator)


class Optimising(Quadrants):
    """Takes a gradient step on the image before it decides."""

    def logits(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (step,) = torch.autograd.grad(self.scores(leaf).max(1).values.sum(), leaf)
        return self.scores(x + 0.01 * step)


class Rejecting(Quadrants):
    """Refuses where the brightest quadrant leads by less than a margin."""

    rejects = True

    def __init__(self, margin: float) -> None:
        super().__init__(3)
        self.rejects = True
        self.margin = margin

    def logits(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        return torch.cat([scores, scores.topk(2, dim=1).values[:, 1:] + self.margin], dim=1)


class Always(Quadrants):
    """Decides for class 0."""

    def logits(self, x: Tensor) -> Tensor:
        return self.scores(0 * x) + torch.tensor([1.0, 0, 0, 0])


class Broken(Quadrants):
    """Fails once it is asked without gradients, as AutoAttack asks at first."""

    def logits(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            raise RuntimeError("broken")
        return self.scores(x)


def quadrant_images(count: int, lead: float, *, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images one of whose quadrants is brighter than the others by `lead`, give or take a pixel's noise."""
    labels = torch.arange(count) % classes
    x = torch.full((count, 1, 4, 4), 0.4)
    for image, label in zip(x[:, 0], labels.tolist(), strict=True):
        image[2 * (label // 2) :, 2 * (label % 2) :][:2, :2] += lead
    return x + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)), labels


def silent_logger() -> Any:
    return Mock(spec=["debug", "info", "log", "warning"])


@pytest.fixture
def make_victim(make_model: Make) -> Make:
    """Makes a model that decides for several classes, and images with its decisions."""

    def make(name: str, count: int = 4) -> tuple[Any, Tensor, Tensor]:
        model = make_model(name)
        if name == "eabs":
            model = model.with_inference(candidates=10, steps=1)
        if name == "cnn":
            spread_decisions(model)
        x = bright_images(model)
        labels = model.predict(x).labels
        assert labels.unique().numel() > 1
        rows = torch.linspace(0, 59, count).long()
        return model, x[rows], labels[rows]

    return make


def assert_within(images: Tensor, x: Tensor, norm: str) -> None:
    assert images.shape == x.shape
    assert images.dtype == x.dtype
    assert images.min() >= 0
    assert images.max() <= 1
    distances = (images - x).flatten(1).norm(dim=1, p=ORDER[norm])
    assert distances.max() <= RADIUS[norm] * (1 + 1e-4)


# The wrapper.


@each_model
def test_autoattack_takes_the_wrapped_model_as_it_is(name: str, make_victim: Make) -> None:
    model, x, y = make_victim(name)
    view = wrap_for_robustbench(model)
    assert isinstance(view, nn.Module)
    assert not view.training
    assert torch.equal(view(x), model(x))
    attacks = ["fab", "square"]
    adversary = pyautoattack.AutoAttack(view, attacks=attacks, version="custom", eps=0.2, seed=0)
    adversary.fab.n_iter, adversary.fab.n_restarts, adversary.square.n_queries = 3, 1, 10
    adversary.logger = silent_logger()  # pyautoattack 0.1 fails where a flag is raised
    with isolated_rng(0):
        direct, _ = adversary.run_standard_evaluation(x, y)
    result = run_autoattack(model, x, y, epsilon=0.2, attacks=attacks, budget=SMALL, again=0)
    assert torch.equal(result.images, direct)
    assert result.verification.claimed.any()


# Runs.


@each_model
@pytest.mark.parametrize(
    ("version", "attacks"),
    [
        ("standard", ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("plus", ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")),
        ("rand", ("apgd-ce", "apgd-dlr")),
    ],
)
def test_every_version_runs(name: str, version: Any, attacks: tuple[str, ...], make_victim: Make) -> None:
    model, x, y = make_victim(name)
    result = run_autoattack(model, x, y, epsilon=RADIUS["linf"], version=version, budget=SMALL)
    assert result.attacks == attacks
    assert result.package == "pyautoattack"
    assert_within(result.images, x, "linf")
    assert result.robust_accuracy == 1 - result.verification.claimed.double().mean()
    assert result.robust_accuracy < 1
    assert (result.verification.unchanged | result.verification.claimed).all()


@each_model
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_every_attack_runs_in_every_norm(name: str, attack: str, norm: Any, make_victim: Make) -> None:
    model, x, y = make_victim(name)
    result = run_autoattack(
        model, x, y, norm=norm, epsilon=RADIUS[norm], version="plus", attacks=[attack], budget=SMALL
    )
    assert result.attacks == (attack,)
    assert_within(result.images, x, norm)
    assert torch.equal(model.predict(result.images).labels != y, result.verification.claimed)


def test_the_seed_decides(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    first, second, other = (
        run_autoattack(model, x, y, epsilon=0.2, attacks=["square"], budget=SMALL, seed=seed).images
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_batches_are_attacked_alike(make_victim: Make) -> None:
    model, x, y = make_victim("cnn", 5)
    whole, parts = (
        run_autoattack(model, x, y, epsilon=0.2, attacks=["fab"], budget=SMALL, batch_size=size).images
        for size in (5, 2)
    )
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("change", [Tensor.double, lambda x: x.contiguous(memory_format=torch.channels_last)])
def test_images_of_any_precision_and_layout(change: Callable[[Tensor], Tensor], make_model: Make) -> None:
    model = make_model("abs")  # of three channels
    x = torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    y = model.predict(x).labels
    plain, changed = (
        run_autoattack(model, images, y, epsilon=0.3, attacks=["apgd-t", "square"], budget=SMALL)
        for images in (x, change(x))
    )
    assert changed.images.dtype == torch.float32
    assert torch.equal(changed.images, plain.images)
    assert plain.verification.claimed.any()


def test_iterations_are_those_of_an_attack_made_with_them(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    attack = pyautoattack.autopgd_base.APGDAttack(
        wrap_for_robustbench(model), n_iter=30, eps=0.05, seed=0, device=torch.device("cpu")
    )
    with isolated_rng(0):
        expected = attack.perturb(x, y)
    budget = AutoAttackBudget(n_iter=30)
    result = run_autoattack(model, x, y, epsilon=0.05, attacks=["apgd-ce"], budget=budget)
    fooled = result.verification.claimed
    assert torch.equal(result.images[fooled], expected[fooled])
    assert torch.equal(fooled, model.predict(expected).labels != y)
    assert fooled.any()


# Randomised models.


@pytest.mark.parametrize(
    ("version", "eot", "eot_iter", "gradients"),
    [
        ("standard", 1, None, 1),
        ("standard", 3, None, 1),
        ("rand", 1, None, 20),
        ("rand", 3, None, 1),
        ("rand", 3, 4, 4),
    ],
)
def test_an_expectation_is_averaged_once(
    version: str, eot: int, eot_iter: int | None, gradients: int, make_victim: Make
) -> None:
    model, x, y = make_victim("eabs")
    target, queries = wrap_for_robustbench(model, eot), []
    target.register_forward_pre_hook(lambda _, images: queries.append(images[0].requires_grad))
    entry, settings = ROBUSTBENCH.attack("apgd-ce"), {"n_iter": 2, "eot_iter": eot_iter, "version": version}
    with isolated_rng(0):
        craft_with(craft, entry, target, x, y, epsilon=1e-6, **settings)
    probe, steps = 1, 3
    assert sum(queries) == probe + steps * gradients


def test_the_random_version_attacks_fresh_noise(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    fixed, fresh, eot = (
        run_autoattack(model, x, y, epsilon=0.1, attacks=["apgd-ce"], budget=SMALL, version=version, eot=eot)
        for version, eot in (("standard", 1), ("rand", 1), ("rand", 3))
    )
    assert fixed.rules[1].kept
    assert "only while its noise is fixed" in fixed.rules[1].why
    assert not fresh.rules[1].kept
    assert not eot.rules[1].kept
    assert not torch.equal(fixed.images, fresh.images)
    assert not torch.equal(fresh.images, eot.images)


# Flags and rules.


def raised(model: Classifier, x: Tensor, y: Tensor, **settings: Any) -> str:
    settings = {"attacks": ["apgd-dlr"], "budget": SMALL, **settings}
    return str(run_autoattack(model, x, y, epsilon=0.01, **settings).flags)


def test_flags_are_raised_for_the_model_that_deserves_them() -> None:
    x, y = quadrant_images(8, 0.3)
    assert raised(Quadrants(), x, y) == "none"
    assert raised(Noisy(), x, y) == "randomized"
    assert raised(Noisy(), x, y, version="rand") == "none"
    assert raised(Masked(), x, y) == "zero gradients"
    assert raised(Optimising(), x, y) == "optimises"
    assert raised(Quadrants(), x, y, output="probabilities") == "probabilities"
    assert raised(Quadrants(), x, y) == "none"


def test_flags_of_generative_classifiers(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    assert raised(model, x, y) == "optimises"
    assert raised(model.with_randomness("fresh"), x, y) == "randomized, optimises"
    assert raised(model.with_inference(steps=0), x, y) == "none"


def test_square_tells_of_gradients_that_led_nowhere() -> None:
    x, y = quadrant_images(8, 0.2)
    settings = {"epsilon": 0.4, "budget": AutoAttackBudget(n_iter=2, n_queries=300, n_restarts=1)}
    result = run_autoattack(Masked(), x, y, attacks=["fab", "apgd-dlr", "square"], **settings)
    assert result.flags.square_helps
    assert result.flags.zero_gradients


def test_what_is_said_often_is_told_once() -> None:
    x, y = quadrant_images(8, 0.3)
    budget = AutoAttackBudget(n_iter=2, n_restarts=3)
    result = run_autoattack(Masked(), x, y, epsilon=0.01, attacks=["apgd-dlr"], budget=budget)
    (message,) = result.flags.messages
    assert "8 points with zero gradient" in message


def test_one_model_after_another_is_judged_by_itself() -> None:
    x, y = quadrant_images(4, 0.3)
    assert raised(Optimising(), x, y) == "optimises"
    funcs = pyautoattack.checks.funcs
    assert set(funcs.values()) == {0}
    pyautoattack.checks.check_dynamic(wrap_for_robustbench(Optimising()), x, logger=silent_logger())
    assert any(funcs.values())  # which the package never takes back
    assert raised(Quadrants(), x, y) == "none"
    assert set(funcs.values()) == {0}


def broken_rules(result: Any) -> list[str]:
    return [rule.name for rule in result.rules if not rule.kept]


@pytest.mark.parametrize(
    ("model", "broken"),
    [
        (Quadrants(), []),
        (Masked(), ["non-zero gradients"]),
        (Noisy(), ["deterministic forward pass"]),
        (Optimising(), ["no optimisation at inference"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_rules_that_a_model_breaks(model: Classifier, broken: list[str]) -> None:
    x, y = quadrant_images(4, 0.3)
    result = run_autoattack(model, x, y, epsilon=0.01, attacks=["apgd-ce"], budget=SMALL)
    assert broken_rules(result) == broken
    assert result.accepted == (not broken)


def test_the_rules_that_a_generative_classifier_breaks(make_victim: Make) -> None:
    model, x, y = make_victim("eabs", 3)

    def rules(model: Any) -> Any:
        return run_autoattack(model, x, y, epsilon=0.01, attacks=["apgd-ce"], budget=SMALL)

    searching = rules(model)
    assert broken_rules(searching) == ["no optimisation at inference"]
    assert "1 gradient steps per class from the best of 10 candidates" in str(searching)
    assert broken_rules(rules(model.with_inference(steps=0))) == ["no optimisation at inference"]
    assert broken_rules(rules(model.with_inference(steps=0, candidates=0))) == []
    fresh = model.with_randomness("fresh")
    assert broken_rules(rules(fresh)) == ["deterministic forward pass", "no optimisation at inference"]


# What is left behind.


def state_of_generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.fixture
def trace() -> Iterator[Callable[..., None]]:
    before = sys.gettrace()

    def function(*_: Any) -> None:
        return None

    sys.settrace(function)
    yield function
    sys.settrace(before)


def test_nothing_global_changes(make_victim: Make, trace: Any) -> None:
    model, x, y = make_victim("cnn")
    generators = state_of_generators()
    run_autoattack(model, x, y, epsilon=0.2, attacks=["fab", "square"], budget=SMALL)
    assert sys.gettrace() is trace
    assert state_of_generators() == generators
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_nothing_global_changes_when_the_model_fails(trace: Any) -> None:
    x, y = quadrant_images(4, 0.3)
    model, generators = Broken(), state_of_generators()
    with pytest.raises(RuntimeError, match="broken"):
        run_autoattack(model, x, y, epsilon=0.2)
    assert sys.gettrace() is trace
    assert state_of_generators() == generators
    assert all(parameter.requires_grad for parameter in model.parameters())


# The verdict.


def test_the_judge_decides() -> None:
    x, y = quadrant_images(8, 0.1)
    result = run_autoattack(Quadrants(), x, y, epsilon=0.3, attacks=["apgd-ce"], budget=SMALL, judge=Always())
    assert result.robust_accuracy == 0
    assert torch.equal(result.verification.success, y != 0)


def test_claims_that_fall_are_reported(make_victim: Make) -> None:
    model, x, y = make_victim("eabs", 20)
    model = model.with_gradient("joint")  # along which FAB stops short of the boundary
    result = run_autoattack(model, x, y, epsilon=0.3, attacks=["fab"], budget=SMALL)
    fell = int(result.verification.fell.sum())
    assert fell
    assert f"{fell} fell" in str(result)
    assert result.verified_robust_accuracy >= result.robust_accuracy
    assert f"{result.robust_accuracy:.1%} by AutoAttack, {result.verified_robust_accuracy:.1%}" in str(result)


# Models that may reject.


def test_success_is_wrong_and_not_rejected() -> None:
    model = Rejecting(0.5)
    x, _ = quadrant_images(6, 0.3, classes=3)
    x = torch.cat([x, x.mean(dim=(2, 3), keepdim=True).expand_as(x)])
    labels = model.predict(x).labels
    assert labels.tolist() == [0, 1, 2] * 2 + [3] * 6
    y = torch.tensor([0, 1, 2, 1, 2, 0] * 2)
    assert successes(model, x, y).tolist() == [False] * 3 + [True] * 3 + [False] * 6


def test_autoattack_counts_rejected_images_and_the_verdict_does_not() -> None:
    model = Rejecting(1.0)
    x, y = quadrant_images(6, 0.3, classes=3)
    result = run_autoattack(model, x, y, epsilon=0.1, attacks=["apgd-ce", "apgd-t"])
    assert result.robust_accuracy == 0
    assert result.verification.rejected.all()
    assert result.verified_robust_accuracy == 1
    assert not successes(model, result.images, y).any()


def test_targeted_square_passes_the_rejection() -> None:
    model = Rejecting(0.1)
    x, y = quadrant_images(6, 0.2, classes=3)
    target, square = wrap_for_robustbench(model), ROBUSTBENCH.attack("square")

    def attack(classes: Tensor) -> Tensor:
        with isolated_rng(0):
            crafted = craft(square, target, x, classes, epsilon=0.4, targeted=True)
        assert torch.equal(crafted.claimed, model.predict(crafted.images).labels == classes)
        return crafted.images

    images, verification = attack_every_class(model, x, y, attack, norm="linf", epsilon=0.4)
    assert verification.success.all()
    assert torch.equal(successes(model, images, y), verification.success)


# Errors.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l0"}, "`norm` out of"),
        ({"version": "custom"}, "`version` out of"),
        ({"attacks": ["pgd"]}, "`attacks` out of .*'square'.*, but got 'pgd'"),
        ({"attacks": []}, "at least one attack"),
        ({"epsilon": 0}, "`epsilon` above 0 and finite, but got 0.0"),
        ({"epsilon": math.nan}, "`epsilon` above 0"),
        ({"batch_size": 0}, "`batch_size` to be at least 1"),
        ({"package": "foolbox"}, "`package` out of"),
        ({"eot": 2}, "draws no noise"),
        ({"output": "labels"}, "`output` to be one of"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, unchecked_types: None) -> None:
    x, y = quadrant_images(4, 0.3)
    with pytest.raises(ValueError, match=message):
        run_autoattack(Quadrants(), x, y, **{"epsilon": 0.1, **settings})


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.tensor([0]), r"`labels` of shape \(2,\), but got \(1,\)"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0).long(), "at least one image"),
        (torch.zeros(1, 1, 4, 4), torch.tensor([4]), r"`labels` in 0..3, but got 4 to 4"),
        (torch.full((1, 1, 4, 4), 2.0), torch.tensor([0]), r"`x` in \[0, 1\]"),
    ],
)
def test_bad_images_and_labels(x: Tensor, y: Tensor, message: str, unchecked_types: None) -> None:
    with pytest.raises(ValueError, match=message):
        run_autoattack(Quadrants(), x, y, epsilon=0.1)


@pytest.mark.parametrize("field", ["n_iter", "n_queries", "n_restarts", "n_target_classes", "eot_iter"])
def test_bad_budgets(field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field}` to be at least 1, but got 0"):
        AutoAttackBudget(**{field: 0})


def test_too_few_classes_for_a_loss() -> None:
    x, y = quadrant_images(4, 0.3, classes=2)
    with pytest.raises(ValueError, match="without 'apgd-t' for a model of 3 classes: its loss needs 4"):
        run_autoattack(Quadrants(3), x, y, epsilon=0.1)
    with pytest.raises(ValueError, match="without 'apgd-dlr' for a model of 2 classes: its loss needs 3"):
        run_autoattack(Quadrants(2), x, y, epsilon=0.1, version="plus")
    attacks = ["apgd-ce", "fab", "fab-t", "square"]
    result = run_autoattack(Quadrants(2), x, y, epsilon=0.2, attacks=attacks)
    assert result.verification.success.all()


def test_no_more_targets_than_classes() -> None:
    x, y = quadrant_images(8, 0.5)
    budget = AutoAttackBudget(n_iter=2)
    result = run_autoattack(Quadrants(), x, y, epsilon=0.01, attacks=["apgd-t", "fab-t"], budget=budget)
    assert result.robust_accuracy == 1
    assert result.flags.messages == ()


def test_without_a_gradient_square_alone_runs(make_victim: Make) -> None:
    model, x, y = make_victim("eabs", 3)
    settings: dict[str, Any] = {"epsilon": 0.2, "budget": SMALL, "eot": 3, "output": "decisions"}
    with pytest.raises(ValueError, match=r"`attacks` of \['square'\] for a model without gradient"):
        run_autoattack(model, x, y, **settings)
    result = run_autoattack(model, x, y, attacks=["square"], **settings)
    assert broken_rules(result) == ["non-zero gradients", "no optimisation at inference"]


# The catalogue.


@each_model
@pytest.mark.parametrize("entry", ROBUSTBENCH.attacks, ids=lambda entry: entry.name)
def test_every_entry_can_be_crafted(name: str, entry: Any, make_victim: Make) -> None:
    model, x, y = make_victim(name, 4)
    small = {key: min(value, 3) for key, value in entry.parameters.items() if isinstance(value, int)}
    with isolated_rng(0):
        crafted = craft_with(craft, entry, wrap_for_robustbench(model), x, y, epsilon=0.2, **small)
    assert_within(crafted.images, x, "linf")
    assert torch.equal(crafted.claimed, model.predict(crafted.images).labels != y)


def test_the_callers_generator_decides_what_is_crafted(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    target = wrap_for_robustbench(model)
    images = []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            images.append(craft(ROBUSTBENCH.attack("apgd-ce"), target, x, y, epsilon=0.2).images)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("apgd-ce", {"epsilon": None}, "an `epsilon` for apgd-ce"),
        ("apgd-t", {"targeted": True}, "`targeted` of False for apgd-t"),
        ("square", {"steps": 3}, r"parameters out of .*, but got \['steps'\]"),
    ],
)
def test_what_an_entry_cannot_do(name: str, settings: dict[str, Any], message: str) -> None:
    x, y = quadrant_images(4, 0.3)
    with pytest.raises(ValueError, match=message):
        craft_with(
            craft,
            ROBUSTBENCH.attack(name),
            wrap_for_robustbench(Quadrants()),
            x,
            y,
            **{"epsilon": 0.1, **settings},
        )


# AutoAttack of the repository, which is on no package index.


class FakeAPGD:
    """Takes what the repository's APGD takes."""

    def __init__(self, predict: Any, n_iter: int = 100, loss: str = "ce", **settings: Any) -> None:
        self.model, self.n_iter, self.loss = predict, n_iter, loss
        self.norm, self.eps_orig, self.thr_decr = settings["norm"], settings["eps"], 0.75
        self.seed, self.device, self.n_restarts = settings["seed"], settings["device"], 1
        self.eot_iter, self.use_largereps, self.logger = 1, False, None


class FakeTargetedAPGD(FakeAPGD):
    def __init__(self, predict: Any, n_iter: int = 100, n_target_classes: int = 9, **settings: Any) -> None:
        super().__init__(predict, n_iter, **settings)
        self.n_target_classes = n_target_classes


class FakeAutoAttack:
    """Has the constructor, the attributes and the logger of the repository's version; and it lies.

    Its check of inference is the original's in kind: counters in a module that nobody resets, and tracing
    that is switched off. Its only attack returns the clean images and says that all are fooled.
    """

    made: "list[FakeAutoAttack]" = []  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Any = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: Any = "cuda",
        log_path: str | None = None,
    ) -> None:
        self.model, self.norm, self.verbose, self.device = model, norm, verbose, device
        self.untouched = (attacks_to_run, version, is_tf_model, log_path)
        self.attacks_to_run = ["apgd-ce", "apgd-t"]
        self.logger: Any = None
        settings = {"norm": norm, "eps": eps, "seed": seed, "device": device}
        self.apgd, self.apgd_targeted = FakeAPGD(model, **settings), FakeTargetedAPGD(model, **settings)
        self.fab = SimpleNamespace(n_iter=100, n_restarts=5, n_target_classes=9)
        self.square = SimpleNamespace(n_queries=5000, n_restarts=1)
        self.made.append(self)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Any = None,
    ) -> Any:
        assert state_path is None
        funcs = sys.modules["autoattack.checks"].funcs

        def count(frame: Any, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_name in funcs:
                funcs[frame.f_code.co_name] += 1

        sys.settrace(count)
        self.model(x_orig[:bs])
        sys.settrace(None)
        self.logger.log("initial accuracy: 100.00%")
        if any(funcs.values()):
            self.logger.log("Warning: it seems to be a dynamic defense!")
        return (x_orig.clone(), (y_orig + 1) % 4) if return_labels else x_orig.clone()


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    package, checks = ModuleType("autoattack"), ModuleType("autoattack.checks")
    package.AutoAttack = FakeAutoAttack  # type: ignore[attr-defined]
    checks.funcs = {"grad": 0, "backward": 0, "_make_grads": 0}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autoattack", package)
    monkeypatch.setitem(sys.modules, "autoattack.checks", checks)
    monkeypatch.setattr(FakeAutoAttack, "made", [])
    return checks


def test_the_repositorys_version_runs_through_the_same_seam(repository: Any, trace: Any) -> None:
    x, y = quadrant_images(8, 0.3)
    budget = AutoAttackBudget(n_iter=7, n_queries=8, n_restarts=2, eot_iter=3)
    settings: dict[str, Any] = {"epsilon": 0.1, "budget": budget, "package": "autoattack"}
    result = run_autoattack(Optimising(), x, y, **settings)
    made, *again = FakeAutoAttack.made
    assert len(again) == AGAIN  # every claim falls
    assert (made.norm, made.verbose, made.device) == ("Linf", False, torch.device("cpu"))
    assert (made.apgd.n_iter, made.fab.n_iter, made.square.n_queries, made.fab.n_restarts) == (7, 7, 8, 2)
    assert made.apgd_targeted.n_target_classes == 3
    assert made.untouched == ((), "standard", False, None)
    assert made.apgd.eot_iter == 3
    assert (result.package, result.attacks) == ("autoattack", ("apgd-ce", "apgd-t"))
    assert result.flags.messages == ("it seems to be a dynamic defense!",)
    assert sys.gettrace() is trace
    assert str(run_autoattack(Quadrants(), x, y, **settings).flags) == "none"
    assert set(repository.funcs.values()) == {0}


def test_a_lie_of_the_package_falls(repository: Any) -> None:
    x, y = quadrant_images(8, 0.3)
    result = run_autoattack(Quadrants(), x, y, epsilon=0.1, package="autoattack")
    assert result.robust_accuracy == 0
    assert result.verified_robust_accuracy == 1
    assert result.verification.fell.all()
    assert "0 of 8 succeeded, 8 claimed, 8 unchanged, 8 fell" in str(result)


def test_the_installed_package_is_found(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_autoattack() is pyautoattack
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    assert import_autoattack().__name__ == "autoattack"
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ImportError, match=r"pip install 'genrobust\[robustbench\]'") as caught:
        import_autoattack()
    assert caught.value.name == "pyautoattack"
