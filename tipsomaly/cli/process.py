"""How the command's process begins and ends: its streams, its signals, its exit status."""

import io
import signal
import sys
from collections.abc import Callable
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def run(command: Callable[[], None]) -> None:
    """Run the command. SIGTERM, which clusters send, is an interrupt: what is finished is kept. Exit status 130 after
    an interrupt, 143 after SIGTERM."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows few letters is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    received: list[int] = []

    def terminate(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    status: int | str | None = 0
    try:
        command()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as end:
        status = end.code
    for number in (signal.SIGTERM, signal.SIGINT):  # nothing is left to be saved: once more, and it ends at once
        signal.signal(number, signal.SIG_DFL)
    sys.exit(TERMINATED if received and status == INTERRUPTED else status)
