"""Put together a page that inspects pictures without a server: python examples/browser/assemble.py FOLDER

FOLDER gets the page, nano as ONNX, and onnxruntime-web from npm (14 MB, so it is not kept here). Any server of files
serves it (`python -m http.server -d FOLDER`), and as it is it is a static Space. Needs `tipsomaly[onnx]` and npm.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tipsomaly import Pipeline
from tipsomaly.detection.export import export

RUNTIME = "onnxruntime-web@1.30.0"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CLASSES = (
    *("object", "bottle", "cable", "capsule", "carpet", "fabric", "hazelnut", "leather", "metal nut", "metal plate"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)
FRONT = "---\ntitle: Tipsomaly in the browser\nsdk: static\napp_file: index.html\nlicense: mit\n---\n"


def assemble(folder: Path, pictures: int = 100) -> None:
    """Write the page. `pictures`: on how many drawn ones the export is compared with the model."""
    export(Pipeline.from_pretrained(device="cpu"), folder, "onnx", CLASSES, pictures=pictures)
    shutil.copyfile(Path(__file__).with_name("index.html"), folder / "index.html")
    (folder / "README.md").write_text(FRONT, encoding="utf-8")
    fetch_runtime(folder)


def fetch_runtime(folder: Path) -> None:
    """onnxruntime-web from npm. Raises CalledProcessError where it cannot be had."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["npm", "pack", "--silent", RUNTIME], cwd=work, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(work).glob("*.tgz"))) as package:
            for name in FILES:
                source = package.extractfile(f"package/dist/{name}")
                assert source is not None
                (folder / name).write_bytes(source.read())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    assemble(Path(sys.argv[1]))
