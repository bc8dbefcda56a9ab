"""The stage `distil`: gradient steps on the recurrent layers and their readers against the original's outputs.

windows    the calibration samples in pieces, the original's answers to each, the small model's own states
steps      in PyTorch, on W, R and B of the recurrent nodes and on the matrices that read them
judgement  in ONNX Runtime, on the held-out samples: where the error has not fallen, the model stays as it was

PyTorch is imported when a model is distilled, and not before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from toolchain.errors import DistillationError, MissingExtraError
from toolchain.interface import ModelInterface
from toolchain.oneshot.calibration import Calibration
from toolchain.oneshot.selection import Probe, error_of, opened
from toolchain.oneshot.windows import Answers, batch_axes, cut_windows, with_own_state
from toolchain.recurrent import PYTORCH_GATES, slot

if TYPE_CHECKING:
    from toolchain.oneshot.gradient_steps import Lesson, Trained
    from toolchain.torch_graph.interpreter import TorchGraph

Progress = Callable[[str], None]
MatrixAxes = tuple[int, int]
OnStep = Callable[[int, float], None]
# High, because it is lowered where it does harm. At half the units of a language model it did better than 1e-4 (100
# steps) and 5e-4 (200 steps); of a denoiser it was lowered to 4e-5 and ended better than 1e-4 and 3e-4 (200 steps).
LEARNING_RATE = 1e-3
_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
_FIRST_BIAS = 2  # the inputs of a contraction before it are factors
# Of the largest output: a hundred times what two float32 kernels differ by, and far below any error worth removing.
PARITY = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """The distilled model, or the one that was given where the error has not fallen.

    Errors are relative, on the held-out samples, in ONNX Runtime. `steps` were taken; fewer than asked where the error
    on samples that no step saw kept growing. `learning_rate` is its height in the end: lowered where it did harm.
    """

    model: ir.Model
    error_before: float
    error_after: float
    kept: bool
    steps: int
    learning_rate: float
    trained: tuple[str, ...]


def distil(
    model: ir.Model,
    original: Any,
    *,
    interface: ModelInterface,
    fit: Calibration,
    held_out: Probe,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda stage: None,
    on_step: OnStep = lambda number, loss: None,
) -> DistillationResult:
    """Bring a small model's outputs closer to the original's.

    Args:
        model: the small model; never changed.
        original: an ONNX Runtime session of the model that it was made from.
        interface: of the original; of the small model only the shapes of carried state may differ.
        fit: samples to learn from.
        held_out: samples to judge by, with the original's outputs.
        steps: gradient steps, at most.
        learning_rate: of Adam at its height.
        seed: order of the samples.
        threads: of PyTorch and ONNX Runtime; None leaves them the choice.
        progress: called with the name of each stage as it begins.
        on_step: called with the number of each step and its relative error.

    Raises:
        MissingExtraError: PyTorch is not installed.
        DistillationError: an operator cannot be differentiated, or there is nothing to train.
        CalibrationError: a model fails on a sample.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", extra="train")
    from toolchain.oneshot.gradient_steps import train
    from toolchain.torch_graph.interpreter import TorchGraph

    weights = trained_weights(model.graph)
    if not weights:
        raise DistillationError(
            "the model: no recurrent node keeps its weights as constants of floating-point numbers; expected one to "
            "train. Leave --distill out."
        )
    graph = TorchGraph(model, weights)
    judge = replace(held_out, calibration=with_own_state(held_out.calibration, model))
    before = error_of(model, judge, threads)
    with _torch_threads(threads):
        progress("asking the original for its outputs")
        lesson = _lesson(model, graph, original, interface, fit, held_out, threads)
        progress("taking gradient steps")
        trained = train(graph, lesson, weights, steps=steps, learning_rate=learning_rate, seed=seed, on_step=on_step)
    progress("judging on held-out samples")
    return _judged(model, trained, judge, before, threads)


