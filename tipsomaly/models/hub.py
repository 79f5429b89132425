"""Names to files: a model folder, wherever it is, and what is in it.

A name is, in this order: a bundled model; a local folder; a Hub repository, by `org/name`, `hf://org/name` or the
address that a browser shows; a backbone of the catalogue, which comes from the Hub organisation that TIPSOMALY_ORG
names, if it does, else from Google's release. Whatever was fetched is verified and cached. Nothing of it is ever run:
weights are safetensors or plain arrays, and `auto_map` is not read.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tipsomaly.errors import FetchError, ModelError, one_line
from tipsomaly.files import expand, staged_folder
from tipsomaly.models.catalogue import BACKBONES, OTHERS, near, organisation
from tipsomaly.models.convert import convert
from tipsomaly.models.download import ATTEMPTS, disk_errors, fetch, lock, retry_after
from tipsomaly.models.folder import FILES, SMALL_FILES, WEIGHTS, ModelFolder

BUNDLED = {"nano": Path(__file__).parents[1] / "nano"}

TIMEOUT = 10.0
"""Seconds that the Hub may take to answer."""

REPOSITORY = re.compile(r"(hf://)?(\w[\w.-]*/\w[\w.-]*)(?::([\w./-]+))?(?:@([\w./-]+))?", re.ASCII)
ADDRESS = re.compile(r"/(\w[\w.-]*/\w[\w.-]*)(?:/tree/([^/]+)|/(?:blob|resolve)/([^/]+)/(.+))?/?", re.ASCII)
HOSTS = ("https://huggingface.co", "http://huggingface.co", "https://www.huggingface.co", "https://hf.co")


class Repository(NamedTuple):
    """What a name says of the Hub: `org/name`, and maybe a branch, tag or commit, and a file or prompt set in it."""

    id: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, name: str) -> "Repository | None":
        """`org/name[:file][@revision]`, with or without `hf://` before it, or the address of the repository, of a
        branch (`/tree/...`) or of a file (`/blob/...`) in a browser; None for anything else.

        Raises ModelError for another address, which cannot be the name of anything here.
        """
        match, place = REPOSITORY.fullmatch(name), None
        if match:
            place = cls(match[2], match[4], match[3])
        elif "://" not in name:
            return None
        else:
            with suppress(ValueError):  # of an address that is none
                place = cls._address(name)
        if place and place.id.split("/")[0] not in ("datasets", "spaces"):
            return place
        forms = "hf://org/name[@revision] or https://huggingface.co/org/name[/tree/revision]"
        raise ModelError(f"{name!r} is not the address of a model on the Hub, which is {forms}")

    @classmethod
    def _address(cls, address: str) -> "Repository | None":
        from huggingface_hub import constants

        url = urlsplit(address)
        match = ADDRESS.fullmatch(url.path)
        if not match or f"{url.scheme}://{url.netloc}" not in (*HOSTS, constants.ENDPOINT):
            return None
        id_, tree, revision, file = (part and unquote(part) for part in match.groups())
        return cls(id_, tree or revision, file)

    @property
    def name(self) -> str:
        """Without the organisation."""
        return self.id.split("/")[1]


def short_name(model: str | Path) -> str:
    """What a model is called in tables, and by prompts that are learned on it: the last part of its name."""
    place = Repository.parse(str(model)) if "://" in str(model) else None
    return place.name if place else Path(model).resolve().name


def resolve(name: str | Path, revision: str | None = None, *, weights: bool = True) -> ModelFolder:
    """The folder of a model, fetched if need be: see the head of this file.

    name: a bundled name, a local folder, a Hub repository or its address (`Repository.parse`) or a name of the
        catalogue; for the latter two a revision (branch, tag or commit) may follow after an @.
    weights: without them it is what can be had before gigabytes are fetched, to see whether they are wanted: the rest
        of a Hub repository or, for a release that is not converted yet, a folder that is not there.

    Raises ModelError, in one line.
    """
    text = str(name)
    path = expand(name)
    base, _, at = text.partition("@")
    wanted = FILES if weights else SMALL_FILES
    if text in BUNDLED and revision is None:
        folder = ModelFolder(BUNDLED[text], text)
    elif path.is_dir() and revision is None:
        folder = ModelFolder(path, path.resolve().name)
    elif base in BACKBONES:
        folder = ModelFolder(_fetch_backbone(base, revision or at or None, wanted), base)
    elif base in OTHERS:
        folder = ModelFolder(snapshot(OTHERS[base].repository, revision or at or None, wanted), base)
    elif place := Repository.parse(text):
        if place.file:
            raise ModelError(f"{text!r} names a file, and a model is a whole repository: {place.id}")
        folder = ModelFolder(snapshot(place.id, revision or place.revision, wanted), place.name)
    elif base in BUNDLED:
        raise ModelError(f"{base!r} comes with the package: it has no revisions")
    else:
        hint = "no such folder" if "/" in text or "\\" in text else near(text, [*BUNDLED, *BACKBONES, *OTHERS])
        raise ModelError(f"no model {text!r}: {hint} (a name, a folder or org/name on the Hub; see `tipsomaly models`)")
    if folder.path.is_dir():
        folder.read_json("config.json")
    return folder


def cache_folder() -> Path:
    """Where converted releases are kept: TIPSOMALY_CACHE, else a folder within huggingface_hub's HF_HOME."""
    if chosen := os.environ.get("TIPSOMALY_CACHE"):
        return expand(chosen)
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "tipsomaly"


