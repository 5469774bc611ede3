"""What a result depends on beside its settings: software, machine and revision."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch

from ...adapters.contract import registered
from ..suites.model import Suite

__all__ = ["compared_versions", "environment", "git_revision"]


def compared_versions(suite: Suite) -> dict[str, str]:
    """Returns the versions that a run is bound to: of this package, of torch and of the suite's toolkits."""
    adapters = registered()
    toolkits = dict.fromkeys(attack.toolkit for attack in suite.attacks)
    names = ("genrobust", "torch", "foolbox")
    versions = {name: version(name) for name in names}
    return versions | {
        toolkit: adapters[toolkit].version or "not installed" for toolkit in toolkits if toolkit not in names
    }


def environment() -> dict[str, Any]:
    """Returns everything that could explain why two machines differ, as JSON can hold it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": git_revision(),
        "executable": sys.executable,
        "packages": _packages(),
    }


def git_revision() -> str | None:
    """Returns the git revision of this package's code, with "+changes" appended; None outside a checkout."""
    # benchmarks/ lies in a checkout, or in site-packages without a repository.
    folder = Path(__file__).resolve().parent
    revision = _git(folder, ["rev-parse", "HEAD"])
    tracked = revision and _git(folder, ["ls-files", "--error-unmatch", Path(__file__).name])
    if not revision or not tracked:
        return None
    changed = _git(folder, ["status", "--porcelain", "--untracked-files=no"])
    return revision + ("+changes" if changed else "")


def _git(folder: Path, arguments: Iterable[str]) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _packages() -> dict[str, str]:
    found = {entry.metadata["Name"]: entry.version for entry in distributions() if entry.metadata["Name"]}
    return dict(sorted(found.items()))
