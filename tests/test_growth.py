"""What CONTRIBUTING says of growth is so: its examples, as they stand there, go from a folder to a table."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tipsomaly import ModelError, Pipeline
from tipsomaly.data import layouts, readers
from tipsomaly.data.layouts import read_dataset
from tipsomaly.detection import detector, settings
from tipsomaly.errors import OptionError
from tipsomaly.files import sha256
from tipsomaly.models import encoder, families, siglip2
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.models.families import FAMILIES, Family
from tipsomaly.prompts import losses, method, prototypes
from tipsomaly.prompts.methods import METHODS, load_prompts
from tipsomaly.studies.calibrate import calibrate
from tipsomaly.studies.evaluation import evaluate

PAGE = (Path(__file__).parents[1] / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(word, *modules):
    """What the example with this word in it defines, in a file that imports what these modules have."""
    [text] = [block for block in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL) if word in block]
    names = {name: value for module in modules for name, value in vars(module).items()}
    exec(text, names)
    return names


def patches(pipe, image):
    return pipe.encode(next(pipe.pixels([image]))).patches[0].numpy()


def test_an_option_is_a_field_with_its_check():
    blurred = example("class Settings", settings)["Settings"]
    assert blurred(blur=2).blur == 2
    with pytest.raises(OptionError, match="blur must be from 0 to below 100 pixels, not 100"):
        blurred(blur=100)


def test_a_method_is_a_class_and_a_line(here, golden, drawn, tmp_path, monkeypatch):
    mean = example("class Mean", prototypes, losses, method)["Mean"]
    monkeypatch.setitem(METHODS, "mean", mean)
    out, model = tmp_path / "own.safetensors", ["--model", golden.folder, "--image-size", 28]
    done = here("train", drawn, "--output", out, *model, "--method", "mean", "--class", "felt", "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    prompts = load_prompts(out)
    assert type(prompts) is mean
    assert (prompts.metadata["epochs"], prompts.metadata["batch_size"]) == ("1", "4")
    assert not torch.allclose(prompts.normal, mean.start(golden.config, temperature=1, seed=0).normal, atol=1e-6)
    done = here("evaluate", drawn, "--class", "felt", "--prompts", out, *model, "--output", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| felt +\|", done.stdout)
    pipe = Pipeline.from_pretrained(golden.folder, prompts=out, image_size=28)
    tokens, pair = patches(pipe, golden.images[0]), [prompts.normal.mean(0).numpy(), prompts.abnormal.mean(0).numpy()]
    normal, abnormal = (tokens @ v / np.linalg.norm(v) / np.linalg.norm(tokens, axis=-1) for v in pair)
    expected = 1 / (1 + np.exp((normal - abnormal) / golden.config.temperature))
    np.testing.assert_allclose(pipe(golden.images[0]).patch_map, expected, atol=1e-5)
    for wrong in (["train", "--output", out, "--alpha", 1], ["ablate", "--train", drawn]):
        refused = here(wrong[0], drawn, *wrong[1:], *model, "--method", "mean")
        assert refused.returncode == 2
        assert re.search("--alpha is no option of the method mean|no ablation of mean", refused.stderr)


def test_a_detector_is_a_class(golden, drawn):
    long = example("class Long", detector)["Long"]
    plain = golden.pipe.with_options(image_size=28)
    pipe = Pipeline.from_pretrained(golden.folder, image_size=28, detector=long)
    said, own = plain(golden.images[0]), pipe(golden.images[0])
    assert own.global_score == said.global_score
    lengths = np.linalg.norm(patches(plain, golden.images[0]), axis=-1)
    np.testing.assert_allclose(own.patch_map, said.patch_map * lengths / lengths.max(), rtol=1e-5)
    assert np.array_equal(pipe.with_options(sigma=1.0)(golden.images[0]).patch_map, own.patch_map)
    samples = [sample for sample in read_dataset(drawn) if sample.class_name == "felt"]
    found = evaluate(pipe, samples).classes[0].pictures[0]
    assert found.local_score == pytest.approx(pipe(samples[0].image, "felt").local_score, abs=1e-4)
    calibration = calibrate(pipe, golden.images, target_fpr=0.5)
    assert pipe.with_options(calibration=calibration)(golden.images[0]).is_anomalous is not None
    with pytest.raises(ModelError, match="made with detector"):
        plain.with_options(calibration=calibration)
    with pytest.raises(OptionError, match="a reference or a detector, not both"):
        pipe.with_options(reference=golden.images)
    with pytest.raises(OptionError, match="or with a detector, not with both"):
        pipe.stream(golden.images, together=True)


def test_the_page_says_what_a_backbone_has(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    names = example("class Mine", encoder, families, siglip2)
    assert isinstance(names["FAMILIES"]["mine"], Family)
    said = vars(names["Mine"]).keys() | names["Mine"].__annotations__.keys()
    assert {name for name in said if not name.startswith("_")} <= vars(encoder.Encoder).keys()


class Flat(nn.Module):
    """A backbone: a patch is the mean of its pixels, projected; a sentence is the sum of its bytes' embeddings."""

    model_type, readouts, has_spatial_token = "flat", ("tokens",), False
    device, dtype = torch.device("cpu"), torch.float32
    config = TipsConfig(VisionConfig(16, 2, 1, 28, 7), TextConfig(16, 1, 1, 16, 256), 0.1)

    class Text(nn.Module):
        config, device, bias = TextConfig(16, 1, 1, 16, 256), torch.device("cpu"), None

        def forward(self, ids, valid, prompt=None, layers=None):
            words = (self.weights[ids] * valid[..., None]).sum(1)
            return words if prompt is None else words + prompt.sum(-2)

    def __init__(self, weights):
        super().__init__()
        self.vision_encoder, self.text_encoder, self.weights = self, self.Text(), weights
        self.text_encoder.weights = weights

    def layers(self, pixels, indices, learned=None, readout="tokens"):
        patches = F.avg_pool2d(pixels, 7).permute(0, 2, 3, 1) @ self.weights[:3]
        whole = patches.mean((1, 2))
        return [ImageTokens(whole, whole, patches)] * len(indices)

    def digest(self, tokenizer):
        return sha256(self.weights, tokenizer)


