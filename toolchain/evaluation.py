"""Perplexity of a whole text, state carried from its first word to its last, in ONNX Runtime and in PyTorch.

    perplexity = exp(-1/(N-1) * sum over t = 2..N of log p(word_t | word_1 .. word_t-1))

The ONNX side needs numpy and onnxruntime only, and works on every graph that declares its carried state as
`toolchain.exporting` does, shrunk ones too.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import ModelFileError
from toolchain.interface import CARRIED_STATE_KEY
from toolchain.runtime import open_session

if TYPE_CHECKING:
    from torch import Tensor, nn

CHUNK = 128  # steps per call; logits of 128 steps and 10,000 words are 5 MB


def onnx_perplexity(path: Path, tokens: npt.NDArray[np.integer[Any]], *, threads: int | None = None) -> float:
    """Return the perplexity of a text under an ONNX model.

    Args:
        path: a graph with one integer input `[T, B]`, one output `[T, B, V]`, and declared carried state.
        tokens: word ids, shape `[num_tokens]`, at least two.
        threads: of ONNX Runtime; None leaves it the choice.

    Raises:
        ModelFileError: the file cannot be read, or is not such a graph.
    """
    session = open_session(path, threads=threads)
    pairs = _carried_pairs(session, path)
    token_input = _only(session.get_inputs(), {source for source, _ in pairs}, path, "token input")
    logits_output = _only(session.get_outputs(), {target for _, target in pairs}, path, "output of logits")
    state = {i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], np.float32)
             for i in session.get_inputs() if i.name != token_input}  # fmt: skip
    outputs = [logits_output, *(target for _, target in pairs)]
    total = 0.0
    for start in range(0, len(tokens) - 1, CHUNK):
        chunk = np.asarray(tokens[start : start + CHUNK + 1], dtype=np.int64)
        logits, *after = session.run(outputs, {token_input: chunk[:-1, None], **state})
        state = {source: value for (source, _), value in zip(pairs, after, strict=True)}
        total += _surprise(logits[:, 0], chunk[1:])
    return math.exp(total / (len(tokens) - 1))


def torch_perplexity(model: nn.Module, columns: Tensor, *, chunk: int = CHUNK) -> float:
    """Return the perplexity of a text under a PyTorch model, in float32 and evaluation mode.

    Args:
        model: forward and `initial_state` as `toolchain.exporting.TokenModel`; its mode is left as it is.
        columns: word ids, int64, shape `[rows, B]`, at least two rows, on the model's device. One column
            is the exact figure; several are faster and lose the context at the top of each.
        chunk: rows per call.
    """
    import torch

    total = 0.0
    with evaluation_mode(model), torch.inference_mode():
        state = model.initial_state(columns.shape[1])  # type: ignore[operator]
        for start in range(0, len(columns) - 1, chunk):
            rows = columns[start : start + chunk + 1]
            logits, state = model(rows[:-1], state)  # [T, B, V]
            surprise = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), rows[1:].flatten(), reduction="sum"
            )
            total += float(surprise)
    return math.exp(total / ((len(columns) - 1) * columns.shape[1]))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation, then each part of the model back to the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _carried_pairs(session: Any, path: Path) -> list[tuple[str, str]]:
    declared = session.get_modelmeta().custom_metadata_map.get(CARRIED_STATE_KEY)
    if declared is None:
        raise ModelFileError(
            f"{path}: no metadata {CARRIED_STATE_KEY}; expected a language model written by `toolchain train`. "
            "Declare its carried state in the metadata."
        )
    return [(source, target) for source, target in json.loads(declared)]


def _only(values: list[Any], carried: set[str], path: Path, what: str) -> str:
    names = [value.name for value in values if value.name not in carried]
    if len(names) != 1:
        raise ModelFileError(
            f"{path}: {len(names)} values beside the carried state ({', '.join(names)}); "
            f"expected one {what}. Check its metadata {CARRIED_STATE_KEY}."
        )
    return str(names[0])


def _surprise(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
    """Return the summed -log p of `targets` [T] under `logits` [T, V], accumulated in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # [T, V]
    log_normaliser = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    return float((log_normaliser - shifted[np.arange(len(targets)), targets]).sum())
