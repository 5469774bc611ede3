"""Every attack of every toolkit against a CNN, ABS, E-ABS and VaDE with shipped weights, on digits.

By default a subset runs: of every toolkit the first attack by gradients in each of Linf and L2. `-m matrix`
runs the rest, of which some ask a model for thousands of answers.
"""

import warnings
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from genrobust import Classifier, GenerativeClassifier, load_dataset, load_model, verify
from genrobust.adapters import Adapter, AttackEntry, available, registered
from genrobust.attack_view import InvalidQueryWarning
from genrobust.randomness import isolated_rng
from genrobust.verification import Norm

IMAGES = 8
ENOUGH = 6  # images that an attack has to fool the CNN on, unless its entry says why it cannot
EPSILONS: dict[str, float] = {"linf": 0.3, "l2": 4.0, "l1": 60.0, "l0": 80.0}
BUDGETS: dict[str, dict[str, int]] = {
    "cnn": {},
    "abs": {"candidates": 100, "steps": 1},
    "eabs": {"candidates": 100, "steps": 1, "expectation_draws": 1},
    "vade": {"steps": 2},
}
# A goal of every class makes these nine times as long: fewer, longer steps lead as far.
SHORTER: dict[str, dict[str, float]] = {"IteratedFGSM": {"steps": 2, "step_size": 0.5}}

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


def entries() -> Iterator[Any]:
    for adapter in registered().values():
        seen = set()
        for entry in adapter.attacks:
            first = (entry.norm, entry.knowledge) not in seen
            seen.add((entry.norm, entry.knowledge))
            for model in BUDGETS:
                quick = first and entry.knowledge == "white" and entry.norm in ("linf", "l2")
                quick &= model == "cnn" or entry.name not in SHORTER
                marks = () if quick else (pytest.mark.matrix,)
                yield pytest.param(
                    adapter, entry, model, id=f"{adapter.toolkit}-{entry.name}-{model}", marks=marks
                )


@pytest.fixture(scope="module")
def victims() -> dict[str, tuple[Classifier, Tensor, Tensor]]:
    """Gives each model with images that it labels rightly."""
    found = {}
    images, labels = load_dataset("digits", "test").batch(slice(40))
    for name, budget in BUDGETS.items():
        model = load_model(name, dataset="digits")
        if isinstance(model, GenerativeClassifier):
            model = model.with_inference(**budget)
        right = model.predict(images).labels == labels
        found[name] = (model, images[right][:IMAGES], labels[right][:IMAGES])
    return found


@pytest.mark.parametrize(("adapter", "entry", "name"), list(entries()))
def test_it_runs_and_does_what_it_can(
    adapter: Adapter,
    entry: AttackEntry,
    name: str,
    victims: dict[str, tuple[Classifier, Tensor, Tensor]],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    model, x, y = victims[name]
    if obstacle := adapter.obstacle(entry, channels=x.shape[1]):
        pytest.skip(obstacle)
    if entry.asks_for:
        pytest.skip(f"asks for {entry.asks_for}, and has its own tests")
    monkeypatch.chdir(tmp_path)  # some attacks write files where they are
    implementation = adapter.load()
    epsilon = EPSILONS[entry.norm] if entry.needs_epsilon else None
    with isolated_rng(0), warnings.catch_warnings():
        warnings.simplefilter("ignore", InvalidQueryWarning)
        crafted = implementation.craft(
            entry.configured(SHORTER.get(entry.name, {})),
            *(implementation.wrap(model, **entry.options), x, y),
            epsilon=epsilon,
        )
    norm: Any = entry.norm if entry.norm in get_args(Norm) else "l2"
    bound = EPSILONS[norm] if entry.norm in get_args(Norm) else None
    found = verify(model, x, y, crafted.images, norm=norm, epsilon=bound, claimed=crafted.claimed)
    record_property("fooled", int(found.success.sum()))
    record_property("flags", str(found))
    assert crafted.images.shape == x.shape
    if epsilon is not None:
        assert not found.outside_ball.any()
    if name == "cnn" and not entry.weak:
        assert found.success.sum() >= ENOUGH, str(found)


def test_nearly_every_attack_runs_on_gray_images() -> None:
    every = [a.obstacle(entry) for a in available().values() for entry in a.attacks]
    obstacles = [obstacle for obstacle in every if not (obstacle or "").startswith("missing package")]
    share = torch.tensor([not obstacle for obstacle in obstacles]).float().mean()
    assert share >= 0.95, [obstacle for obstacle in obstacles if obstacle]
