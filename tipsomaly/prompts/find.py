"""From the name of a prompt set to its file, and from released pickles to safetensors."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tipsomaly.errors import ModelError, explained
from tipsomaly.files import expand, is_file
from tipsomaly.models.catalogue import BACKBONES, Prompts
from tipsomaly.models.download import disk_errors, fetch, lock
from tipsomaly.models.folder import ModelFolder, existing
from tipsomaly.models.hub import Repository, cache_folder, snapshot
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.methods import METHODS, load_prompts

MAX_NUMBERS = 2**20
"""In one of two learned prompts; the released ones have 8 x 1024."""


def convert_prompts(
    source: str | Path,
    out: str | Path,
    *,
    prompt_ensemble: str = "industrial",
    metadata: Mapping[str, str] | None = None,
) -> LearnedPrompts:
    """Write a prompts .safetensors file from a released `learnable_params_*.pth`, in either of its shapes.

    The pickle is read with torch's weights-only loader and nothing but `ParameterList` allowed beyond tensors, so it
    cannot run code. Raises ModelError for any other content.
    """
    source = existing(source)
    with explained(
        f"{source}: refused, not a plain file of tensors"
    ):  # a hostile one can make the loader raise anything
        with torch.serialization.safe_globals([torch.nn.ParameterList]):
            content = torch.load(source, map_location="cpu", weights_only=True)
        pair = content.get("learnable_prompts") if isinstance(content, dict) else content
        if not isinstance(pair, list | tuple | torch.nn.ParameterList) or len(pair) != 2:
            raise ModelError(f"{source}: expected the two prompts of a Tipsomaly checkpoint, normal and abnormal")
        for value in pair:
            plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
            if not plain or not value.is_floating_point() or value.numel() > MAX_NUMBERS:
                raise ModelError(f"{source}: the prompts are not plain float tensors")
        normal, abnormal = (value.detach().float().clone() for value in pair)
    metadata = {"source": source.name, "name": Path(out).stem, **(metadata or {})}
    with explained(source):
        prompts = LearnedPrompts(normal, abnormal, prompt_ensemble, metadata)
    prompts.save(out)
    return prompts


def find_prompts(folder: ModelFolder, name: str | Path) -> Path:
    """A prompts file: a set of the model by name, else the set of that name released for the backbone, a local file, or
    `org/name[:set]` or an address (`Repository.parse`) on the Hub. Raises ModelError."""
    text, sets = str(name), folder.prompt_sets()
    if text in sets:
        return sets[text]
    if is_file(expand(name)):
        return expand(name)
    if text in released_prompts(folder):
        return _fetch_prompts(folder.name, text, released_prompts(folder)[text])
    if place := Repository.parse(text):
        return _hub_prompts(place)
    known = ", ".join(sets | released_prompts(folder)) or "none; `tipsomaly train` makes some"
    others = [backbone.name for backbone in BACKBONES.values() if text in backbone.prompts]
    wrong = f" ({text} was released for {' and '.join(others)})" if others else ""
    raise ModelError(f"no prompt set or file {text!r}{wrong}: {folder.name or folder.path} has {known}")


def read_prompts(folder: ModelFolder, name: str | Path) -> PromptMethod:
    """The prompts of that name, of any method, see `find_prompts`. Raises ModelError."""
    path = find_prompts(folder, name)
    with explained(path):
        return load_prompts(path)


def default_prompts(folder: ModelFolder, domain: object) -> PromptMethod | None:
    """The set named after the domain, else the first one, those named after another method last; at hand or released.
    None where there are none."""
    sets = sorted(folder.prompt_sets() or released_prompts(folder), key=lambda name: (name in METHODS, name))
    if not sets:
        return None
    return read_prompts(folder, domain if isinstance(domain, str) and domain in sets else sets[0])


def released_prompts(folder: ModelFolder) -> dict[str, Prompts]:
    """The prompts that were released for the folder's backbone, by name, whether they are at hand or not."""
    return BACKBONES[folder.name].prompts if folder.name in BACKBONES else {}


def _fetch_prompts(backbone: str, name: str, prompts: Prompts) -> Path:
    out = cache_folder() / "prompts" / backbone
    path = out / f"{name}.safetensors"
    if path.is_file():
        return path
    with lock(cache_folder() / f"{backbone}-{name}.lock"):
        if not path.is_file():
            downloads = cache_folder() / "downloads" / f"{backbone}-{name}"
            fetch((prompts.source,), downloads, extra=1)
            print(f"prompts {name!r} were learned on {prompts.origin}", file=sys.stderr)
            metadata = {"backbone": backbone, "trained_on": prompts.trained_on, "licence": prompts.licence}
            metadata |= {"source": prompts.source.url, "source_sha256": prompts.sha256}
            with disk_errors(path):
                convert_prompts(downloads / prompts.source.file_name, downloads / path.name, metadata=metadata)
                out.mkdir(parents=True, exist_ok=True)
                (downloads / path.name).replace(path)
                shutil.rmtree(downloads, ignore_errors=True)
    return path


def _hub_prompts(place: Repository) -> Path:
    repository, revision, file = place
    wanted = [file, f"prompts/{file}.safetensors"] if file else ["prompts/*.safetensors"]
    folder = ModelFolder(snapshot(repository, revision, wanted))
    sets = folder.prompt_sets()
    found = [folder.path / name for name in wanted if (folder.path / name).is_file()] if file else list(sets.values())
    if len(found) != 1:
        choice = f"; say which, as in {repository}:{next(iter(sets))}" if sets else ""
        raise ModelError(f"{repository} has {'no ' + file if file else ', '.join(sets) or 'no prompts'}{choice}")
    return found[0]
