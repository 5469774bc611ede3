"""Attacks of the toolkits where logits saturate: on one plane between two classes, whose distance is known.

The logits are the signed distance to the plane, times a steepness. Each attack is run on the model as the
adapter wraps it, and on a bare module, which is what a toolkit would get without this package.
"""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrobust import Classifier, load_dataset, load_model
from genrobust.randomness import isolated_rng

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*scipy.ndimage.filters.*", category=DeprecationWarning)
    _advertorch, _art, _foolbox, _torchattacks = (
        pytest.importorskip(f"genrobust.adapters._{toolkit}", exc_type=ImportError)
        for toolkit in ("advertorch", "art", "foolbox", "torchattacks")
    )
    import foolbox
    import torchattacks
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore::genrobust.attack_view.InvalidQueryWarning"),
    pytest.mark.filterwarnings("ignore:At the first initialisation the optimizer:UserWarning"),
]

Run = Callable[[Any, Tensor, Tensor], Tensor]
STEEP, FLAT = 150.0, 1e-4  # margins of 30 to 90, and of 2e-5 to 6e-5


class Plane(Classifier):
    """Two classes on both sides of a plane; the logits are -+ steepness times the distance to it."""

    def __init__(self, steepness: float) -> None:
        super().__init__(input_shape=(1, 4, 4), num_classes=2)
        normal = torch.randn((16,), generator=torch.Generator().manual_seed(0))
        self.normal = nn.Parameter(normal / normal.norm())
        self.steepness = steepness

    def distance(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.normal

    def logits(self, x: Tensor) -> Tensor:
        side = self.steepness * self.distance(x)
        return torch.stack([-side, side], 1)


class Bare(nn.Module):
    """The logits of a model for a toolkit, without adapter."""

    def __init__(self, model: Plane) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.logits(x)


def interior(model: Plane, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Images around the centre, their classes, and their distances from the plane: 0.1 to 0.3."""
    wanted = torch.linspace(0.1, 0.3, count) * torch.tensor([1.0, -1.0]).repeat(count // 2)
    x = 0.5 + 0.2 * (torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(1)) - 0.5)
    x = (x + (wanted - model.distance(x))[:, None, None, None] * model.normal.view(1, 1, 4, 4)).detach()
    return x, (wanted > 0).long(), wanted.abs()


def foolbox_model(model: Plane, bare: bool) -> Any:
    return foolbox.PyTorchModel(Bare(model).eval(), (0, 1)) if bare else _foolbox.wrap_for_foolbox(model)


def torchattacks_model(model: Plane, bare: bool) -> Any:
    return Bare(model).eval() if bare else _torchattacks.wrap_for_torchattacks(model)


def advertorch_model(model: Plane, bare: bool) -> Any:
    return Bare(model).eval() if bare else _advertorch.wrap_for_advertorch(model)


def art_model(model: Plane, bare: bool) -> Any:
    if not bare:
        return _art.wrap_for_art(model)
    loss = nn.CrossEntropyLoss(reduction="sum")
    return PyTorchClassifier(Bare(model), loss, (1, 4, 4), 2, clip_values=(0.0, 1.0), device_type="cpu")


def advlib_model(model: Plane, bare: bool) -> Any:
    adapter = pytest.importorskip("genrobust.adapters._advlib", exc_type=ImportError)
    return Bare(model).eval() if bare else adapter.wrap_for_advlib(model)


def secml_model(model: Plane, bare: bool) -> Any:
    adapter = pytest.importorskip("genrobust.adapters._secmltorch", exc_type=ImportError)
    return adapter.BasePyTorchClassifier(Bare(model).eval()) if bare else adapter.wrap_for_secml(model)


def by_foolbox(attack: Any, epsilon: float | None = None) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = attack(target, x, y, epsilons=epsilon)[1]
        return found

    return run


def by_torchattacks(kind: str, **settings: Any) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = getattr(torchattacks, kind)(target, **settings)(x, y)
        return found.detach()

    return run


def by_advertorch(kind: str, **settings: Any) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        attacks = _advertorch.import_advertorch().attacks
        found: Tensor = getattr(attacks, kind)(target, **settings).perturb(x, y)
        return found.detach()

    return run


def by_art(kind: str, **settings: Any) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(getattr(evasion, kind)(target, **settings).generate(x.numpy(), y.numpy()))

    return run


def by_advlib(kind: str, **settings: Any) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        from genrobust import import_advlib

        found: Tensor = getattr(import_advlib().attacks, kind)(target, x, y, **settings)
        return found.detach()

    return run


def by_secml(kind: str, **settings: Any) -> Run:
    def run(target: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = import_module("genrobust.adapters._secmltorch")._kind(kind)(**settings)
        found: Tensor = attack(target, DataLoader(TensorDataset(x, y), batch_size=len(x))).dataset.tensors[0]
        return found.detach()

    return run


BALL = 0.45  # 1.5 times the largest distance
FIXED: dict[str, tuple[Any, Run]] = {
    "foolbox": (
        foolbox_model,
        by_foolbox(foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.125, random_start=False), BALL),
    ),
    "torchattacks": (
        torchattacks_model,
        by_torchattacks("PGDL2", eps=BALL, alpha=BALL / 8, steps=20, random_start=False),
    ),
    "advertorch": (
        advertorch_model,
        by_advertorch(
            "L2PGDAttack",
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            eps=BALL,
            nb_iter=20,
            eps_iter=BALL / 8,
            rand_init=False,
        ),
    ),
    "art": (
        art_model,
        by_art(
            "AutoProjectedGradientDescent",
            norm=2,
            eps=BALL,
            eps_step=BALL / 8,
            max_iter=20,
            nb_random_init=1,
            verbose=False,
        ),
    ),
    "secml": (
        secml_model,
        by_secml(
            "PGDNative",
            perturbation_model="l2",
            epsilon=BALL,
            num_steps=21,
            step_size=BALL / 8,
            random_start=False,
        ),
    ),
    "foolbox adam": (
        foolbox_model,
        by_foolbox(
            foolbox.attacks.L2AdamPGD(steps=20, rel_stepsize=0.125, random_start=False),
            BALL,
        ),
    ),
}


def run(kind: Run, wrap: Any, model: Plane, *, bare: bool) -> tuple[Tensor, Tensor]:
    """Returns which images end on the other side, and how far they have moved."""
    x, y, _ = interior(model)
    with isolated_rng(0):
        found = kind(wrap(model, bare), x.clone(), y.clone())
    moved = (found - x).flatten(1).norm(dim=1)
    return (model.distance(found).detach() > 0) != (y == 1), moved


@pytest.mark.parametrize("name", FIXED)
def test_an_attack_in_a_ball_leaves_the_saturated_class(name: str) -> None:
    wrap, kind = FIXED[name]
    model = Plane(STEEP)
    crossed, moved = run(kind, wrap, model, bare=False)
    assert crossed.all()
    assert (moved <= BALL * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", ["foolbox", "torchattacks", "advertorch"])
def test_without_the_view_it_stays_there(name: str) -> None:
    wrap, kind = FIXED[name]
    crossed, moved = run(kind, wrap, Plane(STEEP), bare=True)
    assert not crossed.all()
    assert moved.min() < 0.01


MINIMAL: dict[str, tuple[Any, Run]] = {
    "foolbox deepfool": (foolbox_model, by_foolbox(foolbox.attacks.L2DeepFoolAttack(overshoot=0.02))),
    "foolbox cw": (
        foolbox_model,
        by_foolbox(foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=200)),
    ),
    "foolbox ddn": (foolbox_model, by_foolbox(foolbox.attacks.DDNAttack(steps=100))),
    "foolbox fmn": (foolbox_model, by_foolbox(foolbox.attacks.L2FMNAttack(steps=100))),
    "foolbox ead": (
        foolbox_model,
        by_foolbox(foolbox.attacks.EADAttack(binary_search_steps=6, steps=200, regularization=0.0)),
    ),
    "torchattacks deepfool": (torchattacks_model, by_torchattacks("DeepFool")),
    "torchattacks fab": (
        torchattacks_model,
        by_torchattacks("FAB", norm="L2", eps=1.0, n_classes=2, multi_targeted=False, steps=20),
    ),
    "advertorch fab": (
        advertorch_model,
        by_advertorch("L2FABAttack", n_restarts=1, n_iter=20, eps=1.0, alpha_max=0.1, eta=1.05, beta=0.9),
    ),
    "advlib ddn": (advlib_model, by_advlib("ddn", steps=100, levels=None)),
    "advlib fmn": (advlib_model, by_advlib("fmn", norm=2, steps=100)),
    "advlib superdeepfool": (advlib_model, by_advlib("sdf")),
    "secml ddn": (secml_model, by_secml("DDNNative", num_steps=100, eps_init=1.0)),
    "art deepfool": (art_model, by_art("DeepFool", max_iter=20, nb_grads=2, verbose=False)),
    "art cw": (
        art_model,
        by_art("CarliniL2Method", max_iter=20, binary_search_steps=8, batch_size=8, verbose=False),
    ),
}


@pytest.mark.parametrize("steepness", [FLAT, 1.0, STEEP])
@pytest.mark.parametrize("name", MINIMAL)
def test_a_minimal_norm_attack_is_no_worse_than_without_the_view(name: str, steepness: float) -> None:
    wrap, kind = MINIMAL[name]
    model = Plane(steepness)
    crossed, moved = run(kind, wrap, model, bare=False)
    crossed_bare, moved_bare = run(kind, wrap, model, bare=True)
    assert (crossed | ~crossed_bare).all()
    both = crossed & crossed_bare
    assert (moved[both] <= 1.001 * moved_bare[both] + 1e-4).all()
    # ART stops short of a plane between logits that differ by 1e-5.
    if name.endswith(("deepfool", "fab")) and not (name.startswith("art") and steepness == FLAT):
        assert crossed.all()
        assert (moved <= 1.05 * interior(model)[2]).all()


@pytest.mark.slow
@pytest.mark.parametrize("toolkit", ["foolbox", "torchattacks"])
def test_nothing_of_the_shipped_vade_is_robust_by_saturation(toolkit: str) -> None:
    """PGD without random start found nothing for a fifth of these images, whose margins are 20 and more."""
    model, (x, y) = load_model("vade", dataset="digits"), load_dataset("digits", "test").batch(slice(12))
    if toolkit == "foolbox":
        attack = foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.125, random_start=False)
        found = attack(_foolbox.wrap_for_foolbox(model), x, y, epsilons=2.0)[1]
    else:
        target = _torchattacks.wrap_for_torchattacks(model)
        found = torchattacks.PGDL2(target, eps=2.0, alpha=0.25, steps=20, random_start=False)(x, y)
    with torch.no_grad():
        robust = model(found).argmax(1) == y
    moved = (found - x).flatten(1).norm(dim=1)
    assert (moved > 1).float().mean() > 0.9
    assert robust.float().mean() < 0.05
