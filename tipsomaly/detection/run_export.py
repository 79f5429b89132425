"""Score pictures with an exported Tipsomaly model: python run.py IMAGE... [--class-name NAME] [--maps DIR]

Needs numpy, pillow and the engine alone: onnxruntime for model.onnx, openvino for model.xml. Prints JSON lines."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "export.json").read_text(encoding="utf-8"))


def read(path: str) -> np.ndarray:
    """(1, H, W, 3) uint8 RGB: upright, transparency over white, 16 bits as 8, the first frame."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.clip(np.asarray(image), 0, 65535) + 128.0) // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))[None]


def open_model() -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function of the graph's inputs that gives its outputs by name."""
    if RECORD["format"] == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it sends statistics to Google
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[RECORD["precision"]]}
    model = openvino.Core().compile_model(HERE / "model.xml", "CPU", hint)
    return lambda inputs: {key: value for keys, value in model(inputs).to_dict().items() for key in keys.names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--class-name", choices=RECORD["class_names"], default=RECORD["class_names"][0])
    parser.add_argument("--maps", metavar="DIR", type=Path, help="folder for the maps, float32 .npy")
    options = parser.parse_args()
    model, index = open_model(), np.array([RECORD["class_names"].index(options.class_name)])
    for path in options.images:
        found = model({"images": read(path), "class_index": index})
        line = {"image": path} | {key: float(found[key][0]) for key in ("score", "global_score", "local_score")}
        line |= {key: bool(found[key][0]) for key in ("is_anomalous",) if key in found}
        if options.maps:
            options.maps.mkdir(parents=True, exist_ok=True)
            np.save(options.maps / f"{Path(path).stem}_map.npy", found["anomaly_map"][0])
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
