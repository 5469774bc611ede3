import random
from dataclasses import replace
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from eagerpy.astensor import astensor

from genrobust import ABS, CNN, EABS
from genrobust.benchmarks.suite_files import load_suite
from genrobust.benchmarks.suites import Attack
from genrobust.benchmarks.toolkits import build_attack, craft, starting_points
from genrobust.classifier import Classifier, valid_images
from genrobust.data import ImageDataset

QUICK = load_suite("quick")

FGSM = QUICK.attack("fgsm")


def run(attack: Attack, model: Classifier, digits: ImageDataset, count: int = 4, **arguments: Any) -> Any:
    x, y = digits.batch(slice(count))
    epsilon = QUICK.threat_model(attack.norm).epsilon if attack.kind == "fixed epsilon" else None
    pool = digits.batch(slice(20, 50))
    return x, y, craft(attack, model, x, y, epsilon=epsilon, seed=3, pool=pool, **arguments)


@pytest.mark.parametrize("key", [attack.key for attack in QUICK.attacks])
def test_every_attack_of_quick_runs_and_repeats(
    key: str, fast_attacks: dict[str, Attack], cnn: CNN, digits: ImageDataset
) -> None:
    x, y, first = run(fast_attacks[key], cnn, digits)
    _, _, second = run(fast_attacks[key], cnn, digits)
    assert torch.equal(first.images, second.images)
    assert first.images.shape == x.shape
    assert valid_images(first.images).all()
    wrong = cnn(first.images.clamp(0, 1)).argmax(1) != y
    assert torch.equal(first.claimed, wrong)  # a CNN decides the same way twice


@pytest.mark.parametrize("key", ["fgsm", "deepfool-l2", "boundary"])
def test_attacks_run_on_generative_classifiers(
    key: str, fast_attacks: dict[str, Attack], abs_model: ABS, digits: ImageDataset
) -> None:
    attack = replace(fast_attacks[key], parameters={} if key == "fgsm" else {"steps": 2})
    x, _, crafted = run(attack, abs_model, digits, count=2)
    assert crafted.images.shape == x.shape


def test_eot_draws_come_from_the_seed(eabs_model: EABS, digits: ImageDataset) -> None:
    _, _, first = run(FGSM, eabs_model, digits, count=2, eot=2)
    _, _, second = run(FGSM, eabs_model, digits, count=2, eot=2)
    assert torch.equal(first.images, second.images)


def test_attacks_leave_no_trace(cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    run(fast_attacks["pgd-l2"], cnn, digits)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in cnn.parameters())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert str(before[2]) == str(after)


def test_restarts_find_at_least_as_much(
    cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]
) -> None:
    once = replace(fast_attacks["pgd-l2"], parameters={"steps": 1})
    _, _, single = run(once, cnn, digits, count=40)
    _, _, several = run(replace(once, restarts=4), cnn, digits, count=40)
    assert several.claimed.sum() >= single.claimed.sum()


def test_starting_points_are_labelled_otherwise_and_near(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(10))
    pool = digits.batch(slice(100, 140))
    points, found = starting_points(cnn, x, y, pool)
    assert found.all()
    assert (cnn(points).argmax(1) != y).all()
    nearest = torch.cdist(x.flatten(1), pool[0].flatten(1)).median(1).values
    assert ((points - x).flatten(1).norm(dim=1) < nearest).all()


def test_without_a_starting_point_an_image_is_left_alone(
    cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]
) -> None:
    x, y = digits.batch(slice(6))
    members = digits.labels == y[0]
    pool = digits.images[members][:5] / 255, digits.labels[members][:5]
    crafted = craft(fast_attacks["boundary"], cnn, x, y, epsilon=None, seed=0, pool=pool)
    alone = y == y[0]
    assert torch.equal(crafted.images[alone], x[alone])
    assert not crafted.claimed[alone].any()
    assert crafted.claimed[~alone].all()


def test_an_attack_that_leaves_the_images_goes_on(
    cnn: CNN, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wild(foolbox.attacks.base.MinimizationAttack):
        distance = foolbox.distances.l2

        def run(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            bad = inputs.raw.clone()
            bad[0] = torch.nan
            bad[1] = 1.4
            leaf = bad.requires_grad_()
            model(leaf).sum().backward()
            everywhere = model(astensor(torch.full_like(bad, torch.inf))).raw
            assert everywhere.isnan().all()
            return astensor(bad.detach())

    monkeypatch.setattr(foolbox.attacks, "Wild", Wild, raising=False)
    attack = Attack(key="wild", title="wild", norm="l2", kind="minimal norm", name="Wild")
    x, y, crafted = run(attack, cnn, digits)
    assert crafted.images[0].isnan().all()
    assert torch.equal(crafted.images[2:], x[2:])
    assert torch.equal(crafted.claimed[:2], y[:2] != 0)  # Foolbox takes NaN logits for class 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "LinfFastGradientAtack"}, "did you mean 'LinfFastGradientAttack'"),
        ({"name": "DDNAttack"}, "`kind` 'fixed epsilon'"),
        ({"parameters": {"stepz": 3}}, "`parameters` of 'fgsm'.*stepz"),
    ],
    ids=["name", "kind", "parameters"],
)
def test_what_the_toolkit_does_not_know_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_attack(replace(FGSM, **change))


def test_boundary_needs_a_pool(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(2))
    with pytest.raises(ValueError, match="`pool`"):
        craft(QUICK.attack("boundary"), cnn, x, y, epsilon=None, seed=0)
