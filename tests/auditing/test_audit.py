"""Oracles of an audit: a linear model, of which everything is known; verdicts, seeds, and what is printed."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genrobust import as_classifier, load_dataset, load_model
from genrobust.attacks.contest import contest
from genrobust.attacks.pgd import Ball
from genrobust.attacks.random_search import random_search
from genrobust.auditing import AuditBudget, AuditReport, audit
from genrobust.auditing.black_boxes import decision_run, estimated_run
from genrobust.auditing.checks import CHECKS
from genrobust.auditing.crafting import pgd_run
from genrobust.auditing.findings import accuse, share
from genrobust.auditing.subject import Subject

QUICK = AuditBudget(
    steps=20, starts=2, queries=50, noise=6, draws=3, eot=2, eot_ladder=(1, 2), directions=3, probes=24
)


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of 3 classes on 6 x 6 images that it classifies, away from the ends of the range."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn((3, 36), generator=generator))
        net[1].bias.copy_(-0.5 * net[1].weight.sum(1))
    images = 0.3 + 0.4 * torch.rand((24, 1, 6, 6), generator=generator)
    return net, images, net(images).argmax(1)


def report_of(norm: str, epsilon: float, *checks: str, seed: int = 0) -> AuditReport:
    net, images, labels = linear()
    return audit(
        net,
        images,
        labels,
        norm=norm,  # type: ignore[arg-type]
        epsilon=epsilon,
        budget=QUICK,
        checks=checks or None,
        seed=seed,
        show_progress=False,
    )


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_what_is_believable_of_a_linear_model_is_what_is_true(norm: str, dual: int) -> None:
    net, images, labels = linear()
    weight = net[1].weight.detach()  # type: ignore[union-attr,index]
    lead = net(images).detach()
    margins = torch.full((24,), math.inf)
    for other in range(3):
        rows = labels != other
        slope = (weight[labels] - weight[other]).norm(p=dual, dim=1)
        reach = (lead.gather(1, labels[:, None])[:, 0] - lead[:, other]) / slope
        margins = torch.where(rows, torch.minimum(margins, reach), margins)
    epsilon = float(margins.sort().values[11:13].mean())  # half of the images are nearer to a boundary
    report = report_of(norm, epsilon)
    assert report.believable.value == pytest.approx(0.5, abs=0.5 / 24)
    assert not [found.check for found in report.findings if found.verdict == "fails"]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.3)])
def test_the_active_test_of_a_linear_model_always_succeeds(norm: str, epsilon: float) -> None:
    found = report_of(norm, epsilon, "active test").finding("active test")
    assert found.verdict == "pass"
    assert found.measures[1].value == 1.0
    assert found.measures[2].value < 1.0


def test_the_slope_of_a_linear_model_is_its_gradient() -> None:
    found = report_of("l2", 0.3, "differences").finding("differences")
    assert found.measures[0].value == 0.0
    assert found.measures[1].value == pytest.approx(1.0, abs=1e-3)


def test_one_seed_gives_one_report() -> None:
    first, second = (report_of("linf", 0.05).as_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    json.dumps(first, allow_nan=False)


def test_every_check_answers_once() -> None:
    report = report_of("linf", 0.05)
    assert [found.check for found in report.findings] == list(CHECKS)
    assert all(found.question.endswith("?") and found.meaning.endswith(".") for found in report.findings)


@given(count=st.integers(0, 200), bad=st.floats(0, 1))
def test_a_verdict_follows_the_interval(count: int, bad: float) -> None:
    measure = share("bad", torch.arange(count) < round(bad * count))
    verdict = accuse(measure)
    if count < 4:
        assert verdict in ("undecided", "fails", "suspicious")
    if verdict == "fails":
        assert measure.low is not None
        assert measure.low > 0.25
    if verdict == "pass":
        assert measure.value <= 0.05


def test_no_image_is_undecided() -> None:
    empty = share("bad", torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    assert accuse(empty) == "undecided"
    assert empty.as_json()["value"] is None


def test_a_contest_counts_rejection_as_lost() -> None:
    logits = torch.tensor([[1.0, 0.5, 2.0], [0.0, 3.0, 2.0]])
    columns = contest(lambda _: logits, torch.tensor([0, 0]), 2)(torch.zeros(2))
    assert columns.tolist() == [[2.0, 0.5], [2.0, 3.0]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_search_climbs_within_the_ball(norm: str) -> None:
    x = torch.rand((5, 2, 6, 7), generator=torch.Generator().manual_seed(1))
    weight = torch.randn((2, 6, 7), generator=torch.Generator().manual_seed(2))
    scores = []

    def score(images: Tensor) -> Tensor:
        found = (images * weight).flatten(1).sum(1)
        scores.append(found)
        return found

    ball = Ball(norm, 0.2)  # type: ignore[arg-type]
    best, highest = random_search(score, x, ball=ball, queries=60, generator=torch.Generator().manual_seed(3))
    assert len(scores) == 60
    assert torch.equal(highest, torch.stack(scores).amax(0))
    assert torch.allclose((best * weight).flatten(1).sum(1), highest)
    order = {"linf": math.inf, "l2": 2}[norm]
    assert ((best - x).flatten(1).norm(p=order, dim=1) <= 0.2 * (1 + 1e-5)).all()
    assert ((best >= 0) & (best <= 1)).all()
    assert (highest > scores[0]).all()


def subject_of(norm: str, epsilon: float, **budget: int) -> Subject:
    net, images, labels = linear()
    model = as_classifier(net, images)
    return Subject(
        model=model,
        attacked=model,
        images=images,
        labels=labels,
        norm=norm,  # type: ignore[arg-type]
        epsilon=epsilon,
        seed=0,
        budget=replace(QUICK, **budget),
    )


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.05), ("l2", 0.3)])
def test_estimated_slopes_of_a_linear_model_lead_where_its_gradient_does(norm: str, epsilon: float) -> None:
    subject = subject_of(norm, epsilon, queries=400)
    blind, white = estimated_run(subject).margins, pgd_run(subject).margins
    gained = (blind[:2].mean(0) - blind.amin(0)) / (blind[:2].mean(0) - white.amin(0))
    assert gained.median() > 0.8
    assert len(blind) == 401


def test_a_walk_by_decisions_ends_near_the_boundary_of_a_linear_model() -> None:
    subject = subject_of("l2", 5.0, queries=2000)
    found = decision_run(subject)
    assert 1950 < len(found.margins) <= 2000
    assert not found.robust.any()
    net, images, labels = linear()
    weight, lead = net[1].weight.detach(), net(images).detach()  # type: ignore[union-attr,index]
    slopes = (weight[labels][:, None] - weight[None]).norm(dim=2)
    apart = (lead.gather(1, labels[:, None]) - lead) / slopes
    optimum = apart.nan_to_num(nan=math.inf).where(slopes > 0, math.inf).amin(1)
    ratio = (found.final - images).flatten(1).norm(dim=1) / optimum
    assert ratio.min() > 0.99
    assert ratio.median() < 1.5


def test_a_run_keeps_the_image_of_the_least_margin() -> None:
    labels = linear()[2]
    subject = subject_of("linf", 0.05)
    model = subject.model
    run = pgd_run(subject)
    assert pgd_run(subject) is run  # checks share it
    assert len(run.margins) == QUICK.steps + 1
    columns = contest(model, labels, 3)(run.images).detach()
    assert torch.allclose(columns[:, 0] - columns[:, 1], run.margins.amin(0), atol=1e-5)


@pytest.mark.slow
def test_an_optimising_model_is_attacked_with_a_smaller_budget_than_it_decides_with() -> None:
    model = load_model("eabs", dataset="digits")
    images, labels = load_dataset("digits", "test").batch(slice(2))
    budget = AuditBudget.fitting(model)
    assert budget.steps < AuditBudget().steps
    report = audit(
        model.with_inference(candidates=30, steps=2),
        images,
        labels,
        epsilon=0.1,
        checks=["zero gradient"],
        budget=AuditBudget(steps=2, starts=1, draws=2, eot=1),
        show_progress=False,
    )
    assert report.finding("zero gradient").measures[0].value == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "`norm`"),
        ({"epsilon": 0}, "`epsilon`"),
        ({"checks": ["colour"]}, "`checks`"),
        ({"labels": torch.zeros(3)}, "`labels`"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_types")
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    net, images, labels = linear()
    arguments = {"labels": labels, "norm": "linf", "epsilon": 0.1, "show_progress": False, **changes}
    with pytest.raises(ValueError, match=message):
        audit(net, images, **arguments)  # type: ignore[arg-type]


def test_a_budget_below_one_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="`steps`"):
        AuditBudget(steps=0)


def test_the_page_loads_nothing_and_escapes_names(tmp_path: object) -> None:
    net, images, labels = linear()
    report = audit(net, images, labels, epsilon=0.05, budget=QUICK, name="<b>mine</b>", show_progress=False)
    page = report.as_html()
    assert "<b>mine" not in page
    assert "&lt;b&gt;mine" in page
    assert "believable up to here" in page
    assert "src=" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
