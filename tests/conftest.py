"""The golden case: a tiny TIPS whose weights follow a rule, and what the reference code computes with it.

Each of pytest's processes computes on one thread, and so does what it starts: two that each take all cores wait for
each other more than they compute.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hub_server import V1, FileServer, HubServer
from PIL import Image

from tipsomaly import Pipeline
from tipsomaly.cli import main
from tipsomaly.models import download
from tipsomaly.models.catalogue import BACKBONES, Prompts
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.convert import convert
from tipsomaly.models.tips import Tips
from tipsomaly.prompts.find import convert_prompts

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)


def seeded_weights(names_and_shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """The rule of the golden case: numbers in sorted key order, scaled by the kind of parameter."""
    random = np.random.RandomState(seed)
    weights = {}
    for name in sorted(names_and_shapes):
        shape = names_and_shapes[name]
        z = random.standard_normal(shape)
        if name in ("cls_token", "register_tokens", "mask_token", "pos_embed", "token_embedding.weight"):
            z = z * 0.5
        elif len(shape) >= 2:
            z = z * 0.7 / np.sqrt(shape[-1])
        elif name.endswith("gamma") or any(
            name.endswith(f"{norm}.weight") for norm in ("norm1", "norm2", "norm", "ln_1", "ln_2", "ln_final")
        ):
            z = 1 + 0.2 * z
        else:
            z = 0.1 * z
        weights[name] = z.astype(np.float32)
    return weights


def write_checkpoint(folder: Path, config: TipsConfig, seed: int) -> tuple[Path, Path]:
    """The two npz files of a TIPS release, with weights from the rule."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Tips(config).state_dict().items()}
    paths = []
    for offset, tower in enumerate(("vision", "text")):
        prefix = f"{tower}_encoder."
        part = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        arrays = seeded_weights(part, seed + offset)
        if tower == "text":
            arrays["temperature"] = np.float32(config.temperature)
        paths.append(folder / f"{tower}.npz")
        np.savez(paths[-1], **arrays)
    return paths[0], paths[1]


@pytest.fixture
def here(capsys, monkeypatch):
    """Run the command in this process, which has imported everything."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tipsomaly", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return subprocess.CompletedProcess(arguments, end.value.code or 0, out, err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def workplace(tmp_path):
    """A folder to run examples in, which write beside the repository's examples."""
    (tmp_path / "examples").symlink_to(Path(__file__).parents[1] / "examples")
    return tmp_path


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """The golden case as a converted model folder, its pipeline, its pictures and the expected numbers."""
    case = json.loads((GOLDEN / "case.json").read_text())
    folder = tmp_path_factory.mktemp("tiny")
    config = TipsConfig(
        VisionConfig(case["dim"], case["vision_depth"], case["heads"], image_size=case["native_size"]),
        TextConfig(case["dim"], case["text_depth"], case["heads"], 4 * case["dim"], vocab_size=512),
        case["temperature"],
    )
    vision, text = write_checkpoint(folder, config, case["seed"])
    random = np.random.RandomState(case["seed"] + 2)
    pair = [torch.tensor(random.standard_normal((8, case["dim"])) * 0.4, dtype=torch.float32) for _ in range(2)]
    prompts = torch.nn.ParameterList([torch.nn.Parameter(vectors) for vectors in pair])
    torch.save({"learnable_prompts": prompts}, folder / "prompts.pth")
    convert(vision, text, GOLDEN / "tokenizer.model", folder / "model")
    convert_prompts(folder / "prompts.pth", folder / "model" / "prompts" / "tiny.safetensors")
    return SimpleNamespace(
        case=case,
        config=config,
        vision_npz=vision,
        text_npz=text,
        prompts_pth=folder / "prompts.pth",
        tokenizer=GOLDEN / "tokenizer.model",
        folder=folder / "model",
        pipe=Pipeline.from_pretrained(folder / "model", image_size=case["inference_size"]),
        images=[GOLDEN / "image_0.png", GOLDEN / "image_1.png"],
        mask=np.asarray(Image.open(GOLDEN / "mask_0.png").convert("L")) > 127,
        expected=np.load(GOLDEN / "expected.npz"),
    )


@pytest.fixture
def world(golden, tmp_path, monkeypatch):
    """A Hub with nothing on it, a bucket with a release of the golden case under the name of TIPS-L/14-HR, and caches
    of this test's own."""
    stand_in, bucket = HubServer(), FileServer()
    base = "/v1_0/checkpoints/pytorch/tips_oss_l14_highres_distilled"
    bucket.files = {
        f"{base}_vision.npz": golden.vision_npz.read_bytes(),
        f"{base}_text.npz": golden.text_npz.read_bytes(),
        "/v1_0/checkpoints/tokenizer.model": golden.tokenizer.read_bytes(),
        "/released.pth": golden.prompts_pth.read_bytes(),
    }
    released = hashlib.sha256(bucket.files["/released.pth"]).hexdigest()
    for name in BACKBONES[V1].prompts:
        monkeypatch.setitem(BACKBONES[V1].prompts, name, Prompts("MVTec AD", "released.pth", released))
    environment = {
        "HF_ENDPOINT": stand_in.url,
        "HF_HOME": str(tmp_path / "hf"),
        "TIPSOMALY_BUCKET_URL": bucket.url,
        "TIPSOMALY_PROMPTS_URL": bucket.url,
        "TIPSOMALY_ORG": "acme",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TIPSOMALY_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # The client reads its environment when it is imported, which another test may have caused.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    cache = tmp_path / "hf" / "tipsomaly"
    yield SimpleNamespace(hub=stand_in, bucket=bucket, cache=cache, folder=tmp_path, constants=constants)
    stand_in.close()
    bucket.close()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A data set in MVTec AD's layout: two classes with normal pictures and bright spots, pictures of two sizes."""
    root, random = tmp_path_factory.mktemp("drawn"), np.random.default_rng(3)
    for name, height in (("felt", 60), ("metal_nut", 75)):
        for defect, count in (("good", 4), ("spot", 3)):
            for i in range(count):
                pixels, mask = random.normal(120, 20, (height, 70)), np.zeros((height, 70), bool)
                if defect != "good":
                    y, x = random.integers(5, 40, 2)
                    mask[y : y + 12, x : x + 15] = True
                    path = root / name / "ground_truth" / defect / f"{i:03}_mask.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(path)
                path = root / name / "test" / defect / f"{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.where(mask, 250, pixels.clip(0, 255)).astype(np.uint8)).save(path)
    return root
