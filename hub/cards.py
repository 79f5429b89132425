"""The cards of what is published. What they say of files is read from the files; the Hub reads their front matter.

`model-index`, by which the Hub lists and compares results, has only what was measured with the very files: the paper's
numbers stand in the text, as the paper's.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tipsomaly.models.catalogue import BACKBONES, OTHERS, SELLERS, TRAINING_DATA, Backbone
from tipsomaly.models.folder import WEIGHTS
from tipsomaly.models.hub import BUNDLED
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.methods import load_prompts
from tipsomaly.studies.paper import DATA_SETS, OURS, published
from tipsomaly.studies.tables import table

HUB = Path(__file__).parent
TAGS = ["anomaly-detection", "zero-shot", "tips"]

ABOUT = {
    "tipsomaly": (
        "Tipsomaly (*TIPS Over Tricks*, arXiv 2602.03594)",
        "Learned vectors stand before sentences of a normal and of an abnormal state, whatever the class. The map\n"
        "comes from them, the image score from fixed sentences about the class.",
        "Its numbers are for prompts that its authors trained.",
    ),
    "dapo": (
        "DAPO (*Defect-aware Prompt Optimization*, arXiv 2512.09446)",
        "There is one normal prompt and one for each kind of defect, so that a result names the kind. A kind that was\n"
        "not trained is used by writing its name: `kinds=[...]`, `--kinds`.",
        "It has CLIP for a backbone; this is our own implementation, on TIPS.",
    ),
    "cops": (
        "CoPS (*Conditional Prompt Synthesis*, arXiv 2508.03447)",
        "The prompts are made for each picture, from what its patches look like. The class name changes nothing, and\n"
        "pictures cannot be tiled.",
        "It has CLIP for a backbone; this is our own implementation, on TIPS.",
    ),
    "direct": (
        "direct prototypes, which are ours",
        "The two prototypes of the map are learned as they are, without words. The image score comes from fixed\n"
        "sentences about the class.",
        "There is none.",
    ),
}
"""By the method: its name, what it does, and what the numbers of its paper are of."""

METRICS = {
    "image_auroc": ("roc_auc", "image AUROC"),
    "image_ap": ("average_precision", "image AP"),
    "image_f1max": ("f1", "image F1-max"),
    "pixel_auroc": ("roc_auc", "pixel AUROC"),
    "pixel_ap": ("average_precision", "pixel AP"),
    "pixel_f1max": ("f1", "pixel F1-max"),
    "aupro": ("aupro", "AUPRO"),
}
"""By our names: the Hub's, and those that are shown."""

NO_PROMPTS = """
No learned prompts were released for this backbone, and the map needs some: train them (`tipsomaly train`) and pass
them as `prompts="mine.safetensors"`. Fixed prompts alone, `mode="fixed"`, score pictures but localize poorly.
"""


def front_matter(**fields: Any) -> str:
    """The YAML above a card; ValueError if the Hub's own client does not take it."""
    data = ModelCardData(library_name="tipsomaly", pipeline_tag="image-segmentation", **fields)
    return f"---\n{data.to_yaml()}\n---\n\n"


