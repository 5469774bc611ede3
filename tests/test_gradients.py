import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from genrobust.eot import expectation
from genrobust.gradients import Automatic, Envelope, Estimated, Joint, Proposal, Unrolled, surrogate_gradient
from genrobust.inference import InferenceBudget, Posterior, refine
from genrobust.randomness import FixedNoise, FreshNoise

Make = Callable[..., Any]
each_model = pytest.mark.parametrize("name", ["abs", "eabs"])


STRATEGIES = {
    "envelope": Envelope(),
    "joint": Joint(),
    "proposal": Proposal(),
    "unrolled": Unrolled(steps=2),
    "estimated": Estimated(pairs=3),
}


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Any:
    return STRATEGIES[request.param]


def budget(**settings: Any) -> InferenceBudget:
    return InferenceBudget(**{"candidates": 30, "encoder_proposal": False, **settings})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def class_gradients(scores: Tensor, x: Tensor) -> Tensor:
    """The gradient of every class's score, one backward pass each over one graph, shape (K, *x.shape)."""
    gradients = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in scores.T]
    return torch.stack(gradients)


def finite_differences(scores: Callable[[Tensor], Tensor], x: Tensor, *, step: float) -> Tensor:
    """Central differences of every class's score along every pixel of one image, shape (K, *x.shape)."""
    pixels = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    with torch.no_grad():
        slopes = (scores(x + step * pixels) - scores(x - step * pixels)) / (2 * step)
    return slopes.T.reshape(-1, *x.shape)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))


# Envelope.


@pytest.mark.parametrize("method", ["adam", "bfgs"])
def test_the_envelope_gradient_is_equation_8(
    method: str, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(budget=budget(steps=300, method=method, tolerance=1e-9, trailing_tolerance=0))
    x = linear_images.clone().requires_grad_()
    gradients = class_gradients(Envelope().scores(oracle, x), x)
    reconstruction = oracle.decoders(oracle.optimal_mean(linear_images))
    expected = -2 * (linear_images[:, None] - reconstruction).transpose(0, 1)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-3)


@each_model
def test_the_envelope_gradient_points_away_from_the_reconstruction_it_scored(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64)
    x = images(model, 3).requires_grad_()
    scores = Envelope().scores(model, x)
    noise = model.noise.stream(part=1)
    start = model.search(x.detach())[0]
    posterior = refine(model.objective, x.detach(), start, noise, budget=model.budget)
    draws = range(model.budget.expectation_draws if model.variational else 1)
    latents = [posterior.sample(noise) for _ in draws]
    reconstructions = torch.stack([model.decoders(z).detach() for z in latents])
    expected = -2 * (x.detach()[:, None] - reconstructions.mean(0)).transpose(0, 1)
    torch.testing.assert_close(class_gradients(scores, x), expected)
    costs = (x[:, None] - reconstructions).square().sum((3, 4, 5))
    priors = torch.stack([model.prior(posterior, z) for z in latents])
    torch.testing.assert_close(scores, -(costs + model.beta * priors).mean(0))


