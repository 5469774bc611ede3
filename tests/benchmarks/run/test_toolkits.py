import importlib
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from eagerpy.astensor import astensor

from genrobust.adapters import contract
from genrobust.adapters.contract import AttackEntry, Crafted, resolve
from genrobust.benchmarks.run import toolkits
from genrobust.benchmarks.run.toolkits import check_attack, craft, goals_of, starting_points
from genrobust.benchmarks.suites.files import load_suite
from genrobust.benchmarks.suites.model import Attack
from genrobust.checks import valid_images
from genrobust.contract import Classifier
from genrobust.data import ImageDataset
from genrobust.models import ABS, CNN, EABS

DIGITS = load_suite("digits")

FGSM = DIGITS.attack("fgsm")


def skip_without(toolkit: str) -> None:
    if toolkit not in contract.available():
        pytest.skip(f"{toolkit} is not installed")


def run(attack: Attack, model: Classifier, digits: ImageDataset, count: int = 4, **arguments: Any) -> Any:
    x, y = digits.batch(slice(count))
    epsilon = DIGITS.threat_model(attack.norm).epsilon if attack.kind == "fixed epsilon" else None
    pool = digits.batch(slice(20, 50))
    return x, y, craft(attack, model, x, y, epsilon=epsilon, seed=3, pool=pool, **arguments)


@pytest.mark.parametrize("key", [attack.key for attack in DIGITS.attacks])
def test_every_attack_of_digits_runs_and_repeats(
    key: str, fast_attacks: dict[str, Attack], cnn: CNN, digits: ImageDataset
) -> None:
    x, y, first = run(fast_attacks[key], cnn, digits)
    _, _, second = run(fast_attacks[key], cnn, digits)
    assert torch.equal(first.images, second.images)
    assert first.images.shape == x.shape
    assert valid_images(first.images).all()
    if fast_attacks[key].toolkit == "genrobust":  # our own attacks claim nothing
        assert first.claimed is None
        return
    wrong = cnn(first.images.clamp(0, 1)).argmax(1) != y
    assert torch.equal(first.claimed, wrong)  # a CNN decides the same way twice


@pytest.mark.parametrize("key", ["fgsm", "deepfool-l2", "boundary"])
def test_attacks_run_on_generative_classifiers(
    key: str, fast_attacks: dict[str, Attack], abs_model: ABS, digits: ImageDataset
) -> None:
    attack = replace(fast_attacks[key], parameters={} if key == "fgsm" else {"steps": 2})
    x, _, crafted = run(attack, abs_model, digits, count=2)
    assert crafted.images.shape == x.shape


def test_eot_draws_come_from_the_seed(eabs_model: EABS, digits: ImageDataset) -> None:
    _, _, first = run(FGSM, eabs_model, digits, count=2, eot=2)
    _, _, second = run(FGSM, eabs_model, digits, count=2, eot=2)
    assert torch.equal(first.images, second.images)


def test_attacks_leave_no_trace(cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    run(fast_attacks["pgd-l2"], cnn, digits)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in cnn.parameters())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert str(before[2]) == str(after)


def test_restarts_find_at_least_as_much(
    cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]
) -> None:
    once = replace(fast_attacks["pgd-l2"], parameters={"steps": 1})
    _, _, single = run(once, cnn, digits, count=40)
    _, _, several = run(replace(once, restarts=4), cnn, digits, count=40)
    assert several.claimed.sum() >= single.claimed.sum()


def test_starting_points_are_labelled_otherwise_and_near(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(10))
    pool = digits.batch(slice(100, 140))
    points, found = starting_points(cnn, x, y, pool)
    assert found.all()
    assert (cnn(points).argmax(1) != y).all()
    nearest = torch.cdist(x.flatten(1), pool[0].flatten(1)).median(1).values
    assert ((points - x).flatten(1).norm(dim=1) < nearest).all()


def test_without_a_starting_point_an_image_is_left_alone(
    cnn: CNN, digits: ImageDataset, fast_attacks: dict[str, Attack]
) -> None:
    x, y = digits.batch(slice(6))
    members = digits.labels == y[0]
    pool = digits.images[members][:5] / 255, digits.labels[members][:5]
    crafted = craft(fast_attacks["boundary"], cnn, x, y, epsilon=None, seed=0, pool=pool)
    alone = y == y[0]
    assert torch.equal(crafted.images[alone], x[alone])
    assert not crafted.claimed[alone].any()
    assert crafted.claimed[~alone].all()


