"""The code of the READMEs runs, their suites load, and their links and commands lead somewhere."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

ROOT = Path(__file__).parents[1]
TOP = ROOT / "README.md"
ROOMS = (ROOT / "adapters", ROOT / "benchmarks", ROOT / "src" / "genrobust")
READMES = [TOP, *sorted({readme.resolve() for room in ROOMS for readme in room.rglob("README.md")})]
TOOLKITS = {  # what code that needs it says, and the module
    "advertorch": "advertorch",
    "advlib": "adv_lib",
    "art": "art",
    "foolbox": "foolbox",
    "pyautoattack": "pyautoattack",
    "pytorch_ood": "pytorch_ood",
    "secml": "secmlt",
    "torchattacks": "torchattacks",
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
each_readme = pytest.mark.parametrize("readme", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(readme: Path, language: str) -> list[str]:
    text = readme.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def skip_without_toolkits(code: str) -> None:
    needed = (module for name, module in TOOLKITS.items() if name in code)
    if missing := [module for module in needed if find_spec(module) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


@each_readme
@pytest.mark.usefixtures("registrations_taken_back")
def test_every_block_runs_in_order(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(readme, "python")
    skip_without_toolkits("".join(code) + "pyautoattack" * ("run_autoattack" in "".join(code)))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in code:
        exec(compile(block, str(readme), "exec"), namespace)


@each_readme
def test_every_suite_loads(readme: Path, tmp_path: Path) -> None:
    from genrobust.benchmarks.suites.files import load_suite

    for block in blocks(readme, "toml"):
        (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
        assert load_suite(tmp_path / "mine.toml").attacks


@each_readme
def test_every_link_to_a_file_leads_there(readme: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme.read_text(encoding="utf-8")):
        assert (readme.parent / target).exists(), target


@each_readme
def test_every_command_exists(readme: Path) -> None:
    from genrobust.cli.main import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    text = readme.read_text(encoding="utf-8")
    for name in re.findall(r"(?:^    |`|&& \S*bin/)genrobust ([a-z]+)", text, re.MULTILINE):
        assert name in known, name


def test_every_kind_of_file_that_is_read_has_a_line_on_what_it_can_do() -> None:
    text = (ROOT / "src" / "genrobust" / "zoo" / "README.md").read_text(encoding="utf-8")
    title, *lines = text.splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ") and "---" not in line]
    told = " ".join(row[0] for row in rows)
    assert title == "# What is safe to open"
    for kind in (
        *("weights", "Hub", "card", "detectors", "codebook", "checkpoint", "npz", "toml", "run folder"),
        *("SQL", "plug-in", "cluster"),
    ):
        assert kind in told
    runs_code = {row[0].split(",")[0].strip() for row in rows if "yes" in row[1]}
    assert runs_code == {"plug-in", "address of a cluster"}


@pytest.mark.parametrize("toolkit", sorted({*TOOLKITS, "robustbench"} - {"pyautoattack", "pytorch_ood"}))
def test_every_toolkit_has_an_example_of_six_lines(toolkit: str) -> None:
    call = "run_autoattack(" if toolkit == "robustbench" else f"wrap_for_{toolkit}("
    examples = [block for block in blocks(TOP, "python") if call in block]
    assert len(examples) == 1
    lines = [line for line in examples[0].splitlines() if line]
    assert len(lines) <= 6, lines
