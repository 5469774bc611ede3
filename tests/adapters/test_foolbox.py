import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from victims import bright_images, spread_decisions

from genrobust import load_dataset, load_model, verify
from genrobust.attack_view import InvalidQueryWarning
from genrobust.eot import expectation
from genrobust.gradients import Estimated, Unrolled
from genrobust.randomness import isolated_rng

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*scipy.ndimage.filters.*", category=DeprecationWarning)
    foolbox = pytest.importorskip("foolbox")
    from genrobust import wrap_for_foolbox

Make = Callable[..., Any]
each_model = pytest.mark.parametrize("name", ["cnn", "abs", "eabs"])

GRADIENT_ATTACKS = {
    "FGSM": foolbox.attacks.LinfFastGradientAttack(),
    "LinfPGD": foolbox.attacks.LinfPGD(steps=6, rel_stepsize=0.25),
    "L2PGD": foolbox.attacks.L2PGD(steps=6, rel_stepsize=0.25),
}
MINIMISING_ATTACKS = {
    "L2DeepFool": foolbox.attacks.L2DeepFoolAttack(steps=5, candidates=3),
    "L2CarliniWagner": foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=2, steps=10, stepsize=0.2, initial_const=10
    ),
    "DDN": foolbox.attacks.DDNAttack(steps=6),
}
NOISE_ATTACKS = {
    "L2Noise": foolbox.attacks.L2AdditiveGaussianNoiseAttack(),
    "LinfNoise": foolbox.attacks.LinfAdditiveUniformNoiseAttack(),
    "L2RepeatedNoise": foolbox.attacks.L2RepeatedAdditiveGaussianNoiseAttack(repeats=20),
}


@pytest.fixture
def make_victim(make_model: Make) -> Make:
    def make(name: str) -> Any:
        model = make_model(name)
        if name == "cnn":
            spread_decisions(model)
        return model

    return make


def pool(model: Any, count: int = 60) -> tuple[Tensor, Tensor]:
    """Images, and what the model decides about them."""
    x = bright_images(model, count)
    with torch.no_grad():
        labels = model(x).argmax(1)
    assert labels.unique().numel() > 1
    return x, labels


