"""A pipeline as a folder that runs without torch: one graph, what it must agree with, and a plain script."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from tqdm import tqdm

from tipsomaly.detection import graph
from tipsomaly.detection.detector import PromptDetector
from tipsomaly.detection.exported import RECORD, VERSION, graph_digest
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.errors import ModelError, OptionError
from tipsomaly.files import expand, staged_folder
from tipsomaly.models.sessions import GRAPHS, PACKAGES, PRECISIONS, Session, load_openvino, open_session, require
from tipsomaly.models.tips import VisionTower
from tipsomaly.names import clean_class_name

TOLERANCE = 1e-4
"""What the scores and the map of an export in float32 may differ by from the pipeline's."""
LARGEST_FILE = int(1.5 * 2**30)
"""Bytes of a graph above which its weights lie beside it: one file may hold two gigabytes."""
SIZES = [(1, 1), (1, 500), (2, 3000), (7, 2000), (3, 450), (13, 13), (61, 83), (112, 112), (97, 301), (640, 480)]
"""Width and height of the first ones, the input size among them; the others are between 1 and 300."""


def export(
    pipeline: Pipeline,
    folder: str | Path,
    form: str = "onnx",
    class_names: Sequence[str] = ("object",),
    *,
    precision: str = "fp32",
    pictures: int = 1000,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a folder that `Pipeline.from_pretrained` runs in onnxruntime or OpenVINO: the graph, the prototypes of the
    classes, run.py, which needs neither torch nor this package, and export.json, the record that is returned.

    The graph takes pictures of any size and has everything inside (see `graph.build`). It is run on `pictures` drawn
    pictures beside the pipeline, and how far the two differ is written into the record. Raises ModelError, and leaves
    nothing behind, if in float32 it is by more than TOLERANCE; OptionError for what cannot be exported, or for a
    package that is missing.
    """
    from safetensors.torch import save_file

    names = list(dict.fromkeys(clean_class_name(name) for name in class_names))
    _check(pipeline, form, names, precision, pictures)
    require(PACKAGES[form], form)
    tower, known = pipeline.tips.vision_encoder, pipeline.calibration
    assert isinstance(tower, VisionTower)
    detectors = [pipeline.detector(name) for name in names]
    model = graph.build(
        tower,
        detectors,
        pipeline.image_size,
        pipeline.options.sigma,
        pipeline.options.readout,
        pipeline.image_score,
        (known.image_threshold, known.pixel_threshold) if known else None,
        pipeline.options.top,
    )
    settings = dict(pipeline.settings())
    if precision != "fp32":  # its scores are not those of the pipeline, and a calibration of one does not fit the other
        settings["dtype"] = f"openvino {precision}"
    record: dict[str, Any] = {
        "version": VERSION,
        "format": form,
        "precision": "bfloat16" if precision == "bf16" else "float32",
        "weights": {"fp32": "float32", "fp16": "float16", "bf16": "float32"}[precision],
        "class_names": names,
        "kinds": list(pipeline.kinds),
        "image_score": dict(pipeline.image_score),
        "settings": settings,
        "calibration": asdict(known) if known else None,
        "patch_size": pipeline.tips.config.vision.patch_size,
    }
    with staged_folder(expand(folder)) as staging, TemporaryDirectory(dir=staging) as work:
        path = staging / GRAPHS[form]
        save = _writer(model, path, record, Path(work))
        save()
        session = open_session(path, form, record["precision"])
        record["parity"] = parity(pipeline, session, names, pictures, progress)
        difference = max(record["parity"]["largest_difference"].values())
        if precision == "fp32" and not difference <= TOLERANCE:
            raise ModelError(f"the export differs from the pipeline by {difference:.2g}, more than {TOLERANCE:g}")
        del session
        save()  # the graph itself holds the record, too
        del save
        record["digest"] = graph_digest(staging, form)
        pairs = [pipeline.prototypes(name) for name in names]
        image, patches = (torch.stack(of_classes).cpu() for of_classes in zip(*pairs, strict=True))
        save_file({"image": image, "patches": patches}, staging / "prototypes.safetensors")
        (staging / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        script = (Path(__file__).parent / "run_export.py").read_text(encoding="utf-8")
        (staging / "run.py").write_text(script, encoding="utf-8")
    return record


def _check(pipeline: Pipeline, form: str, names: list[str], precision: str, pictures: int) -> None:
    if not isinstance(pipeline.tips.vision_encoder, VisionTower):
        raise OptionError(f"an export takes a TIPS, and this model is a {pipeline.tips.model_type}")
    if form not in PACKAGES:
        raise OptionError(f"unknown format {form!r}: choose {', '.join(PACKAGES)}")
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision == "int8":
        raise OptionError("int8 is refused, since it changes the order of scores: choose fp32, fp16 or bf16")
    if precision != "fp32" and form != "openvino":
        raise OptionError(f"{precision} is for the format openvino")
    if precision != "fp32" and pipeline.calibration:
        raise OptionError(f"scores in {precision} are others: calibrate the exported folder (`calibrate --model`)")
    if pictures < 1:
        raise OptionError(f"parity takes at least one picture, not {pictures}")
    if not names:
        raise OptionError("an export needs at least one class name")
    if pipeline.options.tile is not None or pipeline.options.keep_aspect or pipeline.options.region:
        whole = "no tiles, no kept proportions, no region of interest"
        raise OptionError(f"an export takes whole pictures, squashed to the input size: {whole}")
    if pipeline.reference:
        raise OptionError("an export holds prompts alone: no normal pictures")
    if not isinstance(pipeline.scorer(names[0]), PromptDetector):
        raise OptionError("an export holds prompts alone: no detector of your own")
    tower = pipeline.tips
    if tower.model_type != "tipsv2":
        raise OptionError("an export is made of a TIPS: its graph knows no other backbone")
    if tower.device.type != "cpu" or tower.dtype != torch.float32:
        raise OptionError("an export is made from a pipeline on the CPU in float32 (device='cpu', dtype='float32')")
    if pipeline.calibration and names != [pipeline.calibration.class_name]:
        raise OptionError(f"the calibration is for the class {pipeline.calibration.class_name!r} alone: export that")
    for name in names:
        pipeline.prototypes(name)  # raises OptionError for prompts that have others for each picture
        if note := pipeline.checked_class(name)[1]:
            raise OptionError(f"{note}: export that")


def _writer(model: Any, path: Path, record: dict[str, Any], work: Path) -> Callable[[], None]:
    """What writes the graph with the record in its metadata, as the record then is. `work` may be read by it again."""
    import onnx

    large = model.ByteSize() > LARGEST_FILE
    if path.suffix == ".onnx":
        data = path.with_name(f"{path.name}.data")

        def save() -> None:
            onnx.helper.set_model_props(model, {"tipsomaly": json.dumps(record)})
            aside = large and not data.exists()  # then `model` no longer holds it
            onnx.save(model, path, save_as_external_data=aside, location=data.name)

        return save
    openvino = load_openvino()
    onnx.save(model, work / "model.onnx", save_as_external_data=large, location="model.onnx.data")
    converted = openvino.convert_model(work / "model.onnx")

    def save_converted() -> None:
        converted.set_rt_info(json.dumps(record), "tipsomaly")
        openvino.save_model(converted, path, compress_to_fp16=record["weights"] == "float16")

    return save_converted


def parity(
    pipeline: Pipeline, session: Session, names: list[str], count: int, progress: bool = False
) -> dict[str, Any]:
    """How far a graph's scores and maps are from the pipeline's on `count` drawn pictures of any size."""
    worst = dict.fromkeys(("score", "global_score", "local_score", "object_score", "anomaly_map"), 0.0)
    scores: list[tuple[float, float]] = []
    pictures = islice(drawn(pipeline.image_size), count)
    for number, picture in enumerate(tqdm(pictures, total=count, unit="picture", disable=None if progress else True)):
        index = number % len(names)
        result = next(pipeline.stream([picture], names[index]))
        inputs = {"images": picture[None], "class_index": np.array([index])}
        found = session.run(list(worst), inputs)
        for name, so_far in worst.items():
            difference = np.abs(np.asarray(getattr(result, name)) - found[name][0]).max()
            worst[name] = float(np.fmax(so_far, difference)) if np.isfinite(difference) else float("inf")
        scores.append((result.score, float(found["score"][0])))
    record: dict[str, Any] = {"pictures": count, "largest_difference": worst, "engine": session.name}
    if len({ours for ours, _ in scores}) > 1:
        record["rank_correlation"] = float(spearmanr(*zip(*scores, strict=True)).statistic)
    return record


def drawn(input_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8 without end: noise, soft noise, shades and edges, of hostile sizes and then of random
    ones."""
    random = np.random.default_rng(0)
    sizes: Iterator[tuple[int, int]] = iter([(input_size[1], input_size[0]), *SIZES])
    while True:
        width, height = next(sizes, None) or (int(side) for side in random.integers(1, 301, 2))
        coarse = random.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
        kind = random.integers(4)
        if kind == 0:
            yield random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        elif kind == 1:
            yield np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        elif kind == 2:
            shade = np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
            yield np.broadcast_to(shade, (height, width, 3)).astype(np.uint8).copy()
        else:
            yield np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
