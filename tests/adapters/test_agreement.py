"""The toolkits give the same answer where they compute the same thing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gaussians import CLASSES, Gaussians, drawn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrobust import Classifier, SelectiveClassifier
from genrobust.randomness import isolated_rng
from genrobust.selective import calibrate_detector

_advertorch, _art, _foolbox, _torchattacks = (
    pytest.importorskip(f"genrobust.adapters._{toolkit}", exc_type=ImportError)
    for toolkit in ("advertorch", "art", "foolbox", "torchattacks")
)
import foolbox  # noqa: E402
import torchattacks  # noqa: E402

Make = Callable[..., Any]

STEPS, STEP, EPSILON = 8, 0.02, 0.1
L2_STEP, L2_EPSILON = 0.12, 0.5


def by_foolbox(model: Classifier, x: Tensor, y: Tensor, norm: str, *, steps: int = STEPS) -> Tensor:
    attacks = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    step, epsilon = (STEP, EPSILON) if norm == "linf" else (L2_STEP, L2_EPSILON)
    attack = attacks[norm](steps=steps, abs_stepsize=step, random_start=False)
    clipped: Tensor = attack(_foolbox.wrap_for_foolbox(model), x, y, epsilons=epsilon)[1]
    return clipped


def by_art(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    step, epsilon = (STEP, EPSILON) if norm == "linf" else (L2_STEP, L2_EPSILON)
    attack = ProjectedGradientDescentPyTorch(
        _art.wrap_for_art(model),
        norm=np.inf if norm == "linf" else 2,
        eps=epsilon,
        eps_step=step,
        max_iter=STEPS,
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def by_advertorch(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    attacks = _advertorch.import_advertorch().attacks
    kind = attacks.LinfPGDAttack if norm == "linf" else attacks.L2PGDAttack
    step, epsilon = (STEP, EPSILON) if norm == "linf" else (L2_STEP, L2_EPSILON)
    attack = kind(
        _advertorch.wrap_for_advertorch(model),
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        eps=epsilon,
        nb_iter=STEPS,
        eps_iter=step,
        rand_init=False,
    )
    perturbed: Tensor = attack.perturb(x, y)
    return perturbed


def by_torchattacks(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    wrapped = _torchattacks.wrap_for_torchattacks(model)
    if norm == "linf":
        attack = torchattacks.PGD(wrapped, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False)
    else:
        attack = torchattacks.PGDL2(wrapped, eps=L2_EPSILON, alpha=L2_STEP, steps=STEPS, random_start=False)
    perturbed: Tensor = attack(x, y)
    return perturbed


BY_TOOLKIT = {
    "art": by_art,
    "advertorch": by_advertorch,
    "foolbox": by_foolbox,
    "torchattacks": by_torchattacks,
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["cnn", "eabs"])
def test_the_same_pgd_gives_the_same_images_in_all_four(
    name: str, norm: str, make_model: Make, images: Callable[..., Tensor]
) -> None:
    model = make_model(name)
    # Away from 0 and 1: AdverTorch clips before it projects on the L2 ball, the others after.
    x = 0.35 + 0.3 * images(model, 6)
    y = model(x).argmax(1)
    with isolated_rng(0):
        results = {toolkit: attack(model, x, y, norm) for toolkit, attack in BY_TOOLKIT.items()}
    assert (results["foolbox"] - x).abs().max() > 0.05
    for toolkit, x_adv in results.items():
        torch.testing.assert_close(x_adv, results["foolbox"], atol=1e-5, rtol=0, msg=toolkit)


def by_advlib(model: Classifier, x: Tensor, y: Tensor, _: str) -> tuple[Tensor, Tensor]:
    """Returns the last image that fools the model, here after all steps."""
    _advlib = pytest.importorskip("genrobust.adapters._advlib", exc_type=ImportError)
    settings = {"ε": EPSILON, "steps": STEPS + 1, "absolute_step_size": STEP, "random_init": False}
    found = _advlib.import_advlib().attacks.pgd_linf(_advlib.wrap_for_advlib(model), x.clone(), y, **settings)
    return found, torch.full((len(x),), STEPS)


def by_secmltorch(model: Classifier, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Returns the images of the greatest loss, and after how many steps each was found."""
    _secmltorch = pytest.importorskip("genrobust.adapters._secmltorch", exc_type=ImportError)
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.trackers.trackers import LossTracker

    step, epsilon = (STEP, EPSILON) if norm == "linf" else (L2_STEP, L2_EPSILON)
    attack = PGD(norm, epsilon, STEPS + 1, step, backend="native", trackers=[losses := LossTracker()])
    batch = DataLoader(TensorDataset(x, y), batch_size=len(x))
    found: Tensor = attack(_secmltorch.wrap_for_secml(model), batch).dataset.tensors[0]
    return found, losses.get().argmax(1)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(by_advlib, "linf"), (by_secmltorch, "linf"), (by_secmltorch, "l2")],
    ids=["advlib-linf", "secmltorch-linf", "secmltorch-l2"],
)
@pytest.mark.parametrize("name", ["cnn", "eabs"])
def test_so_do_the_two_that_keep_the_best_image(
    name: str, attack: Make, norm: str, make_model: Make, images: Callable[..., Tensor]
) -> None:
    """Neither looks at the image after its last step, so that both are given one step more."""
    model = make_model(name)
    x = 0.35 + 0.3 * images(model, 12)
    y = model(x).argsort(1)[:, -2 if attack is by_advlib else -1]  # adv-lib keeps what is not labelled so
    with isolated_rng(0):
        found, steps = attack(model, x, y, norm)
        for count in steps.unique().tolist():
            there = steps == count
            expected = by_foolbox(model, x, y, norm, steps=count) if count else x
            torch.testing.assert_close(found[there], expected[there], atol=1e-5, rtol=0)
    assert (steps > STEPS // 2).any()


class Table(Classifier):
    """Three classes and "reject": the first four pixels are the logits."""

    rejects = True

    def __init__(self) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=3)
        self.scale = nn.Parameter(torch.ones(()))

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def test_the_four_criteria_agree_with_rejection_planted() -> None:
    """64 cases: every one of 4 decisions x 3 labels, and random ones, of which some are rejected."""
    model = Table()
    generator = torch.Generator().manual_seed(0)
    x_adv = torch.rand(64, 1, 2, 2, generator=generator)
    x_adv[:12] = torch.eye(4).repeat(3, 1).reshape(12, 1, 2, 2)
    y = torch.randint(3, (64,), generator=generator)
    y[:12] = torch.arange(3).repeat_interleave(4)
    decision = x_adv.flatten(1).argmax(1)
    expected = (decision != y) & (decision != 3)
    assert {0, 1, 2, 3} == set(decision.tolist())
    assert 20 < expected.sum() < 44

    assert_criteria_agree(model, x_adv, y, expected)


