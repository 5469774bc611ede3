"""The throughput benchmark runs, compares equal results, and reports what it promises."""

import json
from pathlib import Path

import pytest
import torch

from genrobust.benchmarks.speed import deep_bayes
from genrobust.models import DeepBayes
from genrobust.models.deep_bayes import DeepBayesConfig
from genrobust.nets.conditionals import ConditionalArchitecture


def test_command_writes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = ConditionalArchitecture(input_shape=(1, 6, 6), latent_dim=2, channels=(), hidden=(4,))
    monkeypatch.setattr(deep_bayes, "DeepBayes", lambda: DeepBayes(DeepBayesConfig(architecture=arch)))
    deep_bayes.main(["--json", str(tmp_path / "speed.json"), "--seconds", "0.02", "--batch-sizes", "1", "4"])
    assert capsys.readouterr().out.count("images a second") == 2
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4]
    for row in rows:
        assert row["ratio_to_class_loop"] == row["images_per_second"] / row["class_loop"]
        assert row["ratio_to_sample_loop"] == row["images_per_second"] / row["sample_loop"]


@pytest.mark.parametrize("samples_at_once", [1, 3, 10])
def test_the_loop_gives_the_same_scores(samples_at_once: int) -> None:
    arch = ConditionalArchitecture(input_shape=(1, 6, 6), latent_dim=2, channels=(3,), hidden=(4,))
    model = DeepBayes(DeepBayesConfig(architecture=arch)).double()
    x = torch.rand((3, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = deep_bayes.loop(model, x, samples_at_once=samples_at_once)
    torch.testing.assert_close(scores, model.class_scores(x))
