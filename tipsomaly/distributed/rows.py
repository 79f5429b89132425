"""Rows of pictures and of scores, and the files that hold them, here or in a bucket."""

import hashlib
import os
import posixpath
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data.block import Block, BlockAccessor

from tipsomaly.data.images import SUFFIXES
from tipsomaly.detection.records import check_settings
from tipsomaly.errors import DatasetError, ImageError, ModelError, one_line, printable
from tipsomaly.files import only_writer, to_json

PICTURES = pa.schema({"image": pa.string(), "bytes": pa.binary()})
"""Rows of pictures: an absolute path or a URI to read, or any name where the encoded file is in `bytes`."""

SCORES = pa.schema(
    {
        "image": pa.string(),
        "score": pa.float64(),
        "global_score": pa.float64(),
        "local_score": pa.float64(),
        "width": pa.int32(),
        "height": pa.int32(),
        "is_anomalous": pa.bool_(),
        "p_value": pa.float64(),
        "evidence": pa.string(),
        "kinds": pa.map_(pa.string(), pa.float64()),
        "note": pa.string(),
        "error": pa.string(),
    }
)
"""Rows of results: what `results.jsonl` says of a picture, less its files and regions. Null is what does not apply."""

JSON = pa.json.ParseOptions(  # whose objects are no maps
    explicit_schema=SCORES.remove(SCORES.get_field_index("kinds")), unexpected_field_behavior="ignore"
)


def find(sources: Sequence[str | os.PathLike], done: pa.Array | None = None) -> ray.data.Dataset | None:
    """Rows of `PICTURES` for pictures, folders (searched recursively) and Parquet files, see `detect`, less those with
    the names in `done`; None if it is known that none are left. Raises DatasetError for a source without pictures."""
    names, tables = [], []
    for source in map(str, sources):
        pictures, parquet = _list(source)
        names += pictures
        tables += parquet
    if names and tables:
        raise DatasetError(
            f"pictures ({printable(names[0])}) and Parquet files ({printable(tables[0])}): take one kind"
        )
    done = pa.array([], pa.string()) if done is None else done
    if names:
        names = pa.chunked_array([pa.array(sorted(set(names)), pa.string())])
        rows = pa.table({"image": names.filter(pc.invert(pc.is_in(names, done)))})
        blocks = [rows.slice(start, 100_000) for start in range(0, len(rows), 100_000)]
        return ray.data.from_arrow(blocks) if blocks else None
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    tables = sorted(set(tables))
    with ThreadPoolExecutor(16) as pool:
        for path, columns in zip(tables, pool.map(_picture_columns, tables), strict=True):
            alike[posixpath.dirname(path), columns].append(path)
    datasets = []
    for (folder, columns), paths in alike.items():
        inside = [_open(path)[1] for path in paths]
        dataset = ray.data.read_parquet(inside, filesystem=_open(folder)[0], columns=list(columns), partitioning=None)
        to_pictures = partial(_to_pictures, folder=os.getcwd(), done=done)
        datasets.append(dataset.map_batches(to_pictures, batch_format="pyarrow", batch_size=None))
    return datasets[0].union(*datasets[1:])


class Results(ray.data.Datasink[int]):
    """A folder with a file of `SCORES` for each block, Parquet or JSON lines, all made with the same settings."""

    def __init__(self, folder: str | os.PathLike, file_format: str, settings: dict[str, Any]) -> None:
        """Makes the folder. Raises ModelError if there are results of other settings in it."""
        if file_format not in ("parquet", "jsonl"):
            raise ModelError(f"unknown format {file_format!r}: choose parquet or jsonl")
        self.system, self.folder = _open(str(folder))
        self.format = file_format
        self.run = uuid.uuid4().hex[:12]
        self.written = self.failed = 0
        if self.system.type_name not in ("s3", "gcs", "abfs"):  # buckets have no folders
            self.system.create_dir(self.folder)
        self._claim(str(folder), {**settings, "format": file_format})

    def names(self) -> pa.Array:
        """The pictures that it has results of. A damaged file is deleted, so that its pictures are scored again."""
        with ThreadPoolExecutor(16) as pool:
            found = [names for names in pool.map(self._names_in, self._parts()) if names is not None]
        return pa.chunked_array(found, pa.string()).combine_chunks()

    def _names_in(self, part: str) -> pa.Array | None:
        with self.system.open_input_stream(part) as file:  # its errors are the network's or the disk's
            content = pa.BufferReader(file.read())
        try:
            if self.format == "parquet":
                table = pq.read_table(content, schema=SCORES, page_checksum_verification=True)
            else:
                table = pa.json.read_json(content, parse_options=JSON)
            return table["image"].combine_chunks()
        except (pa.ArrowException, OSError, ValueError, KeyError):  # parsers raise all of them
            print(f"{printable(part)}: damaged, its pictures are scored again", file=sys.stderr)
            self.system.delete_file(part)
            return None

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        """Called by Ray in each writing task: a file, the same one if the task is done again. Returns how many of its
        pictures failed."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return 0
        table = pa.concat_tables(tables)
        with self._whole(f"part-{self.run}-{ctx.task_idx:06}.{self.format}") as file:
            if self.format == "parquet":
                pq.write_table(table, file, write_page_checksum=True)
            else:
                for row in table.to_pylist(maps_as_pydicts="strict"):
                    known = {field: value for field, value in row.items() if value is not None}
                    file.write(to_json(known).encode() + b"\n")
        return len(table) - table["error"].null_count

    def on_write_complete(self, write_result: Any) -> None:
        """Called by Ray at the end, where the run was started."""
        self.written = int(write_result.num_rows)
        self.failed = sum(write_result.write_returns)

    def _parts(self) -> list[str]:
        files = self.system.get_file_info(FileSelector(self.folder, allow_not_found=True))
        return [f.path for f in files if f.base_name.startswith("part-")]

    def _claim(self, folder: str, settings: dict[str, Any]) -> None:
        name = "_settings.json"  # readers of folders skip what begins with _ or .
        if not self._parts():
            with self._whole(name) as file:
                file.write(to_json(settings, indent=2).encode() + b"\n")
            return
        try:
            with self.system.open_input_stream(posixpath.join(self.folder, name)) as file:
                content = file.read()
        except FileNotFoundError:
            content = b""
        check_settings(folder, content, settings, "choose another folder")

    @contextmanager
    def _whole(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to write, which gets its name when it is whole."""
        part = posixpath.join(self.folder, f".{name}")
        try:
            with self.system.open_output_stream(part) as file:
                yield file
            self.system.move(part, posixpath.join(self.folder, name))
        except BaseException as error:
            with suppress(OSError):
                self.system.delete_file(part)
            if isinstance(error, OSError):
                error.filename = posixpath.join(self.folder, name)
            raise


