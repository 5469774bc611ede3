from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genrobust.inference import DiscriminatorPrior, KLPrior
from genrobust.models import EABS, EABSConfig
from genrobust.nets import Architecture
from genrobust.nets.architectures import architecture
from genrobust.randomness import isolated_rng

Make = Callable[..., Any]
CLASSES = 4
SWITCHES = {  # Table 5: adversarial, discriminative, variational
    "ABS": (False, False, False),
    "A-ABS": (True, False, False),
    "D-ABS": (False, True, False),
    "V-ABS": (False, False, True),
    "AD-ABS": (True, True, False),
    "AV-ABS": (True, False, True),
    "DV-ABS": (False, True, True),
    "ADV-ABS": (True, True, True),
}
each_variant = pytest.mark.parametrize("variant", SWITCHES)


@pytest.fixture
def make_variant(make_model: Make) -> Make:
    def make(variant: str, **config: Any) -> Any:
        adversarial, discriminative, variational = SWITCHES[variant]
        return make_model(
            "eabs", adversarial=adversarial, discriminative=discriminative, variational=variational, **config
        )

    return make


def training_batch(model: Any, count: int = 6) -> tuple[Tensor, Tensor]:
    """Noisy images, as the training loop gives them: (B, C, H, W), or (B, K, C, H, W) and (B K,) labels."""
    generator = torch.Generator().manual_seed(1)
    classes = (CLASSES,) if model.class_balanced else ()
    x = torch.rand((count, *classes, *model.input_shape), generator=generator)
    x = x + 0.2 * torch.randn(x.shape, generator=generator)
    labels = count * CLASSES if model.class_balanced else count
    return x, torch.arange(labels) % CLASSES


