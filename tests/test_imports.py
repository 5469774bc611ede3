import inspect
import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import genrobust

TOOLKITS = {
    "adv_lib",
    "advertorch",
    "art",
    "autoattack",
    "eagerpy",
    "foolbox",
    "pyautoattack",
    "pytorch_ood",
    "secmlt",
    "torchattacks",
}
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


def test_adapters_are_loaded_when_they_are_called() -> None:
    pytest.importorskip("foolbox")
    code = """
import sys, warnings
from genrobust import *
assert "genrobust.adapters._foolbox" not in sys.modules
assert "wrap_for_foolbox" in dir()
warnings.simplefilter("ignore")
print(type(wrap_for_foolbox(load_model("cnn", dataset="digits"))).__module__)
"""
    assert run_python(code) == "genrobust.adapters._foolbox\n"


@pytest.mark.parametrize(
    ("function", "home"),
    [
        ("as_torchattacks", "adapters._torchattacks"),
        ("audit", "auditing.running"),
        ("evaluate", "benchmarks.evaluate"),
        ("import_advertorch", "adapters._advertorch"),
        ("import_advlib", "adapters._advlib"),
        ("run_autoattack", "adapters._robustbench"),
        ("wrap_for_advertorch", "adapters._advertorch"),
        ("wrap_for_advlib", "adapters._advlib"),
        ("wrap_for_art", "adapters._art"),
        ("wrap_for_foolbox", "adapters._foolbox"),
        ("wrap_for_robustbench", "adapters._robustbench"),
        ("wrap_for_secml", "adapters._secmltorch"),
        ("wrap_for_torchattacks", "adapters._torchattacks"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_function_at_the_top_takes_what_its_adapter_takes(function: str, home: str) -> None:
    try:
        module = import_module(f"genrobust.{home}")
    except ImportError as error:
        pytest.skip(str(error))
    shown, done = (inspect.signature(getattr(place, function)).parameters for place in (genrobust, module))
    assert [(entry.name, entry.kind, entry.default) for entry in shown.values()] == [
        (entry.name, entry.kind, entry.default) for entry in done.values()
    ]


def test_a_star_import_needs_no_toolkit_and_a_missing_one_names_its_extra() -> None:
    missing = [
        ("advertorch", "advertorch", "AdverTorch", "advertorch"),
        ("advlib", "adv_lib", "adv-lib", "advlib"),
        ("art", "art", "ART", "art"),
        ("foolbox", "foolbox", "Foolbox", "foolbox"),
        ("robustbench", "pyautoattack", "AutoAttack", "robustbench"),
        ("secml", "secmlt", "secml-torch", "secmltorch"),
        ("torchattacks", "torchattacks", "torchattacks", "torchattacks"),
    ]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(TOOLKITS)}))
from genrobust import *
import genrobust
print(evaluate.__name__)
for call in {[call for call, *_ in missing]}:
    try:
        getattr(genrobust, "wrap_for_" + call)(None)
    except ImportError as error:
        print(error.name, error)
"""
    first, *told = run_python(code).splitlines()
    assert first == "evaluate"
    assert len(told) == len(missing)
    for line, (_, package, title, extra) in zip(told, missing, strict=True):
        rest = ", then pip install --no-deps adv-lib" if extra == "advlib" else ""
        assert line == f"{package} Expected {title} to be installed: pip install 'genrobust[{extra}]'{rest}"


@pytest.mark.parametrize("name", genrobust.__all__)
@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.filters.*:DeprecationWarning")
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(genrobust, name) is not None
    assert name in dir(genrobust)


def test_nothing_else_is_shown() -> None:
    assert dir(genrobust) == sorted([*genrobust.__all__, "__version__"])
    assert len(genrobust.__all__) <= 35


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'genrobust' has no attribute 'wrap_for_cleverhans'"):
        _ = genrobust.wrap_for_cleverhans


def test_every_room_is_installed() -> None:
    root = Path(__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    homes = {name: root / folder for name, folder in setuptools["package-dir"].items()}
    rooms = {
        ".".join([name, *room.parent.relative_to(home).parts])
        for name, home in homes.items()
        for room in home.rglob("__init__.py")
        if not any(part.is_symlink() for part in [room.parent, *room.parent.parents])
    }
    assert rooms == set(setuptools["packages"])
