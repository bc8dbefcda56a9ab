"""Export a network to ONNX with dynamic axes and carried state, run against PyTorch before the file gets its name.

A token model (one with `initial_state`):

    in:   tokens [T, B] int64,  h_0 [1, B, H], c_0, h_1, c_1, ...
    out:  logits [T, B, V],     h_0_out [1, B, H], c_0_out, h_1_out, c_1_out, ...

Any other module, given an example of its input: `forward(x)` that returns a tensor, or `forward(x, state=None)` that
returns a tensor and the state after it, as `nn.LSTM` does:

    in:   input [T, B, ...],    state_0 [..., B, ...], state_1, ...
    out:  output,               state_0_out, state_1_out, ...

The graph's metadata says which output is fed back into which input, because no reader of the graph can tell:

    toolchain.carried_state    JSON, [["h_0", "h_0_out"], ["c_0", "c_0_out"], ...]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from toolchain.errors import ParityError
from toolchain.evaluation import evaluation_mode
from toolchain.files import written_whole
from toolchain.interface import CARRIED_STATE_KEY
from toolchain.runtime import RUNTIME_ERRORS, first_line
from toolchain.signature import (
    TRACED_BATCH,
    TRACED_STEPS,
    Signature,
    State,
    flatten,
    free_axes,
    nest,
    outputs_of,
    read_signature,
    token_signature,
)

__all__ = ["State", "TokenModel", "export"]

OPSET = 17  # what torch 2.6's TorchScript exporter reaches; its LSTM, GRU and RNN have not changed since opset 14
ATOL = 1e-4  # float32 logits of magnitude about 10 differ by 1e-5 between PyTorch's and ONNX Runtime's kernels
PROVEN = ((1, 1), (7, 3))  # steps and sequences at which the graph is compared with PyTorch


class TokenModel(Protocol):
    """A module that reads token ids and carries a state; `LanguageModel`, or a user's own."""

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits `[T, B, V]` and the next state, given tokens `[T, B]`."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the beginning of a text, per layer (h, c) or (h,), each `[1, B, H]`."""


class _FlatState(nn.Module):
    """The same model with its state as separate arguments and results, as a graph has them."""

    def __init__(self, model: nn.Module, state: Any) -> None:
        super().__init__()
        self.model = model
        self.state = state  # for its nesting alone

    def forward(self, x: Tensor, *flat: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.state is None:
            result: Tensor = self.model(x)
            return result
        output, after = self.model(x, nest(self.state, iter(flat)))
        return (output, *flatten(after))


def export(
    model: nn.Module,
    path: Path,
    *,
    example: Tensor | None = None,
    batch_first: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model` as ONNX: to a temporary name, run against PyTorch, then renamed.

    Args:
        model: a `TokenModel`, or any module with an `example`; its mode and parameters are left as they are.
        path: the file to write; an existing one is replaced.
        example: an input, shape `[T, B, ...]`; None for a `TokenModel`. Both lengths are free in the graph.
        batch_first: the example has shape `[B, T, ...]`.
        metadata: more entries of the graph's metadata, by key.

    Raises:
        OutputError: the file cannot be written.
        ParityError: ONNX Runtime computes something else than PyTorch; nothing is written.
        TrainingError: the module cannot be run on the example, or returns something else than described above.
    """
    with (
        written_whole(path, remedy="Choose another place with `--output FILE`.") as unfinished,
        evaluation_mode(model),
        torch.no_grad(),
    ):
        signature = (
            token_signature(model) if example is None else read_signature(model, example, batch_first=batch_first)
        )
        _write_graph(model, signature, unfinished)
        carried = {CARRIED_STATE_KEY: json.dumps([[name, f"{name}_out"] for name in signature.states])}
        _annotate(unfinished, {**(carried if signature.states else {}), **(metadata or {})})
        _verify(model, signature, unfinished, path.name)


def _write_graph(model: nn.Module, signature: Signature, path: Path) -> None:
    """Trace the model into `path`."""
    state = signature.random_state(TRACED_BATCH, seed=0)
    path.touch()  # PyTorch reports an unwritable path in words of its own
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, message=".*legacy TorchScript-based ONNX export.*"
        )
        # The batch size of a recurrent node is free here: its initial state is a graph input, or made to measure.
        warnings.filterwarnings("ignore", category=UserWarning, message=".*batch_size other than 1.*")
        torch.onnx.export(
            _FlatState(model, state).eval(),
            (signature.sized(TRACED_STEPS, TRACED_BATCH), *flatten(state)),
            str(path),
            input_names=[signature.input, *signature.states],
            output_names=signature.outputs,
            dynamic_axes=free_axes(model, signature),
            opset_version=OPSET,
            dynamo=False,
        )


def _annotate(path: Path, properties: Mapping[str, str]) -> None:
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, dict(properties))
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _verify(model: nn.Module, signature: Signature, path: Path, name: str) -> None:
    """Compare with PyTorch at two lengths and batch sizes, from a state that is not zero."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for steps, batch in PROVEN:
        x, state = signature.sized(steps, batch), signature.random_state(batch, seed=steps)
        expected = outputs_of(model, x, state)
        feeds = {signature.input: x, **dict(zip(signature.states, flatten(state), strict=True))}
        try:
            found = session.run(None, {key: tensor.cpu().numpy() for key, tensor in feeds.items()})
        except RUNTIME_ERRORS as error:
            raise ParityError(
                f"{name}: ONNX Runtime fails at T={steps}, B={batch} ({first_line(error)}); expected the network at "
                "any length. Nothing was written; keep loops over time and sizes as plain numbers out of forward."
            ) from error
        for output, a, b in zip(session.get_outputs(), found, expected, strict=True):
            difference = float(np.abs(a - b.float().cpu().numpy()).max()) if a.shape == tuple(b.shape) else float("inf")
            if not difference <= ATOL:
                raise ParityError(
                    f"{name}: output {output.name} at T={steps}, B={batch} differs from PyTorch's by "
                    f"{difference:g}; expected at most {ATOL:g}. Nothing was written; report this model."
                )