def chosen(model: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    x, labels = pool(model)
    rows = torch.linspace(0, len(x) - 1, count).long()
    return x[rows], labels[rows]


def run_attack(attack: Any, fmodel: Any, x: Tensor, criterion: Any, **settings: Any) -> tuple[Any, Any, Any]:
    with isolated_rng(0):
        return attack(fmodel, x, criterion, **settings)


def input_gradient(model: Any, x: Tensor, labels: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(leaf), labels, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none").double()


def assert_valid(model: Any, x: Tensor, labels: Tensor, clipped: Tensor, is_adversarial: Tensor) -> None:
    assert clipped.shape == x.shape
    assert clipped.isfinite().all()
    assert clipped.min() >= 0
    assert clipped.max() <= 1
    assert torch.equal(is_adversarial, model.predict(clipped).labels != labels)


# The wrapper.


@each_model
def test_the_wrapped_model_is_foolboxs_own(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    fmodel = wrap_for_foolbox(model)
    assert isinstance(fmodel, foolbox.models.Model)
    assert tuple(fmodel.bounds) == (0, 1)
    assert fmodel.device == next(model.parameters()).device
    assert fmodel.data_format == "channels_first"
    x, labels = chosen(model)
    assert torch.equal(fmodel(x), model(x))
    assert foolbox.utils.accuracy(fmodel, x, labels) == 1


@each_model
def test_logits_need_a_gradient_where_images_do(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, _ = chosen(model)
    assert not wrap_for_foolbox(model)(x).requires_grad
    assert wrap_for_foolbox(model)(x.requires_grad_()).requires_grad


@each_model
def test_wrapping_changes_nothing(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    expected, weights = model(x), [parameter.clone() for parameter in model.parameters()]
    run_attack(foolbox.attacks.LinfPGD(steps=2), wrap_for_foolbox(model), x, labels, epsilons=0.1)
    assert torch.equal(model(x), expected)
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_model_refuses_foolbox_reports(make_victim: Make) -> None:
    model = make_victim("cnn")
    x, _ = chosen(model)
    with pytest.raises(ValueError, match=r"`x` in \[0, 1\], but got a maximum of .*: divide by 255"):
        wrap_for_foolbox(model)((x * 255).round())


@each_model
def test_the_gradient_is_the_models_own_at_the_bounds_too(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    x[:, :, :2], x[:, :, 2:4] = 0, 1
    expected = input_gradient(model, x, labels)
    assert (expected[:, :, :4] != 0).any()
    torch.testing.assert_close(input_gradient(wrap_for_foolbox(model), x, labels), expected)


def test_one_answer_is_differentiated_several_times(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen(model)
    leaf = x.requires_grad_()
    logits = wrap_for_foolbox(model)(leaf)
    first, second = (torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in (0, 1))
    assert not torch.equal(first, second)
    torch.testing.assert_close(
        first, torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_answered_nan(value: float, make_victim: Make) -> None:
    model = make_victim("cnn")
    x, _ = chosen(model)
    x[1, 0, 2, 2] = value
    with pytest.warns(InvalidQueryWarning):
        logits = wrap_for_foolbox(model)(x)
    assert logits[1].isnan().all()
    assert torch.equal(logits[[0, 2, 3]], model(x[[0, 2, 3]]))


@each_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_any_floating_dtype_are_attacked(name: str, dtype: torch.dtype, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    _, clipped, _ = run_attack(
        GRADIENT_ATTACKS["LinfPGD"], wrap_for_foolbox(model), x.to(dtype), labels, epsilons=0.2
    )
    assert clipped.dtype == dtype
    assert (losses(model, clipped, labels) > losses(model, x, labels)).all()


@pytest.mark.parametrize("name", ["cnn", "eabs"])
def test_models_in_double_precision_are_attacked(name: str, make_model: Make) -> None:
    model = make_model(name, dtype=torch.float64)
    x = bright_images(model, 4).double()
    labels = model(x).argmax(1)
    _, clipped, _ = run_attack(GRADIENT_ATTACKS["LinfPGD"], wrap_for_foolbox(model), x, labels, epsilons=0.2)
    assert clipped.dtype == torch.float64
    assert (losses(model, clipped, labels) > losses(model, x, labels)).all()


# Attacks.


@each_model
def test_fgsm_steps_along_the_sign_of_the_models_gradient(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    _, clipped, _ = run_attack(GRADIENT_ATTACKS["FGSM"], wrap_for_foolbox(model), x, labels, epsilons=0.1)
    expected = x + 0.1 * input_gradient(model, x, labels).sign()
    torch.testing.assert_close(clipped, expected.clamp(0, 1))


@each_model
@pytest.mark.parametrize("attack", GRADIENT_ATTACKS)
def test_gradient_attacks_raise_the_loss_within_epsilon(name: str, attack: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    norm, epsilon = (2, 1.0) if attack.startswith("L2") else (float("inf"), 0.2)
    _, clipped, success = run_attack(
        GRADIENT_ATTACKS[attack], wrap_for_foolbox(model), x, labels, epsilons=epsilon
    )
    assert_valid(model, x, labels, clipped, success)
    assert (clipped - x).flatten(1).norm(dim=1, p=norm).max() <= epsilon * (1 + 1e-5)
    assert (losses(model, clipped, labels) > losses(model, x, labels)).all()


@each_model
@pytest.mark.parametrize("attack", MINIMISING_ATTACKS)
def test_minimising_attacks_run(name: str, attack: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    _, clipped, success = run_attack(
        MINIMISING_ATTACKS[attack], wrap_for_foolbox(model), x, labels, epsilons=None
    )
    assert_valid(model, x, labels, clipped, success)
    assert success.any()


@each_model
@pytest.mark.parametrize("attack", NOISE_ATTACKS)
def test_noise_attacks_run(name: str, attack: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    _, clipped, success = run_attack(
        NOISE_ATTACKS[attack], wrap_for_foolbox(model), x, labels, epsilons=[0.1, 4.0]
    )
    for images, adversarial in zip(clipped, success, strict=True):
        assert_valid(model, x, labels, images, adversarial)
    assert (clipped[1] - x).norm() > (clipped[0] - x).norm()
    assert success[1].any()


@each_model
def test_the_boundary_attack_comes_closer_from_its_starting_points(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    images, decisions = pool(model)
    x, labels = chosen(model)
    starts = torch.stack([images[decisions != label][0] for label in labels])
    attack = foolbox.attacks.BoundaryAttack(steps=20, tensorboard=False)
    _, clipped, success = run_attack(
        attack, wrap_for_foolbox(model), x, labels, starting_points=starts, epsilons=None
    )
    assert_valid(model, x, labels, clipped, success)
    assert success.all()
    before, after = ((images - x).flatten(1).norm(dim=1) for images in (starts, clipped))
    assert (after <= before).all()
    assert after.mean() < before.mean()


@pytest.mark.parametrize("name", ["abs", "eabs"])
@pytest.mark.parametrize("gradient", [Unrolled(steps=2), Estimated(pairs=10)], ids=["unrolled", "estimated"])
def test_attacks_take_any_surrogate_gradient(name: str, gradient: Any, make_victim: Make) -> None:
    model = make_victim(name).with_gradient(gradient)
    x, labels = chosen(model, 2)
    _, clipped, success = run_attack(
        foolbox.attacks.LinfPGD(steps=2, random_start=False), wrap_for_foolbox(model), x, labels, epsilons=0.2
    )
    assert_valid(model, x, labels, clipped, success)
    assert (losses(model, clipped, labels) > losses(model, x, labels)).all()


@pytest.mark.slow
def test_the_default_gradient_finds_what_the_envelope_masks() -> None:
    images, labels = load_dataset("digits", "test").batch(slice(30))
    model = load_model("vade", dataset="digits").with_inference(steps=5)
    attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.2)
    left = []
    for attacked in (model.with_gradient("envelope"), model):
        _, adversarial, _ = run_attack(attack, wrap_for_foolbox(attacked), images, labels, epsilons=0.1)
        verdict = verify(model, images, labels, adversarial, norm="linf", epsilon=0.1)
        left.append(1 - float(verdict.success.float().mean()))
    masked, honest = left
    assert honest < 0.5 * masked


@each_model
def test_targeted_attacks_lower_the_loss_of_their_target(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    target = (labels + 1) % model.num_classes
    criterion = foolbox.criteria.TargetedMisclassification(target)
    _, clipped, _ = run_attack(
        foolbox.attacks.LinfPGD(steps=5), wrap_for_foolbox(model), x, criterion, epsilons=0.2
    )
    assert (losses(model, clipped, target) < losses(model, x, target)).all()


@each_model
def test_an_attack_is_the_same_for_the_same_seed(name: str, make_victim: Make) -> None:
    model = make_victim(name)
    x, labels = chosen(model)
    first, second = (
        run_attack(foolbox.attacks.LinfPGD(steps=3), wrap_for_foolbox(model), x, labels, epsilons=0.1)[1]
        for _ in range(2)
    )
    assert torch.equal(first, second)


# Expectation over transformation.


def test_eot_queries_the_expectation(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, _ = chosen(model)
    fmodel = wrap_for_foolbox(model, eot=3, seed=5)
    expected = expectation(model, 3, generator=torch.Generator().manual_seed(5))
    first, second = fmodel(x), fmodel(x)
    assert torch.equal(first, expected(x))
    assert torch.equal(second, expected(x))
    assert not torch.equal(first, second)
    assert not torch.equal(wrap_for_foolbox(model, eot=3, seed=6)(x), first)
    assert tuple(fmodel.bounds) == (0, 1)


def test_attacks_run_under_eot(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen(model)
    _, clipped, _ = run_attack(
        GRADIENT_ATTACKS["LinfPGD"], wrap_for_foolbox(model, eot=3), x, labels, epsilons=0.2
    )
    rescored = expectation(model, 20)
    assert losses(rescored, clipped, labels).mean() > losses(rescored, x, labels).mean()


def test_the_layout_of_images_is_known_under_eot(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen(model)
    fmodel = wrap_for_foolbox(model, eot=2)
    assert fmodel.data_format == "channels_first"
    attack = foolbox.attacks.GaussianBlurAttack(steps=5)
    _, clipped, _ = run_attack(attack, fmodel, x, labels, epsilons=None)
    assert clipped.shape == x.shape


BLEND = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(steps=10)
RANDOM_WALKS = {
    "Boundary": foolbox.attacks.BoundaryAttack(BLEND, steps=5),
    "HopSkipJump": foolbox.attacks.HopSkipJumpAttack(BLEND, steps=1, initial_gradient_eval_steps=5),
    "Pointwise": foolbox.attacks.PointwiseAttack(
        foolbox.attacks.SaltAndPepperNoiseAttack(steps=10), l2_binary_search=False
    ),
}


@pytest.mark.parametrize(
    "attack",
    ["Boundary", *(pytest.param(name, marks=pytest.mark.slow) for name in ("HopSkipJump", "Pointwise"))],
)
def test_decision_attacks_find_their_start_on_a_random_model(attack: str, make_victim: Make) -> None:
    model = make_victim("eabs").with_inference(candidates=8, steps=0)
    fmodel = wrap_for_foolbox(model, eot=5, output="decisions")
    noise = fmodel(torch.rand((20, *model.input_shape), generator=torch.Generator().manual_seed(0)))
    x = bright_images(model)
    labels = fmodel(x).argmax(1)
    unlike_noise = (labels != noise.argmax(1).mode().values).nonzero()[:4, 0]
    x, labels = x[unlike_noise], labels[unlike_noise]
    _, clipped, success = run_attack(RANDOM_WALKS[attack], fmodel, x, labels, epsilons=None)
    assert success.all()
    assert (fmodel(clipped).argmax(1) != labels).all()


def test_decisions_have_no_gradient(make_victim: Make) -> None:
    model = make_victim("eabs")
    x, labels = chosen(model)
    with pytest.raises(RuntimeError, match="does not require grad"):
        run_attack(
            GRADIENT_ATTACKS["FGSM"],
            wrap_for_foolbox(model, eot=3, output="decisions"),
            x,
            labels,
            epsilons=0.1,
        )


@pytest.mark.parametrize(
    ("name", "eot", "message"),
    [
        ("eabs", 0, "`eot` to be at least 1, but got 0"),
        ("cnn", 0, "`eot` to be at least 1, but got 0"),
        ("cnn", 2, "`eot` of 1 for CNN, which draws no noise, but got 2"),
        ("abs", 2, "`eot` of 1 for ABS, which draws no noise, but got 2"),
    ],
)
def test_impossible_expectations(name: str, eot: int, message: str, make_victim: Make) -> None:
    with pytest.raises(ValueError, match=message):
        wrap_for_foolbox(make_victim(name), eot=eot)


@pytest.mark.slow
def test_foolboxs_zoo_finds_a_model_in_a_clone_of_this_repository(tmp_path: Path) -> None:
    git = pytest.importorskip("git", reason="GitPython needs git", exc_type=ImportError)
    repository = git.Repo.init(tmp_path / "genrobust")
    shutil.copy(Path(__file__).parents[2] / "foolbox_model.py", repository.working_dir)
    repository.index.add(["foolbox_model.py"])
    author = git.Actor("somebody", "somebody@example.org")
    repository.index.commit("Foolbox's convention", author=author, committer=author)
    code = f"""if True:
        import foolbox, torch
        url = {(tmp_path / "genrobust").as_uri()!r}
        fmodel = foolbox.zoo.get_model(url, model="eabs", dataset="digits", eot=2)
        assert isinstance(fmodel, foolbox.models.Model)
        assert fmodel(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    """
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