def trained_weights(graph: ir.Graph) -> dict[str, MatrixAxes | None]:
    """Return the constants to train, with the axes of a matrix' rows and columns, None for what is added.

    They are those of the recurrent nodes, and the first matrices behind them with their biases. Whatever lies between
    is passed: movement, activations, sums. Weights that are computed or no float are left.
    """
    names: dict[str, MatrixAxes | None] = {}
    pending: list[ir.Value] = []
    for node in graph:
        if node.op_type in PYTORCH_GATES and all(_weight(node, slot(name)) for name in ("W", "R")):
            for name, axes in (("W", (-2, -1)), ("R", (-2, -1)), ("B", None)):
                _add(names, _weight(node, slot(name)), axes)
            pending += node.outputs
    seen: set[int] = set()
    while pending:
        for node, _ in pending.pop().uses():
            if id(node) in seen or node.graph is not graph or node.op_type in PYTORCH_GATES:
                continue
            seen.add(id(node))
            if not _add_matrix(names, node):
                pending += node.outputs
    return names


def _add(names: dict[str, MatrixAxes | None], name: str | None, axes: MatrixAxes | None) -> None:
    if name is not None:
        names[name] = names.get(name) or axes


def _add_matrix(names: dict[str, MatrixAxes | None], node: ir.Node) -> bool:
    """Add the constants of a node that is a matrix, and the bias that an Add right behind it adds."""
    weights = {index: name for index in range(len(node.inputs)) if (name := _weight(node, index)) is not None}
    matrices = [index for index in weights if index < _FIRST_BIAS]
    if node.op_type not in _CONTRACTIONS or not matrices:
        return False
    for index, name in weights.items():
        convolves = node.op_type in ("Conv", "ConvTranspose")
        _add(names, name, None if index >= _FIRST_BIAS else (0, 1) if convolves else (-2, -1))
    for user, _ in node.outputs[0].uses():
        for index in range(2 if user.op_type == "Add" else 0):
            _add(names, _weight(user, index), None)
    return True


def _weight(node: ir.Node, index: int) -> str | None:
    """Return the name of a constant of floating-point numbers, None when the input is something else."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_output():
        return None
    return value.name if value.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE) else None


def _lesson(
    model: ir.Model,
    graph: TorchGraph,
    original: Any,
    interface: ModelInterface,
    fit: Calibration,
    held_out: Probe,
    threads: int | None,
) -> Lesson:
    """Run both models over the samples: the original for its answers, the small one for its own states."""
    from toolchain.oneshot.gradient_steps import Lesson

    kinds, carried = held_out.kinds, fit.carried
    answers = Answers(original, cut_windows(fit, interface), list(kinds), carried)
    windows = cut_windows(with_own_state(fit, model), interface)
    with opened(model, threads) as session:
        own = Answers(session, windows, list(kinds), carried, kept_bytes=0)
        axes = batch_axes(session, windows[0], interface, list(kinds), carried)
        lesson = Lesson(windows=windows, starts=tuple(own.starts), answers=answers, kinds=kinds,
                        spreads=held_out.spreads, carried=carried, axes=axes)  # fmt: skip
        _check_parity(graph, lesson, own)
    return lesson


def _check_parity(graph: TorchGraph, lesson: Lesson, own: Answers) -> None:
    """Refuse where PyTorch computes something else than ONNX Runtime on the first call."""
    import torch

    call = {**lesson.windows[0].calls[0], **lesson.starts[0]}
    with torch.no_grad():
        values = graph.run({name: torch.tensor(array) for name, array in call.items()}, list(lesson.kinds))
    for name, expected in own.of(0)[0].items():
        actual = values[name].numpy()
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        if actual.shape != expected.shape or not np.allclose(actual, expected, rtol=0, atol=PARITY * scale):
            raise DistillationError(
                f"output {name!r}: PyTorch computes something else than ONNX Runtime; expected the same within "
                f"{PARITY * scale:.3g}. Leave --distill out, and please report this model."
            )


def _judged(model: ir.Model, trained: Trained, judge: Probe, before: float, threads: int | None) -> DistillationResult:
    distilled = model.clone()
    for name, array in trained.weights.items():
        distilled.graph.initializers[name].const_value = ir.tensor(array, name=name)
    after = error_of(distilled, judge, threads)
    kept = after < before
    return DistillationResult(
        model=distilled if kept else model,
        error_before=before,
        error_after=after,
        kept=kept,
        steps=trained.steps,
        learning_rate=trained.learning_rate,
        trained=tuple(trained.weights),
    )


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