def where_cached(name: str) -> str | None:
    """Where a model of the catalogue is at hand without a network: "bundled", "Hub", "converted"; None if nowhere."""
    if name in BUNDLED:
        return "bundled"
    from huggingface_hub import try_to_load_from_cache

    repositories: list[str | None] = [organisation() and f"{organisation()}/{name}"]
    repositories.append(OTHERS[name].repository if name in OTHERS else BACKBONES[name].google_repository)
    if any(r and isinstance(try_to_load_from_cache(r, WEIGHTS), str) for r in repositories):
        return "Hub"
    return "converted" if (cache_folder() / "models" / name).is_dir() else None


class _NotThereError(FetchError):
    """The Hub does not have a repository, or cannot be asked and the cache has no copy."""


def _fetch_backbone(name: str, revision: str | None, wanted: list[str]) -> Path:
    google, converted = BACKBONES[name].google_repository, cache_folder() / "models" / name
    if converted.is_dir() and revision is None:
        return converted
    if organisation():
        try:
            return snapshot(f"{organisation()}/{name}", revision, wanted)
        except _NotThereError:
            if _offline() and not google:
                raise
    if google:
        return snapshot(google, revision, wanted)
    if revision:
        raise ModelError(f"{name}: Google's release of it has no revisions, and no Hub organisation of ours is set")
    if _offline():
        raise FetchError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
    return convert_release(name) if WEIGHTS in wanted else converted