class Bytes:
    """A tokenizer."""

    model, vocab_size = b"bytes", 256

    def unknown(self, text):
        return []

    def __call__(self, sentences):
        ids = torch.tensor([list(text.encode()[:60].ljust(60, b"\0")) for text in sentences])
        return ids, ids > 0


def write_flat(folder, flat, tokenizer, image_size):
    (folder / "config.json").write_text('{"model_type": "flat"}')
    save_file({"weights": flat.weights}, folder / "model.safetensors")


def read_flat(folder, device, dtype):
    return Flat(load_file(folder.path / "model.safetensors")["weights"]), Bytes()


def test_a_backbone_is_a_file_and_a_line(here, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "flat", Family(read_flat, write_flat))
    weights = torch.randn(256, 16, generator=torch.Generator().manual_seed(3))
    Pipeline(Flat(weights), Bytes(), mode="fixed").save_pretrained(tmp_path / "flat")
    model, out = ["--model", tmp_path / "flat", "--class", "felt"], tmp_path / "own.safetensors"
    done = here("train", drawn, "--output", out, *model, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    done = here("evaluate", drawn, "--prompts", out, *model, "--output", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    assert found["mean_by_strategy"].keys() == {"S1", "S5"}
    assert found["settings"]["model"] == sha256(weights, b"bytes")


def test_a_data_set_is_a_reader_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "LAYOUTS", dict(layouts.LAYOUTS))
    example("def read_mine", readers, layouts)
    for name in ("fine/1.png", "broken/2.png", "masks/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (20, 10), 255).save(tmp_path / name)
    good, bad = sorted(read_dataset(tmp_path), key=lambda sample: sample.label)
    assert (good.class_name, good.defect, good.mask) == ("thing", "good", None)
    assert (bad.defect, bad.mask) == ("break", tmp_path / "masks" / "2.png")
