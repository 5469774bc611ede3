from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from eagerpy.astensor import astensor
from torch import Tensor

from genrobust import GenerativeClassifier
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.execution import execute
from genrobust.benchmarks.run.tasks import Experiment
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack
from genrobust.data import ImageDataset
from genrobust.gradients import Envelope
from genrobust.models import CNN, EABS
from genrobust.verification import fresh_variant, reach

DIGITS = load_suite("digits")

SAMPLES = np.arange(8)


@pytest.fixture
def plant(
    monkeypatch: pytest.MonkeyPatch, cnn: CNN, digits: ImageDataset
) -> Callable[..., Mapping[str, Any]]:
    """Puts an attack into Foolbox that returns what it is told, and runs one cell of it."""

    def run(
        make: Callable[[Tensor], Tensor], *, epsilon: float | None = None, **suite: Any
    ) -> Mapping[str, Any]:
        fixed = epsilon is not None
        base = foolbox.attacks.base.FixedEpsilonAttack if fixed else foolbox.attacks.base.MinimizationAttack

        class Planted(base):  # type: ignore[misc, valid-type]
            distance = foolbox.distances.l2

            def __init__(self, **_: Any) -> None:
                """Takes the parameters of the attack in whose place it stands."""

            def run(self, _model: Any, inputs: Any, _criterion: Any, **_: Any) -> Any:
                return astensor(make(inputs.raw.clone()))

        name = "L2ProjectedGradientDescentAttack" if fixed else "L2CarliniWagnerAttack"
        monkeypatch.setattr(foolbox.attacks, name, Planted)
        kind: Any = "fixed epsilon" if fixed else "minimal norm"
        attack = Attack(key="planted", title="planted", norm="l2", kind=kind, name=name)
        experiment = Experiment(
            suite=replace(DIGITS, attacks=(attack,), **suite), dataset=digits, samples=SAMPLES, seed=0
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


def test_black_images_of_a_minimal_norm_attack_do_not_count(
    plant: Callable[..., Mapping[str, Any]], cnn: CNN, digits: ImageDataset
) -> None:
    x, y = digits.batch(slice(8))
    columns = plant(torch.zeros_like)
    assert (decisions(cnn, torch.zeros_like(x)) != y.numpy()).any(), "nothing is tested"
    assert not columns["success"].any()
    assert np.allclose(columns["distance_l2"], x.double().flatten(1).norm(dim=1))
    assert np.allclose(columns["distance_linf"], x.double().flatten(1).amax(1))


def test_unchanged_images_of_a_minimal_norm_attack_do_not_count(
    plant: Callable[..., Mapping[str, Any]],
) -> None:
    columns = plant(lambda x: x)
    assert not columns["success"].any()
    assert (columns["distance_l2"] == 0).all()
    assert (columns["overshoot"] == 1).all()  # nothing was claimed, so nothing is lengthened


def test_the_toolkit_keeps_fixed_epsilon_attacks_in_the_ball(plant: Callable[..., Mapping[str, Any]]) -> None:
    columns = plant(lambda x: x.roll(1, 0), epsilon=1.5)
    assert (columns["distance_l2"] <= reach(1.5)).all()
    assert (columns["success"] <= columns["claimed"]).all()


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


@pytest.mark.slow
def test_the_estimated_gradient_of_a_suite_is_asked_from_scores_alone(
    eabs_model: EABS, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = load_suite("eabs-table4", scale="paper")
    attack = replace(paper.attack("pgd-linf-estimated"), parameters={"steps": 1}, eot=1)
    suite = replace(paper, dataset="digits", attacks=(attack,), expected=(), batch_size=2)
    experiment = Experiment(suite=suite, dataset=digits, samples=np.arange(2), seed=0)
    cell = Cell(model="eabs", attack=attack.key, epsilon=suite.threat_model("linf").epsilon, batch=0)
    asked: list[bool] = []
    scores = Envelope.scores

    def noted(self: Envelope, model: Any, x: Tensor) -> Tensor:
        asked.append(torch.is_grad_enabled())
        return scores(self, model, x)

    monkeypatch.setattr(Envelope, "scores", noted)
    attacked = {"eabs": eabs_model.with_gradient("envelope")}
    columns = execute(experiment.task(cell, clean_predictions=np.zeros(2, int)), attacked).columns
    assert len(asked) > 100
    assert not any(asked)
    assert (columns["distance_linf"] > 0).all()


def test_rows_say_which_class_a_targeted_attack_goes_for(cnn: CNN, digits: ImageDataset) -> None:
    attack = replace(
        DIGITS.attack("pgd-linf"),
        every_epsilon=False,
        parameters={"steps": 30, "rel_stepsize": 0.1},
        targeted=True,
    )
    suite = replace(DIGITS, attacks=(attack, replace(attack, key="plain", targeted=False)), batch_size=8)
    experiment = Experiment(suite=suite, dataset=digits, samples=SAMPLES, seed=0)
    clean = decisions(cnn, digits.batch(slice(8))[0])

    def rows(key: str) -> Mapping[str, Any]:
        cell = Cell(model="cnn", attack=key, epsilon=0.3, batch=0)
        return execute(experiment.task(cell, clean_predictions=clean), {"cnn": cnn}).columns

    aimed = rows("pgd-linf")
    assert (aimed["goal"] != aimed["label"]).all()
    assert np.array_equal(aimed["claimed"], np.asarray(aimed["prediction"]) == aimed["goal"])
    assert aimed["claimed"].any()
    assert rows("plain")["goal"] == [None] * 8
