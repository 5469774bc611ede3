import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import genrobust

TOOLKITS = {"art", "advertorch", "autoattack", "eagerpy", "foolbox", "pyautoattack", "torchattacks"}
OPTIONAL = {
    "lightning",
    "matplotlib",
    "pandas",
    "pyarrow",
    "rich",
    "scipy",
    "sklearn",
    "statsmodels",
    "typer",
}

# What `package` loads on top of what torch and NumPy load by themselves.
REPORT = """
import json, sys
import {before}
loaded = set(sys.modules)
import {package}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - loaded}})))
"""


def run_python(code: str, *path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(package: str, *path: Path, before: str = "torch, numpy") -> set[str]:
    return set(json.loads(run_python(REPORT.format(package=package, before=before), *path)))


def test_importing_the_package_loads_no_toolkit_and_nothing_optional() -> None:
    loaded = loaded_by("genrobust")
    assert {"genrobust", "jaxtyping"} <= loaded
    assert not loaded & (TOOLKITS | OPTIONAL)


@pytest.mark.parametrize("planted", ["foolbox", "rich"])
def test_a_planted_import_is_detected(planted: str, tmp_path: Path) -> None:
    (tmp_path / f"{planted}.py").touch()
    (tmp_path / "impure").mkdir()
    (tmp_path / "impure" / "__init__.py").write_text("from . import inner\n")
    (tmp_path / "impure" / "inner.py").write_text(f"import {planted}\n")
    assert loaded_by("impure", tmp_path, before="json") == {"impure", planted}


def test_adapters_are_loaded_on_first_use() -> None:
    pytest.importorskip("foolbox")
    code = """
import sys, warnings
import genrobust
assert "genrobust.adapters" not in sys.modules
assert "wrap_for_foolbox" in dir(genrobust)
warnings.simplefilter("ignore")
from genrobust import wrap_for_foolbox
print(wrap_for_foolbox is sys.modules["genrobust.adapters._foolbox"].wrap_for_foolbox)
"""
    assert run_python(code) == "True\n"


@pytest.mark.parametrize(
    ("extra", "package", "title"),
    [
        ("advertorch", "advertorch", "AdverTorch"),
        ("art", "art", "ART"),
        ("foolbox", "foolbox", "Foolbox"),
        ("robustbench", "pyautoattack", "AutoAttack"),
        ("torchattacks", "torchattacks", "torchattacks"),
    ],
)
def test_a_missing_toolkit_names_the_extra(extra: str, package: str, title: str) -> None:
    code = f"""
import sys
sys.modules["{package}"] = sys.modules["autoattack"] = None
import genrobust
try:
    genrobust.wrap_for_{extra}
except ImportError as error:
    print(error.name, error)
"""
    assert run_python(code) == (
        f"{package} Expected {title} to be installed: pip install 'genrobust[{extra}]'\n"
    )


def test_a_star_import_needs_no_toolkit() -> None:
    hidden = "".join(f"sys.modules[{toolkit!r}] = None\n" for toolkit in sorted(TOOLKITS))
    assert run_python(f"import sys\n{hidden}from genrobust import *\nprint(CNN.__name__)") == "CNN\n"


@pytest.mark.parametrize("name", genrobust.__all__)
@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.filters.*:DeprecationWarning")
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(genrobust, name) is not None
    assert name in dir(genrobust)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'genrobust' has no attribute 'wrap_for_cleverhans'"):
        _ = genrobust.wrap_for_cleverhans
