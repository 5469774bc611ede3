"""Draws have every class in proportion; what is held out is the same for everybody, in whole groups."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrobust.data import (
    UNLABELLED,
    ImageDataset,
    dataset_names,
    held_out_images,
    load_dataset,
    register_dataset,
)
from genrobust.data.splits import stratified_images

CLASSES = ("a", "b", "c")
LABELS = st.lists(st.integers(UNLABELLED, 4), min_size=1, max_size=120)
SEEDS = st.integers(0, 2**31)
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)


def make_dataset(labels: list[int], **fields: Any) -> ImageDataset:
    """Images of one pixel whose value is their position, so that a draw shows where it comes from."""
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    names = tuple(map(str, range(5)))
    return ImageDataset("toy", "train", images, torch.tensor(labels), names, partly_labelled=True, **fields)


def positions(dataset: ImageDataset) -> list[int]:
    return dataset.images.flatten().tolist()


@given(labels=LABELS, part=FRACTIONS, at_least=st.integers(0, 6), seed=SEEDS)
def test_a_draw_has_every_class_in_proportion(
    labels: list[int], part: float, at_least: int, seed: int
) -> None:
    count = max(1, round(part * len(labels)))
    dataset = make_dataset(labels)
    drawn = dataset.stratified(count, seed=seed, at_least=at_least)
    chosen = positions(drawn)
    assert len(chosen) == len(set(chosen)) == count
    assert drawn.labels.tolist() == [labels[i] for i in chosen]
    sizes, found = Counter(labels), Counter(drawn.labels.tolist())
    least = {label: min(at_least, size) for label, size in sizes.items()}
    if count < sum(least.values()):
        return
    assert all(found[label] >= least[label] for label in sizes)
    # One level t fits all: t * size, rounded, or the least number if that is larger.
    above = [label for label in sizes if found[label] > least[label]]
    lowest = max([(found[label] - 0.5) / sizes[label] for label in above], default=0)
    highest = min((found[label] + 0.5) / sizes[label] for label in sizes)
    assert lowest <= highest + 1e-9


@pytest.mark.parametrize("count", [4, 40, 400])
def test_shares_by_hand(count: int) -> None:
    labels = torch.tensor([0] * 300 + [1] * 80 + [2] * 20)
    drawn = labels[stratified_images(labels, count, seed=1)].bincount().tolist()
    assert drawn == {4: [2, 1, 1], 40: [30, 8, 2], 400: [300, 80, 20]}[count]


@given(labels=LABELS, seed=SEEDS, part=FRACTIONS)
def test_a_draw_repeats_and_begins_with_the_smaller_one(labels: list[int], seed: int, part: float) -> None:
    dataset, count = make_dataset(labels), max(1, int(part * len(labels)))
    state = torch.get_rng_state()
    whole = positions(dataset.stratified(len(labels), seed=seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert positions(dataset.stratified(count, seed=seed)) == whole[:count]
    assert sorted(whole) == list(range(len(labels)))


def test_another_seed_draws_other_images() -> None:
    dataset = make_dataset([0, 1] * 50)
    assert positions(dataset.stratified(20, seed=0)) != positions(dataset.stratified(20, seed=1))


@pytest.mark.parametrize(
    ("count", "at_least", "message"),
    [
        (0, 1, r"`count` in 1\.\.3, but got 0"),
        (4, 1, "but got 4"),
        (2, -1, "`at_least` of at least 0, but got -1"),
    ],
)
def test_impossible_draws(count: int, at_least: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset([0, 1, 2]).stratified(count, seed=0, at_least=at_least)


@given(labels=LABELS, fraction=FRACTIONS, seed=SEEDS)
def test_a_share_of_every_class_is_held_out(labels: list[int], fraction: float, seed: int) -> None:
    mask = held_out_images(torch.tensor(labels), fraction=fraction, seed=seed)
    held = Counter(torch.tensor(labels)[mask].tolist())
    assert not held[UNLABELLED]
    for label, count in Counter(labels).items():
        if label != UNLABELLED:
            assert abs(held[label] - fraction * count) <= 1
            assert count == 1 or 0 < held[label] < count
    train, validation = make_dataset(labels, held_out=mask).split_validation()
    assert (train.split, validation.split) == ("train", "validation")
    assert positions(train) == torch.where(~mask)[0].tolist()
    assert positions(validation) == torch.where(mask)[0].tolist()
    assert (train.held_out, validation.held_out) == (None, None)


@given(
    labelled_groups=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=120),
    fraction=FRACTIONS,
    seed=SEEDS,
)
def test_groups_are_held_out_as_a_whole(
    labelled_groups: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels = torch.tensor([label for label, _ in labelled_groups])
    groups = torch.tensor([13 * label + group for label, group in labelled_groups])
    mask = held_out_images(labels, groups=groups, fraction=fraction, seed=seed)
    assert not set(groups[mask].tolist()) & set(groups[~mask].tolist())
    for label in set(labels.tolist()):
        mine = labels == label
        sizes = Counter(groups[mine].tolist())
        held = int(mask[mine].sum())
        assert (len(sizes) == 1 and held == 0) or 0 < held < int(mine.sum())
        if len(sizes) > 1:  # one group more or less is as near as it gets, beside one on each side
            assert abs(held - fraction * int(mine.sum())) <= max(sizes.values())


def test_a_group_of_several_classes_is_on_one_side() -> None:
    labels, groups = torch.tensor([0, 1, 2] * 20), torch.arange(60) // 6
    mask = held_out_images(labels, groups=groups, fraction=0.3)
    assert mask.any()
    assert mask.reshape(10, 6).float().mean(1).unique().tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_shares(fraction: float, unchecked_types: None) -> None:
    with pytest.raises(ValueError, match="Expected `fraction` to lie between 0 and 1, but got"):
        held_out_images(torch.tensor([0, 1]), fraction=fraction)
    with pytest.raises(ValueError, match="`groups` of 2 images, but got 3"):
        held_out_images(torch.tensor([0, 1]), groups=torch.zeros(3).long())


def test_the_same_split_as_weights_of_seed_0_were_trained_with() -> None:
    labels = load_dataset("digits", "train").labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = order[labels[order] == label]
        expected[members[: round(0.1 * len(members))]] = True
    assert torch.equal(held_out_images(labels), expected)


def test_validation_is_what_every_part_of_the_training_images_holds_out() -> None:
    train, validation = load_dataset("digits", "train"), load_dataset("digits", "validation")
    assert (len(train), len(validation), validation.split) == (1437, 142, "validation")
    learned, held = train.split_validation()
    assert held.sha256 == validation.sha256
    known = {image.numpy().tobytes() for image in validation.images}
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(5))
    hidden = train.hide_labels(20, generator=torch.Generator().manual_seed(1))
    for part in (train, train.subset(order[:700]), train.subset(slice(300, 900)), hidden):
        learned, held = part.split_validation()
        assert not any(image.numpy().tobytes() in known for image in learned.images)
        assert all(image.numpy().tobytes() in known for image in held.images)
        assert len(held)
    assert held.labels.bincount(minlength=10).tolist() == [2] * 10
    assert (learned.labels != UNLABELLED).sum() == 180


def test_draws_of_training_images_are_not_the_held_out_ones() -> None:
    train = load_dataset("digits", "train")
    drawn = train.stratified(400, seed=0).held_out
    assert drawn is not None
    assert 20 < int(drawn.sum()) < 60


def test_a_mask_is_checked(unchecked_types: None) -> None:
    dataset = make_dataset([0, 1])
    with pytest.raises(ValueError, match=r"`held_out` to be a torch.bool tensor of shape \(2,\), but got"):
        replace(dataset, held_out=torch.zeros(2))
    with pytest.raises(ValueError, match=r"torch.bool of shape \(3,\)"):
        replace(dataset, held_out=torch.zeros(3, dtype=torch.bool))


def arrays(split: str) -> tuple[Any, Any]:
    generator = np.random.default_rng(split == "test")
    labels = np.repeat(np.arange(3), [60, 40, 20])
    return generator.integers(0, 256, (120, 5, 5), dtype=np.uint8), labels


def frames(split: str) -> tuple[Any, Any, Any]:
    return *arrays(split), np.arange(120) // 5


@pytest.mark.usefixtures("registrations_taken_back")
def test_data_sets_of_users_have_a_validation_split_too(tmp_path: Path) -> None:
    (x, y), (x_test, y_test) = arrays("train"), arrays("test")
    stored = {"x_train": x, "y_train": y[:, None], "x_test": x_test, "y_test": y_test}
    np.savez(tmp_path / "filed.npz", **stored, class_names=np.array(CLASSES))
    register_dataset("called", input_shape=(1, 5, 5), class_names=CLASSES, load=arrays)
    for name in ("filed", "called"):
        validation = load_dataset(name, "validation", root=tmp_path)
        assert validation.labels.bincount().tolist() == [6, 4, 2]
        learned, held = load_dataset(name, "train", root=tmp_path).split_validation()
        assert (len(learned), held.sha256) == (108, validation.sha256)


@pytest.mark.usefixtures("registrations_taken_back")
def test_groups_of_users_stay_together(tmp_path: Path) -> None:
    (x, y, groups), tracks = frames("train"), np.concatenate([np.arange(n) // 5 for n in (60, 40, 20)])
    stored = {"x_train": x, "y_train": y, "class_names": np.array(CLASSES)}
    np.savez(tmp_path / "grouped.npz", **stored, group_train=groups[:, None])
    np.savez(tmp_path / "tracked.npz", **stored, track_train=tracks, track_test=np.array([None]))
    register_dataset("called", input_shape=(1, 5, 5), class_names=CLASSES, load=frames)
    register_dataset("part", input_shape=(1, 5, 5), class_names=("b", "c"), subset_of="called", kept=(1, 2))
    for name in ("grouped", "tracked", "called"):
        held_out = load_dataset(name, "train", root=tmp_path).held_out
        assert held_out is not None
        assert held_out.reshape(24, 5).float().mean(1).unique().tolist() == [0, 1]
        assert held_out.reshape(24, 5)[:, 0].sum() == 3
    part = load_dataset("part", "train").held_out
    assert part is not None
    assert part.reshape(12, 5).float().mean(1).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"group_train": np.zeros(3, int)},
            r"`group_train` in .* of shape \(120,\) .* but got int64 of shape",
        ),
        ({"track_train": np.zeros(120)}, r"`track_train` in .* to be integers .* but got float64"),
    ],
)
def test_malformed_groups_in_a_file(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    x, y = arrays("train")
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, class_names=np.array(CLASSES), **change)
    with pytest.raises(ValueError, match=message):
        load_dataset("mine", "train", root=tmp_path)


@pytest.mark.usefixtures("registrations_taken_back")
def test_malformed_groups_of_a_loader() -> None:
    register_dataset(
        "odd",
        input_shape=(1, 5, 5),
        class_names=CLASSES,
        load=lambda split: (*arrays(split), np.zeros(2, int)),
    )
    with pytest.raises(ValueError, match=r"`groups` in the loader of 'odd' .* but got int64 of shape \(2,\)"):
        load_dataset("odd", "validation")


@pytest.mark.realdata("gtsrb")
def test_no_track_of_real_gtsrb_is_on_both_sides() -> None:
    from genrobust.data.loading import _file

    with np.load(_file("gtsrb", None)) as stored:
        keys = stored["y_train"].astype(int) * 1000 + stored["track_train"]
    train = load_dataset("gtsrb", "train")
    assert train.held_out is not None
    held = train.held_out.numpy()
    assert not set(keys[held]) & set(keys[~held])
    validation = load_dataset("gtsrb", "validation")
    assert (len(validation), len(train)) == (int(held.sum()), 19_605)
    sizes = train.labels.bincount(minlength=43)
    shares = validation.labels.bincount(minlength=43) / sizes
    assert 0.09 < len(validation) / len(train) < 0.11
    assert (shares - 0.1).abs().max() <= 0.5 * 15 / int(sizes.min()) + 1e-6
    part = load_dataset("gtsrb10", "train").held_out
    assert part is not None
    in_part = np.isin(stored_labels := train.labels.numpy(), (1, 2, 4, 5, 9, 10, 12, 13, 25, 38))
    assert not set(keys[in_part][part.numpy()]) & set(keys[in_part][~part.numpy()])
    assert len(stored_labels) == len(keys)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.realdata(file))
        for name, file in (
            *((name, name) for name in ("mnist", "fashion_mnist", "coil20", "cifar10", "gtsrb")),
            *(("cifar2", "cifar10"), ("gtsrb10", "gtsrb")),
        )
    ],
)
def test_real_sets_hold_out_a_tenth_of_every_class(name: str) -> None:
    assert name in dataset_names()
    train, validation = load_dataset(name, "train"), load_dataset(name, "validation")
    sizes = train.labels.bincount(minlength=train.num_classes)
    held = validation.labels.bincount(minlength=train.num_classes)
    nearest = 7.5 if "gtsrb" in name else 0.5  # half a track of 15 images
    assert (held - 0.1 * sizes).abs().max() <= nearest + 1e-6
    drawn = train.stratified(1000 if len(train) > 1000 else 100, seed=0)
    quota = len(drawn) * sizes / len(train)
    found = drawn.labels.bincount(minlength=train.num_classes)
    assert (found >= quota.floor().clamp_max(1)).all()
    assert (found - quota).abs().max() <= math.ceil(
        train.num_classes / 2 * float(sizes.max() / len(train)) + 0.5
    )
