"""Names to files: a model folder, wherever it is, and what is in it.

A name is, in this order: a bundled model; a local folder; a Hub repository `org/name`; a backbone of the catalogue,
which comes from our organisation's Hub repository or, where there is none, from Google's release. Whatever was fetched
is cached. Nothing that was fetched is ever run: weights are safetensors or plain arrays, and `auto_map` is not read.
"""

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from tipsomaly.errors import ModelError, one_line
from tipsomaly.files import staged_folder
from tipsomaly.models.catalogue import BACKBONES, near, organisation
from tipsomaly.models.convert import convert
from tipsomaly.models.download import ATTEMPTS, disk_errors, fetch, lock, retry_after
from tipsomaly.models.folder import FILES, SMALL_FILES, WEIGHTS, ModelFolder

BUNDLED = {"nano": Path(__file__).parents[1] / "nano"}

REPOSITORY = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[\w./-]+))?(@(?P<revision>[\w./-]+))?", re.ASCII)


def resolve(name: str | Path, revision: str | None = None, *, weights: bool = True) -> ModelFolder:
    """The folder of a model, fetched if need be: see the head of this file.

    name: a bundled name, a local folder, `org/name` on the Hub or a name of the catalogue; for the latter two a
        revision (branch, tag or commit) may follow after an @.
    weights: without them it is what can be had before gigabytes are fetched, to see whether they are wanted: the rest
        of a Hub repository or, for a release that is not converted yet, a folder that is not there.

    Raises ModelError, in one line.
    """
    text = str(name)
    path = Path(name).expanduser()
    base, _, at = text.partition("@")
    wanted = FILES if weights else SMALL_FILES
    if text in BUNDLED and revision is None:
        folder = ModelFolder(BUNDLED[text], text)
    elif path.is_dir() and revision is None:
        folder = ModelFolder(path, path.resolve().name)
    elif base in BACKBONES:
        folder = ModelFolder(_fetch_backbone(base, revision or at or None, wanted), base)
    elif REPOSITORY.fullmatch(base):
        folder = ModelFolder(snapshot(base, revision or at or None, wanted), base.split("/")[1])
    elif base in BUNDLED:
        raise ModelError(f"{base!r} comes with the package: it has no revisions")
    else:
        hint = "no such folder" if "/" in text or "\\" in text else near(text, [*BUNDLED, *BACKBONES])
        raise ModelError(f"no model {text!r}: {hint} (a name, a folder or org/name on the Hub; see `tipsomaly models`)")
    if folder.path.is_dir():
        folder.read_json("config.json")
    return folder


def cache_folder() -> Path:
    """Where converted releases are kept: TIPSOMALY_CACHE, else a folder within huggingface_hub's HF_HOME."""
    if chosen := os.environ.get("TIPSOMALY_CACHE"):
        return Path(chosen).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "tipsomaly"


def where_cached(name: str) -> str | None:
    """Where a model of the catalogue is at hand without a network: "bundled", "Hub", "converted"; None if nowhere."""
    if name in BUNDLED:
        return "bundled"
    from huggingface_hub import try_to_load_from_cache

    repositories = (f"{organisation()}/{name}", BACKBONES[name].google_repository)
    if any(r and isinstance(try_to_load_from_cache(r, WEIGHTS), str) for r in repositories):
        return "Hub"
    return "converted" if (cache_folder() / "models" / name).is_dir() else None


class _NotThereError(ModelError):
    """The Hub does not have a repository, or cannot be asked and the cache has no copy."""


def _fetch_backbone(name: str, revision: str | None, wanted: list[str]) -> Path:
    ours, google = f"{organisation()}/{name}", BACKBONES[name].google_repository
    converted = cache_folder() / "models" / name
    if converted.is_dir() and revision is None:
        return converted
    try:
        return snapshot(ours, revision, wanted)
    except _NotThereError as error:
        if google:
            return snapshot(google, revision, wanted)
        if revision:
            raise ModelError(f"{error}; Google's release, which would do instead, has no revisions") from None
        if _offline():
            raise
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
        records = fetch(BACKBONES[name].sources, downloads, extra=1)
        with disk_errors(out), staged_folder(out) as staging:
            try:
                convert(*(downloads / source.file_name for source in BACKBONES[name].sources), staging)
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
    """A Hub repository's files in huggingface_hub's cache. Raises ModelError, _NotThereError where something else than
    this repository may help."""
    from huggingface_hub import snapshot_download

    fetch_files = partial(snapshot_download, repository, revision=revision, allow_patterns=patterns)
    for attempt in count():
        try:
            path = Path(fetch_files())
            break
        except Exception as error:  # the client lets through what its HTTP and Xet libraries raise
            response = getattr(error.__cause__ or error, "response", None)
            if response is None:  # no answer: the client takes a cached copy after some such errors, we after all
                with suppress(Exception):
                    return Path(fetch_files(local_files_only=True))
            busy = response is not None and (response.status_code == 429 or response.status_code >= 500)
            if not busy or attempt + 1 == ATTEMPTS:
                raise _explain(error, repository, revision) from None
            time.sleep(retry_after(response.headers.get("Retry-After"), attempt))
    _verify(repository, path)
    return path


def _explain(error: Exception, repository: str, revision: str | None) -> ModelError:
    """What huggingface_hub raised, as one line that says what to do."""
    from huggingface_hub import constants, errors

    cause = error.__cause__ or error
    if isinstance(error, errors.GatedRepoError):
        terms = f"accept its terms at {constants.ENDPOINT}/{repository}, then `hf auth login`"
        return _NotThereError(f"{repository} is gated on the Hub: {terms}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _NotThereError(f"the Hub has no model {repository!r}, or it is private: `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{repository} has no revision {revision!r}")
    if isinstance(error, OSError) and error.errno:
        return ModelError(
            f"{constants.HF_HUB_CACHE}: cannot write there ({error.strerror}); HF_HOME names another folder"
        )
    if getattr(getattr(cause, "response", None), "status_code", None) == 401:
        return _NotThereError(f"{repository}: the Hub answers 401; is the token right? `hf auth login`")
    if isinstance(error, OSError) and not isinstance(error, errors.LocalEntryNotFoundError):  # an answer, but a bad one
        return ModelError(f"{repository}: {one_line(cause)}; what came is kept, run again to go on")
    why = "HF_HUB_OFFLINE forbids to fetch it" if _offline() else f"the Hub cannot be used: {one_line(cause)}"
    return _NotThereError(f"{repository} is not in the cache, and {why}")


def _verify(repository: str, snapshot: Path) -> None:
    """Compare large files, once each, with the SHA-256 that the Hub announced, after which its client names them in the
    cache; the client itself looks only at their size."""
    for path in snapshot.glob("*.safetensors"):
        blob = path.resolve()
        checked = cache_folder() / "verified" / blob.name
        if not re.fullmatch("[0-9a-f]{64}", blob.name) or checked.exists():
            continue
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            blob.unlink()
            path.unlink()
            wrong = f"the sha256 of {path.name} is {found}, expected {blob.name}"
            raise ModelError(f"{repository}: {wrong}; deleted, please try again")
        with suppress(OSError):  # a read-only cache: then it is checked each time
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.touch()
