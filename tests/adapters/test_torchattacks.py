import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, chosen_with_ends, craft_with, spread_decisions

from genrobust import Classifier, attack_every_class, verify
from genrobust.attack_view import InvalidQueryWarning, attack_view
from genrobust.randomness import isolated_rng

torchattacks = pytest.importorskip("torchattacks")

from genrobust import wrap_for_torchattacks  # noqa: E402
from genrobust.adapters import AttackEntry  # noqa: E402
from genrobust.adapters._torchattacks import as_torchattacks, craft, successes  # noqa: E402
from genrobust.adapters.catalogues.torchattacks import BEYOND, TORCHATTACKS  # noqa: E402

Make = Callable[..., Any]

# SparseFool hands a tensor to NumPy's unravel_index.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

each_model = pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
each_entry = pytest.mark.parametrize("entry", TORCHATTACKS.attacks, ids=lambda entry: entry.name)

EPSILONS = {"linf": 0.3, "l2": 2.0}
# Enough queries for a tiny model; the catalogue's budgets are for 28 x 28 pixels.
CHEAP: dict[str, dict[str, Any]] = {
    "OnePixel": {"pixels": 5, "steps": 4, "popsize": 30},
    "Pixle": {"x_dimensions": (1, 3), "y_dimensions": (1, 3), "restarts": 5, "max_iterations": 5},
    "Square": {"n_queries": 100},
}
NO_ATTACKS = {"VANILA", "GN"}
DEAR = {"AutoAttack", "JSMA", "OnePixel", "Pixle", "EADL1", "EADEN", "SparseFool", "SPSA", "PGDRS", "LGV"}


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Keeps the seeds that attacks set from other tests."""
    with isolated_rng(0):
        yield


@pytest.fixture
def make_victim(make_model: Make, architectures: dict[str, Any]) -> Make:
    """Gives a function that makes a tiny model that decides for several classes."""

    def make(name: str, *, channels: int = 1, seed: int = 0) -> Any:
        if name != "cnn":
            return make_model(name, seed=seed)
        model = make_model("cnn", architecture=architectures["eabs" if channels == 1 else "abs"], seed=seed)
        spread_decisions(model)
        return model

    return make


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none").double()


def radius(entry: AttackEntry) -> float | None:
    return EPSILONS[entry.norm] if entry.needs_epsilon else None


def run(entry: AttackEntry, target: Any, x: Tensor, y: Tensor, *, seed: int = 0, **settings: Any) -> Tensor:
    """Craft with the budget for tiny models, and without the warnings that the catalogue announces."""
    settings = {"epsilon": radius(entry), **CHEAP.get(entry.name, {}), **settings}
    with isolated_rng(seed), warnings.catch_warnings():
        if BEYOND in entry.note:
            warnings.simplefilter("ignore", InvalidQueryWarning)
        return craft_with(craft, entry, target, x, y, **settings).images


# The catalogue.


def test_the_catalogue_has_every_attack() -> None:
    exported = [
        name
        for name, value in vars(torchattacks).items()
        if isinstance(value, type) and issubclass(value, torchattacks.attack.Attack)
    ]
    assert len(exported) == 39
    assert sorted(entry.name for entry in TORCHATTACKS.attacks) == sorted(exported)
    assert TORCHATTACKS.version is not None


@each_entry
def test_the_catalogue_says_what_torchattacks_does(entry: AttackEntry) -> None:
    attack = getattr(torchattacks, entry.name)
    taken = inspect.signature(attack).parameters
    assert entry.parameters.keys() <= taken.keys()
    has_radius = bool({"eps", "max_epsilon"} & taken.keys()) or entry.name in {"MultiAttack", "LGV"}
    assert entry.needs_epsilon is has_radius
    if entry.name not in {"MultiAttack", "LGV", "FAB"}:  # FAB and LGV say that they can; the tests below
        built = attack(nn.Linear(1, 1))
        assert entry.targeted is ("targeted" in built.supported_mode)


# The wrapper.


@each_model
def test_the_wrapped_model_answers_as_the_model_up_to_a_shift(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    wrapped = wrap_for_torchattacks(model)
    x, labels = chosen_with_ends(model)
    answers = wrapped(x)
    torch.testing.assert_close(answers.softmax(1), model(x).softmax(1))
    torch.testing.assert_close(answers.amin(1), torch.ones(len(x)))
    assert torch.equal(answers.argmax(1), labels)
    assert isinstance(wrapped, nn.Module)
    assert not wrapped.training
    assert torchattacks.PGD(wrapped).device == next(model.parameters()).device


@each_model
def test_the_gradient_is_the_models(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model)
    gradients = []
    for module in (model, wrap_for_torchattacks(model)):
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(module(leaf), labels, reduction="sum")
        gradients += torch.autograd.grad(loss, leaf)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("output", ["probabilities", "decisions"])
def test_other_outputs_are_not_shifted(output: Any, make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen_with_ends(model)
    expected = attack_view(model, output=output)(x)
    assert torch.equal(wrap_for_torchattacks(model, output=output)(x), expected)


def test_eot_queries_fresh_draws_that_repeat_with_the_seed(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen_with_ends(model)
    first, again, other = (wrap_for_torchattacks(model, eot=3, seed=seed) for seed in (5, 5, 6))
    answers = first(x)
    assert torch.equal(again(x), answers)
    assert not torch.equal(first(x), answers)
    assert not torch.equal(other(x), answers)
    with pytest.raises(ValueError, match="`eot` of 1 for CNN"):
        wrap_for_torchattacks(make_victim("cnn"), eot=2)


@each_model
def test_attacks_leave_the_model_as_it_was(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model)
    wrapped, expected = wrap_for_torchattacks(model), model(x)
    wrapped.train()
    torchattacks.DeepFool(wrapped, steps=2)(x, labels)  # calls backward(), which reaches weights
    assert wrapped.training
    assert torch.equal(model(x), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_double_precision_images(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen_with_ends(model)
    wrapped = wrap_for_torchattacks(model)
    single = torchattacks.PGD(wrapped, steps=2, random_start=False)(x, labels)
    double = torchattacks.PGD(wrapped, steps=2, random_start=False)(x.double(), labels)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


@pytest.mark.filterwarnings("ignore::genrobust.attack_view.InvalidQueryWarning")
def test_points_outside_are_answered_about_the_nearest_image(make_victim: Make) -> None:
    model = make_victim("cnn")
    wrapped = wrap_for_torchattacks(model)
    x, labels = chosen_with_ends(model)
    points = 5 * x - 2
    wrapped(x)  # the first query is of images
    answers, gradients = [], []
    for leaf in (points.requires_grad_(), points.detach().clamp(0, 1).requires_grad_()):
        answers.append(wrapped(leaf))
        gradients += torch.autograd.grad(nn.functional.cross_entropy(answers[-1], labels), leaf)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0][points > 1].abs().max() > 0
    assert gradients[0][points < 0].abs().max() > 0


@pytest.mark.filterwarnings("ignore::genrobust.attack_view.InvalidQueryWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_answered_nan(value: float, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, _ = chosen_with_ends(model)
    broken = x.clone()
    broken[1, 0, 0, 0] = value
    answers = wrap_for_torchattacks(model)(broken)
    assert answers[1].isnan().all()
    assert torch.equal(answers[0], wrap_for_torchattacks(model)(x)[0])


def test_what_is_no_image_is_refused(make_victim: Make) -> None:
    wrapped = wrap_for_torchattacks(make_victim("cnn"))
    x, labels = chosen_with_ends(make_victim("cnn"))
    with pytest.raises(ValueError, match="divide by 255"):
        wrapped((x * 255).round())
    with pytest.raises(ValueError, match=r"`x` of shape \(batch, 1, 8, 8\)"):
        wrapped(x[:, :, :4])
    with pytest.raises(ValueError, match=r"`x` in \[0, 1\]"):
        craft(TORCHATTACKS.attack("PGD"), wrapped, x + 1, labels, epsilon=0.1)


@pytest.mark.parametrize("name", ["abs", "eabs"])
@pytest.mark.parametrize(
    ("attack", "settings"),
    [("CW", {"c": 10, "lr": 0.1, "steps": 20}), ("UPGD", {"eps": 0.3, "alpha": 0.1, "loss": "margin"})],
)
def test_attacks_that_mask_logits_see_negative_ones(
    name: str, attack: str, settings: dict[str, Any], make_victim: Make
) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model)
    assert model(x).max() < 0
    bare, wrapped = attack_view(model), wrap_for_torchattacks(model)
    blind, seeing = (
        getattr(torchattacks, attack)(target, **settings)(x, labels) for target in (bare, wrapped)
    )
    assert torch.equal(blind, x)
    assert successes(wrapped, seeing, labels).any()


# Every attack.


@each_entry
def test_every_attack_runs_on_a_cnn(
    entry: AttackEntry, make_victim: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_victim("cnn", channels=entry.channels or 1)
    x, labels = chosen_with_ends(model)
    before = x.clone()
    x_adv = run(entry, wrap_for_torchattacks(model), x, labels)
    assert torch.equal(x, before)
    norm: Any = entry.norm
    found = verify(model, x, labels, x_adv, norm=norm, epsilon=radius(entry))
    assert not (found.not_finite | found.outside_range | found.outside_ball).any(), str(found)
    if entry.name not in NO_ATTACKS:
        assert found.success.any(), str(found)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "entry",
    [
        entry
        for entry in TORCHATTACKS.attacks
        if entry.channels is None and entry.name not in DEAR | NO_ATTACKS
    ],
    ids=lambda entry: entry.name,
)
def test_attacks_run_on_a_generative_classifier(entry: AttackEntry, make_victim: Make) -> None:
    # FAB steps to where the linearised margin is zero: the joint gradient is no slope of it.
    model = make_victim("eabs").with_gradient("envelope" if entry.name == "FAB" else "joint")
    x, labels = chosen_with_ends(model)
    x_adv = run(entry, wrap_for_torchattacks(model), x, labels)
    norm: Any = entry.norm
    found = verify(model, x, labels, x_adv, norm=norm, epsilon=radius(entry))
    assert not (found.not_finite | found.outside_range | found.outside_ball).any(), str(found)
    # DeepFool stops on the boundary, where other noise decides against what the attacked model still says.
    assert (found.claimed | found.success).any(), str(found)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cnn", "standard"),
        ("cnn", "plus"),
        ("cnn", "rand"),
        ("eabs", "standard"),
        ("eabs", "plus"),
        pytest.param("eabs", "rand", marks=pytest.mark.slow),
    ],
)
def test_autoattack_runs_in_every_version(name: str, version: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model, 2)
    entry = TORCHATTACKS.attack("AutoAttack")
    x_adv = run(entry, wrap_for_torchattacks(model), x, labels, epsilon=0.8, version=version)
    assert verify(model, x, labels, x_adv, norm="linf", epsilon=0.8).claimed.all()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_autoattack_runs_to_its_end(version: str, make_victim: Make) -> None:
    """In a ball with nothing in it every part runs, down to the 5000 queries of Square."""
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model, 1)
    wrapped = wrap_for_torchattacks(model)
    queries = 0

    def count(*_: Any) -> None:
        nonlocal queries
        queries += 1

    wrapped.register_forward_hook(count)
    entry = TORCHATTACKS.attack("AutoAttack")
    assert torch.equal(run(entry, wrapped, x, labels, epsilon=1e-4, version=version), x)
    assert queries > 5000


@pytest.mark.parametrize("attack", ["APGD", "APGDT", "FAB", "Square", "AutoAttack"])
def test_attacks_take_the_other_norm(attack: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    x_adv = run(TORCHATTACKS.attack(attack), wrap_for_torchattacks(model), x, labels, epsilon=2.0, norm="L2")
    assert verify(model, x, labels, x_adv, norm="l2", epsilon=2.0).success.any()


def test_what_is_broken_in_torchattacks_itself(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    wrapped = wrap_for_torchattacks(model)
    with pytest.raises(UnboundLocalError):
        torchattacks.FAB(wrapped, norm="L1", eps=5.0)(x, labels)
    fab = torchattacks.FAB(wrapped, eps=0.3)
    fab.set_mode_targeted_by_label(quiet=True)
    assert torch.equal(fab(x, (labels + 1) % 4), x)
    with pytest.raises(ZeroDivisionError):
        torchattacks.EADL1(wrapped, max_iterations=9)(x, labels)
    returned = torchattacks.EADL1(wrapped, max_iterations=20, initial_const=10.0)(x, labels)
    assert verify(model, x, labels, returned, norm="l1", epsilon=None).outside_range.any()


class Counted(torch.autograd.Function):
    """Steps with no gradient, for which the backward pass stands in, counted."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        del ctx
        return (1000 * scores).round() / 1000

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        Counted.calls += 1
        return gradients[0]


