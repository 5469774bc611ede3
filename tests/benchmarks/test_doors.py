"""What `evaluate` is given: whose numbers come back, and none without all its cells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genrobust
from genrobust.benchmarks.evaluate import Evaluation, IncompleteRunError, evaluate
from genrobust.benchmarks.suites.model import Suite, ThreatModel
from genrobust.models import CNN

RIGHT = "select avg((clean_prediction = label)::int) as r from rows where attack = 'clean'"


@pytest.fixture
def few(small_suite: Suite) -> Suite:
    attack = replace(small_suite.attack("pgd-linf"), parameters={"steps": 2})
    return replace(small_suite, attacks=(attack,), samples=4)


def run(model: Any, suite: Suite, **settings: Any) -> Evaluation:
    return evaluate(model, suite, show_progress=False, **settings)


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.normal_(net[1].weight, generator=torch.Generator().manual_seed(0))
    return net


def test_a_folder_goes_on_with_its_own_function_only(few: Suite, cnn: CNN, tmp_path: Path) -> None:
    assert run(lambda x: cnn(x), few, out=tmp_path).query(RIGHT)["r"].to_pylist() != [0.0]
    with pytest.raises(ValueError, match=r"these differ: models\.model\.behaviour"):
        run(lambda x: -cnn(x), few, out=tmp_path)


def test_an_own_network_is_not_replaced_by_one_of_the_zoo(few: Suite) -> None:
    with pytest.raises(ValueError, match="other names in `compare_with` than in `model`, but both have"):
        run({"cnn": linear()}, few, compare_with=("cnn",))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attacks_have_gradients_wherever_they_are_called(few: Suite, cnn: CNN, context: Any) -> None:
    expected = run(cnn, few).rows.drop_columns(["seconds"])
    with context():
        found = run(cnn, few)
    assert found.rows.drop_columns(["seconds"]).equals(expected)
    assert max(found.rows["gradients"].to_pylist()) > 0


@pytest.mark.usefixtures("registrations_taken_back")
def test_a_failed_attack_leaves_no_number(few: Suite, cnn: CNN) -> None:
    @genrobust.register_attack("Failing", norm="linf")
    def failing(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(IncompleteRunError, match=r"1 are missing \(model/Failing@0\.2/.*out of") as error:
        run(cnn, replace(few, batch_size=4), attacks=[failing])
    found = error.value.evaluation
    assert found.results.missing == 1
    assert {row.key for row in found.summary().rows} == {"clean", "pgd-linf"}


@pytest.mark.parametrize("seed", [np.int64(1), np.uint8(1), 1.0])
def test_numbers_of_numpy_are_numbers(few: Suite, cnn: CNN, seed: Any) -> None:
    suite = replace(
        few,
        attacks=(replace(few.attacks[0], parameters={"steps": np.int64(2)}),),
        threat_models=(ThreatModel(norm="linf", epsilon=np.float32(0.2)),),  # type: ignore[arg-type]
    )
    found = run(cnn, suite, seed=seed, samples=np.int32(2))
    assert found.results.manifest["seed"] == 1
    assert len(found.results.samples) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": None}, "`seed` to be an integer, but got None"),
        ({"seed": True}, "`seed` to be an integer, but got True"),
        ({"seed": -1}, "`seed` to be at least 0"),
        ({"seed": 10**30}, "`seed` to be at least 0 and below"),
        ({"samples": True}, "`samples` to be an integer, but got True"),
        ({"samples": 2.5}, "`samples` to be an integer, but got 2.5"),
        ({"samples": "3"}, "`samples` to be an integer, but got '3'"),
        ({"samples": 0}, "`samples` to be at least 1, but got 0"),
        ({"jobs": 1.5}, "`jobs` to be an integer, but got 1.5"),
        ({"jobs": True}, "`jobs` to be an integer, but got True"),
        ({"compare_with": "cnn"}, "`compare_with` to be a sequence, but got 'cnn'"),
        ({"attacks": "LinfPGD"}, "`attacks` to be a list of attacks, but got 'LinfPGD'"),
        ({"engine": None}, "`engine` to be one of 'local', 'dask', 'ray', but got None"),
        ({"dataset": 3}, "`dataset` to be a string, but got 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_before_anything_runs(
    few: Suite, cnn: CNN, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(cnn, few, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_suite_is_a_name_a_path_or_a_suite(cnn: CNN) -> None:
    with pytest.raises(ValueError, match="a suite, its name or the path of a file, but got int"):
        run(cnn, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`scale` to be one of 'small', 'paper', but got None"):
        evaluate(cnn, "quick", scale=None)  # type: ignore[arg-type]


def test_no_image_is_that_far(few: Suite, cnn: CNN) -> None:
    suite = replace(few, threat_models=(ThreatModel(norm="linf", epsilon=8),))
    with pytest.raises(ValueError, match=r"at most 1, .*, but got 8: did you mean 8/255\?"):
        run(cnn, suite)


def test_an_attack_keeps_to_the_norm_of_its_row(few: Suite, cnn: CNN) -> None:
    wrong = replace(few.attacks[0], norm="l2")
    with pytest.raises(ValueError, match=r"`norm` of 'pgd-linf' to be 'linf', the norm of .*, but got 'l2'"):
        run(cnn, replace(few, attacks=(wrong,), threat_models=(ThreatModel(norm="l2", epsilon=2.0),)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_networks_of_other_number_formats_are_evaluated(few: Suite) -> None:
    for net in (
        linear().bfloat16(),
        linear().half(),
        linear().double(),
        torch.ao.quantization.quantize_dynamic(linear(), {nn.Linear}),
    ):
        found = run(net, replace(few, attacks=()), samples=2)
        assert found.rows.num_rows == 2


def test_nan_is_wrong_and_never_class_0(few: Suite) -> None:
    found = run(lambda x: x.flatten(1)[:, :10] * torch.nan, few, samples=20)
    assert set(found.rows["prediction"].to_pylist()) == {None}
    assert set(found.rows["clean_prediction"].to_pylist()) == {-1}
    assert found.summary().rows[0].accuracy("model").count == 0
    (health,) = found.summary().claims
    assert (health.examples, health.undefined) == (20, 20)
    assert any("NaN or infinite" in note for note in found.table().notes)


@pytest.mark.usefixtures("registrations_taken_back")
def test_the_one_reason_for_which_all_claims_fell_is_said(few: Suite, cnn: CNN) -> None:
    @genrobust.register_attack("Far", norm="linf")
    def far(model: Any, x: Tensor, y: Tensor, *, epsilon: float, generator: Any) -> Tensor:
        return 1 - x

    found = run(cnn, replace(few, attacks=()), attacks=[far])
    (health,) = found.summary().claims
    assert 0 < health.claimed == health.fell
    note = f"Every claim of Far against model fell, {health.fell} of them: they are outside the ball."
    assert note in found.table().notes


def test_an_attack_that_changes_nothing_is_named(few: Suite, cnn: CNN) -> None:
    attack = replace(few.attacks[0], parameters={"steps": 0, "random_start": False})
    found = run(cnn, replace(few, attacks=(attack,)))
    assert any("changed no image" in note for note in found.table().notes)


def test_a_network_keeps_its_mode_and_its_input(few: Suite, cnn: CNN) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10)).train()
    net[1].eval()
    run(net, few)
    assert [part.training for part in net] == [True, False, True]
    plain, in_place = (
        run(function, few).rows.drop_columns(["seconds"])
        for function in (lambda x: cnn(x * 0.5), lambda x: cnn(x.mul_(0.5)))
    )
    assert plain.equals(in_place)


def test_a_query_sees_the_rows_and_no_file(few: Suite, cnn: CNN, tmp_path: Path) -> None:
    found = run(cnn, few)
    (tmp_path / "secret.txt").write_text("secret")
    for query in (
        f"select * from read_text('{tmp_path}/secret.txt')",
        f"select * from glob('{tmp_path}/*')",
        f"copy (select 1) to '{tmp_path}/written.parquet'",
        f"attach '{tmp_path}/written.db'",
        f"export database '{tmp_path}/written'",
        "set enable_external_access = true",
    ):
        with pytest.raises(ValueError, match="a query"):
            found.query(query)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert found.query("select count(*) as n from rows")["n"].to_pylist() == [8]
