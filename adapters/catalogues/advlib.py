"""The attacks of adv-lib 0.2.8: every function on images with one label each that `adv_lib.attacks` exports.

Its attacks on segmentation (`adv_lib.attacks.segmentation`) need a label for every pixel.
"""

from typing import Any

from ...attacks.registered import Knowledge
from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["ADVLIB"]

NEEDS = {"torchvision": "torchvision", "tqdm": "tqdm"}  # which it imports; it is installed without them
STEPS = {"num_steps": 100}
LONGER = {"num_steps": 200}  # after 100 steps a third of the examples are still long
DLR = "Its loss, DLR, needs 3 classes."
LEVELS = "Rounds to 256 levels of gray; `levels=None` does not."
OWN_TARGETS = (
    "Attacks the classes in order of their logits, from the second on: the label too, if the clean image is "
    "mislabelled. Its loss, DLR, needs 4 classes."
)


def _attack(
    name: str, norm: AttackNorm, knowledge: Knowledge = "white", *, targeted: bool = True, **fields: Any
) -> AttackEntry:
    return AttackEntry(name=name, norm=norm, knowledge=knowledge, targeted=targeted, requires=NEEDS, **fields)


def _of_norms(name: str, *norms: AttackNorm, **fields: Any) -> tuple[AttackEntry, ...]:
    return tuple(_attack(f"{name}-{norm}", norm, **fields) for norm in norms)


ADVLIB = Adapter(
    toolkit="advlib",
    title="adv-lib",
    distribution="adv-lib",
    package="adv_lib",
    released="2026-06",
    maintained=True,
    install="--no-deps adv-lib",  # it asks for visdom, which does not build under a current setuptools
    attacks=(
        # Within a ball.
        _attack(
            "pgd_linf",
            "linf",
            needs_epsilon=True,
            parameters={"steps": 10, "relative_step_size": 0.25},
            note="Never looks at the image after its last step: one step changes nothing.",
        ),
        *_of_norms("apgd", "linf", "l2", "l1", needs_epsilon=True, parameters={"n_iter": 10}, note=DLR),
        *_of_norms(
            "apgd_targeted",
            "linf",
            "l2",
            "l1",
            needs_epsilon=True,
            targeted=False,
            parameters={"n_iter": 10},
            note=OWN_TARGETS,
        ),
        # The smallest perturbation.
        *_of_norms("fmn", "linf", "l2", "l1", "l0", starts="starting_points", parameters={"steps": 50}),
        _attack("ddn", "l2", parameters={"steps": 50}, note=LEVELS),
        *(
            _attack(
                f"alma-{norm}",
                norm,
                parameters={"distance": norm, **STEPS},
                note=f"{DLR} `init_lr_distance` never returns if no step along the gradient is as long. "
                "`distance='ssim'` and `'ciede2000'` keep something else small.",
            )
            for norm in ("l2", "l1")
        ),
        _attack("pdgd", "l2", parameters=LONGER),
        *_of_norms("pdpgd", "linf", "l2", "l1", parameters=LONGER),
        _attack("pdpgd-l0", "l0", parameters={"proximal_operator": 23, **LONGER}),
        _attack("sigma_zero", "l0", targeted=False, parameters=STEPS),
        _attack("sdf", "l2", targeted=False),
        *_of_norms("df", "linf", "l2", targeted=False),
        *_of_norms("fab", "linf", "l2", "l1", targeted=False, parameters={"n_iter": 20}),
        *_of_norms("tr", "linf", "l2", targeted=False, parameters={"eps": 0.05}),
        _attack(
            "carlini_wagner_l2",
            "l2",
            parameters={
                "max_iterations": 50,
                "binary_search_steps": 3,
                "learning_rate": 0.1,
                "initial_const": 1.0,
            },
            note="`max_iterations` below 10 divide by zero.",
        ),
        _attack(
            "carlini_wagner_linf",
            "linf",
            parameters={
                "max_iterations": 50,
                "learning_rate": 0.1,
                "initial_const": 0.1,
                "decrease_factor": 0.7,
            },
        ),
        _attack(
            "str_attack",
            "l2",
            parameters={"binary_search_steps": 2, "max_iterations": 50, "retrain": False},
            note="Changes few groups of pixels, and keeps the example that is nearest in L2. Its second "
            "stage (`retrain`) takes 3,200 more steps and one threshold for the whole batch, and fails with "
            "an IndexError if the first stage found nothing.",
        ),
        _attack("vfga", "l0"),
        _attack("fga", "l0"),
        _attack(
            "perc_al",
            "other",
            channels=3,
            parameters={"max_iterations": 50},
            note="Keeps the difference of colours small, and rounds to 256 levels.",
        ),
    ),
    aliases={
        "alma": "alma-l2",
        "apgd": "apgd-linf",
        "apgd_targeted": "apgd_targeted-linf",
        "df": "df-l2",
        "fab": "fab-linf",
        "fmn": "fmn-l2",
        "pdpgd": "pdpgd-l2",
        "tr": "tr-l2",
    },
    implementation="genrobust.adapters._advlib",
)
