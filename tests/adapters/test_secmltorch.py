import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from counted import Counted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from victims import Linear, Planted, craft_with

from genrobust import Classifier, verify
from genrobust.adapters.catalogues.secmltorch import SECMLTORCH
from genrobust.attack_view import InvalidQueryWarning
from genrobust.eot import expectation
from genrobust.randomness import isolated_rng

adapter = pytest.importorskip("genrobust.adapters._secmltorch", exc_type=ImportError)
craft, successes, wrap = adapter.craft, adapter.successes, adapter.wrap_for_secml

from secmlt.adv.evasion import base_evasion_attack  # noqa: E402
from secmlt.adv.evasion.aggregators.ensemble import MinDistanceEnsemble  # noqa: E402
from secmlt.adv.evasion.ddn import DDN  # noqa: E402
from secmlt.adv.evasion.fmn import FMN  # noqa: E402
from secmlt.adv.evasion.pgd import PGD  # noqa: E402
from secmlt.metrics.classification import Accuracy, AttackSuccessRate  # noqa: E402
from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier  # noqa: E402
from secmlt.trackers.trackers import GradientNormTracker, LossTracker  # noqa: E402

Make = Callable[..., Any]

EPSILONS = {"linf": 0.2, "l2": 1.0, "l1": 4.0}
SHORT = {
    "num_steps": 4,
    "binary_search_steps": 1,
    "steps": 2,
    "initial_gradient_eval_steps": 4,
    "max_gradient_eval_steps": 4,
}
HERE = [entry for entry in SECMLTORCH.attacks if not SECMLTORCH.obstacle(entry)]


def run_attack(name: str, target: Any, x: Tensor, y: Tensor, *, seed: int = 0, **settings: Any) -> Tensor:
    with isolated_rng(seed):
        crafted = craft_with(craft, SECMLTORCH.attack(name), target, x, y, **settings)
    images: Tensor = crafted.images
    return images


def batches(x: Tensor, y: Tensor, size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size)


def images_of(loader: Any) -> Tensor:
    found: Tensor = loader.dataset.tensors[0]
    return found


# The catalogue.


def test_every_attack_is_in_the_catalogue() -> None:
    package = import_module("secmlt.adv.evasion")
    base = base_evasion_attack.BaseEvasionAttack
    exported = set()
    for part in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not any(backend in part.name for backend in ("foolbox_attacks", "advlib_attacks")):
            exported |= {
                name
                for name, member in vars(import_module(part.name)).items()
                if inspect.isclass(member) and issubclass(member, base)
            }
    exported = {name for name in exported if not name.startswith(("Base", "Modular"))}
    assert exported == set(adapter.NATIVE)
    known = {entry.name.partition("-")[0] for entry in SECMLTORCH.attacks}
    for part in pkgutil.iter_modules(package.__path__):
        creators = {
            member
            for member in vars(import_module(f"{package.__name__}.{part.name}")).values()
            if inspect.isclass(member)
            and issubclass(member, base_evasion_attack.BaseEvasionAttackCreator)
            and member is not base_evasion_attack.BaseEvasionAttackCreator
        }
        suffix = {"foolbox": "Foolbox", "advlib": "AdvLib", "native": "Native"}
        for creator in creators:
            for backend in creator.get_backends():
                assert f"{creator.__name__}{suffix[backend]}" in known
                exported.add(f"{creator.__name__}{suffix[backend]}")
    assert known == exported


@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
def test_the_catalogue_says_what_the_constructors_take(entry: Any) -> None:
    kind = adapter._kind(entry.name)
    taken = inspect.signature(kind.__init__).parameters
    norm = entry.name.partition("-")[2]
    assert norm in ("", entry.norm)
    assert entry.needs_epsilon == ("epsilon" in taken)
    assert entry.targeted <= ("y_target" in taken)
    if "perturbation_model" in taken:
        assert entry.norm in kind.get_perturbation_models()


