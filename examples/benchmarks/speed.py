"""Pictures a second, latency and memory of the pipeline, against a plain baseline and what the processor can do.

python examples/benchmarks/speed.py [--models nano b14 l14] [--pictures N] [--depth N] [--device auto] [--compile]

The baseline is written here for comparison alone and does what public code does: float32, attention as matrices and a
softmax, eight pictures at a time, each decoded, encoded, upsampled and blurred (scipy) before the next eight. Both
sides end with an anomaly map of each picture in main memory. They run in turns and the fastest round of each counts.
The ceiling is the fastest of some large matrix products in the number format of the pipeline. On a CPU ratio and share
of the ceiling are in CPU seconds, which depend less on what else runs, on a GPU in seconds. b14 and l14 have the shapes
of TIPS B/14 and L/14 and random weights: their scores mean nothing.
"""

import argparse
import datetime
import io
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import scipy
import torch
import torch.nn.functional as F
from pictures import write_pictures
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor

from tipsomaly import Pipeline
from tipsomaly.data.images import load_image, to_pixels
from tipsomaly.detection import scoring
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.device import choose_device, choose_dtype
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.models.tips import Tips, VisionTower

SHAPES = {"b14": (768, 12, 12), "l14": (1024, 24, 16)}
BASELINE_BATCH = 8
EXAMPLES = Path(__file__).parents[1] / "pictures"


class Time(NamedTuple):
    wall: float
    cpu: float


def make_pipe(
    name: str, depth: int | None, device: torch.device, dtype: torch.dtype, text: tuple[int, int] = (1, 1)
) -> Pipeline:
    """nano at its own size, or random towers at 518 px. `text`: blocks of the text tower and the ratio of its MLP; a
    stand-in where its work is done once."""
    nano = Pipeline.from_pretrained("nano", device=device, dtype=dtype)
    if name == "nano":
        return nano
    dim, layers, heads = SHAPES[name]
    text_config = TextConfig(dim, text[0], heads, text[1] * dim, nano.tokenizer.vocab_size)
    config = TipsConfig(VisionConfig(dim, depth or layers, heads), text_config, temperature=0.01)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Tips(config).state_dict().items()}
    torch.manual_seed(0)
    state = {
        key: torch.randn(shape) * 0.02 if len(shape) > 1 else torch.full(shape, float(not key.endswith("bias")))
        for key, shape in shapes.items()
    }
    kinds = {key: torch.float32 if key.startswith("text_") else dtype for key in state}
    tips = Tips.from_state_dict(config, {key: value.to(device, kinds[key]) for key, value in state.items()})
    return Pipeline(tips, nano.tokenizer, mode="fixed", image_size=518)


def operations(config: VisionConfig, size: tuple[int, int]) -> float:
    """Floating-point operations of the tower for one picture; the rest of the pipeline has hardly any."""
    patches = size[0] * size[1] // config.patch_size**2
    tokens, d = patches + 2, config.dim
    block = 2 * tokens * d * (4 * d + 2 * config.mlp_dim) + 4 * tokens**2 * d
    return config.depth * block + 2 * patches * d * 3 * config.patch_size**2


# --- the baseline ---------------------------------------------------------------------------------------------------


def plain_tower(tower: VisionTower, pixels: Tensor) -> ImageTokens:
    proj = tower.patch_embed["proj"]
    x = F.conv2d(pixels, proj.weight, proj.bias, stride=tower.config.patch_size)
    h, w = x.shape[2:]
    x = x.flatten(2).transpose(1, 2) + tower.patch_positions(h, w)
    first = (tower.cls_token + tower.pos_embed[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, tower.register_tokens.expand(len(x), -1, -1), x], dim=1)
    for block in tower.blocks:
        qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + block.ls1.gamma * block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        x = x + block.ls2.gamma * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    x = tower.norm(x)
    return ImageTokens(x[:, 0], x[:, 1], x[:, 2:].unflatten(1, (h, w)))


