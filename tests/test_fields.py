"""Fields of settings fit their type hints, or the error names them."""

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrobust._fields import (
    AtLeastOne,
    NotNegative,
    Positive,
    Rate,
    check_fields,
    check_integer,
    check_seed,
    checked_parameter,
)
from genrobust.models import CNNConfig
from genrobust.nets.architectures import Conv
from genrobust.purifiers import ComDefendConfig, PurifiedConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: AtLeastOne = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Settings:
    flag: bool = False
    steps: AtLeastOne = 5
    length: Positive = 1.0
    share: Rate = 0.5
    name: str = "a"
    kind: Literal["one", "two"] = "one"
    limit: int | None = None
    sizes: tuple[AtLeastOne, ...] = (1, 2)
    shape: tuple[int, int, int] = (1, 2, 3)
    table: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    weight: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"steps": 4.0}, 4),
        ({"steps": np.int64(4)}, 4),
        ({"length": 3}, 3.0),
        ({"length": np.float32(0.5)}, 0.5),
        ({"flag": np.True_}, True),
        ({"limit": None}, None),
        ({"limit": 4.0}, 4),
        ({"sizes": [3, 4.0]}, (3, 4)),
        ({"table": {"a": True, "b": 2, "c": 0.5, "d": "no", "e": np.int32(3)}}, None),
    ],
    ids=str,
)
def test_what_means_the_same_is_taken(given: dict[str, Any], kept: Any) -> None:
    ((name, value),) = given.items()
    found = getattr(Settings(**given), name)
    assert found == (value if kept is None else kept)
    assert type(found) is type(kept) or kept is None
    if name == "table":
        assert [type(part) for part in found.values()] == [bool, int, float, str, int]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flag": "no"}, "`flag` to be true or false, but got 'no'"),
        ({"flag": 1}, "`flag` to be true or false, but got 1"),
        ({"steps": True}, "`steps` to be an integer, but got True"),
        ({"steps": 2.5}, "`steps` to be an integer, but got 2.5"),
        ({"steps": math.inf}, "`steps` to be an integer, but got inf"),
        ({"steps": "5"}, "`steps` to be an integer, but got '5'"),
        ({"steps": 0}, "`steps` to be at least 1, but got 0"),
        ({"length": math.nan}, "`length` to be finite, but got nan"),
        ({"length": 10**400}, "`length` to be finite, but got 1000"),
        ({"length": -1.0}, "`length` to be above 0, but got -1.0"),
        ({"length": "1"}, "`length` to be a number, but got '1'"),
        ({"share": 1.0}, "`share` to be at least 0 and below 1, but got 1.0"),
        ({"name": 5}, "`name` to be a string, but got 5"),
        ({"kind": "tow"}, "`kind` to be one of 'one', 'two', but got 'tow'; did you mean 'two'"),
        ({"kind": ["one"]}, r"`kind` to be one of 'one', 'two', but got \['one'\]"),
        ({"limit": "many"}, "`limit` to be an integer, but got 'many'"),
        ({"sizes": "12"}, "`sizes` to be a sequence, but got '12'"),
        ({"sizes": 3}, "`sizes` to be a sequence, but got 3"),
        ({"sizes": [1, 0]}, r"`sizes`\[1\] to be at least 1, but got 0"),
        ({"shape": (1, 2)}, r"`shape` to be 3 values, but got \(1, 2\)"),
        ({"table": [1]}, r"`table` to be a table, but got \[1\]"),
        ({"table": {"a": None}}, r"`table`\['a'\] to be bool or int or float or str, but got None"),
        ({"table": {"a": math.inf}}, r"`table`\['a'\] to be finite, but got inf"),
        ({"table": {1: 2}}, "a key of `table` to be a string, but got 1"),
        ({"inner": {"size": 1}}, "`inner` to be a Inner"),
        ({"weight": -1}, "`weight` to be at least 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(list(Settings.__dataclass_fields__)), ANYTHING)
def test_nothing_but_a_value_error_is_raised(name: str, value: Any) -> None:
    with suppress(ValueError):
        found = getattr(Settings(**{name: value}), name)
        assert not isinstance(found, list)
        assert not isinstance(found, float) or math.isfinite(found)


@pytest.mark.parametrize("seed", [0, 7, np.int64(3), 2.0, np.uint8(4)])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    assert check_seed(seed) == int(seed)
    assert type(check_seed(seed)) is int


@pytest.mark.parametrize("seed", [None, "a", 1.5, -1, True, 10**30, math.nan, [1]])
def test_what_is_no_seed_is_named(seed: Any) -> None:
    with pytest.raises(ValueError, match="`seed` to be"):
        check_seed(seed)
    if seed is not None and seed != 10**30:
        with pytest.raises(ValueError, match="`jobs` to be"):
            check_integer(seed, "jobs")


def attack(
    model: Any,
    steps: int = 10,
    size: float = 0.1,
    const=1,
    start: bool = True,
    norm: str = "l2",
    layer: int | str = -1,
    p: float = math.inf,
    own: Any = None,
) -> None:
    """Stands for an attack of a toolkit."""


PARAMETERS = inspect.signature(attack).parameters


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("steps", 5.0, 5),
        ("steps", 0, 0),
        ("const", 0.5, 0.5),
        ("const", 2.0, 2),
        ("size", -0.5, -0.5),
        ("layer", "logits", "logits"),
        ("p", "inf", "inf"),
        ("own", "anything", "anything"),
        ("model", 3, 3),
    ],
)
def test_a_parameter_that_a_toolkit_takes(name: str, value: Any, kept: Any) -> None:
    found = checked_parameter(value, PARAMETERS[name], name)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", -5, "at least 0, but got -5"),
        ("steps", 2.5, "an integer, but got 2.5"),
        ("steps", True, "int or float, but got True"),
        ("steps", "5", "int or float, but got '5'"),
        ("size", math.nan, "finite, but got nan"),
        ("size", True, "int or float, but got True"),
        ("const", -1, "at least 0, but got -1"),
        ("start", "no", "true or false, but got 'no'"),
        ("start", 1, "true or false, but got 1"),
        ("norm", 2, "a string, but got 2"),
    ],
)
def test_a_parameter_that_no_toolkit_takes(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {name} to be {message}"):
        checked_parameter(value, PARAMETERS[name], name)


ROOMS = (
    *("attacks", "auditing", "certificates", "gradients", "inference", "models", "nets", "purifiers"),
    *("selective", "training", "zoo"),
)
BRIDGES = {"genrobust.selective.pytorch_ood": "pytorch_ood", "genrobust.zoo.hub": "huggingface_hub"}
NAMES = re.compile(r"\w*(Config|Budget|Architecture)|Adversary|Conv|Graph|Detector|Estimated|Unrolled|Recipe")


def _configs() -> dict[str, type]:
    """Finds every config, budget, architecture and strategy of the package: what strangers' files hold."""
    found: dict[str, type] = {}
    for room in ROOMS:
        if room == "auditing" and find_spec("pyarrow") is None:  # its report needs what the benchmarks need
            continue
        package = importlib.import_module(f"genrobust.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name in BRIDGES and find_spec(BRIDGES[module.name]) is None:
                continue
            parts = vars(importlib.import_module(module.name)).items()
            found |= {name: kind for name, kind in parts if NAMES.fullmatch(name) and is_dataclass(kind)}
    return found


GIVEN: dict[str, dict[str, Any]] = {
    "Architecture": {
        "input_shape": (1, 8, 8),
        "latent_dim": 2,
        "encoder": (Conv(3, 4, 2), Conv(4, 3)),
        "decoder": (Conv(3, 4), Conv(1, 4, 2, 1)),
    },
    "Conv": {"channels": 1, "kernel": 2},
    "PurifiedConfig": {"purifier": ComDefendConfig(), "classifier": CNNConfig()},
    "Detector": {"evidence": "marginal", "thresholds": (1.0,)},
    "SmoothingBudget": {"sigma": 0.5},
}
CONFIGS = _configs()


def test_every_config_is_known() -> None:
    assert len(CONFIGS) >= 22, sorted(CONFIGS)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_config_refuses_what_no_field_is(name: str) -> None:
    kind: Any = CONFIGS[name]
    hints = get_type_hints(kind)
    tried = 0
    for part in fields(kind):
        plain = {get_origin(hint) or hint for hint in (hints[part.name], *get_args(hints[part.name]))}
        for bad in (
            (math.nan, math.inf, True, "no", -1)
            if plain & {int, float}
            else (math.nan, "no")
            if bool in plain
            else ()
        ):
            if bad == "no" and str in plain:
                continue
            allowed = bad == -1 and part.name in ("thresholds", "references", "training_mean")
            with nullcontext() if allowed else pytest.raises(ValueError, match=f"`{part.name}`"):
                kind(**{**GIVEN.get(name, {}), part.name: (bad,) if tuple in plain else bad})
            tried += 1
    assert tried or name in ("Graph", "PurifiedConfig")


@pytest.mark.parametrize("part", ["purifier", "classifier"])
@pytest.mark.parametrize("bad", [None, 1, "cnn", CNNConfig, {"purifier": 1}], ids=repr)
def test_the_configs_of_two_parts_are_configs(part: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"`{part}` to be a config, but got"):
        PurifiedConfig(**{**GIVEN["PurifiedConfig"], part: bad})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CONFIGS))
@given(data=st.data())
def test_a_config_takes_anything_or_names_the_field(name: str, data: st.DataObject) -> None:
    kind: Any = CONFIGS[name]
    chosen = data.draw(st.sampled_from([part.name for part in fields(kind)]))
    with suppress(ValueError):
        kind(**{**GIVEN.get(name, {}), chosen: data.draw(ANYTHING)})
