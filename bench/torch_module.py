"""An ONNX graph as a PyTorch module, for timing: recurrent nodes become `nn.LSTM`, `nn.GRU`, `nn.RNN`.

Only operators that have one plain PyTorch counterpart are taken; everything else is refused by name, because a detour
would make PyTorch look slow. Gate blocks are put into PyTorch's order:

    LSTM  ONNX i o f c -> PyTorch i f g o          GRU  ONNX z r h -> PyTorch r z n
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from toolchain.errors import BenchError
from toolchain.recurrent import GATES

Attributes = Mapping[str, Any]
Function = Callable[..., Any]
MODULES: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # ONNX block of each PyTorch block
SIMPLE: dict[str, Function] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "MatMul": torch.matmul,
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Identity": lambda x: x,
}  # fmt: skip


class GraphModule(nn.Module):
    """Runs the nodes of a graph in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = np.asarray(numpy_helper.to_array(_attributes(node)["value"]))
        self.inputs = [value.name for value in graph.input if value.name not in constants]
        self.outputs = [value.name for value in graph.output]
        self.functions = nn.ModuleList()
        self.steps: list[tuple[list[str], list[str]]] = []
        for node in graph.node:
            if node.op_type != "Constant":
                function, names = _function(node, constants)
                self.functions.append(function)
                self.steps.append((names, list(node.output)))
        used = {name for names, _ in self.steps for name in names if name in constants}
        self.constants = {name: torch.from_numpy(constants[name].copy()) for name in used}

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the graph's outputs for its inputs, both in the graph's order."""
        known: dict[str, Any] = {**self.constants, **dict(zip(self.inputs, values, strict=True)), "": None}
        for function, (names, results) in zip(self.functions, self.steps, strict=True):
            found = function(*(known[name] for name in names))
            known.update(zip(results, found if isinstance(found, tuple) else (found,), strict=False))
        return tuple(known[name] for name in self.outputs)


def module_of(model: onnx.ModelProto) -> GraphModule:
    """Rebuild a graph.

    Raises:
        BenchError: an operator, or an attribute of a recurrent one, has no counterpart here.
    """
    return GraphModule(model).eval()


class _Call(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Any) -> Any:
        """Call it."""
        return self.function(*values)


class _Recurrent(nn.Module):
    """One recurrent node; X, initial_h, initial_c in, Y, Y_h, Y_c out, shaped as ONNX shapes them."""

    def __init__(self, module: nn.RNNBase, *, backwards: bool) -> None:
        super().__init__()
        self.module, self.backwards = module, backwards
        self.directions = 2 if module.bidirectional else 1

    def forward(self, X: Tensor, initial_h: Tensor | None = None, initial_c: Tensor | None = None) -> Any:
        """Run the fused kernel."""
        x = X.flip(0) if self.backwards else X  # [T, B, input]
        is_lstm = isinstance(self.module, nn.LSTM)
        state: Any = initial_h
        if is_lstm and (initial_h is not None or initial_c is not None):
            known = initial_h if initial_h is not None else initial_c
            assert known is not None
            state = tuple(torch.zeros_like(known) if one is None else one for one in (initial_h, initial_c))
        y, last = self.module(x, state)
        y = y.view(*y.shape[:2], self.directions, -1).transpose(1, 2)  # [T, D, B, H]
        return (y.flip(0) if self.backwards else y, *(last if is_lstm else (last,)))


def _function(node: onnx.NodeProto, constants: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """Return a node's counterpart, and the names of the tensors that it is called with."""
    names, attributes = list(node.input), _attributes(node)
    if node.op_type in MODULES:
        return _recurrent(node, attributes, constants), [names[0], *names[5:7]]
    if node.op_type in SIMPLE:
        return _Call(SIMPLE[node.op_type]), names
    if node.op_type == "Gemm":
        return _Call(_gemm(attributes)), names
    axes = attributes.get("axes", constants[names[1]].tolist() if len(names) > 1 and names[1] in constants else None)
    if node.op_type == "Squeeze" and axes is not None:
        return _Call(lambda x: x.squeeze(tuple(axes))), names[:1]
    if node.op_type == "Unsqueeze" and axes is not None and len(axes) == 1:
        return _Call(lambda x: x.unsqueeze(axes[0])), names[:1]
    if node.op_type == "Transpose" and "perm" in attributes:
        return _Call(lambda x: x.permute(attributes["perm"])), names
    if node.op_type == "Concat":
        return _Call(lambda *parts: torch.cat(parts, attributes["axis"])), names
    if node.op_type == "Reshape" and names[1] in constants:
        shape = constants[names[1]].tolist()
        return _Call(lambda x: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])), names[:1]
    if node.op_type == "Gather" and attributes.get("axis", 0) == 0 and names[0] in constants:
        return _Call(lambda table, rows: nn.functional.embedding(rows, table)), names
    if node.op_type == "Gather" and names[1] in constants and constants[names[1]].ndim == 1:
        return _Call(lambda x, index: x.index_select(attributes.get("axis", 0), index)), names
    if node.op_type == "Pad" and names[1] in constants and attributes.get("mode", b"constant") == b"constant":
        return _Call(_pad(constants[names[1]].tolist())), names[:1]
    raise _refusal(node, "has no counterpart")


def _recurrent(node: onnx.NodeProto, attributes: Attributes, constants: Mapping[str, Any]) -> _Recurrent:
    """Build the module of a recurrent node and copy its weights."""
    direction = attributes.get("direction", b"forward").decode()
    if extra := attributes.keys() & {"activations", "activation_alpha", "clip", "input_forget"}:
        raise _refusal(node, f"has {min(extra)}")
    if attributes.get("layout", 0) or any(name for index, name in enumerate(node.input) if index in (4, 7)):
        raise _refusal(node, "has sequence lengths, peepholes or layout 1")
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        raise _refusal(node, "resets before its product")
    if not {node.input[1], node.input[2]} <= constants.keys():
        raise _refusal(node, "has computed weights")
    W, R = (constants[name] for name in node.input[1:3])
    H = R.shape[2]
    zeros = np.zeros((len(W), 2 * W.shape[1]), W.dtype)
    B = constants[node.input[3]] if len(node.input) > 3 and node.input[3] else zeros
    module = MODULES[node.op_type](W.shape[2], H, bidirectional=direction == "bidirectional")
    blocks, gates = list(ORDER[node.op_type]), len(GATES[node.op_type])
    state = module.state_dict()
    for d, suffix in enumerate(("", "_reverse")[: len(W)]):
        parts = {"weight_ih": W[d], "weight_hh": R[d], "bias_ih": B[d][: gates * H], "bias_hh": B[d][gates * H :]}
        for name, part in parts.items():
            ordered = part.reshape(gates, H, -1)[blocks].reshape(part.shape)
            state[f"{name}_l0{suffix}"] = torch.from_numpy(ordered.copy())
    module.load_state_dict(state)
    return _Recurrent(module, backwards=direction == "reverse")


def _gemm(attributes: Attributes) -> Function:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    left, right = attributes.get("transA", 0), attributes.get("transB", 0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


def _pad(pads: Sequence[int]) -> Function:
    rank = len(pads) // 2
    flat = [pads[axis + end * rank] for axis in reversed(range(rank)) for end in (0, 1)]
    return lambda x: nn.functional.pad(x, flat)


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _refusal(node: onnx.NodeProto, reason: str) -> BenchError:
    return BenchError(f"{node.op_type} {node.name or node.output[0]}: {reason} in PyTorch that would be a fair rival")
