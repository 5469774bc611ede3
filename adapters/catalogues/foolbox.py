"""The attacks of Foolbox."""

from typing import Any

from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["FOOLBOX"]

_NORMS: dict[str, AttackNorm] = {"L1": "l1", "L2": "l2", "Linf": "linf"}
_ADAM: dict[str, dict[str, Any]] = {
    "L1": {"adam_epsilon": 0.01},  # smaller, and every pixel takes the same step: long in this norm
    "L2": {},
    "Linf": {},
}
_REPEATS: dict[str, dict[str, Any]] = {"": {}, "Repeated": {"repeats": 100}}
_NO_ADAM = "Never uses Adam (Foolbox 3.3): the same images as BasicIterativeAttack."
_FAR = "Undirected: it fools a CNN at several times the epsilon that gradient attacks need."
_STARTS = "starting_points"
_LINE = "Moves along one line, so that it keeps every norm small; Foolbox leaves the norm to the caller."


def _descent(
    name: str, norm: AttackNorm, *, targeted: bool = True, weak: str = "", note: str = "", **parameters: Any
) -> AttackEntry:
    """Describes a descent of the loss within a ball."""
    return AttackEntry(
        name=name,
        norm=norm,
        knowledge="white",
        parameters=parameters,
        needs_epsilon=True,
        targeted=targeted,
        weak=weak,
        note=note,
    )


def _minimal(
    name: str, norm: AttackNorm, *, targeted: bool = True, weak: str = "", note: str = "", **parameters: Any
) -> AttackEntry:
    """Describes a search for the nearest adversarial example by gradients."""
    walks = "BrendelBethge" in name
    return AttackEntry(
        name=name,
        norm=norm,
        knowledge="white",
        parameters=parameters,
        targeted=targeted,
        starts=_STARTS if walks else "",
        requires={"numba": "numba"} if walks else {},
        weak=weak,
        note=note,
    )


def _decision(
    name: str,
    norm: AttackNorm,
    *,
    needs_epsilon: bool = False,
    targeted: bool = True,
    starts: str = "",
    weak: str = "",
    note: str = "",
    **parameters: Any,
) -> AttackEntry:
    """Describes an attack that sees decisions, which have to repeat."""
    return AttackEntry(
        name=name,
        norm=norm,
        knowledge="decision",
        parameters=parameters,
        needs_epsilon=needs_epsilon,
        targeted=targeted,
        starts=starts,
        options={"output": "decisions"},
        weak=weak,
        note=note,
    )


_DESCENTS = tuple(
    entry
    for prefix, norm in _NORMS.items()
    for entry in (
        _descent(f"{prefix}FastGradientAttack", norm, targeted=False),
        _descent(f"{prefix}BasicIterativeAttack", norm, steps=20),
        _descent(f"{prefix}ProjectedGradientDescentAttack", norm, steps=20, rel_stepsize=0.1),
        _descent(
            f"{prefix}AdamBasicIterativeAttack",
            norm,
            note=_NO_ADAM if prefix != "Linf" else "",
            steps=20,
        ),
        _descent(f"{prefix}AdamProjectedGradientDescentAttack", norm, steps=40, **_ADAM[prefix]),
        _descent(f"{prefix}MomentumIterativeFastGradientMethod", norm, steps=20),
    )
)

_NOISES = tuple(
    _decision(
        f"{prefix}{repeated}Additive{kind}NoiseAttack",
        "linf" if prefix == "Linf" else "l2",
        needs_epsilon=True,
        targeted=bool(repeated),
        weak=_FAR,
        **_REPEATS[repeated],
    )
    for repeated in _REPEATS
    for prefix, kind in (
        ("L2", "Gaussian"),
        ("L2", "Uniform"),
        ("L2ClippingAware", "Gaussian"),
        ("L2ClippingAware", "Uniform"),
        ("Linf", "Uniform"),
    )
)

