"""Operators that compute each output position from the input positions at the same place, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from toolchain.torch_graph.node import Result, TorchNode

Operator = Callable[..., Result]
_HARD_SWISH_SLOPE = 1 / 6
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _plain(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *operands: function(*operands)


def _reduced(function: Callable[..., Tensor]) -> Operator:
    return lambda node, *operands: functools.reduce(function, operands)


def _identity(node: TorchNode, x: Tensor) -> Tensor:
    return x


def _dropout(node: TorchNode, x: Tensor, *settings: Tensor | None) -> tuple[Tensor, Tensor]:
    if len(settings) > 1 and bool(settings[1]):
        raise ValueError("training_mode is not supported")
    return x, torch.ones_like(x, dtype=torch.bool)


def _mean(node: TorchNode, *operands: Tensor) -> Tensor:
    return functools.reduce(torch.add, operands) / len(operands)


def _cast(node: TorchNode, x: Tensor) -> Tensor:
    return x.to(torch_type(ir.DataType(node.attribute("to"))))


def torch_type(dtype: ir.DataType) -> torch.dtype:
    """Return PyTorch's name of an ONNX number type."""
    found = getattr(torch, str(dtype.numpy()), None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"PyTorch has no {dtype}")
    return found


def _clip(node: TorchNode, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    for bound, name, cut in ((low, "min", torch.maximum), (high, "max", torch.minimum)):
        value = node.attribute(name) if bound is None else bound
        if value is not None:
            x = cut(x, torch.as_tensor(value, dtype=x.dtype))
    return x


def _div(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.attribute("fmod", 0) else torch.remainder(a, b)


def _pow(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _elu(node: TorchNode, x: Tensor) -> Tensor:
    return functional.elu(x, node.attribute("alpha", 1.0))


def _celu(node: TorchNode, x: Tensor) -> Tensor:
    return functional.celu(x, node.attribute("alpha", 1.0))


def _selu(node: TorchNode, x: Tensor) -> Tensor:
    return node.attribute("gamma", _SELU_GAMMA) * functional.elu(x, node.attribute("alpha", _SELU_ALPHA))  # type: ignore[no-any-return]


def _gelu(node: TorchNode, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.attribute("approximate", "none"))


def _hard_sigmoid(node: TorchNode, x: Tensor) -> Tensor:
    return torch.clamp(node.attribute("alpha", 0.2) * x + node.attribute("beta", 0.5), 0, 1)


def _hard_swish(node: TorchNode, x: Tensor) -> Tensor:
    return x * torch.clamp(_HARD_SWISH_SLOPE * x + 0.5, 0, 1)


def _leaky_relu(node: TorchNode, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.attribute("alpha", 0.01))


def _prelu(node: TorchNode, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _shrink(node: TorchNode, x: Tensor) -> Tensor:
    bias, threshold = node.attribute("bias", 0.0), node.attribute("lambd", 0.5)
    return torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, torch.zeros_like(x)))


def _swish(node: TorchNode, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.attribute("alpha", 1.0) * x)


def _thresholded_relu(node: TorchNode, x: Tensor) -> Tensor:
    return torch.where(x > node.attribute("alpha", 1.0), x, torch.zeros_like(x))


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


_PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log,
    "Mish": functional.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": _softplus, "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "Sub": torch.sub, "Mul": torch.mul, "Add": torch.add, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt,
    "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "Where": torch.where,
}  # fmt: skip

ELEMENTWISE: dict[str, Operator] = {
    **{name: _plain(function) for name, function in _PLAIN.items()},
    "Max": _reduced(torch.maximum), "Min": _reduced(torch.minimum), "Sum": _reduced(torch.add), "Mean": _mean,
    "Identity": _identity, "Dropout": _dropout, "Cast": _cast, "Clip": _clip, "Div": _div, "Mod": _mod, "Pow": _pow,
    "Elu": _elu, "Celu": _celu, "Selu": _selu, "Gelu": _gelu, "HardSigmoid": _hard_sigmoid, "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu, "PRelu": _prelu, "Shrink": _shrink, "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}  # fmt: skip
