"""Suites as data: which attacks run against which models, at which epsilons, and how hard."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeAlias

from ..._brief import one_line
from ..._fields import AtLeastOne, Bounds, NotNegative, Positive, check_choice, check_fields, checked_field
from ...inference import InferenceBudget
from ...models._amortized import SamplingBudget
from ...models.diffusion import DiffusionBudget
from ...verification import AGAIN, DRAWS, Norm
from ...zoo.weight_files import config_from_dict

__all__ = [
    "ALL",
    "BARE",
    "CLEAN",
    "ENCODER",
    "LENGTHS",
    "LONGEST_KEY",
    "PARTS",
    "TIGHTENED",
    "Attack",
    "Expected",
    "Kind",
    "Norm",
    "Quantity",
    "Scale",
    "Suite",
    "SuiteModel",
    "ThreatModel",
    "suite_from_dict",
]

Kind: TypeAlias = Literal["fixed epsilon", "minimal norm"]
Quantity: TypeAlias = Literal[
    "accuracy",
    "error",
    "rejection",
    "median_distance",
    "mean_distance",
    "reached",
    "detection",
    "reclassified",
    "recovered",
]
Scale: TypeAlias = Literal["small", "paper"]
Parameter: TypeAlias = bool | int | float | str

ALL = "all"  # in place of an attack's key: the union of the attacks of a norm
BARE = "bare"  # in place of a model's name: the classifier behind a purifier or a rejection
ENCODER = "encoder"  # likewise: the encoder of a GMVAE alone, which its paper attacks
TIGHTENED = "tightened"  # likewise: the variant of a model whose inference ends nearer to the minima
PARTS = (BARE, ENCODER, TIGHTENED)  # of the judged model itself
LENGTHS: tuple[Quantity, ...] = ("median_distance", "mean_distance")  # quantities that are no shares
CLEAN = "clean"  # the pseudo-attack whose cells hold the decisions on unperturbed images

_BUDGETS = (DiffusionBudget, InferenceBudget, SamplingBudget)
BUDGET_FIELDS = sorted({part.name for kind in _BUDGETS for part in fields(kind)})

LONGEST_KEY = 100  # letters of what becomes a file's name
_KEY = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{LONGEST_KEY - 1}}}")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How far an attacker may move an image.

    Attributes:
        norm: Norm of the perturbation.
        epsilon: The bound of the table.
        curve_epsilons: The bounds of the accuracy-distortion curve, for attacks with `every_epsilon`.
    """

    norm: Norm
    epsilon: Positive
    curve_epsilons: tuple[Positive, ...] = ()

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Every bound of the curve and the bound of the table, in increasing order."""
        return tuple(sorted({self.epsilon, *self.curve_epsilons}))


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack of a toolkit.

    Attributes:
        key: Names the attack in files and tables of numbers.
        title: Names it for readers.
        norm: Norm of the perturbation; the suite's threat model of this norm gives the epsilons.
        kind: `"fixed epsilon"` (searches within a ball) or `"minimal norm"` (looks for the nearest example).
        name: As the toolkit calls it, or another of its public names; see `genrobust attacks`.
        parameters: Values that replace the catalogue's, one by one.
        toolkit: Name of an adapter; `"genrobust"` has this package's attacks and those that users register.
        against: Another model of the suite, whose examples are transferred to this one; or `"bare"`, the
            classifier behind a purifier or a rejection; or `"encoder"`, a GMVAE's; or `"tightened"`, the
            variant whose inference ends nearer to the minima. None attacks the model itself.
        for_models: Models that it is run on; all if empty.
        gradient: Surrogate gradient that the attacked model hands out in place of its own; `for_models` says
            which models have it. What one gradient masks, the other may find.
        restarts: How often the attack runs; the best example is kept.
        eot: Draws of the noise per query, on models that decide at random.
        every_epsilon: Run at every epsilon of the curve, not only at the table's (fixed-epsilon attacks).
        start_from_images: Start from test images that the model labels otherwise (E-ABS section 4.2), for
            attacks that take `starting_points`; the toolkit's own starting points fail on robust models.
        targeted: Go for one other class an image, drawn at random. Success is still any wrong label.
    """

    key: str
    title: str
    norm: Norm
    kind: Kind
    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    toolkit: str = "foolbox"
    against: str | None = None
    for_models: tuple[str, ...] = ()
    gradient: str | None = None
    restarts: AtLeastOne = 1
    eot: AtLeastOne = 1
    every_epsilon: bool = False
    start_from_images: bool = False
    targeted: bool = False

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        _check_key("key", self.key)
        if self.key in (CLEAN, ALL):
            raise ValueError(
                f"Expected another `key` than {self.key!r}, which names the unperturbed images or the union"
            )
        if self.gradient is not None and not self.for_models:
            raise ValueError(
                f"Expected `for_models` of {self.key!r}, the models that have its gradient {self.gradient!r}"
            )
        if self.gradient is not None and self.against == ENCODER:
            raise ValueError(
                f"Expected no `gradient` for {self.key!r}, which is against the encoder, but got "
                f"{self.gradient!r}: an encoder has its own gradient alone"
            )
        if self.every_epsilon and self.kind == "minimal norm":
            raise ValueError(
                f"Expected no `every_epsilon` for {self.key!r}: a minimal norm gives the whole curve"
            )
        if self.start_from_images and self.eot > 1:
            raise ValueError(
                f"Expected `eot` of 1 for {self.key!r}, whose starting points need a decision that repeats, "
                f"but got {self.eot}"
            )


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """A model of a suite.

    Attributes:
        name: Its name in the suite.
        title: Its name for readers.
        zoo: Its name in the zoo, if that is another.
        detectors: Names of the calibrated detectors by which it rejects; see `zoo.load_detectors`.
        guard: The zoo's name of the generative model whose detectors are asked about this model's label.
        gradient: Its surrogate gradient, in place of the default.
        inference: Its budget, in place of the default, as arguments of `with_inference`.
    """

    name: str
    title: str
    zoo: str | None = None
    detectors: tuple[str, ...] = ()
    guard: str | None = None
    gradient: str | None = None
    inference: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        _check_key("name", self.name)
        _check_budget("inference", self.inference)
        if self.zoo is not None:
            _check_key("zoo", self.zoo)
        if self.guard is not None and not self.detectors:
            raise ValueError(
                f"Expected `detectors` of the guard {self.guard!r} for {self.name!r}, but got none"
            )

    @property
    def weights(self) -> str:
        """Its name in the zoo."""
        return self.zoo or self.name


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A number of the paper, to stand beside ours.

    Attributes:
        model: Name of the model.
        attack: Key of the attack; `"clean"`; or `"all"`, the union of a norm.
        value: A share, or a distance where `quantity` is one of `LENGTHS`.
        epsilon: Epsilon of the number; None is the threat model's, or none at all.
        norm: Norm of a union.
        quantity: What is counted: images labelled rightly whatever the attack did, images labelled wrongly
            and not rejected, images rejected; or the median length of the perturbation. At one epsilon:
            `"reached"`, images labelled as the class that a targeted attack goes for; `"mean_distance"`, the
            mean length of the perturbations that have success; `"detection"`, examples rejected among those
            that fool what was attacked; `"reclassified"`, images rightly relabelled among the rejected;
            `"recovered"`, images right once these are relabelled.
        images: How many the paper measured on; None if it does not say.
    """

    model: str
    attack: str
    value: NotNegative
    epsilon: Positive | None = None
    norm: Norm | None = None
    quantity: Quantity = "accuracy"
    images: AtLeastOne | None = None

    @property
    def place(self) -> str:
        """The number that it is, in words."""
        bound = "" if self.epsilon is None else f" at {self.epsilon:g}"
        return f"{self.quantity} of {self.model} under {self.attack} {self.norm or ''}{bound}"

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.attack == ALL) != (self.norm is not None):
            raise ValueError(f"Expected a `norm` with the attack {ALL!r} and with no other, but got {self}")
        if self.quantity in ("reached", "mean_distance") and self.attack in (CLEAN, ALL):
            raise ValueError(
                f"Expected one attack for the quantity {self.quantity!r}, but got {self.attack!r}"
            )
        if self.quantity not in LENGTHS and self.value > 1:
            raise ValueError(f"Expected `value` of {self.quantity!r} to be at most 1, but got {self.value}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark as data.

    Attributes:
        name: Name of the suite.
        dataset: Name of the dataset whose test images are attacked.
        models: The models, in the order of the table's columns.
        threat_models: One per norm.
        attacks: In the order of the table's rows.
        samples: Test images, unless a run says otherwise.
        batch_size: Images per cell: what a kill can cost, and what a query evaluates at once.
        attack_inference: Budget at attack time, as arguments of `with_inference`: those that a model has, and
            no more effort than its own, which verdicts have.
        attack_again: How often an attack runs again, with other seeds, on images whose claim fell.
        draws: How often a model that draws noise decides about every image, clean and adversarial. The
            majority is the headline; the first draw and the worst stand beside it.
        overshoots: Factors by which the perturbation of a minimal-norm attack is lengthened until the example
            survives re-scoring. Such examples lie on the decision boundary of the attacked variant, so that
            otherwise a model that decides at random, or with another budget, looks more robust than it is.
        starting_images: Test images from which `start_from_images` chooses.
        reclassify: Look again at what a model rejects: label it by the latent that explains it best.
        baseline: Model that the others are compared with in the printed table.
        title: For readers.
        paper: Where the numbers are from, such as "Ju & Wagner 2020, Table 1".
        scale: As published, or reduced to about half an hour on two cores; `Forecast` says how long it takes.
        reduced: Sentences that say what was reduced.
        expected: The paper's numbers.
    """

    name: str
    dataset: str
    models: tuple[SuiteModel, ...]
    threat_models: tuple[ThreatModel, ...]
    attacks: tuple[Attack, ...]
    samples: AtLeastOne = 100
    batch_size: AtLeastOne = 50
    attack_inference: Mapping[str, Parameter] = field(default_factory=dict)
    attack_again: Annotated[int, Bounds(least=0)] = AGAIN
    draws: AtLeastOne = DRAWS
    overshoots: tuple[Annotated[float, Bounds(least=1)], ...] = (1.0,)
    starting_images: AtLeastOne = 100
    reclassify: bool = False
    baseline: str | None = None
    title: str = ""
    paper: str = ""
    scale: Scale = "small"
    reduced: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()

    __repr__ = one_line

    def __post_init__(self) -> None:
        check_fields(self)
        _check_key("name", self.name)
        if not self.overshoots or list(self.overshoots) != sorted(self.overshoots):
            raise ValueError(f"Expected increasing `overshoots`, but got {self.overshoots}")
        for name in self.attack_inference:
            check_choice("field of `attack_inference`", name, BUDGET_FIELDS)
        _check_budget("attack_inference", self.attack_inference)
        _check_unique("attack", [attack.key for attack in self.attacks])
        _check_unique("model", [model.name for model in self.models])
        _check_unique("threat model", self.norms)
        for attack in self.attacks:
            self.threat_model(attack.norm)
            self._check_names(attack)
        if self.baseline is not None:
            check_choice("baseline", self.baseline, [model.name for model in self.models])
        _check_unique("number of `expected`", [number.place for number in self.expected])
        for number in self.expected:
            check_choice("model of `expected`", number.model, [model.name for model in self.models])
            if number.attack != ALL:
                known = [CLEAN, *(attack.key for attack in self.attacks)]
                check_choice("attack of `expected`", number.attack, known)

    def _check_names(self, attack: Attack) -> None:
        names = [model.name for model in self.models]
        if attack.against is not None:
            check_choice(f"against of {attack.key}", attack.against, [*names, *PARTS])
        for name in attack.for_models:
            check_choice(f"for_models of {attack.key}", name, names)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms, in the order of the threat models."""
        return tuple(threat.norm for threat in self.threat_models)

    def threat_model(self, norm: Norm) -> ThreatModel:
        """Returns the threat model of a norm.

        Raises:
            ValueError: If the suite has none.
        """
        for threat in self.threat_models:
            if threat.norm == norm:
                return threat
        raise ValueError(f"Expected a threat model for every norm of the attacks, but {norm!r} has none")

    def attack(self, key: str) -> Attack:
        """Returns the attack of a key.

        Raises:
            ValueError: If the suite has none.
        """
        check_choice("key", key, [attack.key for attack in self.attacks])
        return next(attack for attack in self.attacks if attack.key == key)

    def attacks_of(self, model: str) -> tuple[Attack, ...]:
        """Returns the attacks that a model is run under."""
        return tuple(a for a in self.attacks if not a.for_models or model in a.for_models)

    def restricted(self, models: Sequence[str]) -> "Suite":
        """Returns the part that some of the models can run: without what is transferred from the others."""
        attacks = tuple(
            replace(attack, for_models=tuple(name for name in attack.for_models if name in models))
            for attack in self.attacks
            if attack.against in (None, *PARTS, *models)
            and (not attack.for_models or set(attack.for_models) & set(models))
        )
        keys = (CLEAN, ALL, *(attack.key for attack in attacks))
        return replace(
            self,
            models=tuple(model for model in self.models if model.name in models),
            attacks=attacks,
            baseline=self.baseline if self.baseline in models else None,
            expected=tuple(e for e in self.expected if e.model in models and e.attack in keys),
        )

    def model(self, name: str) -> SuiteModel:
        """Returns the entry of a model; one that the suite does not know gets an entry of its own."""
        own = SuiteModel(name=name, title=name)
        return next((model for model in self.models if model.name == name), own)

    def epsilons(self, attack: Attack) -> tuple[float | None, ...]:
        """Returns the epsilons that an attack runs at; a minimal-norm attack runs once, at None."""
        if attack.kind == "minimal norm":
            return (None,)
        threat = self.threat_model(attack.norm)
        return threat.epsilons if attack.every_epsilon else (threat.epsilon,)


def suite_from_dict(content: Mapping[str, Any]) -> Suite:
    """Builds a suite from the result of `dataclasses.asdict`, also after a round trip through JSON.

    Raises:
        ValueError: If a field is unknown, or its value is invalid.
    """
    return config_from_dict(Suite, content)


def _check_budget(what: str, budget: Mapping[str, Parameter]) -> None:
    """Checks the values of those fields that a budget of this package has; other models have others."""
    for name, value in budget.items():
        for kind in _BUDGETS:
            if name in {field.name for field in fields(kind)}:
                checked_field(kind, name, value, f"`{what}.{name}`")


def _check_key(what: str, value: str) -> None:
    if not _KEY.fullmatch(value):
        raise ValueError(
            f"Expected `{what}` of letters, digits and . _ + - (it becomes a file's name), but got {value!r}"
        )


def _check_unique(what: str, names: Sequence[str]) -> None:
    names = [name.casefold() for name in names]  # as some disks read the names of files
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Expected every {what} once, but got {', '.join(map(repr, repeated))} more than once"
        )
