"""Frames of a video or a camera, read through PyAV."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tipsomaly.data.images import Named
from tipsomaly.errors import ImageError, OptionError, one_line, printable

CAMERA = "camera:"
"""What the name of a camera begins with; the rest is its number or, on Windows, its name."""
PATIENCE = 30
"""Seconds until a stream that sends nothing is at its end."""
LATE = 0.5
"""Seconds that a live picture may be late before others are left out for it."""
DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""How FFmpeg calls cameras, by system."""


class Video:
    """Some frames of a file, of a stream (rtsp://...) or of a camera, upright, in order, each with its time.

    A frame of a file is called `FILE/SECONDS.png`, and its time is in seconds from the first frame. One of a stream or
    a camera is called by the time of day in UTC, and its time is in seconds since 1970. What cannot be decoded is left
    out, which is said at the end.
    """

    def __init__(self, place: str, fps: float) -> None:
        """`fps` is how many frames of a second are taken at most; all that there are if there are fewer. Raises
        OptionError without PyAV."""
        try:
            import av
        except ModuleNotFoundError as error:
            raise OptionError(f'--video needs {error.name}: pip install "tipsomaly[video]"') from None
        if not fps > 0:
            raise OptionError(f"--fps must be above 0, not {fps}")
        self.live = place.startswith(CAMERA) or "://" in place
        """Whether it comes as time goes by; frames for which there is no time are left out."""
        self._av, self.place, self.fps = av, place if self.live else str(Path(place)), fps

    def __iter__(self) -> Iterator[Named]:
        damaged, found = 0, False
        try:
            with self._opened() as container:
                if not container.streams.video:
                    raise ImageError("no pictures in it")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                clock = _Clock(self.fps, self.live)
                for packet in container.demux(stream):
                    try:
                        frames = packet.decode()
                    except self._av.FFmpegError:
                        damaged += 1
                        continue
                    for frame in frames:
                        seconds = clock.taken(frame.time)
                        if seconds is not None:
                            found = True
                            yield Named(self._name(seconds), _upright(frame), {"time": round(seconds, 3)})
            if not found:
                raise ImageError("no frame of it can be decoded")
            if damaged:
                raise ImageError(f"damaged: {damaged} parts of it were left out")
        except (ImageError, self._av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            yield Named(self.place, ImageError(f"{printable(self.place)}: {reason}"))

    def _opened(self) -> Any:
        if self.place.startswith(CAMERA):
            kind, form = DEVICES.get(sys.platform, DEVICES["linux"])
            return self._av.open(form.format(self.place.removeprefix(CAMERA)), format=kind)
        if self.live:
            return self._av.open(self.place, timeout=PATIENCE)
        if not os.path.isfile(self.place):
            raise ImageError("no such file" if not os.path.exists(self.place) else "not a file")
        # A playlist cannot make it open what is elsewhere, nor a name be taken for more than a file.
        return self._av.open(f"file:{self.place}", options={"protocol_whitelist": "file"})

    def _name(self, seconds: float) -> str:
        if self.live:
            return f"{self.place}/{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H-%M-%S.%f}.png"
        return f"{self.place}/{seconds:010.3f}.png"


class _Clock:
    """Which frames are taken, by their times."""

    def __init__(self, fps: float, live: bool) -> None:
        self.fps, self.live = fps, live
        self.first: float | None = None
        self.tick = -1
        self.last: tuple[float, float] | None = None
        """Of the live frame that was taken last: when it was shown, and when it was taken."""

    def taken(self, shown: float | None) -> float | None:
        """The time of a frame that is shown at this time of the video; None if it is not taken."""
        if self.live:
            return self._live(shown)
        if self.first is None:
            self.first = shown or 0.0
        seconds = max((shown or 0.0) - self.first, 0.0)
        tick = int(seconds * self.fps + 1e-6)
        if tick <= self.tick:
            return None
        self.tick = tick
        return seconds

    def _live(self, shown: float | None) -> float | None:
        """Frames that have waited while others were scored are passed over: what is taken is what is seen now."""
        now = time.time()
        shown = now if shown is None else shown
        if self.last and 0 <= shown - self.last[0] < max(1 / self.fps - 1e-6, now - self.last[1] - LATE):
            return None
        self.last = shown, now
        return now


def _upright(frame: Any) -> np.ndarray:
    """(height, width, 3) uint8, turned as a phone's video says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
