"""Matching one part of what a model makes of an image: log p(y | z), or the encoding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, GenerativeClassifier, SelectiveClassifier, load_dataset, load_model
from genrobust.attack_view import AttackView, attack_view
from genrobust.attacks import l2_logit_matching, linf_logit_matching, linf_pgd, linf_strongest
from genrobust.capabilities import Encodes, LabelsLatents
from genrobust.models import GMVAE, DeepBayes, DeepBayesConfig
from genrobust.nets.conditionals import GRAPHS, ConditionalArchitecture
from genrobust.selective import calibrate_detector

SHAPE, CLASSES = (1, 3, 3), 3


class Drowned(LabelsLatents, Encodes, GenerativeClassifier):
    """log p(y | z) decides by 60 nats and more, but a likelihood of 10 nats has a slope that drowns it."""

    def __init__(self) -> None:
        super().__init__(input_shape=SHAPE, num_classes=CLASSES)
        generator = torch.Generator().manual_seed(4)
        self.means = nn.Parameter(0.5 + 0.4 * torch.randn((CLASSES, 9), generator=generator).clamp(-1, 1))
        self.register_buffer("waves", 2000 * torch.randn((CLASSES, 9), generator=generator))

    def label_scores(self, x: Tensor) -> Tensor:
        return -60 * (x.flatten(1)[:, None] - self.means).square().sum(2)

    def class_scores(self, x: Tensor) -> Tensor:
        return self.label_scores(x) + 5 * (x.flatten(1) @ self.waves.T).sin()

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        return x.flatten(1) - self.means[y]

    def scores_to_logits(self, scores: Tensor) -> Tensor:
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


def drawn(model: Drowned) -> tuple[Tensor, Tensor]:
    noise = 0.02 * torch.randn((12, 9), generator=torch.Generator().manual_seed(5))
    y = torch.arange(12) % CLASSES
    return (model.means.detach()[y] + noise).clamp(0, 1).unflatten(1, SHAPE), y


def left(model: Drowned, found: Tensor, y: Tensor) -> float:
    return float((model(found).argmax(1) == y).float().mean())


@pytest.mark.parametrize("aim", ["label", "latent"])
def test_a_part_of_the_scores_is_met_where_the_slope_of_the_rest_drowns_it(aim: Any) -> None:
    model = Drowned()
    x, y = drawn(model)
    view, generator = attack_view(model), torch.Generator().manual_seed(0)
    climbed = linf_pgd(view, x, y, epsilon=0.3, loss="margin", generator=generator)
    whole = linf_logit_matching(view, x, y, epsilon=0.3)
    part = linf_logit_matching(view, x, y, epsilon=0.3, aim=aim)
    assert left(model, x, y) == 1
    assert min(left(model, climbed, y), left(model, whole, y)) >= 0.5
    assert left(model, part, y) == 0
    assert (part - x).abs().max() <= 0.3 + 1e-6


def test_the_ensemble_aims_at_that_part_too() -> None:
    model = Drowned()
    x, y = drawn(model)
    found = linf_strongest(attack_view(model), x, y, epsilon=0.3, generator=torch.Generator().manual_seed(0))
    assert left(model, found, y) == 0


def deep_bayes(graph: str) -> DeepBayes:
    sizes = ConditionalArchitecture(input_shape=(1, 6, 6), latent_dim=2, channels=(), hidden=(4,))
    config = DeepBayesConfig(num_classes=CLASSES, architecture=sizes, graph=GRAPHS[graph])
    return DeepBayes(config).with_inference(samples=2)


@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("aim", ["label", "latent"])
def test_a_part_is_found_behind_a_rejection_and_an_expectation(aim: Any, eot: int) -> None:
    model = deep_bayes("GBZ")
    x = torch.rand((6, 1, 6, 6), generator=torch.Generator().manual_seed(1))
    detector = calibrate_detector("marginal", model, x.repeat(5, 1, 1, 1), model(x).argmax(1).repeat(5))
    for shown in (model, SelectiveClassifier(model, [detector])):
        view = attack_view(shown, eot=eot)
        found = l2_logit_matching(view, x, torch.arange(6) % 3, epsilon=0.5, steps=2, targets=1, aim=aim)
        assert found.shape == x.shape
        assert ((found - x).flatten(1).norm(dim=1) <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("name", ["eabs", "gmvae"])
def test_the_encodings_of_shipped_models_are_matched(name: str) -> None:
    model = load_model(name, dataset="digits")
    x, y = load_dataset("digits", "test").batch(slice(4))
    assert isinstance(model, Encodes)
    images = x.clone().requires_grad_()
    model.encode(images, y).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("model", "aim", "message"),
    [
        (deep_bayes("GF"), "label", r"a graph with p\(y \| z\)"),
        (GMVAE(), "label", "`LabelsLatents`, but got GMVAE"),
        (GMVAE(), "labels", "`aim`.*did you mean 'label'"),
    ],
    ids=str,
)
def test_a_model_without_that_part_is_named(model: Classifier, aim: Any, message: str) -> None:
    x = torch.rand((2, *model.input_shape))
    with pytest.raises(ValueError, match=message):
        linf_logit_matching(AttackView(model), x, torch.tensor([0, 1]), epsilon=0.1, aim=aim)
