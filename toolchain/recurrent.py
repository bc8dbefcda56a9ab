"""The one module that knows how recurrent weights are laid out in ONNX.

Every gate block has `hidden_size` rows; blocks are stacked along axis 1 in the order of `GATES`:

    X [seq_length, batch_size, input_size]
    W [num_directions, num_gates*hidden_size, input_size]      R [num_directions, num_gates*hidden_size, hidden_size]
    B [num_directions, 2*num_gates*hidden_size]  (Wb then Rb)  P [num_directions, 3*hidden_size]  (LSTM peepholes, iof)
    initial_h, initial_c [num_directions, batch_size, hidden_size]
    Y [seq_length, num_directions, batch_size, hidden_size]    Y_h, Y_c [num_directions, batch_size, hidden_size]

ONNX Runtime's DynamicQuantizeLSTM stores integers, the other way round, with a scale and a zero point per direction,
`[num_directions]`, or per row, `[num_directions, 4*hidden_size]`:

    W [num_directions, input_size, 4*hidden_size]              R [num_directions, hidden_size, 4*hidden_size]

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.errors import LayoutError

Array = npt.NDArray[Any]
IndexArray = npt.NDArray[np.intp]

QUANTIZED_LSTM = "DynamicQuantizeLSTM"  # of domain com.microsoft
GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "i", QUANTIZED_LSTM: "iofc"}
CANDIDATE = {"LSTM": "c", "GRU": "h", "RNN": "i", QUANTIZED_LSTM: "c"}  # what the state moves towards
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P",
          "W_scale", "W_zero_point", "R_scale", "R_zero_point")  # fmt: skip
OUTPUTS = ("Y", "Y_h", "Y_c")
NUM_PEEPHOLES = 3
NUM_LSTM_INPUTS = 8  # those after them are of DynamicQuantizeLSTM
# The same gates in PyTorch's order (`torch.nn.LSTM`, `GRU`, `RNN`), which calls c and h "g" and "n".
PYTORCH_GATES = {"LSTM": "ifco", "GRU": "rzh", "RNN": "i"}
ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}  # the defaults


def slot(name: str) -> int:
    """Return the input index of `W`, `R`, `B`, ... of a recurrent node."""
    return INPUTS.index(name)


def column_axis(op_type: str) -> int:
    """Return the axis, from the back, along which `W` has the inputs, and `R` the units that are read."""
    return -2 if op_type == QUANTIZED_LSTM else -1


def check_shapes(
    name: str,
    op_type: str,
    *,
    hidden_size: int | None,
    W: tuple[int, ...],
    R: tuple[int, ...],
    B: tuple[int, ...] | None,
    P: tuple[int, ...] | None,
) -> None:
    """Refuse a recurrent node whose tensors disagree (`onnx.checker` accepts an `R` of shape `[1, 4H, H-1]`).

    Args:
        name: the node, as it is called in messages.
        op_type: LSTM, GRU or RNN.
        hidden_size: the node's attribute, if it has one.
        W: shape of the input weights; R, B, P likewise.
        R: shape of the recurrence weights.
        B: shape of the biases, None when absent.
        P: shape of the peepholes, None when absent.

    Raises:
        LayoutError: a shape is not what the operator's specification says.
    """
    if len(W) != 3 or len(R) != 3:
        raise LayoutError(
            f"node {name!r}: W has shape {W} and R {R}; expected three axes each. Export the model again."
        )
    H, num_gates, D = R[2], len(GATES[op_type]), W[0]
    if min(H, D) < 1:
        raise LayoutError(f"node {name!r}: R has shape {R}; expected at least one hidden unit. Export the model again.")
    expected = {
        "W": (W, (D, num_gates * H, W[2])),
        "R": (R, (D, num_gates * H, H)),
        "B": (B, (D, 2 * num_gates * H)),
        "P": (P, (D, NUM_PEEPHOLES * H)),
    }
    if hidden_size is not None and hidden_size != H:
        raise LayoutError(
            f"node {name!r}: hidden_size is {hidden_size} but R has shape {R}; expected R's last axis "
            f"to be hidden_size. Export the model again."
        )
    for tensor, (shape, wanted) in expected.items():
        if shape is not None and shape != wanted:
            raise LayoutError(
                f"node {name!r}: {tensor} has shape {shape}; expected {wanted} for an {op_type} with "
                f"{H} hidden units. Export the model again."
            )


def read_units(weights: Array, num_gates: int) -> npt.NDArray[np.bool_]:
    """Tell which columns each unit's rows read, in any gate.

    Args:
        weights: `W` or `R`, shape `[num_directions, num_gates*hidden_size, columns]`.
        num_gates: stacked blocks along axis 1.

    Returns:
        True where a weight is not zero, shape `[num_directions, hidden_size, columns]`.
    """
    D, rows, columns = weights.shape
    gates = weights.reshape(D, num_gates, rows // num_gates, columns)
    reads = np.zeros((D, rows // num_gates, columns), dtype=np.bool_)
    for gate in range(num_gates):  # one by one, because the weights may be larger than what is free in memory
        reads |= gates[:, gate] != 0
    return reads


def candidate_rows(stacked: Array, op_type: str) -> Array:
    """Return the block of `W`, `R` or `Wb` that makes the candidate state, shape `[num_directions, hidden_size, ...]`.

    Where it is zero, and the state starts at zero, a unit is zero for ever, whatever its gates do:
    `C_t = f*C_{t-1} + i*g(0)`, `H_t = o*h(C_t)`; `H_t = (1 - z)*g(0) + z*H_{t-1}`; `H_t = f(0)`.
    """
    hidden_size = stacked.shape[1] // len(GATES[op_type])
    start = GATES[op_type].index(CANDIDATE[op_type]) * hidden_size
    return stacked[:, start : start + hidden_size]


def take_rows(stacked: Array, kept: IndexArray, *, blocks: int) -> Array:
    """Keep units in every block stacked along axis 1, each direction its own.

    Unit `u` of direction `d` owns rows `u`, `u + hidden_size`, ... of `stacked[d]`.

    Args:
        stacked: shape `[num_directions, blocks*hidden_size, ...]`.
        kept: units per direction, shape `[num_directions, num_kept]`.
        blocks: gate blocks along axis 1 (twice the gates for `B`).

    Returns:
        A new array, shape `[num_directions, blocks*num_kept, ...]`.

    Raises:
        LayoutError: axis 1 does not divide into `blocks`, or an index is out of range.
    """
    hidden_size, rest = divmod(stacked.shape[1], blocks)
    if rest or (kept.size and int(kept.max()) >= hidden_size):
        raise LayoutError(
            f"tensor of shape {stacked.shape}: cannot keep units up to {int(kept.max())} of {blocks} "
            f"blocks; expected axis 1 to be {blocks} x hidden_size."
        )
    rows = (np.arange(blocks)[:, None] * hidden_size + kept[:, None, :]).reshape(kept.shape[0], -1)  # [D, blocks*kept]
    return _stacked([stacked[d][rows[d]] for d in range(stacked.shape[0])])


def in_pytorch_order(stacked: Array, op_type: str) -> Array:
    """Return gate blocks stacked along axis 0, `[num_gates*hidden_size, ...]`, in PyTorch's order."""
    blocks = dict(zip(GATES[op_type], np.split(stacked, len(GATES[op_type])), strict=True))
    return np.concatenate([blocks[gate] for gate in PYTORCH_GATES[op_type]])


def take_columns(weights: Array, kept: IndexArray) -> Array:
    """Keep columns of the last axis, each direction its own (`kept` has shape `[num_directions, num_kept]`)."""
    return _stacked([weights[d][:, kept[d]] for d in range(weights.shape[0])])


def _stacked(directions: list[Array]) -> Array:
    """Stack along a new first axis, one direction without a copy."""
    return directions[0][None] if len(directions) == 1 else np.stack(directions)