@pytest.mark.parametrize("entry", [e for e in HERE if e.knowledge == "white"], ids=lambda e: e.name)
def test_gradient_attacks_use_the_surrogate_gradient_of_eabs(entry: Any, make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    before = x.clone()
    settings = {name: value for name, value in SHORT.items() if name in entry.parameters}
    if entry.name == "CWAdvLib":
        settings["num_steps"] = 10
    epsilon = EPSILONS[entry.norm] if entry.needs_epsilon else None
    target = wrap(model.with_gradient(counted))
    images = run_attack(entry.name, target, x, y, epsilon=epsilon, **settings)
    assert counted.backwards > 0
    assert torch.equal(x, before)
    found = verify(model, x, y, images, norm="linf", epsilon=None)
    assert not (found.not_finite | found.outside_range).any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PGDNative-linf", {"epsilon": 0.1}),
        ("PGDNative-l2", {"epsilon": 0.5}),
        ("FMNNative-l2", {}),
        ("DDNNative", {}),
    ],
)
def test_backward_passes_are_counted(name: str, settings: dict[str, Any], make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    run_attack(name, wrap(model.with_gradient(counted)), x, y, num_steps=5, **settings)
    assert (counted.forwards, counted.backwards) == (5, 5)


# Where secml-torch misleads.


def test_it_claims_rejections_and_verification_does_not() -> None:
    model, x = Planted(), torch.zeros(4, 1, 1, 1)
    y = torch.tensor([0, 0, 0, 1])
    found = torch.tensor([0.0, 1 / 8, 3 / 8, 3 / 8]).view(4, 1, 1, 1)  # class 0, class 1, and twice "reject"
    assert AttackSuccessRate()(wrap(model), batches(found, y)) == 3 / 4
    verdict = verify(model, x, y, found, norm="linf", epsilon=0.5)
    assert verdict.success.tolist() == [False, True, False, False]
    assert torch.equal(verdict.success, successes(wrap(model), found, y))


def test_it_claims_images_of_nan_and_verification_does_not(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    found = torch.full_like(x, torch.nan)
    with pytest.warns(InvalidQueryWarning):
        claimed = AttackSuccessRate()(wrap(model), batches(found, y))
    assert claimed == (y != 0).float().mean()  # logits of NaN are class 0
    assert not verify(model, x, y, found, norm="linf", epsilon=None).success.any()


def test_it_claims_the_black_images_of_a_starved_attack(digits: tuple[Any, Tensor, Tensor]) -> None:
    pytest.importorskip("foolbox")
    model, x, y = digits
    starved = {"num_steps": 1, "binary_search_steps": 1, "initial_const": 1e-9}
    found = run_attack("CWFoolbox", wrap(model), x, y, **starved)
    assert AttackSuccessRate()(wrap(model), batches(found, y)) > 0.5
    verdict = verify(model, x, y, found, norm="l2", epsilon=None)
    assert verdict.black.all()
    assert not verdict.success.any()


def test_one_step_by_adv_lib_changes_nothing(digits: tuple[Any, Tensor, Tensor]) -> None:
    pytest.importorskip("adv_lib")
    model, x, y = digits
    found = run_attack("FGSMAdvLib", wrap(model), x, y, epsilon=0.3)
    assert verify(model, x, y, found, norm="linf", epsilon=0.3).unchanged.all()


def test_its_ensemble_of_nearest_examples_returns_the_clean_images(
    digits: tuple[Any, Tensor, Tensor],
) -> None:
    model, x, y = digits
    attack = FMN("l2", num_steps=20, step_size=1.0, backend="native")
    loader = batches(x, y)
    found = attack(wrap(model), loader)
    assert verify(model, x, y, images_of(found), norm="l2", epsilon=None).success.all()
    best = images_of(MinDistanceEnsemble("l2")(wrap(model), loader, [found]))
    assert verify(model, x, y, best, norm="l2", epsilon=None).unchanged.all()


def test_its_ddn_ignores_gamma(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    slow, fast = (
        images_of(DDN(num_steps=5, gamma=gamma, backend="native")(wrap(model), batches(x, y)))
        for gamma in (0.0, 0.9)
    )
    assert torch.equal(slow, fast)


def test_its_pgd_in_l1_moves_one_image_of_a_batch(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    found = run_attack("PGDNative-l1", wrap(model), x, y, epsilon=20.0, num_steps=2)
    assert ((found != x).flatten(1).any(1)).sum() == 1  # that with the largest gradient


def test_one_attack_of_its_own_fails_on_batches_of_two_sizes(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    attack = FMN("l2", num_steps=3, step_size=1.0, backend="native")
    with pytest.raises(RuntimeError, match="size"):
        attack(wrap(model), batches(x, y, size=5))
    assert torch.equal(
        run_attack("FMNNative-l2", wrap(model), x[5:], y[5:], num_steps=3, max_step_size=1.0),
        images_of(
            FMN("l2", num_steps=3, step_size=1.0, backend="native")(wrap(model), batches(x[5:], y[5:]))
        ),
    )


# The wrapper.


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
def test_the_wrapped_model_is_secmls_own_and_answers_as_the_model(name: str, make_victim: Make) -> None:
    model, x, y = make_victim(name)
    target = wrap(model)
    assert isinstance(target, BasePyTorchClassifier)
    assert torch.equal(target(x), model(x))
    assert torch.equal(target.model(x), model(x))
    assert torch.equal(target.predict(x), y)
    assert Accuracy()(target, batches(x, y)) == 1
    assert wrap(model, output="probabilities")(x).sum(1).allclose(torch.ones(len(x)))


def test_eot_queries_the_expectation_in_every_backend(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    target = wrap(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(target(x), expected(x))
    assert torch.equal(target.model(x), expected(x))
    images = run_attack("PGDNative-linf", wrap(model, eot=3), x, y, epsilon=0.2)
    assert verify(model, x, y, images, norm="linf", epsilon=0.2).distance.max() > 0.1


def test_its_trackers_follow_an_attack_and_see_the_raised_gradient() -> None:
    weight = torch.cat([torch.full((1, 16), 1.0), torch.full((1, 16), -1.0)])
    model = Linear(weight, torch.tensor([0.0, 0.0]))
    x = torch.full((3, 1, 4, 4), 0.9)
    y = torch.zeros(3, dtype=torch.long)
    trackers = [LossTracker(), GradientNormTracker("l2")]
    images = run_attack(
        "PGDNative-l2", wrap(model), x, y, epsilon=4.0, num_steps=20, step_size=0.5, trackers=trackers
    )
    losses, lengths = (tracker.get() for tracker in trackers)
    assert losses.shape == lengths.shape == (3, 20)
    assert losses[:, 0].max() == 0  # of the clean images, whose margin is 29
    bare = x.clone().requires_grad_()
    nn.functional.cross_entropy(model.logits(bare), y, reduction="sum").backward()
    assert bare.grad is not None
    assert bare.grad.norm() < 1e-10
    assert (lengths[:, 1] >= 1.19e-4).all()  # the first row is of before the attack
    moved = (images - x).flatten(1).norm(dim=1)
    assert (moved > 3.2).all()


def test_the_creators_of_secml_take_it_too(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    attack = PGD("linf", epsilon=0.3, num_steps=10, step_size=0.075, backend="native")
    found = images_of(attack(wrap(model), batches(x, y, size=5)))
    expected = run_attack("PGDNative-linf", wrap(model), x, y, epsilon=0.3)
    torch.testing.assert_close(found, expected)
    assert verify(model, x, y, found, norm="linf", epsilon=0.3).success.sum() >= 6


# Crafting.


@pytest.mark.parametrize("name", ["PGDNative-linf", "FMNNative-l2", "DDNNative"])
def test_every_image_may_have_a_target_of_its_own(name: str, digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    goal = (y + torch.arange(1, 9)) % 10
    epsilon = 0.4 if name.startswith("PGD") else None
    images = run_attack(name, wrap(model), x, goal, epsilon=epsilon, targeted=True, num_steps=60)
    assert successes(wrap(model), images, goal, targeted=True).sum() >= 6


def test_an_image_without_a_start_is_left_alone(digits: tuple[Any, Tensor, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox")
    astensor = import_module("eagerpy").astensor

    class Never(foolbox.attacks.base.MinimizationAttack):  # type: ignore[misc, name-defined]
        distance = foolbox.distances.l2

        def run(self, _: Any, inputs: Any, *__: Any, **___: Any) -> Any:
            bright = inputs.raw.mean((1, 2, 3)) > bound
            return astensor(inputs.raw * ~bright[:, None, None, None])

    model, x, y = digits
    bound = float(x.mean((1, 2, 3)).median())
    target = wrap(model, output="decisions")
    images = run_attack("BoundaryAttackFoolbox", target, x, y, steps=2, init_attack=Never())
    changed = (images != x).flatten(1).any(1)
    assert not changed[x.mean((1, 2, 3)) <= bound].any()
    assert changed.any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("PGDNative-linf", {}, "one radius for PGDNative-linf, as `epsilon` or .* but got None and None"),
        ("DDNNative", {"steps": 3}, r"parameters that DDNNative takes, but got \['steps'\]"),
        ("FMNNative-l2", {"perturbation_model": "l1"}, r"but got \['perturbation_model'\]"),
    ],
)
def test_what_cannot_be_crafted(name: str, settings: dict[str, Any], message: str, make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    with pytest.raises(ValueError, match=message):
        run_attack(name, wrap(model), x[:1], y[:1], **settings)
    with pytest.raises(ValueError, match=r"`images` in \[0, 1\], but got 0.* to 2"):
        run_attack("DDNNative", wrap(model), 2 * x / x.max(), y)
    with pytest.raises(ValueError, match="an attack of secml-torch that is installed here, but got 'none'"):
        adapter.accepts("none")
    with pytest.raises(ValueError, match="`targeted` of False for VATFoolbox"):
        run_attack("VATFoolbox", wrap(model), x, y, targeted=True, epsilon=0.1)


@pytest.mark.parametrize("name", ["PGDNative-linf", "FMNNative-l2", "DDNNative"])
def test_a_rejecting_model_is_fooled_class_by_class(name: str) -> None:
    weight = 10 * torch.eye(4)
    weight[3, 3] = 30  # rejects sooner than it errs
    model: Classifier = Linear(weight, torch.zeros(4), rejects=True)
    x = torch.tensor([0.6, 0.4, 0.3, 0.15]).reshape(1, 1, 2, 2)
    y = model.predict(x).labels
    entry, target = SECMLTORCH.attack(name), wrap(model)
    epsilon = 0.2 if entry.needs_epsilon else None
    own = adapter._kind(name)(**adapter._settings(entry, epsilon))(target, batches(x, y))
    assert not verify(model, x, y, images_of(own), norm="l2", epsilon=None).success.any()
    crafted = craft(entry, target, x, y, epsilon=epsilon)
    assert crafted.claimed.all()
    norm = entry.norm
    assert verify(
        model, x, y, crafted.images, norm=norm, epsilon=epsilon, claimed=crafted.claimed
    ).success.all()
