"""Files of strangers, mutated at random: an error that names the file, or something that works."""

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrobust import load_dataset
from genrobust._files import sha256_of
from genrobust.models import ABS, CNN, ABSConfig, CNNConfig
from genrobust.nets.architectures import Architecture, Conv
from genrobust.selective import Detector, read_detectors, save_detectors
from genrobust.zoo import read_model, save_model

ARCH = Architecture(
    input_shape=(1, 8, 8),
    latent_dim=2,
    encoder=(Conv(3, 4, 2), Conv(4, 3)),
    decoder=(Conv(3, 4), Conv(1, 4, 2, 1)),
    decoder_stem=3,
)
SUITE = """
dataset = "digits"
samples = 4
[[models]]
name = "cnn"
title = "CNN"
[[threat_models]]
norm = "linf"
epsilon = 0.1
curve_epsilons = [0.05, 0.2]
[[attacks]]
key = "sign"
title = "Signs"
norm = "linf"
kind = "fixed epsilon"
toolkit = "genrobust"
name = "RandFGSM"
[[expected]]
attack = "clean"
values = { cnn = 0.9 }
[scale.small]
samples = 3
[scale.paper]
batch_size = 7
"""
VALUES = (
    *("null", "true", "-1", "0", "1e999", "NaN", "1e308", "99999999999999999999", '"a"', '"../../x"', "[]"),
    *("{}", "[[1]]", '"\\u001b[2J"', "0.5", "-0.0", "1000000000", '{"a": {"b": 1}}'),
)


def weights(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    path = folder / "model.safetensors"
    torch.manual_seed(0)
    save_model(CNN(CNNConfig(num_classes=3, architecture=ARCH)), path)
    return path, read_model


def abs_weights(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    path = folder / "abs.safetensors"
    save_model(ABS(ABSConfig(num_classes=3, architecture=ARCH)), path)
    return path, read_model


def card(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    known, _ = weights(folder)
    path = folder / "card.json"
    path.write_text(json.dumps({"model": "cnn", "weights_sha256": sha256_of(known), "epochs": 3}))
    return path, lambda _: read_model(known)


def detectors(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    path = folder / "some.detectors.json"
    made = {
        "one": Detector(evidence="marginal", thresholds=(1.5,), false_positive_rate=0.05),
        "two": Detector(evidence="kl", thresholds=(1.0, 2.0), references=((0.2, 0.8), (0.7, 0.3))),
    }
    save_detectors(made, path)
    return path, read_detectors


def arrays(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    path = folder / "mine.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    names = np.array(["a", "b"])
    np.savez(path, x_test=images, y_test=np.arange(6) % 2, class_names=names, x_train=images)
    return path, lambda _: load_dataset("mine", "test", root=folder)


def suite(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    files = pytest.importorskip("genrobust.benchmarks.suites.files")
    path = folder / "mine.toml"
    path.write_text(SUITE)
    return path, files.read_suite


def manifest(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    from runs import make_run

    from genrobust.benchmarks.run.results import load_results

    make_run(folder, samples=3)
    return folder / "manifest.json", lambda _: load_results(folder, partial=True)


def gallery(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    manifest(folder)
    from runs import add_galleries

    from genrobust.benchmarks.report.galleries import galleries
    from genrobust.benchmarks.run.results import load_results

    add_galleries(folder)
    found = load_results(folder, partial=True)
    path = next((folder / "gallery").rglob("*.npz"))
    return path, lambda _: galleries(found)


def failure(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    _, read = manifest(folder)
    cell = next((folder / "cells").rglob("*.parquet"))
    path = folder / "failures" / cell.relative_to(folder / "cells").with_suffix(".json")
    cell.unlink()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cell": "a", "error": "b", "traceback": "c", "when": "d"}))
    return path, read


def checkpoint(folder: Path) -> tuple[Path, Callable[[Path], object]]:
    pytest.importorskip("lightning")
    from genrobust.training import checkpoints

    identity = {"model": {"class": "MLP"}, "data": "0"}
    layer = torch.nn.Linear(3, 2)
    content = {
        "identity": identity,
        "state": asdict(checkpoints.Progress(epoch=1, best_epoch=1, history=[{"loss": 0.5}])),
        "model": layer.state_dict(),
        "best": layer.state_dict(),
        "optimizers": {"all": torch.optim.Adam(layer.parameters()).state_dict()},
    }
    checkpoints.write_checkpoint(folder, content)
    return folder / checkpoints.CHECKPOINT, lambda _: checkpoints.read_checkpoint(folder, identity, 3)


KINDS = (weights, abs_weights, card, detectors, arrays, suite, manifest, gallery, failure, checkpoint)


def mutated(content: bytes, source: random.Random) -> bytes:
    """Changes a file as accidents and attackers do: bits, cuts, copies, and values in what is text."""
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        size = len(content)
        at = source.randrange(size) if size else 0
        match source.randrange(7 if size else 1):
            case 0:
                content = content[:at] + source.randbytes(source.choice((1, 4, 8))) + content[at:]
            case 1:
                content = content[:at] + bytes([source.randrange(256)]) + content[at + 1 :]
            case 2:
                content = content[: at if source.random() < 0.3 else size - at // 50]
            case 3:
                until = at + source.randrange(1, 40)
                content = content[:at] + content[until:]
            case 4:
                part = content[at : at + source.randrange(1, 60)]
                content = content[:at] + part + content[at:]
            case _:
                content = _with_another_value(content, source)
    return content


def _with_another_value(content: bytes, source: random.Random) -> bytes:
    """Replaces a value behind a colon, an equals sign or a comma, where there is one."""
    places = [at for at, byte in enumerate(content[:20_000]) if byte in b":=,["]
    if not places:
        return content
    at = source.choice(places) + 1
    ends = [end for sign in b",}]\n" if (end := content.find(sign, at)) > 0]
    return content[:at] + b" " + source.choice(VALUES).encode() + content[min(ends, default=at) :]


def error_of(read: Callable[[Path], object], path: Path) -> Exception | None:
    try:
        read(path)
    except Exception as error:
        return error
    return None


def outcome(kind: Callable[[Path], Any], folder: Path, seeds: range) -> dict[str, int]:
    """Reads mutated files, and counts what was taken, and what was an error that names a file.

    Raises:
        AssertionError: If an error is of another kind or names no file, or a file takes over five seconds.
    """
    path, read = kind(folder)
    whole = path.read_bytes()
    read(path)
    counts = {"taken": 0, "error": 0}
    for seed in seeds:
        path.write_bytes(mutated(whole, random.Random(seed)))
        started = time.process_time()
        error = error_of(read, path)
        if not (error is None or isinstance(error, ValueError | OSError)):
            raise AssertionError(f"{kind.__name__} of seed {seed} raised {error!r}") from error
        assert error is None or path.name.partition(".")[0] in str(error), (kind.__name__, seed, error)
        assert time.process_time() - started < 5, (kind.__name__, seed)
        counts["taken" if error is None else "error"] += 1
    return counts


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_some_mutated_files(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    counts = outcome(kind, tmp_path, range(12))
    # What a damaged gallery or failure says is left out, so that the rest of the run can be read.
    assert (counts["error"] == 0) == (kind in (gallery, failure))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=st.integers(0, 10**9))
def test_many_mutated_files(kind: Callable[[Path], Any], tmp_path: Path, first: int) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    counts = outcome(kind, tmp_path, range(first, first + 10))
    assert sum(counts.values()) == 10
