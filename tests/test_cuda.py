"""The contract on a CUDA device: it needs one, and skips without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genrobust import load_dataset, verify
from genrobust.attack_view import attack_view
from genrobust.attacks import pgd
from genrobust.benchmarks.speed.measure import measure_against_reference, measure_scaling
from genrobust.models import CNN
from genrobust.purifiers import RobustDiffusionClassifier
from genrobust.training.loop import TrainingConfig, fit

Make = Callable[..., Any]
LATENT = ["abs", "eabs", "vade"]
MODELS = [*LATENT, "bnn", "gmvae", "deep-bayes", "diffusion", "cnn", "flow", "pixelcnn", "purified"]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
each_model = pytest.mark.parametrize("name", MODELS)


def quick(model: Any) -> Any:
    cheap = {"candidates": 50, "steps": 3, "expectation_draws": 1, "samples": 2}
    known = {name: value for name, value in cheap.items() if name in getattr(model, "inference", {})}
    return model.with_inference(**known) if known else model


@each_model
def test_a_model_decides_on_the_device_as_on_the_cpu(name: str, make_model: Make, images: Make) -> None:
    model = quick(make_model(name, dtype=torch.float64))
    x = images(model, 6)
    with torch.no_grad():
        expected = model(x)
        found = model.cuda()(x.cuda())
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    model.cpu()


@each_model
def test_the_gradient_in_the_image_is_finite_and_that_of_the_cpu(
    name: str, make_model: Make, images: Make
) -> None:
    model = quick(make_model(name, dtype=torch.float64))
    x = images(model, 3)

    def gradient(device: str) -> torch.Tensor:
        leaf = x.to(device).clone().requires_grad_()
        [found] = torch.autograd.grad(model.to(device)(leaf).logsumexp(1).sum(), leaf)
        return found.cpu()

    expected, found = gradient("cpu"), gradient("cuda")
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    model.cpu()


@each_model
def test_the_contract_holds_there(name: str, make_model: Make, images: Make) -> None:
    model = quick(make_model(name, dtype=torch.float64)).cuda()
    x = images(model, 4).cuda()
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x), logits)
        torch.testing.assert_close(model(x[2:]), logits[2:], rtol=1e-3, atol=1e-3)
        assert model(x[:0]).shape == (0, model.num_classes)
    prediction = model.predict(x)
    assert prediction.labels.device.type == "cuda"
    assert torch.equal(prediction.labels, logits.argmax(1))
    with pytest.raises(ValueError, match="where the model is, but got meta"):
        model(x.to("meta"))
    model.cpu()


@pytest.mark.parametrize("name", ["bnn", "deep-bayes", "diffusion", "eabs"])
def test_fresh_noise_is_drawn_again_and_not_from_the_global_generator(
    name: str, make_model: Make, images: Make
) -> None:
    model = quick(make_model(name)).cuda().with_randomness("fresh", seed=1)
    x, before = images(model, 4).cuda(), torch.cuda.get_rng_state()
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    model.cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_model
def test_autocast_changes_no_answer(name: str, dtype: torch.dtype, make_model: Make, images: Make) -> None:
    model = quick(make_model(name)).cuda()
    x = images(model, 4).cuda()
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cuda", dtype):
            found = model(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    model.cpu()


@pytest.mark.parametrize("name", [*LATENT, "deep-bayes", "diffusion", "purified"])
def test_every_gradient_is_finite(name: str, make_model: Make, images: Make) -> None:
    model = quick(make_model(name)).cuda()
    x = images(model, 2).cuda()
    for gradient in model.gradients:
        leaf = x.clone().requires_grad_()
        [found] = torch.autograd.grad(model.with_gradient(gradient)(leaf).logsumexp(1).sum(), leaf)
        assert found.isfinite().all(), gradient
    model.cpu()


@pytest.mark.parametrize("gradient", ["through", "unrolled", "bpda"])
def test_likelihood_maximisation_runs(gradient: str, make_model: Make, images: Make) -> None:
    model = RobustDiffusionClassifier(quick(make_model("diffusion"))).cuda().with_gradient(gradient)
    leaf = images(model, 2).cuda().requires_grad_()
    [found] = torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)
    assert found.isfinite().all()


def test_an_attack_ends_in_the_ball_on_the_device(make_model: Make, images: Make) -> None:
    model = quick(make_model("eabs")).cuda()
    x = images(model, 4).cuda()
    y = model(x).argmax(1)
    found = pgd(attack_view(model), x, y, epsilon=0.2, norm="linf", steps=3, step_size=0.1)
    assert found.device.type == "cuda"
    assert verify(model, x, y, found, norm="linf", epsilon=0.2).distance.amax() <= 0.2 + 1e-5
    model.cpu()


@pytest.mark.parametrize("method", ["mean", "bfgs", "adam"])
def test_every_refinement_runs(method: str, make_model: Make, images: Make) -> None:
    model = make_model("eabs").cuda().with_inference(candidates=50, steps=3, method=method)
    assert model(images(model, 4).cuda()).isfinite().all()
    model.cpu()


@pytest.mark.parametrize("name", ["abs", "eabs", "vade", "cnn"])
def test_a_training_step_with_autocast_lowers_no_precision_of_the_loss(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name).cuda().train()
    x, y = images(model, 8).cuda(), torch.arange(8).cuda() % model.num_classes
    for phase, parameters in model.phases.items():
        batch = x[:, None].expand(-1, model.num_classes, -1, -1, -1) if model.class_balanced else x
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.training_loss(phase, batch, y)
        loss.backward()
        assert loss.isfinite()
        assert any(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    model.cpu()


def test_a_verdict_takes_images_of_the_device(make_model: Make, images: Make) -> None:
    model = quick(make_model("eabs")).cuda()
    x = images(model, 4).cuda()
    y = model(x).argmax(1)
    found = verify(model, x, y, x.clone(), norm="l2", epsilon=0.5)
    assert found.success.shape == (4,)
    model.cpu()


def test_the_loop_trains_there_and_leaves_a_model_that_decides(tmp_path: Path) -> None:
    digits = load_dataset("digits", "train").subset(torch.arange(300))
    model = CNN()
    config = TrainingConfig(epochs=1, batch_size=50, learning_rate=1e-3)
    result = fit(model, digits, config=config, folder=tmp_path, show_progress=False)
    assert result.best_epoch == 1
    x = digits.batch(slice(4))[0].to(next(model.parameters()).device)
    assert model(x).isfinite().all()


def test_the_speed_command_measures_there() -> None:
    budget = {"candidates": 50, "steps": 2}
    settings: dict[str, Any] = {"repeats": 1, "device": "cuda", "threads": 1}
    assert measure_against_reference("eabs", 2, budget, **settings)["ms_per_image"] > 0
    assert measure_scaling(10, 2, budget, **settings)["peak_mib"] > 0
