"""Sizes and schedules of the shipped weights that differ from the papers', for training on a CPU."""

from dataclasses import replace
from typing import Any

from ..purifiers.mad_vae import VARIANTS
from .pairs import PairsConfig

__all__ = [
    "ADVERSARY_STEPS",
    "ARCHITECTURES",
    "EPOCHS",
    "EPSILONS",
    "MAD_VAES",
    "NARROWED",
    "PAIRS",
    "POOLING",
    "RETRAINED",
    "SCHEDULES",
    "VGG_SHARES",
    "WIDTHS",
]

# Retrained from the CNN, on adversarial images only (E-ABS section 4.3; by FGSM, Zhang et al. 2020, Table 5).
RETRAINED = ("adv-fgsm", "adv-l2", "adv-linf")

# The four MAD-VAEs, by name and variant.
MAD_VAES = {f"mad-vae-{name}": name for name in VARIANTS}
_LONGER_ON_DIGITS = ("mad-vae-vanilla", "mad-vae-combined", "defense-vae")

# Maps of the convolutions, for models whose published widths take too long on a CPU.
WIDTHS: dict[tuple[str, str], tuple[int, ...]] = {
    ("mad-vae", "digits"): (8, 8, 16, 32),
    ("mad-vae", "mnist"): (32, 32, 64, 128),
    ("comdefend", "digits"): (4, 8, 4),
    ("comdefend", "mnist"): (8, 16, 8),
}

# Divisors of the widths for data sets of few images.
NARROWED = {"digits": 4}

# Architectures that do not follow from the shape of the images.
ARCHITECTURES = {
    ("eabs", "gtsrb"): "eabs-supertraffic",
    ("eabs", "gtsrb10"): "eabs-supertraffic",
    ("vade", "fashion_mnist"): "lenet-wide",
}

# Sizes of GMVAE: the paper's number of latents for SVHN, and narrower layers for few images.
POOLING: dict[str, dict[str, Any]] = {
    "digits": {"channels": (8, 16), "hidden": 64},
    "svhn": {"latent_dim": 32},
}

# Radii of adversarial training in the maximum norm that differ from those of other grey or colour images.
EPSILONS = {("adv-linf", "fashion_mnist"): 0.1}

# Steps of the attack in adversarial training, in place of 10: as many as Madry et al. 2017 take on CIFAR-10.
ADVERSARY_STEPS = {"fashion_mnist": 7}

# Epochs of E-ABS and its ablations in the paper, if they are not 500.
EPOCHS = {"svhn": 800}

# VGG-16 and its mirror image take 130 MB, so that shipped weights have a quarter of the width.
VGG_SHARES = {"cifar2": 4}

# C&W takes longest, so that it attacks only a part of the images, with fewer steps.
_FEW_STEPS = PairsConfig(cw_searches=3, cw_steps=60, cw_step_size=0.05, cw_constant=1.0)
PAIRS: dict[str, PairsConfig] = {
    "digits": replace(_FEW_STEPS, images=500, cw_images=100, clean_images=700),
    "mnist": replace(_FEW_STEPS, images=5000, cw_images=500, clean_images=3000),
}