def test_the_envelope_gradient_is_that_of_the_fully_optimised_score(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle, x = linear_gaussian(budget=budget(steps=300)), linear_images[:1]
    leaf = x.clone().requires_grad_()
    gradients = class_gradients(Envelope().scores(oracle, leaf), leaf)
    differences = finite_differences(lambda x: Envelope().scores(oracle, x), x, step=0.01)
    assert relative_error(gradients, differences) < 0.01

    def closed_form(x: Tensor) -> Tensor:
        return -oracle.expected_objective(x, oracle.optimal_mean(x))

    assert relative_error(gradients, finite_differences(closed_form, x, step=0.01)) < 0.01


def test_the_envelope_gradient_of_a_nonlinear_decoder(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    model = model.with_inference(steps=400, learning_rate=0.02, candidates=100)
    x = images(model, 1)
    leaf = x.clone().requires_grad_()
    gradients = class_gradients(model.class_scores(leaf), leaf)

    def scores(x: Tensor) -> Tensor:  # outside [0, 1] too, where the model itself refuses
        return Envelope().scores(model, x)

    assert relative_error(gradients, finite_differences(scores, x, step=1e-3)) < 0.01


def test_the_envelope_gradient_of_a_variational_posterior_is_right_on_average(
    linear_gaussian: Make, linear_images: Tensor
) -> None:
    draws, x = 2000, linear_images[:1]
    oracle = linear_gaussian(variational=True)
    mean, variance = oracle.optimal_mean(x), oracle.optimal_variance()
    start = Posterior(mean.expand(draws, -1, -1), variance.log().expand(draws, -1, -1))

    class AtTheOptimum:
        objective, budget, noise = oracle.objective, oracle.budget, FreshNoise(seeded(0))

        def search(self, _: Tensor) -> list[Posterior]:
            return [start]

        def recall(self, _: Tensor) -> None:
            return None

        def remember(self, x: Tensor, posterior: Posterior, losses: Tensor) -> None:
            pass

    leaf = x.expand(draws, -1, -1, -1).clone().requires_grad_()
    gradients = class_gradients(Envelope().scores(AtTheOptimum(), leaf), leaf)

    def closed_form(x: Tensor) -> Tensor:
        mean = oracle.optimal_mean(x)
        return -oracle.expected_objective(x, mean, variance.expand_as(mean))

    expected = finite_differences(closed_form, x, step=0.01)
    assert relative_error(gradients.mean(1, keepdim=True), expected) < 0.05


@each_model
@pytest.mark.parametrize("strategy", [Envelope(), Estimated(pairs=3)], ids=["envelope", "estimated"])
def test_no_weight_collects_a_gradient(name: str, strategy: Any, make_model: Make, images: Make) -> None:
    model = make_model(name).with_gradient(strategy)
    x = images(model, 3).requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


# Proposal.


@each_model
def test_the_gradient_at_the_proposal_goes_through_the_encoder(
    name: str, make_model: Make, images: Make
) -> None:
    # Without refinement the score is a function of x that can be differenced.
    # The gradient at the proposal is of one draw.
    model = make_model(name, dtype=torch.float64).with_inference(
        candidates=0, encoder_proposal=True, steps=0, expectation_draws=1
    )
    x = images(model, 1)
    leaf = x.clone().requires_grad_()
    gradients = class_gradients(Proposal().scores(model, leaf), leaf)
    differences = finite_differences(
        lambda rows: torch.cat([Envelope().scores(model, row[None]) for row in rows]), x, step=1e-5
    )
    assert relative_error(gradients, differences) < 1e-5
    masked = class_gradients(Envelope().scores(model, leaf), leaf)
    assert relative_error(masked, differences) > 1e-4


def test_an_encoder_that_alone_decides_is_not_masked(make_model: Make, images: Make) -> None:
    searched = make_model("abs", dtype=torch.float64)
    encoded = searched.with_inference(candidates=0, encoder_proposal=True)
    for model, strategy in ((searched, Envelope()), (encoded, Proposal())):
        x = images(model, 2).requires_grad_()
        chosen, expected = (class_gradients(s.scores(model, x), x) for s in (Automatic(), strategy))
        torch.testing.assert_close(chosen, expected)


@each_model
def test_the_joint_gradient_is_the_mean_where_the_proposal_is_a_candidate(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64).with_inference(encoder_proposal=True)
    x = images(model, 2).requires_grad_()
    joint, *parts = (
        class_gradients(strategy.scores(model, x), x) for strategy in (Joint(), Envelope(), Proposal())
    )
    torch.testing.assert_close(joint, (parts[0] + parts[1]) / 2)
    alone = model.with_inference(encoder_proposal=False)
    torch.testing.assert_close(*(class_gradients(s.scores(alone, x), x) for s in (Joint(), Envelope())))


# Unrolled.


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_unrolled_gradient_is_that_of_a_score_of_few_steps(
    steps: int, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian(budget=budget(method="adam", steps=steps, learning_rate=0.1))
    x = linear_images[:1]
    differences = finite_differences(lambda x: Envelope().scores(oracle, x), x, step=1e-6)
    leaf = x.clone().requires_grad_()
    unrolled = class_gradients(Unrolled(steps=steps).scores(oracle, leaf), leaf)
    envelope = class_gradients(Envelope().scores(oracle, leaf), leaf)
    assert relative_error(unrolled, differences) < 1e-5
    if steps > 1:  # Adam's first step has a constant length: its sign is all that it takes from the gradient
        assert relative_error(envelope, differences) > 1e-2


@each_model
def test_the_unrolled_gradient_of_a_nonlinear_decoder(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name, dtype=torch.float64).with_inference(
        method="adam", steps=3, encoder_proposal=False, candidates=9
    )
    x = images(model, 1)
    differences = finite_differences(lambda x: Envelope().scores(model, x), x, step=1e-6)
    leaf = x.clone().requires_grad_()
    unrolled = class_gradients(Unrolled(steps=3).scores(model, leaf), leaf)
    envelope = class_gradients(Envelope().scores(model, leaf), leaf)
    assert relative_error(unrolled, differences) < 1e-4
    assert relative_error(envelope, differences) > 100 * relative_error(unrolled, differences)


def test_unrolling_more_steps_comes_closer(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(budget=budget(method="adam", steps=6, learning_rate=0.1))
    x = linear_images[:1]
    differences = finite_differences(lambda x: Envelope().scores(oracle, x), x, step=1e-6)

    def error(steps: int) -> float:
        leaf = x.clone().requires_grad_()
        return relative_error(class_gradients(Unrolled(steps=steps).scores(oracle, leaf), leaf), differences)

    assert error(6) < 1e-5 < error(1)


def test_unrolling_past_the_budget_unrolls_all_of_it(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(budget=budget(method="adam", steps=3))
    x = linear_images.clone().requires_grad_()
    exact, past = (class_gradients(Unrolled(steps=n).scores(oracle, x), x) for n in (3, 50))
    assert torch.equal(exact, past)


def test_unrolling_without_refinement_is_the_envelope(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian(budget=budget(method="adam", steps=0))
    x = linear_images.clone().requires_grad_()
    unrolled, envelope = (class_gradients(s.scores(oracle, x), x) for s in (Unrolled(steps=3), Envelope()))
    torch.testing.assert_close(unrolled, envelope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_unrolled_gradient_is_finite_where_refinement_starts_at_the_optimum(
    dtype: torch.dtype, steps: int, linear_gaussian: Make
) -> None:
    oracle = linear_gaussian(dtype=dtype, budget=budget(method="adam", steps=steps))

    class AtTheOptimum:
        objective, budget, noise = oracle.objective, oracle.budget, FixedNoise(0)

        def search(self, _: Tensor) -> list[Posterior]:
            return [Posterior(torch.zeros(1, 3, 2, dtype=dtype))]

        def recall(self, _: Tensor) -> None:
            return None

        def remember(self, x: Tensor, posterior: Posterior, losses: Tensor) -> None:
            pass

    x = oracle.decoders.offsets[:1].detach().reshape(1, 1, 4, 4).clone().requires_grad_()
    model = AtTheOptimum()
    loss = model.objective.at(x, model.search(x)[0], model.noise.stream())
    assert loss[0, 0] == 0  # class 0 decodes z = 0 to this very image: its latent gradient is zero
    gradients = class_gradients(Unrolled(steps=steps).scores(model, x), x)
    assert gradients.isfinite().all()
    assert gradients[1:].abs().amax((1, 2, 3, 4)).min() > 0


# What every strategy promises.


@each_model
@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_every_strategy_gives_the_same_scores(
    strategy: Any, name: str, steps: int, make_model: Make, images: Make
) -> None:
    # Unrolled refines by Adam whatever the budget says.
    model = make_model(name, dtype=torch.float64).with_inference(method="adam", steps=steps)
    x = images(model, 3)
    expected = model.class_scores(x)
    variant = model.with_gradient(strategy)
    torch.testing.assert_close(variant.class_scores(x), expected)
    torch.testing.assert_close(variant.class_scores(x.clone().requires_grad_()).detach(), expected)


@each_model
def test_backward_passes_over_one_forward_agree(
    strategy: Any, name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name).with_gradient(strategy)
    x = images(model, 3).requires_grad_()
    logits = model(x)
    first, second = class_gradients(logits, x), class_gradients(logits, x)
    assert torch.equal(first, second)
    weights = torch.randn(logits.shape, generator=seeded(0))
    [mixed] = torch.autograd.grad((weights * logits).sum(), x)
    expected = (weights.T[:, :, None, None, None] * first).sum(0)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)
    assert first.abs().amax((1, 2, 3, 4)).min() > 0
    for row in range(3):  # a row's scores depend on that row alone
        [gradient] = torch.autograd.grad(model(x)[row].sum(), x)
        others = [i for i in range(3) if i != row]
        assert gradient[others].abs().max() == 0


@each_model
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_scores_need_no_gradients_outside(
    strategy: Any, name: str, context: Any, make_model: Make, images: Make
) -> None:
    model = make_model(name).with_gradient(strategy)
    x = images(model, 3)
    expected = model.class_scores(x).detach()
    with context():
        scores = model.class_scores(x)
        of_a_new_tensor = model.class_scores(x + 0)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(of_a_new_tensor, expected)


@each_model
def test_no_graph_is_built_where_gradients_are_disabled(
    strategy: Any, name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name).with_gradient(strategy)
    x = images(model, 3)
    for images_ in (x, x.clone().requires_grad_()):
        with torch.no_grad():
            assert not model.class_scores(images_).requires_grad
        assert not model.predict(images_).scores.requires_grad


def test_gradients_stay_enabled_or_disabled_as_they_were(
    strategy: Any, make_model: Make, images: Make
) -> None:
    model = make_model("abs").with_gradient(strategy)
    x = images(model, 2).requires_grad_()
    for context, enabled in ((nullcontext, True), (torch.no_grad, False)):
        with context():
            model(x)
            assert torch.is_grad_enabled() == enabled
    with torch.inference_mode():
        model(x)
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("auto", Automatic),
        ("envelope", Envelope),
        ("estimated", Estimated),
        ("joint", Joint),
        ("proposal", Proposal),
        ("unrolled", Unrolled),
    ],
)
def test_a_strategy_is_known_by_its_name(name: str, kind: type[Any]) -> None:
    assert isinstance(surrogate_gradient(name), kind)


def test_a_strategy_stays_itself(strategy: Any) -> None:
    assert surrogate_gradient(strategy) is strategy


def test_unknown_strategy(make_model: Make) -> None:
    known = r"\['auto', 'envelope', 'estimated', 'joint', 'proposal', 'unrolled'\]"
    with pytest.raises(ValueError, match=rf"`gradient` out of {known} for ABS, but got 'bpda'"):
        make_model("abs").with_gradient("bpda")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unrolled(steps=0), "`steps` to be at least 1, but got 0"),
        (lambda: Estimated(pairs=0), "`pairs` to be at least 1, but got 0"),
        (lambda: Estimated(sigma=0.0), "`sigma` to be above 0, but got 0.0"),
        (
            lambda: Estimated(sigma=math.nan),
            "`sigma` to be finite, but got nan",
        ),
        (lambda: Estimated(method="rgf"), "`method` to be one of 'nes', 'spsa', but got 'rgf'"),  # type: ignore[arg-type]
    ],
    ids=["no step", "no sample", "no length", "nan length", "unknown method"],
)
def test_impossible_strategy(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Estimated.


@pytest.mark.parametrize("method", ["nes", "spsa"])
def test_the_estimated_gradient_converges_to_the_envelope(
    method: Any, linear_gaussian: Make, linear_images: Tensor
) -> None:
    oracle = linear_gaussian()

    class FullyOptimised:
        objective, budget, noise = oracle.objective, oracle.budget, oracle.noise

        def search(self, x: Tensor) -> list[Posterior]:
            return [Posterior(oracle.optimal_mean(x))]

        def recall(self, _: Tensor) -> None:
            return None

        def remember(self, x: Tensor, posterior: Posterior, losses: Tensor) -> None:
            pass

    model = FullyOptimised()
    x = linear_images[:1].clone().requires_grad_()
    envelope = class_gradients(Envelope().scores(model, x), x)
    few, many = (
        class_gradients(
            Estimated(pairs=n, sigma=1e-3, method=method, generator=seeded(0)).scores(model, x), x
        )
        for n in (8, 600)
    )
    for k in range(3):
        assert cosine(many[k], envelope[k]) > 0.95
    assert relative_error(many, envelope) < 0.25 < relative_error(few, envelope)


@pytest.mark.parametrize("method", ["nes", "spsa"])
def test_the_estimate_of_a_linear_score_is_unbiased(method: Any, linear_gaussian: Make) -> None:
    oracle, rows, samples = linear_gaussian(), 200, 10
    # With the latents held, antithetic differences of ||x - G(z)||^2 are exactly linear in the direction.
    held = oracle.search(torch.rand((1, 1, 4, 4), generator=seeded(1)).double())[0]

    class Held:
        objective, budget, noise = oracle.objective, oracle.budget, oracle.noise

        def search(self, x: Tensor) -> list[Posterior]:
            return [Posterior(held.mean.expand(len(x), -1, -1))]

        def recall(self, _: Tensor) -> None:
            return None

        def remember(self, x: Tensor, posterior: Posterior, losses: Tensor) -> None:
            pass

    x = (
        torch.rand((1, 1, 4, 4), generator=seeded(2))
        .double()
        .expand(rows, -1, -1, -1)
        .clone()
        .requires_grad_()
    )
    expected = class_gradients(Envelope().scores(Held(), x), x)[:, 0]
    strategy = Estimated(pairs=samples, sigma=0.5, method=method, generator=seeded(0))
    estimates = class_gradients(strategy.scores(Held(), x), x)
    error = estimates.std(1) / math.sqrt(rows)
    assert ((estimates.mean(1) - expected).abs() < 5 * error).all()
    assert (error.square().sum((1, 2, 3)) < 0.02 * expected.square().sum((1, 2, 3))).all()


def test_spsa_draws_signs_and_nes_draws_normals(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle = linear_gaussian()
    x = linear_images.clone().requires_grad_()
    spread = {}
    for method in ("nes", "spsa"):
        strategy = Estimated(pairs=1, method=method, generator=seeded(0))  # type: ignore[arg-type]
        gradient = class_gradients(strategy.scores(oracle, x), x)[0].flatten(1).abs()
        spread[method] = (gradient.amax(1) / gradient.amin(1)).min()
    assert spread["spsa"] == pytest.approx(1)
    assert spread["nes"] > 2


def test_successive_estimates_take_new_directions(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle, x = linear_gaussian(), linear_images.clone().requires_grad_()
    strategy = Estimated(pairs=2, generator=seeded(0))
    first, second = (class_gradients(strategy.scores(oracle, x), x) for _ in range(2))
    assert not torch.equal(first, second)
    again = Estimated(pairs=2, generator=seeded(0))
    assert torch.equal(class_gradients(again.scores(oracle, x), x), first)


def test_scores_without_gradient_take_no_queries(linear_gaussian: Make, linear_images: Tensor) -> None:
    oracle, strategy = linear_gaussian(), Estimated(pairs=2, generator=seeded(0))
    state = strategy.generator.get_state()
    strategy.scores(oracle, linear_images)
    assert torch.equal(strategy.generator.get_state(), state)


# Expectation over transformation.


def test_the_expectation_is_the_mean_of_fresh_draws_of_a_bound(make_model: Make, images: Make) -> None:
    model, count = make_model("eabs", dtype=torch.float64), 5
    x = images(model, 3).requires_grad_()
    scores = expectation(model, count, generator=seeded(7)).class_scores(x)
    fresh = model.with_randomness("fresh", generator=seeded(7))
    draws = torch.stack([fresh.class_scores(x) for _ in range(count)])
    averaged = draws.mean(0)
    torch.testing.assert_close(scores, averaged)
    assert (draws.std(0) > 0).all()
    torch.testing.assert_close(class_gradients(scores, x), class_gradients(averaged, x))


def test_one_draw_is_its_own_expectation(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 3)
    single = model.with_randomness("fresh", generator=seeded(7)).class_scores(x)
    torch.testing.assert_close(expectation(model, 1, generator=seeded(7)).class_scores(x), single)


def test_more_draws_vary_less(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_inference(steps=1)
    x = images(model, 2)

    def spread(draws: int) -> float:
        averaged = expectation(model, draws)
        return float(torch.stack([averaged(x) for _ in range(20)]).std(0).mean())

    assert spread(16) < 0.6 * spread(1)


def test_more_draws_steady_the_gradient(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_inference(steps=1)
    x = images(model, 2).requires_grad_()

    def spread(draws: int) -> float:
        averaged = expectation(model, draws)
        gradients = [torch.autograd.grad(averaged(x)[:, 0].sum(), x)[0] for _ in range(20)]
        return float(torch.stack(gradients).std(0).norm())

    assert spread(16) < 0.6 * spread(1)


@each_model
def test_the_expectation_keeps_the_contract(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    averaged = expectation(model, 2)
    x = images(model, 3)
    assert (averaged.input_shape, averaged.num_classes) == (model.input_shape, model.num_classes)
    assert averaged(x).shape == (3, model.num_classes)
    assert averaged(x[:0]).shape == (0, model.num_classes)
    assert averaged.predict(x[:0]).labels.shape == (0,)
    prediction = averaged.predict(x)
    assert torch.equal(prediction.labels, prediction.scores.argmax(1))
    torch.testing.assert_close(prediction.probabilities.sum(1), torch.ones(3))
    torch.testing.assert_close(prediction.probabilities, model.probabilities(prediction.scores))
    shared = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in averaged.parameters()} == shared


@pytest.mark.parametrize("method", ["forward", "class_scores", "predict"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"shape \(batch, 1, 8, 8\), but got \(1, 8, 8\)"),
        (lambda x: x.repeat(1, 3, 1, 1), r"shape \(batch, 1, 8, 8\), but got \(2, 3, 8, 8\)"),
        (lambda x: 255 * x, "a maximum of"),
        (lambda x: x / 0, "to be finite"),
        (lambda x: x.to(torch.uint8), "floating dtype"),
    ],
    ids=["rank", "channels", "range", "infinite", "uint8"],
)
def test_the_expectation_checks_its_input(
    method: str, change: Any, message: str, make_model: Make, images: Make
) -> None:
    averaged = expectation(make_model("eabs"), 2)
    x = change(images(averaged, 2))
    with pytest.raises(ValueError, match=message):
        getattr(averaged, method)(x)


def test_variants_of_an_expectation(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    averaged = expectation(model, 3)
    x = images(model, 2).requires_grad_()
    cheap = averaged.with_inference(steps=0, candidates=5)
    assert (cheap.draws, cheap.model.budget.steps) == (3, 0)  # type: ignore[union-attr]
    assert averaged.model.budget.steps == model.budget.steps
    unrolled = averaged.with_gradient("unrolled")
    assert isinstance(unrolled.model.gradient, Unrolled)  # type: ignore[union-attr]
    assert isinstance(averaged.model.gradient, Automatic)
    first, second, other = (
        averaged.with_randomness("fresh", seed=seed).class_scores(x) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_impossible_expectations(make_model: Make) -> None:
    model = make_model("eabs")
    with pytest.raises(ValueError, match="`draws` of at least 1, but got 0"):
        expectation(model, 0)
    with pytest.raises(ValueError, match="`mode` 'fresh' for an expectation over draws, but got 'fixed'"):
        expectation(model, 2).with_randomness("fixed")


# Reconstructions.


@pytest.mark.parametrize(("gradient", "share"), [("auto", 1.0), ("proposal", 1.0), ("joint", 0.5)])
def test_reconstructions_have_the_gradient_of_the_encoders_path(
    gradient: str, share: float, make_model: Make, images: Make
) -> None:
    model = make_model("vade", variational=True, dtype=torch.float64)
    model = model.with_inference(candidates=0, steps=0).with_gradient(gradient)
    x, step = images(model, 3), 1e-6
    direction = torch.randn(x.shape, generator=seeded(3), dtype=x.dtype)
    weights = torch.randn((3, 4, *x.shape[1:]), generator=seeded(4), dtype=x.dtype)

    def value(at: Tensor) -> Tensor:
        return (weights * model.reconstruct(at)).sum()

    leaf = x.clone().requires_grad_()
    [slope] = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        measured = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), share * measured, rtol=1e-5, atol=1e-8)


def test_reconstructions_are_constant_where_the_optimum_is_taken_as_given(
    make_model: Make, images: Make
) -> None:
    model = make_model("eabs").with_gradient("envelope")
    assert not model.reconstruct(images(model, 2).requires_grad_()).requires_grad


@pytest.mark.parametrize("name", ["unrolled", "estimated"])
def test_other_strategies_differentiate_reconstructions_too(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model("eabs").with_gradient(name)
    leaf = images(model, 2).requires_grad_()
    [slope] = torch.autograd.grad(model.reconstruct(leaf).square().sum(), leaf)
    assert slope.isfinite().all()
    assert slope.abs().max() > 0


def test_both_queries_of_a_pair_get_the_same_noise() -> None:
    noise, seen = FreshNoise(seeded(0)), []

    def query(x: Tensor) -> Tensor:
        seen.append(noise.stream().normal((1, 1), like=x))
        return x.flatten(1).sum(1, keepdim=True) + 100 * seen[-1]

    x = torch.full((1, 1, 2, 2), 0.5).requires_grad_()
    answers = Estimated(pairs=2000, sigma=0.1, generator=seeded(1)).linearized(query, x, noise=noise)
    [slope] = torch.autograd.grad(answers.sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=0.15)
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[1], seen[3])
