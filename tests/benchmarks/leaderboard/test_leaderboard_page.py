"""The leaderboard in a real browser, and from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from genrobust.benchmarks.leaderboard import build_leaderboard, render_leaderboard
from genrobust.cli.main import main

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

Submit = Callable[..., Path]


@pytest.fixture
def submissions(submit: Submit) -> Path:
    """A good one, one outside the ball, a damaged one, and one that means harm."""
    folder = submit("good").parent
    submit("outside", epsilon=0.1)
    (submit("damaged") / "images.npz").write_bytes(b"PK nothing")
    submit("markup", submitter=HOSTILE, attack=HOSTILE, link="https://example.org/?a=<b>&'\"")
    submit("markup in a failure", submitter=HOSTILE, model=HOSTILE)
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page(
    browser: webdriver.Chrome, run: Path, submissions: Path, width: int, tmp_path: Path
) -> None:
    page = tmp_path / "board.html"
    page.write_text(render_leaderboard(build_leaderboard([run], submissions=submissions)), encoding="utf-8")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    assert browser.find_elements(By.TAG_NAME, "img") == []
    heads = [head.text.splitlines()[0] for head in browser.find_elements(By.CSS_SELECTOR, "thead th")]
    assert heads == [
        *("model", "data set", "threat model", "clean", "worst verified", "attack", "draws", "images"),
        *("date", "source"),
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == 1
    (row,) = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert "lowered by" in row.text
    signs = [item.get_attribute("class") for item in browser.find_elements(By.CSS_SELECTOR, ".flags li")]
    assert sorted(filter(None, signs)) == ["quiet", "quiet", "raised", "raised", "raised"]
    told = browser.find_element(By.CSS_SELECTOR, ".flags").text
    assert "6 of 6 are outside" in told
    assert HOSTILE in told
    links = browser.find_elements(By.CSS_SELECTOR, ".flags a")
    assert all((link.get_attribute("href") or "").startswith("https://example.org/") for link in links)
    button = browser.find_element(By.CSS_SELECTOR, "thead button")
    button.click()
    status = browser.execute_script("return document.getElementById('status').textContent")
    assert status == "Sorted by model, ascending"
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1


def test_the_command(
    run: Path,
    submissions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "board.html"
    arguments = ["leaderboard", str(run), "--submissions", str(submissions), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["genrobust", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "1 row, 2 of 5 submissions count" in printed
    assert "failed outside: Expected every image within 0.1 of its test image" in printed
    assert HOSTILE not in out.read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["genrobust", "leaderboard", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "Expected a run in" in capsys.readouterr().err
