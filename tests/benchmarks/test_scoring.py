from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from eagerpy.astensor import astensor
from torch import Tensor, nn

from genrobust import CNN, EABS, GenerativeClassifier
from genrobust.adapters.registry import Crafted
from genrobust.adapters.verification import NO_PREDICTION, fresh_variant, reach
from genrobust.benchmarks.cells import Cell
from genrobust.benchmarks.execution import Experiment, execute
from genrobust.benchmarks.scoring import rescore
from genrobust.benchmarks.suite_files import load_suite
from genrobust.benchmarks.suites import Attack
from genrobust.classifier import Classifier
from genrobust.data import ImageDataset

QUICK = load_suite("quick")

SAMPLES = np.arange(8)


@pytest.fixture
def plant(
    monkeypatch: pytest.MonkeyPatch, cnn: CNN, digits: ImageDataset
) -> Callable[..., Mapping[str, Any]]:
    """Plants an attack in Foolbox that returns what it is told, and runs one cell of it."""

    def run(
        make: Callable[[Tensor], Tensor], *, epsilon: float | None = None, **suite: Any
    ) -> Mapping[str, Any]:
        fixed = epsilon is not None
        base = foolbox.attacks.base.FixedEpsilonAttack if fixed else foolbox.attacks.base.MinimizationAttack

        class Planted(base):  # type: ignore[misc, valid-type]
            distance = foolbox.distances.l2

            def run(self, _model: Any, inputs: Any, _criterion: Any, **_: Any) -> Any:
                return astensor(make(inputs.raw.clone()))

        monkeypatch.setattr(foolbox.attacks, "Planted", Planted, raising=False)
        kind: Any = "fixed epsilon" if fixed else "minimal norm"
        attack = Attack(key="planted", title="planted", norm="l2", kind=kind, name="Planted")
        experiment = Experiment(
            suite=replace(QUICK, attacks=(attack,), **suite), dataset=digits, samples=SAMPLES, seed=0
        )
        cell = Cell(model="cnn", attack="planted", epsilon=epsilon, batch=0)
        clean = cnn(digits.batch(slice(8))[0]).argmax(1).numpy()
        return execute(experiment.task(cell, clean_predictions=clean), {"cnn": cnn}).columns

    return run


def decisions(cnn: CNN, x: Tensor) -> Any:
    return cnn(x).argmax(1).numpy()


def test_nan_images_are_dropped(plant: Callable[..., Mapping[str, Any]]) -> None:
    columns = plant(lambda x: torch.full_like(x, torch.nan))
    assert columns["claimed"].any()  # Foolbox believes them
    assert not columns["valid"].any()
    assert not columns["success"].any()
    assert columns["prediction"] == [None] * 8
    assert np.isinf(columns["distance_l2"]).all()


@pytest.mark.parametrize("value", [1.01, -0.01, 1.4])
def test_images_outside_of_the_range_are_dropped(
    plant: Callable[..., Mapping[str, Any]], value: float
) -> None:
    def make(x: Tensor) -> Tensor:
        x[:4, 0, 0, 0] = value
        return x

    columns = plant(make)
    assert columns["valid"].tolist() == [False] * 4 + [True] * 4
    assert not columns["success"][:4].any()
    assert columns["prediction"][:4] == [None] * 4


def test_images_a_rounding_error_outside_are_images(plant: Callable[..., Mapping[str, Any]]) -> None:
    assert plant(lambda x: x + 5e-7)["valid"].all()


def test_black_images_count_where_the_model_errs_on_black(
    plant: Callable[..., Mapping[str, Any]], cnn: CNN, digits: ImageDataset
) -> None:
    x, y = digits.batch(slice(8))
    columns = plant(torch.zeros_like)
    assert np.array_equal(columns["success"], decisions(cnn, torch.zeros_like(x)) != y.numpy())
    assert np.allclose(columns["distance_l2"], x.double().flatten(1).norm(dim=1))
    assert np.allclose(columns["distance_linf"], x.double().flatten(1).amax(1))


def test_unchanged_images_count_only_where_the_model_errs_anyway(
    plant: Callable[..., Mapping[str, Any]], cnn: CNN, digits: ImageDataset
) -> None:
    x, y = digits.batch(slice(8))
    columns = plant(lambda x: x)
    assert np.array_equal(columns["success"], decisions(cnn, x) != y.numpy())
    assert (columns["distance_l2"] == 0).all()
    assert (columns["overshoot"] == 1).all()  # nothing was claimed, so nothing is lengthened


def test_images_outside_of_the_ball_do_not_count(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(8))
    other = x.roll(1, 0)
    crafted = Crafted(other, torch.ones(8, dtype=torch.bool))
    wrong = decisions(cnn, other) != y.numpy()
    far = rescore(cnn, x, y, crafted, norm="l2", epsilon=1.5)
    assert (far.distances["l2"] > 1.5).all()
    assert far.valid.all()
    assert not far.success.any()
    everywhere = rescore(cnn, x, y, crafted, norm="l2", epsilon=30.0)
    assert wrong.any()
    assert np.array_equal(everywhere.success, wrong)


