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

faults()
print(faults())
"""
KEEP = "from toolchain.memory import keep_freed_memory; assert keep_freed_memory()"


def _faults(before: str) -> int:
    program = PROGRAM.format(before=before)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's allocator")
def test_a_freed_block_is_used_again_with_hardly_a_page_fault() -> None:
    without = _faults("")
    assert without > 10  # what the setting is there for: 15,625 of 4 KiB, or 32 where the kernel makes pages of 2 MiB
    assert _faults(KEEP) < 0.2 * without  # not exactly 0: the interpreter's own memory may fault at any time


def test_the_users_own_setting_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert not keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
