"""A batch of many pictures: its turns, its pages, its end, without a browser."""

import threading
import time
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from tipsomaly.service import batch, batch_tab, space, uploads
from tipsomaly.service.batch_tab import BatchTab, Given, Switch
from tipsomaly.service.examples import Examples
from tipsomaly.service.exports import Row
from tipsomaly.service.space import Space
from tipsomaly.service.turns import Turns
from tipsomaly.service.verdict_panel import VerdictPanel

PICTURES = Path(__file__).parent.parent / "examples" / "pictures"
PICTURE = str(PICTURES / "zipper-1.jpg")
SETTINGS = ("zipper", "industrial", "nano / industrial")


@pytest.fixture(scope="module")
def tab():
    space = Space()
    with gr.Blocks():
        verdicts = VerdictPanel(space, Examples(PICTURES.parent), nullcontext)
        return BatchTab(space, verdicts, lambda page=True: nullcontext())


@pytest.fixture(scope="module")
def result(tab):
    return next(tab.space.batch([PICTURE], *SETTINGS)).result


def test_a_batch_says_how_far_it_is(tab, monkeypatch):
    monkeypatch.setattr(batch_tab, "STEP", 1)
    seen = []
    steps = tab.score([PICTURE] * 2, *SETTINGS, None, Switch(), progress=lambda at, **_: seen.append(at))
    first, second, last = steps
    assert first[0].startswith("1 of 2 pictures, about ") and second[0] == "2 of 2 pictures, about 0 s left …"
    assert last[0].startswith("**2 pictures scored**, 0 could not be used.")
    assert seen == [(1, 2), (2, 2)]


def test_a_stopped_batch_keeps_what_it_has(tab, monkeypatch):
    monkeypatch.setattr(batch_tab, "STEP", 1)
    monkeypatch.setattr(space, "PARALLEL", 2)
    switch = Switch()
    steps = tab.score([PICTURE] * 20, *SETTINGS, None, switch, progress=lambda *_, **__: None)
    next(steps)
    batch_tab.stop(switch)
    line, page, files, _ = next(steps)
    assert line == "**2 pictures scored**, 0 could not be used. Stopped: 18 were not looked at."
    assert page.count("<tr data-score") == 2
    assert len(Path(files[0]).read_text(encoding="utf-8-sig").splitlines()) == 3
    assert len(zipfile.ZipFile(files[1]).namelist()) == 2
    assert next(steps, None) is None


def test_pictures_of_a_batch_that_are_good_judge_the_others(tab, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for path in sorted(PICTURES.glob("*-good.jpg"))[:5]:
            archive.write(path, path.name)
    given = Given([PICTURE, str(tmp_path / "some.zip")], SETTINGS)
    *settings, calibration, status, file = next(tab.goods(given, 0.01, SimpleNamespace(goods=[1, 2, 3, 4, 5])))
    assert tuple(settings) == SETTINGS
    alone = [row.result.score for row in tab.space.batch(given.files, *SETTINGS)][1:]
    assert calibration.scores == pytest.approx(sorted(alone))
    assert "all 5 good pictures" in status and Path(file.value["path"]).name == "calibration.json"
    for numbers, message in (
        ([1, 2], "choose 5 to 20 good pictures; these are 2"),
        ([1] * 30, "these are more"),
        ([1, 2, 3, 4, "../x"], "no such picture"),
        ({}, "Score the batch again"),
    ):
        with pytest.raises((ValueError, gr.Error), match=message):
            next(tab.goods(given, 0.01, SimpleNamespace(goods=numbers)))


def test_a_picture_of_a_batch_is_found_again(tab, tmp_path):
    archive, name = tmp_path / "some.zip", PICTURES / "tile-good.jpg"
    with zipfile.ZipFile(archive, "w") as file:
        file.mkdir("folder")
        file.writestr("folder/.hidden", "x")
        file.writestr("broken.png", "x")
        file.write(name, "../../tile.jpg")
    files = [PICTURE, str(archive), PICTURE]
    labels = [label for label, _ in uploads.pictures(files)]
    assert labels == ["zipper-1.jpg", "broken.png", "tile.jpg", "zipper-1.jpg"]
    assert uploads.kept(files, 0, tmp_path) == uploads.kept(files, 3, tmp_path) == Path(PICTURE)
    assert uploads.kept(files, 2, tmp_path).read_bytes() == name.read_bytes()
    picture, *settings, _ = next(tab.open(Given(files, SETTINGS), SimpleNamespace(index=3)))
    assert (picture, *settings) == (PICTURE, *SETTINGS)
    for index in (-1, 4, None, "../x", 10**9):
        with pytest.raises(ValueError, match="no such picture"):
            next(tab.open(Given(files, SETTINGS), SimpleNamespace(index=index)))
    archive.unlink()
    with pytest.raises(ValueError, match="were deleted"):
        uploads.kept([str(archive)], 0, tmp_path)


def test_pages_numbers_and_where_the_threshold_starts(result):
    rows = [Row(f"<{i}>", replace(result, global_score=i / 100), overlay=None) for i in range(60)]
    rows.insert(1, Row("<x>", error="<broken>"))
    page = batch.html(rows, "<class>")
    assert "Page 1 of 3" in page
    assert page.count("<tr data-score") == 60 and page.count(" hidden") == 35
    assert page.index('data-picture="60"') < page.index('data-picture="2"') < page.index('data-picture="0"')
    assert "30 of 60 pictures score at least" in page  # half-way between the lowest and the highest
    assert "<broken>" not in page and "<x>" not in page and "<59>" not in page and "<class>" not in page
    judged = [replace(row, result=replace(row.result, image_threshold=0.0)) for row in rows if row.result]
    assert "60 of 60 pictures score at least 0.000" in batch.html(judged, "")
    assert "<tr data-score" not in batch.html([Row("x", error="broken")], "")


def test_turns_go_round():
    turns, order, until = Turns(), [], time.monotonic() + 60

    def wait_for(asking):
        while len(turns) < asking and time.monotonic() < until:
            time.sleep(0.001)

    def run(name):
        for i in range(2):
            with turns.turn():
                order.append(name)
                wait_for(3 if i == 0 else 0)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    with turns.turn():
        for asking, thread in enumerate(threads, 2):
            thread.start()
            wait_for(asking)
    for thread in threads:
        thread.join()
    assert order == list("abcabc")
    assert len(turns) == 0


def test_a_turn_that_fails_is_given_on(tab, monkeypatch):
    monkeypatch.setattr(space, "load_or_error", lambda source: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(tab.space.batch([PICTURE], *SETTINGS))
    monkeypatch.undo()
    assert next(tab.space.batch([PICTURE], *SETTINGS)).error is None
