"""Names to files: a model folder, wherever it is, and what is in it.

A name is, in this order: a bundled model; a local folder; a Hub repository `org/name`; a backbone of the catalogue,
which comes from our organisation's Hub repository or, where there is none, from Google's release. Whatever was fetched
is cached. Nothing that was fetched is ever run: weights are safetensors or plain arrays, and `auto_map` is not read.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from tipsomaly.catalogue import BACKBONES, ModelError, Prompts, near, organisation
from tipsomaly.download import ATTEMPTS, disk_errors, fetch, lock, retry_after
from tipsomaly.tips import Tips, TipsConfig, from_transformers
from tipsomaly.tokenizer import Tokenizer

BUNDLED = {"nano": Path(__file__).parent / "nano"}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL_FILES = ["config.json", "preprocessor_config.json", "tokenizer.model", "tokenizer_config.json"]
SMALL_FILES += ["prompts/*.safetensors"]
FILES = [*SMALL_FILES, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
"""What we need of a repository, and all that is fetched."""

REPOSITORY = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[\w./-]+))?(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class ModelFolder:
    """The files of a published model: config.json, model.safetensors, tokenizer.model, preprocessor_config.json and
    prompts/<name>.safetensors. `name` is what the catalogue may know it by."""

    path: Path
    name: str = ""

    def read_config(self) -> TipsConfig:
        """The sizes of the towers. Raises ModelError, naming the file, if they are not those of a TIPS."""
        config = self.read_json("config.json")
        if config.get("model_type") == "tipsv2" and "vision_fn" in config:
            return self._read_flat_config(config)
        try:
            return TipsConfig.from_dict(config)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ModelError(f"{self.path / 'config.json'}: {error}") from None

    def _read_flat_config(self, config: dict) -> TipsConfig:
        """Google's first config.json was flat and named the sizes for code of its own: the arrays say them as well."""
        from tipsomaly.convert import DEFAULT_TEMPERATURE, read_config

        shapes: dict[str, dict] = {"vision_encoder": {}, "text_encoder": {}}
        for path in self._weight_files():
            with _open_safetensors(path) as file:
                for key in file.keys():  # noqa: SIM118
                    tower, _, name = key.partition(".")
                    shapes.get(tower, {})[name] = (tuple(file.get_slice(key).get_shape()), None)
        temperature = config.get("temperature", DEFAULT_TEMPERATURE)
        return read_config(*shapes.values(), temperature, text_heads=config.get("text_num_heads"))

    def read_image_size(self, config: TipsConfig) -> int | tuple[int, int]:
        """The default input size in pixels: one side, or (height, width); where no file says it, the trained one."""
        if not (self.path / "preprocessor_config.json").exists():
            return config.vision.image_size
        size = self.read_json("preprocessor_config.json").get("size")
        if not isinstance(size, dict) or not all(isinstance(size.get(side), int) for side in ("height", "width")):
            raise ModelError(f"{self.path / 'preprocessor_config.json'}: size must give height and width in pixels")
        return size["height"] if size["height"] == size["width"] else (size["height"], size["width"])

    def read_tokenizer(self, max_length: int) -> Tokenizer:
        """Raises ModelError if there is none or if it is damaged."""
        path = self._file("tokenizer.model")
        try:
            return Tokenizer(path, max_length)
        except ValueError as error:
            raise ModelError(f"{path}: {first_line(error)}") from None

    def read_tips(self, device: torch.device, dtype: torch.dtype) -> Tips:
        """The towers on `device`, the vision tower in `dtype`, the text tower in float32: prototypes are computed once
        for each class, and the softmax magnifies their rounding errors by 1 / temperature."""
        config = self.read_config()
        state: dict[str, Tensor] = {}
        for path in self._weight_files():
            with _open_safetensors(path) as file:  # memory-mapped: tensors go to the device one by one
                for key in file.keys():  # noqa: SIM118
                    wanted = torch.float32 if key.startswith("text_") or key == "temperature" else dtype
                    state[key] = file.get_tensor(key).to(device, wanted)
        temperature = state.pop("temperature", None)
        # transformers saves the trained temperature as a tensor, and only where training started in config.json.
        if temperature is not None and not math.isclose(temperature.item(), config.temperature, rel_tol=1e-6):
            config = replace(config, temperature=temperature.item())
        try:
            return Tips.from_state_dict(config, from_transformers(state))
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None

    def _weight_files(self) -> list[Path]:
        """model.safetensors, or the shards that its index names."""
        if (self.path / WEIGHTS).is_file() or not (self.path / INDEX).is_file():
            return [self._file(WEIGHTS)]
        names = self.read_json(INDEX).get("weight_map") or {}
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
            raise ModelError(f"{self.path / INDEX}: names no files of this folder")
        return [self._file(name) for name in sorted(set(names.values()))]

    def prompt_sets(self) -> dict[str, Path]:
        """The learned prompts in the folder, by name."""
        return {path.stem: path for path in sorted((self.path / "prompts").glob("*.safetensors"))}

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise ModelError(f"{self.path} is not a model folder: it has no {name}")
        return path

    def read_json(self, name: str) -> dict:
        """A JSON object of the folder; ModelError, naming the file, if it is something else."""
        path = self._file(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not JSON ({error})") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path}: expected a JSON object")
        return content


