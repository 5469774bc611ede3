"""The attacks of secml-torch 1.5: its own, and those of Foolbox and adv-lib that it offers as backends."""

from typing import Any

from ...attacks.registered import Knowledge
from ..contract import Adapter, AttackEntry, AttackNorm

__all__ = ["SECMLTORCH"]

NORMS: tuple[AttackNorm, ...] = ("linf", "l2", "l1")
BACKENDS = {
    "Native": {},
    "Foolbox": {"foolbox": "foolbox"},
    "AdvLib": {"adv_lib": "--no-deps adv-lib", "tqdm": "tqdm"},
}
STEPS = {"num_steps": 10, "random_start": False}
MINIMAL = {"num_steps": 50, "max_step_size": 1.0}
CW = {"num_steps": 50, "binary_search_steps": 3, "step_size": 0.1, "initial_const": 1.0}
FAR = "Undirected: it fools a CNN at several times the epsilon that gradient attacks need."
BLACK = "Gives a black image where it finds nothing."
NOISE = "Starts from the image blended with noise, far away; it cannot be given a nearer start."
UNSEEN = "Never looks at the image after its last step."
FINAL_RADII = (
    "Keeps the last batch's radii: one attack fails on batches of two sizes. The adapter makes one each."
)


def _attack(
    name: str, norm: AttackNorm, knowledge: Knowledge = "white", *, targeted: bool = True, **fields: Any
) -> AttackEntry:
    backend = next(backend for backend in BACKENDS if name.partition("-")[0].endswith(backend))
    options = {"output": "decisions"} if knowledge == "decision" else {}
    return AttackEntry(
        name=name,
        norm=norm,
        knowledge=knowledge,
        targeted=targeted,
        options=options,
        requires=BACKENDS[backend],
        **fields,
    )


SECMLTORCH = Adapter(
    toolkit="secmltorch",
    title="secml-torch",
    distribution="secml-torch",
    package="secmlt",
    released="2026-07",
    maintained=True,
    attacks=(
        # Within a ball.
        _attack("PGDNative-linf", "linf", needs_epsilon=True, parameters=STEPS, note=UNSEEN),
        _attack("PGDNative-l2", "l2", needs_epsilon=True, parameters=STEPS, note=UNSEEN),
        _attack(
            "PGDNative-l1",
            "l1",
            needs_epsilon=True,
            parameters=STEPS,
            weak="Stalls at any budget: a step moves the pixel of the largest gradient of the whole batch, "
            "and stays with it when it has reached 0 or 1.",
            note=UNSEEN,
        ),
        *(_attack(f"PGDFoolbox-{norm}", norm, needs_epsilon=True, parameters=STEPS) for norm in NORMS),
        _attack("PGDAdvLib", "linf", needs_epsilon=True, parameters=STEPS, note=UNSEEN),
        _attack("FGSMFoolbox", "linf", needs_epsilon=True),
        _attack(
            "FGSMAdvLib",
            "linf",
            needs_epsilon=True,
            weak="Returns the clean images: adv-lib's PGD, with one step, never looks at the image after it.",
        ),
        _attack(
            "VATFoolbox",
            "l2",
            needs_epsilon=True,
            targeted=False,
            parameters={"steps": 5, "xi": 1.0},
            weak="Finds a line and leaves to chance which way along it; the other is often right.",
        ),
        *(
            _attack(
                f"AdditiveNoiseFoolbox-{norm}",
                norm,
                "decision",
                needs_epsilon=True,
                targeted=False,
                parameters={"noise_type": "uniform"},
                weak=FAR,
                note="`noise_type='gaussian'` in L2 only." if norm == "l2" else "",
            )
            for norm in ("linf", "l2")
        ),
        _attack("ContrastReductionFoolbox", "l2", "decision", needs_epsilon=True, targeted=False, weak=FAR),
        # The smallest perturbation.
        *(
            _attack(f"FMNNative-{norm}", norm, parameters=MINIMAL, note=FINAL_RADII)
            for norm in ("linf", "l2", "l1", "l0")
        ),
        *(
            _attack(f"FMN{backend}-{norm}", norm, parameters=MINIMAL)
            for backend in ("Foolbox", "AdvLib")
            for norm in ("linf", "l2", "l1", "l0")
        ),
        _attack(
            "DDNNative",
            "l2",
            parameters={"num_steps": 50, "eps_init": 1.0},
            note=f"Ignores `gamma`, which stays 0.05. {FINAL_RADII}",
        ),
        *(
            _attack(f"DDN{backend}", "l2", parameters={"num_steps": 50, "eps_init": 1.0, "gamma": 0.05})
            for backend in ("Foolbox", "AdvLib")
        ),
        _attack("CWFoolbox", "l2", parameters=CW, note=BLACK),
        _attack("CWAdvLib", "l2", parameters=CW, note="`num_steps` below 10 divide by zero."),
        _attack("DeepFoolFoolbox", "l2", targeted=False),
        _attack("DeepFoolAdvLib", "l2", targeted=False),
        # By decisions.
        _attack(
            "BoundaryAttackFoolbox",
            "l2",
            "decision",
            parameters={
                "steps": 1200,
                "spherical_step": 0.1,
                "source_step": 0.1,
                "update_stats_every_k": 1,
            },
            note=NOISE,
        ),
        *(
            _attack(
                f"HopSkipJumpFoolbox-{norm}",
                norm,
                "decision",
                parameters={
                    "steps": 15,
                    "initial_gradient_eval_steps": 100,
                    "max_gradient_eval_steps": 100,
                },
                note=NOISE,
            )
            for norm in ("linf", "l2")
        ),
        _attack("SaltAndPepperNoiseFoolbox", "l2", "decision", parameters={"steps": 100}, weak=FAR),
        _attack("GaussianBlurFoolbox", "other", "decision", parameters={"steps": 50}),
        _attack("SpatialAttackFoolbox", "other", "decision", note="Rotates and shifts."),
    ),
    implementation="genrobust.adapters._secmltorch",
    wrapper="wrap_for_secml",
)
