"""What a matrix says, weighed by what becomes of it: scores count as often as their class is predicted.

An error d in the scores of classes changes a prediction p by

    KL(p || softmax(scores + d))  =  1/2 sum_v p_v (d_v - sum_u p_u d_u)^2  +  O(d^3)

With the average prediction p over the samples, and n classes that count as much together as n outputs of any other
matrix, what a matrix W says in scores is as important as what this one says in plain numbers:

    W'  =  (W - W p 1') diag(n p)^1/2

Unweighed, thousands of words that are next to impossible outvote those that are said: a 2x256 language model of 8,001
words with half and with a quarter of its units had 1.038 and 1.202 times its perplexity, weighed 1.035 and 1.176. What
is folded does not change: least squares fits every column by itself.

Source: Pascanu and Bengio 2014, arXiv 1301.3584, on the Fisher information of a softmax.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.oneshot.matrices import Matrix
from toolchain.oneshot.output_error import SOFTMAXES
from toolchain.oneshot.survey import Survey

FloatArray = npt.NDArray[np.float64]


def class_predictions(surveyed: Survey, predictions: Mapping[str, FloatArray]) -> dict[Matrix, FloatArray]:
    """Return, for each matrix whose columns are the classes of an output, their average predictions `[num_out]`.

    Args:
        surveyed: the model.
        predictions: average prediction of each output that holds scores, shape `[num_classes]`, by name.
    """
    program, labels = surveyed.program, surveyed.labels
    columns = {id(node): labels[transfer.neurons["columns"].cells] for node, transfer in
               zip(program.nodes, program.transfers, strict=True) if "columns" in transfer.neurons}  # fmt: skip
    found: dict[Matrix, FloatArray] = {}
    for output in program.graph.outputs:
        average = predictions.get(str(output.name))
        space = program.numbering.spaces.get(id(_scores(output)))  # [.., num_classes]; none far from recurrent nodes
        if average is not None and space is not None and space.shape[-1:] == average.shape:
            classes = labels[space.cells.reshape(-1, average.size)[0]]
            found |= {matrix: average for matrix in surveyed.matrices
                      if id(matrix.node) in columns and np.array_equal(columns[id(matrix.node)], classes)}  # fmt: skip
    return found


def _scores(output: ir.Value) -> ir.Value:
    """Return what the softmax reads that makes an output, or the output itself."""
    producer = output.producer()
    scores = producer.inputs[0] if producer is not None and producer.op_type in SOFTMAXES else None
    return output if scores is None else scores


def weighed(weights: FloatArray, average: FloatArray) -> FloatArray:
    """Return W' for W of shape `[num_rows, num_out]` and the average prediction of its columns, `[num_out]`."""
    return (weights - (weights @ average)[:, None]) * np.sqrt(average.size * average)
