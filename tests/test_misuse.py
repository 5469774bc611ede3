"""The misuse matrix: every public function with wrong types, dtypes, shapes, ranges, contexts and copies.

An outcome is right (the answer of the plain call, or an error of ours that begins with what was expected and
names the argument), obscure (another error), or silently wrong (an answer where there is none).
"""

import copy
import math
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genrobust
from genrobust.adapters.contract import available
from genrobust.selective import Detector

Make = Callable[..., Any]
COUNT, OBSCURE = 4, 0.02
OUTCOMES = ("right", "obscure", "silent")

# What has no arguments, runs no code of ours with them, or is abstract.
BARE = {
    *("Classifier", "GenerativeClassifier", "Prediction", "Purifier", "Verification"),
    *("import_advertorch", "import_advlib"),
}
REGISTERING = {"register_attack", "register_dataset", "register_model", "register_suite"}
TOOLKITS = {
    "as_torchattacks": "torchattacks",
    "criterion_for_foolbox": "foolbox",
    "run_autoattack": "robustbench",
    "wrap_for_advertorch": "advertorch",
    "wrap_for_advlib": "advlib",
    "wrap_for_art": "art",
    "wrap_for_foolbox": "foolbox",
    "wrap_for_robustbench": "robustbench",
    "wrap_for_secml": "secmltorch",
    "wrap_for_torchattacks": "torchattacks",
    "AutoAttackBudget": "robustbench",
}
NOTHING = (None, "a", b"a", 3, 1.5, [], {}, object(), int, torch.ones(2))


@dataclass(frozen=True)
class Door:
    """A callable with arguments that it takes, and the kind of every argument that is to be misused."""

    call: Callable[..., Any]
    plain: Mapping[str, Any]
    kinds: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)


NUMBERS = (math.nan, math.inf, -math.inf, -1, "a", None, [], {}, object(), True, 1j, torch.ones(3))
NO_COUNTS = (*NUMBERS, 1.5, 0, "2", np.float64(2.5), np.bool_(True))
NO_SEEDS = (*NUMBERS, 1.5, 10**30, "2", np.float64(2.5), np.bool_(True))
NO_RADII = (*NUMBERS, 0, 8, 300.0, "8/255", [0.1], np.array([0.1, 0.2]), -0.1)
NO_DEVIATIONS = (*NUMBERS, 0, -0.1, "0.1", [0.1], np.array([0.1, 0.2]))
NO_NAMES = (*NOTHING, "", "../x", "x" * 300, True)
NO_CHOICES = (*NOTHING, "", "LINF", "l3", True)
NO_LISTS = (None, "a", b"a", 3, 1.5, {}, object(), int, True, [1], ["a"])
NO_INTERVALS = (*NOTHING, (0,), (1, 0), (0, math.nan), (-1, 1), ("a", "b"), (0, 255), (0, 0))
NO_NETWORKS = (*NOTHING, np.ones(3), lambda _: None, lambda x: x, lambda x: x.flatten(1).sum())


def no_images(good: Tensor) -> Iterator[Any]:
    yield from (*NOTHING, good.numpy(), good.tolist(), good[0], good[..., 0], good.flatten(1))
    yield from (good.long(), (255 * good).byte(), good.bool(), good.to(torch.complex64))
    yield from (255 * good, good - 2, (good - 0.13) / 0.3, good * math.nan, good * math.inf, -good)
    yield from (torch.cat([good] * 3, 1), good[..., 1:], good.to("meta"), good.to_sparse())


def no_labels(good: Tensor) -> Iterator[Any]:
    yield from (*NOTHING, good.numpy(), good.tolist(), good.float(), good.bool(), good.half())
    yield from (good[:1].repeat(9), good[:, None], good[0], good - 100, good + 100)
    yield from (torch.eye(10)[good], torch.eye(10, dtype=torch.long)[good], good.to("meta"))


def no_mask(good: Tensor) -> Iterator[Any]:
    yield from (*NOTHING, good.float(), good.long(), good[:2], good[None], good.to("meta"), good.numpy())


