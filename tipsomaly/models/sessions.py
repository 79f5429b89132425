"""Exported graphs in the engines that run them without torch: onnxruntime and OpenVINO, each an extra."""

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from tipsomaly.errors import OptionError, explained

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What runs a format of export."""
GRAPHS = {"onnx": "model.onnx", "openvino": "model.xml"}
"""The file that a format's graph begins with."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Of an export: fp16 stores weights in 16 bits and computes in float32, bf16 computes in bfloat16; both are for
OpenVINO. int8 is refused: it changed the order of nano's scores on photographs (rank correlation 0.9990 of 52, measured
with onnxruntime's dynamic quantization of the tower)."""


class Session(Protocol):
    """A graph that is ready to run. Safe to call from several threads at once."""

    name: str
    """The engine and its version."""
    metadata: str
    """What the export wrote into the graph: JSON."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """These of the graph's outputs, by name."""


class OnnxRuntime:
    """onnxruntime on the CPU."""

    def __init__(self, graph: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.graph, self.name = graph, f"onnxruntime {onnxruntime.__version__}"
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map.get("tipsomaly", "")

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session`."""
        with explained(f"{self.graph}: {self.name} cannot run it"):
            return dict(zip(outputs, self.session.run(list(outputs), dict(inputs)), strict=True))


class OpenVino:
    """OpenVINO on the CPU; it reads both formats. `precision` is what it computes with: float32, or bfloat16 where
    the processor has it."""

    def __init__(self, graph: Path, threads: int | None = None, precision: str = "float32") -> None:
        openvino = load_openvino()
        hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
        if threads:
            hints["INFERENCE_NUM_THREADS"] = threads
        self.graph, self.name = graph, f"OpenVINO {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError("this processor has no bfloat16: export in fp32")
        model = core.read_model(str(graph))
        self.metadata = str(model.get_rt_info("tipsomaly").value) if model.has_rt_info("tipsomaly") else ""
        self.model = core.compile_model(model, "CPU", hints)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Session`."""
        with explained(f"{self.graph}: {self.name} cannot run it"):
            results = self.model.create_infer_request().infer(dict(inputs), share_inputs=True)
            return {name: results[name] for name in outputs}


def open_session(graph: Path, form: str, precision: str = "float32", threads: int | None = None) -> Session:
    """An engine, of PACKAGES, with a graph in it. Raises OptionError, with what to install, where it is not there, and
    ModelError for a file that it cannot read."""
    require(PACKAGES[form], form)
    with explained(f"{graph}: {PACKAGES[form]} cannot read it"):
        return OnnxRuntime(graph, threads) if form == "onnx" else OpenVino(graph, threads, precision)


def load_openvino() -> ModuleType:
    """The module, without the package that sends Google Analytics word of its import and of each conversion."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it cannot be imported
    import openvino

    return openvino


def require(package: str, extra: str) -> None:
    """Raise OptionError if a package is not installed, with the extra of ours that brings it."""
    if find_spec(package) is None:
        raise OptionError(f'this needs {package}: pip install "tipsomaly[{extra}]"')
