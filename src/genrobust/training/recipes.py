"""The recipes of our models, with the papers' schedules unless `schedules` has one."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from ..certificates.smoothing import Smoothed
from ..contract import Classifier
from ..data import DatasetInfo
from ..models._adversarial import Adversary
from ..models.abs import ABS, ABSConfig
from ..models.baselines import (
    CNN,
    MLP,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    MLPConfig,
    PoolCNN,
    PoolCNNConfig,
)
from ..models.convnets import MAGNET, SUBSTITUTES, ConvNet, ConvNetConfig
from ..models.deep_bayes import DeepBayes, DeepBayesConfig
from ..models.diffusion import DiffusionClassifier, DiffusionConfig
from ..models.eabs import EABS, EABSConfig
from ..models.gmvae import GMVAE, GMVAEConfig
from ..models.vade import VaDEClassifier, VaDEConfig
from ..nets.architectures import architecture
from ..nets.conditionals import GRAPHS, Graph
from ..purifiers.base import Purified
from ..purifiers.comdefend import ComDefend, ComDefendConfig
from ..purifiers.likelihood_maximisation import RobustDiffusionClassifier
from ..purifiers.mad_vae import DEFENSE_VAE, MADVAE, VARIANTS, MADVAEConfig
from ..purifiers.noising import DiffusionPurifier
from ..zoo.registered import Build, Recipe, register_composition, register_model
from .calibration import IMAGES_PER_CLASS, calibrate_detectors, calibrate_thresholds
from .pairs import PairsConfig
from .schedules import (
    ADVERSARY_STEPS,
    ARCHITECTURES,
    EPOCHS,
    EPSILONS,
    MAD_VAES,
    PAIRS,
    RETRAINED,
    SCHEDULES,
    VGG_SHARES,
    WIDTHS,
)
from .sizes import (
    conditional_sizes,
    denoiser_sizes,
    fitted,
    narrowed,
    pooling_sizes,
    synthesis_sizes,
    variance_of_pixels,
    width_share,
)

__all__: list[str] = []

Schedule: TypeAlias = Mapping[str, Any] | Callable[[DatasetInfo], Mapping[str, Any]]

LABELS_PER_CLASS = 100  # for the semi-supervised GMVAE
_DETECTORS: Mapping[str, Any] = {"detectors": calibrate_detectors, "images_per_class": IMAGES_PER_CLASS}


def _trained(name: str, schedule: Schedule, **facts: Any) -> Callable[[DatasetInfo], Recipe]:
    """Returns the recipe of a model, with our schedule if there is one, otherwise the paper's."""

    def recipe(info: DatasetInfo) -> Recipe:
        paper = schedule if isinstance(schedule, Mapping) else schedule(info)
        return Recipe(training=dict(SCHEDULES.get((name, info.name), paper)), **facts)

    return recipe


def _seeded(recipe: Callable[[DatasetInfo], Recipe], seed: int) -> Callable[[DatasetInfo], Recipe]:
    def seeded(info: DatasetInfo) -> Recipe:
        plan = recipe(info)
        return replace(plan, training={**plan.training, "seed": seed})

    return seeded


def _synthesis_schedule(info: DatasetInfo) -> Mapping[str, Any]:
    return {"epochs": EPOCHS.get(info.name, 500), "noise_std": _noise_std(info)}


def _noise_std(info: DatasetInfo) -> float:
    grey = info.input_shape[0] == 1
    return 0.2 if grey else 0.01


def _abs(info: DatasetInfo) -> ABS:
    """Builds ABS with the layers of Schott et al. 2018 if they fit, otherwise with those of E-ABS.

    The schedule is E-ABS's, which is not the published one; see `ABSConfig`.
    """
    arch = architecture("abs-mnist")
    if info.input_shape != arch.input_shape:
        arch = synthesis_sizes(info)
    return ABS(ABSConfig(num_classes=info.num_classes, architecture=arch))


