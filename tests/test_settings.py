"""Settings and fingerprints: what changes an answer changes them, in every class, and nothing else does."""

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussians import Gaussians
from torch import Tensor, nn

import genrobust.attack_view
import genrobust.external
import genrobust.models
import genrobust.purifiers
import genrobust.selective
from genrobust import Classifier, Purified, SelectiveClassifier
from genrobust._settings import digest
from genrobust.attack_view import Probabilities
from genrobust.certificates import Smoothed
from genrobust.contract import ImageModule, fingerprint
from genrobust.eot import Expectation, Majority, MeanPrediction
from genrobust.external import WrappedModule
from genrobust.gradients import Estimated, Unrolled
from genrobust.inference import InferenceBudget
from genrobust.purifiers import (
    ComDefend,
    ComDefendConfig,
    DiffusionPurifier,
    LatentProjection,
    RobustDiffusionClassifier,
)
from genrobust.selective import Detector, LogitScores
from genrobust.selective.guard import GuardedClassifier
from genrobust.zoo import read_model, save_model

Make = Callable[..., Any]

ZOO = [
    *("abs", "bnn", "cnn", "conv-net", "deep-bayes", "diffusion", "eabs", "flow", "gmvae", "mlp", "pixelcnn"),
    *("pool-cnn", "purified", "vade"),
]
SHAPES = ("input_shape", "num_classes", "latent_dim")  # another one is another network
DETECTOR = Detector(evidence="marginal", thresholds=(3.0,), false_positive_rate=0.05)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * 2


def decode(z: Tensor) -> Tensor:
    return z.sum(1)[:, None, None, None].sigmoid().expand(-1, 1, 8, 8)


def wrapped(function: Callable[[Tensor], Tensor] | nn.Module) -> WrappedModule:
    module = function if isinstance(function, nn.Module) else genrobust.external._Function(function)
    return WrappedModule(module, input_shape=(1, 8, 8), num_classes=4)


def projection(**inference: Any) -> LatentProjection:
    budget = InferenceBudget(**{"candidates": 8, "steps": 1, **inference})
    return LatentProjection(decode, latent_dim=2, input_shape=(1, 8, 8), inference=budget)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


WRAPPERS: dict[str, Callable[[Make], ImageModule]] = {
    "selective": lambda make: SelectiveClassifier(make("vade"), [DETECTOR]),
    "guarded": lambda make: GuardedClassifier(make("cnn"), make("vade"), [DETECTOR]),
    "expectation": lambda make: Expectation(make("eabs").with_randomness("fresh"), draws=2),
    "mean-prediction": lambda make: MeanPrediction(make("bnn"), draws=2, generator=generator()),
    "majority": lambda make: Majority(make("eabs"), draws=2),
    "probabilities": lambda make: Probabilities(make("abs")),
    "smoothed": lambda make: Smoothed(make("cnn"), sigma=0.2, draws=3),
    "nearest-mean": lambda make: make("gmvae").encoder_view(),
    "wrapped": lambda _: wrapped(Double()),
    "projected": lambda make: Purified(projection(), make("eabs"), gradient="bpda"),
    "compressed": lambda make: Purified(
        ComDefend(ComDefendConfig(input_shape=(1, 8, 8), compression=(3,), reconstruction=(3,))),
        SelectiveClassifier(make("vade"), [DETECTOR]),
    ),
    "robust-diffusion": lambda make: RobustDiffusionClassifier(make("diffusion")),
    "noised": lambda make: Purified(DiffusionPurifier(make("diffusion")), make("diffusion")),
    "logit-scores": lambda make: LogitScores(make("cnn")),
    "layers": lambda make: Probabilities(SelectiveClassifier(make("gmvae"), [DETECTOR])),
}
each_module = pytest.mark.parametrize("name", [*ZOO, *WRAPPERS])


@pytest.fixture
def made(make_model: Make) -> Make:
    """Gives a function that makes a small module of every public class, by name."""

    def make(name: str) -> Any:
        return make_model(name) if name in ZOO else WRAPPERS[name](make_model)

    return make


