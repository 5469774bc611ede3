"""The loop: resuming, choosing the best epoch, calibration, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric import Fabric

from genrobust import load_dataset
from genrobust.data import ImageDataset, held_out_images
from genrobust.models import CNN, EABS, GMVAE, CNNConfig, DeepBayes, DeepBayesConfig, EABSConfig, GMVAEConfig
from genrobust.nets.architectures import Architecture, Conv
from genrobust.nets.conditionals import ConditionalArchitecture
from genrobust.nets.pooling import PoolingArchitecture
from genrobust.randomness import isolated_rng
from genrobust.training import loop
from genrobust.training.criterion import accuracy
from genrobust.training.loop import (
    TrainingConfig,
    TrainingResult,
    _balanced_batches,
    _partly_labelled_batches,
    fit,
)

# Lightning's own: it asks numpy for reprs and warns about the few loader workers that this loop does not use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")

ARCH = Architecture(
    input_shape=(1, 28, 28),
    latent_dim=3,
    encoder=(Conv(4, 5, 4), Conv(8, 3, 2)),
    decoder=(Conv(4, 7), Conv(2, 4, 2, 1), Conv(1, 4, 2, 1)),
    discriminator=(8,),
)
CONFIG = TrainingConfig(epochs=3, batch_size=64, seed=3)


def small_cnn() -> CNN:
    with isolated_rng(0):
        return CNN(CNNConfig(architecture=ARCH))


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits", "train").subset(slice(400))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns(digits: ImageDataset, tmp_path: Path) -> None:
    model = small_cnn()
    result = fit(
        model, digits, config=replace(CONFIG, epochs=12, learning_rate=1e-2), folder=tmp_path, fabric=cpu()
    )
    losses = [epoch["classifier"] for epoch in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(model, load_dataset("digits", "test")) > 0.7


def test_same_seed_same_weights_and_other_seed_other_weights(digits: ImageDataset, tmp_path: Path) -> None:
    runs = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        model = small_cnn()
        fit(model, digits, config=replace(CONFIG, seed=seed), folder=tmp_path / folder, fabric=cpu())
        runs.append(weights(model))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["head.weight"], runs[2]["head.weight"])


@pytest.mark.parametrize("name", ["cnn", pytest.param("eabs", marks=pytest.mark.slow), "base-abs"])
def test_interrupted_and_resumed_equals_uninterrupted(
    name: str, digits: ImageDataset, tmp_path: Path
) -> None:
    def build() -> CNN | EABS:
        with isolated_rng(1):
            if name == "cnn":
                return CNN(CNNConfig(architecture=ARCH))
            on = name == "eabs"
            return EABS(
                EABSConfig(architecture=ARCH, adversarial=on, discriminative=on, variational=on)
            ).with_inference(candidates=20, steps=1)

    whole = build()
    fit(whole, digits, config=CONFIG, folder=tmp_path / "whole", fabric=cpu())
    fit(build(), digits, config=replace(CONFIG, epochs=1), folder=tmp_path / "parts", fabric=cpu())
    resumed = build()
    result = fit(resumed, digits, config=CONFIG, folder=tmp_path / "parts", fabric=cpu())
    assert len(result.history) == 3
    assert_same(weights(whole), weights(resumed))


def test_a_model_may_bring_its_optimiser_and_bound_the_gradient(digits: ImageDataset, tmp_path: Path) -> None:
    class Slow(type(small_cnn())):  # type: ignore[misc]
        max_gradient_norm = 1e-3

        def make_optimizer(
            self, phase: str, parameters: list[torch.nn.Parameter], learning_rate: float
        ) -> object:
            assert (phase, learning_rate) == ("classifier", 1e-3)
            return torch.optim.SGD(parameters, lr=0.5)

    model = small_cnn()
    model.__class__ = Slow
    before = weights(model)
    config = replace(CONFIG, epochs=1, batch_size=400, halve_every=1)
    fit(model, digits, config=config, folder=tmp_path, fabric=cpu())
    moved = (
        sum((after - before[name]).square().sum().item() for name, after in model.named_parameters()) ** 0.5
    )
    assert 0.4 * 1e-3 < moved <= 0.5 * 1e-3 * (1 + 1e-3)


SCRIPT = """
import sys
from pathlib import Path
from lightning.fabric import Fabric
from genrobust.models import CNN
from genrobust import load_dataset
from genrobust.randomness import isolated_rng
from genrobust.training.loop import TrainingConfig, fit
with isolated_rng(0):
    model = CNN()
