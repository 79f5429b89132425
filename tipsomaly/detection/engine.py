"""Views in batches through the vision tower, and their scores back: two batches in flight on a GPU.

The engine knows no prompts: what the tokens mean is the detectors' business.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.data.images import ImageSource, source_name
from tipsomaly.detection import scoring
from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.combination import Use
from tipsomaly.detection.detector import Detector
from tipsomaly.detection.references import References
from tipsomaly.detection.result import Result, joined
from tipsomaly.detection.tiling import Tiles
from tipsomaly.detection.views import Picture, Scores, View, Viewer, ahead
from tipsomaly.errors import ImageError, ModelError, OptionError, one_line, printable
from tipsomaly.models.device import to_cpu, to_device
from tipsomaly.models.encoder import Encoder, ImageTokens, LayerTokens, Readout

NOT_FINITE = "its scores are not finite; a dtype of float32 helps where float16 is too narrow"


class Engine:
    """A vision tower, and how pictures are given to it."""

    def __init__(
        self,
        tips: Encoder,
        viewer: Viewer,
        sigma: float,
        readout: Readout = "tokens",
        top: float | None = None,
        min_area: int = 0,
    ) -> None:
        self.tips, self.viewer, self.sigma, self.readout, self.top = tips, viewer, sigma, readout, top
        self.min_area = min_area

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.tips.device

    def scored(
        self, images: Iterable[ImageSource], detectors: Sequence[Detector], batch_size: int, maps: bool = False
    ) -> Iterator[View | ImageError]:
        """The views of all pictures in order, once `view.picture.scores` holds what each detector says of them; with
        `maps` also the anomaly maps of those that are not tiled. Scores that are not finite are an ImageError. What
        `images` raises comes after the views of the pictures before it."""
        check_batch_size(batch_size)
        images = _Source(images)
        at_once = 2 if self.device.type == "cuda" else 1  # a GPU has its next batch before the last one is read
        running: deque[tuple[list[View | ImageError], torch.cuda.Event | None]] = deque()
        views = self.viewer.views(images, batch_size)
        while batch := list(islice(views, batch_size)):
            running.append((batch, self._launch(batch, detectors, maps)))
            if len(running) == at_once:
                yield from _landed(*running.popleft())
        for batch, done in running:
            yield from _landed(batch, done)
        if images.failure:
            raise images.failure

    @torch.inference_mode()
    def _launch(
        self, batch: Sequence[View | ImageError], detectors: Sequence[Detector], maps: bool
    ) -> torch.cuda.Event | None:
        """Start to score a batch. On a GPU nothing waits here: the scores are there when the returned event is."""
        groups: dict[torch.Size, list[View]] = {}
        for view in batch:
            if not isinstance(view, ImageError):
                groups.setdefault(view.pixels.shape, []).append(view)
        for views in groups.values():
            pixels = torch.stack([view.pixels for view in views])
            named = [view.speakers for view in views if view.speakers is not None]
            speakers = to_device(torch.stack(named), self.device) if named else None
            depth = self.tips.config.vision.depth
            layers = sorted({depth - 1, *(layer % depth for detector in detectors for layer in detector.layers)})
            # The tower as it is serves most detectors, once.
            encoded: dict[int, tuple[dict[int, ImageTokens], Tensor]] = {}
            for detector in detectors:
                learned = detector.image_tokens
                known = id(learned and learned.tokens)
                if known not in encoded:
                    tokens = dict(zip(layers, self.encode_layers(pixels, layers, learned), strict=True))
                    encoded[known] = tokens, to_cpu(F.normalize(tokens[depth - 1].spatial.float(), dim=-1))
                tokens, spatial = encoded[known]
                evidence = detector.score(tokens[depth - 1], *(tokens[i % depth].patches for i in detector.layers))
                if speakers is not None:
                    evidence = evidence.spoken_by(speakers)
                images, patches = to_cpu(evidence.images), to_cpu(evidence.patches)
                kinds = None if evidence.kinds is None else to_cpu(evidence.kinds.half())
                for i, view in enumerate(views):
                    anomaly_map: Tensor | None = None
                    if maps and not view.picture.boxes:
                        size = (view.picture.height, view.picture.width)
                        height, width = view.pixels.shape[1:]
                        drawn = scoring.anomaly_map(evidence.patches[i], (height, width), size, self.sigma)
                        anomaly_map = to_cpu(drawn)
                    own = None if kinds is None else kinds[i]
                    scores = Scores(spatial[i], images[i], patches[i], anomaly_map, own)
                    view.picture.scores.setdefault(view.index, []).append(scores)
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def result(
        self,
        picture: Picture,
        detector: int,
        class_name: str,
        mode: str,
        calibration: Calibration | None,
        image_score: Mapping[str, float],
        kinds: tuple[str, ...],
        note: str | None = None,
        references: References | None = None,
        evidence: Use = "prompts",
    ) -> Result:
        """What the scores of a picture's views under one detector, by its number, say of the picture. `kinds` are the
        names of those that the detector tells apart; `note` is of its class name."""
        whole, *tiles = (picture.scores[index][detector] for index in range(1 + len(picture.boxes)))
        object_score, global_score = whole.image.tolist()
        verdict = calibration or references
        height, width = picture.place.size if picture.place else (picture.height, picture.width)
        result = Result(
            object_score=object_score,
            global_score=global_score,
            patch_map=whole.patch_map.numpy().copy(),
            width=width,
            height=height,
            input_size=self.viewer.input_size(picture.width, picture.height),
            class_name=class_name,
            mode=mode,
            sigma=self.sigma,
            top=self.top,
            spatial_token=whole.spatial_token.numpy().copy(),
            note=joined(picture.note, note),
            image_threshold=verdict.image_threshold if verdict else None,
            pixel_threshold=verdict.pixel_threshold if verdict else None,
            references=references,
            evidence=references.use if references else evidence,
            tiles=self._tiles(picture, tiles) if tiles else None,
            source=picture.source,
            image_score=image_score,
            kind_names=() if whole.kinds is None else kinds,
            kind_map=self._kind_map(picture, whole, tiles),
            place=picture.place,
            min_area=self.min_area,
        )
        if whole.anomaly_map is not None:
            drawn = whole.anomaly_map.numpy()
            vars(result)["anomaly_map"] = picture.place.put_back(drawn) if picture.place else drawn
        return result

    def _kind_map(self, picture: Picture, whole: Scores, tiles: Sequence[Scores]) -> np.ndarray | None:
        found = [scores.kinds for scores in tiles or (whole,) if scores.kinds is not None]
        if not found:
            return None
        tiling = self.viewer.tiling
        rows = len(tiling.spans(picture.height)) if tiling and tiles else 1
        kinds = torch.stack(found).unflatten(0, (rows, -1)) if tiles else found[0].clone()
        return kinds.numpy()

    def _tiles(self, picture: Picture, scores: Sequence[Scores]) -> Tiles:
        tiling = self.viewer.tiling
        assert tiling is not None
        rows = len(tiling.spans(picture.height))
        patch_maps = torch.stack([tile.patch_map for tile in scores]).unflatten(0, (rows, -1))
        left, top, right, bottom = picture.boxes[0]
        return Tiles(patch_maps.numpy(), tiling, self.viewer.input_size(right - left, bottom - top))

    def compile(self, batch_size: int, backend: str) -> float:
        """See `Pipeline.compile`."""
        start = time.perf_counter()
        blocks = self.tips.vision_encoder.blocks
        try:
            for block in blocks:
                block.compile(backend=backend)
            tokens = self.encode(torch.zeros(batch_size, 3, *self.viewer.image_size, dtype=torch.uint8))
            torch.sum(tokens.spatial).item()  # waits for a GPU
        except Exception as error:  # of many kinds, which torch's compiler defines and only then imports
            for block in blocks:
                block._compiled_call_impl = None
            raise ModelError(f"the model cannot be compiled here: {one_line(error)}") from None
        return time.perf_counter() - start

    def pixels(self, images: Iterable[ImageSource], batch_size: int = 16) -> Iterator[Tensor]:
        """Batches (B, 3, H, W) uint8 at the input size; decoding runs ahead in threads.

        Raises ImageError, naming the picture, for one that cannot be used, and OptionError where pictures are tiled or
        keep their proportions.
        """
        if self.viewer.tiling or self.viewer.keep_aspect or self.viewer.region:
            raise OptionError("training and evaluation take whole pictures, squashed to the input size as in the paper")
        check_batch_size(batch_size)
        batch: list[Tensor] = []
        for picture in ahead(self.viewer.read, images, 2 * batch_size):
            if isinstance(picture, ImageError):
                raise picture
            batch.append(picture.pixels)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)

    def encode(self, pixels: Tensor) -> ImageTokens:
        """(B, 3, H, W) uint8 pixels, or floats in [0, 1], to the tokens of the vision tower."""
        return self.encode_layers(pixels, [-1])[0]

    @torch.inference_mode()
    def encode_layers(
        self, pixels: Tensor, layers: Sequence[int], learned: LayerTokens | None = None
    ) -> list[ImageTokens]:
        """The same after each of these blocks of the tower (0-based, negative from the end), with learned tokens in the
        tower if there are some."""
        pixels = to_device(pixels, self.device)
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        if self.device.type != "cpu":
            return self.tips.vision_encoder.layers(pixels, layers, learned, self.readout)
        # What a block of the tower writes should stay in the cache: 2,000 tokens for each thread.
        tokens = pixels.shape[2] * pixels.shape[3] // self.tips.config.vision.patch_size**2
        parts = pixels.split(max(1, 2000 * torch.get_num_threads() // max(tokens, 1)))
        encoded = [self.tips.vision_encoder.layers(part, layers, learned, self.readout) for part in parts]
        if len(encoded) == 1:
            return encoded[0]
        return [ImageTokens(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*encoded, strict=True)]


class _Source(Iterator[ImageSource]):
    """Pictures until there are no more, be it that the iterable raises: then `failure` is what it raised."""

    def __init__(self, images: Iterable[ImageSource]) -> None:
        self._images = iter(images)
        self.failure: Exception | None = None

    def __next__(self) -> ImageSource:
        try:
            return next(self._images)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise StopIteration from None


def _landed(batch: list[View | ImageError], done: torch.cuda.Event | None) -> Iterator[View | ImageError]:
    if done:
        done.synchronize()
    for view in batch:
        yield view if isinstance(view, ImageError) or not view.is_last else _finite(view)


def _finite(view: View) -> View | ImageError:
    scores = [tensor for views in view.picture.scores.values() for s in views for tensor in (s.image, s.patch_map)]
    if all(tensor.isfinite().all() for tensor in scores):
        return view
    return ImageError(f"{printable(source_name(view.picture.source) or 'image')}: {NOT_FINITE}")


def check_batch_size(size: int) -> None:
    """OptionError for less than one picture at once."""
    if not isinstance(size, Integral) or size < 1:
        raise OptionError(f"the batch size must be a whole number of at least 1, not {size!r}")