def concrete(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield from concrete(child)
        if child.__module__.startswith("genrobust.") and "__final__" in vars(child):
            yield child


def parts(module: ImageModule) -> Iterator[ImageModule]:
    return (part for part in module.modules() if isinstance(part, ImageModule))


def test_every_class_is_walked(made: Make) -> None:
    walked = {type(part) for name in (*ZOO, *WRAPPERS) for part in parts(made(name))}
    assert set(concrete(ImageModule)) - walked == set()


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}-other"
        case tuple() if value:
            return (other(value[0]), *value[1:])
        case None | tuple():
            return 7
        case torch.Generator():
            return torch.Generator().manual_seed(value.initial_seed() + 1)
        case torch.Tensor():
            return value + 1
    if is_dataclass(value) and fields(value):
        first = fields(value)[0].name
        return changed_field(value, first)
    if callable(value):
        return lambda *arguments: value(*arguments) / 2
    return f"other than {type(value).__name__}"


def changed_field(value: Any, name: str) -> Any:
    """Changes a field behind the back of its class, whose checks would not have it."""
    changed = copy.copy(value)
    object.__setattr__(changed, name, other(getattr(value, name)))
    return changed


def variants(module: ImageModule) -> Iterator[tuple[str, Any]]:
    """Every attribute with every other value, one at a time; of a dataclass, every field."""
    own = vars(nn.Module()).keys()
    for name, value in list(vars(module).items()):
        if name in own or name in module.caches or name in SHAPES:
            continue
        if name == "encoder":
            yield name, lambda x: x.flatten(1)[:, :2]
        elif is_dataclass(value) and not isinstance(value, type):
            yield from ((name, changed_field(value, field.name)) for field in fields(value))
        else:
            yield name, other(value)


@each_module
def test_every_setting_of_every_part_counts(name: str, made: Make) -> None:
    whole = made(name)
    before = fingerprint(whole)
    for part in parts(whole):
        for attribute, changed in variants(part):
            kept = getattr(part, attribute)
            vars(part)[attribute] = changed
            assert fingerprint(whole) != before, (type(part).__name__, attribute, changed)
            vars(part)[attribute] = kept
    assert fingerprint(whole) == before


@each_module
def test_every_weight_counts(name: str, made: Make) -> None:
    whole = made(name)
    before = fingerprint(whole)
    weights = list(whole.state_dict().items())
    if name in WRAPPERS:  # all weights of what they wrap are walked on its own
        weights = weights[:: math.ceil(len(weights) / 8)]
    for key, weight in weights:
        kept = weight.clone()
        weight.view(-1)[-1:] += 1
        assert fingerprint(whole) != before, key
        weight.copy_(kept)
    assert fingerprint(whole) == before


@each_module
def test_every_variant_has_a_fingerprint_of_its_own(name: str, made: Make) -> None:
    whole = made(name)
    seen = {fingerprint(whole)}
    for gradient in whole.gradients:
        seen.add(fingerprint(whole.with_gradient(gradient)))
    assert len(seen) == len(whole.gradients) + own_gradient(whole)
    for field, value in whole.inference.items():
        changed = {
            "method": "adam",
            "search": "distributions",
            "radius": 2.0,
            "refined_classes": 2,
            "weighting": "inverse",
        }.get(field, other(value))
        if field in ("drop_least_likely", "trailing_tolerance"):
            changed = 0.5 * value + 0.25
        if (field, value) == ("encoder_proposal", True) and not whole.inference["candidates"]:
            continue
        assert fingerprint(whole.with_inference(**{field: changed})) not in seen, field


def own_gradient(model: Any) -> int:
    """1 where the model's gradient is a strategy that no name stands for."""
    return int(fingerprint(model) not in {fingerprint(model.with_gradient(name)) for name in model.gradients})


