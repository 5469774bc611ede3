import copy
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrobust import Classifier, GenerativeClassifier
from genrobust.checks import check_images
from genrobust.eot import expectation
from genrobust.gradients import Automatic, Unrolled
from genrobust.inference import InferenceBudget
from genrobust.randomness import FixedNoise, FreshNoise, isolated_rng, noise_source

Make = Callable[..., Any]
MODELS = [
    "abs",
    "bnn",
    "cnn",
    "conv-net",
    "deep-bayes",
    "diffusion",
    "eabs",
    "flow",
    "gmvae",
    "mlp",
    "pixelcnn",
    "pool-cnn",
    "purified",
    "vade",
]
GENERATIVE = ["abs", "eabs", "vade"]
each_model = pytest.mark.parametrize("name", MODELS)
each_generative_model = pytest.mark.parametrize("name", GENERATIVE)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_value(x: Tensor, value: float) -> Tensor:
    changed = x.clone()
    changed[1, 0, 2, 1] = value
    return changed


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Fails where the block draws from a global generator."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = str(np.random.get_state(legacy=False))  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert str(np.random.get_state(legacy=False)) == numpy_state  # noqa: NPY002


# Input.


BAD_IMAGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nan": (
        lambda x: with_value(x, float("nan")),
        "`x` to be finite, but got 1 values that are NaN or infinite",
    ),
    "all nan": (lambda x: x * float("nan"), r"`x` to be finite, but got \d+ values"),
    "inf": (lambda x: with_value(x, float("inf")), "`x` to be finite, but got 1 values"),
    "minus inf": (lambda x: with_value(x, -float("inf")), "`x` to be finite, but got 1 values"),
    "0-255": (
        lambda x: with_value(255 * x, 255.0),
        r"`x` in \[0, 1\], but got a maximum of 255: divide by 255",
    ),
    "normalised": (
        lambda x: (with_value(x, 0.0) - 0.1307) / 0.3081,
        r"`x` in \[0, 1\], but got a maximum of \d\.\d+: normalisation belongs into the model$",
    ),
    "above": (lambda x: with_value(x, 1.001), r"`x` in \[0, 1\], but got a maximum of 1\.001$"),
    "below": (lambda x: with_value(x, -0.001), r"`x` in \[0, 1\], but got a minimum of -0\.001$"),
    "just above": (lambda x: with_value(x, 1 + 3e-6), r"`x` in \[0, 1\], but got a maximum of 1\.000003$"),
    "just below": (lambda x: with_value(x, -3e-6), r"`x` in \[0, 1\], but got a minimum of -3e-06$"),
    "channels": (
        lambda x: x.repeat(1, 2, 1, 1),
        r"of shape \(batch, \d, \d, \d\), but got \(3, \d, \d, \d\)",
    ),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"of shape \(batch, \d, \d, \d\), but got \(3, "),
    "size": (lambda x: x[..., 1:], r"of shape \(batch, \d, \d, \d\), but got \(3, "),
    "rank 3": (lambda x: x[0], r"of shape \(batch, \d, \d, \d\), but got \(\d, \d, \d\)"),
    "rank 2": (lambda x: x.flatten(1), r"of shape \(batch, \d, \d, \d\), but got \(3, \d+\)"),
    "rank 5": (lambda x: x[None], r"of shape \(batch, \d, \d, \d\), but got \(1, 3, "),
    "rank 0": (lambda x: x.sum(), r"of shape \(batch, \d, \d, \d\), but got \(\)"),
    "uint8": (
        lambda x: (255 * x).to(torch.uint8),
        r"a floating dtype, but got torch\.uint8: convert to float and divide by 255",
    ),
    "int64": (lambda x: x.long(), r"a floating dtype, but got torch\.int64$"),
    "bool": (lambda x: x > 0.5, r"a floating dtype, but got torch\.bool$"),
    "complex": (lambda x: x.to(torch.complex64), r"a floating dtype, but got torch\.complex64$"),
    "other device": (lambda x: x.to("meta"), "`x` on cpu, where the model is, but got meta"),
    "empty of another size": (lambda x: x[:0, ..., 1:], r"of shape \(batch, \d, \d, \d\), but got \(0, "),
    "empty of integers": (lambda x: x[:0].long(), r"a floating dtype, but got torch\.int64"),
}


