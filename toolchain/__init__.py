"""Makes recurrent ONNX models small and fast: `train`, `shrink`, `bench`.

The names below load their module on first use, so that `import toolchain` costs nothing
(torch takes 3 s to import, onnxsim 5 s).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ShrinkResult": "toolchain.shrink_result",
    "shrink": "toolchain.shrinking",
    "ToolchainError": "toolchain.errors",
    "expected_l0": "toolchain.gates",
    "fold": "toolchain.gates",
    "freeze_gates": "toolchain.gates",
    "gate": "toolchain.gates",
    "kept_neurons": "toolchain.gates",
    "total_l0": "toolchain.gates",
    "export": "toolchain.exporting",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  (the strings are the keys above)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
