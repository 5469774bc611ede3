"""What a search must do for models that optimise a variance: more of it never makes a model worse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust import load_dataset, load_model
from genrobust.inference import Posterior
from genrobust.models._latent import LatentClassifier
from genrobust.randomness import FreshNoise

Make = Callable[..., Any]

SHIPPED = [("eabs", "digits", {}), ("vade", "digits", {"encoder_proposal": True})]
LETTER = {"search": "distributions", "expectation_draws": 1}
MARGIN = 0.3  # nats that 256 draws leave open


def digits(count: int) -> tuple[Tensor, Tensor]:
    return load_dataset("digits", "test").subset(slice(count)).batch(slice(None))


def shipped(name: str, dataset: str, **budget: Any) -> LatentClassifier:
    model = load_model(name, dataset=dataset)
    assert isinstance(model, LatentClassifier)
    return model.with_inference(**budget)


@torch.no_grad()
def expected(model: LatentClassifier, x: Tensor, posterior: Posterior) -> Tensor:
    """The objective of a posterior by the mean over many draws that no search has seen."""
    noise = FreshNoise(torch.Generator().manual_seed(99)).stream()
    draws = model.objective.draws(256, noise, like=posterior)
    return model.objective.expected(x, posterior, draws)


@pytest.mark.parametrize(
    ("name", "dataset", "budget"), [pytest.param(*SHIPPED[0], marks=pytest.mark.slow), SHIPPED[1]]
)
def test_a_start_is_no_worse_than_the_proposal(name: str, dataset: str, budget: dict[str, Any]) -> None:
    model, (x, _) = shipped(name, dataset, candidates=500, **budget), digits(8)
    proposal = expected(model, x, model.propose(x))
    [start] = model.search(x)
    chosen = expected(model, x, start)
    assert (chosen - proposal).mean() <= 0
    assert ((chosen - proposal) < 8 * MARGIN).float().mean() > 0.99
    assert (chosen < proposal - 1).float().mean() > 0.2  # and candidates are of use


@pytest.mark.slow
def test_the_search_to_the_letter_takes_worse_starts_than_the_proposal() -> None:
    model, (x, _) = shipped("eabs", "digits", candidates=2000, **LETTER), digits(8)
    [start] = model.search(x)
    assert (expected(model, x, start) - expected(model, x, model.propose(x))).mean() > 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dataset", "budget"), SHIPPED)
def test_refinement_ends_no_higher_than_from_the_proposal_alone(
    name: str, dataset: str, budget: dict[str, Any]
) -> None:
    x, _ = digits(8)
    searched = shipped(name, dataset, candidates=2000, **budget).class_scores(x)
    alone = shipped(name, dataset, candidates=0).class_scores(x)
    assert (searched - alone).mean() >= 0
    assert ((alone - searched) < 2).float().mean() > 0.95


@pytest.mark.slow
def test_accuracy_does_not_fall_as_candidates_grow() -> None:
    x, y = digits(200)
    right = [
        int((shipped("eabs", "digits", candidates=count, steps=0)(x).argmax(1) == y).sum())
        for count in (0, 100, 2000)
    ]
    assert min(right) >= right[0] - 2
    letter = shipped("eabs", "digits", candidates=4000, steps=0, **LETTER)
    assert int((letter(x).argmax(1) == y).sum()) < right[0] - 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dataset", "budget"), SHIPPED)
def test_two_seeds_of_noise_agree(name: str, dataset: str, budget: dict[str, Any]) -> None:
    x, _ = digits(50)
    model = shipped(name, dataset, candidates=500, steps=20, **budget)
    first, second = (model.with_randomness("fresh", seed=seed)(x).argmax(1) for seed in (1, 2))
    assert (first == second).float().mean() >= 0.99


def test_candidates_have_the_variance_that_the_encoder_gives(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    spread = model.objective.spread
    assert spread.shape == (1, model.latent_dim)
    generated = model.sample(64, generator=torch.Generator().manual_seed(5)).flatten(0, 1)
    typical = model.encoders(generated[:, None])[1].mean((0, 1))
    torch.testing.assert_close(spread[0], typical, rtol=0.2, atol=0.3)
    [start] = model.with_inference(candidates=50, encoder_proposal=False).search(images(model, 3))
    assert torch.equal(start.log_variance, spread.expand_as(start.mean))
    assert make_model("abs").objective.spread is None


def test_the_spread_follows_the_encoders_weights(make_model: Make) -> None:
    model = make_model("eabs")
    before = model.objective.spread.clone()
    with torch.no_grad():
        model.encoders.head.bias += 1.0
    assert not torch.equal(model.objective.spread, before)


def test_several_starts_end_no_higher_than_one(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64).with_inference(
        candidates=200, encoder_proposal=True, steps=5
    )
    x = images(model, 10)
    one, several = model.class_scores(x), model.with_inference(starts=4).class_scores(x)
    assert (several >= one - 1e-9).all()
    assert (several > one + 1e-6).any()


@pytest.mark.parametrize("name", ["abs", "eabs", "vade"])
def test_the_tightened_variant_comes_nearer_to_the_minimum(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name, dtype=torch.float64)
    tight, x = model.tightened(), images(model, 6)
    assert (tight.class_scores(x) - model.class_scores(x)).mean() > 0
    assert not tight.variational
    assert tight.budget.refined_classes is None
    assert model.objective.variational == model.variational  # what the variant derives is its own


def test_a_bound_with_an_entropy_keeps_its_variance(make_model: Make) -> None:
    assert make_model("vade", variational=True).tightened().variational
    assert not make_model("eabs").tightened().variational  # -log D(z) has its infimum at a point


def test_the_letter_needs_no_proposal(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_inference(
        search="distributions", candidates=50, encoder_proposal=False, refined_classes=2
    )
    [start] = model.search(images(model, 3))
    assert start.leading.sum(1).tolist() == [2, 2, 2]
