"""The runner's worker on PyTorch: the ONNX graph rebuilt from `nn.LSTM`, `nn.GRU`, `nn.RNN` and tensor operations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.bench import runner

PACKAGES = ("torch", "onnx")


@dataclass(frozen=True, slots=True)
class Output:
    """What ONNX Runtime's `get_outputs` returns of an output."""

    name: str


class Session:
    """A module behind ONNX Runtime's interface: numpy arrays in and out, which share memory with tensors."""

    def __init__(self, path: str, threads: int, *, compiled: bool = False) -> None:
        import onnx
        import torch
        from toolchain.bench.torch_module import module_of

        torch.set_num_threads(threads)
        module = module_of(onnx.load(path))
        self._outputs = [Output(name) for name in module.outputs]
        self._inputs = module.inputs
        self._call = torch.compile(module) if compiled else module

    def get_outputs(self) -> list[Output]:
        """Return the outputs, in the graph's order."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any]) -> list[Any]:
        """Run once, without gradients."""
        import torch

        with torch.inference_mode():
            values = self._call(*(torch.from_numpy(feeds[name]) for name in self._inputs))
        found = {output.name: value.numpy() for output, value in zip(self._outputs, values, strict=True)}
        return [found[name] for name in names or found]


ENGINE = runner.Engine(PACKAGES, Session)

if __name__ == "__main__":
    sys.exit(runner.main(sys.argv[1:], ENGINE))
