"""What a network reads and returns, found by running it: its state, and which axes are time and batch.

A *state* is a tensor or (nested) tuples of tensors; in a graph it is flat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.errors import TrainingError

STATE_NAMES = ("h", "c")
TIME, BATCH = "T", "B"  # what free axes are called
PROVING_SHAPE = (7, 7)  # of random inputs, the longest that an export is compared on
TRACED_STEPS, TRACED_BATCH = 3, 2  # not 1, which a tracer may take for a constant
# What a module raises for an input or a state that it was not made for.
FORWARD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

State = tuple[tuple[Tensor, ...], ...]  # of a token model: per layer (h, c) or (h,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a module reads and returns.

    Attributes:
        example: of its input; either of the first two axes can have any length.
        time_axis: 0, or 1 if sequences come first.
        make_state: returns a state for so many sequences; None if the module carries none.
        input: name of the graph's input.
        output: name of the graph's output.
        states: names of the state's tensors, flat.
    """

    example: Tensor
    time_axis: int
    make_state: Callable[[int], Any] | None
    input: str
    output: str
    states: tuple[str, ...]

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs of the graph."""
        return [self.output, *(f"{name}_out" for name in self.states)]

    def sized(self, steps: int, batch: int) -> Tensor:
        """Return an input of another length and number of sequences, made of the example's frames."""
        sized = self.example
        for axis, length in ((self.time_axis, steps), (1 - self.time_axis, batch)):
            places = torch.arange(length, device=sized.device) % sized.shape[axis]
            sized = sized.index_select(axis, places)
        return sized

    def random_state(self, batch: int, *, seed: int) -> Any:
        """Return a state for so many sequences, uniform in [-0.5, 0.5]; None if the module carries none."""
        if self.make_state is None:
            return None
        like = self.make_state(batch)
        generator = torch.Generator().manual_seed(seed)
        flat = [(torch.rand(tensor.shape, generator=generator) - 0.5).to(tensor) for tensor in flatten(like)]
        return nest(like, iter(flat))


def token_signature(model: nn.Module) -> Signature:
    """Return the signature of a token model, which has `initial_state`.

    Raises:
        TrainingError: it has not.
    """
    if not hasattr(model, "initial_state"):
        raise TrainingError(
            f"{type(model).__name__}: has no initial_state, so it is no token model; expected an example of its input. "
            "Call export(model, path, example=torch.zeros(steps, batch, ...))."
        )
    make_state: Callable[[int], State] = model.initial_state  # type: ignore[assignment]  # nn.Module hides the protocol
    tokens = torch.arange(2, device=_device(model))[:, None]  # ids 0 and 1 are in any vocabulary
    return Signature(example=tokens, time_axis=0, make_state=make_state, input="tokens", output="logits",
                     states=tuple(state_names(make_state(1))))  # fmt: skip


def read_signature(model: nn.Module, example: Tensor, *, batch_first: bool) -> Signature:
    """Run a module without a state to see what it carries.

    Raises:
        TrainingError: it fails on the example, or returns neither a tensor nor a tensor and its state.
    """
    example = example.to(_device(model))
    if example.dim() < 2 or not example.numel():
        raise TrainingError(
            f"{type(model).__name__}: the example has shape {list(example.shape)}; expected at least a step of a "
            "sequence, [T, B, ...]. Pass an input as the training loop does."
        )
    if example.is_floating_point() and bool((example == example.flatten()[0]).all()):
        # zeros would prove little: an input that is nowhere read would go unnoticed
        example = torch.rand(PROVING_SHAPE + example.shape[2:], generator=torch.Generator().manual_seed(0)).to(example)
    stateless = Signature(example=example, time_axis=int(batch_first), make_state=None, input="input", output="output",
                          states=())  # fmt: skip
    result = call(model, stateless.sized(TRACED_STEPS, TRACED_BATCH))
    if isinstance(result, Tensor):
        return stateless
    output, state = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
    if not isinstance(output, Tensor) or not _is_state(state):
        raise TrainingError(
            f"{type(model).__name__}: forward returns {_described(result)}; expected a tensor, or a tensor and its "
            "state (a tensor or tuples of tensors). Wrap it in a module that returns these."
        )
    return Signature(
        example=example,
        time_axis=int(batch_first),
        make_state=lambda batch: call(model, stateless.sized(TRACED_STEPS, batch))[1],
        input="input",
        output="output",
        states=tuple(f"state_{number}" for number in range(len(list(flatten(state))))),
    )


def free_axes(model: nn.Module, signature: Signature) -> dict[str, dict[int, str]]:
    """Return the axes of each input and output that change with the number of steps or of sequences."""
    usual, longer, wider = (
        [
            list(tensor.shape)
            for tensor in outputs_of(model, signature.sized(*size), signature.random_state(size[1], seed=0))
        ]
        for size in ((TRACED_STEPS, TRACED_BATCH), (TRACED_STEPS + 1, TRACED_BATCH), (TRACED_STEPS, TRACED_BATCH + 1))
    )
    axes = {signature.input: {signature.time_axis: TIME, 1 - signature.time_axis: BATCH}}
    for name, shape, with_time, with_batch in zip(signature.outputs, usual, longer, wider, strict=True):
        axes[name] = {axis: TIME for axis, length in enumerate(shape) if with_time[axis] != length}
        axes[name] |= {axis: BATCH for axis, length in enumerate(shape) if with_batch[axis] != length}
    return axes | {name: axes[f"{name}_out"] for name in signature.states}


def outputs_of(model: nn.Module, x: Tensor, state: Any) -> list[Tensor]:
    """Run a module and return its output and the tensors of its state, flat."""
    if state is None:
        return [call(model, x)]
    output, after = call(model, x, state)
    return [output, *flatten(after)]


def call(model: nn.Module, *arguments: Any) -> Any:
    """Run a module.

    Raises:
        TrainingError: it fails.
    """
    try:
        return model(*arguments)
    except FORWARD_ERRORS as error:
        given = ", ".join(_described(argument) for argument in arguments)
        raise TrainingError(
            f"{type(model).__name__}: fails on {given} ({' '.join(str(error).split())[:200]}); expected forward to "
            "take inputs of any length and number of sequences, and the state that it returned. Correct forward, or "
            "the example."
        ) from error


def state_names(state: State) -> list[str]:
    """Return the graph's name of each state tensor of a token model: h_0, c_0, h_1, ..."""
    return [f"{STATE_NAMES[part]}_{layer}" for layer, tensors in enumerate(state) for part in range(len(tensors))]


def flatten(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested state from left to right; none of None."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from flatten(part)


def nest(like: Any, flat: Iterator[Tensor]) -> Any:
    """Return the tensors nested as `like` is."""
    return next(flat) if isinstance(like, Tensor) else tuple(nest(part, flat) for part in like)


def _is_state(state: Any) -> bool:
    if isinstance(state, Tensor):
        return True
    return isinstance(state, tuple) and bool(state) and all(_is_state(part) for part in state)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {', '.join(_described(part) for part in value)}"
    return f"a {type(value).__name__}"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
