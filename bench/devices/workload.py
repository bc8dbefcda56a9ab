"""What a graph does, as far as its time depends on it: matrix products with weights, and recurrent steps.

ONNX Runtime computes a recurrent node's input projection as one product of `seq_length*batch_size` rows with W, and
then, step by step, a product of `batch_size` rows with R. Everything else that multiplies by constant weights is one
product; a table is read, and multiplies nothing. Other operators are small beside these; convolutions, whose loops are
not described, are listed in `left_out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolchain.errors import BenchError

from ..costs import CONVOLUTIONS, LayerCost, ModelCosts

FLOAT_BYTES = 4
INSTEAD = "Count its instructions with --device qemu:PROFILE, or measure it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """`repeats` times, one after the other: `rows` rows times a matrix of `weights` numbers."""

    name: str
    rows: int
    weights: int
    repeats: int = 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix."""
        return self.weights * FLOAT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One call of a model. `unit_steps` counts hidden units x steps x sequences, `node_steps` recurrent steps."""

    products: tuple[Product, ...]
    unit_steps: int
    node_steps: int
    left_out: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices, each once."""
        return sum(product.weight_bytes for product in self.products)


def workload_of(costs: ModelCosts, *, name: str) -> Workload:
    """Return the workload of a model from its layers' costs; `name` is the model's in messages.

    Raises:
        BenchError: a layer's cost is not known, or its weights are not float32.
    """
    if costs.not_counted:
        raise BenchError(
            f"{name}: what {costs.not_counted[0]} costs does not follow from the graph; expected known shapes, outside "
            f"of If, Loop and Scan, to estimate with. {INSTEAD}"
        )
    for layer in costs.layers:
        if layer.multiply_adds and layer.dtype != "float32":
            raise BenchError(
                f"{name}: {layer.op_type} {layer.name!r} has {layer.dtype} weights; expected float32, because no "
                f"cycles of other loops are known. {INSTEAD}"
            )
    return Workload(
        products=tuple(product for layer in costs.layers for product in _products(layer)),
        unit_steps=sum(layer.num_directions * layer.hidden_size * layer.rows for layer in costs.layers),
        node_steps=sum(layer.num_directions * layer.steps for layer in costs.layers if layer.hidden_size),
        left_out=tuple(f"{layer.op_type} {layer.name}" for layer in costs.layers if layer.op_type in CONVOLUTIONS),
    )


def _products(layer: LayerCost) -> Iterator[Product]:
    """Yield a recurrent node's input projection and each direction's product with R, or the layer's only product."""
    weights = layer.once_bytes // FLOAT_BYTES
    if layer.hidden_size:
        yield Product(name=f"{layer.name} W", rows=layer.rows, weights=weights)
        R = layer.step_bytes // FLOAT_BYTES // layer.num_directions
        for _ in range(layer.num_directions):
            yield Product(name=f"{layer.name} R", rows=layer.rows // layer.steps, weights=R, repeats=layer.steps)
    elif layer.op_type in CONVOLUTIONS or not layer.multiply_adds:
        yield Product(name=layer.name, rows=0, weights=weights)  # read, but its arithmetic is not in the products
    else:
        yield Product(name=layer.name, rows=layer.rows, weights=weights)