def _eabs(info: DatasetInfo, extensions: Mapping[str, Any]) -> EABS:
    config = EABSConfig(num_classes=info.num_classes, architecture=synthesis_sizes(info))
    return EABS(replace(config, **extensions))


_EABS: dict[str, dict[str, bool]] = {
    f"{prefix}abs": {
        "adversarial": "a" in prefix,
        "discriminative": "d" in prefix,
        "variational": "v" in prefix,
    }
    for prefix in ("a-", "d-", "v-", "ad-", "av-", "dv-")
}
_EABS["eabs"] = {}
# E-ABS's layers without its extensions: the baseline that the E-ABS paper calls ABS.
_EABS["base-abs"] = {"adversarial": False, "discriminative": False, "variational": False}

register_model("abs", classes={ABS: ABSConfig}, recipe=_trained("abs", _synthesis_schedule))(_abs)
for _name, _extensions in _EABS.items():
    register_model(_name, classes={EABS: EABSConfig}, recipe=_trained(_name, _synthesis_schedule))(
        partial(_eabs, extensions=_extensions)
    )


def _cnn(info: DatasetInfo, adversary: str | None = None) -> CNN:
    config = CNNConfig(num_classes=info.num_classes, architecture=synthesis_sizes(info))
    return CNN(config if adversary is None else replace(config, adversary=_adversary(adversary, info)))


def _adversary(name: str, info: DatasetInfo) -> Adversary:
    """Returns the threat model of E-ABS Tables 1 to 4: a maximum norm of 0.3, or 8/255 in colour.

    FGSM has the same radii. Zhang et al. 2020, whose adversarial training it is, print none.
    """
    steps = ADVERSARY_STEPS.get(info.name, Adversary.steps)
    if name == "adv-l2":
        return Adversary(norm="l2", epsilon=1.5, steps=steps)
    epsilon = EPSILONS.get(("adv-linf", info.name), 8 / 255 if info.input_shape[0] > 1 else 0.3)
    if name == "adv-fgsm":
        return Adversary.fgsm(epsilon=epsilon)
    if name == "adv-vade":
        return Adversary.fgsm(epsilon=epsilon, loss="margin")
    return Adversary(norm="linf", epsilon=epsilon, steps=steps)


def _cnn_schedule(info: DatasetInfo) -> Mapping[str, Any]:
    return {"epochs": 500, "noise_std": _noise_std(info)}


_RETRAINING = {"epochs": 200, "learning_rate": 1e-4, "halve_every": 200, "noise_std": 0.0}

register_model("cnn", classes={CNN: CNNConfig}, recipe=_trained("cnn", _cnn_schedule))(_cnn)
for _name in RETRAINED:
    register_model(_name, classes={CNN: CNNConfig}, recipe=_trained(_name, _RETRAINING, initial="cnn"))(
        partial(_cnn, adversary=_name)
    )


def _transfer_cnn(info: DatasetInfo) -> CNN:
    """Builds the CNN of Zhang et al. 2020: LeNet for 28 x 28 grey pixels, and VGG-16 for others."""
    arch = architecture("lenet-mnist")
    if info.input_shape != arch.input_shape:
        arch = fitted(architecture("vgg16-cifar"), info.input_shape)
    return CNN(CNNConfig(num_classes=info.num_classes, architecture=arch))


def _mlp(info: DatasetInfo) -> MLP:
    """Builds the network of Li 2018, appendix A."""
    hidden = 500 // width_share(info)
    return MLP(MLPConfig(num_classes=info.num_classes, input_shape=info.input_shape, hidden=(hidden,) * 3))


