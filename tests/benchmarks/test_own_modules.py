"""Anybody's module under a suite, above all one that decides at random."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrobust.attack_view import attack_view
from genrobust.benchmarks.evaluate import evaluate
from genrobust.benchmarks.suites.model import Suite
from genrobust.data import ImageDataset
from genrobust.external import WrappedModule, as_classifier


class Noisy(nn.Module):
    """A linear network that adds noise to the image, the same to a whole batch."""

    def __init__(self, std: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10, bias=False)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        self.std, self.generator = std, generator

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(1, 784, generator=self.generator)
        answer: Tensor = self.linear(x.flatten(1) + self.std * noise)
        return answer


class Dropping(nn.Module):
    """Dropout before a linear layer; in evaluation mode none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x)
        return answer


def numpy_noise(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :10] + float(np.random.rand())  # noqa: NPY002


@pytest.fixture
def noisy(images: Tensor) -> WrappedModule:
    wrapped = as_classifier(Noisy(), images)
    assert isinstance(wrapped, WrappedModule)
    return wrapped


@pytest.fixture
def images(digits: ImageDataset) -> Tensor:
    return digits.batch(slice(6))[0]


def test_noise_is_noticed(images: Tensor) -> None:
    at_random = [Noisy(), Noisy(generator=torch.Generator()), numpy_noise]
    repeating = [Noisy(std=0.0), Noisy(std=1e-9), Dropping(), lambda x: x.flatten(1)[:, :10] * torch.nan]
    before = torch.get_rng_state()
    assert [as_classifier(model, images).randomized for model in at_random] == [True] * 3
    assert [as_classifier(model, images).randomized for model in repeating] == [False] * 4
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_comes_from_seeds(noisy: WrappedModule, images: Tensor) -> None:
    before = torch.get_rng_state()
    fixed = noisy.with_randomness("fixed", seed=3)
    assert torch.equal(fixed(images), fixed(images))
    assert not torch.equal(fixed(images), noisy.with_randomness("fixed", seed=4)(images))
    fresh, again = (noisy.with_randomness("fresh", seed=3) for _ in range(2))
    first = fresh(images)
    assert torch.equal(first, again(images))
    assert not torch.equal(first, fresh(images))
    assert torch.equal(torch.get_rng_state(), before)
    assert noisy.noise is None
    assert fresh.module is noisy.module


def test_without_noise_there_is_one_variant(images: Tensor) -> None:
    plain = as_classifier(Dropping(), images)
    assert plain.with_randomness("fresh", seed=1) is plain


@pytest.mark.slow
@torch.no_grad()
def test_draws_average_noise_that_a_batch_shares(noisy: WrappedModule, images: Tensor) -> None:
    clean = noisy.module.linear(images.flatten(1))  # type: ignore[operator]
    spread = 0.5 * noisy.module.linear.weight  # type: ignore[union-attr]
    normal = torch.randn(20000, 784, generator=torch.Generator().manual_seed(1))
    expected = (clean[:, None] + normal @ spread.T).softmax(2).mean(1)
    found = attack_view(noisy, eot=1500)(images).exp()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)  # four standard errors of 1,500 draws


def test_a_verdict_at_random_is_flagged_and_repeats(
    small_suite: Suite, digits: ImageDataset, tmp_path: Path
) -> None:
    attack = replace(small_suite.attack("fgsm"), every_epsilon=False, eot=4)
    suite = replace(small_suite, attacks=(attack,), samples=12)
    rows = [
        evaluate(Noisy(), suite, dataset=digits, out=tmp_path / name, show_progress=False).rows
        for name in ("first", "second")
    ]
    assert rows[0].drop(["seconds"]).equals(rows[1].drop(["seconds"]))
    assert sum(rows[0]["unstable"].to_pylist()) > 0


def test_a_module_of_other_logits_is_named(small_suite: Suite) -> None:
    with pytest.raises(ValueError, match=r"10 classes, but it takes .* and 784"):
        evaluate(lambda x: x.flatten(1), small_suite, samples=2, show_progress=False)
