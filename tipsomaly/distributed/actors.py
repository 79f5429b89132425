"""Many pictures on many workers, of one machine or of a cluster, with Ray Data.

Ray plans, moves rows, places, retries and restarts. This module says what it should do: list the pictures, score them
block by block in actors that hold one Pipeline each, and write a file of results a block. What these files hold is
done. Needs Ray: `pip install "ray[data]"`.
"""

import logging
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
import torch

from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.records import run_settings
from tipsomaly.detection.result import Result
from tipsomaly.distributed.rows import SCORES, Results, find, only_here, read_picture
from tipsomaly.errors import ImageError, ModelError, one_line, printable
from tipsomaly.models.device import DTYPES, choose_dtype
from tipsomaly.models.hub import BUNDLED

BATCHES = 16
"""Batches in a block: what a task scores, a file of results holds, and is done again for an actor that dies."""


@dataclass(frozen=True)
class Summary:
    """What a run of `detect` has done."""

    written: int
    """Rows that this run has written."""
    failed: int
    """Those of them that hold an error."""
    before: int
    """Rows that were there before."""


def detect(
    sources: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    class_name: str = "object",
    *,
    file_format: Literal["parquet", "jsonl"] = "parquet",
    model: str = "nano",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: str = "auto",
    actors: int | None = None,
    batch_size: int = 8,
    **options: Any,
) -> Summary:
    """Score pictures, folders of them and Parquet files into files of `SCORES` in the folder `output`.

    Whatever has `://` in it is a URI that pyarrow opens (s3, gs, abfs), anything else a path that every node must see.
    A Parquet file has encoded pictures in `bytes`, or in `image` as Hugging Face data sets do, with a unique name in
    `path` or without one, then their SHA-256 is it; or it has only paths and URIs, in `path` or `image`.

    The cluster is the one that RAY_ADDRESS names, or that Ray is connected to already, else this machine by itself.
    At most `actors` score at a time, one on a GPU, or where there is none, on a CPU; by default as many as there are.
    `options` are those of `Pipeline.from_pretrained`.

    A picture that cannot be used is a row with its error. A file of results is whole or not there, and what `output`
    holds is not scored again; it must be of the same settings. Raises ModelError, DatasetError or OSError, in one
    line, where nothing can be scored.
    """
    _connect()
    on_gpu, actors = _place(device, actors)
    if model not in BUNDLED and os.path.isdir(model):  # actors have another working directory
        model = os.path.abspath(model)
    if on_gpu and dtype not in DTYPES:
        # Where this process, unlike the actors, has no GPU, theirs is taken for a recent one.
        old = torch.cuda.is_available() and choose_dtype(dtype, torch.device("cuda")) is torch.float16
        dtype = "float16" if old else "bfloat16"
    # Loaded here, too, to say what is wrong with the model and the options before actors are started to say it.
    pipe = Pipeline.from_pretrained(model, device="cpu", dtype=dtype, **options)
    settings = run_settings(pipe, class_name)
    with only_here(output):
        results = Results(output, file_format, settings)
        done = results.names()
        pictures = find(sources, done)
        if pictures is None:
            return Summary(0, 0, len(done))
        scores = score(
            pictures.repartition(target_num_rows_per_block=BATCHES * batch_size),
            class_name,
            model=model,
            on_gpu=on_gpu,
            actors=actors,
            batch_size=batch_size,
            dtype=settings["dtype"],
            **{
                **options,
                "prompts": pipe.prompts,
                "calibration": pipe.calibration,
                **_reference(pipe, class_name),
            },  # their files need not be everywhere
        )
        try:
            scores.write_datasink(results)
        except ray.exceptions.RayError as error:
            raise OSError(f"{output}: what is there is kept, but Ray stopped: {_cause(error)}") from error
        return Summary(results.written, results.failed, len(done))


def _reference(pipe: Pipeline, class_name: str) -> dict[str, Any]:
    """Normal pictures are remembered once, here."""
    found = pipe.references(class_name)
    return {"reference": found, "evidence": found.forced} if found else {}


