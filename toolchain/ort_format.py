"""The step `--ort`: a model in ONNX Runtime's own format, and the operators that a minimal build of it must have.

    model.ort                                    the graph as ONNX Runtime optimises it
    model.required_operators_and_types.config    a line per domain and opset: the operators, with their number types

ONNX Runtime writes the file itself, from a session that is told to (`session.save_model_format`), with every graph
optimisation but one: `NchwcTransformer` lays convolutions out for the processor of the machine that converts. The file
is compared with its source as a session without that optimisation computes it; both then run the same graph, and are
equal to the last bit as a rule. ONNX Runtime's `convert_onnx_models_to_ort` does the same in its fixed style, but
prints, takes its level from the environment and names the files itself: only its reader of operators is used.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import ModelFileError, OutputError
from toolchain.files import written_whole
from toolchain.graph.program import StatePair
from toolchain.interface import read_interface
from toolchain.runtime import RUNTIME_ERRORS, first_line
from toolchain.verification import Parity, verify

OPTIMISATION = "all graph optimisations but the layout of one processor (NchwcTransformer), fixed in the file"
CONFIG_SUFFIX = ".required_operators_and_types.config"
_PROCESSOR_SPECIFIC = ("NchwcTransformer",)
_FATAL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtFormatResult:
    """What `to_ort_format` wrote.

    Attributes:
        source: the ONNX model that was read; never changed.
        output: the .ort file.
        config: the reduced-operator configuration for `build.sh --include_ops_by_config`.
        bytes: of `output`.
        optimisation: which of ONNX Runtime's graph optimisations the file holds.
        runtime: version of ONNX Runtime that wrote it; older ones may not read it.
        parity: how far both models are apart; exactly equal where its differences are 0.
    """

    source: Path
    output: Path
    config: Path
    bytes: int
    optimisation: str
    runtime: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data, by the schema in docs/shrink.md."""
        paths = {name: str(getattr(self, name)) for name in ("source", "output", "config")}
        return {**asdict(self), **paths}


def to_ort_format(
    path: Path, output: Path | None = None, *, carried: Sequence[StatePair] | None = None
) -> OrtFormatResult:
    """Write a model in ONNX Runtime's format and the operators that it needs.

    Args:
        path: an ONNX model; never changed.
        output: the file to write, by default `NAME.ort` beside the model. The configuration lies beside it.
        carried: state inputs with the outputs that are fed back into them while the files are compared; None takes what
            the model's metadata declares.

    Returns:
        What was written; both files run and were compared, or neither has its name.

    Raises:
        ModelFileError: the file is no valid model, or ONNX Runtime does not convert it.
        ParityError: the .ort file computes something else.
        OutputError: a result cannot be written.
    """
    import onnxruntime

    target = path.with_suffix(".ort") if output is None else output
    if target.suffix != ".ort":
        raise OutputError(
            f"{target}: has another ending; expected .ort, by which ONNX Runtime knows the format. Add it."
        )
    config = target.with_suffix(CONFIG_SUFFIX)
    interface = read_interface(path)
    with ExitStack() as files:
        unfinished_config = files.enter_context(written_whole(config))
        unfinished = files.enter_context(written_whole(target))
        _convert(path, unfinished)
        _write_operators(unfinished, unfinished_config)
        pairs = interface.carried if carried is None else carried
        parity = verify(interface, unfinished, carried=pairs, without=_PROCESSOR_SPECIFIC)
        written = unfinished.stat().st_size
    return OrtFormatResult(source=path, output=target, config=config, bytes=written, optimisation=OPTIMISATION,
                           runtime=onnxruntime.__version__, parity=parity)  # fmt: skip


def _convert(path: Path, output: Path) -> None:
    """Let ONNX Runtime optimise the model and save it in its own format."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(output)
    options.add_session_config_entry("session.save_model_format", "ORT")
    # Signed 8-bit nodes between QuantizeLinear and DequantizeLinear are an arrangement for ARM; off, as in a session.
    options.add_session_config_entry("session.qdqisint8allowed", "0")
    try:
        onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(_PROCESSOR_SPECIFIC),
        )
    except RUNTIME_ERRORS as error:
        raise ModelFileError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} does not convert it ({first_line(error)}); expected a "
            "model that it can save in its own format, below 2 GB. Leave out --ort."
        ) from error
    if not output.is_file():
        raise ModelFileError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} wrote no file; expected a build that can save models. "
            "Install onnxruntime from PyPI."
        )


def _write_operators(model: Path, config: Path) -> None:
    """List the operators of an .ort file with the number types that they meet.

    One line for each domain and opset, `domain;opset;operator{types},operator,...`, as ONNX Runtime's build reads it.
    """
    handlers = list(logging.root.handlers)
    from onnxruntime.tools.ort_format_model import OperatorTypeUsageManager, OrtFormatModelProcessor

    logging.root.handlers[:] = handlers  # that import sets up logging for the whole process
    operators: dict[str, dict[int, set[str]]] = {}
    types = OperatorTypeUsageManager()
    OrtFormatModelProcessor(str(model), operators, types).process()
    lines = [f"# operators and number types of {model.name}"]
    for domain, by_opset in sorted(operators.items()):
        for opset, names in sorted(by_opset.items()):
            entries = [f"{name}{types.get_config_entry(domain, name) or ''}" for name in sorted(names)]
            lines.append(f"{domain};{opset};{','.join(entries)}")
    config.write_text("\n".join(lines) + "\n", "utf-8")
