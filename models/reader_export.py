"""Export a reader to ONNX with dynamic batch, paragraph and question length.

    in:   paragraph [T, B], question [J, B] int64, paragraph_characters [T, B, 16], question_characters [J, B, 16]
    out:  start [T, B], end [T, B]

Word 0 is padding, as in PyTorch, and what the outputs say of it means nothing: a number to mask it would be so large
that errors beside it went unseen. The words' SHA-256 is in the graph's metadata, `toolchain.vocabulary_sha256`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn

from toolchain.errors import ParityError
from toolchain.evaluation import evaluation_mode
from toolchain.exporting import ATOL, OPSET
from toolchain.files import written_whole

from .squad import WORD_BYTES

INPUTS = ("paragraph", "paragraph_characters", "question", "question_characters")
OUTPUTS = ("start", "end")
INITIAL_H = 5  # input of the ONNX operator LSTM; initial_c and weights of peepholes, which PyTorch has not, follow

Feeds = dict[str, npt.NDArray[np.int64]]


def export_reader(
    model: nn.Module,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write a reader as ONNX: to a temporary name, run against PyTorch, then renamed.

    Args:
        model: a `Reader`, or a module of the same inputs and outputs; its mode and parameters are left as they are.
        path: the file to write; an existing one is replaced.
        metadata: entries of the graph's metadata, by key.
        write: of a model that is a graph already: writes it; None traces the model.

    Raises:
        OutputError: the file cannot be written.
        ParityError: ONNX Runtime computes something else than PyTorch; nothing is written.
    """
    with (
        written_whole(path, remedy="Choose another place with `--output FILE`.") as unfinished,
        evaluation_mode(model),
    ):
        if write is None:
            _write_graph(model, unfinished)
        else:
            write(unfinished)
        graph = onnx.load(unfinished)
        _start_from_zeros(graph.graph)
        onnx.helper.set_model_props(graph, dict(metadata or {}))
        onnx.checker.check_model(graph)
        onnx.save(graph, unfinished)
        _verify(model, unfinished, path.name)


def _write_graph(model: nn.Module, path: Path) -> None:
    feeds = _random_feeds((5, 3), (4, 2))
    device = next(model.parameters()).device
    axes = {name: {0: "J" if name.startswith("question") else "T", 1: "B"} for name in (*INPUTS, *OUTPUTS)}
    path.touch()  # PyTorch reports an unwritable path in words of its own
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=DeprecationWarning, message=".*legacy TorchScript-based ONNX export.*"
        )
        # The batch size of a recurrent node is free here: its initial states are taken out.
        warnings.filterwarnings("ignore", category=UserWarning, message=".*batch_size other than 1.*")
        # Checks inside nn.LSTM, which the trace leaves out.
        warnings.filterwarnings("ignore", message=".*might cause the trace to be incorrect.*")
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(feeds[name]).to(device) for name in INPUTS),
            str(path),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _start_from_zeros(graph: onnx.GraphProto) -> None:
    """Take out the initial states, all zeros, which is what their absence means; and what only computed them.

    PyTorch 2.6 writes some of them for the batch size of the trace.
    """
    for node in graph.node:
        if node.op_type == "LSTM":
            del node.input[INITIAL_H:]
    while True:
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)


def _random_feeds(paragraphs: tuple[int, ...], questions: tuple[int, ...]) -> Feeds:
    """Return words and bytes of paragraphs and questions of some lengths; word 1 is in any vocabulary."""
    generator = np.random.default_rng(0)
    feeds = {}
    for name, lengths in (("paragraph", paragraphs), ("question", questions)):
        is_word = np.arange(max(lengths))[:, None] < np.array(lengths)  # [T, B]
        letters = generator.integers(1, 257, (*is_word.shape, WORD_BYTES))
        feeds[name] = is_word.astype(np.int64)
        feeds[f"{name}_characters"] = np.where(is_word[..., None], letters, 0).astype(np.int64)
    return feeds


def _verify(model: nn.Module, path: Path, name: str) -> None:
    """Compare with PyTorch at other lengths and batch sizes than those of the trace, padding left out."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    device = next(model.parameters()).device
    for paragraphs, questions in (((1,), (1,)), ((9,), (2,)), ((4, 11, 7), (6, 1, 3))):
        feeds = _random_feeds(paragraphs, questions)
        with torch.no_grad():
            expected = model(**{key: torch.from_numpy(feeds[key]).to(device) for key in INPUTS})
        found = session.run(list(OUTPUTS), feeds)
        for output, a, b in zip(OUTPUTS, found, expected, strict=True):
            difference = float(np.abs(a - b.float().cpu().numpy()).max()) if a.shape == tuple(b.shape) else float("inf")
            if not difference <= ATOL:
                raise ParityError(
                    f"{name}: output {output} at T={paragraphs}, J={questions} differs from PyTorch's by "
                    f"{difference:g}; expected at most {ATOL:g}. Nothing was written; report this model."
                )