def score(
    pictures: ray.data.Dataset,
    class_name: str = "object",
    *,
    model: str = "nano",
    on_gpu: bool = False,
    actors: int = 1,
    batch_size: int = 8,
    **options: Any,
) -> ray.data.Dataset:
    """Map rows of `PICTURES` (`bytes` may be missing) to rows of `SCORES`, lazily, in up to `actors` actors with a GPU
    or a CPU and a Pipeline each. `model` and `options` are those of `Pipeline.from_pretrained`; a folder must be
    visible to every node. Ray starts an actor that died again, as often as need be, and does again what it had."""
    return pictures.map_batches(
        Scorer,
        fn_constructor_kwargs={
            "class_name": class_name,
            "batch_size": batch_size,
            "model": model,
            "device": "cuda" if on_gpu else "cpu",
            **options,
        },
        batch_size=BATCHES * batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if on_gpu else None,
    )


class Scorer:
    """What an actor holds: one Pipeline, which maps tables of `PICTURES` to tables of `SCORES`."""

    def __init__(self, class_name: str, batch_size: int, **options: Any) -> None:
        self.pipe = Pipeline.from_pretrained(**options)
        self.class_name, self.batch_size = class_name, batch_size

    def __call__(self, pictures: pa.Table) -> pa.Table:
        """Rows of `PICTURES` to rows of `SCORES`, in order; a picture that cannot be used is a row with its error."""
        names = pictures["image"].to_pylist()
        contents = pictures["bytes"] if "bytes" in pictures.column_names else [None] * len(names)
        unread: dict[int, ImageError] = {}
        sources = self._sources(names, contents, unread)
        outcomes = self.pipe.stream(sources, self.class_name, batch_size=self.batch_size, errors="yield")
        rows = []
        for index, (name, outcome) in enumerate(zip(names, outcomes, strict=True)):
            if isinstance(outcome, Result):
                rows.append({"image": name, **outcome.record()})
            else:
                error = str(unread.get(index, outcome))
                if name and error.startswith("image:"):  # bytes do not know their name
                    error = printable(name) + error.removeprefix("image")
                rows.append({"image": name, "error": error})
        return pa.Table.from_pylist(rows, schema=SCORES)

    def _sources(
        self, names: list[str], contents: Iterable[pa.Scalar | None], unread: dict[int, ImageError]
    ) -> Iterator[str | bytes]:
        """What the pipeline decodes, in order. Threads fetch ahead what is behind URIs; one that cannot be fetched
        becomes no bytes, and its error goes to `unread`."""
        pending: deque[Future[str | bytes]] = deque()
        index, ahead = 0, 2 * self.batch_size

        def first() -> str | bytes:
            try:
                return pending.popleft().result()
            except ImageError as error:
                unread[index] = error
                return b""

        with ThreadPoolExecutor(min(ahead, 32), thread_name_prefix="fetch") as pool:
            for name, content in zip(names, contents, strict=True):
                pending.append(pool.submit(read_picture, name, content))
                if len(pending) == ahead:
                    yield first()
                    index += 1
            while pending:
                yield first()
                index += 1


def _connect() -> None:
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.WARNING)
        else:  # with a CPU more than there is, for the tasks beside the actors: they have little to do
            cpus = (os.cpu_count() or 1) + 1
            ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
    except Exception as error:  # Ray raises plain ones
        raise OSError(f"Ray cannot be used: {one_line(error)}") from error
    finally:  # it takes SIGTERM for itself, but what our caller does about it comes first
        if callable(on_terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)


def _place(device: str, actors: int | None) -> tuple[bool, int]:
    """Whether actors get GPUs, and how many actors there are."""
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"Ray places the actors: the device is auto, cpu or cuda, not {device!r}")
    resources = ray.cluster_resources()
    cpus, gpus = (int(resources.get(kind, 0)) for kind in ("CPU", "GPU"))
    if device == "cuda" or (device == "auto" and gpus):
        if not (actors or gpus):
            raise ModelError("the Ray cluster has no GPU; if it gets some when asked, say how many actors to ask for")
        return True, actors or gpus
    actors = actors or max(1, cpus - 1)
    if actors >= cpus:  # without one for reading and writing nothing would ever move
        raise ModelError(f"{actors} actors need {actors + 1} CPUs, the Ray cluster has {cpus}")
    return False, actors


def _cause(error: BaseException) -> str:
    """In a line, what went wrong in another process, whose traceback ends the message."""
    return str(error).strip().splitlines()[-1]
