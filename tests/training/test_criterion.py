"""What chooses an epoch, and what the temperature is set to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from genrobust import load_dataset
from genrobust.data import ImageDataset, dataset_info, held_out_images
from genrobust.models import CNN, Adversary, CNNConfig
from genrobust.nets.architectures import Architecture, Conv
from genrobust.randomness import isolated_rng
from genrobust.training.criterion import accuracy, calibrate_temperature, decisions, validation_score
from genrobust.training.loop import TrainingConfig, TrainingResult, fit
from genrobust.zoo.registered import MODELS, RegisteredModel

# Lightning's own: it asks numpy for reprs and warns about the few loader workers that this loop does not use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")

ARCH = Architecture(
    input_shape=(1, 28, 28),
    latent_dim=3,
    encoder=(Conv(4, 5, 4), Conv(8, 3, 2)),
    decoder=(Conv(4, 7), Conv(2, 4, 2, 1), Conv(1, 4, 2, 1)),
    discriminator=(8,),
)
ADVERSARY = Adversary(norm="linf", epsilon=0.2, steps=3)


def some_digits() -> ImageDataset:
    """Gives 400 digits, a quarter of them for validation."""
    digits = load_dataset("digits", "train").subset(slice(400))
    return replace(digits, held_out=held_out_images(digits.labels, fraction=0.25, seed=3))


def trained(
    model: CNN, folder: Path, *, epochs: int, learning_rate: float, noise_std: float = 0.0
) -> TrainingResult:
    config = TrainingConfig(
        epochs=epochs,
        batch_size=64,
        learning_rate=learning_rate,
        noise_std=noise_std,
        seed=3,
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    return fit(model, some_digits(), config=config, folder=folder, fabric=fabric, show_progress=False)


@pytest.fixture(scope="module")
def clean_cnn(tmp_path_factory: pytest.TempPathFactory) -> CNN:
    with isolated_rng(0):
        model = CNN(CNNConfig(architecture=ARCH))
    trained(model, tmp_path_factory.mktemp("clean"), epochs=12, learning_rate=1e-2, noise_std=0.2)
    return model


def test_adversarial_training_keeps_the_epoch_of_the_best_robust_accuracy(
    clean_cnn: CNN, tmp_path: Path
) -> None:
    model = CNN(CNNConfig(architecture=ARCH, adversary=ADVERSARY))
    model.load_state_dict(clean_cnn.state_dict())
    validation = some_digits().split_validation()[1]
    clean, robust = [], []
    for epochs in range(1, 6):
        result = trained(model, tmp_path, epochs=epochs, learning_rate=3e-3)
        checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        last = CNN(model.config)
        last.load_state_dict(checkpoint["model"])
        clean.append(accuracy(last, validation))
        robust.append(validation_score(last, validation))
    assert (result.selected_by, checkpoint["identity"]["selected_by"]) == (
        "robust accuracy",
        "robust accuracy",
    )
    assert [epoch["validation_score"] for epoch in result.history] == robust
    assert result.validation_score == max(robust) > robust[0]
    assert robust[result.best_epoch - 1] == max(robust)
    assert result.best_epoch > max(range(1, 6), key=lambda epoch: clean[epoch - 1])
    assert clean[result.best_epoch - 1] < max(clean)
    assert validation_score(model, validation) == max(robust)


def test_a_score_repeats_and_leaves_the_generator_alone(clean_cnn: CNN) -> None:
    model = CNN(CNNConfig(architecture=ARCH, adversary=ADVERSARY))
    model.load_state_dict(clean_cnn.state_dict())
    validation = load_dataset("digits", "test").subset(slice(40))
    state = torch.get_rng_state()
    first = validation_score(model, validation)
    torch.rand(5)
    assert validation_score(model, validation) == first < validation_score(clean_cnn, validation)
    torch.set_rng_state(state)
    before = torch.rand(1)
    torch.set_rng_state(state)
    validation_score(model, validation)
    assert torch.equal(torch.rand(1), before)


def test_accuracy_is_the_share_of_right_decisions(clean_cnn: CNN) -> None:
    test = load_dataset("digits", "test").subset(slice(60))
    right = clean_cnn.predict(test.batch(slice(None))[0]).labels == test.labels
    assert torch.equal(decisions(clean_cnn, test) == test.labels, right)
    assert accuracy(clean_cnn, test) == pytest.approx(float(right.double().mean()))
    assert validation_score(clean_cnn, test) == accuracy(clean_cnn, test)


def test_checkpoints_of_another_score_are_rejected(clean_cnn: CNN, tmp_path: Path) -> None:
    trained(CNN(clean_cnn.config), tmp_path, epochs=1, learning_rate=1e-2)
    model = CNN(CNNConfig(architecture=ARCH, adversary=ADVERSARY))
    with pytest.raises(ValueError, match=r'selected_by \("accuracy" there, "robust accuracy" here\)'):
        trained(model, tmp_path, epochs=2, learning_rate=1e-2)


@pytest.mark.parametrize(
    "entry",
    [model for model in MODELS.items().values() if isinstance(model, RegisteredModel)],
    ids=lambda entry: entry.name,
)
def test_every_recipe_names_the_score_that_chooses_its_epoch(entry: RegisteredModel) -> None:
    model, name = entry.build(dataset_info("mnist")), entry.name
    attacked = name.startswith("adv-")
    assert model.selected_by == ("robust accuracy" if attacked else "accuracy")
    images = torch.rand(2, *model.input_shape, generator=torch.Generator().manual_seed(0))
    chosen = model.selection_images(images, torch.tensor([0, 1]))
    assert torch.equal(chosen, images) != attacked


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_temperature_of_scaled_true_logits_is_the_scale(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert calibrate_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_temperature_leaves_a_gradient_where_every_image_is_right() -> None:
    labels = torch.arange(100) % 10
    distances = 100.0 * (1 - torch.eye(10)[labels])
    logits = (-distances).requires_grad_()
    factor = calibrate_temperature(logits.detach(), labels)
    # One image of any label among 101: p(y) = 1 - 9 / 1010 has the least cross-entropy.
    probability = (logits / factor).softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(probability, torch.full_like(probability, 1 - 9 / 1010), rtol=0, atol=1e-4)
    torch.nn.functional.cross_entropy(logits / factor, labels).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().amax(1) > 0).all()


def test_the_median_margin_is_at_most_ten() -> None:
    """All but one of 200 are right by 2000 nats, and that one is wrong by 1: cross-entropy asks for more."""
    labels = torch.arange(200) % 10
    logits = 2000.0 * torch.eye(10)[labels]
    logits[0, 1] = 2001.0
    factor = calibrate_temperature(logits, labels)
    largest = (logits / factor).topk(2, dim=1).values
    assert float((largest[:, 0] - largest[:, 1]).quantile(0.5)) == pytest.approx(10, rel=1e-4)
    assert calibrate_temperature(logits / 50, labels) == pytest.approx(factor / 50, rel=1e-4)