def test_the_toolkit_keeps_fixed_epsilon_attacks_in_the_ball(plant: Callable[..., Mapping[str, Any]]) -> None:
    columns = plant(lambda x: x.roll(1, 0), epsilon=1.5)
    assert (columns["distance_l2"] <= reach(1.5)).all()
    assert (columns["success"] <= columns["claimed"]).all()


class Judge(Classifier):
    """Errs only where the perturbation has reached a length, as a model with a wider margin does."""

    def __init__(self, x: Tensor, y: Tensor, length: float) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=10)
        self.x, self.y, self.length = x, y, length
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        reached = (x - self.x[: len(x)]).flatten(1).norm(dim=1) >= self.length
        return torch.nn.functional.one_hot((self.y[: len(x)] + reached) % 10, 10).float()


@pytest.mark.parametrize(
    ("length", "success", "overshoot"),
    [(0.9, True, 1.0), (1.05, True, 1.1), (1.4, True, 1.5), (3.0, False, 1.5)],
)
def test_a_perturbation_is_lengthened_until_it_survives(
    digits: ImageDataset, length: float, success: bool, overshoot: float
) -> None:
    x, y = torch.full((3, 1, 28, 28), 0.5), digits.labels[:3]
    step = torch.full_like(x, 1 / 28)  # L2 norm 1
    crafted = Crafted(x + step, torch.tensor([True, True, True]))
    verdicts = rescore(
        Judge(x, y, length), x, y, crafted, norm="l2", epsilon=None, overshoots=(1.0, 1.1, 1.5)
    )
    assert (verdicts.success == success).all()
    assert (verdicts.overshoot == overshoot).all()
    assert np.allclose(verdicts.distances["l2"], overshoot, rtol=1e-5)


def test_only_claims_of_minimal_norm_attacks_are_lengthened(digits: ImageDataset) -> None:
    x, y = torch.full((3, 1, 28, 28), 0.5), digits.labels[:3]
    step = torch.full_like(x, 1 / 28)
    silent = Crafted(x + step, torch.zeros(3, dtype=torch.bool))
    judge = Judge(x, y, 1.05)
    verdicts = rescore(judge, x, y, silent, norm="l2", epsilon=None, overshoots=(1.0, 1.1))
    assert not verdicts.success.any()
    loud = Crafted(x + step, torch.ones(3, dtype=torch.bool))
    verdicts = rescore(judge, x, y, loud, norm="l2", epsilon=1.5, overshoots=(1.0, 1.1))
    assert not verdicts.success.any()
    assert (verdicts.overshoot == 1).all()


def test_verdicts_have_fresh_noise_and_other_candidates(eabs_model: EABS, digits: ImageDataset) -> None:
    x, _ = digits.batch(slice(2))

    def judge(codebook_seed: int) -> GenerativeClassifier:
        variant = fresh_variant(eabs_model, seed=1, codebook_seed=codebook_seed)
        assert isinstance(variant, GenerativeClassifier)
        return variant

    first = judge(7)
    scores = first.class_scores(x)
    assert not torch.equal(scores, first.class_scores(x))
    assert torch.equal(scores, judge(7).class_scores(x))
    assert not torch.equal(scores, judge(8).class_scores(x))


def test_a_classifier_without_noise_judges_itself(cnn: CNN) -> None:
    assert fresh_variant(cnn, seed=0, codebook_seed=0) is cnn


def test_an_empty_verdict_never_reaches_the_model(digits: ImageDataset) -> None:
    x, y = digits.batch(slice(2))
    crafted = Crafted(torch.full_like(x, torch.inf), torch.ones(2, dtype=torch.bool))

    class Refusing(Judge):
        def predict(self, x: Tensor) -> Any:
            raise AssertionError(x.shape)

    verdicts = rescore(Refusing(x, y, 0.0), x, y, crafted, norm="linf", epsilon=0.1)
    assert verdicts.prediction.tolist() == [NO_PREDICTION] * 2
    assert not verdicts.success.any()


class Refusing(Classifier):
    """Calls every image class 1, and refuses the bright ones."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=2)
        self.bias = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0]]))

    def logits(self, x: Tensor) -> Tensor:
        return self.bias + torch.tensor([0.0, 0.0, 2.0]) * x.flatten(1).mean(1, keepdim=True)


def test_what_the_model_rejects_does_not_count_and_is_lengthened() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
    crafted = Crafted(torch.tensor([0.4, 0.6])[:, None, None, None].expand_as(x), torch.ones(2).bool())
    verdicts = rescore(Refusing(), x, y, crafted, norm="l2", epsilon=None, overshoots=(1.0, 1.5))
    assert verdicts.success.tolist() == [True, False]
    assert verdicts.rejected.tolist() == [False, True]
    assert verdicts.overshoot.tolist() == [1.0, 1.5]


def test_a_toolkit_that_claims_nothing_is_judged_all_the_same(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(8))
    silent = rescore(cnn, x, y, Crafted(x.roll(1, 0)), norm="l2", epsilon=None)
    assert np.array_equal(silent.success, decisions(cnn, x.roll(1, 0)) != y.numpy())
