"""The suites that come with the package."""

from collections.abc import Mapping

from .suites import Attack, Suite, SuiteModel, ThreatModel, check_choice

__all__ = ["L2_EPSILON", "LINF_EPSILON", "MNIST", "QUICK", "SUITES", "find_suite"]

LINF_EPSILON = 0.1
L2_EPSILON = 2.0

QUICK = Suite(
    name="quick",
    dataset="digits",
    models=(
        SuiteModel(name="cnn", title="CNN"),
        SuiteModel(name="abs", title="ABS"),
        SuiteModel(name="eabs", title="E-ABS", randomized=True),
    ),
    threat_models=(
        ThreatModel(norm="linf", epsilon=LINF_EPSILON, curve_epsilons=(0.05, 0.1, 0.2, 0.3)),
        ThreatModel(norm="l2", epsilon=L2_EPSILON, curve_epsilons=(0.5, 1.0, 1.5, 2.0, 3.0)),
    ),
    attacks=(
        Attack(
            key="noise-linf",
            title="uniform noise",
            norm="linf",
            kind="fixed epsilon",
            name="LinfRepeatedAdditiveUniformNoiseAttack",
            parameters={"repeats": 10},
        ),
        Attack(
            key="fgsm",
            title="FGSM",
            norm="linf",
            kind="fixed epsilon",
            name="LinfFastGradientAttack",
            every_epsilon=True,
        ),
        Attack(
            key="pgd-linf",
            title="PGD",
            norm="linf",
            kind="fixed epsilon",
            name="LinfProjectedGradientDescentAttack",
            parameters={"steps": 20, "rel_stepsize": 0.125},
            every_epsilon=True,
        ),
        Attack(
            key="noise-l2",
            title="Gaussian noise",
            norm="l2",
            kind="fixed epsilon",
            name="L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
            parameters={"repeats": 10},
        ),
        Attack(
            key="pgd-l2",
            title="PGD",
            norm="l2",
            kind="fixed epsilon",
            name="L2ProjectedGradientDescentAttack",
            parameters={"steps": 20, "rel_stepsize": 0.125},
            eot=3,
        ),
        Attack(
            key="deepfool-l2",
            title="DeepFool",
            norm="l2",
            kind="minimal norm",
            name="L2DeepFoolAttack",
            parameters={"steps": 10, "candidates": 3},
        ),
        Attack(
            key="ddn",
            title="DDN",
            norm="l2",
            kind="minimal norm",
            name="DDNAttack",
            parameters={"steps": 40, "init_epsilon": 1.0, "gamma": 0.05},
        ),
        Attack(
            key="cw-l2",
            title="C&W",
            norm="l2",
            kind="minimal norm",
            name="L2CarliniWagnerAttack",
            parameters={"binary_search_steps": 3, "steps": 20, "stepsize": 0.05, "initial_const": 1.0},
        ),
        Attack(
            key="boundary",
            title="Boundary",
            norm="l2",
            kind="minimal norm",
            name="BoundaryAttack",
            parameters={"steps": 60, "spherical_step": 0.1, "source_step": 0.004},
            start_from_images=True,
        ),
    ),
    samples=20,
    batch_size=20,
    attack_inference={"candidates": 1000, "steps": 10},
    overshoots=(1.0, 1.1, 1.25, 1.5),
    starting_images=50,
    baseline="cnn",
)

MNIST = Suite(
    name="mnist",
    dataset="mnist",
    models=QUICK.models,
    threat_models=(ThreatModel(norm="l2", epsilon=1.5, curve_epsilons=(0.5, 1.0, 1.5, 2.0, 3.0)),),
    attacks=(
        Attack(
            key="pgd-l2",
            title="PGD",
            norm="l2",
            kind="fixed epsilon",
            name="L2ProjectedGradientDescentAttack",
            parameters={"steps": 80, "rel_stepsize": 0.05},
        ),
        Attack(
            key="ddn",
            title="DDN",
            norm="l2",
            kind="minimal norm",
            name="DDNAttack",
            parameters={"steps": 40, "init_epsilon": 1.0, "gamma": 0.05},
        ),
    ),
    samples=200,
    batch_size=50,
    attack_inference=QUICK.attack_inference,
    overshoots=QUICK.overshoots,
    baseline="cnn",
)

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (QUICK, MNIST)}


def find_suite(name: str) -> Suite:
    """Give a shipped suite by name.

    Raises:
        ValueError: If there is none of that name.
    """
    check_choice("name", name, sorted(SUITES))
    return SUITES[name]