_SEARCHES = (
    _minimal("DDNAttack", "l2", steps=30),
    _minimal(
        "L2CarliniWagnerAttack",
        "l2",
        note="Gives a black image where it finds nothing.",
        steps=50,
        binary_search_steps=3,
        stepsize=0.1,
        initial_const=1.0,
    ),
    _minimal(
        "EADAttack",
        "l1",
        note="Gives a black image where it finds nothing.",
        steps=100,
        binary_search_steps=3,
        initial_stepsize=0.01,
        initial_const=10.0,
        decision_rule="L1",
    ),
    _minimal(
        "NewtonFoolAttack",
        "l2",
        targeted=False,
        weak="Its step grows as the gradient vanishes, and is far too long on a confident model.",
        note="Where the gradient underflows it gives NaN images, and claims them.",
        steps=20,
        stepsize=1e-4,
    ),
    _minimal("L2DeepFoolAttack", "l2", targeted=False, steps=20),
    _minimal("LinfDeepFoolAttack", "linf", targeted=False, steps=20),
    _minimal("L0FMNAttack", "l0", note="Fails with an IndexError once its ball holds every pixel.", steps=50),
    _minimal("L1FMNAttack", "l1", steps=50),
    _minimal(
        "L2FMNAttack",
        "l2",
        note="Never projects onto its ball (Foolbox 3.3): only a short step finds a near example.",
        steps=50,
        max_stepsize=0.2,
    ),
    _minimal("LInfFMNAttack", "linf", steps=50),
    _minimal("L0BrendelBethgeAttack", "l0", steps=30, lr=0.01),
    _minimal("L1BrendelBethgeAttack", "l1", steps=30, lr=0.01),
    _minimal("L2BrendelBethgeAttack", "l2", steps=30, lr=0.01),
    _minimal("LinfinityBrendelBethgeAttack", "linf", steps=30, lr=0.01),
)

_DECISIONS = (
    _decision(
        "BoundaryAttack",
        "l2",
        starts=_STARTS,
        steps=500,
        spherical_step=0.1,
        source_step=0.1,
        update_stats_every_k=1,
    ),
    _decision(
        "HopSkipJumpAttack",
        "l2",
        starts=_STARTS,
        note="In l-infinity with `constraint='linf'`.",
        steps=5,
        initial_gradient_eval_steps=50,
        max_gradient_eval_steps=50,
    ),
    _decision("PointwiseAttack", "l0", starts=_STARTS, l2_binary_search=False),
    _decision("SaltAndPepperNoiseAttack", "l2", weak=_FAR, steps=100),
    _decision("L2ContrastReductionAttack", "l2", needs_epsilon=True, targeted=False, weak=_FAR),
    _decision("BinarySearchContrastReductionAttack", "other", note=_LINE),
    _decision("LinearSearchContrastReductionAttack", "other", note=_LINE, steps=50),
    _decision("LinearSearchBlendedUniformNoiseAttack", "other", note=_LINE, directions=50, steps=50),
    _decision("GaussianBlurAttack", "other", steps=50),
    _decision("InversionAttack", "other", targeted=False),
    _decision("SpatialAttack", "other", note="Rotates and shifts."),
    _decision("DatasetAttack", "other", note="The adapter feeds it the attacked batch."),
    _decision(
        "BinarizationRefinementAttack",
        "other",
        targeted=False,
        note="Made for models that binarise images. The adapter lets it refine the images' negatives; where "
        "that changes the decision it raises, and the image is left as it is.",
    ),
)

FOOLBOX = Adapter(
    toolkit="foolbox",
    title="Foolbox",
    distribution="foolbox",
    package="foolbox",
    released="2024-03",
    maintained=False,
    attacks=(
        *_DESCENTS,
        _descent("SparseL1DescentAttack", "l1", steps=20),
        AttackEntry(
            name="VirtualAdversarialAttack",
            norm="l2",
            knowledge="white",
            parameters={"steps": 5, "xi": 1.0},
            needs_epsilon=True,
            weak="Finds a line and leaves to chance which way along it; the other is often right.",
        ),
        *_NOISES,
        *_SEARCHES,
        AttackEntry(
            name="GenAttack",
            norm="linf",
            knowledge="score",
            parameters={"steps": 30, "population": 10, "reduced_dims": (7, 7)},
            needs_epsilon=True,
            targeted=True,
            note="Targeted only: untargeted, the adapter names the most likely other class.",
        ),
        *_DECISIONS,
    ),
    aliases={
        "AdamPGD": "LinfAdamProjectedGradientDescentAttack",
        "FGM": "L2FastGradientAttack",
        "FGSM": "LinfFastGradientAttack",
        "L1AdamPGD": "L1AdamProjectedGradientDescentAttack",
        "L1PGD": "L1ProjectedGradientDescentAttack",
        "L2AdamPGD": "L2AdamProjectedGradientDescentAttack",
        "L2PGD": "L2ProjectedGradientDescentAttack",
        "LinfAdamPGD": "LinfAdamProjectedGradientDescentAttack",
        "LinfPGD": "LinfProjectedGradientDescentAttack",
        "MIFGSM": "LinfMomentumIterativeFastGradientMethod",
        "PGD": "LinfProjectedGradientDescentAttack",
    },
    implementation="genrobust.adapters._foolbox",
)
