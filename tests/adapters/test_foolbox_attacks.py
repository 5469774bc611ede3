import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import craft_with

from genrobust import Classifier, attack_every_class, verify
from genrobust.adapters import AttackEntry
from genrobust.adapters.catalogues.foolbox import FOOLBOX
from genrobust.attack_view import InvalidQueryWarning
from genrobust.randomness import isolated_rng
from genrobust.verification import distance, fresh_variant

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*scipy.ndimage.filters.*", category=DeprecationWarning)
    foolbox = pytest.importorskip("foolbox")
    from genrobust.adapters._foolbox import WrongAndAccepted, craft, wrap_for_foolbox

pytestmark = [
    pytest.mark.filterwarnings("ignore::genrobust.attack_view.InvalidQueryWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*failed to draw sufficient random:UserWarning"),
    pytest.mark.filterwarnings("ignore:At the first initialisation the optimizer:UserWarning"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]

Make = Callable[..., Any]

EPSILONS = {
    "linf": 0.45,
    "l2": 1.8,
    "l1": 7.2,
    "l0": 16.0,
    "other": None,
}  # from band to band on 4 x 4 pixels
CHEAP = {
    "BoundaryAttack": {"steps": 50},
    "GenAttack": {"steps": 20},
    "HopSkipJumpAttack": {"steps": 3},
    "L0FMNAttack": {"steps": 15},  # fails once its ball holds every pixel
}
STOP_AT_ANYTHING = {  # take Misclassification alone
    "L1FastGradientAttack",
    "L2FastGradientAttack",
    "LinfFastGradientAttack",
    "NewtonFoolAttack",
    "VirtualAdversarialAttack",
}


class Bands(Classifier):
    """Decides by brightness: three bands of it are the classes, and between them it may reject."""

    CENTRES = (0.15, 0.5, 0.85)

    def __init__(self, *, rejects: bool = False, sharpness: float = 100.0, blind: bool = False) -> None:
        super().__init__(input_shape=(1, 8, 8), num_classes=3)
        self.rejects = rejects
        self.blind = blind
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def logits(self, x: Tensor) -> Tensor:
        offsets = x.flatten(1).mean(1, keepdim=True) - torch.tensor(self.CENTRES)
        logits = -self.sharpness * offsets.square()
        if self.rejects:
            logits = torch.cat([logits, -self.sharpness * logits.new_full((len(x), 1), 0.02)], 1)
        if self.blind:  # decisions, and no gradient
            return nn.functional.one_hot(logits.argmax(1), self.num_columns).to(x.dtype)
        return logits


def textured(count: int = 6, *, classes: tuple[int, ...] = (0, 1, 2)) -> tuple[Tensor, Tensor]:
    """Images in the middle of their class's band, and the classes."""
    labels = torch.tensor(classes).repeat(count)[:count]
    texture = 0.05 * torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    texture -= texture.mean((1, 2, 3), keepdim=True)
    return torch.tensor(Bands.CENTRES)[labels][:, None, None, None] + texture, labels


def run(name: str, model: Classifier, x: Tensor, y: Tensor, *, epsilon: Any = ..., **settings: Any) -> Any:
    entry = FOOLBOX.attack(name)
    epsilon = EPSILONS[entry.norm] if epsilon is ... else epsilon
    parameters = {**CHEAP.get(name, {}), **settings}
    with isolated_rng(0):
        return craft_with(craft, entry, wrap_for_foolbox(model), x, y, epsilon=epsilon, **parameters)


def norm_of(entry: AttackEntry) -> Any:
    return "l2" if entry.norm == "other" else entry.norm


def named(entry: AttackEntry) -> Any:
    """An entry as a parameter: compiling Brendel and Bethge's optimisers takes half a minute each."""
    if not entry.requires:
        return pytest.param(entry, id=entry.name)
    mark = pytest.mark.slow if entry.norm == "l2" else pytest.mark.matrix
    marks = [mark, pytest.mark.skipif(bool(entry.obstacle()), reason=entry.obstacle())]
    return pytest.param(entry, id=entry.name, marks=marks)


each_entry = pytest.mark.parametrize("entry", [named(entry) for entry in FOOLBOX.attacks])


# The catalogue.


def exported() -> dict[str, type]:
    found = {name: getattr(foolbox.attacks, name) for name in dir(foolbox.attacks)}
    return {
        name: found
        for name, found in found.items()
        if isinstance(found, type) and issubclass(found, foolbox.Attack) and not inspect.isabstract(found)
    }


def test_every_exported_attack_has_one_entry() -> None:
    names = [entry.name for entry in FOOLBOX.attacks]
    assert sorted(names) == sorted(attack.__name__ for attack in set(exported().values()))
    assert all(exported()[name].__name__ == name for name in names)


@each_entry
def test_entries_tell_norm_and_budget_as_foolbox_does(entry: AttackEntry) -> None:
    found = exported()[entry.name]
    assert entry.needs_epsilon == issubclass(found, foolbox.attacks.base.FixedEpsilonAttack)
    attack = found(**entry.parameters)
    if isinstance(attack, foolbox.attacks.base.FlexibleDistanceMinimizationAttack):
        assert entry.norm in ("other", "l0")
    elif entry.norm != "other":
        assert attack.distance is getattr(foolbox.distances, entry.norm)


@each_entry
def test_gradients_are_asked_for_by_the_attacks_that_are_said_to(entry: AttackEntry) -> None:
    x, y = textured()
    blind = Bands(blind=True)
    if entry.name in ("EADAttack", "L2CarliniWagnerAttack"):  # their loss has another term, with a gradient
        assert (run(entry.name, blind, x, y).images == 0).all()
    elif entry.knowledge == "white":
        with pytest.raises(RuntimeError, match="does not require grad"):
            run(entry.name, blind, x, y)
    else:
        assert run(entry.name, blind, x, y).images.shape == x.shape


# Crafting.


@each_entry
def test_claims_are_what_the_model_says(entry: AttackEntry) -> None:
    x, y = textured()
    model = Bands()
    crafted = run(entry.name, model, x, y)
    valid = crafted.images.flatten(1).isfinite().all(1)
    assert torch.equal(crafted.claimed[valid], model.predict(crafted.images[valid]).labels != y[valid])
    if entry.needs_epsilon:
        reach = distance(crafted.images - x, norm_of(entry))[valid]
        assert (reach <= EPSILONS[entry.norm] * 1.0001).all()


@each_entry
def test_attacks_reach_the_class_they_are_told_to_or_refuse(entry: AttackEntry) -> None:
    x, y = textured()
    model = Bands()
    wanted = (y + 1) % 3
    if not entry.targeted:
        with pytest.raises(ValueError, match=f"`targeted` of False for {entry.name}"):
            run(entry.name, model, x, wanted, targeted=True)
        return
    crafted = run(entry.name, model, x, wanted, targeted=True)
    assert torch.equal(crafted.claimed, model.predict(crafted.images).labels == wanted)


@pytest.mark.parametrize("name", ["LinfProjectedGradientDescentAttack", "BoundaryAttack", "DatasetAttack"])
def test_targeted_attacks_arrive(name: str) -> None:
    x, y = textured()
    crafted = run(name, Bands(), x, (y + 1) % 3, targeted=True, epsilon=0.8)
    assert crafted.claimed.all()


def test_gen_attack_is_told_the_most_likely_other_class() -> None:
    x, y = textured(classes=(0, 2))
    crafted = run("GenAttack", Bands(), x, y)
    assert crafted.claimed.all()
    assert (Bands().predict(crafted.images).labels == 1).all()


def test_walks_leave_alone_what_has_no_start_and_what_is_adversarial_as_it_is() -> None:
    x, _ = textured(3)
    always = torch.tensor([0, 1, 0])  # the last is adversarial as it is

    class Stubborn(Bands):
        """Calls everything 1 that is not dark: no image of class 1 has a start but the dark one."""

        def logits(self, x: Tensor) -> Tensor:
            dark = x.flatten(1).mean(1) < 0.3
            return nn.functional.one_hot((~dark).long(), 3).to(x.dtype)

    bright = x[1:]
    crafted = run("BoundaryAttack", Stubborn(), bright, always[1:])
    assert torch.equal(crafted.images, bright)
    assert crafted.claimed.tolist() == [False, True]
    crafted = run("BoundaryAttack", Stubborn(), x, always)
    assert crafted.claimed.tolist() == [True, True, True]
    assert not torch.equal(crafted.images[:2], x[:2])
    assert torch.equal(crafted.images[2], x[2])


def test_parameters_replace_the_entrys_own() -> None:
    x, y = textured()
    assert not run("DDNAttack", Bands(), x, y, steps=1).claimed.any()
    assert run("DDNAttack", Bands(), x, y).claimed.all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "LinfProjectedGradientDescentAttack",
            {"epsilon": None},
            "an `epsilon` for LinfProjectedGradientDesc",
        ),
        ("DDNAttack", {"strength": 3}, "`parameters` that DDNAttack takes"),
    ],
)
def test_impossible_runs(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(name, Bands(), *textured(), **settings)


def test_attacks_that_foolbox_has_not() -> None:
    entry = AttackEntry(name="PyTorchModel", norm="l2", knowledge="white")
    with pytest.raises(ValueError, match=r"an attack of Foolbox .*, but got 'PyTorchModel'"):
        craft(entry, wrap_for_foolbox(Bands()), *textured())


def test_images_outside_the_range() -> None:
    x, y = textured()
    with pytest.raises(ValueError, match=r"`images` in \[0, 1\], but got .* to 1.87"):
        run("DDNAttack", Bands(), x + 1, y)


# Rejection.


def planted_logits() -> tuple[Tensor, Tensor, Tensor]:
    """64 rows of logits of 7 classes and "reject", their labels, and whether they are wrong and accepted."""
    decision, labels = torch.arange(64) % 8, torch.arange(64) // 8 % 7
    logits = torch.rand((64, 8), generator=torch.Generator().manual_seed(0))
    logits[torch.arange(64), decision] = 2.0
    return logits, labels, (decision != labels) & (decision != 7)


def test_the_criterion_wants_wrong_and_accepted() -> None:
    logits, labels, expected = planted_logits()
    criterion = WrongAndAccepted(labels, 7)
    x = torch.zeros((64, 1, 1, 1))
    assert torch.equal(criterion(x, logits), expected)
    assert torch.equal(WrongAndAccepted(labels, 7)(x, logits[:, :7]), logits[:, :7].argmax(1) != labels)
    both = criterion & foolbox.criteria.TargetedMisclassification(torch.full_like(labels, 2))
    assert torch.equal(both(x, logits), expected & (logits.argmax(1) == 2))
    logits[3] = torch.nan
    assert not criterion(x, logits)[3]
    assert repr(criterion).startswith("WrongAndAccepted(")


@each_entry
def test_claims_on_a_rejecting_model_are_accepted(entry: AttackEntry) -> None:
    x, y = textured()
    model = Bands(rejects=True)
    crafted = run(entry.name, model, x, y)
    found = verify(model, x, y, crafted.images, norm=norm_of(entry), epsilon=None, claimed=crafted.claimed)
    if entry.name not in STOP_AT_ANYTHING:
        assert not (found.claimed & found.rejected).any()
    assert not found.success[found.rejected].any()


@pytest.mark.parametrize(
    "name",
    [
        "BoundaryAttack",
        "DDNAttack",
        "EADAttack",
        "HopSkipJumpAttack",
        "L1FMNAttack",
        "L2CarliniWagnerAttack",
        "L2DeepFoolAttack",
        "L2FMNAttack",
        "L2ProjectedGradientDescentAttack",
        "LInfFMNAttack",
        "LinearSearchBlendedUniformNoiseAttack",
        "LinfDeepFoolAttack",
        "LinfProjectedGradientDescentAttack",
        "PointwiseAttack",
        "SaltAndPepperNoiseAttack",
    ],
)
def test_attacks_pass_through_rejection(name: str) -> None:
    x, y = textured(classes=(0, 2))  # noise is of class 1
    model = Bands(rejects=True)
    crafted = run(name, model, x, y)
    found = verify(model, x, y, crafted.images, norm="l2", epsilon=None, claimed=crafted.claimed)
    assert found.success.all()
    assert found.claimed.all()


REFUSE = [
    named(entry)
    for entry in FOOLBOX.attacks
    if (entry.knowledge == "white" and "DeepFool" not in entry.name) or entry.name == "GenAttack"
]


@pytest.mark.parametrize("entry", REFUSE)
def test_gradient_attacks_take_foolboxs_own_criteria_alone(entry: AttackEntry) -> None:
    x, y = textured()
    attack = getattr(foolbox.attacks, entry.name)(**entry.parameters)
    bound = EPSILONS[entry.norm] if entry.needs_epsilon else None
    with pytest.raises(ValueError, match="unsupported criterion"):
        attack(wrap_for_foolbox(Bands(rejects=True)), x, WrongAndAccepted(y, 3), epsilons=bound)


def test_plain_misclassification_stops_at_rejection_and_every_class_does_not() -> None:
    x, y = textured(classes=(0, 2))
    model = Bands(rejects=True)
    fmodel = wrap_for_foolbox(model)
    _, images, claimed = foolbox.attacks.DDNAttack(steps=30)(fmodel, x, y, epsilons=None)
    plain = verify(model, x, y, images, norm="l2", epsilon=None, claimed=claimed)
    assert plain.claimed.all()
    assert plain.rejected.all()
    assert plain.fell.all()

    def attack(wanted: Tensor) -> Tensor:
        return craft(FOOLBOX.attack("DDNAttack"), fmodel, x, wanted, targeted=True).images

    images, found = attack_every_class(model, x, y, attack, norm="l2", epsilon=None)
    assert found.success.all()
    assert (model.predict(images).labels == 1).all()
    torch.testing.assert_close(run("DDNAttack", model, x, y).images, images)


# Claims that do not hold.


def test_nan_images_of_newton_fool() -> None:
    x, y = textured(8, classes=(1, 2))  # argmax calls NaN class 0
    model = Bands(sharpness=1e5)
    with pytest.warns(InvalidQueryWarning):
        crafted = run("NewtonFoolAttack", model, x, y)
    assert crafted.claimed.all()
    found = verify(model, x, y, crafted.images, norm="l2", epsilon=None, claimed=crafted.claimed)
    assert found.not_finite.all()
    assert found.fell.all()
    assert not found.success.any()


@pytest.mark.parametrize(
    ("name", "stepsize", "norm"),
    [("L2CarliniWagnerAttack", "stepsize", "l2"), ("EADAttack", "initial_stepsize", "l1")],
)
def test_black_images_of_a_starved_search(name: str, stepsize: str, norm: Any) -> None:
    x, y = textured(8, classes=(1, 2))
    model, epsilon = Bands(), {"l2": 3.4, "l1": 27.0}[norm]  # black is further from every image
    starved = {"steps": 1, "binary_search_steps": 1, "initial_const": 1e-3, stepsize: 0.001}
    crafted = run(name, model, x, y, **starved)
    assert crafted.claimed.all()
    found = verify(model, x, y, crafted.images, norm=norm, epsilon=epsilon, claimed=crafted.claimed)
    assert found.black.all()
    assert found.outside_ball.all()
    assert not found.success.any()
    crafted = run(name, model, x, y)
    found = verify(model, x, y, crafted.images, norm=norm, epsilon=epsilon, claimed=crafted.claimed)
    assert found.success.all()
    assert not found.black.any()


def test_claims_against_a_model_that_decides_at_random(make_model: Make) -> None:
    model = make_model("eabs").with_inference(search="distributions", expectation_draws=1)
    x = torch.rand((16, *model.input_shape), generator=torch.Generator().manual_seed(3))
    x *= torch.linspace(0.1, 1, 16)[:, None, None, None]
    y = model.predict(x).labels
    entry = FOOLBOX.attack("DDNAttack")
    with isolated_rng(0):
        crafted = craft_with(craft, entry, wrap_for_foolbox(model.with_randomness("fresh")), x, y, steps=15)
    verdicts = [
        verify(model, x, y, crafted.images, norm="l2", epsilon=None, claimed=crafted.claimed, seed=seed)
        for seed in range(10)
    ]
    counts = torch.tensor([found.success.sum() for found in verdicts]).double()
    judges = [fresh_variant(model, seed=seed, codebook_seed=seed) for seed in range(100, 120)]
    expected = torch.stack([judge.predict(crafted.images).labels != y for judge in judges]).sum(1).double()
    assert abs(counts.mean() - expected.mean()) < 1
    assert crafted.claimed.sum() > expected.mean() + 1
    assert all(found.fell.any() for found in verdicts)