WRONG: Mapping[str, Callable[[Any], Iterable[Any]]] = {
    "count": lambda _: NO_COUNTS,
    "seed": lambda _: NO_SEEDS,
    "radius": lambda _: NO_RADII,
    "deviation": lambda _: NO_DEVIATIONS,
    "share": lambda _: (*NO_DEVIATIONS, 1, 1.5),
    "name": lambda _: NO_NAMES,
    "text": lambda _: [value for value in NOTHING if not isinstance(value, str)],
    "choice": lambda _: NO_CHOICES,
    "interval": lambda _: NO_INTERVALS,
    "list": lambda _: NO_LISTS,
    "model": lambda _: (*NOTHING, nn.Linear, np.ones(3)),
    "part": lambda _: (*NOTHING, nn.Linear, np.ones(3)),
    "network": lambda _: NO_NETWORKS,
    "function": lambda _: NOTHING,
    "images": no_images,
    "labels": no_labels,
    "classes": lambda good: [value for value in no_labels(good) if np.shape(value) != (9,)],  # of any number
    "mask": no_mask,
}


def wrong(kind: str, good: Any) -> Iterator[Any]:
    """Yields what an argument of a kind may not be; `?` stands for one that may be None."""
    for value in WRONG[kind.rstrip("?")](good):
        if not (value is None and kind.endswith("?")) and not (
            value is int and kind in ("network", "function")
        ):
            yield value


def alike(kind: str, good: Any) -> Iterator[Any]:
    """Yields other forms of the same argument, which give the same answer."""
    match kind:
        case "count" | "seed" | "count?" if good is not None:
            yield from (np.int64(good), np.uint8(good), np.int32(good), float(good))
        case "radius" | "deviation" | "share":
            yield from (np.float64(good), np.float32(good))
        case "images":
            yield from (
                good.double(),
                good.clone(memory_format=torch.channels_last),
                good.requires_grad_(False),
            )
            with torch.inference_mode():
                yield good.clone()
        case "labels":
            yield from (good.int(), good.short(), good.to(torch.uint8), good.clone())
        case "model" | "network" | "part":
            if kind != "part":
                yield nn.DataParallel(good)
            yield from (copy.deepcopy(good), copy.copy(good))
            yield pickle.loads(pickle.dumps(good))


def said(answer: Any) -> Any:
    """Returns what two answers are compared by."""
    if isinstance(answer, genrobust.Prediction):
        return [answer.labels, answer.probabilities]
    if isinstance(answer, genrobust.Verification):
        return [answer.success, answer.claimed, answer.prediction, answer.distance]
    if isinstance(answer, tuple):
        return [part for item in answer for part in said(item)]
    return [answer] if isinstance(answer, Tensor) else []


def same(one: Any, other: Any) -> bool:
    pairs = zip(said(one), said(other), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs)


def judged(door: Door, name: str, value: Any, expected: Any = None, *, fine: bool) -> str:
    """Calls a door with one argument changed, and classes what comes of it."""
    try:
        answer = door.call(**{**door.plain, name: value})
    except (ValueError, TypeError) as error:
        text, called = str(error), door.aliases.get(name, f"`{name}")
        clear = text.startswith("Expected") and (called in text or name in text)
        return "obscure" if fine or not clear else "right"
    except FileNotFoundError as error:  # `load_plugin` has a path that is none
        return "right" if str(error).startswith("Expected") and not fine else "obscure"
    except Exception:
        return "obscure"
    if not fine:
        return "silent"
    return "right" if same(answer, expected) else "silent"


