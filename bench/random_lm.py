"""Write language models of any size with random weights, without training and without PyTorch.

    tokens [T, B] -> Gather -> LSTM x N -> MatMul + Add -> logits [T, B, V]
    each layer: h_n, c_n [1, B, H] in -> h_n_next, c_n_next out, declared in `toolchain.carried_state`

Latency does not depend on what the weights say, so published sizes can be timed without their training
runs. `dead` plants neurons that nobody reads, exactly as a folded gate leaves them: the columns of `R`, of
the next layer's `W` and of the output weight are zero, while the neuron itself keeps its weights and
goes on computing. Embedding columns are planted in the same way, through the first `W`.

    python -m toolchain.bench.random_lm OUT.onnx --sizes 1500,1500,1500 --dead 0.8
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.intp]

CARRIED_STATE_KEY = "toolchain.carried_state"
OPSET = 17  # the first opset with LayerNormalization; LSTM is unchanged since 14
IR_VERSION = 8  # ONNX Runtime 1.12 and later read it, so old devices can run these files


def write_language_model(
    path: Path,
    *,
    vocabulary: int = 10_000,
    embedding: int,
    hidden: Sequence[int],
    dead: float = 0.0,
    seed: int = 0,
) -> None:
    """Write an LSTM language model with random weights to `path`.

    Args:
        path: the ONNX file; weights are inside it (so at most 2 GB).
        vocabulary: rows of the embedding table and columns of the output layer.
        embedding: columns of the embedding table.
        hidden: hidden units of each LSTM layer, bottom first.
        dead: fraction of embedding columns and of every layer's neurons that nobody reads, in [0, 1).
        seed: of weights and of the choice of dead neurons; equal arguments give equal bytes.
    """
    random = np.random.default_rng(seed)
    table = _uniform(random, (vocabulary, embedding), bound=0.1)
    initializers = [numpy_helper.from_array(table, "embedding")]
    nodes = [helper.make_node("Gather", ["embedding", "tokens"], ["x_0"], name="embed")]
    unread = _choose_dead(random, embedding, dead)
    for layer, (width_in, width) in enumerate(zip([embedding, *hidden], hidden, strict=False)):
        W, R, B = _lstm_weights(random, width_in, width)
        W[..., unread] = 0.0
        unread = _choose_dead(random, width, dead)
        R[..., unread] = 0.0
        for name, array in (("W", W), ("R", R), ("B", B)):
            initializers.append(numpy_helper.from_array(array, f"{name}_{layer}"))
        nodes.extend(_lstm_nodes(layer, width))
    weight = _uniform(random, (hidden[-1], vocabulary), bound=hidden[-1] ** -0.5)
    weight[unread] = 0.0
    initializers.append(numpy_helper.from_array(weight, "output_weight"))
    initializers.append(numpy_helper.from_array(_uniform(random, (vocabulary,), bound=0.1), "output_bias"))
    initializers.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "direction_axis"))
    nodes.append(helper.make_node("MatMul", [f"x_{len(hidden)}", "output_weight"], ["scores"], name="output"))
    nodes.append(helper.make_node("Add", ["scores", "output_bias"], ["logits"], name="output_bias_add"))
    onnx.save_model(_model(nodes, initializers, vocabulary, hidden), path)


def _uniform(random: np.random.Generator, shape: tuple[int, ...], *, bound: float) -> FloatArray:
    """Draw from U(-bound, bound), in place so that a 264 MB model does not need 528."""
    values = random.random(shape, dtype=np.float32)
    values *= 2 * bound
    values -= bound
    return values


def _choose_dead(random: np.random.Generator, width: int, dead: float) -> IndexArray:
    return np.sort(random.permutation(width)[: round(width * dead)])


def _lstm_weights(
    random: np.random.Generator, input_size: int, hidden_size: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw W, R, B of one direction as `nn.LSTM` initialises them: U(-1/sqrt(H), 1/sqrt(H))."""
    bound = hidden_size**-0.5
    W = _uniform(random, (1, 4 * hidden_size, input_size), bound=bound)
    R = _uniform(random, (1, 4 * hidden_size, hidden_size), bound=bound)
    B = _uniform(random, (1, 8 * hidden_size), bound=bound)
    return W, R, B


def _lstm_nodes(layer: int, hidden_size: int) -> Iterator[onnx.NodeProto]:
    """Yield one LSTM layer and the Squeeze that drops its direction axis."""
    yield helper.make_node(
        "LSTM",
        [f"x_{layer}", f"W_{layer}", f"R_{layer}", f"B_{layer}", "", f"h_{layer}", f"c_{layer}"],
        [f"y_{layer}", f"h_{layer}_next", f"c_{layer}_next"],  # y: [T, 1, B, H]
        name=f"lstm_{layer}",
        hidden_size=hidden_size,
    )
    yield helper.make_node("Squeeze", [f"y_{layer}", "direction_axis"], [f"x_{layer + 1}"], name=f"squeeze_{layer}")


def _carried_pairs(layers: int) -> list[tuple[str, str]]:
    return [(f"{kind}_{layer}", f"{kind}_{layer}_next") for layer in range(layers) for kind in "hc"]


def _model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    vocabulary: int,
    hidden: Sequence[int],
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["seq_length", "batch_size"])]
    logits_shape: list[str | int | None] = ["seq_length", "batch_size", vocabulary]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits_shape)]
    pairs = _carried_pairs(len(hidden))
    widths = [width for width in hidden for _ in "hc"]
    for (state_in, state_out), width in zip(pairs, widths, strict=True):
        shape: list[str | int | None] = [1, "batch_size", width]
        inputs.append(helper.make_tensor_value_info(state_in, TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(state_out, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "random_language_model", inputs, outputs, initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="toolchain",
    )
    helper.set_model_props(model, {CARRIED_STATE_KEY: json.dumps(pairs)})
    return model


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--sizes", required=True, metavar="E,H1[,H2…]", help="Embedding and hidden sizes, bottom first.")
@click.option("--vocabulary", default=10_000, show_default=True, type=click.IntRange(min=2))
@click.option("--dead", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def main(out: Path, sizes: str, vocabulary: int, dead: float, seed: int) -> None:
    """Write an LSTM language model with random weights to OUT."""
    try:
        embedding, *hidden = [int(size) for size in sizes.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{sizes!r} is not a list of whole numbers", param_hint="--sizes") from error
    if not hidden or min(embedding, *hidden) < 1:
        raise click.BadParameter(f"{sizes!r} needs two sizes or more, all at least 1", param_hint="--sizes")
    write_language_model(out, vocabulary=vocabulary, embedding=embedding, hidden=hidden, dead=dead, seed=seed)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {vocabulary} words, sizes {sizes}, dead {dead:g}")


if __name__ == "__main__":
    main()
