"""Memory kept for the next step: the page faults of a block that is allocated again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from toolchain.memory import keep_freed_memory

PROGRAM = """
import resource
{before}
import torch

def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

for _ in range(4):
    faults()
print(sum(faults() for _ in range(4)))
"""
KEEP = "from toolchain.memory import keep_freed_memory; assert keep_freed_memory()"
# A page right behind the heap, as address randomization now and then puts one there: the heap cannot grow, and glibc
# takes memory elsewhere, twice before the first of it is found again.
BLOCKED = (
    KEEP
    + """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.sbrk.restype = libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
behind = -(-libc.sbrk(0) // mmap.PAGESIZE) * mmap.PAGESIZE
MAP_FIXED_NOREPLACE = 0x100000
assert libc.mmap(behind, mmap.PAGESIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == behind
"""
)


def _faults(before: str) -> int:
    """The page faults of allocating 64 MB four times more, as every update of a training does."""
    program = PROGRAM.format(before=before)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's allocator")
@pytest.mark.parametrize("before", [KEEP, BLOCKED], ids=["heap that grows", "heap that cannot grow"])
def test_a_freed_block_is_used_again_with_hardly_a_page_fault(before: str) -> None:
    without = _faults("")
    assert without > 100  # what the setting is there for: 62,500 of 4 KiB, or 128 where the kernel makes pages of 2 MiB
    assert _faults(before) < 0.2 * without  # not exactly 0: the interpreter's own memory may fault at any time


def test_the_users_own_setting_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert not keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