def convert_release(name: str) -> Path:
    """The model folder made from Google's release of a backbone, once: it appears in the cache when it is whole.

    Its source.json says of each file of the release the url, size and sha256. Raises ModelError.
    """
    out = cache_folder() / "models" / name
    if out.is_dir():
        return out
    downloads = cache_folder() / "downloads" / name
    with lock(cache_folder() / f"{name}.lock"):
        if out.is_dir():  # another process was faster
            return out
        for left in out.parent.glob(f".{name}.*.partial"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        records = fetch(BACKBONES[name].sources, downloads, extra=1)
        with disk_errors(out), staged_folder(out) as staging:
            try:
                vision, text, tokenizer = (downloads / source.file_name for source in BACKBONES[name].sources)
                convert(vision, text, tokenizer, staging)
            except ValueError as error:  # what came is not what it should be: let the next run fetch it anew
                shutil.rmtree(downloads)
                raise ModelError(f"{name}: the release cannot be converted, its files were deleted: {error}") from None
            (staging / "source.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(downloads, ignore_errors=True)
    return out


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()


def snapshot(repository: str, revision: str | None = None, patterns: list[str] = FILES) -> Path:
    """A Hub repository's files in huggingface_hub's cache, each of them verified. Raises FetchError, _NotThereError
    where something else than this repository may help."""
    from huggingface_hub import snapshot_download

    fetch_files = partial(snapshot_download, repository, revision=revision, allow_patterns=patterns)
    with _bounded():
        for attempt in count():
            try:
                if not _offline():
                    _ask(repository, revision)
                path = Path(fetch_files())
                if damaged := _damaged(path):
                    if _offline():
                        raise FetchError(f"{repository}: {damaged}; deleted, fetch it again with a network")
                    path = Path(fetch_files())
                    if damaged := _damaged(path):
                        raise FetchError(f"{repository}: {damaged}; deleted, please try again")
                return path
            except FetchError:
                raise
            except Exception as error:  # the client lets through what its HTTP and Xet libraries raise
                response = getattr(error.__cause__ or error, "response", None)
                if response is None:  # no answer: the client takes a cached copy after some such errors, we after all
                    with suppress(Exception):
                        path = Path(fetch_files(local_files_only=True))
                        if not _damaged(path):
                            if not _offline():
                                print(
                                    f"{repository}: {one_line(error)}; the copy in the cache is used", file=sys.stderr
                                )
                            return path
                busy = response is not None and (response.status_code == 429 or response.status_code >= 500)
                if response is None or not busy or attempt + 1 == ATTEMPTS:
                    raise _explain(error, repository, revision) from None
                time.sleep(retry_after(response.headers.get("Retry-After"), attempt))
    raise AssertionError("unreachable")


def _ask(repository: str, revision: str | None) -> None:
    """A first request, which is not tried again: a server that accepts and never answers costs TIMEOUT seconds."""
    from huggingface_hub import HfApi

    HfApi().repo_info(repository, revision=revision, timeout=TIMEOUT)


@contextmanager
def _bounded() -> Iterator[None]:
    """huggingface_hub's client waits for ever for some answers: give its session a time-out, unless it has one."""
    from huggingface_hub.utils import get_session

    session = get_session()
    before = session.timeout
    if before.read is None:
        session.timeout = TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


def _explain(error: Exception, repository: str, revision: str | None) -> FetchError:
    """What huggingface_hub raised, as one line that says what to do."""
    from huggingface_hub import constants, errors

    cause = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {constants.ENDPOINT}/{repository}, then `hf auth login`"
        return _NotThereError(f"{repository} is gated on the Hub: {terms}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _NotThereError(f"the Hub has no model {repository!r}, or it is private: `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"{repository} has no revision {revision!r}")
    if isinstance(error, OSError) and error.errno:
        return FetchError(
            f"{constants.HF_HUB_CACHE}: cannot write there ({error.strerror}); HF_HOME names another folder"
        )
    if getattr(getattr(cause, "response", None), "status_code", None) == 401:
        return _NotThereError(f"{repository}: the Hub answers 401; is the token right? `hf auth login`")
    if isinstance(error, OSError) and not isinstance(error, errors.LocalEntryNotFoundError):  # an answer, but a bad one
        return FetchError(f"{repository}: {one_line(cause)}; what came is kept, run again to go on")
    why = "HF_HUB_OFFLINE forbids to fetch it" if _offline() else f"the Hub cannot be used: {one_line(cause)}"
    return _NotThereError(f"{repository} is not in the cache, and {why}")


def _damaged(snapshot: Path) -> str:
    """Compare each file, once, with the hash that the Hub announced, after which its client names it in the cache; the
    client itself looks only at the size. Files that are not what they should be are deleted, and named."""
    wrong = []
    for path in snapshot.rglob("*"):
        blob = path.resolve()
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name) or not blob.is_file():
            continue
        state = blob.stat()
        checked = cache_folder() / "verified" / f"{blob.name}-{state.st_size}-{state.st_mtime_ns}"
        if checked.exists():
            continue
        if not _has_hash(blob, blob.name):
            wrong.append(path.name)
            blob.unlink()
            path.unlink(missing_ok=True)
            continue
        with suppress(OSError):  # a read-only cache: then it is checked each time
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.touch()
    return f"the sha256 of {', '.join(sorted(wrong))} is not the one announced" if wrong else ""


def _has_hash(path: Path, expected: str) -> bool:
    """Large files go by their SHA-256; small ones by git's SHA-1 of them or, on a mirror, by the plain one."""
    with path.open("rb") as file:
        if len(expected) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == expected
        content = file.read()
    plain, git = (hashlib.sha1(usedforsecurity=False) for _ in range(2))
    plain.update(content)
    git.update(b"blob %d\0" % len(content) + content)
    return expected in (plain.hexdigest(), git.hexdigest())
