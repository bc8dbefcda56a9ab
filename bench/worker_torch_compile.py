"""The runner's worker on `torch.compile`; compiling falls into the first inference."""

from __future__ import annotations

import sys
from typing import Any

from toolchain.bench import runner
from toolchain.bench.worker_torch import PACKAGES, Session


def open_session(path: str, threads: int) -> Any:
    """Load a model and mark it to be compiled."""
    return Session(path, threads, compiled=True)


ENGINE = runner.Engine(PACKAGES, open_session)

if __name__ == "__main__":
    sys.exit(runner.main(sys.argv[1:], ENGINE))
