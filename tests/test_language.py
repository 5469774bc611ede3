"""What people read (docstrings, messages, comments, pages, READMEs) is written in plain sentences.

The mechanical part of the rule: a function's docstring says what it returns, computes or builds, every
sentence has a subject, no idiom has to be read twice, a model *rejects*, and a README is short.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for top in (ROOT / "src" / "genrobust", ROOT / "adapters", ROOT / "benchmarks")
    for path in top.rglob("*.py")
    if top.parent == ROOT or not {"adapters", "benchmarks"} & set(path.relative_to(top).parts)
)
READMES = sorted(
    path
    for folder in (ROOT, ROOT / "src" / "genrobust", ROOT / "adapters", ROOT / "benchmarks")
    for path in (folder.glob("README.md") if folder == ROOT else folder.rglob("README.md"))
)
PAGES = sorted((ROOT / "benchmarks").rglob("*.html")) + sorted((ROOT / "benchmarks").rglob("*.toml"))
WORDS = 900


IMPERATIVE = re.compile(
    r"(Add|Answer|Ask|Attack|Begin|Build|Check|Choose|Compare|Compute|Count|Craft|Decide|Decode|Describe|Draw|"
    r"Encode|Estimate|Evaluate|Find|Give|Gives|Have|Keep|Lay|List|Load|Make|Measure|Pack|Put|Raise|Read|"
    r"Remember|Restore|Return|Run|Save|Say|Says|Score|Set|Show|Take|Train|Turn|Update|Wrap|Write|Yield)\b"
)
IDIOM = re.compile(
    r"\b((?<!neither )of which|[Aa]s far as|so many|(?<!there )is none|put up with|makes? no sense)\b"
)
REFUSAL = re.compile(r"\brefus\w*", re.I)


def docstrings(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node, text


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the strings that are prose, and the comments, with their lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def faults(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    found = []
    if path.suffix == ".py":
        for node, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            line = getattr(node, "lineno", 1)
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and "cli" not in path.parts and IMPERATIVE.match(text):  # a command's help commands
                found.append(
                    f"{name}:{line}: begins with {text.split()[0]!r}, not with Returns, Computes, ..."
                )
            fragments = [part.strip() for part in re.split(r"(?<=\.)\s", text) if part.startswith("Of ")]
            fragments += re.findall(r"^\s*\*{0,2}\w+: (?:Of|In place of) .*$", text, re.MULTILINE)
            found += [f"{name}:{line}: has no subject: {fragment[:60]!r}" for fragment in fragments]
    for line, text in prose(path):
        for rule in (IDIOM, REFUSAL):
            found += [
                f"{name}:{line}: {match.group()!r} in {text.strip()[:60]!r}" for match in rule.finditer(text)
            ]
    return found


@pytest.mark.parametrize(
    "path", [*SOURCES, *PAGES, *READMES], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_plain_sentences(path: Path) -> None:
    assert not faults(path), "\n".join(faults(path))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_readme_is_short(path: Path) -> None:
    words = [word for word in path.read_text(encoding="utf-8").split() if any(map(str.isalnum, word))]
    assert len(words) <= WORDS


def test_the_rule_finds_what_it_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "bad.py"
    file.write_text(
        'def f(a):\n    """Give it.\n\n    Args:\n        a: Of Adam.\n    """\n'
        '    raise ValueError("it is none")  # a model refuses\n'
    )
    assert len(faults(file)) == 4
