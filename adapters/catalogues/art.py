"""The attacks of ART."""

from typing import Any

from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["ART", "EXCLUDED"]

EXCLUDED = {
    "AdversarialPatchTensorFlowV2": "TensorFlow models only",
    "AdversarialTexturePyTorch": "attacks object trackers",
    "CarliniWagnerASR": "attacks speech recognisers",
    "DPatch": "attacks object detectors",
    "DecisionTreeAttack": "attacks decision trees",
    "FeatureAdversariesTensorFlowV2": "TensorFlow models only",
    "HighConfidenceLowUncertainty": "attacks Gaussian processes",
    "ImperceptibleASR": "attacks speech recognisers",
    "ImperceptibleASRPyTorch": "attacks speech recognisers",
    "LowProFool": "attacks tables: rows of features, each of its own importance",
    "MalwareGDTensorFlow": "attacks malware detectors",
    "OverTheAirFlickeringPyTorch": "attacks videos",
    "OverloadPyTorch": "attacks object detectors",
    "ProjectedGradientDescentTensorFlowV2": "TensorFlow models only",
    "RobustDPatch": "attacks object detectors",
    "SNAL": "attacks object detectors",
}
"""What `art.attacks.evasion` exports that attacks no image classifier in PyTorch, and why it does not."""

BATCH = {"batch_size": 64}
GRADIENT_STEPS = {"max_iter": 20, **BATCH}
ADAPTIVE_STEPS = {"max_iter": 20, "nb_random_init": 1, **BATCH}
CARLINI = {"max_iter": 10, "binary_search_steps": 3, "initial_const": 1.0, "learning_rate": 0.1, **BATCH}
PATCH = {"learning_rate": 0.1, "max_iter": 60, "scale_min": 0.7, "scale_max": 0.9, "scale": 0.8}

STICKERS = {"cv2": "opencv-python-headless", "kornia": "kornia"}
TORCHVISION = {"torchvision": "torchvision"}

BEYOND = "Asks about points outside of [0, 1], and is answered about the nearest images."
RAW_STEPS = "With `norm=inf` ART steps along the gradient, not its sign: `eps_step` is then in its units."
ONE_FOR_ALL = "One perturbation for the whole batch."
IDENTITY = "Gives the clean image back where it has not succeeded."
STARTS = "Searches from an adversarial image on: without `x_adv_init`, from the nearest that the batch has."


def _white(name: str, norm: AttackNorm, *, targeted: bool = True, **settings: Any) -> AttackEntry:
    return AttackEntry(name=name, norm=norm, knowledge="white", targeted=targeted, **settings)


def _ball(name: str, norm: AttackNorm, *, targeted: bool = True, **settings: Any) -> AttackEntry:
    return _white(name, norm, targeted=targeted, needs_epsilon=True, **settings)


def _score(name: str, norm: AttackNorm, *, targeted: bool = True, **settings: Any) -> AttackEntry:
    return AttackEntry(name=name, norm=norm, knowledge="score", targeted=targeted, **settings)


def _decision(name: str, norm: AttackNorm, *, targeted: bool = True, **settings: Any) -> AttackEntry:
    options = {"output": "decisions"}
    return AttackEntry(
        name=name, norm=norm, knowledge="decision", targeted=targeted, options=options, **settings
    )