class Stepped(Classifier):
    """Four classes by the brightest quarter, in steps."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(input_shape=(channels, 8, 8), num_classes=4)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def logits(self, x: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)
        stepped: Tensor = Counted.apply(self.scale * (quarters - quarters.mean(1, keepdim=True)))
        return stepped


def quarters(count: int = 4, *, channels: int = 1, contrast: float = 0.2) -> tuple[Tensor, Tensor]:
    """Images of which one quarter is brighter."""
    labels = torch.arange(count) % 4
    bright = 0.4 + contrast * nn.functional.one_hot(labels, 4).float()
    x = nn.functional.interpolate(bright.view(count, 1, 2, 2), scale_factor=4)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + 0.02 * noise).expand(-1, channels, -1, -1).contiguous(), labels


@pytest.mark.parametrize(
    "entry",
    [entry for entry in TORCHATTACKS.attacks if entry.knowledge == "white"],
    ids=lambda entry: entry.name,
)
def test_surrogate_gradients_are_honoured(entry: AttackEntry, make_victim: Make) -> None:
    channels = entry.channels or 1
    model = Stepped(channels)
    x, labels = quarters(channels=channels)
    Counted.calls = 0
    x_adv = run(entry, wrap_for_torchattacks(model), x, labels)
    assert Counted.calls > 0
    found = verify(model, x, labels, x_adv, norm="linf", epsilon=None)
    assert found.success.sum() >= (1 if entry.name == "TPGD" else 3), str(found)


# Targets.


@pytest.mark.parametrize(
    "entry", [entry for entry in TORCHATTACKS.attacks if entry.targeted], ids=lambda entry: entry.name
)
def test_targeted_attacks_come_closer_to_their_target(entry: AttackEntry, make_victim: Make) -> None:
    channels = entry.channels or 1
    model = Stepped(channels)
    x, labels = quarters(channels=channels, contrast=0.1)
    goal = (labels + 1) % 4
    x_adv = run(entry, wrap_for_torchattacks(model), x, goal, targeted=True)
    assert losses(model, x_adv, goal).mean() < losses(model, x, goal).mean() - 0.05


@pytest.mark.parametrize("attack", ["DeepFool", "APGD", "FAB", "LGV", "MultiAttack"])
def test_what_cannot_be_targeted_says_so(attack: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    with pytest.raises(ValueError, match=f"`targeted` of False for {attack}"):
        craft(TORCHATTACKS.attack(attack), wrap_for_torchattacks(model), x, labels, targeted=True)


def test_jsma_reaches_for_the_most_likely_other_class(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    with torch.no_grad():
        second = model(x).topk(2).indices[:, 1]
    x_adv = run(TORCHATTACKS.attack("JSMA"), wrap_for_torchattacks(model), x, labels, gamma=0.9)
    decisions = model.predict(x_adv).labels
    assert torch.equal(decisions[decisions != labels], second[decisions != labels])
    assert (decisions != labels).any()


# Settings.


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        ("PGD", {}, "one radius for PGD"),
        ("PGD", {"epsilon": 0.1, "eps": 0.1}, "one radius for PGD"),
        ("PIFGSM", {}, "`epsilon` or 'max_epsilon'"),
        ("MultiAttack", {}, "one radius for FGSM"),
        ("LGV", {}, "one radius for LGV"),
        ("PGD", {"epsilon": 0.1, "stepz": 3}, "`parameters` that PGD takes"),
        ("CW", {"stepz": 3}, "`parameters` that CW takes"),
    ],
)
def test_bad_settings(attack: str, settings: dict[str, Any], message: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    with pytest.raises(ValueError, match=message):
        craft_with(craft, TORCHATTACKS.attack(attack), wrap_for_torchattacks(model), x, labels, **settings)


def test_an_attack_that_torchattacks_has_not(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    entry = AttackEntry(name="attack", norm="l2", knowledge="white")
    with pytest.raises(ValueError, match=r"an attack of torchattacks .* but got 'attack'"):
        craft(entry, wrap_for_torchattacks(model), x, labels)


def test_the_step_grows_with_the_ball(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    x = x.clamp(0.45, 0.55)
    for epsilon in (0.01, 0.4):
        x_adv = run(TORCHATTACKS.attack("BIM"), wrap_for_torchattacks(model), x, labels, epsilon=epsilon)
        torch.testing.assert_close((x_adv - x).abs().amax((1, 2, 3)), torch.full((len(x),), epsilon))
    x_adv = run(
        TORCHATTACKS.attack("BIM"), wrap_for_torchattacks(model), x, labels, epsilon=0.4, alpha=0.01, steps=3
    )
    torch.testing.assert_close((x_adv - x).abs().amax((1, 2, 3)), torch.full((len(x),), 0.03))


@pytest.mark.parametrize("attack", ["PGD", "Square", "APGD", "AutoAttack"])
def test_an_attack_repeats_with_the_callers_seed_alone(attack: str, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    entry = TORCHATTACKS.attack(attack)
    first, again, other = (
        run(entry, wrap_for_torchattacks(model), x, labels, seed=seed, epsilon=0.3) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# LGV.


@each_model
def test_lgv_fine_tunes_a_copy(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model)
    weights = [parameter.clone() for parameter in model.parameters()]
    wrapped = wrap_for_torchattacks(model)
    x_adv = run(TORCHATTACKS.attack("LGV"), wrapped, x, labels)
    assert losses(model, x_adv, labels).mean() > losses(model, x, labels).mean()
    assert all(map(torch.equal, model.parameters(), weights))
    assert not wrapped.training


def test_lgv_learns_from_the_loader_it_is_given(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    entry, wrapped = TORCHATTACKS.attack("LGV"), wrap_for_torchattacks(model)
    settings = {"epochs": 5, "nb_models_epoch": 1, "lr": 0.1}
    results = [
        run(entry, wrapped, x, labels, trainloader=loader, **settings)
        for loader in ([(x, labels)], [(x, (labels + 1) % 4)], None)
    ]
    assert not torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs", "deep-bayes", "vade"])
def test_lgv_moves_the_weights_of_its_copy(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen_with_ends(model)
    attack = torchattacks.LGV(
        wrap_for_torchattacks(model), [(x, labels)], epochs=1, nb_models_epoch=1, verbose=False
    )
    attack.collect_models()
    moved = attack.list_models[0].view.model
    assert not all(map(torch.equal, model.parameters(), moved.parameters()))
    assert not torch.equal(moved(x), model(x))


def test_lgv_needs_weights_with_a_gradient(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen_with_ends(model, 2)
    majority = wrap_for_torchattacks(model, eot=3, output="decisions")
    with pytest.raises(ValueError, match="gradient in the weights, which LGV fine-tunes"):
        run(TORCHATTACKS.attack("LGV"), majority, x, labels)


# torchattacks' own attack class.


def to_black(images: Tensor, labels: Tensor) -> Tensor:
    del labels
    return torch.zeros_like(images)


def to_quarter(images: Tensor, labels: Tensor) -> Tensor:
    return quarters(4)[0][labels].to(images)


def test_multiattack_takes_any_function() -> None:
    model = Stepped()
    wrapped = wrap_for_torchattacks(model)
    x, labels = quarters()
    asked: list[Tensor] = []

    def to_next(images: Tensor, labels: Tensor) -> Tensor:
        asked.append(labels)
        return to_quarter(images, (labels + 1) % 4)

    none = torchattacks.FGSM(wrapped, eps=0.001)
    multi = torchattacks.MultiAttack([none, as_torchattacks("next", wrapped, to_next), none])
    x_adv = multi(x, labels)
    assert torch.equal(x_adv, to_quarter(x, (labels + 1) % 4))
    assert torch.equal(asked[0], labels)
    assert len(asked) == 1


def test_multiattack_takes_an_attack_of_foolbox(make_victim: Make) -> None:
    foolbox = pytest.importorskip("foolbox")
    from genrobust import wrap_for_foolbox

    model = make_victim("cnn")
    x, labels = chosen_with_ends(model)
    fmodel, wrapped = wrap_for_foolbox(model), wrap_for_torchattacks(model)

    def deepfool(images: Tensor, labels: Tensor) -> Tensor:
        clipped: Tensor = foolbox.attacks.L2DeepFoolAttack()(fmodel, images, labels, epsilons=None)[1]
        return clipped

    multi = torchattacks.MultiAttack(
        [torchattacks.FGSM(wrapped, eps=0.01), as_torchattacks("DeepFool", wrapped, deepfool)]
    )
    assert successes(model, multi(x, labels), labels).all()
    x_adv = run(
        TORCHATTACKS.attack("MultiAttack"),
        wrapped,
        x,
        labels,
        epsilon=0.01,
        attacks=("FGSM", as_torchattacks("DeepFool", wrapped, deepfool)),
    )
    assert successes(model, x_adv, labels).all()


def test_a_function_is_saved_as_torchattacks_saves(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = Stepped()
    x, labels = quarters()
    attack = as_torchattacks("black", wrap_for_torchattacks(model), to_black)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=2)
    accuracy, distance, _ = attack.save(
        loader, save_path=str(tmp_path / "saved.pt"), return_verbose=True, save_predictions=True
    )
    saved = torch.load(tmp_path / "saved.pt")
    assert torch.equal(saved["adv_inputs"], torch.zeros_like(x))
    assert torch.equal(saved["labels"], labels)
    assert accuracy == 100 * (saved["preds"] == labels).float().mean()
    assert distance == pytest.approx(x[saved["preds"] != labels].flatten(1).norm(dim=1).mean().item())
    assert "Robust accuracy" in capsys.readouterr().out


def test_a_function_is_told_target_labels_in_every_mode(make_victim: Make) -> None:
    model = make_victim("cnn")
    wrapped = wrap_for_torchattacks(model)
    x, labels = chosen_with_ends(model)
    attack = as_torchattacks("quarter", wrapped, to_black, targeted_attack=to_quarter)
    assert torch.equal(attack(x, labels), torch.zeros_like(x))
    attack.set_mode_targeted_by_label(quiet=True)
    assert torch.equal(attack(x, labels), to_quarter(x, labels))
    attack.set_mode_targeted_by_function(lambda _, labels: (labels + 2) % 4, quiet=True)
    assert torch.equal(attack(x, labels), to_quarter(x, (labels + 2) % 4))
    attack.set_mode_targeted_least_likely(quiet=True)
    least = wrapped(x).argmin(1)
    assert torch.equal(attack(x, labels), to_quarter(x, least))
    attack.set_mode_targeted_random(quiet=True)
    with isolated_rng(0):
        drawn = [attack(x, labels) for _ in range(5)]
    assert not any((images == to_quarter(x, labels)).flatten(1).all(1).any() for images in drawn)
    assert not all(torch.equal(images, drawn[0]) for images in drawn)


def test_a_function_without_targets_refuses_them() -> None:
    attack = as_torchattacks("black", wrap_for_torchattacks(Stepped()), to_black)
    with pytest.raises(ValueError, match="Targeted mode is not supported"):
        attack.set_mode_targeted_by_label(quiet=True)


# Rejection.


class Careful(Classifier):
    """Four classes by the brightest quarter; refuses where the second is nearly as bright."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 8, 8), num_classes=4)
        self.scale = nn.Parameter(torch.tensor(20.0))

    def logits(self, x: Tensor) -> Tensor:
        scores = self.scale * nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        doubt = scores.topk(2).values[:, 1:] + 0.1 * self.scale
        return torch.cat([scores, doubt], 1)


