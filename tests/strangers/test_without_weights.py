"""A stranger's classifier without any weight: it goes the whole road like one that has some."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import Classifier, audit, evaluate, load_dataset, strongest, verify
from genrobust.adapters import available
from genrobust.attack_view import attack_view
from genrobust.attacks import linf_pgd


class Ink(Classifier):
    """Counts ink: the class is the nearest of ten amounts."""

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 28, 28), num_classes=10)

    def logits(self, x: Tensor) -> Tensor:
        amounts = torch.linspace(0.1, 0.5, 10, dtype=x.dtype)
        return -1000 * (x.flatten(1).mean(1, keepdim=True) - amounts).square()


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    x, _ = load_dataset("digits", "test").batch(slice(6))
    return x, Ink().predict(x).labels


def test_attacks_and_verdicts(images: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = Ink(), images
    generator = torch.Generator().manual_seed(0)
    found = linf_pgd(attack_view(model), x, y, epsilon=0.2, steps=5, generator=generator)
    assert verify(model, x, y, found, norm="linf", epsilon=0.2).success.any()
    assert strongest(model, x[:2], y[:2], norm="linf", epsilon=0.2).success.any()


@pytest.mark.parametrize("toolkit", ["art", "foolbox", "robustbench", "torchattacks"])
def test_every_toolkit_takes_it(toolkit: str, images: tuple[Tensor, Tensor]) -> None:
    if toolkit not in available():
        pytest.skip(f"{toolkit} is not installed")
    model, (x, y) = Ink(), images
    if toolkit == "foolbox":
        import foolbox

        from genrobust import wrap_for_foolbox

        attack = foolbox.attacks.LinfPGD(steps=5)
        _, found, _ = attack(wrap_for_foolbox(model), x, y, epsilons=0.2)
    elif toolkit == "art":
        from art.attacks.evasion import ProjectedGradientDescent

        from genrobust import wrap_for_art

        crafted = ProjectedGradientDescent(wrap_for_art(model), eps=0.2, max_iter=5, verbose=False)
        found = torch.from_numpy(crafted.generate(x.numpy(), y.numpy()))
    elif toolkit == "torchattacks":
        import torchattacks

        from genrobust import wrap_for_torchattacks

        found = torchattacks.PGD(wrap_for_torchattacks(model), eps=0.2, steps=5)(x, y)
    else:
        from genrobust import run_autoattack

        assert run_autoattack(
            model, x[:2], y[:2], norm="linf", epsilon=0.2, version="rand"
        ).verification.success.any()
        return
    assert verify(model, x, y, found, norm="linf", epsilon=0.2).success.any()


def test_evaluate_and_audit(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    suites: Any = pytest.importorskip("genrobust.benchmarks.suites.files")
    suite = suites.load_suite("digits")
    attacks = tuple(attack for attack in suite.attacks if attack.key == "noise-linf")
    small = replace(
        suite, attacks=attacks, threat_models=suite.threat_models[:1], samples=4, baseline=None, models=()
    )
    run = evaluate(Ink(), small, out=tmp_path / "run", show_progress=False)
    assert len(run.summary().rows) >= 2
    model, (x, y) = Ink(), images
    report = audit(model, x[:4], y[:4], norm="linf", epsilon=0.1, checks=["zero gradient"])
    assert report.findings
