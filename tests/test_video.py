"""Frames of videos, with clips that PyAV wrote; a camera is played by FFmpeg's test pattern."""

import json
import os
import sys
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from tipsomaly.data import video
from tipsomaly.data.video import Video, _Clock
from tipsomaly.detection.records import read_records
from tipsomaly.errors import ImageError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds at ten frames a second, 64 x 48; frame i is of the grey 12 i, with a white stripe at the left."""
    path = tmp_path_factory.mktemp("clip") / ("a_b.mp4" if os.name == "nt" else "a:b.mp4")  # no protocol
    with av.open(str(path.with_name("clip.mp4")), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            pixels = np.full((48, 64, 3), 12 * i, np.uint8)
            pixels[:, :16] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return path.with_name("clip.mp4").rename(path)


@pytest.mark.parametrize(("fps", "numbers"), [(2, [0, 5, 10, 15]), (0.5, [0]), (4, [0, 3, 5, 8, 10, 13, 15, 18])])
def test_frames_are_those_at_their_times(clip, fps, numbers):
    frames = list(Video(str(clip), fps))
    assert [frame.more["time"] for frame in frames] == [i / 10 for i in numbers]
    assert [frame.name for frame in frames] == [f"{clip}/{i / 10:010.3f}.png" for i in numbers]
    greys = [frame.content[:, 32:].mean() for frame in frames]
    assert greys == pytest.approx([12 * i for i in numbers], abs=4)


def test_all_frames_where_there_are_fewer(clip):
    assert len(list(Video(str(clip), 100))) == 20


def test_a_phones_video_is_upright(clip, tmp_path):
    content = bytearray(clip.read_bytes())
    start = content.index(b"tkhd") + 44  # the matrix of ISO 14496-12: to be turned by 90 degrees clockwise
    numbers = (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    content[start : start + 36] = b"".join((n & 0xFFFFFFFF).to_bytes(4, "big") for n in numbers)
    (tmp_path / "phone.mp4").write_bytes(content)
    (frame,) = Video(str(tmp_path / "phone.mp4"), 0.1)
    assert frame.content.shape == (64, 48, 3)
    assert frame.content[:12].mean() > 240  # what was left is above
    assert frame.content[20:].mean() < 10


def test_detect(here, golden, clip, tmp_path):
    out = tmp_path / "out"
    command = ["detect", "--video", clip, "--fps", 2, "--model", golden.folder, "--output", out]
    assert here(*command).returncode == 0
    records = list(read_records(out / "results.jsonl"))
    assert [record["time"] for record in records] == [0, 0.5, 1, 1.5]
    assert (records[1]["width"], records[1]["height"]) == (64, 48)
    frame = list(Video(str(clip), 2))[1]
    expected = golden.pipe.with_options(image_size=112)(frame.content, "object").score
    assert records[1]["score"] == pytest.approx(expected, abs=1e-5)
    assert (out / "000000.500_overlay.png").is_file()
    strip = out / "a_b_scores.png"
    width, height = Image.open(strip).size
    assert width > 3 * height
    strip.unlink()
    done = here(*command, "--json")  # goes on, with nothing to do
    assert (done.returncode, done.stdout) == (0, "")
    assert strip.is_file()


def test_a_damaged_video_loses_only_what_is_damaged(clip, tmp_path):
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + 200
    content[middle : middle + 60] = bytes(60)
    (tmp_path / "damaged.mp4").write_bytes(content)
    assert sum(not isinstance(frame.content, ImageError) for frame in Video(str(tmp_path / "damaged.mp4"), 10)) >= 10
    (tmp_path / "text.mp4").write_text("text")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/x.ts\n#EXT-X-ENDLIST\n")
    for name, reason in (
        ("text.mp4", "Invalid data"),
        ("none.mp4", "no such file"),
        ("list.m3u8", "Invalid data"),
        (".", "not a"),
    ):
        (error,) = Video(str(tmp_path / name), 1)
        assert str(error.content).startswith(f"{tmp_path / name}: {reason}")


def test_usage(here, golden, clip):
    for options, message in (
        (["--fps", 2], "--fps goes with --video"),
        (["--video", "--watch"], "--watch is for folders"),
        (["--video", "--fps", "nan"], "--fps must be above 0, not nan"),
        (["--video", "--mutual"], "not in archives, data sets or videos"),
    ):
        done = here("detect", clip, *options, "--model", golden.folder)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_camera(here, golden, monkeypatch):
    monkeypatch.setitem(video.DEVICES, sys.platform, ("lavfi", "testsrc=size=64x48:rate=10:duration={}"))
    done = here("detect", "--video", "camera:1", "--fps", 5, "--model", golden.folder, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 5
    assert len({record["image"] for record in records}) == 5
    assert all(record["image"].startswith("camera:1/2") for record in records)
    times = [record["time"] for record in records]
    assert times == sorted(times)


def test_a_late_camera_skips_what_waits(monkeypatch):
    """Frames of ten a second wait while one is scored for two seconds: those of that time are passed over."""
    now = [100.0]
    monkeypatch.setattr(video.time, "time", lambda: now[0])
    clock, taken = _Clock(5, live=True), []
    for i in range(60):
        now[0] = max(now[0], 100 + i / 10)
        if clock.taken(i / 10) is not None:
            taken.append(i / 10)
            now[0] += 2
    assert all(later - before >= 1.5 for before, later in pairwise(taken))
    assert len(taken) >= 3
    assert clock.taken(0.0) is not None  # a stream's time that begins anew