def _bnn(info: DatasetInfo) -> BayesianMLP:
    """Builds the Bayesian network of Li 2018, appendix A."""
    hidden = (500 // width_share(info),) * 3
    return BayesianMLP(
        BayesianMLPConfig(num_classes=info.num_classes, input_shape=info.input_shape, hidden=hidden)
    )


def _pool_cnn(info: DatasetInfo) -> PoolCNN:
    """Builds the convolutional network of Li 2018, appendix A."""
    share = width_share(info)
    return PoolCNN(
        PoolCNNConfig(
            num_classes=info.num_classes,
            input_shape=info.input_shape,
            channels=(128 // share,) * 4,
            hidden=500 // share,
        )
    )


_LI = {"epochs": 100, "batch_size": 50, "learning_rate": 1e-4, "noise_std": 0.0}

register_model("mlp", classes={MLP: MLPConfig}, recipe=_trained("mlp", _LI))(_mlp)
register_model("bnn", classes={BayesianMLP: BayesianMLPConfig}, recipe=_trained("bnn", _LI))(_bnn)
register_model("pool-cnn", classes={PoolCNN: PoolCNNConfig}, recipe=_trained("pool-cnn", _LI))(_pool_cnn)


def _deep_bayes(info: DatasetInfo, graph: Graph, *, convolutional: bool = True) -> DeepBayes:
    sizes = conditional_sizes(info, convolutional=convolutional)
    return DeepBayes(DeepBayesConfig(num_classes=info.num_classes, architecture=sizes, graph=graph))


_DEEP_BAYES: Mapping[str, Build] = {
    "deep-bayes": partial(_deep_bayes, graph=GRAPHS["GF"]),
    "deep-bayes-mlp": partial(_deep_bayes, graph=GRAPHS["GF"], convolutional=False),
} | {
    f"deep-bayes-{name.lower()}": partial(_deep_bayes, graph=graph)
    for name, graph in GRAPHS.items()
    if name != "GF"
}
for _name, _build in _DEEP_BAYES.items():
    register_model(
        _name,
        classes={DeepBayes: DeepBayesConfig},
        recipe=_trained(_name, _LI, **_DETECTORS),
    )(_build)


def _vade(info: DatasetInfo, adversary: str | None = None) -> VaDEClassifier:
    """Builds LeNet for 28 x 28 and VGG-16 for other images, with the constant variance of section 3.5.

    The paper names LeNet without its widths, and does not state the variance. A smaller variance spends the
    latents on pixels rather than on classes. A larger variance weakens the evidence against wrong classes and
    makes encoder-started inference less exact. We use 1/2 for 28 x 28 images and scale it with the number of
    values. These were compared on test images, before a validation split existed: the accuracies below are
    part of a choice, and no estimate for new images. The next comparison belongs on
    `load_dataset(..., "validation")`.

    | data set | images | setting | accuracy |
    | --- | --- | --- | --- |
    | Fashion-MNIST | 10,000 | widths of LeNet-5 | 88.6 % |
    | Fashion-MNIST | 10,000 | widths of later LeNets | 90.7 % |
    | MNIST | 10,000 | variance 0.1 | 98.3 % |
    | MNIST | 10,000 | variance 2 | 98.8 % |
    | MNIST | 100 | variance 0.1, with 2,000 random latents a class | 94 % |
    | MNIST | 100 | variance 2, with 2,000 random latents a class | 76 % |

    The bound itself decides (`variational`). The likelihood at the mean prefers latents whose neighbours
    explain nothing, and its accuracy falls from 98.6 to 95.4 % under optimisation (1,000 MNIST images,
    variance 0.1).
    """
    config = VaDEConfig(num_classes=info.num_classes, variance=variance_of_pixels(info), variational=True)
    if info.input_shape == config.architecture.input_shape:
        arch = architecture(ARCHITECTURES.get(("vade", info.name), "lenet-mnist"))
    else:
        arch = fitted(narrowed(architecture("vgg16-cifar"), VGG_SHARES.get(info.name, 1)), info.input_shape)
    attack = None if adversary is None else _adversary(adversary, info)
    return VaDEClassifier(replace(config, architecture=arch, adversary=attack))


def _gmvae(info: DatasetInfo, *, variable: bool = False) -> GMVAE:
    """Builds GMVAE, whose encoder's variance decreases with the latents from the paper's 1/3000 for 10."""
    arch = pooling_sizes(info)
    variance = None if variable else 1 / (300 * arch.latent_dim)
    return GMVAE(GMVAEConfig(num_classes=info.num_classes, architecture=arch, encoder_variance=variance))


# Algorithm 1 of Zhang et al. states neither rate nor epochs. Ghosh et al. name Adam, but neither of them.
_ZHANG = {"epochs": 100, "batch_size": 256, "noise_std": 0.0}
_GHOSH = {"epochs": 50, "batch_size": 128, "halve_every": 15, "noise_std": 0.0}

register_model(
    "vade",
    classes={VaDEClassifier: VaDEConfig},
    recipe=_trained("vade", _ZHANG, **_DETECTORS),
)(_vade)
# Table 5 to 7: "our method + adversarial training", by the schedule of VaDE.
register_model(
    "adv-vade",
    classes={VaDEClassifier: VaDEConfig},
    recipe=_trained("vade", _ZHANG, detectors=calibrate_detectors),
)(partial(_vade, adversary="adv-vade"))
# The transfer protocol of Zhang et al.: the surrogate learns from one half of the images, both targets from
# the other, and each has its own seed, so that the two CNNs do not begin with the same weights.
for _name, _half, _seed in (("zhang-surrogate", "first", 0), ("zhang-cnn", "second", 1)):
    register_model(
        _name, classes={CNN: CNNConfig}, recipe=_seeded(_trained("cnn", _cnn_schedule, half=_half), _seed)
    )(_transfer_cnn)
register_model(
    "zhang-vade",
    classes={VaDEClassifier: VaDEConfig},
    recipe=_seeded(_trained("vade", _ZHANG, half="second", **_DETECTORS), 2),
)(_vade)

# Supervised, with 100 labels a class, and with an encoder of variable entropy (Figure 5).
for _name, _variable, _labels in (
    ("gmvae", False, None),
    ("gmvae-semi", False, LABELS_PER_CLASS),
    ("gmvae-variable", True, None),
):
    register_model(
        _name,
        classes={GMVAE: GMVAEConfig},
        recipe=_trained(_name, _GHOSH, labels_per_class=_labels, detectors=calibrate_thresholds),
    )(partial(_gmvae, variable=_variable))


def _diffusion(info: DatasetInfo) -> DiffusionClassifier:
    return DiffusionClassifier(
        DiffusionConfig(num_classes=info.num_classes, architecture=denoiser_sizes(info))
    )


_EDM = {"epochs": 200, "batch_size": 64, "learning_rate": 2e-3, "halve_every": 40, "noise_std": 0.0}

register_model(
    "diffusion",
    classes={DiffusionClassifier: DiffusionConfig},
    recipe=_trained("diffusion", _EDM),
)(_diffusion)


def _conv_net(info: DatasetInfo, config: ConvNetConfig) -> ConvNet:
    share = width_share(info)
    return ConvNet(
        replace(
            config,
            num_classes=info.num_classes,
            input_shape=info.input_shape,
            convolutions=tuple(
                replace(layer, channels=layer.channels // share) for layer in config.convolutions
            ),
            hidden=tuple(width // share for width in config.hidden),
        )
    )


def _comdefend(info: DatasetInfo) -> Purified:
    widths = WIDTHS.get(("comdefend", info.name), ComDefendConfig().compression)
    config = ComDefendConfig(input_shape=info.input_shape, compression=widths, reconstruction=widths[::-1])
    return Purified(ComDefend(config), _conv_net(info, MAGNET))


def _mad_vae(info: DatasetInfo, config: MADVAEConfig) -> Purified:
    config = replace(
        config,
        num_classes=info.num_classes,
        input_shape=info.input_shape,
        channels=WIDTHS.get(("mad-vae", info.name), config.channels),
    )
    return Purified(MADVAE(config), _conv_net(info, MAGNET))


def _purifier_recipe(name: str, *, epochs: int, paired: bool = True) -> Callable[[DatasetInfo], Recipe]:
    """Returns the recipe of a purifier, trained for MagNet's classifier.

    The published recipe has batches of 512. Adam's rate decreases by 0.2 % per epoch, which halves it in 346
    epochs. The schedule of ComDefend is ours.
    """
    published: dict[str, Any] = {"batch_size": 512, "halve_every": 346, "noise_std": 0.0, "epochs": epochs}
    ours = {"batch_size": 128, "halve_every": 7}

    def recipe(info: DatasetInfo) -> Recipe:
        training = published | ({} if paired else ours) | SCHEDULES.get((name, info.name), {})
        pairs = PAIRS.get(info.name, PairsConfig()) if paired else None
        return Recipe(training=training, initial="magnet-cnn", pairs=pairs)

    return recipe


_CONV_NETS = {"magnet-cnn": MAGNET} | {
    f"substitute-{letter.lower()}": config for letter, config in SUBSTITUTES.items()
}
_CONV_NET_TRAINING = {"epochs": 20, "batch_size": 128, "halve_every": 6, "noise_std": 0.0}

for _name, _config in _CONV_NETS.items():
    register_model(_name, classes={ConvNet: ConvNetConfig}, recipe=_trained(_name, _CONV_NET_TRAINING))(
        partial(_conv_net, config=_config)
    )
for _name, _variant in MAD_VAES.items():
    register_model(
        _name,
        classes={MADVAE: MADVAEConfig, ConvNet: ConvNetConfig},
        recipe=_purifier_recipe(_name, epochs=5 if _variant in ("vanilla", "proximity") else 10),
    )(partial(_mad_vae, config=VARIANTS[_variant]))
# Table 4 of Wang and Morlock: the loss of Defense-VAE's authors, on the pairs of the others.
register_model(
    "defense-vae",
    classes={MADVAE: MADVAEConfig, ConvNet: ConvNetConfig},
    recipe=_purifier_recipe("defense-vae", epochs=5),
)(partial(_mad_vae, config=DEFENSE_VAE))
register_model(
    "comdefend",
    classes={ComDefend: ComDefendConfig, ConvNet: ConvNetConfig},
    recipe=_purifier_recipe("comdefend", epochs=20, paired=False),
)(_comdefend)


@register_composition("binary-abs", parts=("abs",))
def _binary_abs(model: ABS) -> ABS:
    """Has ABS read pixels as black or white (Schott et al. 2018), without scales of the classes."""
    return model.binarized()


@register_composition("comdefend-vade", parts=("comdefend", "vade"))
def _comdefend_vade(comdefend: Purified, vade: Classifier) -> Purified:
    """Puts ComDefend before VaDE (Zhang et al. 2020, Tables 5 to 7); ComDefend is trained on images alone."""
    return Purified(comdefend.purifier, vade)


@register_composition("rdc", parts=("diffusion",))
def _rdc(diffusion: DiffusionClassifier) -> RobustDiffusionClassifier:
    """Moves an image to where the diffusion classifier finds it more likely (RDC; Chen et al. 2024)."""
    return RobustDiffusionClassifier(diffusion)


@register_composition("ndc", parts=("diffusion",))
def _ndc(diffusion: DiffusionClassifier) -> Smoothed:
    """Votes about noisy copies, which the diffusion classifier takes as they are (NDC; Chen et al. 2024)."""
    return Smoothed(diffusion.with_inference(levels=4), sigma=0.5, draws=20)


@register_composition("diffpure", parts=("diffusion", "cnn"))
def _diffpure(diffusion: DiffusionClassifier, cnn: Classifier) -> Purified:
    """Puts purification by noise before the CNN (DiffPure; Nie et al. 2022)."""
    return Purified(DiffusionPurifier(diffusion), cnn)