config = TrainingConfig(epochs=int(sys.argv[2]), batch_size=128)
digits = load_dataset("digits", "train").subset(slice(400))
fabric = Fabric(accelerator="cpu", devices=1)
result = fit(model, digits, config=config, folder=Path(sys.argv[1]), fabric=fabric)
print(len(result.history), [round(epoch["classifier"], 12) for epoch in result.history])
"""


@pytest.mark.slow
def test_kill_9_loses_no_finished_epoch(tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "killed", tmp_path / "killed" / "checkpoint.pt"
    victim = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), "1000"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and victim.poll() is None and time.monotonic() < deadline:
        os.sched_yield()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finished = torch.load(checkpoint, weights_only=True)["state"]
    epochs = finished["epoch"] + 1

    model = CNN()
    config = TrainingConfig(epochs=epochs, batch_size=128)
    digits = load_dataset("digits", "train").subset(slice(400))
    result = fit(model, digits, config=config, folder=folder, fabric=cpu())
    assert result.history[:-1] == finished["history"]
    assert len(result.history) == epochs
    assert result.seconds > finished["seconds"]


def test_checkpoint_of_another_training_is_refused(digits: ImageDataset, tmp_path: Path) -> None:
    fit(small_cnn(), digits, config=replace(CONFIG, epochs=1), folder=tmp_path, fabric=cpu())
    with pytest.raises(
        ValueError, match=r"differ: training\.noise_std \(0\.2 there, 0\.1 here\)\. Choose another folder"
    ):
        fit(small_cnn(), digits, config=replace(CONFIG, noise_std=0.1), folder=tmp_path, fabric=cpu())


def test_finished_training_is_not_repeated(digits: ImageDataset, tmp_path: Path) -> None:
    first = small_cnn()
    done = fit(first, digits, config=CONFIG, folder=tmp_path, fabric=cpu())
    written = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    second = small_cnn()
    again = fit(second, digits, config=CONFIG, folder=tmp_path, fabric=cpu())
    assert again == done
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == written
    assert_same(weights(first), weights(second))


def test_best_epoch_is_kept(digits: ImageDataset, tmp_path: Path) -> None:
    model = small_cnn()
    result = fit(model, digits, config=replace(CONFIG, epochs=6), folder=tmp_path, fabric=cpu())
    accuracies = [epoch["validation_score"] for epoch in result.history]
    assert result.validation_score == max(accuracies)
    assert accuracies[result.best_epoch - 1] == max(accuracies)
    validation = digits.split_validation()[1]
    assert accuracy(model, validation) == max(accuracies)


def test_global_generators_are_left_alone(digits: ImageDataset, tmp_path: Path) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(small_cnn(), digits, config=replace(CONFIG, epochs=1), folder=tmp_path, fabric=cpu())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_parts_are_in_evaluation_mode_after_training(digits: ImageDataset, tmp_path: Path) -> None:
    model = small_cnn()
    fit(model, digits, config=replace(CONFIG, epochs=1), folder=tmp_path, fabric=cpu())
    assert not any(part.training for part in model.features.modules())


def test_learning_rate_halves(digits: ImageDataset, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=3, halve_every=1)
    fit(small_cnn(), digits, config=config, folder=tmp_path, fabric=cpu())
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizers"]["classifier"]
    assert state["param_groups"][0]["lr"] == pytest.approx(config.learning_rate / 4)


def test_diverging_training_stops_with_an_error(digits: ImageDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite loss"):
        fit(small_cnn(), digits, config=replace(CONFIG, learning_rate=1e30), folder=tmp_path, fabric=cpu())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("halve_every", 0),
        ("learning_rate", 0.0),
        ("decide_images", 0),
        ("decide_every", 0),
    ],
)
def test_bad_config(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected .*`{field}`"):
        TrainingConfig(**{field: value})


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(2, 40), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_balanced_batches(labels: list[int], batch_size: int, seed: int) -> None:
    labels = [0, 1, 2, 3, *labels]
    dataset = ImageDataset(
        "toy",
        "train",
        torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8),
        torch.tensor(labels),
        ("a", "b", "c", "d"),
    )
    batches = list(_balanced_batches(dataset, batch_size, np.random.default_rng(seed)))
    for batch in batches:
        assert torch.equal(dataset.labels[batch], torch.arange(4).expand(len(batch), 4))
        assert 2 <= len(batch) <= max(2, batch_size // 4)
    longest = max(labels.count(k) for k in range(4))
    left_out = longest - sum(map(len, batches))
    assert left_out in (0, 1)  # a last batch of one has no statistics
    largest = max(range(4), key=labels.count)
    seen = [int(i) for batch in batches for i in batch[:, largest]]
    assert len(seen) == len(set(seen))


def test_batches_of_partly_labelled_images() -> None:
    labels = torch.tensor([0, 1] * 50)
    dataset = ImageDataset("toy", "train", torch.zeros(100, 1, 2, 2).byte(), labels, ("a", "b"))
    hidden = dataset.hide_labels(5, generator=torch.Generator().manual_seed(0))
    batches = list(_partly_labelled_batches(hidden, 16, np.random.default_rng(0)))
    known = [int((hidden.labels[batch] >= 0).sum()) for batch in batches]
    assert known == [4] * 8
    assert (
        sorted(int(i) for batch in batches for i in batch[4:]) == torch.where(hidden.labels < 0)[0].tolist()
    )
    counts = torch.cat([batch[:4] for batch in batches]).bincount(minlength=100)
    assert set(counts[hidden.labels >= 0].tolist()) <= {3, 4}
    with pytest.raises(ValueError, match="images with a label and images without"):
        next(_partly_labelled_batches(dataset, 16, np.random.default_rng(0)))


def test_semi_supervised_training_goes_on_where_it_stopped(digits: ImageDataset, tmp_path: Path) -> None:
    hidden = digits.hide_labels(8, generator=torch.Generator().manual_seed(0))
    arch = PoolingArchitecture(input_shape=digits.input_shape, channels=(4,), hidden=16)

    def trained(folder: Path, *epochs: int) -> tuple[GMVAE, TrainingResult]:
        for stop in epochs:
            with isolated_rng(0):
                model = GMVAE(GMVAEConfig(architecture=arch, num_classes=digits.num_classes))
            config = replace(CONFIG, epochs=stop, batch_size=32, learning_rate=3e-3, noise_std=0.0)
            result = fit(model, hidden, config=config, folder=folder, fabric=cpu())
        return model, result

    model, result = trained(tmp_path / "whole", 3)
    resumed, _ = trained(tmp_path / "parts", 1, 3)
    assert result.history[-1]["elbo"] < result.history[0]["elbo"]
    assert_same(weights(model), weights(resumed))


def test_an_empty_class_is_refused() -> None:
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    dataset = ImageDataset("toy", "train", images, torch.tensor([0, 0, 2, 2]), ("a", "b", "c"))
    with pytest.raises(ValueError, match="a class of the training set is empty"):
        next(_balanced_batches(dataset, 4, np.random.default_rng(0)))


@pytest.mark.slow
def test_training_sets_the_temperature_of_eabs(digits: ImageDataset, tmp_path: Path) -> None:
    with isolated_rng(0):
        model = EABS(EABSConfig(architecture=ARCH)).with_inference(candidates=20, steps=1)
    config = replace(CONFIG, epochs=6, learning_rate=1e-2)
    fit(model, digits, config=config, folder=tmp_path, fabric=cpu())
    validation = digits.split_validation()[1]
    images, labels = validation.batch(slice(None))
    with torch.no_grad():
        logits = model(images)
    losses = [float(torch.nn.functional.cross_entropy(logits * scale, labels)) for scale in (0.8, 1.0, 1.25)]
    assert losses[1] == min(losses)


def test_a_model_says_what_its_epochs_are_compared_with(
    digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []
    plain = DeepBayes.class_scores

    def watched(self: DeepBayes, x: torch.Tensor) -> torch.Tensor:
        budgets.append(self.budget.samples)
        return plain(self, x)

    monkeypatch.setattr(DeepBayes, "class_scores", watched)
    arch = ConditionalArchitecture(latent_dim=3, channels=(), hidden=(20,))
    with isolated_rng(0):
        model = DeepBayes(DeepBayesConfig(architecture=arch))
    config = replace(CONFIG, epochs=6, batch_size=10, learning_rate=1e-2, noise_std=0.0)
    result = fit(model, digits, config=config, folder=tmp_path, fabric=cpu())
    assert set(budgets) == {1, 10}
    assert model.budget.samples == 10
    assert result.history[-1]["elbo"] < result.history[0]["elbo"]
    assert result.validation_score > 0.5


def small_deep_bayes() -> DeepBayes:
    arch = ConditionalArchitecture(latent_dim=3, channels=(), hidden=(20,))
    with isolated_rng(0):
        return DeepBayes(DeepBayesConfig(architecture=arch))


DECIDED = replace(CONFIG, epochs=6, batch_size=20, learning_rate=1e-2, noise_std=0.0, decide_images=30)


def test_the_model_as_it_ships_chooses_the_epoch(digits: ImageDataset, tmp_path: Path) -> None:
    model, config = small_deep_bayes(), replace(DECIDED, decide_every=2)
    result = fit(model, digits, config=config, folder=tmp_path, fabric=cpu())
    scores = {epoch: row.get("deciding_score") for epoch, row in enumerate(result.history, 1)}
    decided = {epoch: score for epoch, score in scores.items() if score is not None}
    assert list(decided) == [1, 2, 4, 6]
    assert result.deciding_score == max(decided.values()) == decided[result.best_epoch]
    assert result.validation_score == result.history[result.best_epoch - 1]["validation_score"]
    validation = digits.split_validation()[1]
    judged = validation.stratified(30, seed=0)
    assert result.deciding_images == 30
    assert accuracy(model, judged) == result.deciding_score
    cheap = model.with_inference(**model.validation_budget)
    assert accuracy(cheap, validation) == result.validation_score


def test_a_cheap_score_chooses_nothing(
    digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = {"cheap": [0.1, 0.9, 0.2, 0.8, 0.3, 0.3], "deciding": [0.5, 0.4, 0.7, 0.6, 0.7, 0.2]}
    seen = set()

    def scores(name: str) -> object:
        answers = iter(scripted[name])

        def score(model: DeepBayes, images: ImageDataset) -> float:
            seen.add((name, images.sha256))
            return next(answers)

        return score

    monkeypatch.setattr(loop, "validation_score", scores("cheap"))
    monkeypatch.setattr(loop, "deciding_score", scores("deciding"))
    result = fit(small_deep_bayes(), digits, config=DECIDED, folder=tmp_path, fabric=cpu())
    assert (result.best_epoch, result.deciding_score, result.validation_score) == (5, 0.7, 0.3)
    assert len(seen) == 2


def test_a_training_that_was_stopped_between_decisions_goes_on(digits: ImageDataset, tmp_path: Path) -> None:
    config = replace(DECIDED, epochs=7, decide_every=4)
    whole = small_deep_bayes()
    result = fit(whole, digits, config=config, folder=tmp_path / "whole", fabric=cpu())

    class Stop(Exception):  # noqa: N818
        pass

    class Interrupted(DeepBayes):  # type: ignore[misc]
        epochs = 0

        def set_parts_training(self, mode: bool) -> None:
            super().set_parts_training(mode)
            type(self).epochs += mode
            if type(self).epochs > 3:
                raise Stop

    victim = small_deep_bayes()
    victim.__class__ = Interrupted
    with pytest.raises(Stop):
        fit(victim, digits, config=config, folder=tmp_path / "parts", fabric=cpu())
    Interrupted.epochs = -config.epochs
    resumed = small_deep_bayes()
    resumed.__class__ = Interrupted
    again = fit(resumed, digits, config=config, folder=tmp_path / "parts", fabric=cpu())
    assert again.history == result.history
    assert again.best_epoch == result.best_epoch
    assert_same(weights(whole), weights(resumed))


def test_one_score_where_both_budgets_are_the_same(digits: ImageDataset, tmp_path: Path) -> None:
    result = fit(small_cnn(), digits, config=DECIDED, folder=tmp_path, fabric=cpu())
    assert not any("deciding_score" in epoch for epoch in result.history)
    assert result.deciding_score == result.validation_score
    assert result.deciding_images == len(digits.split_validation()[1]) > 30


@given(st.integers(1, 1000))
def test_about_ten_epochs_are_decided_on(epochs: int) -> None:
    config = TrainingConfig(epochs=epochs)
    decided = [epoch for epoch in range(1, epochs + 1) if config.decides(epoch)]
    assert (decided[0], decided[-1]) == (1, epochs)
    assert min(epochs, 6) <= len(decided) <= 12


def test_another_validation_split_is_another_training(digits: ImageDataset, tmp_path: Path) -> None:
    fit(small_cnn(), digits, config=replace(CONFIG, epochs=1), folder=tmp_path, fabric=cpu())
    other = replace(digits, held_out=held_out_images(digits.labels, seed=1))
    with pytest.raises(ValueError, match=r"these differ: .*; validation "):
        fit(small_cnn(), other, config=CONFIG, folder=tmp_path, fabric=cpu())


@pytest.mark.parametrize("held", [0, 200, 400])
def test_training_needs_images_on_both_sides(digits: ImageDataset, tmp_path: Path, held: int) -> None:
    divided = replace(digits, held_out=torch.arange(len(digits)) < held)
    with pytest.raises(ValueError, match=f"fewer to validate on, but got {400 - held} and {held}"):
        fit(small_cnn(), divided, config=CONFIG, folder=tmp_path, fabric=cpu())


def test_a_model_without_loss_is_refused(digits: ImageDataset, tmp_path: Path) -> None:
    class Lookup(torch.nn.Module):
        pass

    with pytest.raises(TypeError, match="that is `Trainable`, but got Lookup"):
        fit(Lookup(), digits, config=CONFIG, folder=tmp_path, fabric=cpu())
