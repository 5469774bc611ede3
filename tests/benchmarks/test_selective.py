"""Outcomes by hand, and the command from weights to JSON."""

import json
from pathlib import Path

import pytest
import torch

from genrobust import load_dataset
from genrobust.benchmarks.selective import main, outcome
from genrobust.randomness import isolated_rng
from genrobust.zoo import save_model
from genrobust.zoo.recipes import build_model


def test_outcomes_by_hand() -> None:
    decisions, y = torch.tensor([0, 1, 3, 3, 2, 1, 1, 0]), torch.tensor([0, 1, 2, 0, 1, 1, 1, 2])
    found = outcome(decisions, y, num_classes=3)
    assert (found.accuracy, found.error, found.rejection) == (0.5, 0.25, 0.25)
    assert str(found) == "accuracy 50.00%, error 25.00%, rejection 25.00%"
    empty = outcome(decisions[:0], y[:0], num_classes=3)
    assert (empty.accuracy, empty.error, empty.rejection) == (0, 0, 0)


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.filters.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("foolbox")
    x, y = load_dataset("digits", "train").batch(slice(400))
    with isolated_rng(0):
        model = build_model("gmvae", "digits")
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            model.training_loss("elbo", x, y).backward()  # type: ignore[operator]
            optimizer.step()
    save_model(model, tmp_path / "model.safetensors")
    main(
        [
            *("--weights", str(tmp_path / "model.safetensors"), "--dataset", "digits"),
            *("--clean-images", "40", "--images", "12", "--adaptive-images", "3", "--steps", "2"),
            *("--threshold-steps", "2", "--epsilons", "0.1", "0.3", "--json", str(tmp_path / "r.json")),
        ]
    )
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["clean"]["images"] == 40
    for shares in (results["clean"]["selective"], *(row["selective"] for row in results["encoder"])):
        assert sum(shares.values()) == pytest.approx(1)
    assert [row["epsilon"] for row in results["encoder"]] == [0.06, 0.12, 0.18, 0.24, 0.3]
    assert [row["epsilon"] for row in results["adaptive"]] == [0.1, 0.3]
    for row in results["adaptive"]:
        assert row["either"]["error"] >= max(row["pgd"]["error"], row["thresholds"]["error"])
    printed = capsys.readouterr().out
    assert printed.count("FGSM on the encoder") == 5
    assert "paper" not in printed
    with pytest.raises(ValueError, match="Expected a GMVAE, but got CNN"):
        main(["--model", "cnn", "--dataset", "digits"])
