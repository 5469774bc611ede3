"""The attacks of torchattacks."""

from typing import Any

from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["TORCHATTACKS"]

BEYOND = "Asks about points outside of [0, 1], and is answered about the nearest images."
RETURN_BEYOND = (
    f"{BEYOND} Returns such points too, here the nearest images. `max_iterations` below 10 divide by zero."
)
CHANNELS = "Filters the gradient with a kernel made for 3 channels."
ELASTIC_NET = {"lr": 0.05, "binary_search_steps": 3, "max_iterations": 20, "initial_const": 1}


def _ball(name: str, *, norm: AttackNorm = "linf", targeted: bool = True, **settings: Any) -> AttackEntry:
    """Describes a gradient attack within a ball."""
    return AttackEntry(
        name=name, norm=norm, knowledge="white", needs_epsilon=True, targeted=targeted, **settings
    )


TORCHATTACKS = Adapter(
    toolkit="torchattacks",
    title="torchattacks",
    distribution="torchattacks",
    package="torchattacks",
    released="2023-10",
    maintained=False,
    attacks=(
        AttackEntry(
            name="VANILA",
            norm="linf",
            knowledge="decision",
            weak="The identity: it asks nothing and changes nothing, and fools nobody.",
        ),
        AttackEntry(
            name="GN",
            norm="l2",
            knowledge="decision",
            parameters={"std": 0.5},
            weak="Gaussian noise: it asks nothing, and seldom fools a model.",
        ),
        _ball("FGSM"),
        _ball("BIM"),
        _ball("RFGSM"),
        _ball("PGD"),
        _ball("EOTPGD"),
        _ball("FFGSM"),
        _ball(
            "TPGD",
            targeted=False,
            parameters={"alpha": 1.0},
            weak="Leaves the model's own answer, to which greater certainty is a way too: of a model that is "
            "certain it needs steps as wide as the ball.",
        ),
        _ball("MIFGSM"),
        _ball("UPGD"),
        _ball("APGD", targeted=False),
        _ball("APGDT", targeted=False, note="Needs at least 4 classes."),
        _ball("DIFGSM"),
        _ball("TIFGSM", channels=3, note=CHANNELS),
        _ball(
            "Jitter",
            parameters={"scale": 5},
            note="Adds noise to probabilities, in which the default scale drowns a certain model's gradient.",
        ),
        _ball("NIFGSM", note=BEYOND),
        _ball("PGDRS", parameters={"noise_sd": 0.1}, note=f"Made for models that smooth. {BEYOND}"),
        _ball("SINIFGSM", note=BEYOND),
        _ball("VMIFGSM", note=BEYOND),
        _ball("VNIFGSM", note=BEYOND),
        AttackEntry(
            name="SPSA",
            norm="linf",
            knowledge="score",
            parameters={"nb_iter": 5, "nb_sample": 64, "lr": 0.1},
            needs_epsilon=True,
            targeted=True,
            note=BEYOND,
        ),
        AttackEntry(
            name="JSMA",
            norm="l0",
            knowledge="white",
            parameters={"gamma": 0.2},
            targeted=True,
            note="Must reach a class: left to itself (label + 1) % 10, however many there are; here the most "
            "likely other one.",
        ),
        AttackEntry(
            name="EADL1",
            norm="l1",
            knowledge="white",
            parameters=ELASTIC_NET,
            targeted=True,
            note=RETURN_BEYOND,
        ),
        AttackEntry(
            name="EADEN",
            norm="l2",
            knowledge="white",
            parameters=ELASTIC_NET,
            targeted=True,
            note=RETURN_BEYOND,
        ),
        _ball("PIFGSM", targeted=False, channels=3, note=CHANNELS),
        _ball("PIFGSMPP", channels=3, note=CHANNELS),
        AttackEntry(
            name="CW",
            norm="l2",
            knowledge="white",
            parameters={"c": 10, "lr": 0.1},
            targeted=True,
            note="No search over c: the example is as near as c happens to be good.",
        ),
        _ball("PGDL2", norm="l2"),
        AttackEntry(name="DeepFool", norm="l2", knowledge="white"),
        _ball(
            "PGDRSL2",
            norm="l2",
            parameters={"noise_sd": 0.1},
            note=f"Made for models that smooth. {BEYOND}",
        ),
        AttackEntry(
            name="SparseFool",
            norm="l0",
            knowledge="white",
            parameters={"lam": 1.5, "steps": 20},
            note=BEYOND,
        ),
        AttackEntry(
            name="OnePixel",
            norm="l0",
            knowledge="score",
            parameters={"pixels": 10, "steps": 5, "popsize": 30},
            targeted=True,
            weak="A few pixels found by random search fool no model of gray digits: 0 of 8 with up to 100.",
        ),
        AttackEntry(
            name="Pixle",
            norm="l0",
            knowledge="score",
            targeted=True,
            weak="Moves patches, with no eye to how many pixels change: about a third of a gray digit.",
        ),
        _ball(
            "FAB",
            targeted=False,
            note="norm='L1' fails in torchattacks itself (UnboundLocalError). Told a class by "
            "label, it returns the images: it leaves alone what the model does not label so.",
        ),
        _ball("AutoAttack", targeted=False, note="Needs at least 4 classes."),
        AttackEntry(
            name="Square",
            norm="linf",
            knowledge="score",
            parameters={"n_queries": 1000},
            needs_epsilon=True,
            targeted=True,
        ),
        _ball(
            "MultiAttack",
            targeted=False,
            parameters={"attacks": ("FGSM", "PGD")},
            note="Runs one attack after another on the images that are left: names, with the parameters they "
            "have here, or attacks of torchattacks on the same wrapped model.",
        ),
        _ball(
            "LGV",
            targeted=False,
            parameters={"epochs": 2, "nb_models_epoch": 1, "lr": 0.01},
            note="Attacks copies of the model that it fine-tunes on its `trainloader`, by default on the "
            "attacked images.",
        ),
    ),
    implementation="genrobust.adapters._torchattacks",
)
