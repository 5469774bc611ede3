"""The suites that come with the package, as objects."""

from .suite_files import load_suite
from .suites import Scale, Suite

__all__ = ["MNIST", "QUICK", "find_suite"]

QUICK = load_suite("quick")
MNIST = load_suite("mnist")


def find_suite(name: str, *, scale: Scale = "small") -> Suite:
    """Give a suite by its name, or by the path of its file; see `suite_files.load_suite`.

    Raises:
        ValueError: If there is none of that name.
    """
    return load_suite(name, scale=scale)
