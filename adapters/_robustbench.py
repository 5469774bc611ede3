"""RobustBench and AutoAttack: `wrap_for_robustbench(model)` returns the module that both take unchanged.

`run_autoattack` runs AutoAttack (`pyautoattack` from PyPI, or `autoattack` from its repository). It also
returns the flags of AutoAttack's checks, a verdict with fresh randomness, and the model's standing with
RobustBench's rules.

Randomised models: version `"standard"` attacks such a model with fixed noise, as one deterministic function.
Its examples may fail under fresh noise. Version `"rand"` attacks fresh noise:

* With `eot=1` AutoAttack averages the gradients of the loss over `eot_iter` (20) single draws and trusts the
  last draw, so that some of its claims are lucky draws.
* With `eot=n` a query combines the class scores of n draws as the model says, in the quantity that it
  estimates, and AutoAttack's own averaging is off. This is the honest way, at the same cost for n = 20.
  `AutoAttackBudget(eot_iter=...)` combines both, at the cost of both.

AutoAttack drops an image as soon as one query says that it is fooled. If such a claim does not survive
verification, `run_autoattack` attacks the image again with other seeds, noise and candidates (`again`). Where
claims still fall, the robust accuracy lies between AutoAttack's number and the verified one.

Models that may reject: AutoAttack counts the column "reject" as a wrong class and stops there. The verdict
does not count it, so that the verified number is an upper bound. `attack_every_class` with targeted Square
continues the attack.

RobustBench: `robustbench.benchmark(wrap_for_robustbench(model), dataset="cifar10", eps=8 / 255)` runs on
models of (3, 32, 32) images and 10 classes. RobustBench 1.1.1 needs AutoAttack from its repository, although
it declares `pyautoattack`. It needs `pkg_resources`, that is setuptools below 81. It needs an environment
without torchattacks, whose wheel overwrites the package `robustbench`. It runs version `"standard"` with the
whole budget, verifies nothing, fails with `aa_state_path`, and flags every model after one that optimises at
inference. Without `run_autoattack`, AutoAttack needs contiguous images: channels-last ones end in torch's
"view size is not compatible".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from .._brief import one_line
from .._fields import check_integer, check_seed
from .._precision import without_autocast
from ..attack_view import AttackView, Output, attack_view
from ..capabilities import Searches
from ..checks import check_labels
from ..contract import Classifier
from ..external import as_classifier
from ..randomness import isolated_rng
from ..verification import (
    AGAIN,
    Verification,
    pursue,
    reseeded,
    verify,
    without_gradient,
    wrong_and_accepted,
)
from ._autoattack import (
    ATTACKS,
    AutoAttackBudget,
    AutoAttackNorm,
    AutoAttackRun,
    Flags,
    Version,
    import_autoattack,
)
from .contract import AttackEntry, Crafted, keywords

__all__ = [
    "AutoAttackBudget",
    "AutoAttackResult",
    "Flags",
    "Rule",
    "accepts",
    "craft",
    "run_autoattack",
    "successes",
    "wrap_for_robustbench",
]

BATCH_SIZE = 250  # AutoAttack's own number
REPEATS = 1e-4  # AutoAttack's tolerance for logits of unit length

import_autoattack()


@final
@dataclass(frozen=True, kw_only=True)
class Rule:
    """One of RobustBench's three conditions.

    Attributes:
        name: The condition.
        kept: Whether the model meets it.
        why: The measurement or the property of the model that decides.
    """

    name: str
    kept: bool
    why: str

    def __str__(self) -> str:
        return f"{'keeps' if self.kept else 'breaks'} {self.name!r}: {self.why}"


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttackResult:
    """The result of AutoAttack, and its verification.

    Attributes:
        images: One image per input; the clean one if AutoAttack found none.
        robust_accuracy: The share of images that AutoAttack says it did not fool.
        verification: The verdict on every image, with fresh randomness.
        flags: The findings of AutoAttack's checks.
        rules: RobustBench's conditions. Its leaderboard accepts defences that meet all three, including
            certified ones, because breaking one mostly makes gradient attacks harder. It welcomes adaptive
            evaluations, especially if a flag is raised.
        attacks: The attacks that were requested.
        version: Version of AutoAttack's settings.
        norm: Norm of the threat model.
        epsilon: Radius of the ball.
        package: The package that ran.
    """

    images: Float[Tensor, "batch channels height width"]
    robust_accuracy: float
    verification: Verification
    flags: Flags
    rules: tuple[Rule, Rule, Rule]
    attacks: tuple[str, ...]
    version: Version
    norm: AutoAttackNorm
    epsilon: float
    package: str

    __repr__ = one_line

    @property
    def verified_robust_accuracy(self) -> float:
        """The share of images without a verified success."""
        return 1 - float(self.verification.success.double().mean())

    @property
    def accepted(self) -> bool:
        """Whether the model meets all of RobustBench's rules."""
        return all(rule.kept for rule in self.rules)

    def __str__(self) -> str:
        attacks = ", ".join(self.attacks)
        return "\n".join(
            [
                f"AutoAttack {self.version} ({self.package}), {self.norm} {self.epsilon:.4g}: {attacks}",
                f"robust accuracy: {self.robust_accuracy:.1%} by AutoAttack, "
                f"{self.verified_robust_accuracy:.1%} verified",
                f"verification: {self.verification}",
                f"AutoAttack's flags: {self.flags}",
                f"RobustBench's rules: {'kept' if self.accepted else 'not kept'}",
                *(f"  {rule}" for rule in self.rules),
            ]
        )