def loss_of(model: Any, phase: str, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    with isolated_rng(seed):
        return model.training_loss(phase, x, y)


# The variants and their parts.


@each_variant
def test_names_of_the_variants(variant: str) -> None:
    adversarial, discriminative, variational = SWITCHES[variant]
    config = EABSConfig(adversarial=adversarial, discriminative=discriminative, variational=variational)
    assert config.name == variant


def test_e_abs_has_every_switch_on_and_the_published_values() -> None:
    config = EABSConfig()
    assert config.name == "ADV-ABS"
    assert (config.beta, config.gamma, config.num_classes) == (1, 10, 10)
    assert config.architecture == architecture("eabs-mnist")
    assert (config.inference.candidates, config.inference.encoder_proposal) == (8000, True)


@each_variant
def test_parts_of_the_variants(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    adversarial, discriminative, variational = SWITCHES[variant]
    networks = 1 if discriminative else CLASSES
    assert model.encoders.encoders == networks
    assert model.decoders.decoders == CLASSES
    assert isinstance(model.prior, DiscriminatorPrior if adversarial else KLPrior)
    if adversarial:
        assert model.prior.discriminators.discriminators == networks
    assert model.class_balanced == (not discriminative)
    assert model.objective.variational == variational
    assert model.objective.beta == model.config.beta
    assert model.config.name == variant


@each_variant
def test_every_variant_classifies(variant: str, make_variant: Make, images: Make) -> None:
    model = make_variant(variant)
    x = images(model, 3).requires_grad_()
    logits = model(x)
    assert logits.shape == (3, CLASSES)
    assert torch.equal(model(x), logits)
    [gradient] = torch.autograd.grad(logits[:, 0].sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    assert (model.search(x)[0].log_variance is not None) == SWITCHES[variant][2]


@each_variant
def test_phases_hold_every_parameter_once(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    adversarial = SWITCHES[variant][0]
    assert list(model.phases) == (["autoencoder", "discriminator"] if adversarial else ["autoencoder"])
    parameters = [parameter for phase in model.phases.values() for parameter in phase]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in model.parameters()}


def test_the_default_model_has_ten_decoders_and_one_encoder() -> None:
    model = EABS()
    assert (model.decoders.decoders, model.encoders.encoders, model.num_classes) == (10, 1, 10)
    assert model.input_shape == (1, 28, 28)


# The loss of the autoencoder: equation 5 with a shared encoder, equation 3 or the ELBO per class otherwise.


def explicit_prior(model: Any, k: int, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
    """The weighted prior term of one class, from its definition, shape (B,)."""
    if isinstance(model.prior, KLPrior):
        posterior = Normal(mean, (0.5 * log_variance).exp())
        return model.beta * kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(1)
    shared = model.prior.discriminators.discriminators == 1
    latents = z[:, None] if shared else z[:, None].expand(-1, CLASSES, -1)
    probability = torch.sigmoid(model.prior.discriminators(latents))[:, 0 if shared else k]
    return -model.beta * probability.log()


def decoded(model: Any, k: int, z: Tensor) -> Tensor:
    return model.decoders(z[:, None].expand(-1, CLASSES, -1))[:, k]


def explicit_loss(model: Any, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    images = x if model.class_balanced else x[:, None]
    means, log_variances = model.encoders(images)
    if model.class_balanced:
        total = torch.zeros(())
        for k in range(CLASSES):
            mean, log_variance = means[:, k], log_variances[:, k]
            z = mean + (0.5 * log_variance).exp() * noise[:, k]
            cost = ((x[:, k] - decoded(model, k, z)) ** 2).flatten(1).sum(1)
            total = total + (cost + explicit_prior(model, k, mean, log_variance, z)).sum()
        return total / (len(x) * CLASSES)
    mean, log_variance = means[:, 0], log_variances[:, 0]
    z = mean + (0.5 * log_variance).exp() * noise[:, 0]
    costs = torch.stack([((x - decoded(model, k, z)) ** 2).flatten(1).sum(1) for k in range(CLASSES)], 1)
    prior = explicit_prior(model, 0, mean, log_variance, z)
    losses = []
    for i, label in enumerate(y.tolist()):
        share = torch.exp(-costs[i, label]) / torch.exp(-costs[i]).sum()
        losses.append(costs[i, label] + prior[i] - model.gamma * share.log())
    return torch.stack(losses).mean()


@each_variant
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 10.0), (0.3, 2.0)])
def test_the_loss_of_the_autoencoder(variant: str, beta: float, gamma: float, make_variant: Make) -> None:
    model = make_variant(variant, beta=beta, gamma=gamma)
    x, y = training_batch(model)
    loss = loss_of(model, "autoencoder", x, y)
    with isolated_rng(0):
        noise = torch.randn(len(x), model.encoders.encoders, 3)
    expected = explicit_loss(model, x, y, noise)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(loss_of(model, "autoencoder", x, y, seed=1), loss)

    parameters = model.phases["autoencoder"]
    gradients, explicit = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for gradient, other in zip(gradients, explicit, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-3)


def test_labels_of_a_shared_encoder_matter(make_variant: Make) -> None:
    model = make_variant("ADV-ABS")
    x, y = training_batch(model)
    assert loss_of(model, "autoencoder", x, y) != loss_of(model, "autoencoder", x, (y + 1) % CLASSES)


def test_labels_of_balanced_batches_do_not_matter(make_variant: Make) -> None:
    model = make_variant("AV-ABS")
    x, y = training_batch(model)
    assert loss_of(model, "autoencoder", x, y) == loss_of(model, "autoencoder", x, (y + 1) % CLASSES)


# The loss of the discriminator: Algorithm 1.


@pytest.mark.parametrize("variant", ["AD-ABS", "ADV-ABS"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_loss_of_a_shared_discriminator(variant: str, beta: float, make_variant: Make) -> None:
    model = make_variant(variant, beta=beta)
    x, y = training_batch(model)
    loss = loss_of(model, "discriminator", x, y)
    with isolated_rng(0):
        noise, prior_draws = torch.randn(len(x), 1, 3), torch.randn(len(x), 1, 3)
    mean, log_variance = model.encoders(x[:, None])
    z = mean + (0.5 * log_variance).exp() * noise
    real, fake = (torch.sigmoid(model.prior.discriminators(latents)) for latents in (prior_draws, z))
    expected = -beta * (real.log() + (1 - fake).log()).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("variant", ["A-ABS", "AV-ABS"])
def test_the_loss_of_class_specific_discriminators(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    x, y = training_batch(model)
    loss = loss_of(model, "discriminator", x, y)
    with isolated_rng(0):
        noise = torch.randn(len(x), CLASSES, 3)
        shift = int(torch.randint(1, CLASSES, ()))
        other_noise = torch.randn(len(x), CLASSES, 3)
        prior_draws = torch.randn(2 * len(x), CLASSES, 3)
    others = torch.stack([x[:, (k - shift) % CLASSES] for k in range(CLASSES)], 1)  # section 4.4
    latents = []
    for images, draw in ((x, noise), (others, other_noise)):
        mean, log_variance = model.encoders(images)
        latents.append(mean + (0.5 * log_variance).exp() * draw)
    real = torch.sigmoid(model.prior.discriminators(prior_draws))
    fake = torch.sigmoid(model.prior.discriminators(torch.cat(latents)))
    expected = -real.log().mean() - (1 - fake).log().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("variant", ["ABS", "V-ABS", "D-ABS", "DV-ABS"])
def test_a_model_without_discriminator_has_no_such_phase(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    with pytest.raises(ValueError, match="an adversarial model for the phase 'discriminator'"):
        loss_of(model, "discriminator", *training_batch(model))


def test_an_unknown_phase_is_refused(make_variant: Make) -> None:
    model = make_variant("ADV-ABS")
    with pytest.raises(ValueError, match="decoder"):
        loss_of(model, "decoder", *training_batch(model))


# Gradients and modes.


@pytest.fixture
def training_mode() -> Iterator[Callable[[Any], Any]]:
    models = []

    def switch(model: Any) -> Any:
        model.set_parts_training(True)
        models.append(model)
        return model

    yield switch
    for model in models:
        model.set_parts_training(False)


@each_variant
def test_gradients_reach_every_parameter_of_the_phase(
    variant: str, make_variant: Make, training_mode: Make, architectures: dict[str, Architecture]
) -> None:
    model = training_mode(make_variant(variant))
    x, y = training_batch(model, 24)
    for phase, parameters in model.phases.items():
        model.zero_grad()
        loss_of(model, phase, x, y).backward()
        for parameter in parameters:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("variant", ["A-ABS", "ADV-ABS"])
def test_the_discriminator_trains_alone(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    loss_of(model, "discriminator", *training_batch(model)).backward()
    assert all(parameter.grad is None for parameter in model.phases["autoencoder"])


@each_variant
def test_steps_of_both_phases_lower_their_losses(variant: str, make_variant: Make) -> None:
    model = make_variant(variant)
    x, y = training_batch(model, 16)
    for phase, parameters in model.phases.items():
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        before = loss_of(model, phase, x, y)
        for _ in range(15):
            optimizer.zero_grad()
            loss_of(model, phase, x, y).backward()
            optimizer.step()
        assert loss_of(model, phase, x, y) < before


def test_training_images_may_leave_the_range(make_variant: Make) -> None:
    model = make_variant("ADV-ABS")
    x, y = training_batch(model)
    assert x.min() < 0
    assert x.max() > 1
    assert loss_of(model, "autoencoder", x, y).isfinite()
