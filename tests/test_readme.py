"""The README's Python runs as it stands there."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
TOOLKITS = ("advertorch", "art", "foolbox", "pyautoattack", "torchattacks")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


def test_every_block_runs_in_order() -> None:
    if missing := [toolkit for toolkit in TOOLKITS if find_spec(toolkit) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    namespace: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    assert namespace["found"].success.any()


@pytest.mark.parametrize("toolkit", ["advertorch", "art", "foolbox", "robustbench", "torchattacks"])
def test_every_toolkit_has_an_example(toolkit: str) -> None:
    call = "run_autoattack(" if toolkit == "robustbench" else f"wrap_for_{toolkit}("
    examples = [block for block in BLOCKS if call in block]
    assert len(examples) == 1
    assert len(examples[0].strip().splitlines()) <= 7
