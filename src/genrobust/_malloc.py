"""A setting of glibc's allocator: returning memory and asking for it again costs more than inference."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> None:
    """Makes glibc keep freed buffers for reuse; does nothing on systems without glibc.

    Inference frees and allocates large buffers at every step. The setting applies to the whole process, so
    that programs should call this, and libraries should not.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 1 << 28)
