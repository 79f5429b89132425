"""Score a data set and print its table: `python examples/evaluate_folder.py [ROOT]`.

ROOT is any folder that `tipsomaly evaluate` takes; without it a small data set is drawn.
"""

import sys
import tempfile
from pathlib import Path

from drawn import draw_dataset

from tipsomaly import Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.studies.evaluation import evaluate

with tempfile.TemporaryDirectory() as folder:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_dataset(Path(folder) / "drawn", ("felt", "metal_nut"))
    evaluation = evaluate(Pipeline.from_pretrained(), read_dataset(root), progress=True)

print(evaluation.markdown())
for result in evaluation.classes:
    worst = max((p for p in result.pictures if not p.label), key=lambda p: p.score("S5"))
    print(f"{result.class_name}: the normal picture that looks most defective is {worst.image}")