def only_here(folder: str | os.PathLike) -> AbstractContextManager[None]:
    """See `only_writer`, for a folder of this machine; buckets know no locks."""
    system, path = _open(str(folder))
    return only_writer(Path(path)) if isinstance(system, LocalFileSystem) else nullcontext()


def _open(place: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    scheme, mark, rest = place.rpartition("://")
    if scheme in ("", "file"):
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(rest))
    host, _, path = rest.partition("/")
    system, base = _remote(f"{scheme}{mark}{host}")
    return system, posixpath.join(base, path)


@lru_cache(maxsize=64)
def _remote(root: str) -> tuple[FileSystem, str]:
    try:
        return FileSystem.from_uri(root)
    except (pa.ArrowException, ValueError) as error:
        raise OSError(f"{printable(root)}: {one_line(error)}") from None


def _list(source: str) -> tuple[list[str], list[str]]:
    """The pictures and the Parquet files that a source is or holds, as absolute paths or URIs."""
    system, path = _open(source)
    info = system.get_file_info(path.rstrip("/"))
    if info.type is FileType.NotFound:
        raise DatasetError(f"{printable(source)}: no such file or folder")
    if info.is_file:
        found = [info]
    else:
        found = [
            f for f in system.get_file_info(FileSelector(info.path, recursive=True)) if f.type is not FileType.Directory
        ]
    start = info.path if isinstance(system, LocalFileSystem) else source.rstrip("/")
    names = [(start + f.path[len(info.path) :], f".{f.extension.lower()}") for f in found]
    parquet = [name for name, suffix in names if suffix == ".parquet"]
    pictures = [name for name, suffix in names if suffix in SUFFIXES or (info.is_file and not parquet)]
    if not names or not (pictures or parquet):
        raise DatasetError(f"{printable(source)}: no pictures and no Parquet files in this folder")
    return pictures, parquet


def _picture_columns(path: str) -> tuple[str, ...]:
    """Which columns of a Parquet file have pictures and their names; DatasetError if none have."""
    system, inside = _open(path)
    try:
        names = pq.read_schema(inside, filesystem=system).names
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{printable(path)}: not a Parquet file ({one_line(error)})") from None
    columns = tuple(name for name in names if name in ("bytes", "image", "path"))
    if not columns:
        raise DatasetError(f"{printable(path)}: no column named bytes, image or path; it has {', '.join(names)}")
    return columns


def _to_pictures(table: pa.Table, folder: str, done: pa.Array) -> pa.Table:
    """Rows of a Parquet file to rows of `PICTURES`, less those with names in `done`; paths are relative to `folder`."""
    columns = {name: table[name] for name in table.column_names}
    image = columns.pop("image", None)
    if image is not None and pa.types.is_struct(image.type):
        columns |= {name: pc.struct_field(image, name) for name in ("bytes", "path")}
    elif image is not None:
        columns["path" if _is_text(image.type) else "bytes"] = image
    nothing = pa.nulls(len(table))
    contents = columns.get("bytes", nothing).cast(pa.binary())
    names = columns.get("path", nothing).cast(pa.string())
    named = [_name(name, content, folder) for name, content in zip(names, contents, strict=True)]
    pictures = pa.table([pa.array(named, pa.string()), contents], schema=PICTURES)
    return pictures.filter(pc.invert(pc.is_in(pictures["image"], done)))


def _name(name: pa.Scalar, content: pa.Scalar, folder: str) -> str | None:
    if not name.is_valid:
        return f"sha256:{hashlib.sha256(content.as_buffer()).hexdigest()}" if content.is_valid else None
    path = name.as_py()
    return path if content.is_valid or "://" in path else os.path.join(folder, path)


def read_picture(name: str | None, content: pa.Scalar | None) -> str | bytes:
    """What the pipeline decodes: the bytes at hand, a path of this machine, or the bytes behind a URI."""
    if content is not None and content.is_valid:
        return content.as_py()
    if name is None:
        raise ImageError("image: neither a path nor bytes in this row")
    if "://" not in name:
        return name
    try:
        system, path = _open(name)
        with system.open_input_stream(path) as file:
            return file.read()
    except FileNotFoundError:
        raise ImageError(f"{printable(name)}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise ImageError(f"{printable(name)}: cannot be read ({one_line(error)})") from None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
