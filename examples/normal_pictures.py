"""How much a few normal pictures help: `python examples/normal_pictures.py [ROOT [OUT]]`.

ROOT is any data set with a training folder; without it a small one is drawn. With OUT a curve is drawn there, too.
"""

import sys
import tempfile
from pathlib import Path

from drawn import draw_dataset

from tipsomaly import Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.studies.shots import evaluate_shots

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        root = Path(sys.argv[1])
    else:
        root = draw_dataset(Path(folder) / "drawn", ("felt",), count=4)
        more = draw_dataset(Path(folder) / "more", ("felt",), count=12)  # the same material, drawn on
        normal = root / "felt" / "train" / "good"
        normal.mkdir(parents=True)
        for path in sorted((more / "felt" / "test" / "good").iterdir())[8:]:
            path.rename(normal / path.name)
    pipe = Pipeline.from_pretrained()
    normals = read_dataset(root, split="train")
    counts = [n for n in (1, 2, 4, 8, 16) if n <= len(normals)]
    shots = evaluate_shots(pipe, read_dataset(root), normals, counts, progress=True)

    good = [sample.image for sample in normals if sample.class_name == normals[0].class_name]
    known = pipe.with_options(reference=good)
    found = known.references(normals[0].called)
    print(found.summary())
    sample = read_dataset(root)[-1]
    result = known(sample.image, sample.called)
    print(f"{sample.image.name}: score {result.score:.2f}, p-value {result.p_value:.2f}, {result.is_anomalous=}\n")

print(shots.markdown())
if len(sys.argv) > 2:
    shots.save(Path(sys.argv[2]))
