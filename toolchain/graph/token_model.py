"""Read the weights of a token language model out of its graph, by the graph's structure alone.

    tokens -> Gather(table) -> [recurrent layer -> Squeeze]... -> MatMul [-> Add]... -> scores

is what `toolchain.exporting` writes and what `toolchain shrink` leaves of it: each layer with a size of its own,
constants added behind the output matrix, and carried state that keeps its full width by a Gather on the way in and a
Pad and Gather on the way out. Everything else is named and refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.errors import ModelFileError
from toolchain.graph.loading import load_model
from toolchain.graph.normalise import normalise
from toolchain.interface import ModelInterface
from toolchain.recurrent import ACTIVATIONS, GATES, OUTPUTS, slot

FloatArray = npt.NDArray[np.floating[Any]]
IndexArray = npt.NDArray[np.int64]
VOCABULARY_KEY = "toolchain.vocabulary_sha256"
STATES = (("initial_h", "Y_h"), ("initial_c", "Y_c"))
DIRECTION_AXIS = 1  # of Y [seq_length, num_directions, batch_size, hidden_size]
_ONE_ZERO_MORE = [0, 0, 0, 0, 0, 1]  # pads of the last of three axes


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentLayer:
    """One layer: W `[num_gates*H, input]`, R `[num_gates*H, H]`, B `[2*num_gates*H]`; gates in ONNX's order.

    `state_width` is that of the carried state at the graph's interface, which may be more than the H units behind it.
    """

    op_type: str
    W: FloatArray
    R: FloatArray
    B: FloatArray
    state_width: int

    @property
    def hidden_size(self) -> int:
        """The layer's units."""
        return int(self.R.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenModelWeights:
    """A language model: embedding `[V, E]`, layers from the bottom, output `[H, V]`, bias `[V]`.

    `vocabulary_hash` is what the file says of its words, None when it says nothing.
    """

    embedding: FloatArray
    layers: tuple[RecurrentLayer, ...]
    output: FloatArray
    bias: FloatArray
    vocabulary_hash: str | None


def read_token_model(path: Path) -> TokenModelWeights:
    """Read a language model that `toolchain train` wrote, shrunk or not.

    Raises:
        ModelFileError: the file is no valid model, or one of another kind; names the first node that does not belong.
    """
    model, interface = load_model(path)
    hash_of_words = model.metadata_props.get(VOCABULARY_KEY)
    graph = normalise(model).model.graph
    reader = _Reader(interface, graph)
    value, bias = reader.without_constants(reader.scores())
    matrix = reader.producer(value, "MatMul")
    output = reader.weights(matrix, 1)
    layers = []
    value = reader.input_of(matrix, 0)
    while (lookup := reader.producer(value, "Gather", "Squeeze")).op_type == "Squeeze":
        layer, value = reader.layer(lookup)
        layers.append(layer)
    embedding = reader.weights(lookup, 0)
    reader.check_lookup(lookup)
    if not layers:
        raise reader.refused(lookup, "is read by no recurrent layer")
    return TokenModelWeights(
        embedding=embedding,
        layers=tuple(reversed(layers)),
        output=output,
        bias=np.zeros(output.shape[1], output.dtype) + bias,
        vocabulary_hash=hash_of_words,
    )


class _Reader:
    """Walks from the scores back to the token ids."""

    def __init__(self, interface: ModelInterface, graph: ir.Graph) -> None:
        self._name = interface.name
        self._graph = graph
        self._fed_back = dict(interface.carried)

    def scores(self) -> ir.Value:
        """Return the one output that is no carried state."""
        states = set(self._fed_back.values())
        outputs = [value for value in self._graph.outputs if value.name not in states]
        if len(outputs) != 1:
            raise ModelFileError(
                f"{self._name}: has {len(outputs)} outputs beside the carried state that it declares; expected one, "
                f"the scores of a language model. {_ADVICE}"
            )
        return outputs[0]

    def without_constants(self, value: ir.Value) -> tuple[ir.Value, FloatArray]:
        """Return what a value is but for constants added to it, and their sum, shape `[V]` or one number."""
        total: FloatArray = np.zeros(1, np.float32)
        node = value.producer()
        while node is not None and node.op_type in ("Add", "Identity"):
            constants = [operand.const_value for operand in node.inputs if operand is not None]
            if node.op_type == "Add":
                added = next((tensor.numpy() for tensor in constants if tensor is not None), None)
                if added is None or (added.ndim and added.size != added.shape[-1]):
                    raise self.refused(node, "adds something other than one constant per word")
                total = total + added.reshape(-1)
            value = next(operand for operand in node.inputs if operand is not None and operand.const_value is None)
            node = value.producer()
        return value, total

    def layer(self, squeeze: ir.Node) -> tuple[RecurrentLayer, ir.Value]:
        """Read the layer whose Y loses its direction axis here; return it and what it reads."""
        if self._integers(squeeze, "axes", 1) != [DIRECTION_AXIS]:
            raise self.refused(squeeze, "removes another axis than that of the directions")
        y = self.input_of(squeeze, 0)
        node = self.producer(y, *GATES)
        if y is not node.outputs[0]:
            raise self.refused(node, "is read by another output than Y")
        self._check_plain(node)
        W, R = (self.weights(node, slot(name))[0] for name in ("W", "R"))
        B = np.zeros(2 * len(R), R.dtype) if self._absent(node, "B") else self.weights(node, slot("B"))[0]
        states = STATES if node.op_type == "LSTM" else STATES[:1]
        widths = {self._state_width(node, into, out, R.shape[1]) for into, out in states}
        if len(widths) != 1:
            raise self.refused(node, f"carries states of the widths {sorted(widths)}")
        layer = RecurrentLayer(op_type=node.op_type, W=W, R=R, B=B, state_width=widths.pop())
        return layer, self.input_of(node, slot("X"))

    def check_lookup(self, node: ir.Node) -> None:
        """Refuse a Gather that is not a row of a table for each token id."""
        ids = self.input_of(node, 1)
        while (producer := ids.producer()) is not None and producer.op_type in ("Cast", "Identity"):
            ids = self.input_of(producer, 0)
        if int(_attribute(node, "axis", 0)) != 0 or not ids.is_graph_input():
            raise self.refused(node, "looks up something other than a row for each token id")

    def producer(self, value: ir.Value, *op_types: str) -> ir.Node:
        """Return the node that writes a value, which must be of a kind."""
        node = value.producer()
        if node is None:
            raise ModelFileError(
                f"{self._name}: {value.name!r} is an input of the graph; expected the result of "
                f"{' or '.join(op_types)}. {_ADVICE}"
            )
        if node.op_type not in op_types or node.domain:
            raise self.refused(node, f"stands where a language model has {' or '.join(op_types)}")
        return node

    def weights(self, node: ir.Node, index: int) -> FloatArray:
        """Return a constant input of floating-point numbers."""
        value = self.input_of(node, index)
        if value.const_value is None or not value.const_value.dtype.is_floating_point():
            raise self.refused(node, f"has no constant floating-point weights in input {index}")
        return np.asarray(value.const_value.numpy())

    def input_of(self, node: ir.Node, index: int) -> ir.Value:
        """Return an input that must be there."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            raise self.refused(node, f"lacks input {index}")
        return value

    def refused(self, node: ir.Node, problem: str) -> ModelFileError:
        """Return the error for a node that does not belong."""
        return ModelFileError(
            f"{self._name}: node {node.name!r} ({node.op_type}) {problem}; expected token ids -> embedding -> "
            f"recurrent layers -> output layer. {_ADVICE}"
        )

    def _absent(self, node: ir.Node, name: str) -> bool:
        return slot(name) >= len(node.inputs) or node.inputs[slot(name)] is None

    def _check_plain(self, node: ir.Node) -> None:
        """Refuse what PyTorch's layers cannot do: other activations, peepholes, lengths, two directions."""
        present = [name for name in ("sequence_lens", "P") if not self._absent(node, name)]
        present += [name for name in ("clip", "input_forget", "layout") if _attribute(node, name, 0)]
        if _attribute(node, "direction", "forward") != "forward":
            present.append("another direction")
        if tuple(_attribute(node, "activations", ACTIVATIONS[node.op_type])) != ACTIVATIONS[node.op_type]:
            present.append("other activations")
        if node.op_type == "GRU" and not _attribute(node, "linear_before_reset", 0):
            present.append("linear_before_reset=0")
        if present:
            raise self.refused(node, f"has {', '.join(present)}, which PyTorch's layers have not")

    def _state_width(self, node: ir.Node, into: str, out: str, hidden_size: int) -> int:
        """Return the width of a carried state; it must start the units that it is continued by."""
        start = None if self._absent(node, into) else self.input_of(node, slot(into))
        if start is None:
            raise self.refused(node, f"has no {into} that is carried from call to call")
        kept, start = self._gathered(start)
        target = next((v for v in self._graph.outputs if v.name == self._fed_back.get(str(start.name))), None)
        if not start.is_graph_input() or target is None:
            raise self.refused(node, f"has an {into} that is no carried state of the graph")
        where, end = self._gathered(self._moved(target))
        if where is not None:
            pad = self.producer(end, "Pad")
            if self._integers(pad, "pads", 1) != _ONE_ZERO_MORE:
                raise self.refused(pad, "pads a state by something other than one zero")
            end = self.input_of(pad, 0)
        index = OUTPUTS.index(out)
        if index >= len(node.outputs) or end is not node.outputs[index]:
            raise self.refused(node, f"does not write the state {target.name!r} that continues {start.name!r}")
        positions = np.arange(hidden_size) if kept is None else kept
        written = np.arange(hidden_size) if where is None else where[positions]
        if not np.array_equal(written, np.arange(hidden_size)):
            raise self.refused(node, f"reads from {start.name!r} other positions than it writes to {target.name!r}")
        return hidden_size if where is None else where.size

    def _gathered(self, value: ir.Value) -> tuple[IndexArray | None, ir.Value]:
        """Return constant positions along the last axis and what they are taken from; None for a value as it is."""
        node = value.producer()
        if node is None or node.op_type != "Gather":
            return None, value
        positions = self.input_of(node, 1).const_value
        if positions is None or int(_attribute(node, "axis", 0)) not in (-1, 2):
            raise self.refused(node, "takes from a state something other than fixed units")
        return positions.numpy().astype(np.int64), self.input_of(node, 0)

    def _moved(self, value: ir.Value) -> ir.Value:
        while (node := value.producer()) is not None and node.op_type == "Identity":
            value = self.input_of(node, 0)
        return value

    def _integers(self, node: ir.Node, name: str, index: int) -> list[int]:
        """Return a list of integers from the attribute of older opsets, or from the constant input."""
        if name in node.attributes:
            return [int(number) for number in node.attributes[name].value]
        constant = self.input_of(node, index).const_value
        if constant is None:
            raise self.refused(node, f"has no constant {name}")
        return [int(number) for number in constant.numpy().reshape(-1)]


_ADVICE = "Continue a model that `toolchain train` wrote, before it was quantized."


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value
