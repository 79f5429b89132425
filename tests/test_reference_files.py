"""Files of references: what they hold, and which are refused."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from tipsomaly import ModelError
from tipsomaly.detection.leave_one_out import Normal, fit
from tipsomaly.detection.references import ReferenceOptions, References


@pytest.fixture
def numbers():
    return torch.Generator().manual_seed(0)


def saved(tmp_path, numbers, kind="neighbours"):
    def picture():
        tokens = F.normalize(torch.randn(6, 5, 8, generator=numbers), dim=-1)
        return Normal([tokens], torch.rand(2, generator=numbers), [torch.rand(6, 5, generator=numbers)])

    pictures = [picture() for _ in range(3)]
    found = fit(pictures, ReferenceOptions(kind=kind), class_name="nut", settings={"model": "a" * 64})
    found.save(tmp_path / "part.safetensors")
    return found, tmp_path / "part.safetensors"


@pytest.mark.parametrize("kind", ["neighbours", "subspace"])
def test_a_file_holds_all_of_it(tmp_path, numbers, kind):
    found, path = saved(tmp_path, numbers, kind)
    again = References.load(path)
    assert again.digest() == found.digest()
    assert (again.class_name, again.options, again.scales) == ("nut", found.options, found.scales)
    assert again.image_threshold == found.image_threshold
    again.check({"model": "a" * 64, "reference": "anything"})
    with pytest.raises(ModelError, match="made with model aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        again.check({"model": "b" * 64})


def tamper(path, changes, record=None):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    content = json.loads(metadata["references"])
    if record:
        record(content)
    metadata["references"] = json.dumps(content)
    save_file({**tensors, **changes(tensors)}, path, metadata=metadata)


@pytest.mark.parametrize(
    "changes",
    [
        lambda t: {"tokens": t["tokens"] * 2},
        lambda t: {"tokens": t["tokens"] * math.nan},
        lambda t: {"tokens": t["tokens"].half()},
        lambda t: {"tokens": t["tokens"][:0]},
        lambda t: {"scores": t["scores"].flip(1)},
        lambda t: {"scores": t["scores"] / 0},
        lambda t: {"scores": t["scores"][:2]},
        lambda t: {"extra": t["scores"] + 1},
    ],
)
def test_tensors_that_cannot_be_are_refused(tmp_path, numbers, changes):
    _, path = saved(tmp_path, numbers)
    tamper(path, changes)
    with pytest.raises(ModelError, match=r"part\.safetensors: not a file of references") as caught:
        References.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        lambda r: r.update(weight=math.inf),
        lambda r: r.update(weight="1"),
        lambda r: r["scales"]["memory"].__setitem__(1, 0),
        lambda r: r["scales"]["tokens"].pop(),
        lambda r: r["scales"].pop("peaks"),
        lambda r: r["options"].update(layers=["last"]),
        lambda r: r["options"].update(target_fpr=2),
        lambda r: r["options"].update(more=1),
        lambda r: r["pixels"].pop("both"),
        lambda r: r.pop("class_name"),
        lambda r: r.update(settings=None),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, numbers, record):
    _, path = saved(tmp_path, numbers)
    tamper(path, lambda tensors: {}, record)
    with pytest.raises(ModelError, match=r"part\.safetensors: not a file of references"):
        References.load(path)


def test_other_files_are_refused(tmp_path, numbers):
    from safetensors.torch import save_file

    for content in (b"", b"junk", b"\xff" * 100):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"x\.safetensors: not a file of references"):
            References.load(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ModelError, match="not a file of references"):
        References.load(tmp_path / "y.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        References.load(tmp_path / "none.safetensors")
    for options in ({"kind": "tree"}, {"rule": "best"}, {"target_fpr": 0}, {"limit": 0}, {"layers": ()}, {"factor": 0}):
        with pytest.raises(ModelError):
            ReferenceOptions(**options)
