"""The contract on a CUDA device: it needs one, and skips without."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genrobust import verify
from genrobust.benchmarks.speed.measure import measure_against_reference

Make = Callable[..., Any]
MODELS = ["abs", "eabs", "vade", "gmvae", "deep-bayes", "diffusion", "cnn", "flow", "pixelcnn"]

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


def test_the_speed_command_measures_there() -> None:
    budget = {"candidates": 50, "steps": 2}
    row = measure_against_reference("eabs", 2, budget, repeats=1, device="cuda", threads=1)
    assert row["ms_per_image"] > 0