def write_configs(folder: Path, config: TipsConfig, image_size: tuple[int, int]) -> None:
    """config.json, preprocessor_config.json and tokenizer_config.json, as transformers writes and reads them."""
    preprocessor = {
        "image_processor_type": "Tipsv2ImageProcessor",
        "processor_class": "Tipsv2Processor",
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 2,  # bilinear
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": False,
        "do_convert_rgb": True,
    }
    tokenizer = {
        "tokenizer_class": "Tipsv2Tokenizer",
        "model_max_length": config.text.max_length,
        "do_lower_case": True,
    }
    files = {"config": config.to_dict(), "preprocessor_config": preprocessor, "tokenizer_config": tokenizer}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _open_safetensors(path: Path) -> Iterator:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({error})") from None


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
        folder = ModelFolder(_snapshot(base, revision or at or None, wanted), base.split("/")[1])
    elif base in BUNDLED:
        raise ModelError(f"{base!r} comes with the package: it has no revisions")
    else:
        hint = "no such folder" if "/" in text or "\\" in text else near(text, [*BUNDLED, *BACKBONES])
        raise ModelError(f"no model {text!r}: {hint} (a name, a folder or org/name on the Hub; see `tipsomaly models`)")
    if folder.path.is_dir():
        folder.read_json("config.json")
    return folder


def find_prompts(folder: ModelFolder, name: str | Path) -> Path:
    """A prompts file: a set of the model by name, else the set of that name released for the backbone, a local file, or
    `org/name[:set]` on the Hub. Raises ModelError."""
    text, sets = str(name), folder.prompt_sets()
    if text in sets:
        return sets[text]
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    if text in released_prompts(folder):
        return _fetch_prompts(folder.name, text, released_prompts(folder)[text])
    if match := REPOSITORY.fullmatch(text):
        return _hub_prompts(match["id"], match["file"], match["revision"])
    known = ", ".join(sets | released_prompts(folder)) or "none; `tipsomaly train` makes some"
    others = [backbone.name for backbone in BACKBONES.values() if text in backbone.prompts]
    wrong = f" ({text} was released for {' and '.join(others)})" if others else ""
    raise ModelError(f"no prompt set or file {text!r}{wrong}: {folder.name or folder.path} has {known}")


def released_prompts(folder: ModelFolder) -> dict[str, Prompts]:
    """The prompts that were released for the folder's backbone, by name, whether they are at hand or not."""
    return BACKBONES[folder.name].prompts if folder.name in BACKBONES else {}


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
        return _snapshot(ours, revision, wanted)
    except _NotThereError as error:
        if google:
            return _snapshot(google, revision, wanted)
        if revision:
            raise ModelError(f"{error}; Google's release, which would do instead, has no revisions") from None
        if _offline():
            raise
    return convert_release(name) if WEIGHTS in wanted else converted