ART = Adapter(
    toolkit="art",
    title="ART",
    distribution="adversarial-robustness-toolbox",
    package="art",
    released="2025-07",
    maintained=False,
    attacks=(
        # Within a ball, by gradients.
        _ball("FastGradientMethod", "linf", parameters=BATCH),
        _ball("ProjectedGradientDescent", "linf", parameters=GRADIENT_STEPS),
        _ball("ProjectedGradientDescentNumpy", "linf", parameters=GRADIENT_STEPS),
        _ball("ProjectedGradientDescentPyTorch", "linf", parameters=GRADIENT_STEPS),
        _ball("BasicIterativeMethod", "linf", parameters=GRADIENT_STEPS),
        _ball("MomentumIterativeMethod", "linf", parameters=GRADIENT_STEPS),
        _ball("AutoProjectedGradientDescent", "linf", parameters=ADAPTIVE_STEPS),
        _ball("AutoConjugateGradient", "l2", parameters={"norm": 2, **ADAPTIVE_STEPS}, note=RAW_STEPS),
        _ball(
            "RescalingAutoConjugateGradient",
            "l2",
            parameters={"norm": 2, **ADAPTIVE_STEPS},
            note=f"{RAW_STEPS} Divides by zero on its way.",
        ),
        _ball(
            "AutoAttack",
            "linf",
            targeted=False,
            parameters={
                "attacks": [
                    _ball(
                        "AutoProjectedGradientDescent",
                        "linf",
                        parameters={**ADAPTIVE_STEPS, "loss_type": loss_type},
                    )
                    for loss_type in ("cross_entropy", "difference_logits_ratio")
                ]
                + [
                    _white("DeepFool", "l2", targeted=False, parameters={"max_iter": 10, **BATCH}),
                    _score(
                        "SquareAttack",
                        "linf",
                        targeted=False,
                        needs_epsilon=True,
                        parameters={"max_iter": 50},
                    ),
                ]
            },
            requires={"multiprocess": "multiprocess"},
            note="Here the four of ART's attacks with a small budget; `attacks=None` is ART's own budget.",
        ),
        _ball(
            "FeatureAdversariesPyTorch",
            "linf",
            parameters={"layer": "logits", "max_iter": 30},
            note="Imitates the logits of the nearest image of another class, unless it is given `guides`.",
        ),
        _ball(
            "FrameSaliencyAttack",
            "linf",
            parameters={
                "frame_index": 2,
                "attacker": _ball("ProjectedGradientDescent", "linf", parameters=GRADIENT_STEPS),
                **BATCH,
            },
            note="Made for videos; here the rows of an image are its frames.",
        ),
        _ball(
            "UniversalPerturbation",
            "linf",
            targeted=False,
            parameters={
                "attacker": "fgsm",
                "attacker_params": {"eps": 0.1, "eps_step": 0.1},
                "delta": 0.0,
                "max_iter": 5,
            },
            note=f"{ONE_FOR_ALL} {BEYOND}",
        ),
        _ball(
            "TargetedUniversalPerturbation",
            "linf",
            parameters={
                "attacker_params": {"eps": 0.1, "eps_step": 0.1, "targeted": True},
                "delta": 0.0,
            },
            note=f"{ONE_FOR_ALL} {BEYOND} Without `targeted` in `attacker_params` it leaves its target.",
        ),
        # Nearest examples, by gradients.
        _white("DeepFool", "l2", targeted=False, parameters={"max_iter": 30, **BATCH}),
        _white(
            "NewtonFool",
            "l2",
            targeted=False,
            parameters={"eta": 0.1, "max_iter": 50, **BATCH},
            options={"output": "probabilities"},
            note=f"{BEYOND} Of negative logits it takes the wrong direction.",
        ),
        _white("CarliniL2Method", "l2", parameters=CARLINI),
        _white(
            "CarliniL0Method",
            "l0",
            parameters=CARLINI,
            weak="Its change of variables moves every pixel by rounding: as L0 counts, the whole image.",
        ),
        _white(
            "CarliniLInfMethod",
            "linf",
            targeted=False,
            parameters={
                "max_iter": 30,
                "learning_rate": 0.3,
                "initial_const": 1.0,
                "largest_const": 2.0,
                "decrease_factor": 0.7,
            },
            note=f"With `targeted` ART keeps what is not the target. {IDENTITY}",
        ),
        _white(
            "ElasticNet",
            "l1",
            parameters={
                "max_iter": 30,
                "binary_search_steps": 2,
                "initial_const": 1.0,
                "learning_rate": 0.05,
                **BATCH,
            },
            note=BEYOND,
        ),
        _white("SaliencyMapMethod", "l0", parameters={"theta": 1.0, **BATCH}),
        _white(
            "BrendelBethgeAttack",
            "l2",
            parameters={"norm": 2, "steps": 20, "lr_num_decay": 5},
            requires={"numba": "numba"},
            note=f"{STARTS} Compiles for half a minute. Scales gradients by the size of the batch, and fails "
            "with an AssertionError where one image has no start: here every image is attacked by itself.",
        ),
        # Not within a norm, by gradients.
        _white(
            "ShadowAttack",
            "other",
            parameters={
                "batch_size": 8,
                "nb_steps": 50,
                "learning_rate": 1.0,
                "lambda_tv": 0.05,
                "lambda_c": 0.1,
            },
            note=f"{BEYOND} Takes any labels that it is given for targets, and one image at a time.",
        ),
        _white(
            "Wasserstein",
            "other",
            parameters={
                "norm": "inf",
                "max_iter": 40,
                "eps_iter": 5,
                "eps_factor": 1.3,
                "conjugate_sinkhorn_max_iter": 50,
                "projected_sinkhorn_max_iter": 50,
                **BATCH,
            },
            note="With `norm='wasserstein'` a gradient above about 700 / `regularization` is a ValueError.",
        ),
        _white(
            "CompositeAdversarialAttackPyTorch",
            "other",
            targeted=False,
            parameters={"enabled_attack": (2, 3, 4, 5), "pgd_epsilon": (-0.2, 0.2), **BATCH},
            requires={"kornia": "kornia"},
            note="Rotation, brightness, contrast and PGD; its hue (0) and saturation (1) need 3 channels. "
            "A single one of them never ends, unless `attack_order` is 'fixed'.",
        ),
        _white("AdversarialPatch", "other", parameters=PATCH, requires=TORCHVISION, note=ONE_FOR_ALL),
        _white("AdversarialPatchPyTorch", "other", parameters=PATCH, requires=TORCHVISION, note=ONE_FOR_ALL),
        _white(
            "AdversarialPatchNumpy",
            "other",
            parameters=PATCH,
            note=f"{ONE_FOR_ALL} Always targeted, whatever `targeted` says.",
        ),
        _white(
            "GRAPHITEWhiteboxPyTorch",
            "other",
            parameters={
                "num_xforms": 4,
                "first_steps": 20,
                "steps": 10,
                "step_size": 0.05,
                "min_tr": 0.75,
                "rotation_range": (-10.0, 10.0),
                "patch_removal_size": 8,
                "patch_removal_interval": 4,
            },
            requires=STICKERS,
            note="Always targeted.",
        ),
        # By logits or probabilities.
        _score(
            "SquareAttack",
            "linf",
            targeted=False,
            needs_epsilon=True,
            parameters={"max_iter": 100},
            note="With `norm=1` it silently gives the clean images back.",
        ),
        _score(
            "SimBA",
            "l2",
            options={"output": "probabilities"},
            parameters={"epsilon": 0.5, "max_iter": 500},
        ),
        _score(
            "ZooAttack",
            "l2",
            parameters={
                "use_resize": False,
                "use_importance": False,
                "abort_early": False,
                "max_iter": 8,
                "learning_rate": 1.0,
                "initial_const": 100.0,
                "nb_parallel": 64,
                "variable_h": 0.01,
            },
            note=f"{BEYOND} Moves the first image of a batch alone, if `batch_size` is above 1. {IDENTITY}",
            weak="Adds its noise anew in every iteration, and ends far away: L2 norms of 7 on digits.",
        ),
        _score(
            "VirtualAdversarialMethod",
            "l2",
            targeted=False,
            needs_epsilon=True,
            options={"output": "probabilities"},
            parameters={"finite_diff": 0.1, "max_iter": 1, **BATCH},
            note=f"{BEYOND} The default `finite_diff` of 1e-6 is below the resolution of float32.",
            weak="Takes a single step, along the direction that changes p(y | x) most nearby.",
        ),
        _score(
            "PixelAttack",
            "l0",
            needs_epsilon=True,
            parameters={"es": 1, "max_iter": 1},
            note=f"{IDENTITY} Where images are not 8-bit, other pixels change by rounding.",
            weak="Evolves sets of pixels: at this budget noise, which fools with half of the image alone.",
        ),
        _score(
            "ThresholdAttack",
            "linf",
            needs_epsilon=True,
            parameters={"es": 0, "max_iter": 40},
            requires={"cma": "cma"},
            note=f"`th` is in grey levels of 255: images that are not 8-bit may leave the ball by rounding. "
            f"{IDENTITY}",
        ),
        _score(
            "FeatureAdversariesNumpy",
            "linf",
            needs_epsilon=True,
            parameters={"layer": 0, "maxiter": 1},
            note="Imitates the logits of the nearest image of another class, unless it is given `guides`. "
            "Every gradient takes a query per pixel.",
        ),
        _score(
            "LaserAttack",
            "other",
            targeted=False,
            channels=3,
            options={"channels_first": False},
            parameters={
                "iterations": 20,
                "random_initializations": 5,
                "min_laser_beam": (380, 0, 0, 1),
                "max_laser_beam": (780, 3.14, 28, 5),
            },
            note="May give back a beam that it has not tried. Calls what NumPy 2 removed: `legacy_numpy`.",
        ),
        # By decisions.
        _decision("BoundaryAttack", "l2", parameters={"max_iter": 50, "sample_size": 10}, note=STARTS),
        _decision("HopSkipJump", "l2", parameters={"max_iter": 5}, note=STARTS),
        _decision(
            "GeoDA",
            "l2",
            targeted=False,
            parameters={"max_iter": 500, "bin_search_tol": 0.01, "sigma": 0.02},
            note=f"{BEYOND} Calls what NumPy 2 removed: see `legacy_numpy`. Leaves a file in the working "
            "directory. By default its probes (`sigma`) do not reach the boundary (`bin_search_tol`).",
        ),
        _decision(
            "SignOPTAttack",
            "l2",
            targeted=False,
            parameters={"num_trial": 100, "k": 100, "max_iter": 5, "alpha": 1.0},
            note=f"With `targeted` its line search takes the clean class for the target. {IDENTITY}",
        ),
        _decision(
            "SpatialTransformation",
            "other",
            targeted=False,
            parameters={
                "max_translation": 20,
                "num_translations": 3,
                "max_rotation": 45,
                "num_rotations": 5,
            },
            note="One rotation and translation for the whole batch; translates gray images along one axis.",
        ),
        _decision(
            "GRAPHITEBlackbox",
            "other",
            parameters={
                "heat_patch_size": (8, 8),
                "heat_patch_stride": (8, 8),
                "num_xforms_mask": 4,
                "num_xforms_boost": 4,
                "num_boost_queries": 200,
                "tr_lo": 0.9,
                "tr_hi": 1.0,
                "rotation_range": (-10.0, 10.0),
                "batch_size": 1,
            },
            requires=STICKERS,
            note="Always targeted. Looks at the first image alone, if `batch_size` is above 1.",
        ),
    ),
    implementation="genrobust.adapters._art",
)
