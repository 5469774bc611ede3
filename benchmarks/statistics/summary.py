"""The summary of a run: every number that a table, a figure, a page or a comparison shows."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ..results import Results
from ..suites import ALL, CLEAN, Attack, Norm, Suite
from .distances import Distances, Outcomes, robust_accuracy
from .entries import Cost, Curve, Health, Median, Row, Summary
from .paper import paper_values
from .significance import median_interval, wilson_interval

__all__ = ["summarise"]


def summarise(results: Results) -> Summary:
    """Compute everything that is shown of a run, or of as much of it as is there."""
    suite, outcomes = results.suite, Outcomes(results)
    clean = {model: outcomes.clean(model) for model in results.models}
    attacked = {
        (model, attack.key): outcomes.attacked(model, attack)
        for model in results.models
        for attack in suite.attacks_of(model)
    }
    rows = [_row(CLEAN, "clean", None, None, clean)]
    elsewhere: list[Row] = []
    curves: list[Curve] = []
    medians: list[Median] = []
    for norm in suite.norms:
        attacks = [attack for attack in suite.attacks if attack.norm == norm]
        rows += _rows_of_norm(suite, norm, attacks, attacked)
        elsewhere += _rows_elsewhere(suite, norm, attacks, attacked)
        curves += _curves(results, norm, attacks, attacked)
        medians += _medians(norm, attacks, attacked)
    pairs = [(model, attack) for attack in suite.attacks for model in results.models]
    pairs = [(model, attack) for model, attack in pairs if len(outcomes.column("sample", model, attack.key))]
    return Summary(
        rows=tuple(row for row in rows if row.robust),
        grid=tuple(row for row in (*rows, *elsewhere) if row.robust),
        claims=tuple(_health(outcomes, model, attack) for model, attack in pairs),
        curves=tuple(curves),
        medians=tuple(medians),
        costs=tuple(_cost(outcomes, model, attack.key) for model, attack in pairs),
        paper=paper_values(results, clean, attacked),
        failures=results.failures,
        missing=results.missing,
    )


Attacked = Mapping[tuple[str, str], Distances]


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
    """Give, per model, what the worst of those attacks did that it was run under."""
    parts: dict[str, list[Distances]] = {}
    keys = {attack.key for attack in attacks}
    for (model, key), distances in attacked.items():
        if key in keys:
            parts.setdefault(model, []).append(distances)
    return {model: Outcomes.union(found) for model, found in parts.items()}


def _curves(results: Results, norm: Norm, attacks: Sequence[Attack], attacked: Attacked) -> Iterator[Curve]:
    everywhere = [attack for attack in attacks if attack.every_epsilon or attack.kind == "minimal norm"]
    epsilons = results.suite.threat_model(norm).epsilons
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


def _health(outcomes: Outcomes, model: str, attack: Attack) -> Health:
    columns = {
        name: outcomes.column(name, model, attack.key)
        for name in ("claimed", "success", "valid", "zero_gradient", "unstable")
    }
    claimed = columns["claimed"] & outcomes.right_clean(model, attack.key)
    if attack.against not in (None, model):  # the toolkit speaks of what it attacked
        claimed[:] = False
    return Health(
        model=model,
        attack=attack.key,
        examples=len(claimed),
        claimed=int(claimed.sum()),
        fell=int((claimed & ~columns["success"]).sum()),
        invalid=int((~columns["valid"]).sum()),
        zero_gradient=int(columns["zero_gradient"].sum()),
        unstable=int(columns["unstable"].sum()),
    )


def _cost(outcomes: Outcomes, model: str, attack: str) -> Cost:
    return Cost(
        model=model,
        attack=attack,
        **{
            name: float(outcomes.column(name, model, attack).mean())
            for name in ("seconds", "queries", "gradients")
        },
    )