def test_success_is_wrong_and_not_rejected() -> None:
    model = Careful()
    x, labels = quarters(4)
    unclear = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    broken, beyond = torch.full_like(x, torch.nan), x + 1
    wrapped = wrap_for_torchattacks(model)
    for target in (model, wrapped):
        assert not successes(target, x, labels).any()
        assert successes(target, x, (labels + 1) % 4).all()
        assert not successes(target, unclear, labels).any()
        assert not successes(target, broken, labels).any()
        assert not successes(target, beyond, (labels + 1) % 4).any()
    mixed = torch.cat([x[:1], broken[:1], unclear[:1]])
    assert successes(wrapped, mixed, torch.tensor([1, 1, 1])).tolist() == [True, False, False]


def test_torchattacks_stops_at_reject_and_every_class_does_not() -> None:
    model = Careful()
    wrapped = wrap_for_torchattacks(model)
    x, labels = quarters()
    assert torch.equal(model.predict(x).labels, labels)
    stopped = torchattacks.DeepFool(wrapped)(x, labels)
    assert (wrapped(stopped).argmax(1) == model.num_classes).all()
    assert not successes(wrapped, stopped, labels).any()

    attack = torchattacks.PGD(wrapped, eps=0.3, alpha=0.1)
    attack.set_mode_targeted_by_label(quiet=True)
    with isolated_rng(0):
        _, found = attack_every_class(
            model, x, labels, lambda goal: attack(x, goal), norm="linf", epsilon=0.3
        )
    assert found.success.all()
    assert not found.rejected.any()


