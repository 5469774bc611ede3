"""The summary of a run, which holds every number that a table, figure, page or comparison shows."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool

from ...verification import reach
from ..run.results import Results
from ..suites.model import ALL, CLEAN, Attack, Norm, Suite
from .answers import entropies, rejections, targeted
from .distances import Distances, Outcomes, robust_accuracy
from .entries import Cost, Curve, Drawn, Health, Median, Optimality, Row, Summary
from .paper import paper_values
from .significance import median_interval, wilson_interval

__all__ = ["summarise"]


def summarise(results: Results) -> Summary:
    """Computes all numbers that a report shows of a run, which need not be finished."""
    suite, outcomes = results.suite, Outcomes(results)
    clean, attacked = _effects(results, outcomes)
    rows = _rows(suite, clean, attacked)
    elsewhere: list[Row] = []
    curves: list[Curve] = []
    medians: list[Median] = []
    for norm in suite.norms:
        attacks = [attack for attack in suite.attacks if attack.norm == norm]
        elsewhere += _rows_elsewhere(suite, norm, attacks, attacked)
        curves += _curves(results, norm, attacks, attacked)
        medians += _medians(norm, attacks, attacked)
    pairs = [(model, attack) for attack in suite.attacks for model in results.models]
    pairs = [(model, attack) for model, attack in pairs if len(outcomes.column("sample", model, attack.key))]
    return Summary(
        rows=tuple(row for row in rows if row.robust),
        grid=tuple(row for row in (*rows, *elsewhere) if row.robust),
        drawn=tuple(_drawn(results, rows)),
        claims=tuple(_health(outcomes, model, attack) for model, attack in pairs),
        curves=tuple(curves),
        medians=tuple(medians),
        optimalities=tuple(_optimalities(suite, clean, attacked)),
        entropies=tuple(entropies(results, outcomes)),
        rejections=tuple(rejections(results, outcomes)),
        targeted=tuple(targeted(results, outcomes)),
        costs=tuple(_cost(outcomes, model, attack.key) for model, attack in pairs),
        paper=paper_values(results, outcomes, clean, attacked),
        failures=results.failures,
        missing=results.missing,
    )


Attacked = Mapping[tuple[str, str], Distances]


def _effects(results: Results, outcomes: Outcomes) -> tuple[dict[str, Distances], Attacked]:
    """Returns the decisions on clean images, and the effects of every attack on every model."""
    clean = {model: outcomes.clean(model) for model in results.models}
    attacked = {
        (model, attack.key): outcomes.attacked(model, attack)
        for model in results.models
        for attack in results.suite.attacks_of(model)
    }
    return clean, attacked


def _rows(suite: Suite, clean: Mapping[str, Distances], attacked: Attacked) -> list[Row]:
    rows = [_row(CLEAN, "clean", None, None, clean)]
    for norm in suite.norms:
        attacks = [attack for attack in suite.attacks if attack.norm == norm]
        rows += _rows_of_norm(suite, norm, attacks, attacked)
    return rows


def _drawn(results: Results, rows: Sequence[Row]) -> Iterator[Drawn]:
    """Yields the rows of the table in which the draws of a model decide differently."""
    first, worst = (
        _rows(results.suite, *_effects(results, Outcomes(results, by=by))) for by in ("first", "worst")
    )
    for row, once, always in zip(rows, first, worst, strict=True):
        for model in row.robust:
            shares = [part.accuracy(model) for part in (once, row, always)]
            if len({share.count for share in shares}) > 1:
                yield Drawn(model=model, row=row, first=shares[0], majority=shares[1], worst=shares[2])


def _row(
    key: str,
    title: str,
    norm: Norm | None,
    epsilon: float | None,
    distances: Mapping[str, Distances],
    attacks: Sequence[Attack] = (),
    keys: Mapping[str, frozenset[str]] = MappingProxyType({}),
) -> Row:
    bound = epsilon or 0.0
    there = {model: part for model, part in distances.items() if part.known.any()}
    return Row(
        key=key,
        title=title,
        norm=norm,
        epsilon=epsilon,
        robust={model: part.right(bound) for model, part in there.items()},
        rejected={model: part.rejected(bound) for model, part in there.items()},
        known={model: part.known for model, part in there.items()},
        attacks={model: keys.get(model, frozenset()) for model in there},
        second=frozenset(attack.key for attack in attacks if attack.gradient is not None),
    )


def _rows_of_norm(suite: Suite, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Row]:
    epsilon = suite.threat_model(norm).epsilon
    groups = [(attack.key, attack.title, [attack]) for attack in attacks]
    if len(attacks) > 1:
        groups.append((f"{ALL}-{norm}", "all attacks", list(attacks)))
    for key, title, group in groups:
        yield _row(key, title, norm, epsilon, _unions(group, attacked), group, _keys(group, attacked))


def _rows_elsewhere(suite: Suite, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Row]:
    threat = suite.threat_model(norm)
    for epsilon in threat.epsilons:
        for attack in attacks:
            if epsilon != threat.epsilon and (attack.every_epsilon or attack.kind == "minimal norm"):
                yield _row(
                    attack.key,
                    attack.title,
                    norm,
                    epsilon,
                    _unions([attack], attacked),
                    [attack],
                    _keys([attack], attacked),
                )


def _keys(attacks: Sequence[Attack], attacked: Attacked) -> dict[str, frozenset[str]]:
    models = {model for model, _ in attacked}
    return {
        model: frozenset(attack.key for attack in attacks if (model, attack.key) in attacked)
        for model in models
    }


def _unions(attacks: Sequence[Attack], attacked: Attacked) -> dict[str, Distances]:
    """Returns, per model, the effect of the worst attack among those that it was run under."""
    parts: dict[str, list[Distances]] = {}
    keys = {attack.key for attack in attacks}
    for (model, key), distances in attacked.items():
        if key in keys:
            parts.setdefault(model, []).append(distances)
    return {model: Outcomes.union(found) for model, found in parts.items()}


def _curves(results: Results, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Curve]:
    epsilons = results.suite.threat_model(norm).epsilons
    everywhere = [attack for attack in attacks if attack.every_epsilon or attack.kind == "minimal norm"]
    if len(epsilons) == 1 and not any(attack.kind == "minimal norm" for attack in attacks):
        everywhere = list(attacks)  # all have run at the only epsilon
    for model, distances in _unions(everywhere, attacked).items():
        mine = [attack for attack in everywhere if (model, attack.key) in attacked]
        lost = distances.lost[distances.known]
        if not len(lost):
            continue
        exact = any(attack.kind == "minimal norm" for attack in mine)
        known = np.unique([0.0, *epsilons, *(lost[np.isfinite(lost)] if exact else ())])
        accuracy = robust_accuracy(lost, known)
        low, high = wilson_interval(accuracy, len(lost))
        yield Curve(
            model=model,
            norm=norm,
            attacks=tuple(attack.title for attack in mine),
            exact=exact,
            epsilons=known,
            accuracy=accuracy,
            low=low,
            high=high,
        )


def _medians(norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Median]:
    minimal = [attack for attack in attacks if attack.kind == "minimal norm"]
    groups = [(attack.key, attack.title, [attack]) for attack in minimal]
    if len(minimal) > 1:
        groups.append((f"{ALL}-{norm}", "nearest of all attacks", minimal))
    for key, title, group in groups:
        for model, distances in _unions(group, attacked).items():
            if len(known := distances.error[distances.known]):
                value, low, high = median_interval(known)
                yield Median(
                    model=model,
                    key=key,
                    title=title,
                    norm=norm,
                    value=value,
                    low=low,
                    high=high,
                    total=len(known),
                )


def _right(distances: Distances, known: Bool[np.ndarray, " samples"], epsilons: Sequence[float]) -> int:
    """Returns how many of the known images stay right, added up over the epsilons."""
    return sum(int(distances.right(epsilon)[known].sum()) for epsilon in epsilons)


def _optimalities(suite: Suite, clean: Mapping[str, Distances], attacked: Attacked) -> Iterator[Optimality]:
    for norm in suite.norms:
        epsilons = suite.threat_model(norm).epsilons
        for model in clean:
            parts = [(a, attacked[model, a.key]) for a in suite.attacks_of(model) if a.norm == norm]
            if len(parts) < 2:
                continue
            union = Outcomes.union([distances for _, distances in parts])
            known, whole = union.known, _right(clean[model], union.known, epsilons)
            gained = whole - _right(union, known, epsilons)
            for attack, distances in parts if gained > 0 else ():
                yield Optimality(
                    model=model,
                    key=attack.key,
                    title=attack.title,
                    norm=norm,
                    value=(whole - _right(distances, known, epsilons)) / gained,
                    total=int(known.sum()),
                )


def _health(outcomes: Outcomes, model: str, attack: Attack) -> Health:
    columns = {
        name: outcomes.column(name, model, attack.key)
        for name in ("claimed", "fell_first", "success", "valid", "zero_gradient", "unstable", "prediction")
    }
    right = outcomes.right_clean(model, attack.key)
    claimed, fell_first = columns["claimed"] & right, columns["fell_first"] & right
    lengths = outcomes.column(f"distance_{attack.norm}", model, attack.key)
    if attack.against not in (None, model):  # the toolkit's claim is about the model that it attacked
        claimed[:] = fell_first[:] = False
    return Health(
        model=model,
        attack=attack.key,
        examples=len(claimed),
        claimed=int(claimed.sum()),
        fell=int((claimed & ~columns["success"]).sum()),
        fell_first=int(fell_first.sum()),
        reason=_common_reason(outcomes, model, attack, claimed & ~columns["success"]),
        invalid=int((~columns["valid"]).sum()),
        zero_gradient=int(columns["zero_gradient"].sum()),
        unstable=int(columns["unstable"].sum()),
        undefined=int((columns["valid"] & np.isnan(columns["prediction"])).sum()),
        unchanged=int((lengths == 0).sum()),
    )


def _common_reason(
    outcomes: Outcomes, model: str, attack: Attack, fallen: Bool[np.ndarray, " examples"]
) -> str:
    """Returns the one reason for which all of these claims fell; empty if there are several, or no claims."""
    names = (f"distance_{attack.norm}", "epsilon", "valid", "rejected", "prediction", "label")
    length, epsilon, valid, rejected, prediction, label = (
        outcomes.column(name, model, attack.key)[fallen] for name in names
    )
    reasons = {
        "they are no images in [0, 1]": ~valid.astype(bool),
        "they are outside the ball": length > np.array([reach(radius) for radius in epsilon]),
        "the model rejects them": rejected.astype(bool),
        "the model labels them rightly": prediction == label,
    }
    return next((reason for reason, holds in reasons.items() if len(holds) and holds.all()), "")


def _cost(outcomes: Outcomes, model: str, attack: str) -> Cost:
    return Cost(
        model=model,
        attack=attack,
        **{
            name: float(outcomes.column(name, model, attack).mean())
            for name in ("seconds", "queries", "gradients")
        },
    )