@pytest.fixture(scope="module")
def doors(make_model: Make, images: Make) -> dict[str, Door]:
    """Gives every public callable with small arguments, and the methods of a model."""
    cnn, eabs, abs_, gmvae = (make_model(name) for name in ("cnn", "eabs", "abs", "gmvae"))
    mlp, purified = make_model("mlp"), make_model("purified")
    x = images(cnn, COUNT)
    y = cnn.predict(x).labels
    far = (x + 0.1).clamp(0, 1)
    ball: dict[str, Any] = {"norm": "linf", "epsilon": 0.2, "seed": 0}
    kinds = {"model": "network", "images": "images", "labels": "labels", "norm": "choice"}
    kinds |= {"epsilon": "radius?", "seed": "seed"}
    shown = {"images": "`", "x": "`x`"}
    three = {"model": cnn, "images": x, "labels": y}
    wraps = {"model": eabs, "eot": 2, "output": "logits", "seed": 0}
    wrapped = {"model": "model", "eot": "count", "output": "choice", "seed": "seed"}
    detector = Detector(evidence="marginal", thresholds=(0.0,), false_positive_rate=0.05, unit=1.0)
    push = lambda *_, **__: x  # noqa: E731
    found = {
        "as_classifier": Door(
            lambda model, images: genrobust.as_classifier(model, images)(x),
            {"model": cnn, "images": x},
            {"model": "network"},
            {"model": "`"},
        ),
        "verify": Door(
            genrobust.verify,
            {**three, **ball, "adversarial": far, "claimed": y > -1, "draws": 1},
            {**kinds, "claimed": "mask?", "draws": "count"},
            shown,
        ),
        "strongest": Door(
            genrobust.strongest,
            {**three, **ball, "draws": 1},
            {**kinds, "epsilon": "radius", "draws": "count"},
            shown,
        ),
        "attack_every_class": Door(
            genrobust.attack_every_class,
            {**three, **ball, "attack": lambda _: far},
            {**kinds, "attack": "function"},
            shown,
        ),
        "certify": Door(
            lambda **settings: genrobust.certify(**settings).radii,
            {"model": abs_, "x": images(abs_, COUNT), "y": y, "seeds": 1},
            {"model": "model", "x": "images", "y": "labels", "seeds": "count?", "method": "choice"},
            {"y": "`labels`"},
        ),
        "certify by smoothing": Door(
            lambda **settings: genrobust.certify(**settings, method="smoothing").radii,
            {"model": cnn, "x": x, "y": y, "sigma": 0.1, "n0": 5, "n": 20, "alpha": 0.1, "batch_size": 25},
            {
                "model": "network",
                "x": "images",
                "y": "labels",
                "sigma": "deviation",
                "n0": "count?",
                "n": "count?",
                "alpha": "share?",
                "batch_size": "count?",
            },
            {"model": "`", "x": "`", "y": "`labels`"},
        ),
        "load_model": Door(
            genrobust.load_model,
            {"name": "cnn", "dataset": "digits"},
            {"name": "name", "dataset": "name"},
            {"name": "Expected", "dataset": "Expected"},
        ),
        "load_dataset": Door(
            lambda **settings: genrobust.load_dataset(**settings).labels,
            {"name": "digits", "split": "test"},
            {"name": "name", "split": "name"},
            {"name": "Expected", "split": "`split`"},
        ),
        "load_plugin": Door(genrobust.load_plugin, {"path": "x.py"}, {"path": "name"}, {"path": "plug-in"}),
        "Purified": Door(
            lambda **settings: genrobust.Purified(**settings)(x),
            {"purifier": purified.purifier, "classifier": cnn, "gradient": "through"},
            {"purifier": "part", "classifier": "model", "gradient": "choice"},
        ),
        "SelectiveClassifier": Door(
            genrobust.SelectiveClassifier,
            {"model": gmvae, "detectors": [detector]},
            {"model": "model", "detectors": "function"},
            {"detectors": "detector"},
        ),
        "AutoAttackBudget": Door(
            lambda **settings: genrobust.AutoAttackBudget(**settings),
            {"n_iter": 2},
            dict.fromkeys(("n_iter", "n_queries", "n_restarts", "eot_iter"), "count?"),
        ),
        "run_autoattack": Door(
            lambda **settings: (
                genrobust.run_autoattack(
                    **settings, attacks=["apgd-ce"], budget=genrobust.AutoAttackBudget(n_iter=1)
                ).verification
            ),
            {**three, **ball, "eot": 1, "output": "logits", "batch_size": 4, "version": "standard"},
            {**kinds, "eot": "count", "output": "choice", "batch_size": "count", "version": "choice"},
            shown,
        ),
        "audit": Door(
            lambda **settings: genrobust.audit(**settings, checks=["answers"], show_progress=False),
            {**three, **ball},
            {"images": "images", "labels": "labels", "norm": "choice", "epsilon": "radius", "seed": "seed"},
            shown,
        ),
        "evaluate": Door(
            lambda **settings: genrobust.evaluate(cnn, **settings, show_progress=False),
            {"suite": "quick"},
            {
                "suite": "name",
                "dataset": "choice?",
                "split": "choice",
                "scale": "choice",
                "compare_with": "list",
                "samples": "count?",
                "seed": "seed",
                "jobs": "count?",
                "engine": "choice",
                "attacks": "list",
            },
            {"suite": "Expected", "dataset": "Expected", "attacks": "Expected", "compare_with": "model"},
        ),
        "criterion_for_foolbox": Door(
            genrobust.criterion_for_foolbox,
            {"labels": y, "num_classes": 4},
            {"labels": "classes", "num_classes": "count"},
        ),
        "as_torchattacks": Door(
            genrobust.as_torchattacks,
            {"name": "mine", "model": mlp, "attack": push},
            {"name": "text", "model": "model", "attack": "function"},
        ),
        **{
            f"wrap_for_{toolkit}": Door(getattr(genrobust, f"wrap_for_{toolkit}"), wraps, wrapped)
            for toolkit in ("advertorch", "advlib", "foolbox", "robustbench", "secml", "torchattacks")
        },
        "wrap_for_art": Door(
            genrobust.wrap_for_art, {**wraps, "clip_values": (0, 1)}, {**wrapped, "clip_values": "interval"}
        ),
    }
    for name in ("__call__", "predict", "class_scores", "reconstruct"):
        found[f"eabs.{name}"] = Door(getattr(eabs, name), {"x": x}, {"x": "images"})
    found["cnn.__call__"] = Door(cnn, {"x": x}, {"x": "images"})
    found["eabs.encode"] = Door(eabs.encode, {"x": x, "y": y}, {"x": "images"})
    found["eabs.with_randomness"] = Door(
        lambda **settings: eabs.with_randomness(**settings)(x),
        {"mode": "fixed", "seed": 0},
        {"mode": "choice", "seed": "seed"},
    )
    found["eabs.with_gradient"] = Door(
        lambda gradient: eabs.with_gradient(gradient)(x), {"gradient": "envelope"}, {"gradient": "choice"}
    )
    return {
        name: door
        for name, door in found.items()
        if TOOLKITS.get(name) is None or TOOLKITS[name] in available()
    }


