"""The benchmarks still run, on as little as they take: what they say of speed is not looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNS = {
    "engines.py": ("--backbone nano --image-size 56 --rounds 1 --threads 1", "OpenVINO bfloat16"),
    "evaluation.py": ("--pictures 4 --image-size 112 --rounds 1", "the rest costs"),
    "load.py": ("--requests 10 --clients 2", "10 answered, 0 lost"),
    "methods.py": ("--models nano --pictures 1 --rounds 1", "| nano | direct |"),
    "metrics.py": ("--maps 2", "aupro"),
    "training.py": ("--pictures 8 --image-size 112", "features on disk"),
}


@pytest.mark.parametrize("script", RUNS)
def test_a_benchmark_runs(script):
    options, said = RUNS[script]
    command = [sys.executable, ROOT / "examples" / "benchmarks" / script, *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