@each_module
def test_gradients_are_told_and_others_refused(name: str, made: Make) -> None:
    model = made(name)
    for gradient in model.gradients:
        assert isinstance(model.with_gradient(gradient), type(model))
    known = "surrogate gradients, but .* has none"
    if model.gradients:
        known = rf"`gradient` out of \[{', '.join(map(repr, model.gradients))}\] for {type(model).__name__}, "
    with pytest.raises(ValueError, match=known):
        model.with_gradient("no such gradient")


@each_module
def test_budgets_are_told_and_others_refused(name: str, made: Make) -> None:
    model = made(name)
    with pytest.raises(ValueError, match="wished_for"):
        model.with_inference(wished_for=1)


@each_module
def test_noise_and_candidates_are_never_silently_the_same(name: str, made: Make) -> None:
    model = made(name)
    draws = model.randomized or isinstance(model, Majority)
    modes: list[dict[str, Any]] = [{"mode": "fresh", "seed": 5}, {"mode": "fresh", "seed": 6}]
    if not isinstance(model, Expectation | MeanPrediction):
        modes += [{"mode": "fixed", "seed": 5}, {"mode": "fixed", "seed": 6}]
    found = {fingerprint(model.with_randomness(**mode)) for mode in modes}
    noisy = [part for part in parts(model) if vars(part).get("noise") is not None]
    if draws:
        assert len(found) == len(modes)
    elif not noisy:
        assert found == {fingerprint(model)}
    searches = any("seed" in part.inference for part in parts(model))
    assert (fingerprint(model.with_candidates(9)) != fingerprint(model)) == searches


def test_a_model_that_draws_noise_must_say_how(make_model: Make) -> None:
    class Careless(type(make_model("mlp"))):  # type: ignore[misc]
        randomized = True

    careless = make_model("mlp")
    careless.__class__ = Careless
    for model in (careless, SelectiveClassifier(gaussians_that_draw(), [DETECTOR])):
        with pytest.raises(NotImplementedError, match="which draws noise, to inherit `Randomized`"):
            model.with_randomness("fresh")


def gaussians_that_draw() -> Gaussians:
    model = Gaussians()
    model.randomized = True
    return model


# The same answers, the same fingerprint.


@each_module
def test_use_and_copies_change_nothing(name: str, made: Make, images: Make) -> None:
    model = made(name)
    before = fingerprint(model)
    if not isinstance(model, WrappedModule):
        model = model.to(torch.float32)
    x = torch.rand((2, *model.input_shape))
    model(x)
    model.predict(x)
    assert fingerprint(model) == before
    assert fingerprint(copy.deepcopy(model)) == before
    assert fingerprint(model.train()) == before
    if name != "projected":  # whose decoder is a function of this file
        assert fingerprint(pickle.loads(pickle.dumps(model))) == before


@pytest.mark.parametrize("name", ZOO)
def test_a_saved_model_comes_back_as_the_same(name: str, make_model: Make, tmp_path: Path) -> None:
    model = make_model(name)
    save_model(model, tmp_path / "model.safetensors")
    assert fingerprint(read_model(tmp_path / "model.safetensors")) == fingerprint(model)


IN_ANOTHER_PROCESS = """
from genrobust import load_model
from genrobust.contract import fingerprint
print(*(fingerprint(load_model(name, dataset="digits")) for name in ("cnn", "vade", "gmvae")))
"""


def test_another_process_finds_the_same() -> None:
    from genrobust import load_model

    answer = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], capture_output=True, text=True, check=True
    ).stdout
    assert answer.split() == [fingerprint(load_model(n, dataset="digits")) for n in ("cnn", "vade", "gmvae")]


# What holds no numbers of its own.


def test_strategies_with_settings_of_their_own(make_model: Make) -> None:
    model = SelectiveClassifier(make_model("vade"), [DETECTOR])
    gradients = [Unrolled(steps=2), Unrolled(steps=3), Estimated(pairs=3), Estimated(pairs=4)]
    gradients.append(Estimated(pairs=3, generator=torch.Generator().manual_seed(9)))
    assert len({fingerprint(model.with_gradient(gradient)) for gradient in gradients}) == len(gradients)