def wrap_for_robustbench(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> AttackView:
    """Wraps a classifier as `genrobust.wrap_for_robustbench` says."""
    return attack_view(model, eot=eot, output=output, seed=seed)


wrap = wrap_for_robustbench


@torch.inference_mode(False)
@torch.enable_grad()
@without_autocast
def run_autoattack(
    model: Callable[[Tensor], Tensor],
    images: Float[Tensor, "batch channels height width"],
    labels: Integer[Tensor, " batch"],
    *,
    norm: AutoAttackNorm = "linf",
    epsilon: float,
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    budget: AutoAttackBudget | None = None,
    eot: int = 1,
    output: Output = "logits",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    again: int = AGAIN,
    judge: Callable[[Tensor], Tensor] | None = None,
    package: str | None = None,
) -> AutoAttackResult:
    """Runs AutoAttack as `genrobust.run_autoattack` says; the module's docstring explains the number.

    The global generators, the process's trace function and AutoAttack's own counters are restored afterwards.
    Every argument is checked before the attack starts. The function works inside `torch.no_grad()` and
    `torch.inference_mode()` too.
    """
    seed, batch_size = check_seed(seed), check_integer(batch_size, "batch_size")
    attacked = as_classifier(model, images)
    judging = attacked if judge is None else as_classifier(judge, images)
    attacked.check(images)
    judging.check(images)
    clean = images.detach().clone()  # of what was made in inference mode, autograd takes copies only
    classes = check_labels(
        labels, count=len(images), num_classes=attacked.num_classes, device=images.device
    ).clone()
    view = wrap_for_robustbench(_drawn(attacked, version, eot, seed), eot, output=output, seed=seed)
    again = check_integer(again, "again", least=0)

    def prepared(number: int) -> AutoAttackRun:
        drawn = _drawn(reseeded(attacked, number), version, eot, seed + number)
        return AutoAttackRun(
            wrap_for_robustbench(drawn, eot, output=output, seed=seed + number),
            norm=norm,
            epsilon=epsilon,
            version=version,
            attacks=attacks,
            budget=budget or AutoAttackBudget(),
            seed=seed + number,
            package=package,
        )

    run = prepared(0)
    with isolated_rng(seed):
        adversarial, decisions = run.evaluate(clean, classes, batch_size=batch_size)
        rules = _rules(attacked, view, clean[:batch_size], run.flags)
    claimed = decisions != classes

    def attempt(number: int, rows: Tensor) -> Verification:
        made, claims = adversarial, claimed
        if number:
            with isolated_rng(seed + number):
                made, decided = prepared(number).evaluate(clean[rows], classes[rows], batch_size=batch_size)
            claims = decided != classes[rows]
        given: dict[str, Any] = {"norm": norm, "epsilon": run.epsilon, "claimed": claims, "seed": seed}
        return verify(judging, clean[rows], classes[rows], made, **given)

    found = pursue(attempt, images=len(clean), again=again).verification
    return AutoAttackResult(
        images=found.images.to(adversarial),
        robust_accuracy=1 - float(claimed.double().mean()),
        verification=found,
        flags=run.flags,
        rules=rules,
        attacks=run.attacks,
        version=version,
        norm=norm,
        epsilon=run.epsilon,
        package=run.package,
    )


def craft(
    entry: AttackEntry,
    target: AttackView,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    *,
    epsilon: float | None = None,
    targeted: bool = False,
) -> Crafted:
    """Runs one of AutoAttack's attacks, or all of a version, with a seed from torch's global generator.

    Args:
        entry: The attack, with its parameters: `norm`, `version`, `batch_size`, `package`, and the fields of
            `AutoAttackBudget`.
        target: The model that `wrap_for_robustbench` returned.
        images: Images in [0, 1], on the model's device.
        labels: Their classes, or the target classes if `targeted`.
        epsilon: Radius of the ball.
        targeted: Whether the attack is to reach `labels`; only Square can.

    Raises:
        ValueError: If `epsilon` is missing, a parameter is unknown, or the attack cannot run on the model.
    """
    if epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, but got none")
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which chooses its targets itself")
    settings = dict(entry.parameters)
    batch_size = settings.pop("batch_size", BATCH_SIZE)
    run = AutoAttackRun(
        target,
        norm=settings.pop("norm", "linf"),
        version=settings.pop("version", "standard"),
        package=settings.pop("package", None),
        epsilon=epsilon,
        attacks=[entry.name] if entry.name in ATTACKS else None,
        budget=AutoAttackBudget.from_parameters(settings),
        seed=int(torch.randint(2**31, ())),
    )
    if targeted:
        crafted, decisions = run.reach(images, labels, batch_size=batch_size)
        return Crafted(crafted, decisions == labels)
    crafted, decisions = run.evaluate(images, labels, batch_size=batch_size)
    return Crafted(crafted, decisions != labels)


def accepts(name: str) -> dict[str, Parameter]:
    """Returns the parameters of an attack; see `contract.Implementation`."""
    if name not in (*ATTACKS, "AutoAttack"):
        raise ValueError(f"Expected an attack of AutoAttack, but got {name!r}")
    own = dict(signature(AutoAttackBudget).parameters)
    return own | keywords("batch_size", "norm", "package", "version")


@torch.no_grad()
def successes(
    model: Classifier, x_adv: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Returns which images a model, which may reject, labels wrongly and does not reject.

    AutoAttack itself counts a rejected image as fooled.
    """
    return wrong_and_accepted(model(x_adv), y, num_classes=model.num_classes)


def _drawn(model: Classifier, version: str, eot: int, seed: int) -> Classifier:
    """Returns the variant whose noise AutoAttack averages itself, or the model unchanged."""
    return model.with_randomness("fresh", seed=seed) if version == "rand" and eot == 1 else model


def _rules(model: Classifier, view: AttackView, x: Tensor, flags: Flags) -> tuple[Rule, Rule, Rule]:
    x = x.detach()
    share = _vanished(view, x)
    gradient = Rule(
        name="non-zero gradients",
        kept=share <= 0.5,  # "in general"
        why=f"the margin's gradient vanishes at {share:.0%} of the clean images",
    )
    return gradient, _determinism(model, view, x), _optimisation(model, flags)


def _vanished(view: AttackView, x: Tensor) -> float:
    """Counts the images at which the margin between the two largest logits has no gradient.

    The gradient of the cross-entropy may vanish by saturation, which is the fault of the loss.
    """

    def margin(logits: Tensor) -> Tensor:
        largest = logits.topk(2, dim=1).values
        return (largest[:, 0] - largest[:, 1]).sum()

    return float(without_gradient(view, x, margin).double().mean())


@torch.no_grad()
def _determinism(model: Classifier, view: AttackView, x: Tensor) -> Rule:
    first, second = (
        logits / logits.norm(dim=1, keepdim=True).clamp_min(1e-10) for logits in (view(x), view(x))
    )
    difference = float((first - second).norm(dim=1).max())
    why = f"two forward passes differ by {difference:.2g} of the logits' norm"
    if difference <= REPEATS:
        why = "two forward passes agree"
        if model.randomized:
            why += ", but only while its noise is fixed: it draws noise, and is judged with fresh noise"
    return Rule(name="deterministic forward pass", kept=difference <= REPEATS, why=why)


def _optimisation(model: Classifier, flags: Flags) -> Rule:
    name = "no optimisation at inference"
    found = [part for part in model.modules() if isinstance(part, Searches)]
    if not found:
        why = "calls gradient functions" if flags.optimises else "calls no gradient function"
        return Rule(name=name, kept=not flags.optimises, why=f"inference {why}")
    budget = found[0].budget
    if not budget.steps and not budget.candidates:
        return Rule(name=name, kept=True, why="takes the encoder's latents as they are")
    why = f"{budget.steps} gradient steps per class from the best of {budget.candidates} candidates"
    return Rule(name=name, kept=False, why=why)
