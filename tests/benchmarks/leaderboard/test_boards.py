"""Submissions are verified before they count, and whatever is wrong with one is one sentence on the page."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import make_run
from torch import Tensor

from genrobust import load_dataset, load_model, verify
from genrobust.benchmarks.leaderboard import build_leaderboard, read_submission, render_leaderboard
from genrobust.benchmarks.leaderboard.boards import _Board
from genrobust.benchmarks.leaderboard.submissions import read_card
from genrobust.benchmarks.run.identity import kinds
from genrobust.benchmarks.run.results import MANIFEST, load_results
from genrobust.benchmarks.statistics import summarise

Submit = Callable[..., Path]

DIGITS = load_dataset("digits", "test")
EPSILON = 0.2


def test_the_rows_of_a_run_are_those_of_its_report(run: Path) -> None:
    board = build_leaderboard([run])
    (row,) = board.standings
    assert (row.contender.title, row.contender.kinds) == ("Deep Bayes", ("random",))
    (clean, attacked) = summarise(load_results(run)).rows
    assert row.worst == attacked.accuracy("deep-bayes")
    assert row.base.clean == clean.accuracy("deep-bayes")
    assert (row.contender.draws, row.epsilon, row.base.source) == (3, EPSILON, "tiny")
    assert row.date == json.loads((run / MANIFEST).read_text())["began"]
    assert board.left_out == (("CNN", "RobustBench takes such models itself"),)
    assert board.verdicts == ()


def test_a_good_submission_lowers_a_number(
    run: Path, submit: Submit, samples: Any, adversarial: Tensor
) -> None:
    folder = submit("good")
    before = build_leaderboard([run]).standings[0].worst
    board = build_leaderboard([run], submissions=folder.parent)
    (row,), (verdict,) = board.standings, board.verdicts
    assert row.worst.count < before.count
    assert row.worst.total == 6
    assert verdict.reason == ""
    assert verdict.lowered
    assert [part.source for part in row.lowered] == ["good"]
    images, labels = DIGITS.batch(torch.from_numpy(samples))
    model = load_model("deep-bayes", dataset="digits")
    expected = verify(model, images, labels, adversarial, norm="linf", epsilon=EPSILON, draws=25)
    assert row.worst.count <= int(expected.robust().sum()) + 1  # other draws may tip an image over
    again = build_leaderboard([run], submissions=folder.parent)
    assert again.standings[0].shares == row.shares


def test_images_may_be_named_by_what_they_were(run: Path, submit: Submit, samples: Any) -> None:
    images, labels = DIGITS.batch(torch.from_numpy(samples))
    by_content = {"indices": None, "originals": images.numpy(), "labels": labels.numpy()}
    folder = submit("named", by_content)
    found = read_submission(folder, read_card(folder), DIGITS)
    assert found.indices.tolist() == samples.tolist()
    wrong = submit("wrong", {**by_content, "labels": (labels.numpy() + 1) % 10})
    with pytest.raises(ValueError, match="number 0 with label"):
        read_submission(wrong, read_card(wrong), DIGITS)


def test_a_submission_of_a_model_of_the_zoo_without_a_run(run: Path, submit: Submit, samples: Any) -> None:
    images, _ = DIGITS.batch(torch.from_numpy(samples))
    folder = submit("zoo", {"images": 1 - images.numpy()}, model="deep-bayes-mlp", norm="l2", epsilon=28.0)
    board = build_leaderboard([run], submissions=folder.parent, draws=2)
    assert board.verdicts[0].reason == ""
    (row,) = [row for row in board.standings if row.contender.title == "deep-bayes-mlp"]
    assert row.worst.total == len(DIGITS)
    assert len(DIGITS) - 6 <= row.worst.count < len(DIGITS)
    assert row.base.clean is None


def damaged(name: str) -> Callable[[Path], object]:
    """What somebody may do to a submission."""

    def bomb(folder: Path) -> None:
        with zipfile.ZipFile(folder / "images.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", bytes(100_000_000))

    def piped(folder: Path) -> None:
        (folder / "images.npz").unlink()
        os.mkfifo(folder / "images.npz")

    def linked(folder: Path) -> None:
        (folder / "card.json").rename(folder.parent / "elsewhere.json")
        (folder / "card.json").symlink_to(folder.parent / "elsewhere.json")

    return {
        "no archive": lambda folder: (folder / "images.npz").write_bytes(b"PK\x03\x04 nothing"),
        "bomb": bomb,
        "pickle": lambda folder: np.savez(folder / "images.npz", images=np.array([{}], dtype=object)),
        "pipe": piped,
        "link": linked,
        "no card": lambda folder: (folder / "card.json").unlink(),
        "no json": lambda folder: (folder / "card.json").write_text("{"),
        "deep json": lambda folder: (folder / "card.json").write_text("[" * 50_000),
        "list": lambda folder: (folder / "card.json").write_text("[1]"),
        "large card": lambda folder: (folder / "card.json").write_text(" " * 70_000),
        "empty card": lambda folder: (folder / "card.json").write_text("{}"),
    }[name]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no archive", "npz archive"),
        ("bomb", "a file of .* bytes can hold|plain array"),
        ("pickle", "Python objects"),
        ("pipe", "Expected a file images.npz"),
        ("link", "Expected a file card.json"),
        ("no card", "Expected a file card.json"),
        ("no json", "card.json to be JSON"),
        ("deep json", "card.json to be JSON"),
        ("list", "a table of the fields"),
        ("large card", "at most 65,536 bytes"),
        ("empty card", "Expected `submitter`"),
    ],
)
def test_a_damaged_submission_says_so(damage: str, reason: str, run: Path, submit: Submit) -> None:
    folder = submit("broken")
    damaged(damage)(folder)
    board = build_leaderboard([run], submissions=folder.parent)
    (verdict,) = board.verdicts
    assert pytest.approx(board.standings[0].worst.value) == build_leaderboard([run]).standings[0].worst.value
    assert "\n" not in verdict.reason
    assert str(folder.parent) not in verdict.reason
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict.reason)


FLAT = np.zeros((6, 1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("arrays", "card", "reason"),
    [
        ({}, {"epsilon": 0.1}, "6 of 6 are outside, up to 0.2"),
        ({"images": FLAT}, {}, "are outside"),
        ({"images": FLAT * np.nan}, {}, "finite and in .0, 1., but 6 of 6 are not"),
        ({"images": FLAT + 2}, {}, "6 of 6 are not"),
        ({"images": FLAT[:, :, 1:]}, {}, "images of shape"),
        ({"images": FLAT[:5]}, {}, "5 integers, but got int64 of shape .6,."),
        ({"images": FLAT.astype(np.uint8)}, {}, "floats in .0, 1., but got uint8"),
        ({"images": np.zeros((0, 1, 28, 28))}, {}, "images of shape"),
        ({"images": np.zeros((4000, 1, 28, 28), bool)}, {}, "at most"),
        ({"indices": np.arange(6) - 1}, {}, "`indices` in 0.*, but got -1..4"),
        ({"indices": np.zeros(6, int)}, {}, "image 0 is there 6 times"),
        ({"indices": np.zeros(6)}, {}, "6 integers, but got float64"),
        ({"indices": None}, {}, "the key `originals`"),
        ({"images": None}, {}, "the key `images`"),
        ({}, {"model": "cnn"}, "a model that RobustBench excludes"),
        ({}, {"model": "../../etc"}, "letters, digits"),
        ({}, {"model": "absent"}, "neither shipped|did you mean"),
        ({}, {"dataset": "absent"}, "a data set of the runs or a registered one"),
        ({}, {"norm": "l3"}, "one of 'linf'"),
        ({}, {"epsilon": 2.0}, "`epsilon` of at most 1"),
        ({}, {"epsilon": -1}, "above 0"),
        ({}, {"epsilon": "0.1"}, "a number"),
        ({}, {"date": "yesterday"}, "`date` such as"),
        ({}, {"submitter": " "}, "`submitter` of 1 to 200 characters"),
        ({}, {"submitter": "x" * 201}, "`submitter` of 1 to 200 characters"),
        ({}, {"attack": "a\u202eb"}, "`attack` without control characters"),
        ({}, {"link": "javascript:alert(1)"}, "`link` to begin with https"),
        ({}, {"link": "https:// a"}, "`link` to begin with https"),
        ({}, {"code": "1"}, "Expected fields of SubmissionCard"),
    ],
    ids=range(29),
)
def test_a_submission_that_fails_says_why(
    arrays: dict[str, Any], card: dict[str, Any], reason: str, run: Path, submit: Submit
) -> None:
    folder = submit("fails", arrays, **card)
    board = build_leaderboard([run], submissions=folder.parent)
    assert len(board.standings) == 1
    with pytest.raises(ValueError, match=reason):
        raise ValueError(board.verdicts[0].reason)


def test_what_cannot_be_a_leaderboard(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        build_leaderboard([])
    with pytest.raises(ValueError, match="a folder of submissions"):
        build_leaderboard([run], submissions=tmp_path / "absent")
    with pytest.raises(ValueError, match="no manifest"):
        build_leaderboard([tmp_path])
    made = make_run(tmp_path / "validation")
    results = load_results(made)
    other = replace(results, manifest={**results.manifest, "dataset": {"split": "validation"}})
    with pytest.raises(ValueError, match="on test images"):
        _Board(draws=1, data_root=None, folder=None, device="cpu").add_run(other)


def test_a_run_whose_model_is_another(tmp_path: Path, submit: Submit) -> None:
    made = make_run(tmp_path / "made")
    board = build_leaderboard([made])
    assert board.standings == ()
    assert "its run does not say what kind it is" in board.left_out[0][1]
    assert "No model of these runs" in render_leaderboard(board)


def test_kinds_are_declared(make_model: Any) -> None:
    assert kinds(make_model("cnn")) == ()
    assert kinds(make_model("eabs")) == ("random", "optimises")
    assert kinds(make_model("deep-bayes")) == ("random",)
    assert "purifies" in kinds(load_model("comdefend-vade", dataset="digits"))