def trials(doors: Mapping[str, Door]) -> Iterator[tuple[str, str, Any, bool]]:
    for name, door in doors.items():
        for argument, kind in door.kinds.items():
            for value in wrong(kind, door.plain.get(argument)):
                yield name, argument, value, False
            for value in alike(kind, door.plain.get(argument)):
                yield name, argument, value, True


def run_matrix(doors: Mapping[str, Door], *, step: int) -> tuple[Counter[str], str]:
    expected = dict[str, Any]()
    counts, rows, examples = Counter[str](), defaultdict[str, Counter[str]](Counter), list[str]()
    for number, (name, argument, value, fine) in enumerate(trials(doors)):
        if number % step:
            continue
        if fine and name not in expected:
            expected[name] = doors[name].call(**doors[name].plain)
        outcome = judged(doors[name], argument, value, expected.get(name), fine=fine)
        counts[outcome] += 1
        rows[name][outcome] += 1
        if outcome != "right":
            examples.append(f"{outcome}: {name}({argument}={repr(value)[:60]})")
    heading = f"{'door':28}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES)
    lines = [f"{name:28}" + "".join(f"{row[key]:9}" for key in OUTCOMES) for name, row in rows.items()]
    return counts, "\n".join([heading, *lines, str(dict(counts)), *examples])


def demand(counts: Counter[str], table: str) -> None:
    print(table)  # noqa: T201
    assert not counts["silent"], table
    assert counts["obscure"] <= OBSCURE * counts.total(), table


def test_every_public_callable_is_in_the_matrix(doors: Mapping[str, Door]) -> None:
    public = {name for name in genrobust.__all__ if callable(getattr(genrobust, name, None))}
    absent = {name for name, toolkit in TOOLKITS.items() if toolkit not in available()}
    assert public - set(doors) - BARE - REGISTERING - absent == {"list_models"}


pytestmark = [
    pytest.mark.usefixtures("unchecked_types"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize(
    "step", [20, pytest.param(4, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.matrix)]
)
def test_a_share_of_the_misuse_matrix(step: int, doors: Mapping[str, Door]) -> None:
    demand(*run_matrix(doors, step=step))


@pytest.mark.parametrize(
    "name",
    ["abs", "bnn", "cnn", "deep-bayes", "diffusion", "eabs", "flow", "gmvae", "pixelcnn", "purified", "vade"],
)
@pytest.mark.parametrize("method", ["__call__", "predict"])
def test_contexts_and_copies_change_no_answer(name: str, method: str, make_model: Make, images: Make) -> None:
    model = make_model(name)
    x = images(model, 3)
    expected = getattr(model, method)(x)
    contexts = (torch.no_grad, torch.inference_mode, torch.enable_grad)
    for context in (*contexts, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        with context():
            assert same(getattr(model, method)(x), expected)
            assert same(getattr(model, method)(x.clone()), expected)
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(getattr(twin, method)(x), expected)
    assert same(getattr(model, method)(x), expected)