# Fields of `training.TrainingConfig`, by model and data set.
SCHEDULES: dict[tuple[str, str], dict[str, Any]] = {
    ("bnn", "digits"): {"epochs": 300, "batch_size": 50, "halve_every": 100, "noise_std": 0.0},
    ("bnn", "mnist"): {"epochs": 40, "batch_size": 100, "halve_every": 12, "noise_std": 0.0},
    ("diffusion", "digits"): {
        "epochs": 60,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "halve_every": 15,
        "noise_std": 0.0,
    },
    ("diffusion", "mnist"): {
        "epochs": 9,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "halve_every": 2,
        "decide_every": 9,  # the averaged weights of every epoch are better, by less than 300 images can tell
        "noise_std": 0.0,
    },
    ("mlp", "digits"): {"epochs": 100, "batch_size": 50, "halve_every": 30, "noise_std": 0.0},
    ("mlp", "mnist"): {"epochs": 20, "batch_size": 100, "halve_every": 6, "noise_std": 0.0},
    ("pool-cnn", "digits"): {"epochs": 60, "batch_size": 50, "halve_every": 20, "noise_std": 0.0},
    ("pool-cnn", "mnist"): {
        "epochs": 4,
        "batch_size": 100,
        "halve_every": 1,
        "noise_std": 0.0,
        "precision": "bf16-mixed",
    },
    ("deep-bayes-mlp", "digits"): {"epochs": 300, "batch_size": 50, "halve_every": 100, "noise_std": 0.0},
    ("deep-bayes-mlp", "mnist"): {"epochs": 40, "batch_size": 100, "halve_every": 12, "noise_std": 0.0},
    ("abs", "digits"): {"epochs": 200, "batch_size": 320, "halve_every": 60},
    ("abs", "mnist"): {"epochs": 20, "batch_size": 640, "halve_every": 12},
    ("cnn", "digits"): {"epochs": 100, "batch_size": 64, "halve_every": 30},
    ("cnn", "mnist"): {"epochs": 20, "batch_size": 256, "halve_every": 6},
    ("cnn", "fashion_mnist"): {"epochs": 12, "batch_size": 256, "halve_every": 4},
    ("cnn", "cifar2"): {"epochs": 20, "batch_size": 128, "halve_every": 6},
    ("deep-bayes", "digits"): {"epochs": 200, "batch_size": 50, "halve_every": 60, "noise_std": 0.0},
    ("deep-bayes", "mnist"): {
        "epochs": 42,
        "batch_size": 100,
        "halve_every": 18,
        "noise_std": 0.0,
        "precision": "bf16-mixed",
    },
    ("eabs", "digits"): {"epochs": 150, "batch_size": 64, "halve_every": 60, "precision": "bf16-mixed"},
    ("gmvae", "digits"): {"epochs": 40, "batch_size": 64, "halve_every": 15, "noise_std": 0.0},
    ("gmvae", "mnist"): {"epochs": 25, "batch_size": 128, "halve_every": 8, "noise_std": 0.0},
    ("gmvae", "coil20"): {"epochs": 200, "batch_size": 64, "halve_every": 60, "noise_std": 0.0},
    ("gmvae-semi", "digits"): {"epochs": 400, "batch_size": 64, "halve_every": 130, "noise_std": 0.0},
    ("gmvae-semi", "mnist"): {"epochs": 19, "batch_size": 128, "halve_every": 6, "noise_std": 0.0},
    ("gmvae-variable", "mnist"): {"epochs": 25, "batch_size": 128, "halve_every": 8, "noise_std": 0.0},
    ("magnet-cnn", "digits"): {"epochs": 40, "batch_size": 32, "halve_every": 14, "noise_std": 0.2},
    ("magnet-cnn", "mnist"): {"epochs": 5, "batch_size": 128, "halve_every": 2, "noise_std": 0.0},
    **{
        (f"substitute-{letter}", "mnist"): {
            "epochs": 10 if letter in "de" else 3,
            "batch_size": 128,
            "halve_every": 4 if letter in "de" else 1,
            "noise_std": 0.0,
        }
        for letter in "abcde"
    },
    **{
        (name, "digits"): {
            "epochs": 20 if name in _LONGER_ON_DIGITS else 10,
            "batch_size": 32,
            "halve_every": 7 if name in _LONGER_ON_DIGITS else 4,
        }
        for name in (*MAD_VAES, "defense-vae")
    },
    **{
        (name, "mnist"): {
            "epochs": 5 if name == "mad-vae-classification" else 3,
            "batch_size": 64,
            "halve_every": 2 if name == "mad-vae-classification" else 1,
            "precision": "bf16-mixed",
        }
        for name in (*MAD_VAES, "defense-vae")
    },
    ("comdefend", "digits"): {"epochs": 12, "batch_size": 16, "halve_every": 4},
    ("comdefend", "mnist"): {"epochs": 2, "batch_size": 64, "halve_every": 1, "precision": "bf16-mixed"},
    **{
        (name, dataset): {
            "epochs": epochs,
            "batch_size": batch,
            "learning_rate": 3e-3,
            "halve_every": halve,
            "noise_std": 0.0,
        }
        for name, dataset, epochs, batch, halve in (
            ("flow", "digits", 30, 32, 8),
            ("flow", "mnist", 6, 64, 1),
            ("pixelcnn", "digits", 30, 32, 8),
            ("pixelcnn", "mnist", 4, 64, 1),
        )
    },
    ("vade", "digits"): {"epochs": 80, "batch_size": 64, "halve_every": 27, "noise_std": 0.0},
    ("vade", "mnist"): {"epochs": 40, "batch_size": 256, "halve_every": 13, "noise_std": 0.0},
    ("vade", "fashion_mnist"): {"epochs": 18, "batch_size": 256, "halve_every": 6, "noise_std": 0.0},
    ("vade", "cifar2"): {"epochs": 60, "batch_size": 128, "halve_every": 20, "noise_std": 0.0},
    **{
        (name, "mnist"): {
            "epochs": 30,
            "batch_size": 256,
            "learning_rate": 1e-4,
            "halve_every": 10,
            "noise_std": 0.0,
        }
        for name in RETRAINED
    },
    # 12 epochs in bfloat16, where the paper takes 200: at ten times its rate, which halves every three.
    **{
        (name, "fashion_mnist"): {
            "epochs": 12,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "halve_every": 3,
            "noise_std": 0.0,
            "precision": "bf16-mixed",
        }
        for name in RETRAINED
    },
    ("eabs", "mnist"): {"epochs": 16, "batch_size": 128, "halve_every": 7, "precision": "bf16-mixed"},
    ("eabs", "fashion_mnist"): {
        "epochs": 12,
        "batch_size": 128,
        "halve_every": 5,
        "precision": "bf16-mixed",
    },
    ("base-abs", "fashion_mnist"): {"epochs": 20, "batch_size": 256, "halve_every": 7},
}
