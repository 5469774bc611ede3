"""How each model is trained: the recipes of the shipped weights, and the papers' for every other data set."""

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

from ..classifier import Classifier
from ..data import dataset_info
from ..models.abs import ABS, ABSConfig
from ..models.baselines import (
    CNN,
    MLP,
    Adversary,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    MLPConfig,
    PoolCNN,
    PoolCNNConfig,
)
from ..models.comdefend import ComDefend, ComDefendConfig
from ..models.conditionals import GRAPHS, VAE_CNN, VAE_MLP, ConditionalArchitecture
from ..models.convnets import MAGNET, SUBSTITUTES, ConvNet
from ..models.deep_bayes import DeepBayes, DeepBayesConfig
from ..models.eabs import EABS, EABSConfig
from ..models.gmvae import GMVAE, GMVAEConfig
from ..models.mad_vae import MADVAE, VARIANTS
from ..models.pooling import PoolingArchitecture
from ..models.vade import VaDEClassifier, VaDEConfig
from ..nets import Architecture, Conv, architecture
from ..purification import Purified
from .pairs import PairsConfig
from .schedules import MAD_VAES, PAIRS, RETRAINED, SCHEDULES, VGG_SHARES, WIDTHS

__all__ = ["MODEL_NAMES", "Recipe", "build_model", "recipe"]

_VARIANTS: dict[str, dict[str, Any]] = {
    f"{prefix}abs": {
        "adversarial": "a" in prefix,
        "discriminative": "d" in prefix,
        "variational": "v" in prefix,
    }
    for prefix in ("a-", "d-", "v-", "ad-", "av-", "dv-")
}
# E-ABS's layers without its extensions: the baseline that the E-ABS paper calls ABS.
_VARIANTS["base-abs"] = {"adversarial": False, "discriminative": False, "variational": False}

# Deep Bayes as in Li 2018, with convolutions or fully connected, and the graphs of Li et al. 2019.
_DEEP_BAYES = {"deep-bayes": "GF", "deep-bayes-mlp": "GF"} | {
    f"deep-bayes-{name.lower()}": name for name in GRAPHS if name != "GF"
}

# The discriminative baselines of Li 2018.
_BASELINES = ("bnn", "mlp", "pool-cnn")

# GMVAE supervised, with 100 labels a class, and with an encoder of variable entropy (Figure 5).
_GMVAE = ("gmvae", "gmvae-semi", "gmvae-variable")
LABELS_PER_CLASS = 100

# The purifiers, the classifier that they clean for, and its substitutes.
_PURIFIERS = (*MAD_VAES, "comdefend")
_CONV_NETS = {"magnet-cnn": MAGNET} | {
    f"substitute-{name.lower()}": config for name, config in SUBSTITUTES.items()
}

