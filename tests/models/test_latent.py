"""What latent-optimising classifiers keep between calls, and what they leave out on request."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from genrobust.eot import expectation
from genrobust.inference import InferenceBudget
from genrobust.inference.warm_start import one_inference

Make = Callable[..., Any]


# Pruning.


def test_scores_of_classes_left_out_are_looser_bounds(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 20)
    every, searched = model.predict(x), model.with_inference(steps=0).class_scores(x)
    pruned = model.with_inference(refined_classes=2).predict(x)
    assert every.refined is None
    assert pruned.refined.sum(1).tolist() == [2] * 20
    torch.testing.assert_close(pruned.scores[pruned.refined], every.scores[pruned.refined])
    torch.testing.assert_close(pruned.scores[~pruned.refined], searched[~pruned.refined])
    assert (pruned.scores[~pruned.refined] <= every.scores[~pruned.refined] + 1e-9).all()
    leading = searched.topk(2, dim=1).indices.sort(1).values
    assert torch.equal(pruned.refined.nonzero()[:, 1].reshape(20, 2), leading)


def test_the_default_refines_every_class(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    assert InferenceBudget().refined_classes is None
    x = images(model, 5)
    assert model.search(x)[0].leading is None
    assert model.predict(x).refined is None


def test_marks_are_of_the_scores_beside_them(make_model: Make, images: Make) -> None:
    """A warm start finds other leaders at the next search than at the one that was refined."""
    model = make_model("abs", dtype=torch.float64).with_inference(candidates=3, steps=2)
    pruned = model.with_inference(refined_classes=1, warm_start=True)
    x = images(model, 30)
    for call in range(4):
        before = pruned.with_inference(refined_classes=1) if call == 0 else None
        prediction = pruned.predict(x)
        assert prediction.refined.sum(1).tolist() == [1] * 30
        if before is not None:
            assert torch.equal(prediction.refined, before.search(x)[0].leading)
    assert pruned.predict(x[:0]).refined is None
    assert pruned.with_gradient("unrolled").predict(x).refined is None  # it refines every class, by Adam


def test_marks_of_an_expectation(make_model: Make, images: Make) -> None:
    model = make_model("eabs", dtype=torch.float64).with_inference(method="bfgs", refined_classes=2)
    x = images(model, 6)
    marks = expectation(model, 3).predict(x).refined
    draws = model.with_randomness("fresh").predict(x.repeat(3, 1, 1, 1)).refined
    assert torch.equal(marks, draws.unflatten(0, (3, 6)).all(0))
    assert expectation(make_model("eabs", dtype=torch.float64), 3).predict(x).refined is None


def test_as_many_leaders_as_classes_are_all(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 3)
    torch.testing.assert_close(model.with_inference(refined_classes=4)(x), model(x))


def test_impossible_pruning() -> None:
    with pytest.raises(ValueError, match="`refined_classes` to be at least 1, but got 0"):
        InferenceBudget(refined_classes=0)


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_adam_takes_the_same_steps_for_the_classes_that_lead(
    name: str, make_model: Make, images: Make
) -> None:
    model = make_model(name, dtype=torch.float64).with_inference(method="adam", steps=4, radius=1.5)
    x = images(model, 7)
    every, pruned = model.predict(x), model.with_inference(refined_classes=2).predict(x)
    assert every.refined is None
    assert pruned.refined.sum(1).tolist() == [2] * 7
    torch.testing.assert_close(pruned.scores[pruned.refined], every.scores[pruned.refined])
    searched = model.with_inference(steps=0, refined_classes=2).class_scores(x)
    if name == "abs":  # a score with the draw after the steps is another where there are draws
        torch.testing.assert_close(pruned.scores[~pruned.refined], searched[~pruned.refined])


def test_the_method_follows_what_is_optimised() -> None:
    assert InferenceBudget().refines_with(variational=False) == "bfgs"
    assert InferenceBudget().refines_with(variational=True) == "adam"
    assert InferenceBudget(method="bfgs").refines_with(variational=True) == "bfgs"


# Calls about the same images.


def searches(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many images every search is about."""
    seen: list[int] = []
    search = type(model).search

    def counted(self: Any, x: Tensor) -> Any:
        seen.append(len(x))
        return search(self, x)

    monkeypatch.setattr(type(model), "search", counted)
    return seen


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_another_call_about_the_same_images_infers_nothing_anew(
    name: str, make_model: Make, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name, dtype=torch.float64)
    x, seen = images(model, 4), searches(model, monkeypatch)
    fresh = model.with_randomness("fresh", seed=3)
    with one_inference():
        scores = [fresh.class_scores(x) for _ in range(2)]
        with one_inference():
            found = fresh.reconstruct(x)
    assert seen == [4]
    assert torch.equal(*scores) == (name == "abs")
    anew = model.with_randomness("fresh", seed=3)
    for score in scores:
        torch.testing.assert_close(anew.class_scores(x), score, rtol=0, atol=1e-12)
    torch.testing.assert_close(anew.reconstruct(x), found, rtol=0, atol=1e-12)
    assert seen == [4, 4, 4, 4]  # elsewhere every call infers, and another scope begins anew
    with one_inference():
        fresh.class_scores(x)
    with one_inference():
        fresh.class_scores(x)
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("name", "budget", "count"),
    [
        ("eabs", {}, [3]),
        ("eabs", {"method": "adam"}, [15]),  # it optimises by noise of its own, so that each draw infers
        ("vade", {}, [15]),
    ],
)
def test_draws_of_an_expectation_share_what_draws_no_noise(
    name: str,
    budget: dict[str, Any],
    count: list[int],
    make_model: Make,
    images: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(name, **({"variational": True} if name == "vade" else {})).with_inference(**budget)
    x, seen = images(model, 3).requires_grad_(), searches(model, monkeypatch)
    average = expectation(model, 5)
    prediction = average.predict(x)
    assert seen == count
    assert prediction.refined is None
    average.with_inference(refined_classes=2).class_scores(x)
    assert average.with_inference(refined_classes=2).predict(x).refined.sum(1).min() >= 2


@one_inference()
def test_nothing_is_recalled_of_what_changed(
    make_model: Make, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("eabs")
    x, seen = images(model, 2), searches(model, monkeypatch)
    before = model.class_scores(x)
    x += 0.1 * (0.5 - x)  # the caller's own images, in place
    assert not torch.equal(model.class_scores(x), before)
    for part in (model.decoders, model.encoders):
        before = model.class_scores(x)
        with torch.no_grad():
            next(part.parameters()).mul_(1.5)
        assert not torch.equal(model.class_scores(x), before)
    assert len(seen) == 4
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model.class_scores, x).result()
    assert len(seen) == 5
    warm = model.with_inference(warm_start=True)
    for _ in range(2):
        warm.class_scores(x)
    assert len(seen) == 7


# Warm starts.


def test_a_warm_start_begins_where_the_last_call_ended(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 6)
    cold = model.class_scores(x)
    warm = model.with_inference(warm_start=True, steps=1, candidates=2, tolerance=1e-9)
    scores = [warm.class_scores(x) for _ in range(12)]
    for before, after in itertools.pairwise(scores):
        assert (after >= before - 1e-9).all()
    assert scores[-1].mean() > scores[0].mean() + 1e-3
    assert (model.class_scores(x) == cold).all()


def test_a_warm_start_needs_as_many_images(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    warm = model.with_inference(warm_start=True)
    warm(images(model, 6))
    x = images(model, 5, seed=1)
    assert torch.equal(warm(x), model(x))


def test_other_images_in_the_same_rows_cost_nothing_but_quality(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    warm = model.with_inference(warm_start=True, steps=0)
    x = images(model, 6)
    warm(images(model, 6, seed=1))
    assert (warm.class_scores(x) >= model.with_inference(steps=0).class_scores(x) - 1e-9).all()


def test_variants_start_cold(make_model: Make, images: Make) -> None:
    model = make_model("abs", dtype=torch.float64)
    x = images(model, 6)
    few = {"steps": 1, "candidates": 2, "tolerance": 1e-9}
    warm, cold = model.with_inference(warm_start=True, **few), model.with_inference(**few)(x)
    for _ in range(3):
        warm(x)
    assert not torch.equal(warm(x), cold)
    for variant in (warm.with_inference(**few), warm.with_randomness("fixed")):
        assert not variant.budget.warm_start
        for _ in range(2):
            assert torch.equal(variant(x), cold)
    assert torch.equal(warm.with_gradient("estimated")(x), cold)  # its first call


# Codebooks on disk.


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_a_saved_codebook_needs_no_decoding(
    name: str, make_model: Make, images: Make, tmp_path: Path
) -> None:
    model, path = make_model(name), tmp_path / "codebook.safetensors"
    x = images(model, 3)
    expected = model(x)
    model.save_codebook(path)
    other = make_model(name)
    other.load_codebook(path)
    sizes: list[int] = []
    hook = other.objective.decoders.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    assert torch.equal(other.search(x)[0].mean, model.search(x)[0].mean)
    hook.remove()
    # Images for the encoder's typical variance, and two starts at eight draws: no candidate of the search.
    assert sum(sizes) <= (32 + 16 * len(x) if name == "eabs" else 2 * len(x))
    assert torch.equal(other(x), expected)


def test_a_loaded_codebook_ends_with_the_weights_it_is_of(
    make_model: Make, images: Make, tmp_path: Path
) -> None:
    model, other = make_model("abs"), make_model("abs", seed=1)
    x, path = images(model, 3), tmp_path / "codebook.safetensors"
    model.save_codebook(path)
    model.load_codebook(path)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.search(x)[0].mean, other.search(x)[0].mean)
    with pytest.raises(ValueError, match="a codebook of these weights and this budget"):
        model.load_codebook(path)


def test_a_saved_codebook_is_the_same_twice(make_model: Make, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_model("abs").save_codebook(first)
    make_model("abs").save_codebook(second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", ["abs", "eabs"])
def test_a_search_in_bfloat16_finds_candidates_as_good(
    name: str, make_model: Make, images: Make, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"candidates": 2000, "encoder_proposal": False, "steps": 0}
    model = make_model(name).with_inference(**settings)
    halved = model.with_inference(bfloat16_search=True)
    x = images(model, 20)
    [(_, least)], [(found, loss)] = (m._codebook(x).search(x) for m in (model, halved))
    assert halved._codebook(x).codes.dtype == torch.bfloat16
    torch.testing.assert_close(loss, least, rtol=0.01, atol=0.01)
    halved.save_codebook(tmp_path / "codebook")
    restored = make_model(name).with_inference(**settings, bfloat16_search=True)
    restored.load_codebook(tmp_path / "codebook")
    assert torch.equal(restored.search(x)[0].mean, found.mean)
    with pytest.raises(ValueError, match="a codebook of these weights and this budget"):
        model.load_codebook(tmp_path / "codebook")


@pytest.mark.parametrize("change", ["weights", "budget", "beta"])
def test_a_codebook_of_others_is_refused(change: str, make_model: Make, tmp_path: Path) -> None:
    model, path = make_model("abs"), tmp_path / "codebook.safetensors"
    model.save_codebook(path)
    other = {
        "weights": make_model("abs", seed=1),
        "budget": model.with_inference(seed=5),
        "beta": make_model("abs", beta=2.0),
    }[change]
    with pytest.raises(ValueError, match="a codebook of these weights and this budget"):
        other.load_codebook(path)


@pytest.mark.parametrize("name", ["basis", "centre", "codes", "decoded", "offsets"])
def test_a_forged_codebook_is_refused(name: str, make_model: Make, tmp_path: Path) -> None:
    model, path = make_model("abs"), tmp_path / "codebook.safetensors"
    model.save_codebook(path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="to hold what the decoders make, but some entries are others"):
        model.load_codebook(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update(search=torch.zeros(1)), "to hold no tensor 'search'"),
        (lambda tensors: tensors.update(objective=torch.zeros(1)), "to hold no tensor 'objective'"),
        (lambda tensors: tensors.pop("codes"), "to hold the tensor 'codes', but it has none"),
        (lambda tensors: tensors["means"].fill_(torch.nan), "finite numbers in .*, but 'means' has others"),
        (lambda tensors: tensors["means"].zero_(), "the candidates of this budget in .*, but it has others"),
        (lambda tensors: tensors["offsets"].fill_(torch.inf), "finite `offsets` in .*, but some are not"),
        (lambda tensors: tensors.update(means=tensors["means"].int()), "'means' in .* but got .* type I32"),
        (lambda tensors: tensors.update(basis=tensors["basis"][:1].clone()), "'basis' in .* of shape"),
    ],
    ids=["a method", "an attribute", "missing", "no number", "zero", "infinite", "integers", "shape"],
)
def test_a_codebook_of_other_tensors_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, make_model: Make, tmp_path: Path
) -> None:
    model, path = make_model("abs"), tmp_path / "codebook.safetensors"
    model.save_codebook(path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=message) as found:
        model.load_codebook(path)
    assert str(path) in str(found.value)


def test_files_that_are_no_codebooks(make_model: Make, tmp_path: Path) -> None:
    model = make_model("abs")
    with pytest.raises(FileNotFoundError, match="Expected a safetensors file at"):
        model.load_codebook(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="to be a safetensors file, but it failed"):
        model.load_codebook(tmp_path / "text")
    with pytest.raises(ValueError, match="that fits `max_bytes`"):
        model.with_inference(max_bytes=1).save_codebook(tmp_path / "codebook")
