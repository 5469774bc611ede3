"""Suites as data: which attacks run against which models, at which epsilons, and how hard."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, get_args

from ..adapters.verification import Norm
from ..inference import InferenceBudget
from ..models.amortized import SamplingBudget
from ..zoo.serialization import config_from_dict

__all__ = [
    "ALL",
    "BARE",
    "CLEAN",
    "ENCODER",
    "OWN",
    "Attack",
    "Expected",
    "Kind",
    "Norm",
    "Quantity",
    "Scale",
    "Suite",
    "SuiteModel",
    "ThreatModel",
    "check_choice",
    "suite_from_dict",
]

Kind: TypeAlias = Literal["fixed epsilon", "minimal norm"]
Quantity: TypeAlias = Literal["accuracy", "error", "rejection", "median_distance"]
Scale: TypeAlias = Literal["small", "paper"]
Parameter: TypeAlias = bool | int | float | str

ALL = "all"  # in place of an attack's key: the union of the attacks of a norm
BARE = "bare"  # in place of a model's name: the classifier behind a purifier or a rejection
ENCODER = "encoder"  # likewise: the encoder of a GMVAE alone, which its paper attacks
CLEAN = "clean"  # the pseudo-attack whose cells hold the decisions on unperturbed images
OWN = "genrobust"  # the toolkit of this package's own attacks

BUDGET_FIELDS = sorted({part.name for kind in (InferenceBudget, SamplingBudget) for part in fields(kind)})

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """How far an attacker may move an image.

    Attributes:
        norm: Of the perturbation.
        epsilon: The bound of the table.
        curve_epsilons: The bounds of the accuracy-distortion curve, for attacks with `every_epsilon`.
    """

    norm: Norm
    epsilon: float
    curve_epsilons: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, get_args(Norm))
        if (smallest := min(self.epsilons)) <= 0:
            raise ValueError(f"Expected `epsilon` and `curve_epsilons` above 0, but got {smallest}")

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
        norm: Of the perturbation; the suite's threat model of this norm gives the epsilons.
        kind: `"fixed epsilon"` (searches within a ball) or `"minimal norm"` (looks for the nearest example).
        name: As the toolkit calls it; see `genrobust attacks`.
        parameters: In place of the toolkit's own defaults (Foolbox), or of the catalogue's (the others).
        toolkit: Name of an adapter, or `"genrobust"`.
        against: Another model of the suite, whose examples are transferred to this one; or `"bare"`, the
            classifier behind a purifier or a rejection; or `"encoder"`, a GMVAE's. None attacks the model
            itself.
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
    restarts: int = 1
    eot: int = 1
    every_epsilon: bool = False
    start_from_images: bool = False
    targeted: bool = False

    def __post_init__(self) -> None:
        _check_key("key", self.key)
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("kind", self.kind, get_args(Kind))
        if self.key in (CLEAN, ALL):
            raise ValueError(
                f"Expected another `key` than {self.key!r}, which names the unperturbed images or the union"
            )
        if self.restarts < 1 or self.eot < 1:
            raise ValueError(
                f"Expected `restarts` and `eot` of at least 1, but got {self.restarts} and {self.eot}"
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
        file: Its weights, if it has no recipe: a path below the folder of trained models.
        make: The command that makes that file.
        detectors: Names of the calibrated detectors by which it refuses; see `zoo.load_detectors`.
        gradient: Its surrogate gradient, in place of the default.
        inference: Its budget, in place of the default, as arguments of `with_inference`.
    """

    name: str
    title: str
    zoo: str | None = None
    file: str | None = None
    make: str | None = None
    detectors: tuple[str, ...] = ()
    gradient: str | None = None
    inference: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_key("name", self.name)
        if self.zoo is not None:
            _check_key("zoo", self.zoo)
        if (self.file is None) != (self.make is None):
            raise ValueError(f"Expected `make`, the command that makes `file`, with it, but got {self}")

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
        value: A share, or a distance where `quantity` is `"median_distance"`.
        epsilon: Of the number; None is the threat model's, or none at all.
        norm: Of a union.
        quantity: What is counted: images labelled rightly whatever the attack did, images labelled wrongly
            and not rejected, images rejected; or the median length of the perturbation.
        images: How many the paper measured on; None if it does not say.
    """

    model: str
    attack: str
    value: float
    epsilon: float | None = None
    norm: Norm | None = None
    quantity: Quantity = "accuracy"
    images: int | None = None

    def __post_init__(self) -> None:
        check_choice("quantity", self.quantity, get_args(Quantity))
        if self.norm is not None:
            check_choice("norm", self.norm, get_args(Norm))
        if (self.attack == ALL) != (self.norm is not None):
            raise ValueError(f"Expected a `norm` with the attack {ALL!r} and with no other, but got {self}")
        largest = float("inf") if self.quantity == "median_distance" else 1.0
        if not 0 <= self.value <= largest:
            raise ValueError(f"Expected `value` in 0..{largest:g}, but got {self.value}")
        if self.images is not None and self.images < 1:
            raise ValueError(f"Expected `images` of at least 1, but got {self.images}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark as data.

    Attributes:
        name: Of the suite.
        dataset: Name of the dataset whose test images are attacked.
        models: The models, in the order of the table's columns.
        threat_models: One per norm.
        attacks: In the order of the table's rows.
        samples: Test images, unless a run says otherwise.
        batch_size: Images per cell: what a kill can cost, and what a query evaluates at once.
        attack_inference: Budget at attack time, as arguments of `with_inference`: those that a model has, and
            no more effort than its own, which verdicts have.
        overshoots: Factors by which the perturbation of a minimal-norm attack is lengthened until the example
            survives re-scoring. Such examples lie on the decision boundary of the attacked variant, so that
            otherwise a model that decides at random, or with another budget, looks more robust than it is.
        starting_images: Test images from which `start_from_images` chooses.
        baseline: Model that the others are compared with in the printed table.
        title: For readers.
        paper: Where the numbers are from, such as "Ju & Wagner 2020, Table 1".
        scale: As published, or reduced to what two cores finish in half an hour.
        reduced: Sentences that say what was reduced.
        expected: The paper's numbers.
    """

    name: str
    dataset: str
    models: tuple[SuiteModel, ...]
    threat_models: tuple[ThreatModel, ...]
    attacks: tuple[Attack, ...]
    samples: int = 100
    batch_size: int = 50
    attack_inference: Mapping[str, Parameter] = field(default_factory=dict)
    overshoots: tuple[float, ...] = (1.0,)
    starting_images: int = 100
    baseline: str | None = None
    title: str = ""
    paper: str = ""
    scale: Scale = "small"
    reduced: tuple[str, ...] = ()
    expected: tuple[Expected, ...] = ()

    def __post_init__(self) -> None:
        _check_key("name", self.name)
        check_choice("scale", self.scale, get_args(Scale))
        if min(self.samples, self.batch_size, self.starting_images) < 1:
            raise ValueError(
                "Expected `samples`, `batch_size` and `starting_images` of at least 1, "
                f"but got {self.samples}, {self.batch_size} and {self.starting_images}"
            )
        if (
            not self.overshoots
            or min(self.overshoots) < 1
            or list(self.overshoots) != sorted(self.overshoots)
        ):
            raise ValueError(f"Expected increasing `overshoots` of at least 1, but got {self.overshoots}")
        for name in self.attack_inference:
            check_choice("field of `attack_inference`", name, BUDGET_FIELDS)
        _check_unique("attack", [attack.key for attack in self.attacks])
        _check_unique("model", [model.name for model in self.models])
        _check_unique("threat model", self.norms)
        for attack in self.attacks:
            self.threat_model(attack.norm)
            self._check_names(attack)
        for number in self.expected:
            check_choice("model of `expected`", number.model, [model.name for model in self.models])
            if number.attack != ALL:
                known = [CLEAN, *(attack.key for attack in self.attacks)]
                check_choice("attack of `expected`", number.attack, known)

    def _check_names(self, attack: Attack) -> None:
        names = [model.name for model in self.models]
        if attack.against is not None:
            check_choice(f"against of {attack.key}", attack.against, [*names, BARE, ENCODER])
        for name in attack.for_models:
            check_choice(f"for_models of {attack.key}", name, names)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms, in the order of the threat models."""
        return tuple(threat.norm for threat in self.threat_models)

    def threat_model(self, norm: Norm) -> ThreatModel:
        """Give the threat model of a norm.

        Raises:
            ValueError: If the suite has none.
        """
        for threat in self.threat_models:
            if threat.norm == norm:
                return threat
        raise ValueError(f"Expected a threat model for every norm of the attacks, but {norm!r} has none")

    def attack(self, key: str) -> Attack:
        """Give the attack of a key.

        Raises:
            ValueError: If the suite has none.
        """
        check_choice("key", key, [attack.key for attack in self.attacks])
        return next(attack for attack in self.attacks if attack.key == key)

    def attacks_of(self, model: str) -> tuple[Attack, ...]:
        """Give the attacks that a model is run under."""
        return tuple(a for a in self.attacks if not a.for_models or model in a.for_models)

    def restricted(self, models: Sequence[str]) -> "Suite":
        """Give the part that some of the models can run: without what is transferred from the others."""
        attacks = tuple(
            replace(attack, for_models=tuple(name for name in attack.for_models if name in models))
            for attack in self.attacks
            if attack.against in (None, BARE, ENCODER, *models)
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
        """Give the entry of a model; one that the suite does not know gets an entry of its own."""
        own = SuiteModel(name=name, title=name)
        return next((model for model in self.models if model.name == name), own)

    def epsilons(self, attack: Attack) -> tuple[float | None, ...]:
        """Give the epsilons that an attack runs at; a minimal-norm attack runs once, at None."""
        if attack.kind == "minimal norm":
            return (None,)
        threat = self.threat_model(attack.norm)
        return threat.epsilons if attack.every_epsilon else (threat.epsilon,)


def suite_from_dict(content: Mapping[str, Any]) -> Suite:
    """Make a suite from what `dataclasses.asdict` gave, after any round trip through JSON.

    Raises:
        ValueError: If a field is unknown, or its value makes no sense.
    """
    return config_from_dict(Suite, content)


def check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    """Check a name against the known ones.

    Raises:
        ValueError: If it is none of them; the nearest is named.
    """
    if value in choices:
        return
    nearest = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    known = ", ".join(map(repr, choices))
    raise ValueError(f"Expected `{what}` to be one of {known}, but got {value!r}{hint}")


def _check_key(what: str, value: str) -> None:
    if not _KEY.fullmatch(value):
        raise ValueError(
            f"Expected `{what}` of letters, digits and . _ + - (it becomes a file's name), but got {value!r}"
        )


def _check_unique(what: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Expected every {what} once, but got {', '.join(map(repr, repeated))} more than once"
        )
