"""Operators that sum over positions: matrices, convolutions, pools, normalisations, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from toolchain.torch_graph.node import Result, TorchNode

Operator = Callable[..., Result]
Reduction = Callable[[Tensor, list[int], bool], Tensor]
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_SOFTMAX_ONE_AXIS_OPSET = 13  # before it the softmaxes flattened all axes from `axis` (1 by default) on


def _matmul(node: TorchNode, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _gemm(node: TorchNode, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.attribute("transA", 0) else a
    b = b.T if node.attribute("transB", 0) else b
    product: Tensor = torch.mm(a, b) * node.attribute("alpha", 1.0)
    return product if c is None else product + node.attribute("beta", 1.0) * c


def _einsum(node: TorchNode, *operands: Tensor) -> Tensor:
    return torch.einsum(node.attribute("equation"), *operands)


def _padding(node: TorchNode, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """Return what goes around each spatial axis, last axis first, as `functional.pad` wants it."""
    rank = len(kernel)
    mode = node.attribute("auto_pad", "NOTSET")
    pads = node.integers("pads") or [0] * (2 * rank)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_padding(node, x, kernel, upper=mode == "SAME_UPPER")
    elif mode == "VALID":
        pads = [0] * (2 * rank)
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]


def _same_padding(node: TorchNode, x: Tensor, kernel: Sequence[int], *, upper: bool) -> list[int]:
    rank = len(kernel)
    strides, dilations = node.integers("strides") or [1] * rank, node.integers("dilations") or [1] * rank
    begin, end = [], []
    for length, size, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        begin.append(total // 2 if upper else total - total // 2)
        end.append(total - begin[-1])
    return begin + end


def _conv(node: TorchNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    padding = _padding(node, x, weight.shape[2:])
    symmetric = padding[::2] == padding[1::2]
    if not symmetric:
        x = functional.pad(x, padding)
    return _CONV[rank](x, weight, bias, stride=node.integers("strides") or 1,
                       padding=tuple(reversed(padding[::2])) if symmetric else 0,
                       dilation=node.integers("dilations") or 1, groups=node.attribute("group", 1))  # fmt: skip


def _conv_transpose(node: TorchNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    if node.attribute("auto_pad", "NOTSET") != "NOTSET" or node.attribute("output_shape"):
        raise ValueError("auto_pad and output_shape are not supported")
    pads = node.integers("pads") or [0] * (2 * rank)
    strides, dilations = node.integers("strides") or 1, node.integers("dilations") or 1
    out = _CONV_TRANSPOSE[rank](x, weight, bias, stride=strides, output_padding=node.integers("output_padding") or 0,
                                dilation=dilations, groups=node.attribute("group", 1))  # fmt: skip
    for axis in range(rank):  # the sizes may differ at both ends, which PyTorch's own padding cannot say
        out = out.narrow(axis + 2, pads[axis], out.shape[axis + 2] - pads[axis] - pads[axis + rank])
    return out


def _max_pool(node: TorchNode, x: Tensor) -> Tensor:
    kernel = node.integers("kernel_shape") or []
    if node.outputs > 1 or node.attribute("ceil_mode", 0):
        raise ValueError("ceil_mode and indices are not supported")
    x = functional.pad(x, _padding(node, x, kernel), value=-torch.inf)
    return _MAX_POOL[len(kernel)](x, kernel, node.integers("strides") or 1, dilation=node.integers("dilations") or 1)


def _global_average_pool(node: TorchNode, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def _batch_normalization(
    node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, eps=node.attribute("epsilon", 1e-5))


def _instance_normalization(node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=node.attribute("epsilon", 1e-5))


def _layer_normalization(
    node: TorchNode, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    axes = tuple(range(node.attribute("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    inverse_deviation = torch.rsqrt(variance + node.attribute("epsilon", 1e-5))
    normal = (x - mean) * inverse_deviation * scale
    return normal if bias is None else normal + bias, mean, inverse_deviation


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def run(node: TorchNode, x: Tensor) -> Tensor:
        if node.opset >= _SOFTMAX_ONE_AXIS_OPSET:
            return function(x, node.attribute("axis", -1))
        return function(x.flatten(node.attribute("axis", 1) % x.ndim), -1).reshape(x.shape)

    return run


def _reduction(function: Reduction) -> Operator:
    def run(node: TorchNode, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = node.integers("axes", axes)
        if not along and node.attribute("noop_with_empty_axes", 0):
            return x
        return function(x, along or list(range(x.ndim)), bool(node.attribute("keepdims", 1)))

    return run


def _prod(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def run(node: TorchNode, x: Tensor) -> Tensor:
        if node.attribute("select_last_index", 0):
            raise ValueError("select_last_index is not supported")
        return function(x, node.attribute("axis", 0), keepdim=bool(node.attribute("keepdims", 1)))

    return run


def _cumulative_sum(node: TorchNode, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    x = x.flip(along) if node.attribute("reverse", 0) else x
    total = x.cumsum(along, dtype=x.dtype)
    total = total - x if node.attribute("exclusive", 0) else total
    return total.flip(along) if node.attribute("reverse", 0) else total


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}

MIXING: dict[str, Operator] = {
    "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum, "Conv": _conv, "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool, "GlobalAveragePool": _global_average_pool, "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization, "LayerNormalization": _layer_normalization,
    "Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax),
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "CumSum": _cumulative_sum,
    **{name: _reduction(function) for name, function in _REDUCTIONS.items()},
}  # fmt: skip
