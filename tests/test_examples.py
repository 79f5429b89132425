"""The example scripts run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    "script, row", [("evaluate_folder", "| **mean** "), ("train_and_test", "| decoupled, as trained ")]
)
def test_the_scripts_run(tmp_path, script, row):
    command = [sys.executable, EXAMPLES / f"{script}.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert row in done.stdout
    assert list(tmp_path.iterdir()) == []
