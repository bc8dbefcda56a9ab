"""`toolchain shrink` with a target: what is printed, what is written, and one line for every wrong request."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from graphs import recurrent_shapes, recurrent_weights, run, save, value
from onnx import helper
from test_oneshot import HIDDEN, INPUT, stacked

from toolchain.cli import main


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", X=np.random.default_rng(0).standard_normal((30, 20, 2, INPUT)).astype(np.float32))
    return stacked(tmp_path / "model.onnx", "LSTM")


@dataclass(frozen=True)
class Done:
    """Exit status and everything that was printed."""

    exit_code: int
    output: str


def shrink(*arguments: str) -> Done:
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["toolchain", "shrink", *arguments])
        try:
            main()
        except SystemExit as exit_:
            return Done(int(exit_.code or 0), printed.getvalue())
    return Done(0, printed.getvalue())


def test_half_of_the_units_go_and_the_report_says_what_it_cost(model: Path) -> None:
    before = model.read_bytes()
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "samples.npz", "--json", "r.json")
    assert done.exit_code == 0, done.output
    assert "Gave up living neurons by reconstruct on samples.npz, what they said folded into the others:" in done.output
    assert f"layer0: {HIDDEN} -> {HIDDEN // 2} units" in done.output
    assert "on 6 held-out calls." in done.output
    assert "Proven equal in ONNX Runtime" in done.output
    assert recurrent_shapes(Path("model.shrunk.onnx")) == [(INPUT, HIDDEN // 2), (HIDDEN // 2, HIDDEN // 2)]
    assert model.read_bytes() == before
    pruned = json.loads(Path("r.json").read_text())["pruned"]
    assert (pruned["criterion"], pruned["compensated"], pruned["held_out_calls"]) == ("reconstruct", True, 6)
    assert pruned["error"] < 1e-3
    X = np.random.default_rng(1).standard_normal((50, 1, INPUT)).astype(np.float32)
    expected, found = run(model, {"X": X})["Z"], run(Path("model.shrunk.onnx"), {"X": X})["Z"]
    assert np.square(found - expected).mean() / expected.var() < 1e-3


def test_of_one_recording_pieces_are_held_out(model: Path) -> None:
    np.savez("one.npz", X=np.random.default_rng(0).standard_normal((1, 600, 1, INPUT)).astype(np.float32))
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "one.npz", "--int8", "--json", "r.json")
    assert done.exit_code == 0, done.output
    assert "on 5 held-out pieces." in done.output
    assert "on held-out samples of one.npz)" in done.output
    content = json.loads(Path("r.json").read_text())
    assert (content["pruned"]["held_out_calls"], content["pruned"]["in_pieces"]) == (5, True)
    assert (content["int8"]["calls"], content["int8"]["held_out"]) == (5, True)


def test_where_nothing_can_be_held_out_no_error_is_called_so(model: Path) -> None:
    np.savez("one.npz", X=np.random.default_rng(0).standard_normal((1, 30, 1, INPUT)).astype(np.float32))
    arguments = ["--ratio", "0.75", "--calibration", "one.npz", "--int8", "--distill", "20", "--json", "r.json"]
    done = shrink("model.onnx", *arguments)
    assert done.exit_code == 0, done.output
    assert "on the one call that also decided: nothing was left to hold out." in done.output
    assert "held-out" not in done.output
    content = json.loads(Path("r.json").read_text())
    assert content["pruned"]["held_out_calls"] == 0
    assert (content["int8"]["calls"], content["int8"]["held_out"]) == (1, False)
    assert content["distilled"]["kept"]
    assert not content["distilled"]["held_out"]
    assert "on the one call that also decided: how much of it holds elsewhere is not known." in done.output


def test_a_recording_that_ends_in_silence_does_not_raise_the_error(model: Path) -> None:
    X = np.random.default_rng(0).standard_normal((30, 20, 2, INPUT)).astype(np.float32)
    X[24:] *= 1e-3
    np.savez("quiet.npz", X=X)
    done = shrink("model.onnx", "--ratio", "0.75", "--calibration", "quiet.npz", "--json", "r.json")
    assert done.exit_code == 0, done.output
    found = json.loads(Path("r.json").read_text())["pruned"]["error"]
    wanted, got = (np.array([run(path, {"X": x})["Z"] for x in X]) for path in (model, Path("model.shrunk.onnx")))
    assert found == pytest.approx(np.square(got - wanted)[4::5].mean() / wanted.var(), rel=1e-2)


def test_few_samples_are_named_with_how_many_are_advised(model: Path) -> None:
    X = np.load("samples.npz")["X"]
    np.savez("few.npz", X=X[:5])
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "few.npz", "--json", "r.json")
    assert done.exit_code == 0, done.output
    pruned = json.loads(Path("r.json").read_text())["pruned"]
    assert (pruned["rows"], pruned["advised_rows"]) == (4 * 20 * 2, 20 * HIDDEN)
    assert "Few samples: 160 steps decided; for layers as wide as these 240 or more are advised." in done.output
    assert "Few samples" in shrink("model.onnx", "--family", "0.5", "--calibration", "few.npz").output
    assert "Few samples" not in shrink("model.onnx", "--ratio", "0.5", "--calibration", "samples.npz").output
    assert "Few samples" not in shrink("model.onnx", "--ratio", "0.5").output


def streaming(path: Path, *, second: bool) -> Path:
    """Write `X, h -> RNN -> (a second one) -> Z, h_out`; nothing declares that h carries state."""
    weights = recurrent_weights("RNN", input_size=INPUT, hidden_size=HIDDEN)
    nodes = [helper.make_node("RNN", ["X", "W", "R", "B", "", "h"], ["Y", "h_out"], name="first", hidden_size=HIDDEN),
             helper.make_node("Squeeze", ["Y", "one"], ["y"])]  # fmt: skip
    constants = {**weights, "one": np.array([1])}
    last = "y"
    if second:
        above = recurrent_weights("RNN", input_size=HIDDEN, hidden_size=HIDDEN, seed=1)
        constants |= {f"{name}2": array for name, array in above.items()}
        nodes += [helper.make_node("RNN", ["y", "W2", "R2", "B2"], ["Y2"], name="second", hidden_size=HIDDEN),
                  helper.make_node("Squeeze", ["Y2", "one"], ["y2"])]  # fmt: skip
        last = "y2"
    constants["head"] = np.random.default_rng(2).standard_normal((HIDDEN, 3)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [last, "head"], ["Z"], name="head"))
    state = [1, "B", HIDDEN]
    return save(path, nodes, [value("X", ["T", "B", INPUT]), value("h", state)],
                [value("Z", ["T", "B", 3]), value("h_out", state)], constants)  # fmt: skip


def test_state_that_nobody_carries_is_named_with_the_flag(model: Path) -> None:
    streaming(Path("held.onnx"), second=False)
    done = shrink("held.onnx", "--ratio", "0.5", "--calibration", "samples.npz")
    assert done.exit_code == 1
    assert "say `--carried auto` (--carried h=h_out)." in done.output
    streaming(Path("two.onnx"), second=True)
    done = shrink("two.onnx", "--ratio", "0.3", "--calibration", "samples.npz")
    assert done.exit_code == 0, done.output
    assert "State at zero in every call: h. If the caller feeds state back, say `--carried auto`" in done.output
    for name in ("held.onnx", "two.onnx"):
        done = shrink(name, "--ratio", "0.3", "--calibration", "samples.npz", "--carried", "auto")
        assert done.exit_code == 0, done.output
        assert "State at zero" not in done.output


@pytest.mark.parametrize(("option", "what"), [("--keep-macs", "multiply_adds"), ("--keep-parameters", "parameters")])
def test_how_far_one_can_go_is_told_as_a_share_that_can_be_asked_for(model: Path, option: str, what: str) -> None:
    done = shrink("model.onnx", option, "0.001", "--calibration", "samples.npz")
    assert done.exit_code == 1
    found = re.search(r"expected at least (0\.\d+) of them, or (\d+) of ([\d,]+)\. Ask for that\.", done.output)
    assert found, done.output
    for number in found.groups()[:2]:
        done = shrink("model.onnx", option, number, "--calibration", "samples.npz", "--json", "r.json")
        assert done.exit_code == 0, done.output
    before = json.loads(Path("r.json").read_text())[what]["before"]
    assert int(found[3].replace(",", "")) == before
    assert float(found[1]) == pytest.approx(int(found[2]) / before, abs=1 / before)  # both are rounded up


def test_the_largest_ratio_that_is_named_can_be_asked_for(model: Path) -> None:
    done = shrink("model.onnx", "--ratio", "0.9166", "--calibration", "samples.npz")
    assert done.exit_code == 0, done.output
    assert recurrent_shapes(Path("model.shrunk.onnx")) == [(INPUT, 1), (1, 1)]


def test_the_masked_model_has_the_shapes_of_the_input_and_the_outputs_of_the_result(model: Path) -> None:
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "samples.npz", "--masked", "masked.onnx")
    assert done.exit_code == 0, done.output
    assert recurrent_shapes(Path("masked.onnx")) == recurrent_shapes(model)
    X = np.random.default_rng(1).standard_normal((50, 1, INPUT)).astype(np.float32)
    masked, cut = run(Path("masked.onnx"), {"X": X})["Z"], run(Path("model.shrunk.onnx"), {"X": X})["Z"]
    np.testing.assert_allclose(cut, masked, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "what"), [("--keep-macs", "0.4", "multiply_adds"), ("--keep-parameters", "0.4", "parameters")]
)
def test_a_share_of_the_costs_is_reached(model: Path, option: str, value: str, what: str) -> None:
    done = shrink("model.onnx", option, value, "--calibration", "samples.npz", "--json", "r.json")
    assert done.exit_code == 0, done.output
    costs = json.loads(Path("r.json").read_text())[what]
    assert 0.25 * costs["before"] < costs["after"] <= 0.41 * costs["before"]


def test_an_error_is_not_exceeded_on_held_out_samples(model: Path) -> None:
    done = shrink("model.onnx", "--max-error", "0.02", "--calibration", "samples.npz", "--json", "r.json")
    assert done.exit_code == 0, done.output
    pruned = json.loads(Path("r.json").read_text())["pruned"]
    assert 0 < pruned["error"] <= 0.02
    assert all(group["kept"] <= HIDDEN // 2 for group in pruned["groups"])  # the twins cost nothing


def test_without_samples_random_inputs_are_named(model: Path) -> None:
    done = shrink("model.onnx", "--ratio", "0.2", "--dry-run", "--explain")
    assert done.exit_code == 0, done.output
    assert "Gave up living neurons by magnitude on random inputs" in done.output
    assert "Output error when one layer alone gives up neurons:" in done.output
    assert "of the units, " in done.output.split("Output error predicted when all layers give up neurons:")[1]
    assert "Next: toolchain shrink model.onnx --ratio 0.2" in done.output
    assert not Path("model.shrunk.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--ratio", "0.5", "--max-error", "0.1"], 2, "--ratio and --max-error: two targets; expected one."),
        (["--calibration", "samples.npz"], 2, "expected a target beside them. Add --ratio 0.5,"),
        (["--ratio", "1"], 2, "1.0 is not in the range 0<x<1."),
        (["--target-latency", "fast"], 2, "'fast' is no time; expected one such as 2ms, 500us or 0.1s."),
        (["--ratio", "0.5", "--calibration", "none.npz"], 1, "none.npz: no such file; expected an .npz of samples."),
        (["--ratio", "0.99", "--calibration", "samples.npz"], 1, "expected at most 0.9166. Ask for that."),
        (["--max-error", "1e-12", "--calibration", "samples.npz"], 1, "no neuron can be given up within it"),
    ],
)
def test_wrong_requests_write_nothing(model: Path, arguments: list[str], status: int, message: str) -> None:
    before = sorted(path.name for path in model.parent.iterdir())
    done = shrink("model.onnx", *arguments)
    assert done.exit_code == status, done.output
    assert message in done.output
    assert sorted(path.name for path in model.parent.iterdir()) == before


def test_a_family_is_written_from_one_analysis(model: Path) -> None:
    done = shrink("model.onnx", "--family", "0.25,0.5", "--calibration", "samples.npz", "--json", "f.json",
                  "--html", "f.html")  # fmt: skip
    assert done.exit_code == 0, done.output
    page = Path("f.html").read_text()
    assert page.count("<circle") >= 4
    assert "measured on held-out samples" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    members = json.loads(Path("f.json").read_text())["family"]
    hidden = [[node["hidden_size"]["after"] for node in member["nodes"]] for member in members]
    assert [sum(sizes) for sizes in hidden] == [HIDDEN * 2 * 3 // 4, HIDDEN]
    for member, name in zip(members, ("model.shrunk-25.onnx", "model.shrunk-50.onnx"), strict=True):
        assert member["status"] == "written"
        assert [h for _, h in recurrent_shapes(Path(name))] == [n["hidden_size"]["after"] for n in member["nodes"]]
    assert "Next: toolchain bench model.shrunk-25.onnx model.shrunk-50.onnx --baseline model.onnx" in done.output
    assert shrink("model.onnx", "--family", "0.25,1.5").exit_code == 2


def test_every_member_of_a_family_is_quantized_too(model: Path) -> None:
    done = shrink("model.onnx", "--family", "0.25,0.5", "--calibration", "samples.npz", "--int8", "--json", "f.json")
    assert done.exit_code == 0, done.output
    names = ["model.shrunk-25.int8.onnx", "model.shrunk-50.int8.onnx"]
    members = json.loads(Path("f.json").read_text())["family"]
    assert [member["int8"]["output"] for member in members] == names
    assert all(Path(name).is_file() and f"Written: {name}" in done.output for name in names)
    written = f"model.shrunk-25.onnx {names[0]} model.shrunk-50.onnx {names[1]}"
    assert f"Next: toolchain bench {written} --baseline model.onnx" in done.output


@pytest.mark.parametrize("option", [["--masked", "m.onnx"], ["--explain"]])
def test_what_is_about_one_model_is_refused_beside_a_family(model: Path, option: list[str]) -> None:
    done = shrink("model.onnx", "--family", "0.25,0.5", *option)
    assert done.exit_code == 2
    assert f"{option[0]}: is about one model, --family writes several" in done.output
    assert not list(model.parent.glob("*shrunk*"))


def test_a_dry_run_ends_with_the_command_that_does_all_of_it(model: Path) -> None:
    done = shrink("model.onnx", "--ratio", "0.5", "--int8", "--ort", "--dry-run")
    assert "Next: toolchain shrink model.onnx --ratio 0.5 --int8 --ort" in done.output


def test_int8_and_ort_are_written_after_the_cut_and_named_with_their_error(model: Path) -> None:
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "samples.npz", "--int8", "--ort", "--json", "r.json")
    assert done.exit_code == 0, done.output
    content = json.loads(Path("r.json").read_text())
    assert content["int8"]["calls"] == content["pruned"]["held_out_calls"]
    assert 0 < content["int8"]["error"] < 0.02
    assert content["ort"]["parity"]["max_abs_diff"] <= 1e-5
    assert Path("model.shrunk.int8.onnx").is_file()
    assert Path("model.shrunk.int8.ort").is_file()
    assert "Next: toolchain bench model.shrunk.onnx model.shrunk.int8.onnx --baseline model.onnx" in done.output


def test_int8_alone_quantizes_the_model_itself(model: Path) -> None:
    done = shrink("model.onnx", "--int8")
    assert done.exit_code == 0, done.output
    assert "Nothing to remove" in done.output
    assert "Written: model.int8.onnx" in done.output


def test_gradient_steps_after_the_cut_are_kept_only_if_the_error_falls(model: Path) -> None:
    pytest.importorskip("torch")
    done = shrink(
        "model.onnx", "--ratio", "0.75", "--calibration", "samples.npz", "--distill", "30", "--json", "r.json"
    )
    assert done.exit_code == 0, done.output
    content = json.loads(Path("r.json").read_text())
    distilled = content["distilled"]
    assert distilled["kept"]
    assert distilled["error_after"] < distilled["error_before"] == pytest.approx(content["pruned"]["error"], rel=1e-3)
    X = np.load("samples.npz")["X"]
    original, small = (np.array([run(path, {"X": x})["Z"] for x in X]) for path in (model, Path("model.shrunk.onnx")))
    error = np.square(small - original)[4::5].mean() / np.var(original)
    assert error == pytest.approx(distilled["error_after"], rel=1e-2)


def assert_keys(found: object, documented: object) -> None:
    """Hold the keys of a result against those of the documentation; a null or an empty list says nothing."""
    if isinstance(found, dict) and isinstance(documented, dict):
        assert found.keys() == documented.keys()
        for key, inner in found.items():
            assert_keys(inner, documented[key])
    elif isinstance(found, list) and isinstance(documented, list) and found and documented:
        assert_keys(found[0], documented[0])


def test_the_json_has_the_keys_that_the_documentation_shows(model: Path) -> None:
    pytest.importorskip("torch")
    page = (Path(__file__).parent.parent / "docs" / "shrink.md").read_text()
    documented = json.loads(page.split("```json")[1].split("```")[0])
    done = shrink("model.onnx", "--ratio", "0.5", "--calibration", "samples.npz", "--distill", "2", "--int8", "--ort",
                  "--explain", "--json", "r.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(Path("r.json").read_text())
    documented["ort"]["parity"] = documented["parity"]
    assert all(found[key] for key in ("pruned", "distilled", "int8", "ort", "explanations"))
    assert_keys(found, documented)
