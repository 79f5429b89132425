"""`detect --watch`: folders while files are written into them; time is what the tests say it is."""

import csv
import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from tipsomaly import Calibration
from tipsomaly.cli.webhook import Webhook
from tipsomaly.data.arrivals import PATIENCE, RETRY, Arrivals
from tipsomaly.detection.records import read_records


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "whole.png"
    Image.effect_noise((40, 30), 50).save(path)
    return path


@pytest.fixture
def server():
    """What was sent, in order, with headers; `answers` are the statuses of the next requests, then all are taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = here.answers.pop(0) if here.answers else 204
            if status == 204:
                here.taken.append((json.loads(body), dict(self.headers)))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            if status == 204:
                here.news.release()

        def log_message(self, *_):
            pass

    here = HTTPServer(("127.0.0.1", 0), Handler)
    here.answers, here.taken, here.news = [], [], threading.Semaphore(0)
    here.url = f"http://127.0.0.1:{here.server_port}/results"
    thread = threading.Thread(target=here.serve_forever, args=(0.01,))
    thread.start()
    yield here
    here.shutdown()
    thread.join()
    here.server_close()


@pytest.fixture
def watched(here, golden, tmp_path, monkeypatch):
    """Run the command on the folder "in"; between polls the next step happens, after the last Ctrl-C."""

    def run(steps, *options):
        script = iter(steps)

        def tick(_):
            step = next(script, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(time, "sleep", tick)
        out = tmp_path / "out"
        return here("detect", tmp_path / "in", "--watch", "--model", golden.folder, "--output", out, *options)

    (tmp_path / "in").mkdir()
    return run


def nothing():
    pass


def names(tmp_path):
    return [record["image"].rpartition("/")[2] for record in read_records(tmp_path / "out" / "results.jsonl")]


def test_pictures_are_scored_once_they_are_whole_and_never_twice(watched, picture, tmp_path, server):
    folder, out, whole = tmp_path / "in", tmp_path / "out", picture.read_bytes()
    (folder / "line 2").mkdir()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no picture")
    shutil.copy(picture, folder / "early.png")
    steps = [
        nothing,  # in the second poll early.png is whole, and half.png cannot be used yet
        lambda: (folder / "half.png").write_bytes(whole),
        lambda: shutil.copy(picture, folder / "line 2" / "late.PNG"),
        lambda: (folder / "broken.png").write_bytes(whole[:60]),
        *[nothing] * (PATIENCE + 4),
        lambda: (folder / "broken.png").write_bytes(whole[:70]),
        *[nothing] * (PATIENCE + 4),
    ]
    options = ["--webhook", server.url, "--format", "csv"]
    done = watched(steps, *options)
    assert done.returncode == 130
    assert names(tmp_path) == ["early.png", "half.png", "late.PNG", "broken.png"]
    assert done.stderr.count("broken.png") == 1
    assert "half.png" not in done.stderr
    assert "watch ended: 3 pictures scored, 1 could not be used" in done.stderr
    # As a kill leaves it: a line that is torn, a row whose record was not written, a cursor that is behind.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    assert "error" in lines[-1]
    (out / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    (out / "webhook.json").write_text('{"sent": 1}')
    rows = (out / "pictures.csv").read_text()
    assert rows.count("\n") == 5
    (out / "pictures.csv").write_text(rows + str(folder / "early.png")[:-2])
    (folder / "broken.png").write_bytes(whole)
    done = watched([nothing, nothing], *options)
    assert "2 results in" in done.stderr
    assert names(tmp_path) == ["early.png", "half.png", "late.PNG", "broken.png"]
    records = list(read_records(out / "results.jsonl"))
    assert all((out / record["map"]).exists() for record in records)
    with (out / "pictures.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [record["image"] for record in records]
    # Each was sent at least once, and what was sent twice can be told.
    sent = [record["image"].rpartition("/")[2] for record, _ in server.taken]
    assert sent[:4] == ["early.png", "half.png", "late.PNG", "half.png"]
    assert [record for record, _ in server.taken[4:]] == records[2:]
    assert server.taken[1][1]["Idempotency-Key"] == server.taken[3][1]["Idempotency-Key"]


def test_a_damaged_picture_is_tried_again_later_though_it_did_not_change(tmp_path):
    path = tmp_path / "in" / "locked.png"
    path.parent.mkdir()
    path.write_bytes(b"x")
    arrivals, tries = Arrivals([path.parent], lambda _: False, tmp_path / "in"), []
    for i in range(PATIENCE + RETRY + 4):
        for ready in arrivals.poll():
            tries.append((i, arrivals.failed(ready)))
    assert tries == [(1, False), (1 + PATIENCE, True), (1 + PATIENCE + RETRY, False)]


def test_a_calibration_is_replaced_while_it_runs(watched, golden, picture, tmp_path):
    file, settings = tmp_path / "calibration.json", golden.pipe.with_options(image_size=112).settings()

    def put(name, threshold=None):
        if threshold is not None:
            Calibration(threshold, 0.5, "nut", 0.01, 3, settings).save(file)
        shutil.copy(picture, tmp_path / "in" / name)

    put("0.png", 0.0)
    steps = [nothing, lambda: put("1.png", 2.5), nothing, lambda: file.write_text("{"), lambda: put("2.png"), nothing]
    options = ["--class-name", "nut", "--calibration", file]
    done = watched(steps, *options)
    records = list(read_records(tmp_path / "out" / "results.jsonl"))
    assert [record["is_anomalous"] for record in records] == [True, False, False]
    assert [record["image_threshold"] for record in records] == [0.0, 2.5, 2.5]
    assert done.stderr.count("calibration.json: not a calibration") == 1
    # Thresholds may have changed between two runs as well, another setting may not.
    put("3.png", 1.5)
    assert watched([nothing, nothing], *options).returncode == 130
    assert len(list(read_records(tmp_path / "out" / "results.jsonl"))) == 4
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["thresholds"] == [1.5, 0.5]
    assert watched([], "--sigma", 1).returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--watch needs --output"),
        (["--output", "in"], "must be another folder"),
        (["--output", "out", "--format", "coco"], "--watch writes --format csv"),
        (["--output", "out", "--mutual"], "leave out --watch"),
        (["--output", "out", "--webhook", "file:///etc/passwd"], "must be an http"),
        (["--output", "out", "--webhook", "https://:secret@/x y"], "must be an http"),
    ],
)
def test_wrong_usage(here, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    done = here("detect", "in", "--watch", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert "secret" not in done.stderr


def test_the_webhook_loses_nothing_and_tells_no_secrets(server, tmp_path):
    results, said = tmp_path / "results.jsonl", []

    def add(*images, **more):
        with results.open("a") as file:
            file.writelines(json.dumps({"image": image, **more}) + "\n" for image in images)

    def sent():
        return [record["image"] for record, _ in server.taken]

    add("before")
    secret = server.url.replace("http://", "http://me:pass%20word@") + "?token=abc"
    server.answers = [500, 302]
    with Webhook(secret, tmp_path, said.append, first_wait=0.01):
        add("a", "b")
        assert server.news.acquire(timeout=10)
        assert server.news.acquire(timeout=10)
    assert sent() == ["a", "b"]
    assert server.taken[0][1]["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    name = "webhook http://127.0.0.1"
    refused = f"{name}: answered 500; what it does not take is kept and sent later"
    assert said == [refused, f"{name}: takes results again"]
    add("c")
    add("d", error="d: damaged")
    add("e")
    server.answers = [401] * 20
    with Webhook(secret, tmp_path, said.append, first_wait=60):
        pass
    assert said[2].startswith(f"{name}: answered 401")
    assert said[3].startswith(f"{name}: 2 results are not sent yet")
    server.answers = []
    with Webhook(server.url, tmp_path, said.append):
        pass
    assert sent() == ["a", "b", "c", "e"]
