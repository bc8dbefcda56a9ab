"""Recurrent nodes inside If, Loop, Scan and functions: cut as planted, and ONNX Runtime finds no difference."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import constant, in_both_branches, run, save, value
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper
from random_books import STATIC_BATCH, RandomGraph
from random_graphs import random_graphs
from subgraph_models import (
    FLAGS,
    LIVE,
    ONE,
    assert_equal,
    body,
    chunked,
    lstm_branch,
    planted,
    planted_head,
    recurrent,
    scanned_steps,
    sequence,
    sizes,
)
from test_properties import feeds_of

import toolchain
from toolchain.errors import ParityError
from toolchain.graph.branches import BODY, ELSE, THEN, Branch
from toolchain.interface import read_interface
from toolchain.verification import runnable, verify


def test_a_function_with_an_lstm_that_is_called_twice_is_cut_alike(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = [
        recurrent("LSTM", ["x", "w", "r", "b"], ["y4"]),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Squeeze", ["y4", "axis"], ["y"]),
    ]
    function = helper.make_function("own", "layer", ["x", "w", "r", "b"], ["y"], inner, opsets)
    nodes = [
        helper.make_node("layer", ["X", "W", "R", "B"], ["first"], domain="own"),
        helper.make_node("Tanh", ["X"], ["X2"]),
        helper.make_node("layer", ["X2", "W", "R", "B"], ["second"], domain="own"),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("MatMul", ["sum", "head"], ["Z"]),
    ]
    source = save(tmp_path / "m.onnx", nodes, [value("X", ["T", "B", 5])], [value("Z", ["T", "B", 3])],
                  planted() | planted_head())  # fmt: skip
    model = onnx.load(source)
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    assert len([t for t in onnx.load(result.output).graph.initializer if t.name.startswith("R")]) == 1
    assert_equal(source, result.output, {"X": sequence()})


def rated(path: Path) -> Path:
    """Write an If on a sample rate, which random inputs set to 16000: the else branch never runs by itself."""
    constants = planted(suffix="a", seed=1) | planted(suffix="b", seed=2) | planted_head() | ONE
    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["wide"]),
        helper.make_node("If", ["wide"], ["chosen"], name="choose", then_branch=lstm_branch("yes", weights="a"),
                         else_branch=lstm_branch("no", weights="b")),
        helper.make_node("MatMul", ["chosen", "head"], ["Z"]),
    ]  # fmt: skip
    inputs = [value("X", ["T", "B", 5]), value("sr", [], TensorProto.INT64)]
    constants |= {"rate": np.array(16000)}
    return save(path, nodes, inputs, [value("Z", ["T", "B", 3])], constants)


def with_wrong_weight(path: Path, name: str) -> Path:
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[0, 3, 2] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    target = path.with_name("wrong.onnx")
    onnx.save(model, target)
    return target


def test_a_wrong_weight_in_a_branch_that_random_inputs_never_take_is_caught(tmp_path: Path) -> None:
    source = rated(tmp_path / "m.onnx")
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE), (5, LIVE)]
    wrong = with_wrong_weight(result.output, "Rb_kept")
    reference = read_interface(source)
    never = (Branch(node="chosen", part=ELSE),)
    verify(reference, wrong)  # without force nobody notices
    verify(reference, result.output, forced=[never])
    with pytest.raises(ParityError, match=r"output 'Z': differs by .* in the else_branch of 'chosen'; expected at"):
        verify(reference, wrong, forced=[never])


def refusing(path: Path) -> Path:
    """Write an If on a sample rate whose else branch no input gets through: it reshapes to a shape that never fits."""
    nodes = [
        helper.make_node("Reshape", ["X", "never"], ["odd"]),
        helper.make_node("Reshape", ["odd", "as_before"], ["X_again"]),
        recurrent("LSTM", ["X_again", "Wb", "Rb", "Bb"], ["Y_no"]),
        helper.make_node("Squeeze", ["Y_no", "one"], ["y"]),
    ]
    source = rated(path)
    model = onnx.load(source)
    (node,) = [node for node in model.graph.node if node.op_type == "If"]
    (other,) = [attribute for attribute in node.attribute if attribute.name == "else_branch"]
    other.g.CopyFrom(body("no", nodes, [], ["y"]))
    model.graph.initializer.extend(
        [constant("never", np.array([-1, 9973])), constant("as_before", np.array([-1, 1, 5]))]
    )
    onnx.save(model, source)
    return source


def test_what_lies_in_a_branch_that_cannot_be_run_is_left_whole_and_named(tmp_path: Path) -> None:
    source = refusing(tmp_path / "m.onnx")
    never = (Branch(node="chosen", part=ELSE),)
    assert runnable(read_interface(source), [never, (Branch(node="chosen", part=THEN),)]) == {
        (Branch(node="chosen", part=THEN),)
    }
    result = toolchain.shrink(source)
    assert result.status == "nothing_to_remove"  # both branches return one tensor, so the other is held as well
    (left,) = [node for node in result.nodes if node.name == "layer_Y_no"]
    assert left.blocked_by[0].reason == (
        "it lies in the else_branch of 'chosen', which runs at none of the inputs tried, so that a cut could not be "
        "proven"
    )


def test_a_cut_that_no_run_can_prove_is_refused(tmp_path: Path) -> None:
    source = refusing(tmp_path / "m.onnx")
    with pytest.raises(ParityError, match="what was cut in the else_branch of 'chosen' could not be run; expected a"):
        verify(read_interface(source), source, forced=[(Branch(node="chosen", part=ELSE),)])


@pytest.mark.parametrize("by_count", [True, False])
def test_a_loop_that_random_inputs_never_enter_is_run_all_the_same(by_count: bool, tmp_path: Path) -> None:
    """It runs no step unless the sample rate is 8000; the wrong weight inside shows only when it is forced to."""
    source = chunked(tmp_path / "m.onnx", initial="zero")
    model = onnx.load(source)
    model.graph.input.append(value("sr", [], TensorProto.INT64))
    model.graph.initializer.append(constant("rate", np.array(8000)))
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    extra = [helper.make_node("Equal", ["sr", "rate"], ["enter"])]
    if by_count:
        extra += [
            helper.make_node("Cast", ["enter"], ["one_or_none"], to=TensorProto.INT64),
            helper.make_node("Mul", ["count", "one_or_none"], ["steps"]),
        ]
        loop.input[0] = "steps"
    else:
        loop.input[1] = "enter"
    extra.append(helper.make_node("Tanh", ["chunks"], ["beside"]))  # what the model returns when no step runs
    model.graph.output.append(value("beside", ["C", "T", "B", 5]))
    nodes = [*model.graph.node]
    place = nodes.index(loop)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *extra, *nodes[place:]])
    onnx.save(model, source)
    result = toolchain.shrink(source)
    assert sizes(result.output) == [(5, LIVE)]
    inside = (Branch(node="h_last", part=BODY),)
    assert {case.case.forced for case in result.parity.cases} == {(), inside}
    feeds = {"chunks": sequence(3, 4, 2, 5), "sr": np.array(8000)}
    assert_equal(source, result.output, feeds)
    wrong = with_wrong_weight(result.output, "R_kept")
    verify(read_interface(source), wrong)
    with pytest.raises(ParityError, match=r"differs by .* in the body of 'h_last'"):
        verify(read_interface(source), wrong, forced=[inside])


def test_a_model_without_if_or_loop_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("no branch needs to be run")

    monkeypatch.setattr("toolchain.shrinking.runnable", refuse)
    monkeypatch.setattr("toolchain.verification.save_switched", refuse)
    assert toolchain.shrink(scanned_steps(tmp_path / "m.onnx")).status == "written"


def test_shrinking_twice_equals_shrinking_once(tmp_path: Path) -> None:
    source = chunked(tmp_path / "m.onnx", initial="zero")
    once = toolchain.shrink(source)
    assert toolchain.shrink(once.output).status == "nothing_to_remove"


@settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=random_graphs())
def test_a_random_graph_is_cut_in_both_branches_of_an_if_as_it_is_by_itself(graph: RandomGraph) -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone, inside = Path(folder) / "alone.onnx", Path(folder) / "inside.onnx"
        onnx.save(graph.model(), alone)
        onnx.save(in_both_branches(graph.model()), inside)
        expected, result = (toolchain.shrink(source, carried=graph.carried) for source in (alone, inside))
        wanted = [(node.input_after, node.hidden_after) for node in expected.nodes]
        assert [(node.input_after, node.hidden_after) for node in result.nodes] == wanted * 2
        states = {out for _, out in graph.carried}
        for flag in FLAGS if result.output is not None else []:
            feeds = feeds_of(graph, 4, STATIC_BATCH, 0) | {"flag": flag}
            found = run(result.output, feeds)
            for name, array in run(inside, feeds).items():
                assert found[name].shape == array.shape
                if name not in states:
                    np.testing.assert_allclose(found[name], array, atol=2e-6, rtol=1e-5)