def test_an_attack_that_leaves_the_images_goes_on(
    cnn: CNN, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wild(foolbox.attacks.base.MinimizationAttack):
        distance = foolbox.distances.l2

        def run(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            bad = inputs.raw.clone()
            bad[0] = torch.nan
            bad[1] = 1.4
            leaf = bad.requires_grad_()
            model(leaf).sum().backward()
            everywhere = model(astensor(torch.full_like(bad, torch.inf))).raw
            assert everywhere.isnan().all()
            return astensor(bad.detach())

    monkeypatch.setattr(foolbox.attacks, "Wild", Wild, raising=False)
    found = resolve("foolbox", "DDNAttack")[0], AttackEntry(name="Wild", norm="l2", knowledge="white")
    monkeypatch.setattr(toolkits, "resolve", lambda *_: found)
    attack = Attack(key="wild", title="wild", norm="l2", kind="minimal norm", name="Wild")
    x, y, crafted = run(attack, cnn, digits)
    assert crafted.images[0].isnan().all()
    assert torch.equal(crafted.images[2:], x[2:])
    assert torch.equal(crafted.claimed[:2], y[:2] != 0)  # Foolbox takes NaN logits for class 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "LinfFastGradientAtack"}, "did you mean 'LinfFastGradientAttack'"),
        ({"name": "DDNAttack"}, "`kind` 'fixed epsilon'"),
        ({"parameters": {"random_strat": True}}, "`parameters of fgsm`.*'random_strat'.*'random_start'"),
        ({"toolkit": "torchattacks", "name": "PGD", "parameters": {"stepz": 3}}, "did you mean 'steps'"),
        ({"toolkit": "art", "name": "FastGradientMethod", "parameters": {"eps_stp": 3}}, "'eps_step'"),
        ({"toolkit": "advertorch", "name": "LinfPGDAttack", "parameters": {"nb_itr": 3}}, "'nb_iter'"),
        ({"toolkit": "robustbench", "name": "square", "parameters": {"queries": 3}}, "'n_queries'"),
        ({"targeted": True}, "cannot be told a class"),
        ({"start_from_images": True}, "takes no starting points"),
        (
            {"parameters": {"random_start": "no"}},
            "`random_start` of 'fgsm' to be true or false, but got 'no'",
        ),
        (
            {"name": "LinfProjectedGradientDescentAttack", "parameters": {"steps": -5}},
            "`steps` of 'fgsm' to be at least 0, but got -5",
        ),
        ({"name": "L2FastGradientAttack"}, "to be 'l2', the norm of L2FastGradientAttack, but got 'linf'"),
        ({"toolkit": "torchattacks", "name": "PGDL2"}, "to be 'l2', the norm of PGDL2, but got 'linf'"),
        (
            {"toolkit": "advertorch", "name": "L2PGDAttack"},
            "to be 'l2', the norm of L2PGDAttack, but got 'linf'",
        ),
        ({"toolkit": "genrobust", "name": "L2PGD"}, "to be 'l2', the norm of L2PGD, but got 'linf'"),
    ],
)
def test_what_the_toolkit_does_not_know_is_refused(change: dict[str, Any], message: str) -> None:
    skip_without(change.get("toolkit", "foolbox"))
    with pytest.raises(ValueError, match=message):
        check_attack(replace(FGSM, **change))


@pytest.mark.parametrize(
    ("alias", "name"), [("LinfPGD", "LinfProjectedGradientDescentAttack"), ("FGSM", FGSM.name)]
)
def test_a_toolkits_other_name_is_the_same_attack(
    alias: str, name: str, cnn: CNN, digits: ImageDataset, tmp_path: Path
) -> None:
    named, known = replace(FGSM, name=alias), replace(FGSM, name=name)
    check_attack(named)
    assert torch.equal(run(named, cnn, digits)[2].images, run(known, cnn, digits)[2].images)
    path = tmp_path / "mine.toml"
    path.write_text(
        f"""
dataset = "digits"
threat_models = [{{ norm = "linf", epsilon = 0.1 }}]
[[attacks]]
key = "mine"
title = "mine"
norm = "linf"
kind = "fixed epsilon"
name = "{alias}"
""",
        encoding="utf-8",
    )
    assert load_suite(path).attack("mine").name == alias