def convert_release(name: str) -> Path:
    """The model folder made from Google's release of a backbone, once: it appears in the cache when it is whole.

    Its source.json says of each file of the release the url, size and sha256. Raises ModelError.
    """
    from tipsomaly.convert import convert

    out = cache_folder() / "models" / name
    if out.is_dir():
        return out
    downloads = cache_folder() / "downloads" / name
    with lock(cache_folder() / f"{name}.lock"):
        if out.is_dir():  # another process was faster
            return out
        records = fetch(BACKBONES[name].sources, downloads, extra=1)
        with disk_errors(out), _staging(out) as staging:
            try:
                convert(*(downloads / source.file_name for source in BACKBONES[name].sources), staging)
            except ValueError as error:  # what came is not what it should be: let the next run fetch it anew
                shutil.rmtree(downloads)
                raise ModelError(f"{name}: the release cannot be converted, its files were deleted: {error}") from None
            (staging / "source.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(downloads, ignore_errors=True)
    return out


def _fetch_prompts(backbone: str, name: str, prompts: Prompts) -> Path:
    from tipsomaly.convert import convert_prompts

    out = cache_folder() / "prompts" / backbone
    path = out / f"{name}.safetensors"
    if path.is_file():
        return path
    with lock(cache_folder() / f"{backbone}-{name}.lock"):
        if not path.is_file():
            downloads = cache_folder() / "downloads" / f"{backbone}-{name}"
            fetch((prompts.source,), downloads, extra=1)
            metadata = {"backbone": backbone, "trained_on": prompts.trained_on, "licence": prompts.licence}
            metadata |= {"source": prompts.source.url, "source_sha256": prompts.sha256}
            with disk_errors(path):
                convert_prompts(downloads / prompts.source.file_name, downloads / path.name, metadata=metadata)
                out.mkdir(parents=True, exist_ok=True)
                (downloads / path.name).replace(path)
                shutil.rmtree(downloads, ignore_errors=True)
    return path


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder to work in that becomes `out` if all goes well, and is gone otherwise. Hold a lock around it."""
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _offline() -> bool:
    from huggingface_hub.constants import is_offline_mode

    return is_offline_mode()


def _snapshot(repository: str, revision: str | None = None, patterns: list[str] = FILES) -> Path:
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
        return ModelError(f"{repository}: {first_line(cause)}; what came is kept, run again to go on")
    why = "HF_HUB_OFFLINE forbids to fetch it" if _offline() else f"the Hub cannot be used: {first_line(cause)}"
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


def _hub_prompts(repository: str, file: str | None, revision: str | None) -> Path:
    wanted = [file, f"prompts/{file}.safetensors"] if file else ["prompts/*.safetensors"]
    folder = ModelFolder(_snapshot(repository, revision, wanted))
    sets = folder.prompt_sets()
    found = [folder.path / name for name in wanted if (folder.path / name).is_file()] if file else list(sets.values())
    if len(found) != 1:
        choice = f"; say which, as in {repository}:{next(iter(sets))}" if sets else ""
        raise ModelError(f"{repository} has {'no ' + file if file else ', '.join(sets) or 'no prompts'}{choice}")
    return found[0]


def find_token() -> str:
    """The user's Hub token; ModelError, with the way to get one, where there is none."""
    from huggingface_hub import get_token

    if token := get_token():
        return token
    raise ModelError(
        "no Hub token: make one with write access at https://huggingface.co/settings/tokens, then run `hf auth login` "
        "or set HF_TOKEN"
    )


def upload(
    folder: Path,
    repository: str,
    files: Sequence[str] | None = None,
    *,
    kind: str = "model",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Publish `files` of a folder (all without it) as a Hub repository, made if it is not there; returns its address.

    Raises ModelError, in one line, without a token or when the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token or find_token())
    try:
        sdk = "gradio" if kind == "space" else None
        url = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, allow_patterns=files)
    except Exception as error:  # as in _snapshot
        raise ModelError(f"{repository}: the upload failed: {first_line(error)}") from None
    return str(url)


def first_line(error: BaseException) -> str:
    """A library's message for one line of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
