"""Export a token model to ONNX with dynamic axes, its state carried in and out.

    in:   tokens [T, B] int64,  h_0 [1, B, H], c_0, h_1, c_1, ...
    out:  logits [T, B, V],     h_0_out [1, B, H], c_0_out, h_1_out, c_1_out, ...

One input and one output per layer and state tensor: `h_<layer>`, and `c_<layer>` of an LSTM. The graph's
metadata says which output is fed back into which input, because no reader of the graph can tell:

    toolchain.carried_state    JSON, [["h_0", "h_0_out"], ["c_0", "c_0_out"], ...]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from toolchain.errors import ParityError
from toolchain.evaluation import evaluation_mode
from toolchain.files import written_whole
from toolchain.interface import CARRIED_STATE_KEY

STATE_NAMES = ("h", "c")
OPSET = 17  # what torch 2.6's TorchScript exporter reaches; its LSTM, GRU and RNN have not changed since opset 14
ATOL = 1e-4  # float32 logits of magnitude about 10 differ by 1e-5 between PyTorch's and ONNX Runtime's kernels

State = tuple[tuple[Tensor, ...], ...]


class TokenModel(Protocol):
    """A module that reads token ids and carries a state; `LanguageModel`, or a user's own."""

    def __call__(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Return logits `[T, B, V]` and the next state, given tokens `[T, B]`."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the beginning of a text, per layer (h, c) or (h,), each `[1, B, H]`."""


class _FlatState(nn.Module):
    """The same model with its state as separate arguments and results, as a graph has them."""

    def __init__(self, model: nn.Module, parts: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.parts = parts  # state tensors per layer

    def forward(self, tokens: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat)
        state = tuple(tuple(next(rest) for _ in range(count)) for count in self.parts)
        logits, after = self.model(tokens, state)
        return (logits, *(tensor for layer in after for tensor in layer))


def export(model: nn.Module, path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write `model` as ONNX: to a temporary name, run against PyTorch, then renamed.

    Args:
        model: a `TokenModel`; its mode and parameters are left as they are.
        path: the file to write; an existing one is replaced.
        metadata: more entries of the graph's metadata, by key.

    Raises:
        OutputError: the file cannot be written.
        ParityError: ONNX Runtime computes something else than PyTorch; nothing is written.
    """
    with (
        written_whole(path, remedy="Choose another place with `--output FILE`.") as unfinished,
        evaluation_mode(model),
    ):
        carried = _write_graph(model, unfinished)
        _annotate(unfinished, {CARRIED_STATE_KEY: json.dumps(carried), **(metadata or {})})
        _verify(model, unfinished, path.name)


def state_names(state: State) -> list[str]:
    """Return the graph's name of each state tensor: h_0, c_0, h_1, ..."""
    return [f"{STATE_NAMES[part]}_{layer}" for layer, tensors in enumerate(state) for part in range(len(tensors))]


def _write_graph(model: nn.Module, path: Path) -> list[list[str]]:
    """Trace the model into `path`; return the pairs of carried state."""
    state = _initial_state(model, batch_size=2)
    flat = [tensor for layer in state for tensor in layer]
    device = next(model.parameters()).device
    names = state_names(state)
    outputs = [f"{name}_out" for name in names]
    steps_and_batch = {0: "T", 1: "B"}
    path.touch()  # PyTorch reports an unwritable path in words of its own
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, message=".*legacy TorchScript-based ONNX export.*"
        )
        # The batch size of a recurrent node is free here, because every initial state is a graph input.
        warnings.filterwarnings("ignore", category=UserWarning, message=".*batch_size other than 1.*")
        torch.onnx.export(
            _FlatState(model, tuple(len(layer) for layer in state)).eval(),
            (torch.zeros(3, 2, dtype=torch.int64, device=device), *flat),
            str(path),
            input_names=["tokens", *names],
            output_names=["logits", *outputs],
            dynamic_axes={
                "tokens": steps_and_batch,
                "logits": steps_and_batch,
                **{name: {1: "B"} for name in (*names, *outputs)},
            },
            opset_version=OPSET,
            dynamo=False,
        )
    return [list(pair) for pair in zip(names, outputs, strict=True)]


def _initial_state(model: nn.Module, batch_size: int) -> State:
    state: State = model.initial_state(batch_size)  # type: ignore[operator]  # nn.Module hides the protocol
    return state


def _annotate(path: Path, properties: Mapping[str, str]) -> None:
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, dict(properties))
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _verify(model: nn.Module, path: Path, name: str) -> None:
    """Compare with PyTorch at two lengths and batch sizes, from a state that is not zero."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    for steps, batch_size in ((1, 1), (7, 3)):
        tokens = torch.randint(2, (steps, batch_size), generator=generator)  # ids 0 and 1 are in any vocabulary
        state = tuple(
            tuple(torch.rand(tensor.shape, generator=generator) - 0.5 for tensor in layer)
            for layer in _initial_state(model, batch_size)
        )
        with torch.no_grad():
            moved = tuple(tuple(tensor.to(device) for tensor in layer) for layer in state)
            logits, after = model(tokens.to(device), moved)
        expected = [logits, *(tensor for layer in after for tensor in layer)]
        feeds = dict(zip(state_names(state), (t.numpy() for layer in state for t in layer), strict=True))
        found = session.run(None, {"tokens": tokens.numpy(), **feeds})
        for output, a, b in zip(session.get_outputs(), found, expected, strict=True):
            difference = float(np.abs(a - b.float().cpu().numpy()).max()) if a.shape == tuple(b.shape) else float("inf")
            if not difference <= ATOL:
                raise ParityError(
                    f"{name}: output {output.name} at T={steps}, B={batch_size} differs from PyTorch's by "
                    f"{difference:g}; expected at most {ATOL:g}. Nothing was written; report this model."
                )
