"""RobustBench and AutoAttack: `wrap_for_robustbench(model)` gives the module that both take unchanged.

`run_autoattack` runs AutoAttack (`pyautoattack` of PyPI, or `autoattack` of its repository) and says what to
think of its number: the flags of AutoAttack's checks, a verdict by fresh randomness, and what RobustBench's
rules say about the model.

Randomised models. In version `"standard"` such a model is attacked with its noise fixed: one deterministic
function, whose examples may fall when they are judged with fresh noise. Version `"rand"` attacks fresh noise:

* with `eot=1` AutoAttack averages the gradients of the loss over `eot_iter` (20) single draws, and believes
  the draw that came last: some of its claims are lucky draws;
* with `eot=n` a query is the log-mean-exp of class scores over n draws, the quantity that the model
  estimates, and AutoAttack's own averaging is off. Of the two, this is the honest one, at the same cost for
  n = 20. `AutoAttackBudget(eot_iter=...)` asks for both at once, at the price of both.

AutoAttack leaves an image as soon as one query says that it is fooled. Where such a claim falls, nobody has
looked on: the robust accuracy is somewhere between AutoAttack's number and the verified one.

Models that may reject. To AutoAttack the column "reject" is a wrong class, at which it stops; the verdict
does not count it, and the verified number is therefore an upper bound. `attack_every_class` with targeted
Square looks on.

RobustBench. `robustbench.benchmark(wrap_for_robustbench(model), dataset="cifar10", eps=8 / 255)` runs on
models of (3, 32, 32) images and 10 classes. RobustBench 1.1.1 needs AutoAttack from its repository, although
it declares `pyautoattack`; `pkg_resources`, that is setuptools below 81; and an environment without
torchattacks, whose wheel overwrites the package `robustbench`. It runs version `"standard"` with the whole
budget, verifies nothing, fails with `aa_state_path`, and flags every model after one that optimises at
inference. Outside of `run_autoattack`, AutoAttack needs contiguous images: channels-last ones end in torch's
"view size is not compatible".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..classifier import Classifier
from ..models.latent import LatentClassifier
from ..randomness import isolated_rng
from ..views import AttackView, Output, attack_view
from ._autoattack import (
    ATTACKS,
    AutoAttackBudget,
    AutoAttackRun,
    Flags,
    Norm,
    Version,
    import_autoattack,
)
from .registry import AttackEntry, Crafted
from .verification import Verification, verify, without_gradient, wrong_and_accepted

__all__ = [
    "AutoAttackBudget",
    "AutoAttackResult",
    "Flags",
    "Rule",
    "run_autoattack",
    "successes",
    "wrap_for_robustbench",
]

BATCH_SIZE = 250  # as AutoAttack's own
REPEATS = 1e-4  # AutoAttack's tolerance for logits of unit length

import_autoattack()


@final
@dataclass(frozen=True, kw_only=True)
class Rule:
    """One of RobustBench's three conditions.

    Attributes:
        name: The condition.
        kept: Whether the model meets it.
        why: What was measured, or what the model does.
    """

    name: str
    kept: bool
    why: str

    def __str__(self) -> str:
        return f"{'keeps' if self.kept else 'breaks'} {self.name!r}: {self.why}"


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttackResult:
    """What AutoAttack returned, and what to think of it.

    Attributes:
        images: One per image; the clean one where AutoAttack found nothing.
        robust_accuracy: The share of images that AutoAttack says it did not fool.
        verification: The verdict on every image, by fresh randomness.
        flags: What AutoAttack's checks said.
        rules: RobustBench's conditions. Its leaderboard takes defences that keep all three, certified ones
            among them: breaking one mostly makes attacks by gradient harder. Adaptive evaluations are welcome
            there, above all where a flag is raised.
        attacks: Those that were asked for.
        version: Of AutoAttack's settings.
        norm: Of the threat model.
        epsilon: Radius of the ball.
        package: Which of the two packages ran.
    """

    images: Float[Tensor, "batch channels height width"]
    robust_accuracy: float
    verification: Verification
    flags: Flags
    rules: tuple[Rule, Rule, Rule]
    attacks: tuple[str, ...]
    version: Version
    norm: Norm
    epsilon: float
    package: str

    @property
    def verified_robust_accuracy(self) -> float:
        """The share of images without a verified success."""
        return 1 - float(self.verification.success.double().mean())

    @property
    def accepted(self) -> bool:
        """Whether the model keeps all of RobustBench's rules."""
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
    """Wrap a classifier for `robustbench.benchmark` and AutoAttack: a module of images in [0, 1].

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query; above 1, their log-mean-exp.
        output: `"logits"`, which AutoAttack expects; `"probabilities"`, which it flags; or `"decisions"`, on
            which Square alone can run.
        seed: Of those draws.

    Raises:
        ValueError: If `eot` is below 1, or above 1 for a model without randomness.
    """
    return attack_view(model, eot=eot, output=output, seed=seed)


