"""Memory that a long computation uses again, instead of giving it back and fetching it anew at every step.

glibc maps large blocks one by one and unmaps each when it is freed. The next block of that size then costs a page fault
for every 4 KiB, and the kernel clears each page: of an update of a small language model, whose logits alone are
64 MB, that is up to half the time. Once told so, glibc keeps freed memory, and PyTorch asks for pages of 2 MiB.

The price: the process does not shrink before it ends. So a command calls this, never the library.

Source: man 3 mallopt; https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1  # malloc.h
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, in large pages where PyTorch has not allocated anything yet.

    Settings of the user's own (`MALLOC_MMAP_MAX_`, `THP_MEM_ALLOC_ENABLE`) stand.

    Returns:
        Whether the C library does so; other libraries than glibc are left as they are.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_MAX_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
