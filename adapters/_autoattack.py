"""One interface to `pyautoattack` from PyPI and `autoattack` from its repository, whose APIs differ."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, Literal, Self, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._brief import one_line
from .._fields import AtLeastOne, check_fields
from ..attack_view import AttackView
from ..checks import check_labels
from ..eot import Expectation, MeanPrediction
from ..verification import check_epsilon

__all__ = [
    "ATTACKS",
    "AutoAttackBudget",
    "AutoAttackNorm",
    "AutoAttackRun",
    "Flags",
    "Version",
    "import_autoattack",
]

AutoAttackNorm = Literal["linf", "l2", "l1"]
Version = Literal["standard", "plus", "rand"]

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")

_PACKAGES = ("pyautoattack", "autoattack")
_EXPECTATIONS = (Expectation, MeanPrediction)
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_COLUMNS = {"apgd-dlr": 3, "apgd-t": 4}  # number of logits that the loss needs


def import_autoattack(package: str | None = None) -> ModuleType:
    """Imports AutoAttack.

    Args:
        package: `"pyautoattack"` or `"autoattack"`; by default the first that is installed.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If `package` is another name.
    """
    if package is not None:
        _check_choice("package", package, _PACKAGES)
    failure = None
    for name in _PACKAGES if package is None else (package,):
        try:
            return import_module(name)
        except ImportError as error:
            failure = error
    raise ImportError(
        "Expected AutoAttack to be installed: pip install 'genrobust[robustbench]'",
        name=package or _PACKAGES[0],
    ) from failure


@final
@dataclass(frozen=True, kw_only=True)
class AutoAttackBudget:
    """Settings of AutoAttack's attacks under their own names; None keeps the version's value.

    Attributes:
        n_iter: Iterations of APGD and FAB (100).
        n_queries: Queries of Square (5000).
        n_restarts: Random restarts of every attack; targeted FAB always has one.
        n_target_classes: Number of classes that targeted APGD and FAB try, the most likely first (9); at most
            the number of wrong classes.
        eot_iter: Number of gradients that APGD averages per step: 20 in version `"rand"` unless a query is
            already an expectation, otherwise 1.
    """

    n_iter: AtLeastOne | None = None
    n_queries: AtLeastOne | None = None
    n_restarts: AtLeastOne | None = None
    n_target_classes: AtLeastOne | None = None
    eot_iter: AtLeastOne | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Builds a budget from named settings.

        Raises:
            ValueError: If a setting is unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(parameters.keys() - known):
            raise ValueError(f"Expected parameters out of {sorted(known)}, but got {unknown}")
        return cls(**parameters)


@final
@dataclass(frozen=True, kw_only=True)
class Flags:
    """The findings of AutoAttack's checks about the model.

    Attributes:
        randomized: Whether its logits change between calls. Version `"rand"` does not check this.
        probabilities: Whether its outputs look like probabilities.
        zero_gradients: Whether the gradient of the DLR loss vanished at a random start. It is only checked by
            attacks that use the DLR loss: `"apgd-dlr"` and `"apgd-t"`.
        optimises: Whether inference calls torch's gradient functions (AutoAttack's term: a dynamic defence).
        square_helps: Whether Square fooled images that the gradient attacks did not fool.
        messages: All messages, once each.
    """

    randomized: bool
    probabilities: bool
    zero_gradients: bool
    optimises: bool
    square_helps: bool
    messages: tuple[str, ...]

    __repr__ = one_line

    @classmethod
    def from_messages(cls, messages: Sequence[str]) -> Self:
        """Recognises the checks by the words that both packages use."""

        def said(words: str) -> bool:
            return any(words in message for message in messages)

        return cls(
            randomized=said("randomized defense"),
            probabilities=said("probability distribution"),
            zero_gradients=said("zero gradient"),
            optimises=said("dynamic defense"),
            square_helps=said("Square Attack has decreased"),
            messages=tuple(dict.fromkeys(messages)),
        )

    def __str__(self) -> str:
        raised = [field.name.replace("_", " ") for field in fields(self) if getattr(self, field.name) is True]
        return ", ".join(raised) or "none"


@final
class AutoAttackRun:
    """One AutoAttack object on one model.

    Attributes:
        attacks: Names of the attacks, in order.
        epsilon: The radius of the ball, as a Python number.
    """

    def __init__(
        self,
        view: AttackView,
        *,
        norm: AutoAttackNorm,
        epsilon: float,
        version: str,
        attacks: Sequence[str] | None,
        budget: AutoAttackBudget,
        seed: int,
        package: str | None = None,
    ) -> None:
        _check_choice("norm", norm, _NORMS)
        _check_choice("version", version, get_args(Version))
        self.epsilon = check_epsilon(epsilon, norm=norm, input_shape=view.model.input_shape)
        module = import_autoattack(package)
        self._view = view
        self._columns = view.model.num_columns
        self._recorder = _Recorder()
        self._checks = import_module(f"{module.__name__}.checks")
        settings = {"norm": _NORMS[norm], "eps": self.epsilon, "seed": seed, "version": version}
        if "verbose" in signature(module.AutoAttack).parameters:
            settings["verbose"] = False
        device = view.model.like.device
        self._adversary = module.AutoAttack(view, device=device, **settings)
        self.package: str = module.__name__
        self.attacks: tuple[str, ...] = tuple(self._adversary.attacks_to_run if attacks is None else attacks)
        self._adversary.attacks_to_run = list(self.attacks)
        self._check_attacks()
        self._set(budget)

    @property
    def flags(self) -> Flags:
        """The findings of AutoAttack's checks so far."""
        return Flags.from_messages(self._recorder.messages)

    def evaluate(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int[Tensor, " batch"],
        *,
        batch_size: int,
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
        """Attacks every image until one attack fools it.

        Returns:
            The adversarial images (clean ones where AutoAttack found none), and AutoAttack's last decision
            about each.
        """
        images, labels = self._prepare(x, y, batch_size)
        evaluate = self._adversary.run_standard_evaluation
        accepted = signature(evaluate).parameters
        options = {"batch_size" if "batch_size" in accepted else "bs": batch_size}
        if "return_labels" in accepted:
            options["return_labels"] = True
        with _unspoiled(self._checks):
            crafted, decisions = evaluate(images, labels, **options)
        return crafted.detach(), decisions

    @torch.no_grad()
    def reach(
        self,
        x: Float[Tensor, "batch channels height width"],
        targets: Int[Tensor, " batch"],
        *,
        batch_size: int,
    ) -> tuple[Float[Tensor, "batch channels height width"], Int[Tensor, " batch"]]:
        """Moves images towards target classes with Square, the only attack that takes a target.

        Returns:
            The images, and the decision about each image.
        """
        images, labels = self._prepare(x, targets, batch_size)
        square = self._adversary.square
        square.targeted = True
        pairs = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        crafted = [square.perturb(*pair) for pair in pairs]
        decisions = [self._view(part).argmax(1) for part in crafted]
        return torch.cat(crafted), torch.cat(decisions)

    def _check_attacks(self) -> None:
        if not self.attacks:
            raise ValueError("Expected at least one attack in `attacks`, but got none")
        for name in self.attacks:
            _check_choice("attacks", name, ATTACKS)
            if self._columns < (needed := _COLUMNS.get(name, 2)):
                raise ValueError(
                    f"Expected `attacks` without {name!r} for a model of {self._columns} classes: "
                    f"its loss needs {needed}"
                )

    def _set(self, budget: AutoAttackBudget) -> None:
        adversary, eot_iter = self._adversary, budget.eot_iter
        if eot_iter is None and any(isinstance(part, _EXPECTATIONS) for part in self._view.modules()):
            eot_iter = 1
        eot_iter = eot_iter or adversary.apgd.eot_iter
        if budget.n_iter is not None:
            adversary.apgd = _with_iterations(adversary.apgd, budget.n_iter)
            adversary.apgd_targeted = _with_iterations(adversary.apgd_targeted, budget.n_iter)
            adversary.fab.n_iter = budget.n_iter
        for part in (adversary, adversary.apgd, adversary.apgd_targeted):
            part.logger = self._recorder
        for part in (adversary.apgd, adversary.apgd_targeted):
            part.eot_iter = eot_iter
        for part in (adversary.apgd_targeted, adversary.fab):
            wanted = budget.n_target_classes or part.n_target_classes
            part.n_target_classes = min(wanted, self._columns - 1)
        for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square):
            part.n_restarts = budget.n_restarts or part.n_restarts
        adversary.square.n_queries = budget.n_queries or adversary.square.n_queries

    def _prepare(self, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        if batch_size < 1 or not len(x):
            raise ValueError(
                f"Expected `batch_size` of at least 1, and at least one image, but got {batch_size} "
                f"and {len(x)} images"
            )
        model = self._view.model
        classes = check_labels(y, count=len(x), num_classes=model.num_classes, device=x.device)
        # AutoAttack computes in single precision and calls `view` on gradients, laid out like images.
        images = x.detach().float().contiguous()
        if set(self.attacks) != {"square"} and not _differentiable(self._view, images[:1]):
            raise ValueError(
                f"Expected `attacks` of ['square'] for a model without gradient, but got {list(self.attacks)}"
            )
        return images, classes


@final
class _Recorder:
    """Replaces AutoAttack's logger. PyPI's version 0.2 warns, while 0.1 and the repository's version log."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warning(self, message: str) -> None:
        self.messages.append(message)

    def log(self, message: str) -> None:
        if message.startswith("Warning: "):
            self.warning(message.removeprefix("Warning: "))

    def info(self, message: str) -> None:
        """Drops a report of progress."""

    debug = info


@contextmanager
def _unspoiled(checks: ModuleType) -> Iterator[None]:
    """Counts calls from zero, and undoes the side effects of AutoAttack's check of inference.

    The check counts calls of torch's gradient functions in a dictionary that AutoAttack never resets, and
    would flag every model after one that optimises. It also ends any tracing of the process, such as
    coverage.
    """
    trace = sys.gettrace()
    _reset(checks)
    try:
        yield
    finally:
        sys.settrace(trace)
        _reset(checks)


def _reset(checks: ModuleType) -> None:
    for name in checks.funcs:
        checks.funcs[name] = 0


def _with_iterations(apgd: Any, n_iter: int) -> Any:
    """Builds the attack again, because its constructor derives the step-size schedule from `n_iter`."""
    own = {"loss": apgd.loss}
    if hasattr(apgd, "n_target_classes"):
        own = {"n_target_classes": apgd.n_target_classes}
    return type(apgd)(
        apgd.model,
        n_iter=n_iter,
        norm=apgd.norm,
        n_restarts=apgd.n_restarts,
        eps=apgd.eps_orig,
        seed=apgd.seed,
        eot_iter=apgd.eot_iter,
        rho=apgd.thr_decr,
        device=apgd.device,
        use_largereps=apgd.use_largereps,
        **own,
    )


def _differentiable(view: AttackView, image: Tensor) -> bool:
    with torch.enable_grad():
        return bool(view(image.clone().requires_grad_()).requires_grad)


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in list(choices):
        raise ValueError(f"Expected `{name}` out of {list(choices)}, but got {value!r}")