def test_functions_are_told_apart_by_what_they_do() -> None:
    layer = nn.Linear(64, 4)

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: layer(factor * x.flatten(1))

    def masked(x: Tensor) -> Tensor:
        return layer(x.flatten(1)) + 0 * x.sum()

    def blind(x: Tensor) -> Tensor:
        return layer(x.detach().flatten(1)) + 0 * x.sum()

    functions: list[Any] = [scaled(1.0), scaled(1.1), partial(torch.add, 1), masked, blind, Double()]
    functions[2] = partial(lambda shift, x: layer(x.flatten(1)) + shift, 3.0)
    found = [fingerprint(wrapped(function)) for function in functions]
    assert len(set(found)) == len(found)
    assert fingerprint(wrapped(scaled(1.0))) == found[0]
    with torch.no_grad():
        layer.bias[0] += 1
    assert fingerprint(wrapped(functions[0])) != found[0]


def test_two_decoders_are_told_apart_by_what_they_do(make_model: Make) -> None:
    def scaled(factor: float) -> LatentProjection:
        return LatentProjection(lambda z: decode(factor * z), latent_dim=2, input_shape=(1, 8, 8))

    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0)) != fingerprint(scaled(1.1))


def test_a_module_with_a_generator_of_its_own_keeps_its_fingerprint() -> None:
    own = torch.Generator().manual_seed(0)
    model = wrapped(lambda x: x.flatten(1)[:, :4] + torch.randn(4, generator=own))
    assert fingerprint(model) == fingerprint(model)


class Stub(Classifier):
    caches = frozenset({"memory"})

    def __init__(self, attribute: Any) -> None:
        super().__init__(input_shape=(1, 2, 2), num_classes=4)
        self.scale = nn.Parameter(torch.ones(()))
        self.attribute = attribute
        self.memory: Any = None

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


def test_an_attribute_that_cannot_be_written_down_is_named() -> None:
    with pytest.raises(TypeError, match=r"`Stub.attribute\['lock'\]` is a generator.* name it in `caches`"):
        fingerprint(Stub({"lock": (i for i in range(3))}))
    model = Stub(1)
    before = fingerprint(model)
    model.memory = (i for i in range(3))
    assert fingerprint(model) == before


def test_classes_of_others_are_told_apart_by_module() -> None:
    assert Stub(1).settings()["class"] == f"{Stub.__module__}.Stub"
    assert Gaussians().settings()["class"] == "gaussians.Gaussians"


# Hashes of weights.


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool], ids=str
)
def test_a_digest_reads_every_dtype(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    flipped = torch.tensor([[1, 1], [1, 1]]).to(dtype)
    assert digest(values) == digest(values.clone())
    assert len({digest(values), digest(flipped), digest(values.reshape(4)), digest(values.float())}) == 4 - (
        dtype == torch.float32
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_digest_reads_quantised_and_sparse_tensors_and_extra_state() -> None:
    values = torch.tensor([0.0, 0.5, 1.0])
    quantised = [torch.quantize_per_tensor(values, scale, 0, torch.qint8) for scale in (0.1, 0.2)]
    per_channel = torch.quantize_per_channel(values[:, None], values + 1, torch.zeros(3), 0, torch.qint8)
    extra = [{"state": bytes(2), "scales": (values, 1)}, {"state": bytes(3), "scales": (values, 1)}]
    found = [digest(part) for part in (*quantised, per_channel, values.to_sparse(), *extra)]
    assert len(set(found)) == len(found)
    assert found == [digest(part) for part in (*quantised, per_channel, values.to_sparse(), *extra)]


class Extra(nn.Module):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]


def test_extra_state_and_buffers_outside_the_state_dict_count() -> None:
    first, second, third = Extra({"scale": 1}), Extra({"scale": 2}), Extra({"scale": 1})
    third.hidden += 1
    assert len({fingerprint(wrapped(module)) for module in (first, second, third)}) == 3
