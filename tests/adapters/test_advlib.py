import importlib
import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import Counted
from imported import modules_of, unimported_within
from torch import Tensor, nn
from victims import Linear, Planted, bright_images, craft_with

from genrobust import Classifier, verify
from genrobust.adapters.catalogues.advlib import ADVLIB
from genrobust.attack_view import InvalidQueryWarning
from genrobust.eot import expectation
from genrobust.randomness import isolated_rng

adapter = pytest.importorskip("genrobust.adapters._advlib", exc_type=ImportError)
craft, successes, wrap = adapter.craft, adapter.successes, adapter.wrap_for_advlib
advlib = adapter.import_advlib()
attacks = advlib.attacks
runner = advlib.utils.attack_utils

Make = Callable[..., Any]

SHORT: dict[str, dict[str, Any]] = {
    "carlini_wagner_l2": {"max_iterations": 10, "binary_search_steps": 1},
    "carlini_wagner_linf": {"max_iterations": 5, "decrease_factor": 0.3},
    "str_attack": {"max_iterations": 4, "binary_search_steps": 1},
    "sdf": {"steps": 2, "df_steps": 4},
    "df": {"steps": 4},
    "tr": {"iter": 4},
    "fga": {"max_iter": 3},
    "vfga": {"max_iter": 3},
    "fab": {"n_iter": 2},
    "apgd": {"n_iter": 4},
    "apgd_targeted": {"n_iter": 4, "num_targets": 1},
}
for name in ("fmn", "ddn", "pgd_linf"):
    SHORT[name] = {"steps": 4}
for name in ("alma", "pdgd", "pdpgd", "sigma_zero"):
    SHORT[name] = {"num_steps": 4}
GRAY = [entry for entry in ADVLIB.attacks if entry.channels is None]
EPSILONS = {"linf": 0.2, "l2": 1.0, "l1": 4.0}


def short(name: str) -> dict[str, Any]:
    return SHORT[name.partition("-")[0]]


def run_attack(
    name: str, target: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0, **settings: Any
) -> Tensor:
    with isolated_rng(seed):
        crafted = craft_with(craft, ADVLIB.attack(name), target, x, y, **settings)
    images: Tensor = crafted.images
    return images


# The import.


@pytest.fixture
def unimported() -> Iterator[None]:
    """Takes adv-lib out of the process, and puts it back."""
    with unimported_within("adv_lib"):
        yield


TRACES = """
import sys, warnings
import numpy, torch, torchvision, tqdm, genrobust.adapters._advlib as adapter
before = set(sys.modules), [repr(filter) for filter in warnings.filters]
adapter.import_advlib()
print(sorted(name for name in set(sys.modules) - before[0] if name.partition(".")[0] != "adv_lib"))
print([repr(filter) for filter in warnings.filters] == before[1])
"""


def test_the_import_leaves_no_trace() -> None:
    done = subprocess.run([sys.executable, "-c", TRACES], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\nTrue\n", done.stderr


@pytest.mark.usefixtures("unimported")
def test_wrapping_a_model_imports_no_advlib(make_victim: Make) -> None:
    model, x, _ = make_victim("cnn")
    importlib.reload(adapter)
    adapter.wrap_for_advlib(model)(x)
    assert not modules_of("adv_lib")


@pytest.mark.usefixtures("unimported")
@pytest.mark.skipif(find_spec("visdom") is not None, reason="visdom is installed")
def test_the_import_works_after_one_that_failed() -> None:
    with pytest.raises(ImportError, match="visdom"):
        import_module("adv_lib.attacks")
    assert "adv_lib.utils" in sys.modules  # left behind
    imported = adapter.import_advlib()
    assert imported.attacks.fmn is sys.modules["adv_lib.attacks"].fmn  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="attacks run without a `callback`"):
        imported.utils.visdom_logger.VisdomLogger(port=1)