def card(backbone: Backbone, repository: str, folder: Path) -> str:
    """The model card. What it says of files is read from the folder."""
    records = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    records += [{"url": p.source.url, "size": None, "sha256": p.sha256} for p in backbone.prompts.values()]
    first = next(iter(backbone.prompts), None)
    licences = ["apache-2.0", "cc-by-4.0", *(["mit"] if first else [])]
    licence = "Google releases TIPS under Apache-2.0 (software) and CC-BY 4.0 (all other material)."
    if first:
        licence += "\nThe learned prompts are by the paper's authors (github.com/AlirezaSalehy/Tipsomaly), MIT."
        learned = (f"`{name}` on {prompts.origin}" for name, prompts in backbone.prompts.items())
        licence += f"\nThey were learned on pictures with licences of their own, {', '.join(learned)}. {SELLERS}"
    measured = HUB / "measured" / f"{backbone.name}.md"
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    data_sets = [TRAINING_DATA[p.trained_on].repository for p in backbone.prompts.values()]
    above = front_matter(license=licences, tags=TAGS, datasets=data_sets or None)
    return above + Template((HUB / "card.md").read_text(encoding="utf-8")).substitute(
        name=backbone.name,
        repository=repository,
        title=f"TIPS {backbone.name.removeprefix('tips-')}",
        vision_depth=backbone.depths[0],
        text_depth=backbone.depths[1],
        vision_parameters=backbone.parameters[0],
        text_parameters=backbone.parameters[1],
        width=backbone.width,
        image_size=backbone.image_size,
        default_size=backbone.default_size,
        prompts=", ".join(f"`{n}` (learned on {p.origin})" for n, p in backbone.prompts.items()) or "none",
        options=f', prompts="{first}"' if first else ', mode="fixed"',
        flags=f" --prompts {first}" if first else " --mode fixed",
        without_prompts="" if first else NO_PROMPTS,
        sources="\n".join(f"| {r['url']} | {r['size'] or ''} | `{r['sha256']}` |" for r in records),
        sha256=sha256,
        licence=licence,
        paper=paper_numbers(backbone.name),
        measured=measured.read_text(encoding="utf-8").strip() if measured.exists() else "Nothing yet.",
    )


def prompts_card(file: Path, repository: str, licence: str | None, measured: Path | None) -> str:
    """The card of a prompt set. What it says is read from the file, from the log beside it and from `measured`, the
    results.md of an evaluation, with the results.json beside it. Raises ValueError for another file, and for results
    of other prompts."""
    prompts, content = load_prompts(file), file.read_bytes()
    title, about, paper = ABOUT.get(prompts.NAME, (prompts.NAME, prompts.__doc__, "There is none."))
    tensors, metadata = prompts.tensors(), dict(prompts.metadata)
    backbone = metadata.get("backbone", "")
    learned_on = TRAINING_DATA.get(metadata.get("data_set", metadata.get("trained_on", "")))
    origin = f"on pictures under {learned_on.terms}" if learned_on else "on pictures that have licences of their own"
    base = base_model(backbone, repository.split("/")[0])
    above = front_matter(
        license=licence or "other",
        tags=[*TAGS, prompts.NAME],
        base_model=base,
        base_model_relation="adapter" if base else None,
        datasets=[learned_on.repository] if learned_on else None,
        **(evaluated(prompts, file, measured.with_suffix(".json")) if measured else {}),
    )
    return above + Template((HUB / "prompts.md").read_text(encoding="utf-8")).substitute(
        name=file.stem,
        repository=repository,
        method=prompts.NAME,
        title=title,
        about=about,
        paper=paper,
        backbone=backbone or "(the file does not say)",
        numbers=f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        tensors=f"{len(tensors)} tensors",
        bytes=f"{len(content):,}",
        sha256=hashlib.sha256(content).hexdigest(),
        temperature=prompts.temperature or "the backbone's own",
        settings=lines(prompts.settings()),
        metadata=lines(metadata),
        losses=last_losses(file.with_suffix(".log.jsonl")),
        measured=measured.read_text(encoding="utf-8").strip() if measured else "Nothing yet.",
        licence=f"{licence}. " * bool(licence) + f"They were learned {origin}. {SELLERS}",
    )


def base_model(backbone: str, org: str) -> str | None:
    """The repository of a backbone that has a name, Google's or what `org` publishes."""
    if backbone in OTHERS:
        return OTHERS[backbone].repository
    if backbone in BACKBONES:
        return BACKBONES[backbone].google_repository or f"{org}/{backbone}"
    return f"{org}/{backbone}" if backbone in BUNDLED else None


