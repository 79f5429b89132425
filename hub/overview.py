"""All models and prompt sets in two tables: from the catalogue, the bundled files and the paper's tables alone."""

from pathlib import Path

from safetensors import safe_open

from tipsomaly.models.catalogue import BACKBONES, OTHERS, SELLERS, TRAINING_DATA, Backbone, Other
from tipsomaly.models.folder import WEIGHTS, ModelFolder
from tipsomaly.models.hub import BUNDLED
from tipsomaly.prompts.methods import load_prompts
from tipsomaly.studies.paper import OURS, published, trained_on
from tipsomaly.studies.tables import table

MARKS = ("<!-- python hub/publish.py --table PAGE writes what follows -->", "<!-- up to here -->")
TESTED = ("MVTec AD", "VisA")
SHOWN = ("image_auroc", "pixel_auroc", "aupro_200")
KINDS = ("industrial", "medical")
TOKENS = 8  # in each of a released pair of prompts


def overview() -> str:
    """Markdown: a table of models, a table of prompt sets, and what their columns mean."""
    models = [_bundled(name) for name in BUNDLED]
    for name, backbone in (BACKBONES | OTHERS).items():
        models.append(_released(name, backbone))
    header = ["model", "parameters, millions", "download", "input", "patch", "licence", "prompts"]
    shown = [f"{name}, the paper's" for name in TESTED]
    averages = " and ".join(f"{_paper(f'Average ({kind})', '1', OURS)} over its {kind} sets" for kind in KINDS)
    of_sets = ["prompts", "for", "method", "learned on", "licence of those pictures", "of the prompts", "size", *shown]
    return f"""{table([*header, *shown], models)}
Parameters are those of the vision and the text tower. A download is computed, four bytes a parameter, not looked up.
Input and patch are sides in pixels; pictures are resized to the input unless you say otherwise.

**The last two columns are the paper's claims, not measured here**: image AUROC / pixel AUROC / AUPRO in percent, with
prompts trained on VisA for MVTec AD and on MVTec AD for VisA, at 518 px (table 8), for SigLIP 2 with fixed prompts, at
512 px (table 9). For `tips-l14-hr` the paper also has means (table 1), {averages}.
nano was measured here, on other pictures: see its card.

{table(of_sets, _sets())}
{SELLERS}
"""


def put(page: Path, text: str) -> None:
    """Put it between the marks of a page; ValueError without them."""
    before, start, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"{page} lacks the marks {' and '.join(MARKS)}")
    page.write_text(f"{before}{start}\n\n{text}\n{end}{after}", encoding="utf-8")


def _paper(data_set: str, number: str, row: str) -> str:
    """Three of the paper's numbers, "-" for each that it does not have; "-" for all if it has none."""
    found = published(number, data_set).get(row, {})
    values = [f"{100 * value:.1f}" if (value := found.get(metric)) is not None else "-" for metric in SHOWN]
    return " / ".join(values) if found else "-"


def _bundled(name: str) -> list[str]:
    folder = ModelFolder(BUNDLED[name], name)
    config, weights = folder.read_config(), folder.path / WEIGHTS
    counts = {"vision_encoder": 0, "text_encoder": 0}
    with safe_open(weights, framework="np") as file:
        for key in file.keys():  # noqa: SIM118
            numbers = 1
            for side in file.get_slice(key).get_shape():
                numbers *= side
            counts[key.partition(".")[0]] += numbers
    return [
        f"`{name}`",
        " + ".join(f"{count / 1e6:.1f}" for count in counts.values()),
        f"bundled, {weights.stat().st_size / 1e6:.0f} MB",
        str(folder.read_image_size(config)),
        str(config.vision.patch_size),
        "MIT",
        ", ".join(folder.prompt_sets()),
        *("not the paper's" for _ in TESTED),
    ]


def _released(name: str, model: Backbone | Other) -> list[str]:
    number, row = ("8", name) if name in BACKBONES else ("9", "no learning")
    return [
        f"`{name}`",
        f"{model.parameters[0]} + {model.parameters[1]}",
        f"{4 * sum(model.parameters) / 1000:.1f} GB",
        str(model.default_size),
        str(model.patch),
        model.licence,
        ", ".join(model.prompts) or "-",
        *(_paper(data_set, number, row) for data_set in TESTED),
    ]


def _sets() -> list[list[str]]:
    rows = []
    for name, backbone in BACKBONES.items():
        for set_, prompts in backbone.prompts.items():
            tested = [_paper(d, "8", name) if set_ == trained_on(d) else "-" for d in TESTED]
            terms, size = TRAINING_DATA[prompts.trained_on].terms, 2 * TOKENS * backbone.width * 4
            rows.append(
                [f"`{set_}`", f"`{name}`", "tipsomaly", prompts.trained_on, terms, prompts.licence, _kb(size), *tested]
            )
    for name, path in BUNDLED.items():
        for set_, file in ModelFolder(path, name).prompt_sets().items():
            found, size = load_prompts(file), file.stat().st_size
            learned_on = found.metadata.get("trained_on", "-")
            terms = "ours and free ones" if "photographs" in learned_on else "ours"
            rows.append([f"`{set_}`", f"`{name}`", found.NAME, learned_on, terms, "MIT", _kb(size), "-", "-"])
    return rows


def _kb(size: int) -> str:
    return f"{size / 1000:.0f} kB"
