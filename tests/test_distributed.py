"""Scoring on Ray Data: what a task does is tested by itself, the engine on a cluster of two nodes on this machine."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tipsomaly import ModelError, Pipeline
from tipsomaly.errors import DatasetError

pytest.importorskip("ray")
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from tipsomaly import distributed
from tipsomaly.distributed import rows
from tipsomaly.distributed.actors import Scorer, Summary, detect
from tipsomaly.distributed.rows import PICTURES, Results

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "pictures").iterdir())
MARK = f"TIPSOMALY_TEST_{os.getpid()}"


@pytest.fixture(scope="module")
def expected():
    """The records of the examples, scored without Ray."""
    results = Pipeline.from_pretrained(device="cpu")(EXAMPLES, "part")
    return {path.name: result.record() for path, result in zip(EXAMPLES, results, strict=True)}


@pytest.fixture(scope="module")
def scorer():
    return Scorer("part", batch_size=2, model="nano", device="cpu")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, each of processes of its own, on this machine."""
    from ray.cluster_utils import Cluster

    environment = pytest.MonkeyPatch()  # the processes inherit it
    environment.setenv(MARK, "1")
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"object_store_memory": 100_000_000, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **small})
    nodes.add_node(num_cpus=1, **small)
    ray.init(nodes.address, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    environment.undo()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder behind s3://bucket/, for this process."""
    root = tmp_path / "bucket"
    root.mkdir()
    behind = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr(rows, "_remote", lambda uri: (behind, uri.removeprefix("s3://")))
    return root


def scoring_processes() -> list[int]:
    """The processes of our cluster in which a Scorer is at work at this moment: Ray gives them such titles."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            if b"(Scorer)).submit" in title and MARK.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def pictures(**columns) -> pa.Table:
    return pa.table(columns, schema=pa.schema([PICTURES.field(name) for name in columns]))


def parquet(file: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def found(*sources, done=()) -> list[dict]:
    dataset = distributed.find(sources, pa.array(done, pa.string()))
    return dataset.take_all() if dataset else []


def check(row: dict, expected: dict) -> None:
    assert {name: value for name, value in row.items() if value is not None and name != "image"} == {
        name: pytest.approx(value, abs=1e-4) for name, value in expected.items()
    }


def test_a_killed_actor_loses_nothing_and_a_second_run_does_what_is_missing(cluster, expected, tmp_path):
    folder, output = tmp_path / "pictures", tmp_path / "output"
    folder.mkdir()
    for i in range(40):
        os.symlink(EXAMPLES[i % len(EXAMPLES)], folder / f"{i:02}.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    run_and_kill = []
    run = threading.Thread(
        target=lambda: run_and_kill.append(detect([folder], output, "part", actors=2, batch_size=1)), daemon=True
    )
    run.start()
    while not (victims := scoring_processes()):
        assert run.is_alive()
        time.sleep(0.01)
    os.kill(victims[0], signal.SIGKILL)
    run.join()
    assert run_and_kill == [Summary(written=41, failed=1, before=0)]
    rows = {Path(row["image"]).name: row for row in pq.read_table(output).to_pylist()}
    assert set(rows) == {path.name for path in folder.iterdir()}
    assert "not a picture" in rows.pop("broken.png")["error"]
    for name, row in rows.items():
        check(row, expected[EXAMPLES[int(name[:2]) % len(EXAMPLES)].name])

    parts = sorted(output.glob("part-*.parquet"))
    assert len(parts) == 3  # of 16 rows at most
    missing = pq.read_table(parts[1])["image"].to_pylist()
    parts[1].unlink()
    failed = sum(name.endswith("broken.png") for name in missing)  # parts are numbered as they finish, in any order
    assert detect([folder], output, "part", actors=1, batch_size=1) == Summary(len(missing), failed, 41 - len(missing))
    assert set(pq.read_table(output)["image"].to_pylist()) == {str(path) for path in folder.iterdir()}
    assert detect([folder], output, "part") == Summary(0, 0, 41)
    with pytest.raises(ModelError, match=r"made with class_name 'part', not 'nut'; choose another folder"):
        detect([folder], output, "nut")


def test_the_command_scores_parquet_files_on_the_cluster(cluster, expected, tmp_path):
    names = [path.name for path in EXAMPLES[:3]]
    contents = [path.read_bytes() for path in EXAMPLES[:3]]
    tables = [
        parquet(tmp_path / "1.parquet", path=[*names, "cut"], bytes=[*contents, contents[0][:500]], other=range(4)),
        parquet(tmp_path / "2.parquet", path=[str(EXAMPLES[3])]),
    ]
    command = [sys.executable, "-m", "tipsomaly", "detect", *tables, "--engine", "ray", "--class-name", "part"]
    command += ["--output", tmp_path / "out", "--format", "jsonl", "--actors", "1"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 5 pictures failed" in done.stderr
    lines = [line for part in (tmp_path / "out").glob("part-*.jsonl") for line in part.read_text().splitlines()]
    rows = {Path(row["image"]).name: row for row in map(json.loads, lines)}
    assert set(rows) == {*names, EXAMPLES[3].name, "cut"}
    assert set(rows["cut"]) == {"image", "error"}
    assert rows.pop("cut")["error"].startswith("cut: damaged or truncated")
    for name, row in rows.items():
        check(row, expected[name])


def test_a_scorer_makes_a_row_of_each_picture_or_of_its_error(scorer, expected, bucket, tmp_path):
    (bucket / "a b?.jpg").write_bytes(EXAMPLES[0].read_bytes())
    (bucket / "empty.jpg").write_bytes(b"")
    names = [str(EXAMPLES[1]), "s3://bucket/a b?.jpg", "in the row", "s3://bucket/none.jpg", "s3://bucket/empty.jpg"]
    names += [str(tmp_path / "none.png"), "cut", None]
    contents = [None, None, EXAMPLES[2].read_bytes(), None, None, None, EXAMPLES[2].read_bytes()[:99], None]
    rows = scorer(pictures(image=names, bytes=contents)).to_pylist()
    assert [row["image"] for row in rows] == names
    for row, path in zip(rows, [EXAMPLES[1], EXAMPLES[0], EXAMPLES[2]], strict=False):
        check(row, expected[path.name])
    assert [row["error"] for row in rows[3:6]] == [
        "s3://bucket/none.jpg: no such file",
        "s3://bucket/empty.jpg: no bytes at all",
        f"{tmp_path / 'none.png'}: no such file",
    ]
    assert rows[6]["error"].startswith("cut: ")
    assert rows[7]["error"] == "image: neither a path nor bytes in this row"
    assert scorer(pictures(image=names[:1])).to_pylist() == rows[:1]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_rows_say_kinds_and_the_evidence_of_normal_pictures(bucket, file_format):
    options = {"model": "nano", "device": "cpu", "prompts": "dapo", "image_size": 112, "reference": [EXAMPLES[1]]}
    scorer = Scorer("part", batch_size=2, **options)
    expected = scorer.pipe(EXAMPLES[0], "part").record()
    scores = scorer(pictures(image=[str(EXAMPLES[0]), "none.png"]))
    results = Results("s3://bucket/results", file_format, {})
    results.write([scores], SimpleNamespace(task_idx=0))
    assert len(results.names()) == 2
    [part] = (bucket / "results").glob("part-*")
    if file_format == "parquet":
        row = pq.read_table(part).to_pylist(maps_as_pydicts="strict")[0]
    else:
        row = json.loads(part.read_text().splitlines()[0])
    assert row["kinds"] == expected["kinds"]
    assert (row["p_value"], row["evidence"]) == (expected["p_value"], expected["evidence"])


def test_pictures_are_found_in_folders_and_buckets(cluster, bucket):
    for name in ("b.JPG", "inner/a.png", "notes.txt"):
        (bucket / name).parent.mkdir(exist_ok=True)
        (bucket / name).write_bytes(b"anything")
    here = [{"image": str(bucket / name)} for name in ("b.JPG", "inner/a.png")]
    there = [{"image": f"s3://bucket/{name}"} for name in ("b.JPG", "inner/a.png")]
    assert found(bucket) == found(f"{bucket}/", bucket / "b.JPG") == found(f"file://{bucket}") == here
    assert found("s3://bucket/") == found("s3://bucket") == there
    assert found("s3://bucket", done=["s3://bucket/b.JPG"]) == found("s3://bucket/inner") == there[1:]
    assert found(bucket / "b.JPG", done=[str(bucket / "b.JPG")]) == []
    assert found(bucket / "notes.txt") == [{"image": str(bucket / "notes.txt")}]  # as it is named by itself


def test_rows_of_parquet_files_hold_pictures_or_say_where_they_are():
    def read(done=(), **columns) -> list[dict]:
        table = rows._to_pictures(pa.table(columns), "/here", pa.array(done, pa.string()))
        assert table.schema == PICTURES
        return table.to_pylist()

    contents = [b"one", b"two"]
    named = [{"image": name, "bytes": content} for name, content in zip("ab", contents, strict=True)]
    hashed = [{"image": f"sha256:{hashlib.sha256(c).hexdigest()}", "bytes": c} for c in contents]
    assert read(path=["a", "b"], bytes=contents) == read(path=["a", "b"], image=contents) == named
    assert read(image=[{"bytes": row["bytes"], "path": row["image"]} for row in named]) == named
    assert read(path=pa.array("ab", pa.large_string()), bytes=pa.array(contents, pa.large_binary())) == named
    assert read(image=contents) == hashed
    assert read(image=contents, done=[hashed[0]["image"]]) == hashed[1:]
    places = read(image=["a.png", "/there/b.png", "s3://bucket/c.png"])
    assert [row["image"] for row in places] == ["/here/a.png", "/there/b.png", "s3://bucket/c.png"]
    assert read(path=[None, "a.png"], bytes=[None, b"one"]) == [
        {"image": None, "bytes": None},
        {"image": "a.png", "bytes": b"one"},
    ]


def test_sources_without_pictures_are_one_clear_line(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such file or folder"):
        distributed.find([tmp_path / "nowhere"])
    with pytest.raises(DatasetError, match="no pictures and no Parquet files in this folder"):
        distributed.find([tmp_path])
    table = parquet(tmp_path / "in.parquet", picture=["a.png"], label=[1])
    with pytest.raises(DatasetError, match="no column named bytes, image or path; it has picture, label"):
        distributed.find([table])
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match="take one kind"):
        distributed.find([tmp_path])
    with pytest.raises(OSError, match="ftp://host"):
        distributed.find(["ftp://host/folder"])
    table.write_bytes(b"not Parquet")
    with pytest.raises(DatasetError, match=r"in\.parquet: not a Parquet file"):
        distributed.find([table])


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_results_know_what_is_done_and_with_which_settings(scorer, bucket, file_format):
    settings = {"mode": "decoupled", "sigma": 4.0}
    Results("s3://bucket/results", file_format, {**settings, "mode": "learned"})  # and then there was nothing to score
    results = Results("s3://bucket/results", file_format, settings)
    assert results.names().to_pylist() == []
    scores = scorer(pictures(image=[str(EXAMPLES[0]), "none.png"]))
    task = SimpleNamespace(task_idx=0)
    assert results.write([scores, scores.slice(0, 0)], task) == results.write([scores], task) == 1
    assert results.write([scores.slice(0, 0)], SimpleNamespace(task_idx=1)) == 0
    (bucket / "results" / f".part-x.{file_format}").write_bytes(b"PAR1 and no more: its writer was killed")
    again = Results("s3://bucket/results", file_format, settings)
    assert again.names().to_pylist() == [str(EXAMPLES[0]), "none.png"]
    with pytest.raises(ModelError, match="made with mode 'decoupled', not 'fixed'"):
        Results("s3://bucket/results", file_format, {**settings, "mode": "fixed"})
    with pytest.raises(ModelError, match="made with format"):
        Results("s3://bucket/results", {"parquet": "jsonl", "jsonl": "parquet"}[file_format], settings)
    claim = bucket / "results" / "_settings.json"
    for damage in (lambda: claim.write_bytes(b"{"), claim.unlink):
        damage()
        with pytest.raises(ModelError, match="no file says how the results there were made"):
            Results("s3://bucket/results", file_format, settings)


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_damaged_results_are_made_again(scorer, bucket, file_format, capsys):
    results = Results("s3://bucket/results", file_format, {})
    for index, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        results.write([scorer(pictures(image=[name]))], SimpleNamespace(task_idx=index))
    a, b, c, _ = sorted((bucket / "results").glob("part-*"))
    a.write_bytes(a.read_bytes()[:-20])
    b.write_bytes(b.read_bytes().replace(b"b.png: no such", b"b.png: \0\n such"))
    c.write_bytes(b"")
    assert results.names().to_pylist() == ["d.png"]
    assert capsys.readouterr().err.count("damaged, its pictures are scored again") == 3
    assert len(list((bucket / "results").glob("part-*"))) == 1


def test_a_device_of_one_machine_is_refused(cluster, tmp_path):
    with pytest.raises(ModelError, match="auto, cpu or cuda, not 'cuda:1'"):
        detect(EXAMPLES, tmp_path, device="cuda:1")
    with pytest.raises(ModelError, match="3 actors"):
        detect(EXAMPLES, tmp_path / "out", actors=3)