@torch.inference_mode()
def baseline(pipe: Pipeline, sources: Sequence[Path | np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """The image score and the map of each picture; `pipe` is in float32."""
    results = []
    global_prototypes, local_prototypes = pipe.prototypes("plate")
    temperature = pipe.tips.config.temperature
    for start in range(0, len(sources), BASELINE_BATCH):
        pictures = [load_image(source).image for source in sources[start : start + BASELINE_BATCH]]
        pixels = torch.stack([to_pixels(picture, pipe.image_size) for picture in pictures]).float() / 255
        tokens = plain_tower(pipe.tips.vision_encoder, pixels.to(pipe.device))
        spatial = scoring.anomaly_probability(tokens.spatial, global_prototypes, temperature)
        patches = scoring.anomaly_probability(tokens.patches, local_prototypes, temperature)
        maps = F.interpolate(patches[:, None], size=pipe.image_size, mode="bilinear")[:, 0].cpu().numpy()
        for i, upsampled in enumerate(maps):
            score = spatial[i].item() + patches[i].max().item()
            results.append((score, gaussian_filter(upsampled, sigma=scoring.SIGMA)))
    return results


def plain_map(patches: np.ndarray) -> np.ndarray:
    """(37, 37) float32 -> (518, 518): upsampled, then blurred on the CPU."""
    upsampled = F.interpolate(torch.from_numpy(patches)[None, None], size=(518, 518), mode="bilinear")
    return gaussian_filter(upsampled[0, 0].numpy(), sigma=scoring.SIGMA)


# --- measuring ------------------------------------------------------------------------------------------------------


def ours(pipe: Pipeline, sources: Sequence[Path | np.ndarray], batch_size: int) -> list[tuple[float, np.ndarray]]:
    on_device = pipe.device.type == "cuda"
    results = pipe.stream(sources, "plate", batch_size=batch_size, maps=on_device)
    return [(result.score, result.anomaly_map) for result in results]


def timed(function: Callable, *arguments: object) -> Time:
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return Time(time.perf_counter() - wall, time.process_time() - cpu)


def fastest(rounds: list[Time]) -> Time:
    return Time(*map(min, zip(*rounds, strict=True)))


def peak_memory(function: Callable, device: torch.device) -> float:
    """Megabytes that a call needs on top of what is there before, weights included: of the GPU, or of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets the peak to the present (Linux)
    except OSError:
        return float("nan")
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1e6


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def ceiling(device: torch.device, dtype: torch.dtype) -> Time:
    """The most floating-point operations a second, and a CPU second, of some large matrix products."""
    on_gpu = device.type == "cuda"
    shapes = [(8192, 8192, 8192), (16384, 4096, 4096)] if on_gpu else [(1024, 1024, 1024), (2048, 1024, 4096)]
    repeats = 20 if on_gpu else 2

    def seconds(m: int, k: int, n: int) -> Time:
        left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)

        def multiply() -> None:
            for _ in range(repeats):
                product = left @ right
            product[0, 0].item()  # waits for a GPU

        return fastest([timed(multiply) for _ in range(6)])

    times = [(2 * m * k * n * repeats, seconds(m, k, n)) for m, k, n in shapes]
    return Time(*(max(operations / t[i] for operations, t in times) for i in (0, 1)))


def side_costs() -> str:
    """CPU time of what is not the tower, for one picture."""

    def milliseconds(function: Callable, *arguments: object) -> float:
        return 1e3 * fastest([timed(function, *arguments) for _ in range(5)]).cpu

    def decode(encoded: bytes) -> Tensor:
        return to_pixels(load_image(encoded).image, (518, 518))

    random, costs = np.random.default_rng(0), []
    for width, height in ((512, 512), (1024, 1024), (4000, 3000)):
        coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        encoded = file.getvalue()
        costs.append(f"JPEG of {width} x {height}, {len(encoded) / 1e3:.0f} KB: {milliseconds(decode, encoded):.1f}")
    patches = random.random((37, 37), np.float32)
    costs.append(f"map: {milliseconds(scoring.anomaly_map, patches, (518, 518)):.2f}")
    costs.append(f"map by scipy's blur: {milliseconds(plain_map, patches):.1f}")
    return f"CPU ms to and from 518 px: {', '.join(costs)}"


def agreement(device: torch.device, dtype: torch.dtype) -> str:
    """nano in `dtype` against float32, on the example pictures and the four quarters of each."""
    pictures = []
    for path in sorted(EXAMPLES.glob("*.*")):
        image = load_image(path).image
        w, h = image.width // 2, image.height // 2
        pictures += [image, *(image.crop((x, y, x + w, y + h)) for x in (0, w) for y in (0, h))]
    exact, rough = (Pipeline.from_pretrained(device=device, dtype=d)(pictures) for d in (torch.float32, dtype))
    correlation = spearmanr([r.score for r in exact], [r.score for r in rough]).statistic
    apart = np.mean([np.abs(a.anomaly_map - b.anomaly_map).mean() for a, b in zip(exact, rough, strict=True)])
    return f"rank correlation of {len(pictures)} image scores {correlation:.5f}, mean map difference {apart:.5f}"


def measure(name: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> str:
    """Measure one model and return its row of the table."""
    plain = make_pipe(name, options.depth, device, torch.float32)
    pipe = plain if dtype == torch.float32 else make_pipe(name, options.depth, device, dtype)
    config, side = pipe.tips.config.vision, pipe.image_size[0]
    cost = operations(config, pipe.image_size)
    print(f"\n{name}: {config.depth} layers, {config.dim} wide, {side} px, {cost / 1e9:.1f} GFLOP a picture")
    if options.compile:
        print(f"  compiled in {pipe.compile(options.batch_size):.1f} s")
    count = options.pictures or (512 if device.type == "cuda" else 8)
    sides = {
        "baseline": lambda sources: baseline(plain, sources),
        "ours": lambda sources: ours(pipe, sources, options.batch_size),
    }
    rounds: dict[tuple[str, str], list[Time]] = {}
    peaks = [ceiling(device, dtype)]
    with tempfile.TemporaryDirectory() as folder:
        files = [sample.image for sample in write_pictures(Path(folder), count)]
        arrays = [np.asarray(Image.open(file).resize((side, side), Image.Resampling.BILINEAR)) for file in files]
        for function in sides.values():  # warm up
            function(arrays[:1])
        for _ in range(options.rounds):
            for who, function in sides.items():
                for kind, sources in (("decoded", arrays), ("files", files), ("one", arrays[:1])):
                    rounds.setdefault((who, kind), []).append(timed(function, sources))
            peaks.append(ceiling(device, dtype))
        batch = arrays[: options.batch_size]
        pairs = list(zip(baseline(plain, batch), ours(pipe, batch, options.batch_size), strict=True))
        memory = {who: peak_memory(lambda f=function: f(batch), device) for who, function in sides.items()}
    best = {key: fastest(times) for key, times in rounds.items()}
    clock = 0 if device.type == "cuda" else 1
    peak = max(p[clock] for p in peaks)
    for who in sides:
        decoded, from_files, one = (best[who, kind] for kind in ("decoded", "files", "one"))
        print(
            f"  {who:9}{count / decoded.wall:9.2f} pictures/s decoded{count / from_files.wall:9.2f} from files"
            f"{decoded.cpu / count:9.3f} CPU s a picture, one: {one.wall * 1e3:.0f} ms, {one.cpu * 1e3:.0f} CPU ms;"
            f" memory {memory[who]:.0f} MB"
        )
    scores = max(abs(theirs[0] - our[0]) for theirs, our in pairs)
    maps = max(float(np.abs(theirs[1] - our[1]).max()) for theirs, our in pairs)
    print(f"  ours against the baseline, at most: scores {scores:.1e}, maps {maps:.1e}")
    base, own, one = best["baseline", "decoded"], best["ours", "decoded"], best["ours", "one"]
    if options.profile:
        profile(lambda: ours(pipe, arrays, options.batch_size), device)
    cells = [
        f"{name}, {config.depth} layers, {side} px",
        f"{count / base[clock]:.3g}",
        f"{count / own[clock]:.3g}",
        f"{base[clock] / own[clock]:.2f}",
        f"{cost * count / own[clock] / peak:.0%} of {peak / 1e9:.0f} GFLOP",
        f"{own.wall / best['ours', 'files'].wall:.0%}",
        f"{best['baseline', 'one'][clock] * 1e3:.0f} / {one[clock] * 1e3:.0f}",
        f"{memory['baseline']:.0f} / {memory['ours']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def profile(function: Callable, device: torch.device) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with record(activities=kinds) as recorded:
        function()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=order, row_limit=12, max_name_column_width=45))


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.processor()} ({capability}), {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=["nano", *SHAPES], default=["nano", *SHAPES])
    parser.add_argument("--pictures", type=int, help="default: 8 on a CPU, 512 on a GPU")
    parser.add_argument("--batch-size", type=int, help="of the pipeline; default: 8 on a CPU, 32 on a GPU")
    parser.add_argument("--depth", type=int, help="only so many layers of b14 and l14, for a slow machine")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the pipeline; the baseline is in float32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print where the pipeline's time goes")
    options = parser.parse_args()
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    options.batch_size = options.batch_size or (32 if device.type == "cuda" else 8)

    kind = str(dtype).removeprefix("torch.")
    print(machine(device))
    low = torch.bfloat16 if dtype == torch.float32 else dtype
    print(f"nano in {str(low).removeprefix('torch.')} against float32: {agreement(device, low)}")
    print(side_costs())
    rows = [measure(name, options, device, dtype) for name in options.models]
    versions = f"torch {torch.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, pillow {PIL.__version__}"
    print(f"\n{machine(device)}, {datetime.date.today()}, Python {platform.python_version()}, {versions}")
    print(f"{kind}, batches of {options.batch_size}\n")
    second, millisecond = ("s", "ms") if device.type == "cuda" else ("CPU s", "CPU ms")
    header = ["model", f"baseline, pictures per {second}", f"ours, pictures per {second}", "ratio"]
    header += [f"of the ceiling a {second}", "from files", f"one picture, {millisecond}", "memory, MB"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    print("\n".join(rows))
    print("\nfrom files: pictures a second decoded from JPEG, against decoded before; x / y: baseline / ours;")
    print("memory: of a batch, on top of weights and of what was kept from before.", end=" ")
    print(f"Peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