def test_the_four_criteria_agree_on_a_classifier_that_refuses() -> None:
    gaussians = Gaussians().float()
    x, y = drawn(Gaussians(), 200)
    detector = calibrate_detector("marginal", gaussians, x.float(), y, false_positive_rate=0.3)
    model = SelectiveClassifier(gaussians, [detector])
    labels = torch.randint(CLASSES, (200,), generator=torch.Generator().manual_seed(7))
    prediction = model.predict(x.float())
    expected = (gaussians(x.float()).argmax(1) != labels) & ~detector.flags(gaussians, x.float(), labels)
    assert (prediction.rejected & (gaussians(x.float()).argmax(1) != labels)).any()
    assert 40 < expected.sum() < 160
    assert_criteria_agree(model, x.float(), labels, expected)


def assert_criteria_agree(model: Classifier, x_adv: Tensor, y: Tensor, expected: Tensor) -> None:
    from foolbox.criteria import Criterion

    fmodel = _foolbox.wrap_for_foolbox(model)
    criterion: Criterion = _foolbox.WrongAndAccepted(y, num_classes=3)
    assert torch.equal(criterion(x_adv, fmodel(x_adv)), expected)
    estimator = _art.wrap_for_art(model)
    assert np.array_equal(_art.successes(estimator, x_adv.numpy(), y.numpy()), expected.numpy())
    predict = _advertorch.wrap_for_advertorch(model)
    assert torch.equal(_advertorch.successes(predict, x_adv, y), expected)
    wrapped = _torchattacks.wrap_for_torchattacks(model)
    assert torch.equal(_torchattacks.successes(wrapped, x_adv, y), expected)
