"""The attacks of AdverTorch 0.2.3: every class that `advertorch.attacks` exports."""

from typing import Any

from ...attacks.registered import Knowledge
from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["ADVERTORCH"]

LINF_STEPS = {"nb_iter": 20, "eps_iter": 0.03}
L2_STEPS = {"nb_iter": 20, "eps_iter": 0.4}
REPAIRED = "Repaired by `import_advertorch`: the toolkit's own"


def _attack(
    name: str, norm: AttackNorm, knowledge: Knowledge = "white", *, scipy: bool = False, **fields: Any
) -> AttackEntry:
    requires = {"torchvision": "torchvision"}  # which the toolkit imports, and does not declare
    if scipy:
        requires["scipy"] = "scipy"
    return AttackEntry(name=name, norm=norm, knowledge=knowledge, requires=requires, **fields)


def _bounded(name: str, norm: AttackNorm, knowledge: Knowledge = "white", **fields: Any) -> AttackEntry:
    return _attack(name, norm, knowledge, needs_epsilon=True, **{"targeted": True, **fields})


ADVERTORCH = Adapter(
    toolkit="advertorch",
    title="AdverTorch",
    distribution="advertorch",
    package="advertorch",
    released="2020-06",
    maintained=False,
    attacks=(
        # Within a ball.
        _bounded("GradientSignAttack", "linf"),  # also exported as FGSM
        _bounded("GradientAttack", "l2"),  # also exported as FGM
        _bounded("LinfBasicIterativeAttack", "linf", parameters=LINF_STEPS),
        _bounded("L2BasicIterativeAttack", "l2", parameters=L2_STEPS),
        _bounded("PGDAttack", "linf", parameters=LINF_STEPS),  # or by `ord` L2, and with `l1_sparsity` L1
        _bounded("LinfPGDAttack", "linf", parameters=LINF_STEPS),
        _bounded("L2PGDAttack", "l2", parameters=L2_STEPS),
        _bounded(
            "L1PGDAttack",
            "l1",
            parameters={"nb_iter": 20, "eps_iter": 1.0},
            weak="Stalls at any budget: a step moves the pixel of steepest gradient, and stays with it when "
            "it has reached 0 or 1. It changes a few pixels in all; SparseL1DescentAttack goes on.",
        ),
        _bounded("SparseL1DescentAttack", "l1", parameters={"nb_iter": 20, "eps_iter": 2.0}),
        _bounded("MomentumIterativeAttack", "linf", parameters=LINF_STEPS),  # or by `ord` L2
        _bounded("LinfMomentumIterativeAttack", "linf", parameters=LINF_STEPS),
        _bounded(
            "L2MomentumIterativeAttack",
            "l2",
            parameters=L2_STEPS,
            note="Returns NaN where the gradient of a pixel is exactly zero: it divides by the perturbation.",
        ),
        _bounded(
            "FastFeatureAttack",
            "linf",
            parameters=LINF_STEPS,
            targeted=False,
            note="Imitates the logits of a guide, an image of another class: the parameter `guide`, or the "
            "nearest such image of the batch.",
        ),
        _bounded(
            "LinfSPSAAttack",
            "linf",
            "score",
            parameters={"nb_iter": 10, "lr": 0.1, "nb_sample": 32},
        ),
        _bounded(
            "ChooseBestAttack",
            "linf",
            parameters={"base_adversaries": ("LinfPGDAttack", "LinfMomentumIterativeAttack")},
            note="Keeps each image's best of several attacks, given by name. "
            f"{REPAIRED} returns a black image where none helps, and when targeted the worst.",
        ),
        # The smallest perturbation.
        _attack(
            "CarliniWagnerL2Attack",
            "l2",
            parameters={
                "max_iterations": 40,
                "binary_search_steps": 3,
                "learning_rate": 0.1,
                "initial_const": 1.0,
            },
            targeted=True,
        ),
        _attack(
            "ElasticNetL1Attack",
            "l1",
            parameters={
                "max_iterations": 40,
                "binary_search_steps": 3,
                "learning_rate": 0.05,
                "initial_const": 1.0,
            },
            targeted=True,
        ),
        _attack("DDNL2Attack", "l2", parameters={"nb_iter": 20}, targeted=True),
        _attack(
            "LBFGSAttack",
            "l2",
            scipy=True,
            parameters={"max_iterations": 10, "binary_search_steps": 3, "initial_const": 1.0},
            targeted=True,
            note=f"{REPAIRED} returns its input unless it is targeted.",
        ),
        _attack("FABAttack", "linf", parameters={"n_iter": 10}),  # or by `norm` L2 and L1
        _attack("LinfFABAttack", "linf", parameters={"n_iter": 10}),
        _attack("L2FABAttack", "l2", parameters={"n_iter": 10}),
        _attack("L1FABAttack", "l1", parameters={"n_iter": 10}),
        _attack(
            "JacobianSaliencyMapAttack",  # also exported as JSMA
            "l0",
            parameters={"gamma": 0.1},
            targeted=True,
            note="Targeted only: given an image's own class it returns its input. "
            "Untargeted it is sent to the runner-up.",
        ),
        _attack(
            "SpatialTransformAttack",
            "other",
            scipy=True,
            parameters={"max_iterations": 20, "initial_const": 0.1},
            targeted=True,
            note=f"Moves pixels. {REPAIRED} returns a black image where it fails.",
        ),
        _attack(
            "LocalSearchAttack",
            "l0",
            "score",
            parameters={
                "p": -0.5,
                "r": -1.0,
                "t": 80,
                "d": 2,
                "seed_ratio": 0.3,
                "max_nb_seeds": 256,
                "round_ub": 4,
            },
            note="Begins every round with the clean image: it changes `t` pixels in all, by default 5, too "
            "few for a CNN. The default `p=1` asks about images in [-0.5, 1.5]. Its targeted search goes the "
            "wrong way. Square images only.",
        ),
        _attack(
            "SinglePixelAttack",
            "l0",
            "decision",
            targeted=True,
            weak="Tries `max_pixels` pixels, one at a time, at 0 and 1: few images of a CNN have one that "
            "decides.",
            note="Square images only.",
        ),
    ),
    aliases={
        "FGM": "GradientAttack",
        "FGSM": "GradientSignAttack",
        "JSMA": "JacobianSaliencyMapAttack",
    },
    implementation="genrobust.adapters._advertorch",
)