def test_a_whole_number_of_steps_may_be_written_with_a_point(cnn: CNN, digits: ImageDataset) -> None:
    made = [
        run(replace(FGSM, name="LinfPGD", parameters={"steps": steps}), cnn, digits)[2].images
        for steps in (3, 3.0)
    ]
    assert torch.equal(made[0], made[1])


def test_a_suite_keeps_the_catalogues_parameters(
    cnn: CNN, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("torchattacks")
    seen: dict[str, Any] = {}
    adapter = resolve("torchattacks", "CW")[0]

    def build(name: str, parameters: Any, *arguments: Any) -> Any:
        seen.update(parameters)
        return built(name, parameters, *arguments)

    module = importlib.import_module(adapter.implementation)
    built = module._build
    monkeypatch.setattr(module, "_build", build)
    attack = Attack(
        key="cw",
        title="cw",
        norm="l2",
        kind="minimal norm",
        name="CW",
        toolkit="torchattacks",
        parameters={"steps": 5},
    )
    run(attack, cnn, digits, count=2)
    assert seen == {**adapter.attack("CW").parameters, "steps": 5}
    assert (seen["c"], seen["lr"]) == (10, 0.1)


@pytest.mark.parametrize("entry", resolve("foolbox", "PGD")[0].attacks, ids=lambda entry: entry.name)
def test_foolbox_in_suites_obeys_its_catalogue(entry: AttackEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AttackEntry] = []

    class Implementation:
        def wrap(self, *_: Any, **options: Any) -> Any:
            assert options.items() >= entry.options.items()

        def accepts(self, _: str) -> Mapping[str, Any]:
            return contract.keywords("steps")

        def craft(self, given: AttackEntry, *batch: Any, **_: Any) -> Crafted:
            seen.append(given)
            return Crafted(batch[1])

    monkeypatch.setattr(contract.Adapter, "load", lambda _: Implementation())
    for parameters in ({}, {"steps": 3}):
        attack = Attack(
            key="it", title="it", norm="l2", kind="minimal norm", name=entry.name, parameters=parameters
        )
        craft(attack, CNN(), torch.rand(1, 1, 28, 28), torch.zeros(1).long(), epsilon=None, seed=0)
        assert seen[-1].parameters == {**entry.parameters, **parameters}


def test_boundary_needs_a_pool(cnn: CNN, digits: ImageDataset) -> None:
    x, y = digits.batch(slice(2))
    with pytest.raises(ValueError, match="`pool`"):
        craft(DIGITS.attack("boundary"), cnn, x, y, epsilon=None, seed=0)


def test_a_targeted_attack_goes_for_one_other_class_that_its_seed_draws(
    cnn: CNN, digits: ImageDataset
) -> None:
    attack = replace(FGSM, name="LinfProjectedGradientDescentAttack", parameters={"steps": 30}, targeted=True)
    x, y = digits.batch(slice(40))
    goals = goals_of(attack, y, 10, seed=3)
    assert goals is not None
    assert (goals != y).all()
    assert set(((goals - y) % 10).tolist()) == set(range(1, 10))
    assert torch.equal(goals, goals_of(attack, y, 10, seed=3))  # type: ignore[arg-type]
    assert goals_of(FGSM, y, 10, seed=3) is None
    found = craft(attack, cnn, x, y, goals=goals, epsilon=0.3, seed=3)
    reached = cnn(found.images).argmax(1) == goals
    assert torch.equal(found.claimed, reached)
    assert reached.float().mean() > 0.5


def test_examples_of_a_model_that_reads_two_levels_change_only_what_it_reads(
    abs_model: ABS, digits: ImageDataset
) -> None:
    binary = abs_model.binarized()
    attack = replace(DIGITS.attack("pgd-l2"), parameters={"steps": 4, "rel_stepsize": 0.5})
    x, y = digits.batch(slice(3))
    found = craft(attack, binary, x, y, epsilon=4.0, seed=0).images
    plain = craft(attack, abs_model, x, y, epsilon=4.0, seed=0).images
    flipped = (found >= 0.5) != (x >= 0.5)
    assert flipped.any()
    assert torch.equal(found[~flipped], x[~flipped])
    assert (found[flipped] - 0.5).abs().max() < 1e-6
    assert (plain != x).sum() > (found != x).sum()