@pytest.mark.usefixtures("unimported")
def test_a_visdom_that_is_installed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "visdom.py").write_text("class Visdom:\n    def __init__(self, port): self.port = port\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "visdom", raising=False)
    logger = adapter.import_advlib().utils.visdom_logger.VisdomLogger(port=7)
    assert logger.vis.port == 7
    monkeypatch.delitem(sys.modules, "visdom")


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize("blocked", ["adv_lib", "torchvision"])
def test_what_is_missing_is_told_with_the_way_to_install_it(
    blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(
        ImportError, match=r"genrobust\[advlib\]', then pip install --no-deps adv-lib"
    ) as caught:
        adapter.import_advlib()
    assert caught.value.name == blocked


# The catalogue.


def test_every_exported_attack_is_in_the_catalogue() -> None:
    exported = {name for name, member in vars(attacks).items() if inspect.isfunction(member)}
    assert {entry.name.partition("-")[0] for entry in ADVLIB.attacks} == exported
    for entry in ADVLIB.attacks:
        function, _, norm = entry.name.partition("-")
        taken = inspect.signature(getattr(attacks, function)).parameters
        assert norm in ("", entry.norm)
        assert bool(norm) == bool(taken.keys() & {"norm", "p", "distance"})
        assert entry.needs_epsilon == (function in ("apgd", "apgd_targeted", "pgd_linf"))


@pytest.mark.parametrize("entry", [e for e in ADVLIB.attacks if not e.targeted], ids=lambda e: e.name)
def test_what_cannot_be_targeted_says_so_itself(entry: Any, digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    function = getattr(attacks, entry.name.partition("-")[0])
    settings = adapter._settings(entry, model, 0.1 if entry.needs_epsilon else None)
    with pytest.raises((UserWarning, AssertionError)):
        function(wrap(model), x[:1], y[:1], targeted=True, **settings)
    with pytest.raises(ValueError, match=f"`targeted` of False for {entry.name}"):
        run_attack(entry.name, wrap(model), x, y, targeted=True)


@pytest.mark.parametrize("entry", GRAY, ids=lambda entry: entry.name)
def test_gradient_attacks_use_the_surrogate_gradient_of_eabs(entry: Any, make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    before = x.clone()
    epsilon = EPSILONS[entry.norm] if entry.needs_epsilon else None
    target = wrap(model.with_gradient(counted))
    images = run_attack(entry.name, target, x, y, epsilon=epsilon, **short(entry.name))
    assert counted.backwards > 0
    assert torch.equal(x, before)
    assert not x.requires_grad
    found = verify(model, x, y, images, norm="linf", epsilon=None)
    assert not (found.not_finite | found.outside_range | found.black).any()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "per_step", "steps"),
    [
        ("fmn-l2", {"steps": 5}, 1, 5),
        ("ddn", {"steps": 5}, 1, 5),
        ("apgd-linf", {"n_iter": 5, "epsilon": 0.01}, 1, 6),  # once more at the start
        ("pgd_linf", {"steps": 5, "epsilon": 0.01}, 1, 5),
        ("fab-l2", {"n_iter": 3}, 3, 3),  # one for every other class, over one forward pass
    ],
)
def test_backward_passes_are_counted(
    name: str, settings: dict[str, Any], per_step: int, steps: int, make_victim: Make
) -> None:
    model, x, y = make_victim("eabs")
    counted = Counted()
    run_attack(name, wrap(model.with_gradient(counted)), x, y, **settings)
    assert model.num_classes == 4
    assert (counted.forwards, counted.backwards) == (steps, per_step * steps)


def test_a_colour_attack_on_colour_images(make_model: Make) -> None:
    model = make_model("abs")
    assert model.input_shape[0] == 3
    x = bright_images(model)[[10, 30, 50]]
    y = model.predict(x).labels
    images = run_attack("perc_al", wrap(model), x, y, max_iterations=5)
    assert images.isfinite().all()
    assert ADVLIB.obstacle(ADVLIB.attack("perc_al")) == "3 channels only"


# Where adv-lib misleads.


def metrics(target: nn.Module, x: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """Where adv-lib's own metrics claim success."""
    data = {"inputs": x, "labels": y, "targets": None, "adv_inputs": found}
    claimed: Tensor = runner.compute_attack_metrics(
        target, {**data, "time": 0, "num_forwards": 0, "num_backwards": 0}
    )["success"]
    return claimed


def test_it_claims_rejections_and_verification_does_not() -> None:
    model, x = Planted(), torch.zeros(4, 1, 1, 1)
    y = torch.tensor([0, 0, 0, 1])
    found = torch.tensor([0.0, 1 / 8, 3 / 8, 3 / 8]).view(4, 1, 1, 1)  # class 0, class 1, and twice "reject"
    claimed = metrics(wrap(model), x, y, found)
    assert claimed.tolist() == [False, True, True, True]
    verdict = verify(model, x, y, found, norm="linf", epsilon=0.5, claimed=claimed)
    assert verdict.success.tolist() == [False, True, False, False]
    assert torch.equal(verdict.success, successes(wrap(model), found, y))


def test_it_claims_images_of_nan_and_verification_does_not(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    found = torch.full_like(x, torch.nan)
    with pytest.warns(InvalidQueryWarning):
        claimed = metrics(wrap(model), x, y, found)
    assert torch.equal(claimed, y != 0)  # logits of NaN are class 0
    assert not verify(model, x, y, found, norm="linf", epsilon=None, claimed=claimed).success.any()


def test_it_claims_examples_that_it_moved_into_the_range(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    found = run_attack("pgd_linf", wrap(model), x, y, epsilon=0.4)
    beyond = torch.where(found == 1, 1.5, found)
    assert (beyond > 1).flatten(1).any(1).all()
    with pytest.warns(UserWarning, match="not in the .0, 1. range"):
        claimed = metrics(wrap(model), x, y, beyond.clone())
    assert claimed.all()
    verdict = verify(model, x, y, beyond, norm="linf", epsilon=0.4, claimed=claimed)
    assert not verdict.success.any()
    assert verdict.outside_range.all()


def test_one_step_of_its_pgd_changes_nothing(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    step = {"random_init": False, "relative_step_size": 1.0}
    images = run_attack("pgd_linf", wrap(model), x, y, epsilon=0.3, steps=1, **step)
    assert verify(model, x, y, images, norm="linf", epsilon=0.3).unchanged.all()
    two = run_attack("pgd_linf", wrap(model), x, y, epsilon=0.3, steps=2, **step)
    assert verify(model, x, y, two, norm="linf", epsilon=0.3).success.sum() >= 6


def test_its_targeted_apgd_mends_mislabelled_images() -> None:
    model = Linear(10 * torch.eye(4), torch.zeros(4))
    x = torch.tensor([0.55, 0.5, 0.2, 0.1]).view(1, 1, 2, 2)
    y = torch.tensor([1])  # the runner-up of the clean image, which is its first target
    assert verify(model, x, y, x, norm="linf", epsilon=0.2).success.all()
    images = run_attack("apgd_targeted-linf", wrap(model), x, y, epsilon=0.2)
    assert not verify(model, x, y, images, norm="linf", epsilon=0.2).success.any()


# The wrapper, and crafting.


@pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])
def test_the_wrapped_model_answers_as_the_model(name: str, make_victim: Make) -> None:
    model, x, _ = make_victim(name)
    assert torch.equal(wrap(model)(x), model(x))
    assert wrap(model)(x.requires_grad_()).requires_grad


def test_eot_queries_the_expectation(make_victim: Make) -> None:
    model, x, y = make_victim("eabs")
    target = wrap(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(target(x), expected(x))
    images = run_attack("apgd-linf", wrap(model, eot=3), x, y, epsilon=0.2)
    assert verify(model, x, y, images, norm="linf", epsilon=0.2).distance.max() > 0.1


class Quiet:
    """What measures time on a CUDA device, where there is none."""

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.0


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_its_own_runner_takes_a_wrapped_model_and_counts_the_same(
    make_victim: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Quiet)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model, x, y = make_victim("eabs")
    counted = Counted()
    target = wrap(model.with_gradient(counted))

    def attack(*batch: Any, targeted: bool) -> Tensor:
        found: Tensor = attacks.fmn(*batch, norm=2, steps=6, targeted=targeted)
        return found

    data = runner.run_attack(target, x, y, attack)
    assert data["num_forwards"] == data["num_backwards"] == counted.backwards == 6
    assert torch.equal(data["adv_inputs"], run_attack("fmn-l2", target, x, y, steps=6))


def test_starting_points_are_taken(digits: tuple[Any, Tensor, Tensor]) -> None:
    model, x, y = digits
    starts = x.flip(0)
    usable = model.predict(starts).labels != y
    x, y, starts = x[usable], y[usable], starts[usable]
    assert len(x) >= 4
    images = run_attack("fmn-l2", wrap(model), x, y, steps=2, starting_points=starts)
    distance = verify(model, x, y, images, norm="l2", epsilon=None).distance
    assert (distance < (starts - x).flatten(1).norm(dim=1)).all()


def test_an_attack_is_the_same_for_the_same_seed(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    state = torch.get_rng_state()
    first, second, other = (
        run_attack("apgd-linf", wrap(model), x, y, epsilon=0.1, seed=seed, n_iter=1) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_crafting_works_without_gradients(make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    with torch.no_grad():
        images = run_attack("ddn", wrap(model), x, y)
    assert not images.requires_grad
    assert (images != x).any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("apgd-linf", {}, "one radius for apgd-linf, `epsilon` or 'eps', but got None and None"),
        ("pgd_linf", {"epsilon": 0.1, "ε": 0.2}, "one radius for pgd_linf.* but got 0.1 and 0.2"),
        ("ddn", {"norm": 2}, r"parameters that ddn takes, but got \['norm'\]"),
        ("fmn-l2", {"norm": math.inf}, r"parameters that fmn-l2 takes, but got \['norm'\]"),
    ],
)
def test_what_cannot_be_crafted(name: str, settings: dict[str, Any], message: str, make_victim: Make) -> None:
    model, x, y = make_victim("cnn")
    with pytest.raises(ValueError, match=message):
        run_attack(name, wrap(model), x[:1], y[:1], **settings)
    with pytest.raises(ValueError, match=r"`images` in \[0, 1\], but got 0.* to 2"):
        run_attack("ddn", wrap(model), 2 * x / x.max(), y)
    with pytest.raises(ValueError, match=r"an attack of adv-lib 0.2.8.* but got 'none'"):
        adapter.accepts("none")


@pytest.mark.parametrize("name", ["pgd_linf", "fmn-l2", "carlini_wagner_l2", "alma-l2"])
def test_a_rejecting_model_is_fooled_class_by_class(name: str) -> None:
    weight = 10 * torch.eye(4)
    weight[3, 3] = 30  # rejects sooner than it errs
    model: Classifier = Linear(weight, torch.zeros(4), rejects=True)
    x = torch.tensor([0.6, 0.4, 0.3, 0.15]).reshape(1, 1, 2, 2)
    y = model.predict(x).labels
    entry, target = ADVLIB.attack(name), wrap(model)
    epsilon = 0.2 if entry.needs_epsilon else None
    function = getattr(attacks, name.partition("-")[0])
    own = function(target, x, y, **adapter._settings(entry, model, epsilon))
    assert not verify(model, x, y, own, norm="l2", epsilon=None).success.any()
    with isolated_rng(0):
        crafted = craft(entry, target, x, y, epsilon=epsilon)
    assert crafted.claimed.all()
    assert verify(
        model, x, y, crafted.images, norm=entry.norm, epsilon=epsilon, claimed=crafted.claimed
    ).success.all()