@pytest.mark.parametrize(("change", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
@each_model
def test_bad_images(name: str, change: Any, message: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    bad = change(images(model, 3))
    methods = [model, model.predict]
    if name in GENERATIVE:
        methods.append(model.class_scores)
    for method in methods:
        with pytest.raises(ValueError, match=message):
            method(bad)


@pytest.mark.parametrize(
    "bad", [[[0.5]], None, np.zeros((3, 1, 8, 8), np.float32)], ids=["list", "none", "numpy"]
)
@each_model
def test_what_is_no_tensor(name: str, bad: Any, make_model: Make, unchecked_types: None) -> None:
    model = make_model(name)
    for method in (model, model.predict):
        with pytest.raises(TypeError, match=rf"`x` to be a torch\.Tensor, but got {type(bad).__name__}"):
            method(bad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@each_model
def test_any_float_is_cast_to_the_dtype_of_the_model(
    name: str, dtype: torch.dtype, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = images(model, 3).to(dtype).requires_grad_()
    logits = model(x)
    assert logits.dtype == torch.float32
    cast = x.detach().float().requires_grad_()
    expected = model(cast)
    assert torch.equal(logits, expected)
    logits[:, 0].sum().backward()
    expected[:, 0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert cast.grad is not None
    torch.testing.assert_close(x.grad, cast.grad.to(dtype))


@each_model
def test_a_double_precision_model_answers_in_double(name: str, make_model: Make, images: Make) -> None:
    single, double = make_model(name), make_model(name, dtype=torch.float64)
    x = images(single, 3)
    assert double(x).dtype == torch.float64
    torch.testing.assert_close(double(x).float(), single(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [1 + 6e-7, -6e-7])
@each_model
def test_rounding_outside_the_range_is_accepted(
    name: str, value: float, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = with_value(images(model, 3), value)
    assert x.min() < 0 or x.max() > 1
    torch.testing.assert_close(model(x), model(x.clamp(0, 1)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
@each_model
def test_blank_images_are_images(name: str, value: float, make_model: Make) -> None:
    model = make_model(name)
    assert model(torch.full((2, *model.input_shape), value)).isfinite().all()


@each_model
def test_memory_layout_does_not_matter(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 6)
    expected = model(x)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    reversed_rows = x.flip(0).contiguous()
    strided = torch.stack([x, 1 - x], -1)[..., 0]
    transposed = x.mT.contiguous().mT
    for layout in (channels_last, reversed_rows.flip(0), strided, transposed):
        torch.testing.assert_close(model(layout), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x[::2]), expected[::2], rtol=1e-4, atol=1e-4)


@each_model
def test_the_images_are_left_as_they_were(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    before = x.clone()
    model(x)
    model.predict(x)
    assert torch.equal(x, before)
    assert not x.requires_grad


@each_model
def test_an_empty_batch_gives_an_empty_result(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)[:0].requires_grad_()
    logits = model(x)
    assert logits.shape == (0, model.num_classes)
    logits.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    prediction = model.predict(x)
    assert prediction.labels.shape == prediction.rejected.shape == (0,)
    assert prediction.probabilities.shape == prediction.scores.shape == (0, model.num_classes)
    if name in GENERATIVE:
        assert model.class_scores(x).shape == (0, model.num_classes)


def test_checked_images_are_cast_and_otherwise_themselves() -> None:
    x = torch.rand(2, 1, 3, 3, generator=seeded(0))
    settings: dict[str, Any] = {"input_shape": (1, 3, 3), "device": torch.device("cpu")}
    assert check_images(x, **settings, dtype=torch.float32) is x
    assert torch.equal(check_images(x, **settings, dtype=torch.float64), x.double())


# What a decision may not depend on.


@each_model
def test_training_and_evaluation_mode_give_the_same_logits(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 4)
    expected = model(x)
    statistics = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in (True, False):
        assert model.train(mode) is model
        assert model.training == mode
        assert torch.equal(model(x), expected)
        assert torch.equal(model.predict(x).labels, expected.argmax(1))
    wrapped = nn.Sequential(model).train()
    assert torch.equal(wrapped(x), expected)
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())


@each_model
def test_only_a_training_loop_switches_the_parts(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    parts = [part for part in model.modules() if part is not model]
    expected = model(images(model, 4))
    model.train()
    assert not any(part.training for part in parts)
    model.set_parts_training(True)
    trained = list(model.purifier.children()) if name == "purified" else parts
    assert all(part.training for part in trained)
    model.set_parts_training(False)
    assert not any(part.training for part in parts)
    assert torch.equal(model(images(model, 4)), expected)


@each_model
def test_global_generators_are_neither_used_nor_touched(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 4)
    with isolated_rng(1), untouched_generators():
        expected = model(x)
        model.predict(x)
    fresh_codebook = make_model(name)
    with isolated_rng(2):
        assert torch.equal(model(x), expected)
        assert torch.equal(fresh_codebook(x), expected)


def test_fresh_noise_and_estimates_leave_the_global_generators_alone(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 2).requires_grad_()
    with untouched_generators():
        model.with_randomness("fresh")(x)
        expectation(model, 2)(x)
        model.with_gradient("estimated").with_inference(steps=0)(x).sum().backward()


# Variants.


@pytest.mark.parametrize(
    "vary",
    [
        lambda model: model.with_inference(steps=0, candidates=3),
        lambda model: model.with_gradient("unrolled"),
        lambda model: model.with_randomness("fresh", seed=5),
        lambda model: model.with_randomness("fixed", seed=5),
    ],
    ids=["inference", "gradient", "fresh", "fixed"],
)
@each_generative_model
def test_variants_share_the_weights_and_leave_the_model_alone(
    name: str, vary: Any, make_model: Make, images: Make
) -> None:
    model = make_model(name)
    x = images(model, 3)
    expected = model(x)
    before = (model.budget, model.gradient, model.noise)
    variant = vary(model)
    assert variant is not model
    assert type(variant) is type(model)
    assert (variant.budget, variant.gradient, variant.noise) != before
    variant(x)
    assert (model.budget, model.gradient, model.noise) == before
    assert torch.equal(model(x), expected)
    weights, shared = model.state_dict(), variant.state_dict()
    assert weights.keys() == shared.keys()
    assert all(weights[key].data_ptr() == shared[key].data_ptr() for key in weights)
    with torch.no_grad():
        model.decoders.layers[-2].bias.add_(1)
    assert torch.equal(variant.decoders.layers[-2].bias, model.decoders.layers[-2].bias)


def test_variants_can_be_chained(make_model: Make) -> None:
    model = make_model("eabs")
    variant = model.with_inference(steps=9).with_gradient(Unrolled(steps=2)).with_randomness("fresh")
    assert variant.with_inference(candidates=7).budget == InferenceBudget(
        candidates=7, steps=9, learning_rate=0.1
    )
    assert variant.gradient == Unrolled(steps=2)
    assert isinstance(variant.noise, FreshNoise)
    assert isinstance(model.gradient, Automatic)
    assert isinstance(model.noise, FixedNoise)


def test_the_mode_of_a_variant_is_its_own(make_model: Make) -> None:
    model = make_model("abs")
    variant = model.with_inference(steps=1)
    variant.train()
    assert not model.training


def test_another_budget_changes_the_scores(make_model: Make, images: Make) -> None:
    model = make_model("abs")
    x = images(model, 3)
    scores = model.class_scores(x)
    changes: list[dict[str, Any]] = [
        *({"steps": 0}, {"candidates": 3}, {"seed": 1}, {"radius": 0.1}, {"tolerance": 10.0}),
        *({"method": "adam"}, {"method": "adam", "learning_rate": 0.3}),
    ]
    for change in changes:
        assert not torch.equal(model.with_inference(**change).class_scores(x), scores), change
    assert torch.equal(model.with_inference(steps=model.budget.steps).class_scores(x), scores)


def test_impossible_variants(make_model: Make) -> None:
    model = make_model("eabs")
    message = r"fields of InferenceBudget, \['bfloat16_search', 'candidates', .*, but got \['step'\]"
    with pytest.raises(ValueError, match=message):
        model.with_inference(step=3)
    with pytest.raises(ValueError, match="`steps` to be at least 0, but got -1"):
        model.with_inference(steps=-1)
    with pytest.raises(ValueError, match="`mode` to be 'fixed' or 'fresh', but got 'random'"):
        model.with_randomness("random")
    with pytest.raises(ValueError, match="no `generator` in mode 'fixed'"):
        model.with_randomness("fixed", generator=seeded(0))
    for seed in (-1, 1.5, "a", None, True, 10**30):
        for mode in ("fixed", "fresh"):
            with pytest.raises(ValueError, match="`seed` to be "):
                model.with_randomness(mode, seed=seed)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.skipif(
    sys.version_info[:3] == (3, 13, 0), reason="torch.compile stops at a fault of Python 3.13.0"
)
def test_a_compiled_model_answers_alike_and_checks_its_images(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    x = images(model, 3)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(ValueError, match="divide by 255"):
        compiled(255 * x)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
def test_a_traced_model_answers_alike_and_checks_no_images(make_model: Make, images: Make) -> None:
    model = make_model("cnn")
    x = images(model, 3)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
    assert traced(255 * x).shape == (3, 4)


# The codebook follows the weights.


def optimiser_step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.decoders.parameters(), lr=1.0)
    model.decoders(torch.ones(2, model.num_classes, model.objective.latent_dim)).sum().backward()
    optimizer.step()
    model.zero_grad()


def loaded_weights(model: Any) -> None:
    weights = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(weights)


def assigned_weights(model: Any) -> None:
    weights = {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)


def new_statistics(model: Any) -> None:
    model.decoders.layers.get_submodule("norm0").running_mean.add_(0.5)


def data_attribute(model: Any) -> None:
    for parameter in model.decoders.parameters():
        parameter.data.mul_(1.5)


def replaced_data(model: Any) -> None:
    for parameter in model.decoders.parameters():
        parameter.data = 1.5 * parameter.data


def half_precision_and_back(model: Any) -> None:
    model.half().float()


def prior_step(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.mul_(3)


CHANGES = [
    optimiser_step,
    loaded_weights,
    assigned_weights,
    new_statistics,
    data_attribute,
    replaced_data,
    half_precision_and_back,
]
CASES = [(name, change) for name in GENERATIVE for change in CHANGES] + [
    ("eabs", prior_step),
    ("vade", prior_step),
]


@pytest.mark.parametrize(("name", "change"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_the_codebook_is_rebuilt_when_weights_change(
    name: str, change: Any, make_model: Make, images: Make
) -> None:
    model = make_model(name).with_inference(steps=0, encoder_proposal=False)
    variant = model.with_gradient("unrolled")
    x = images(model, 8)
    before = model(x)
    change(model)
    anew = make_model(name).with_inference(steps=0, encoder_proposal=False)
    anew.load_state_dict(model.state_dict())
    expected = anew(x)
    assert not torch.equal(expected, before)
    assert torch.equal(model(x), expected)
    assert torch.equal(variant(x), expected)


def test_the_codebook_is_kept_while_weights_stay(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 2)
    model(x)
    decoded: list[int] = []
    decoders = model.objective.decoders
    hook = decoders.register_forward_hook(lambda _, inputs, __: decoded.append(len(inputs[0])))
    model(x)
    model.with_gradient("unrolled").with_inference(steps=2, learning_rate=0.3)(x)
    hook.remove()
    assert max(decoded) == len(x)  # images, and never the 40 candidates


# Copies.


@each_model
def test_copies_give_the_same_logits(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert torch.equal(twin(x), expected)
        assert twin.config == model.config


@each_generative_model
def test_a_deep_copy_is_independent(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    expected = model(x)
    twin = copy.deepcopy(model)
    twin(x)
    loaded_weights(twin)
    anew = make_model(name)
    anew.load_state_dict(twin.state_dict())
    assert torch.equal(model(x), expected)
    assert torch.equal(twin(x), anew(x))
    assert not torch.equal(twin(x), expected)
    assert twin.objective is not model.objective
    assert twin.objective.prior is twin.prior


@each_generative_model
def test_pickles_hold_no_codebook(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    before = len(pickle.dumps(model))
    model(images(model, 3))
    assert len(pickle.dumps(model)) == before


def test_copies_of_a_fresh_model_go_on_alike(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_randomness("fresh", seed=3)
    x = images(model, 3)
    model(x)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = model(x)
    for twin in twins:
        assert torch.equal(twin(x), expected)


@each_model
def test_a_state_dict_holds_all_that_decides(name: str, make_model: Make, images: Make) -> None:
    model, other = make_model(name), make_model(name, seed=1)
    x = images(model, 3)
    if name in GENERATIVE:
        model.temperature.fill_(3.0)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


# Randomness.


def test_fixed_noise_gives_the_same_logits_at_every_call_and_row(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 1).expand(4, -1, -1, -1)
    logits = model(x)
    assert torch.equal(model(x), logits)
    torch.testing.assert_close(logits, logits[:1].expand(4, -1), rtol=0, atol=1e-4)
    seeds = [model.with_randomness("fixed", seed=seed)(x) for seed in (0, 1, 1)]
    assert torch.equal(seeds[0], logits)
    assert torch.equal(seeds[1], seeds[2])
    assert not torch.equal(seeds[0], seeds[1])


def test_fresh_noise_differs_between_calls_and_rows(make_model: Make, images: Make) -> None:
    generator = seeded(0)
    model = make_model("eabs").with_randomness("fresh", generator=generator)
    x = images(model, 1).expand(4, -1, -1, -1)
    state = generator.get_state()
    first = model(x)
    assert not torch.equal(generator.get_state(), state)
    second = model(x)
    logits = torch.cat([first, second])
    assert len(logits.unique(dim=0)) == 8
    assert (logits.std(0) > 1e-3).all()


def test_a_fresh_generator_is_reproducible(make_model: Make, images: Make) -> None:
    model = make_model("eabs")
    x = images(model, 3)
    given, seed, other = (
        model.with_randomness("fresh", **settings)
        for settings in ({"generator": seeded(4)}, {"seed": 4}, {"seed": 5})
    )
    calls = [given(x), given(x)]
    assert torch.equal(calls[0], seed(x))
    assert torch.equal(calls[1], seed(x))
    assert not torch.equal(calls[0], other(x))


def test_variants_of_a_fresh_model_share_its_generator(make_model: Make, images: Make) -> None:
    model = make_model("eabs").with_randomness("fresh", seed=1)
    x = images(model, 3)
    variant = model.with_inference(max_bytes=2**20)
    again = make_model("eabs").with_randomness("fresh", seed=1)
    assert torch.equal(variant(x), again(x))
    assert torch.equal(model(x), again(x))


def test_a_fixed_stream_has_one_draw_per_step_for_all_rows() -> None:
    like = torch.zeros((), dtype=torch.float64)
    stream = FixedNoise(3).stream(part=1)
    first, second = stream.normal((5, 2, 3), like=like), stream.normal((5, 2, 3), like=like)
    assert first.dtype == torch.float64
    assert torch.equal(first, first[:1].expand(5, -1, -1))
    assert not torch.equal(first, second)
    again = FixedNoise(3).stream(part=1)
    assert torch.equal(again.normal((5, 2, 3), like=like), first)
    assert torch.equal(again.normal((1, 2, 3), like=like), second[:1])
    for other in (FixedNoise(3).stream(part=0), FixedNoise(4).stream(part=1)):
        assert not torch.equal(other.normal((5, 2, 3), like=like), first)


@pytest.mark.parametrize("source", [FixedNoise(0), FreshNoise(seeded(0))], ids=["fixed", "fresh"])
def test_noise_is_standard_normal(source: Any) -> None:
    noise = source.stream().normal((1, 50_000), like=torch.zeros(()))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_noise_sources_by_mode() -> None:
    assert isinstance(noise_source("fixed", seed=2), FixedNoise)
    generator = seeded(0)
    fresh = noise_source("fresh", generator=generator)
    assert isinstance(fresh, FreshNoise)
    assert fresh.generator is generator
    with pytest.raises(ValueError, match="`mode` to be 'fixed' or 'fresh', but got 'none'"):
        noise_source("none")  # type: ignore[arg-type]


def draw_globally() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def test_isolated_draws_are_seeded_and_leave_no_trace() -> None:
    def interrupted() -> None:
        with isolated_rng(5):
            draw_globally()
            raise RuntimeError("stop")

    with untouched_generators():
        with isolated_rng(5):
            first = draw_globally()
        with pytest.raises(RuntimeError, match="stop"):
            interrupted()
        with isolated_rng(5):
            assert draw_globally() == first
        with isolated_rng(6):
            assert all(a != b for a, b in zip(draw_globally(), first, strict=True))


# Predictions.


@each_model
def test_a_prediction_agrees_with_the_logits(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 9)
    logits, prediction = model(x), model.predict(x)
    assert torch.equal(prediction.labels, logits.argmax(1))
    torch.testing.assert_close(prediction.probabilities.sum(1), torch.ones(9))
    assert (prediction.probabilities >= 0).all()
    assert prediction.rejected.dtype == torch.bool
    assert not prediction.rejected.any()
    assert not prediction.probabilities.requires_grad
    expected = model.class_scores(x) if isinstance(model, GenerativeClassifier) else logits
    assert torch.equal(prediction.scores, expected)
    if name != "abs":  # whose probabilities have a floor
        torch.testing.assert_close(prediction.probabilities, logits.softmax(1))


@each_generative_model
def test_logits_are_a_rising_map_of_the_scores(name: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 9)
    scores, logits = model.class_scores(x), model(x)
    torch.testing.assert_close(model.scores_to_logits(scores), logits)
    assert torch.equal(scores.argsort(1), logits.argsort(1))
    model.temperature.mul_(4)
    torch.testing.assert_close(model(x), logits / 4)
    assert torch.equal(model.class_scores(x), scores)


@each_generative_model
def test_scores_are_log_likelihoods_of_equally_likely_classes(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64)
    if "expectation_draws" in model.inference:
        model = model.with_inference(expectation_draws=1)
    x = images(model, 5)
    noise = model.noise.stream(part=1)
    reconstruction, prior = model.with_inference(steps=0).objective.draw(model.search(x)[0], noise)
    variance = 0.1 if name == "vade" else 0.5
    observation = torch.distributions.Normal(reconstruction, variance**0.5)
    joint = observation.log_prob(x[:, None]).sum((2, 3, 4)) - prior - np.log(model.num_classes)
    torch.testing.assert_close(model.with_inference(steps=0).class_scores(x), joint)


def test_the_contract_is_abstract() -> None:
    for contract in (Classifier, GenerativeClassifier):
        with pytest.raises(TypeError, match="abstract"):
            contract(input_shape=(1, 2, 2), num_classes=2)  # type: ignore[abstract]


def test_fixed_noise_is_no_candidate() -> None:
    """torch's CPU generator takes 32 bits of a seed: streams that differ in higher bits are one stream."""
    like = torch.zeros(1)
    draws = [FixedNoise(seed).stream(part).normal((1, 8), like=like) for seed in (0, 1) for part in (0, 1)]
    small = [torch.randn((1, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(1100)]
    assert not any(torch.equal(draw, other) for draw in draws for other in small)
    assert len({tuple(draw[0].tolist()) for draw in draws}) == 4