def evaluated(prompts: PromptMethod, file: Path, results: Path) -> dict[str, Any]:
    """What a results.json measured, for `model-index`, as shares of 1; nothing if there is none. ValueError if it is
    of other prompts than those of the file."""
    if not results.is_file():
        return {}
    content = json.loads(results.read_text(encoding="utf-8"))
    settings, known = content["settings"], content["paper"] and content["paper"]["name"]
    if settings["prompts"] != prompts.digest():
        raise ValueError(f"{results} was not measured with the prompts of {file}")
    copy = TRAINING_DATA.get(known or "")
    height, width = settings["image_size"]
    where: dict[str, Any] = {
        "task_type": "image-segmentation",
        "task_name": f"zero-shot anomaly detection, {settings['mode']} prompts, {width} x {height} px",
        "dataset_type": copy.repository if copy else "own",
        "dataset_name": known or f"mean over the classes {', '.join(content['classes'])}"[:200],
    }
    found = [
        EvalResult(**where, metric_type=kind, metric_name=shown, metric_value=round(value, 4))
        for name, (kind, shown) in METRICS.items()
        if (value := content["mean"][name]) is not None
    ]
    return {"model_name": file.stem, "eval_results": found}


def nano_card(text: str) -> str:
    """nano's own card with a `model-index` of what its tables say that was measured: the last row of each, with
    decoupled prompts. ValueError if there is no such table."""
    card, found = ModelCard(text), []
    for title, lines_ in re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines_.splitlines()]
        if "decoupled" not in rows[0]:
            continue
        values = rows[-1][rows[0].index("decoupled")].split(" / ")
        for name, value in zip(("image_auroc", "pixel_auroc", "aupro"), values, strict=False):
            kind, shown = METRICS[name]
            found.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name="zero-shot anomaly detection, decoupled prompts",
                    dataset_type=re.sub(r"\W+", "-", title.lower()),
                    dataset_name=f"{title}, {rows[-1][rows[0].index('pictures')]} pictures",
                    metric_type=kind,
                    metric_name=shown,
                    metric_value=float(value),
                )
            )
    if not found:
        raise ValueError("nano's card has no table of what was measured with decoupled prompts")
    assert isinstance(card.data, ModelCardData)
    card.data.model_name, card.data.eval_results = "nano", found
    return str(card)


def last_losses(log: Path) -> str:
    """The mean of each term of the loss in the last epoch of a training's log."""
    if not log.is_file():
        return "There is no log of the training."
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [step for step in steps if step["epoch"] == steps[-1]["epoch"]]
    terms = [name for name in last[0] if name not in ("epoch", "step")]
    means = [f"{sum(step[term] for step in last) / len(last):.4f}" for term in terms]
    return f"Loss of the last epoch, mean of its {len(last)} steps:\n\n{table(terms, [means])}".strip()


def lines(content: Mapping[str, object]) -> str:
    """Names and values as the rows of a table, whatever somebody wrote into a file, in alphabetical order."""

    def cell(value: object) -> str:
        return " ".join((value if isinstance(value, str) else json.dumps(value)).split()).replace("|", "\\|")

    return "\n".join(f"| {cell(name)} | {cell(content[name])} |" for name in sorted(content))


def paper_numbers(model: str) -> str:
    """The paper's claims for a backbone: table 1 for the one of its main results, else table 8; "None." without any."""
    columns = {"image_auroc": "image AUROC", "image_ap": "image AP", "image_f1max": "image F1-max"}
    columns |= {"pixel_auroc": "pixel AUROC", "aupro_200": "AUPRO", "pixel_f1max": "pixel F1-max"}
    number, row = ("1", OURS) if model == "tips-l14-hr" else ("8", model)
    rows = [
        [name, *(found[row].get(metric, "-") for metric in columns)]
        for name in DATA_SETS
        if row in (found := published(number, name))
    ]
    if not rows:
        return "None."
    return (
        f"{table(['data set', *columns.values()], rows)}\n"
        f"The claims of the paper's table {number}, in percent, with prompts trained on VisA for MVTec AD and on\n"
        "MVTec AD for all others, at 518 x 518 pixels. We did not measure them."
    )
