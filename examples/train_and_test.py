"""Learn prompts on one data set and test them on another: `python examples/train_and_test.py [TRAIN TEST]`.

TRAIN and TEST are folders that `tipsomaly evaluate` takes; without them both are drawn, of different classes.
"""

import sys
import tempfile
from pathlib import Path

from drawn import draw_dataset

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.studies.evaluation import evaluate
from tipsomaly.studies.tables import METRICS, table
from tipsomaly.studies.training import Features, train

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 2:
        train_root, test_root = map(Path, sys.argv[1:3])
    else:
        train_root = draw_dataset(Path(folder) / "train", ("wood", "leather"), count=4, seed=1)
        test_root = draw_dataset(Path(folder) / "test", ("felt", "metal_nut"), count=4, seed=2)
    pipe = Pipeline.from_pretrained(mode="fixed")
    start = LearnedPrompts.start(pipe.tips.config, metadata={"trained_on": train_root.name})
    features = Features(pipe, read_dataset(train_root))  # every picture goes through the tower once
    learned = train(pipe, features, Path(folder) / "prompts.safetensors", start, epochs=4)

    samples = read_dataset(test_root)
    rows = {"fixed": evaluate(pipe, samples).mean()}
    rows["decoupled, as trained"] = evaluate(pipe.with_options(prompts=learned, mode="decoupled"), samples).mean()

print(table(["prompts", *METRICS], [[name, *map(mean.get, METRICS)] for name, mean in rows.items()]))