MODEL_NAMES = tuple(
    sorted(
        [
            *("abs", *RETRAINED, "cnn", "eabs", "vade"),
            *(*_BASELINES, *_CONV_NETS, *_DEEP_BAYES, *_GMVAE, *_PURIFIERS, *_VARIANTS),
        ]
    )
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training's outcome beside model and data set.

    Attributes:
        training: Fields of `training.TrainingConfig`.
        initial: Name of the model whose weights the training starts from, if any; of a purifier, the
            classifier that it cleans for.
        labels_per_class: Labels that training may see; None is all of them.
        pairs: The adversarial images that a purifier is trained on, if it is.
    """

    training: dict[str, Any]
    initial: str | None = None
    labels_per_class: int | None = None
    pairs: PairsConfig | None = None


def recipe(model: str, dataset: str) -> Recipe:
    """Give the recipe of a model on a data set: ours where weights are shipped, otherwise the paper's.

    Raises:
        ValueError: If there is no such model or data set.
    """
    _check_name(model)
    labels = LABELS_PER_CLASS if model == "gmvae-semi" else None
    if model in _PURIFIERS:
        return _purifier_recipe(model, dataset)
    initial = "cnn" if model in RETRAINED else None
    if (model, dataset) in SCHEDULES:
        return Recipe(training=dict(SCHEDULES[model, dataset]), initial=initial, labels_per_class=labels)
    grey = dataset_info(dataset).input_shape[0] == 1
    noise_std = 0.2 if grey else 0.01
    if model in RETRAINED:
        training = {"epochs": 200, "learning_rate": 1e-4, "halve_every": 200, "noise_std": 0.0}
        return Recipe(training=training, initial=initial)
    if model in _DEEP_BAYES or model in _BASELINES:
        training = {"epochs": 100, "batch_size": 50, "learning_rate": 1e-4, "noise_std": 0.0}
        return Recipe(training=training)
    if model in _CONV_NETS:
        return Recipe(training={"epochs": 20, "batch_size": 128, "halve_every": 6, "noise_std": 0.0})
    if model == "vade":  # Zhang et al. 2020, Algorithm 1; neither rate nor epochs are given
        return Recipe(training={"epochs": 100, "batch_size": 256, "noise_std": 0.0})
    if model in _GMVAE:  # Ghosh et al. 2019 name Adam, and neither rate nor epochs
        training = {"epochs": 50, "batch_size": 128, "halve_every": 15, "noise_std": 0.0}
        return Recipe(training=training, labels_per_class=labels)
    epochs = 800 if dataset == "svhn" and model != "cnn" else 500
    return Recipe(training={"epochs": epochs, "noise_std": noise_std})


def build_model(model: str, dataset: str) -> Classifier:
    """Build an untrained model, sized for a data set.

    Raises:
        ValueError: If there is no such model or data set.
    """
    _check_name(model)
    families: list[tuple[Container[str], Callable[[str, str], Classifier]]] = [
        (_DEEP_BAYES, _deep_bayes),
        (_BASELINES, _baseline),
        (("vade",), _vade),
        (_GMVAE, _gmvae),
        (_CONV_NETS, _conv_net),
        (_PURIFIERS, _purified),
        (("cnn", *RETRAINED), _cnn),
    ]
    build = next((build for names, build in families if model in names), _by_synthesis)
    return build(model, dataset)


def _deep_bayes(model: str, dataset: str) -> DeepBayes:
    sizes = _conditional_architecture(dataset, convolutional=model != "deep-bayes-mlp")
    classes, graph = dataset_info(dataset).num_classes, GRAPHS[_DEEP_BAYES[model]]
    return DeepBayes(DeepBayesConfig(num_classes=classes, architecture=sizes, graph=graph))


def _cnn(model: str, dataset: str) -> CNN:
    info = dataset_info(dataset)
    adversary = None if model == "cnn" else _adversary(model, dataset)
    config = CNNConfig(num_classes=info.num_classes, architecture=_architecture(dataset))
    return CNN(replace(config, adversary=adversary))


def _by_synthesis(model: str, dataset: str) -> ABS | EABS:
    info, arch = dataset_info(dataset), _architecture(dataset)
    if model != "abs":
        config = EABSConfig(num_classes=info.num_classes, architecture=arch)
        return EABS(replace(config, **_VARIANTS.get(model, {})))
    if info.input_shape == architecture("abs-mnist").input_shape:
        arch = architecture("abs-mnist")
    return ABS(ABSConfig(num_classes=info.num_classes, architecture=arch))


def _vade(model: str, dataset: str) -> VaDEClassifier:
    """Build LeNet for 28 x 28 and VGG-16 for 32 x 32 pixels, with the constant variance of section 3.5.

    The paper names LeNet without its widths. With LeNet-5's, which do on MNIST, 88.6 % of the test images of
    Fashion-MNIST are labelled rightly, and 90.7 with those of later LeNets.

    The paper does not give the variance. The smaller it is, the more the latents are spent on pixels, and the
    less on classes: on MNIST, 98.3 % of 10,000 images with 0.1, and 98.8 with 2. The larger, the less an
    image says against a class, and the further inference from the encoder's proposal is from exact: with
    2,000 random latents a class to start from too, 94 and 76 % of 100. Ours is between them: 1/2 for 28 x 28
    pixels, and as much more as there are more values.

    Decided by the bound proper: the likelihood at the mean alone prefers latents whose neighbours explain
    nothing, and falls from 98.6 to 95.4 % as it is optimised (1,000 MNIST images, variance 0.1).
    """
    del model
    info = dataset_info(dataset)
    config = VaDEConfig(num_classes=info.num_classes, variance=0.5, variational=True)
    if dataset == "fashion_mnist":
        return VaDEClassifier(replace(config, architecture=architecture("lenet-wide")))
    if info.input_shape != config.architecture.input_shape:
        arch = _narrowed(architecture("vgg16-cifar"), VGG_SHARES.get(dataset, 1))
        config = replace(config, architecture=_of_shape(arch, info.input_shape), variance=2.0)
    return VaDEClassifier(config)


def _gmvae(model: str, dataset: str) -> GMVAE:
    """Build GMVAE with a latent a class, and at least 10 (SVHN: 32, as the paper has it).

    The encoder's variance falls with the number of latents, from the paper's 1/3000 for MNIST's 10.
    """
    info = dataset_info(dataset)
    latent_dim = 32 if dataset == "svhn" else max(10, info.num_classes)
    arch = PoolingArchitecture(input_shape=info.input_shape, latent_dim=latent_dim)
    if dataset == "digits":
        arch = replace(arch, channels=(8, 16), hidden=64)
    variance = None if model == "gmvae-variable" else 1 / (300 * latent_dim)
    return GMVAE(GMVAEConfig(num_classes=info.num_classes, architecture=arch, encoder_variance=variance))


def _architecture(dataset: str) -> Architecture:
    shape = dataset_info(dataset).input_shape
    if shape == (1, 28, 28):
        return architecture("eabs-mnist")
    return _of_shape(
        architecture("eabs-supertraffic" if dataset in ("gtsrb", "gtsrb10") else "eabs-svhn"), shape
    )


def _of_shape(arch: Architecture, shape: tuple[int, int, int]) -> Architecture:
    last = replace(arch.decoder[-1], channels=shape[0])
    return replace(arch, input_shape=shape, decoder=(*arch.decoder[:-1], last))


def _narrowed(arch: Architecture, share: int) -> Architecture:
    def narrow(layers: tuple[Conv, ...]) -> tuple[Conv, ...]:
        return tuple(replace(layer, channels=layer.channels // share) for layer in layers)

    *hidden, last = arch.decoder
    return replace(arch, encoder=narrow(arch.encoder), decoder=(*narrow(tuple(hidden)), last))


def _conditional_architecture(dataset: str, *, convolutional: bool) -> ConditionalArchitecture:
    """Give the sizes of Li 2018, appendix A; for the few digits a quarter of the width."""
    arch = VAE_CNN if convolutional else VAE_MLP
    share = 4 if dataset == "digits" else 1
    return replace(
        arch,
        input_shape=dataset_info(dataset).input_shape,
        channels=tuple(width // share for width in arch.channels),
        hidden=tuple(width // share for width in arch.hidden),
    )


def _baseline(model: str, dataset: str) -> Classifier:
    """Build a baseline of Li 2018, appendix A; for the few digits of a quarter of the width."""
    info, wide = dataset_info(dataset), dataset != "digits"
    shape, classes, hidden = info.input_shape, info.num_classes, 500 if wide else 125
    if model == "mlp":
        return MLP(MLPConfig(num_classes=classes, input_shape=shape, hidden=(hidden,) * 3))
    if model == "bnn":
        return BayesianMLP(BayesianMLPConfig(num_classes=classes, input_shape=shape, hidden=(hidden,) * 3))
    channels = (128 if wide else 32,) * 4
    return PoolCNN(PoolCNNConfig(num_classes=classes, input_shape=shape, channels=channels, hidden=hidden))


def _purifier_recipe(model: str, dataset: str) -> Recipe:
    """Give the recipe of a purifier, trained for MagNet's classifier.

    As published, where nothing is shipped: 5 epochs of the vanilla and proximity variants and 10 of the
    others, in batches of 512; Adam's rate falls by 0.2 % an epoch, which halves it in 346. The schedule of
    ComDefend is ours.
    """
    training: dict[str, Any] = {"batch_size": 512, "halve_every": 346, "noise_std": 0.0}
    if model == "comdefend":
        training |= {"epochs": 20, "batch_size": 128, "halve_every": 7}
    else:
        training |= {"epochs": 5 if MAD_VAES[model] in ("vanilla", "proximity") else 10}
    training |= SCHEDULES.get((model, dataset), {})
    pairs = None if model == "comdefend" else PAIRS.get(dataset, PairsConfig())
    return Recipe(training=training, initial="magnet-cnn", pairs=pairs)


def _conv_net(model: str, dataset: str) -> ConvNet:
    """Build MagNet's classifier or a substitute; for the few digits, of a quarter of the width."""
    info, config = dataset_info(dataset), _CONV_NETS[model]
    share = 4 if dataset == "digits" else 1
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


def _purified(model: str, dataset: str) -> Purified:
    """Build a purifier before MagNet's classifier, as wide as `WIDTHS` says."""
    info, classifier = dataset_info(dataset), _conv_net("magnet-cnn", dataset)
    if model == "comdefend":
        widths = WIDTHS.get(("comdefend", dataset), ComDefendConfig().compression)
        return Purified(
            ComDefend(
                ComDefendConfig(input_shape=info.input_shape, compression=widths, reconstruction=widths[::-1])
            ),
            classifier,
        )
    config = VARIANTS[MAD_VAES[model]]
    config = replace(
        config,
        num_classes=info.num_classes,
        input_shape=info.input_shape,
        channels=WIDTHS.get(("mad-vae", dataset), config.channels),
    )
    return Purified(MADVAE(config), classifier)


def _adversary(model: str, dataset: str) -> Adversary:
    """Give the threat model of E-ABS Tables 1 to 4.

    1.5 in L2; in the maximum norm 0.3 for MNIST, 0.1 for Fashion-MNIST, and 8/255 in colour.
    """
    if model == "adv-l2":
        return Adversary(norm="l2", epsilon=1.5)
    if dataset_info(dataset).input_shape[0] > 1:
        return Adversary(norm="linf", epsilon=8 / 255)
    return Adversary(norm="linf", epsilon=0.1 if dataset == "fashion_mnist" else 0.3)


def _check_name(model: str) -> None:
    if model not in MODEL_NAMES:
        raise ValueError(f"Expected a model out of {list(MODEL_NAMES)}, but got {model!r}")
