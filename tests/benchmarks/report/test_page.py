"""The page in a real browser."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SMALL, add_galleries, make_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from genrobust.benchmarks.report import describe, render_page
from genrobust.benchmarks.report.curves import STYLES, mark, style
from genrobust.benchmarks.run.cells import Cell
from genrobust.benchmarks.run.results import load_results
from genrobust.benchmarks.suites.model import Expected, SuiteModel

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

SUITE = replace(
    SMALL,
    title="Table 1",
    paper="Ju & Wagner 2020",
    reduced=("20 images instead of 1,000.",),
    models=(*SMALL.models, SuiteModel(name="abs", title="ABS")),
    attacks=(*SMALL.attacks[:3], replace(SMALL.attacks[3], for_models=("cnn", "eabs"))),
    expected=(
        Expected(model="eabs", attack="ddn", value=0.906, images=1000),
        Expected(model="cnn", attack="clean", value=0.995, images=10000),
    ),
)


def uneven(cell: Cell, columns: dict[str, Any]) -> None:
    """Models differ on clean images, and E-ABS refuses some."""
    if cell.attack == "clean":
        wrong = {"cnn": 3, "abs": 1, "eabs": 0}[cell.model]
        columns["clean_prediction"] = np.where(np.arange(len(columns["label"])) < wrong, 99, columns["label"])
    if cell.model == "eabs" and cell.attack == "ddn":
        columns["rejected"] = ~columns["success"] & (np.arange(len(columns["label"])) % 3 == 0)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one run with galleries."""
    folder = make_run(tmp_path_factory.mktemp("one"), SUITE, samples=20, change=uneven)
    add_galleries(folder, SUITE)
    path = folder / "report.html"
    path.write_text(render_page([describe(load_results(folder))]))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs: one that is not finished, and one whose suite means harm."""
    part = make_run(tmp_path_factory.mktemp("part"), SUITE, left_out=lambda cell: cell.attack == "ddn")
    titles = tuple(replace(model, title=HOSTILE) for model in SUITE.models)
    attacks = tuple(replace(attack, title=HOSTILE) for attack in SUITE.attacks)
    suite = replace(SUITE, title=HOSTILE, paper=HOSTILE, reduced=(HOSTILE,), models=titles, attacks=attacks)
    hostile = make_run(tmp_path_factory.mktemp("hostile"), suite)
    add_galleries(hostile, suite, channels=3)
    path = hostile / "report.html"
    runs = [load_results(folder, partial=True) for folder in (part, hostile)]
    path.write_text(render_page([describe(results) for results in runs]))
    return path


@pytest.fixture(params=["page", "two"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def show(browser: webdriver.Chrome, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # empties it
    browser.get(path.as_uri())


def head(browser: webdriver.Chrome, column: int, table: str = "run-1-table-leaderboard") -> WebElement:
    return browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")[column]


def first_cells(browser: webdriver.Chrome, table: str = "run-1-table-leaderboard") -> list[str]:
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody th")]


@pytest.mark.parametrize(
    "press",
    [
        lambda button: button.click(),
        lambda button: button.send_keys(Keys.ENTER),
        lambda button: button.send_keys(Keys.SPACE),
    ],
    ids=["click", "enter", "space"],
)
def test_sorting(browser: webdriver.Chrome, page: Path, press: Callable[[WebElement], None]) -> None:
    show(browser, page)
    assert first_cells(browser) == ["CNN", "E-ABS", "ABS"]
    assert head(browser, 1).get_attribute("aria-sort") == "none"
    press(head(browser, 1).find_element(By.TAG_NAME, "button"))
    assert first_cells(browser) == ["E-ABS", "ABS", "CNN"]  # clean accuracy, the best first
    assert head(browser, 1).get_attribute("aria-sort") == "descending"
    assert "clean, descending" in str(
        browser.execute_script("return document.getElementById('status').textContent")
    )
    press(head(browser, 1).find_element(By.TAG_NAME, "button"))
    assert first_cells(browser) == ["CNN", "ABS", "E-ABS"]
    assert head(browser, 1).get_attribute("aria-sort") == "ascending"
    press(head(browser, 0).find_element(By.TAG_NAME, "button"))
    assert first_cells(browser) == ["ABS", "CNN", "E-ABS"]
    assert [head(browser, k).get_attribute("aria-sort") for k in (0, 1)] == ["ascending", "none"]


def test_tab_reaches_the_skip_link_first_and_every_sort_button(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    reached = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element)
        if len(reached) == 1:
            assert reached[0].text == "Skip to the results"
            assert reached[0].rect["y"] >= 0
    buttons = browser.find_elements(By.CSS_SELECTOR, "#run-1-table-leaderboard thead button")
    assert len(buttons) == 5
    assert all(button in reached for button in buttons)
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"


def test_numbers_sort_as_numbers_and_what_is_missing_comes_last(
    browser: webdriver.Chrome, page: Path
) -> None:
    show(browser, page)
    table = "run-1-table-attacks-l2"
    for direction in (-1, 1):
        head(browser, 3, table).find_element(By.TAG_NAME, "button").click()
        cells = browser.find_elements(By.CSS_SELECTOR, f"#{table} tbody td:nth-child(4)")
        *known, missing = [cell.text.splitlines()[0] for cell in cells]
        assert missing == "\N{EN DASH}"
        shares = [direction * float(text.removesuffix("%")) for text in known]
        assert shares == sorted(shares)


def test_the_console_is_silent(browser: webdriver.Chrome, either: Path) -> None:
    show(browser, either)
    for button in browser.find_elements(By.CSS_SELECTOR, "thead button")[:6]:
        button.click()
    assert browser.get_log("browser") == []


def test_a_broken_page_would_not_be_silent(browser: webdriver.Chrome, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('"use strict";', '"use strict"; absent();'))
    show(browser, broken)
    assert WebDriverWait(browser, 10).until(lambda seen: seen.get_log("browser"))


@pytest.mark.parametrize("width", [390, 320, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, either: Path, width: int) -> None:
    show(browser, either, width=width)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wider = (
        "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    if width == 320:
        assert browser.execute_script(wider) > 0, "nothing was wide enough to put this to the test"


def test_images_are_there_and_described(browser: webdriver.Chrome, either: Path) -> None:
    show(browser, either)
    images = browser.find_elements(By.TAG_NAME, "img")
    # two samples of every attack: three images, and ten reconstructions of E-ABS; ABS has an attack less
    assert len(images) == 2 * (4 * 3 + 4 * 13 + 3 * 3)
    facts = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length, i.src.slice(0, 15)])"
    )
    for complete, width, described, source in facts:
        assert complete
        assert width == 8
        assert described > 10
        assert source == "data:image/png;"
    drawings = browser.find_elements(By.CSS_SELECTOR, "figure > svg[role=img]")
    assert all("Accuracy against" in (svg.get_attribute("aria-label") or "") for svg in drawings)
    assert len(drawings) >= 2


def test_the_dark_scheme_is_dark(browser: webdriver.Chrome, page: Path) -> None:
    colors = {}
    script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    for scheme in ("light", "dark"):
        show(browser, page, scheme=scheme)
        colors[scheme] = [brightness(color) for color in browser.execute_script(script)]
    assert colors["light"][0] > 0.9 > 0.1 > colors["light"][1]
    assert colors["dark"][0] < 0.1 < 0.7 < colors["dark"][1]


def channels(color: str) -> list[float]:
    return [float(value) for value in re.findall(r"[\d.]+", color)][:3]


def brightness(color: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [value / 255 for value in channels(color)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRAST = """
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const box = element.getBoundingClientRect();
  if (!own || !box.width || element.closest('script, style, .hidden, .skip')) continue;
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)' && behind.parentElement)
    behind = behind.parentElement;
  const style = getComputedStyle(element);
  const ink = element.closest('svg') ? style.fill : style.color;
  found.push([element.tagName + '.' + element.getAttribute('class'), ink,
              getComputedStyle(behind).backgroundColor]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: webdriver.Chrome, two: Path, scheme: str) -> None:
    show(browser, two, scheme=scheme)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    texts = browser.execute_script(CONTRAST)
    assert len(texts) > 200
    for where, ink, behind in {tuple(text) for text in texts}:
        light, dark = sorted((brightness(ink), brightness(behind)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, where


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_have_contrast(browser: webdriver.Chrome, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    names = ["--paper", *(f"--s{style}" for style in range(STYLES))]
    script = (
        "const style = getComputedStyle(document.documentElement);"
        "return arguments[0].map(name => style.getPropertyValue(name))"
    )
    paper, *lines = [
        brightness(", ".join(str(int(color.strip()[i : i + 2], 16)) for i in (1, 3, 5)))
        for color in browser.execute_script(script, names)
    ]
    for line in lines:
        assert (max(line, paper) + 0.05) / (min(line, paper) + 0.05) >= 3


def test_many_models_are_told_apart() -> None:
    looks = [(style(index), str(mark(index))) for index in range(STYLES**2)]
    assert len(set(looks)) == STYLES**2
    assert len({mark for _, mark in looks[:STYLES]}) == STYLES


def test_the_page_asks_the_network_for_nothing(browser: webdriver.Chrome, either: Path) -> None:
    show(browser, either)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert either.as_uri() in sent
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}
    assert [url for url in sent if url.startswith("file")] == [either.as_uri()]
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:|//)", either.read_text())


def test_what_a_suite_says_is_text(browser: webdriver.Chrome, two: Path) -> None:
    show(browser, two)
    assert browser.execute_script("return window.hacked") is None
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 1
    titles = [h.text for h in browser.find_elements(By.TAG_NAME, "h2")]
    assert titles == ["Table 1", HOSTILE]


def test_several_runs_have_contents_and_unique_names(browser: webdriver.Chrome, two: Path) -> None:
    show(browser, two)
    links = browser.find_elements(By.CSS_SELECTOR, "nav a")
    assert [link.text for link in links[:2]] == ["Table 1", HOSTILE]
    names = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(names) == len(set(names))
    targets = browser.execute_script(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash.slice(1))"
    )
    assert set(targets) <= set(names)
    labelled = browser.find_elements(By.CSS_SELECTOR, "[aria-labelledby]")
    assert {element.get_attribute("aria-labelledby") for element in labelled} <= set(names)


def test_an_unfinished_run_says_so(browser: webdriver.Chrome, two: Path) -> None:
    show(browser, two)
    (note,) = browser.find_elements(By.CSS_SELECTOR, "[role=note]")
    assert "not finished: 6 cells missing" in note.text


def test_headings_landmarks_and_tables_are_in_order(browser: webdriver.Chrome, either: Path) -> None:
    show(browser, either)
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    for landmark in ("main", "nav", "footer"):
        assert browser.find_elements(By.TAG_NAME, landmark)
    for table in browser.find_elements(By.TAG_NAME, "table"):
        assert table.find_elements(By.TAG_NAME, "caption")
        assert all(h.get_attribute("scope") in ("col", "row") for h in table.find_elements(By.TAG_NAME, "th"))


def test_print_unfolds_what_is_folded(browser: webdriver.Chrome, page: Path) -> None:
    show(browser, page)
    folded = "return document.querySelectorAll('details:not([open], .gallery)').length"
    assert browser.execute_script(folded) == 4  # two curves, health, environment
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(folded) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) == 4
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector('nav')).display"
    assert browser.execute_script(shown) == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
