"""What PyTorch's two exporters write, over the matrix of recurrent modules: planted dead units go, outputs stay.

The default run takes a subset that holds every pair of choices; `python -m pytest -m slow` runs the rest.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import recurrent_shapes, run

import toolchain

INPUT_SIZE, HIDDEN_SIZE = 4, 6
STEPS, BATCH = 5, 2
DEAD = ((1, 4), (0, 2, 5), (3,))  # per layer; the second direction loses the units after these
LEFT = [HIDDEN_SIZE - len(dead) for dead in DEAD]


@dataclass(frozen=True)
class Case:
    """One module and one way to export it."""

    op_type: str
    directions: int
    layers: int
    batch_first: bool
    carried: bool
    read: str  # "Y", "last" step, or "Y_h"
    dynamic: bool
    dynamo: bool

    def __str__(self) -> str:
        flags = [name for name in ("batch_first", "carried", "dynamic", "dynamo") if getattr(self, name)]
        return "-".join([self.op_type, f"{self.directions}d", f"{self.layers}l", self.read, *flags])


def matrix() -> Iterator[Case]:
    """Every combination; with dynamo only what that exporter can do (it unrolls RNN, and freezes dynamic axes)."""
    for dynamo in (False, True):
        op_types, axes = (("LSTM", "GRU"), (False,)) if dynamo else (("LSTM", "GRU", "RNN"), (False, True))
        choices = (op_types, (1, 2), (1, 3), (False, True), (False, True), ("Y", "last", "Y_h"), axes, (dynamo,))
        for choice in itertools.product(*choices):
            yield Case(*choice)


def pairs_of(case: Case) -> set[tuple[tuple[int, object], ...]]:
    """Return the choices of a case two by two, and with dynamo those of the dynamo exporter apart."""
    choices = list(enumerate(astuple(case)[:-1]))
    return {(("dynamo", case.dynamo), *pair) for pair in itertools.combinations(choices, 2)}


def covering(cases: list[Case]) -> set[Case]:
    """Choose cases until every pair of choices is among them, the one with most new pairs first."""
    missing = set().union(*map(pairs_of, cases))
    chosen: set[Case] = set()
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))
        chosen.add(best)
        missing -= pairs_of(best)
    return chosen


CASES = list(matrix())
DEFAULT = covering(CASES)


class Net(torch.nn.Module):
    """A recurrent module, what is read of it, and a linear layer; with carried state, that comes in and goes out."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        module = getattr(torch.nn, case.op_type)
        self.rnn = module(INPUT_SIZE, HIDDEN_SIZE, case.layers, batch_first=case.batch_first,
                          bidirectional=case.directions == 2)  # fmt: skip
        self.head = torch.nn.Linear(case.directions * HIDDEN_SIZE, 3)

    def forward(self, x, *state):
        packed = None if not state else state if len(state) == 2 else state[0]
        Y, state = self.rnn(x, packed)
        state = state if isinstance(state, tuple) else (state,)
        if self.case.read == "Y":
            read = Y
        elif self.case.read == "last":
            read = Y[:, -1] if self.case.batch_first else Y[-1]
        else:
            read = torch.cat([state[0][-direction] for direction in range(self.case.directions, 0, -1)], dim=-1)
        return (self.head(read), *state) if self.case.carried else self.head(read)


@torch.no_grad()
def plant(net: Net) -> None:
    """Zero every weight that reads a unit of `DEAD`."""
    for layer in range(net.case.layers):
        columns = [[(unit + direction) % HIDDEN_SIZE for unit in DEAD[layer]]
                   for direction in range(net.case.directions)]  # fmt: skip
        for direction, suffix in enumerate(("", "_reverse")[: net.case.directions]):
            getattr(net.rnn, f"weight_hh_l{layer}{suffix}")[:, columns[direction]] = 0
        side_by_side = [d * HIDDEN_SIZE + unit for d, units in enumerate(columns) for unit in units]
        if layer + 1 < net.case.layers:
            for suffix in ("", "_reverse")[: net.case.directions]:
                getattr(net.rnn, f"weight_ih_l{layer + 1}{suffix}")[:, side_by_side] = 0
        else:
            net.head.weight[:, side_by_side] = 0


def state_names(case: Case) -> list[tuple[str, str]]:
    if not case.carried:
        return []
    return [(name, f"{name}_out") for name in ("h0", "c0")[: 2 if case.op_type == "LSTM" else 1]]


def inputs_of(case: Case, steps: int, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(steps)
    shape = (batch, steps, INPUT_SIZE) if case.batch_first else (steps, batch, INPUT_SIZE)
    state = (case.layers * case.directions, batch, HIDDEN_SIZE)
    return {
        "x": torch.randn(shape, generator=generator),
        **{name: 0.5 * torch.randn(state, generator=generator) for name, _ in state_names(case)},
    }


def export(net: Net, path: Path) -> None:
    case, inputs = net.case, inputs_of(net.case, STEPS, BATCH)
    batch_axis, time_axis = (0, 1) if case.batch_first else (1, 0)
    axes = {"x": {batch_axis: "B", time_axis: "T"}}
    axes |= {name: {1: "B"} for pair in state_names(case) for name in pair}
    options = {"dynamo": True} if case.dynamo else {"dynamo": False, "dynamic_axes": axes if case.dynamic else None}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(net, tuple(inputs.values()), str(path), input_names=list(inputs),
                          output_names=["out", *(output for _, output in state_names(case))], **options)  # fmt: skip


def exported(case: Case, folder: Path) -> Path:
    torch.manual_seed(0)
    net = Net(case).eval()
    plant(net)
    path = folder / "m.onnx"
    export(net, path)
    return path


def outputs_over_calls(case: Case, path: Path, steps: int, batch: int, *, calls: int) -> list[np.ndarray]:
    """Feed the state back and return what is not state, call by call."""
    feeds = {name: tensor.numpy() for name, tensor in inputs_of(case, steps, batch).items()}
    outputs = []
    for _ in range(calls):
        results = run(path, feeds)
        outputs.append(results["out"])
        feeds |= {into: results[out] for into, out in state_names(case)}
    return outputs


def expected_shapes(case: Case) -> list[tuple[int, int]]:
    widths = [INPUT_SIZE, *(case.directions * left for left in LEFT)]
    return list(zip(widths[: case.layers], LEFT[: case.layers], strict=True))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in DEFAULT else pytest.mark.slow) for case in CASES], ids=str
)
def test_planted_dead_units_go_from_what_pytorch_exports(case: Case, tmp_path: Path) -> None:
    source = exported(case, tmp_path)
    result = toolchain.shrink(source, carried=state_names(case))
    assert result.status == "written"
    assert recurrent_shapes(result.output) == expected_shapes(case), result.nodes
    for steps, batch in ((1, 1), (7, 3)) if case.dynamic else ((STEPS, BATCH),):
        calls = 3 if case.carried else 1
        wanted = outputs_over_calls(case, source, steps, batch, calls=calls)
        for expected, actual in zip(
            wanted, outputs_over_calls(case, result.output, steps, batch, calls=calls), strict=True
        ):
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, atol=1e-6)
    onnx.checker.check_model(onnx.load(result.output), full_check=True)
    assert toolchain.shrink(result.output, carried=state_names(case)).status == "nothing_to_remove"


def test_the_default_run_holds_every_pair_of_choices() -> None:
    assert set().union(*map(pairs_of, DEFAULT)) == set().union(*map(pairs_of, CASES))
    assert len(DEFAULT) < len(CASES) / 4
