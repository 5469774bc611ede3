"""Memory that the process keeps: giving it back and asking again costs more than inference itself."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> None:
    """Have glibc keep freed buffers for the next ones; does nothing where there is no glibc.

    Inference frees and takes back large buffers at every step. For programs, not for a library: it holds for
    the whole process.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 1 << 28)