STRONG_ELASTIC_NET = {"binary_search_steps": 5, "max_iterations": 100, "lr": 0.01, "initial_const": 1}


@pytest.mark.parametrize(
    ("attack", "settings"),
    [("PGD", {}), ("CW", {}), ("PGDL2", {}), ("EADL1", STRONG_ELASTIC_NET)],
)
def test_craft_passes_by_rejection(attack: str, settings: dict[str, Any]) -> None:
    model = Careful()
    wrapped = wrap_for_torchattacks(model)
    x, labels = quarters()
    entry = TORCHATTACKS.attack(attack)
    x_adv = run(entry, wrapped, x, labels, **settings)
    assert successes(model, x_adv, labels).all()
    assert not torch.equal(x_adv, x)
    unsuccessful = run(TORCHATTACKS.attack("PGD"), wrapped, x, labels, epsilon=0.01)
    assert torch.equal(unsuccessful, x)


# The global generators.


class Replayed(Classifier):
    """What must not be: a model whose noise comes from torch's global generator."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 8, 8), num_classes=4)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.adaptive_avg_pool2d(x + torch.randn_like(x), 2).flatten(1)


@pytest.mark.parametrize("attack", ["Square", "APGD", "FAB"])
def test_draws_are_not_replayed_after_an_attack_reseeds_torch(attack: str, make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen_with_ends(model, 2)

    def scores_after_attack(victim: Classifier, x: Tensor) -> Tensor:
        settings = {"n_queries": 3} if attack == "Square" else {"steps": 1}
        target = wrap_for_torchattacks(make_victim("cnn"))
        getattr(torchattacks, attack)(target, **settings)(*chosen_with_ends(make_victim("cnn"), 2))
        with torch.no_grad():
            return victim(x)

    replayed = Replayed()
    assert torch.equal(*(scores_after_attack(replayed, x) for _ in range(2)))

    fresh = model.with_randomness("fresh", generator=torch.Generator().manual_seed(1))
    before = fresh(x)
    draws = [before, *(scores_after_attack(fresh, x) for _ in range(2))]
    twin = model.with_randomness("fresh", generator=torch.Generator().manual_seed(1))
    for i, draw in enumerate(draws):
        assert torch.equal(draw, twin(x))
        assert not any(torch.equal(draw, other) for other in draws[:i])


def test_eot_and_the_judge_know_no_global_generator(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen_with_ends(model)
    wrapped, twin = (wrap_for_torchattacks(model, eot=3, seed=1) for _ in range(2))
    verdicts, answers = [], []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            before = global_states()
            answers.append(wrapped(x))
            verdicts.append(verify(model, x, labels, bright_images(model)[:4], norm="linf", epsilon=None))
            assert global_states() == before
    assert not torch.equal(answers[0], answers[1])
    assert all(torch.equal(answer, twin(x)) for answer in answers)
    for verdict in verdicts[1:]:
        assert torch.equal(verdict.prediction, verdicts[0].prediction)
        assert torch.equal(verdict.success, verdicts[0].success)


def global_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), numpy_state[2:]


def test_attacks_see_expectations(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen_with_ends(model)
    first, again = (
        run(TORCHATTACKS.attack("PGD"), wrap_for_torchattacks(model, eot=3), x, labels) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert losses(model, first, labels).mean() > losses(model, x, labels).mean()
