"""The runner's worker on OpenVINO, which reads ONNX files itself: pinned threads, single stream, latency hint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.bench import runner


@dataclass(frozen=True, slots=True)
class Output:
    """What ONNX Runtime's `get_outputs` returns of an output."""

    name: str


class Session:
    """A compiled model behind ONNX Runtime's interface."""

    def __init__(self, path: str, threads: int) -> None:
        import onnx

        openvino = importlib.import_module("openvino")
        # f32: on CPUs that have it OpenVINO would compute in bfloat16, and be compared with float32.
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = openvino.Core().compile_model(path, "CPU", options)
        self._request = self._compiled.create_infer_request()
        # OpenVINO's own names hold aliases of a tensor too, in no order; all of them can be looked up in a result.
        graph = onnx.load(path, load_external_data=False).graph
        self._outputs = [Output(output.name) for output in graph.output]

    def get_outputs(self) -> list[Output]:
        """Return the outputs, in the graph's order."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: dict[str, Any]) -> list[Any]:
        """Run once; outputs are copies, as ONNX Runtime returns them, because state is fed back."""
        result = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        return [result[name] for name in names or [output.name for output in self._outputs]]


ENGINE = runner.Engine(("openvino",), Session)

if __name__ == "__main__":
    sys.exit(runner.main(sys.argv[1:], ENGINE))
