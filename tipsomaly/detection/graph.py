"""One ONNX graph of everything that a score depends on: pixels as a camera gives them in, scores, map and verdict out.

    images (B, H, W, 3) uint8 -> Pillow's resize -> vision tower -> equation 1 -> map -> verdict

Needs the extra `onnx`. The tower is traced by torch; what stands around it is written below, in onnxscript.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, no_type_check

import numpy as np
import torch
from torch import Tensor, nn

from tipsomaly.detection.detector import PromptDetector, Prompts
from tipsomaly.detection.scoring import IMAGE_SCORE, resampling, top_count
from tipsomaly.errors import OptionError
from tipsomaly.models.encoder import LayerTokens, Readout
from tipsomaly.models.tips import VisionTower
from tipsomaly.prompts.prototypes import pair

try:
    import onnx
    from onnx import helper, inliner, numpy_helper
    from onnxscript import FLOAT, INT64, UINT8, optimizer, script
    from onnxscript import opset20 as op
except ModuleNotFoundError as error:
    raise OptionError(f'an export is made with {error.name}: pip install "tipsomaly[onnx]"') from None

TOKENS = ("object", "spatial", "patches")
SCORES = ("score", "global_score", "local_score", "object_score", "patch_map", "anomaly_map")
VERDICT = ("is_anomalous", "mask")
"""Outputs: tokens (B, D) and (B, h, w, D); scores (B,), patch_map (B, h, w), anomaly_map (B, H, W), all float32; with
thresholds also is_anomalous (B,) and mask (B, H, W), bool; of prompts that know kinds kind_map (B, h, w, K)."""

OPSET = 20
IR_VERSION = 10


# What `script` reads is another language than Python, in which a type says a shape: no checker of types knows it.
@script()
@no_type_check
def _weights(source: INT64[1], target: INT64[1]):
    """(target, source): Pillow's weights of its bilinear filter for 8 bits, in units of 2^-22 (its `Resample.c`).

    A triangle of whole numbers, divided by its sum and rounded. The quotient comes from float32, which may be off by
    one; the remainder says whether it is, also where an engine has 32 bits for 64 and they wrap around.
    """
    one = op.Constant(value_ints=[1])
    pixels = op.Range(0, op.Squeeze(source), 1)
    outputs = op.Range(0, op.Squeeze(target), 1)
    distance = op.Abs((2 * pixels + one) * target - op.Unsqueeze((2 * outputs + one) * source, one))
    triangle = op.Max(2 * op.Max(source, target) - distance, 0 * one)
    total = op.ReduceSum(triangle, one)
    quotient = op.Cast(op.Round(op.Cast(triangle, to=1) / op.Cast(total, to=1) * 4194304.0), to=7)
    twice = 2 * (triangle * 4194304 - quotient * total)
    return quotient + op.Cast(twice >= total, to=7) - op.Cast(twice < 0 - total, to=7)


@script()
@no_type_check
def _weigh(pixels: FLOAT, target: INT64[1]):
    """(..., n) whole numbers to (..., target), rounded as Pillow rounds after each of its two passes.

    Products with two halves of 11 bits of each weight add up in float32 without rounding, for up to 64 pixels that
    make one in any case, and beyond in all but contrived ones.
    """
    weights = _weights(op.Shape(pixels, start=3), target)
    high = (weights + 1024) / 2048
    low = weights - high * 2048
    high_sum = op.MatMul(pixels, op.Transpose(op.Cast(high, to=1)))
    low_sum = op.MatMul(pixels, op.Transpose(op.Cast(low, to=1)))
    carry = op.Floor((low_sum + 2097152.0) / 2048.0)
    return op.Clip(op.Floor((high_sum + carry) / 2048.0), 0.0, 255.0)


@script()
@no_type_check
def resize(images: UINT8["batch", "height", "width", 3], rows: INT64[1], columns: INT64[1]):  # noqa: F821
    """To float32 (B, 3, rows, columns) whole numbers, to the bit those of `Image.resize(..., BILINEAR)`.

    The engines' own resizing differs from Pillow's by up to 16 of 255 (onnxruntime 1.32, antialias) or by 1 (OpenVINO
    2026.4 in its Pillow mode).
    """
    pixels = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=1)
    across = op.Transpose(_weigh(pixels, columns), perm=[0, 1, 3, 2])
    usual = op.Transpose(_weigh(across, rows), perm=[0, 1, 3, 2])
    height = op.Shape(pixels, start=2, end=3)
    width = op.Shape(pixels, start=3)
    # Pillow takes the rows first where they are more than 100 times the columns. A strip is all of such a picture, and
    # of another one little work that is thrown away.
    strip_width = op.Max(height / 100, op.Constant(value_ints=[1]))
    strip = op.Slice(pixels, op.Constant(value_ints=[0]), strip_width, op.Constant(value_ints=[3]))
    down = op.Transpose(_weigh(op.Transpose(strip, perm=[0, 1, 3, 2]), rows), perm=[0, 1, 3, 2])
    tall = _weigh(down, columns)
    return op.Where(op.And(height > width * 100, height > rows), tall, usual)


@script()
@no_type_check
def _before(images: UINT8["batch", "height", "width", 3], rows: INT64[1], columns: INT64[1]):  # noqa: F821
    size = op.Shape(images, start=1, end=3)
    if op.ReduceMin(op.Cast(size == op.Concat(rows, columns, axis=0), to=6), keepdims=0) == 1:
        levels = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=1)  # nothing would change, which takes time
    else:
        levels = resize(images, rows, columns)
    pixels = levels / 255.0
    return pixels, size


@script()
@no_type_check
def _unit(tokens: FLOAT):
    return tokens / op.Max(op.ReduceL2(tokens, op.Constant(value_ints=[-1])), 1e-12)


@script()
@no_type_check
def _probabilities(tokens: FLOAT, prototypes: FLOAT, temperature: FLOAT):
    """Equation 1: tokens (B, n, D) under prototypes (B, 1 + K, D) -> (B, n, 1 + K).

    Sums of products, not a matrix product: OpenVINO in bfloat16 keeps the former in float32.
    """
    products = op.Unsqueeze(_unit(tokens), op.Constant(value_ints=[2])) * op.Unsqueeze(
        prototypes, op.Constant(value_ints=[1])
    )
    similarity = op.ReduceSum(products, op.Constant(value_ints=[3]), keepdims=0)
    return op.Softmax(similarity / temperature, axis=-1)


@script()
@no_type_check
def _after(
    object: FLOAT["batch", "dim"],  # noqa: F821
    spatial: FLOAT["batch", "dim"],  # noqa: F821
    patches: FLOAT["batch", "h", "w", "dim"],  # noqa: F821
    size: INT64[2],
    class_index: INT64["batch"],  # noqa: F821
    image_prototypes: FLOAT["classes", 2, "dim"],  # noqa: F821
    patch_prototypes: FLOAT["classes", "prototypes", "dim"],  # noqa: F821
    temperatures: FLOAT[2],
    weights: FLOAT[1, 3],
    top_count: INT64[1],
    row_matrix: FLOAT["rows", "h"],  # noqa: F821
    column_matrix: FLOAT["w", "columns"],  # noqa: F821
):
    both = op.Concat(
        op.Unsqueeze(object, op.Constant(value_ints=[1])), op.Unsqueeze(spatial, op.Constant(value_ints=[1])), axis=1
    )
    image_temperature = op.Gather(temperatures, 0)
    of_images = _probabilities(both, op.Gather(image_prototypes, class_index, axis=0), image_temperature)
    image_scores = op.Gather(of_images, 1, axis=2)
    object_score = op.Gather(image_scores, 0, axis=1)
    global_score = op.Gather(image_scores, 1, axis=1)
    flat = op.Reshape(
        patches,
        op.Concat(op.Shape(patches, end=1), op.Constant(value_ints=[-1]), op.Shape(patches, start=3), axis=0),
    )
    patch_temperature = op.Gather(temperatures, 1)
    of_patches = _probabilities(flat, op.Gather(patch_prototypes, class_index, axis=0), patch_temperature)
    kinds = op.Slice(
        of_patches, op.Constant(value_ints=[1]), op.Shape(of_patches, start=2), op.Constant(value_ints=[2])
    )
    patch_scores = op.Clip(op.ReduceSum(kinds, op.Constant(value_ints=[2]), keepdims=0), 0.0, 1.0)
    largest, _ = op.TopK(patch_scores, top_count, axis=1)
    local_score = op.ReduceMean(largest, op.Constant(value_ints=[1]), keepdims=0)
    parts = op.Concat(image_scores, op.Unsqueeze(local_score, op.Constant(value_ints=[1])), axis=1)
    score = op.ReduceSum(parts * weights, op.Constant(value_ints=[1]), keepdims=0)
    grid = op.Shape(patches, end=3)
    patch_map = op.Reshape(patch_scores, grid)
    kind_map = op.Reshape(kinds, op.Concat(grid, op.Constant(value_ints=[-1]), axis=0))
    # `scoring.anomaly_map`: bilinear upsampling and the Gaussian in one matrix a side, then to the picture's size
    smooth = op.Unsqueeze(op.MatMul(row_matrix, op.MatMul(patch_map, column_matrix)), op.Constant(value_ints=[1]))
    wanted = op.Concat(op.Shape(smooth, end=2), size, axis=0)
    large = op.Resize(smooth, None, None, wanted, mode="linear", coordinate_transformation_mode="half_pixel")
    anomaly_map = op.Clip(op.Squeeze(large, op.Constant(value_ints=[1])), 0.0, 1.0)
    return score, global_score, local_score, object_score, patch_map, anomaly_map, kind_map


@script()
@no_type_check
def _verdict(score: FLOAT["batch"], anomaly_map: FLOAT["batch", "height", "width"], thresholds: FLOAT[2]):  # noqa: F821
    is_anomalous = score >= op.Gather(thresholds, 0)
    mask = anomaly_map >= op.Gather(thresholds, 1)
    return is_anomalous, mask


class _Tower(nn.Module):
    """A tower at one input size: the positions of its patches are a constant, the batch stays free."""

    def __init__(
        self, tower: VisionTower, grid: tuple[int, int], learned: LayerTokens | None, readout: Readout
    ) -> None:
        super().__init__()
        self.tower = copy.copy(tower)  # shares the weights
        positions = tower.patch_positions(*grid).detach()
        self.tower.patch_positions = lambda h, w: positions  # type: ignore[method-assign]
        self.learned, self.readout = learned, readout

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        [tokens] = self.tower.layers(pixels, [-1], self.learned, self.readout)
        return tuple(part.float() for part in tokens)


def _fixed(prompts: Prompts) -> Tensor:
    assert prompts.prototypes is not None  # no picture changes them
    return prompts.prototypes


def build(
    tower: VisionTower,
    detectors: Sequence[PromptDetector],
    image_size: tuple[int, int],
    sigma: float,
    readout: Readout = "tokens",
    image_score: Mapping[str, float] = IMAGE_SCORE,
    thresholds: tuple[float, float] | None = None,
    top: float | None = None,
) -> onnx.ModelProto:
    """The graph of a float32 tower on the CPU.

    detectors: what scores the pictures of each class; they have the same prompts, whose prototypes no picture changes.
    image_size: (height, width) in pixels that pictures are resized to.
    sigma: of the map's Gaussian, in pixels of the input size.
    thresholds: of a picture's score and of a pixel, where there is a calibration.
    top: share of the patches whose mean is the local score; None: the largest alone.

    Inputs are `images` (B, H, W, 3) uint8, upright RGB of any one size, and `class_index` (B,) int64, which of the
    classes each is judged as. Outputs: see TOKENS, SCORES and VERDICT.
    """
    patch, cpu, first = tower.config.patch_size, torch.device("cpu"), detectors[0]
    grid = (image_size[0] // patch, image_size[1] // patch)
    matrices = [resampling(n, side, side, sigma, cpu).numpy() for n, side in zip(grid, image_size, strict=True)]
    with torch.no_grad(), _quiet():
        traced = torch.onnx.export(
            _Tower(tower, grid, first.image_tokens, readout).eval(),
            (torch.zeros(3, 3, *image_size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=list(TOKENS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert traced is not None
    score = [float(image_score.get(part, 0)) for part in ("object", "spatial", "local")]
    parts = {
        "before": _part(_before, rows=np.array([image_size[0]]), columns=np.array([image_size[1]])),
        "tower": traced.model_proto,
        "after": _part(
            _after,
            image_prototypes=_array([pair(_fixed(detector.image)) for detector in detectors]),
            patch_prototypes=_array([_fixed(detector.patches) for detector in detectors]),
            temperatures=np.array([first.image.temperature, first.patches.temperature], np.float32),
            weights=np.array([score], np.float32),
            top_count=np.array([top_count(top, grid[0] * grid[1])]),
            row_matrix=matrices[0],
            column_matrix=np.ascontiguousarray(matrices[1].T),
        ),
    }
    if thresholds:  # a score that is below one is below it in float32, too
        narrow = np.array(thresholds, np.float32)
        parts["verdict"] = _part(
            _verdict, thresholds=np.where(narrow < thresholds, np.nextafter(narrow, np.float32(np.inf)), narrow)
        )
    return _joined(parts, [*SCORES, *VERDICT, *(["kind_map"] if first.kinds else []), *TOKENS])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of operators of other packages, of which the tower has none."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _array(tensors: list[Tensor]) -> np.ndarray:
    return torch.stack(tensors).detach().float().numpy()


def _part(function: Any, **constants: np.ndarray) -> onnx.ModelProto:
    """A function of onnxscript as a model, with some of its inputs as constants."""
    model = inliner.inline_local_functions(function.to_model_proto())
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return onnx.shape_inference.infer_shapes(optimizer.optimize(model))


def _joined(parts: dict[str, onnx.ModelProto], wanted: list[str]) -> onnx.ModelProto:
    """One model of all, in order: an input takes the value of that name, from a part before or from outside. Its
    outputs are those that are wanted."""
    graph = onnx.GraphProto(name="tipsomaly")
    for prefix, model in parts.items():
        part = model.graph
        _rename(part, prefix, {value.name for value in (*part.input, *part.output)} | {""})
        known = {value.name for value in (*graph.input, *graph.output)}
        graph.node.extend(part.node)
        graph.initializer.extend(part.initializer)
        graph.input.extend(value for value in part.input if value.name not in known)
        graph.output.extend(part.output)
    outputs = [value for value in graph.output if value.name in wanted]
    del graph.output[:]
    graph.output.extend(sorted(outputs, key=lambda value: wanted.index(value.name)))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _rename(graph: onnx.GraphProto, prefix: str, outside: set[str]) -> None:
    """Put the prefix before all names in a graph but those that are known outside of it."""

    def renamed(name: str) -> str:
        return name if name in outside else f"{prefix}/{name}"

    for node in graph.node:
        node.name = f"{prefix}/{node.name}"
        for names in (node.input, node.output):
            names[:] = map(renamed, names)
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a branch
                for value in attribute.g.output:
                    value.name = renamed(value.name)
                _rename(attribute.g, prefix, outside)
    for constant in graph.initializer:
        constant.name = renamed(constant.name)
    del graph.value_info[:]
