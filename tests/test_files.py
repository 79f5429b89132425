"""Files are whole or not there, on a full disk and with two writers, too."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from full_disk import files_of_at_most
from PIL import Image

from tipsomaly.errors import FetchError, TipsomalyError
from tipsomaly.files import file_name, only_writer, staged_folder, to_json, whole_file, write_atomically


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, b"x" * 10_000),
        lambda path: _write(path, lambda file: np.save(file, np.zeros(10_000))),
        lambda path: _write(path, lambda file: Image.effect_noise((200, 200), 50).save(file, "PNG")),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, write):
    path = tmp_path / ("x" * 250)  # as long as names may be
    path.write_text("old")
    with files_of_at_most(1000), pytest.raises(OSError) as caught:
        write(path)
    assert (caught.value.filename, caught.value.strerror) == (str(path), "File too large")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    write(path)
    assert path.stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 1


def _write(path, function):
    with whole_file(path) as file:
        function(file)


def test_many_writers_of_one_file_leave_a_whole_one(tmp_path):
    contents = [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / "f", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_text() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_whole_or_as_it_was(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "mine").write_text("mine")
    for target in (out, tmp_path / "new"):
        with files_of_at_most(1000), pytest.raises(OSError) as caught, staged_folder(target) as staging:
            (staging / "a").write_text("new")
            (staging / "b").write_text("x" * 10_000)
        assert caught.value.filename == str(target)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a": "old", "mine": "mine"}
    with staged_folder(out) as staging:
        (staging / "a").write_text("new")
    assert {p.name: p.read_text() for p in out.iterdir()} == {"a": "new", "mine": "mine"}


def test_a_folder_has_one_writer_until_it_dies(tmp_path):
    code = "import sys\nfrom tipsomaly.files import only_writer\n"
    code += "with only_writer(__import__('pathlib').Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, tmp_path]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(FetchError, match="another process writes there"), only_writer(tmp_path):
        pass
    other.kill()
    other.communicate()
    with only_writer(tmp_path):
        pass


def test_json_is_what_every_language_reads():
    assert to_json({"a": "é", "b": 0.1}) == '{"a": "\\u00e9", "b": 0.1}'
    for number in (float("nan"), float("inf")):
        with pytest.raises(TipsomalyError, match="not finite"):
            to_json([number])
    assert json.loads(to_json(file_name("caf\udce9\n日.png"))) == "caf\\udce9\n日.png"