wrap = wrap_for_robustbench


def run_autoattack(
    model: Classifier,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    *,
    norm: Norm = "linf",
    epsilon: float,
    version: Version = "standard",
    attacks: Sequence[str] | None = None,
    budget: AutoAttackBudget | None = None,
    eot: int = 1,
    output: Output = "logits",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    judge: Classifier | None = None,
    package: str | None = None,
) -> AutoAttackResult:
    """Run AutoAttack, and judge what it returns; see the module for what its number means.

    The global generators, the process's trace function and AutoAttack's own counters are left as they were.

    Args:
        model: The model that is attacked.
        x: Clean images in [0, 1], on the model's device.
        y: Their classes.
        norm: Of the threat model.
        epsilon: Radius of the ball.
        version: `"standard"` (RobustBench's), `"plus"`, or `"rand"`, which attacks a randomised model with
            fresh noise.
        attacks: Out of `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"`, `"square"`, in order; by
            default those of the version.
        budget: In place of the version's settings.
        eot: Draws of the model's noise per query.
        output: What AutoAttack is shown.
        batch_size: Images per batch; AutoAttack's checks, and the rules', look at the first.
        seed: Of AutoAttack and of the draws.
        judge: The model with the budget that verdicts are made with; by default `model`.
        package: `"pyautoattack"` or `"autoattack"`; by default the first that is installed.

    Raises:
        ValueError: If an argument makes no sense, or an attack needs more classes than the model has, or a
            gradient that it does not have.
        ImportError: If AutoAttack is not installed.
    """
    model.check(x)
    view = wrap_for_robustbench(_drawn(model, version, eot, seed), eot, output=output, seed=seed)
    run = AutoAttackRun(
        view,
        norm=norm,
        epsilon=epsilon,
        version=version,
        attacks=attacks,
        budget=budget or AutoAttackBudget(),
        seed=seed,
        package=package,
    )
    with isolated_rng(seed):
        images, decisions = run.evaluate(x, y, batch_size=batch_size)
        rules = _rules(model, view, x[:batch_size], run.flags)
    claimed = decisions != y
    return AutoAttackResult(
        images=images,
        robust_accuracy=1 - float(claimed.double().mean()),
        verification=verify(judge or model, x, y, images, norm, epsilon, claimed=claimed, seed=seed),
        flags=run.flags,
        rules=rules,
        attacks=run.attacks,
        version=version,
        norm=norm,
        epsilon=epsilon,
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
    **parameters: Any,
) -> Crafted:
    """Run one of AutoAttack's attacks, or all of a version; its seed is drawn from torch's global generator.

    Args:
        entry: Which one, with its parameters.
        target: What `wrap_for_robustbench` gave.
        images: Images in [0, 1], on the model's device.
        labels: Their classes; the classes to reach when `targeted`.
        epsilon: Radius of the ball.
        targeted: Whether `labels` are to be reached, which Square alone can be told.
        **parameters: In place of the entry's: `norm`, `version`, `batch_size`, `package`, and the fields of
            `AutoAttackBudget`.

    Raises:
        ValueError: If there is no epsilon, a parameter is unknown, or the attack cannot run on the model.
    """
    if epsilon is None:
        raise ValueError(f"Expected an `epsilon` for {entry.name}, but got none")
    if targeted and not entry.targeted:
        raise ValueError(f"Expected `targeted` of False for {entry.name}, which chooses its targets itself")
    settings = {**entry.parameters, **parameters}
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


@torch.no_grad()
def successes(
    model: Classifier, x_adv: Float[Tensor, "batch channels height width"], y: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Say where an attack succeeded on a model that may reject: wrong, and not rejected.

    AutoAttack itself counts a rejected image as fooled.
    """
    return wrong_and_accepted(model(x_adv), y, num_classes=model.num_classes)


def _drawn(model: Classifier, version: str, eot: int, seed: int) -> Classifier:
    """Give the variant whose noise AutoAttack is to average itself, if it is."""
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
    """Measure at how many images the margin between the two largest logits has no gradient.

    Of the cross-entropy it may vanish by saturation, which is the loss's fault and not the model's.
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
    found = [part for part in model.modules() if isinstance(part, LatentClassifier)]
    if not found:
        why = "calls gradient functions" if flags.optimises else "calls no gradient function"
        return Rule(name=name, kept=not flags.optimises, why=f"inference {why}")
    budget = found[0].budget
    if not budget.steps and not budget.candidates:
        return Rule(name=name, kept=True, why="takes the encoder's latents as they are")
    why = f"{budget.steps} gradient steps per class from the best of {budget.candidates} candidates"
    return Rule(name=name, kept=False, why=why)
