"""Results by POST to a web address. The queue is results.jsonl itself; webhook.json beside it says how many of its
results were taken, so that none is lost, whatever ends the process."""

import base64
import hashlib
import http.client
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tipsomaly.detection.records import RESULTS, parse_record
from tipsomaly.errors import OptionError, one_line
from tipsomaly.files import to_json, write_atomically

CURSOR = "webhook.json"
TIMEOUT = 10.0
"""Seconds that an answer may take; also how long the end waits for what is not yet sent."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the second attempt, which double with each one more."""
POLL = 0.2
"""Seconds between looks for new results."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST becomes a GET without the result; it counts as refused."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def check_address(url: str) -> None:
    """Raise OptionError, which does not show the address, for one that nothing can be sent to."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right or not url.isascii() or not url.isprintable() or " " in url:
        raise OptionError("the webhook must be an http:// or https:// address")


class Webhook:
    """Sends the results in a folder, in their order, in a thread of its own, while it is entered.

    Each request holds a line of results.jsonl. What is not answered with a status of 200 to 299 is sent again, so the
    receiver may get one twice: then with the same header Idempotency-Key. A name and a password in the address become a
    header. Of the address only the host is ever printed.
    """

    def __init__(
        self, url: str, folder: Path, say: Callable[[str], None] | None = None, first_wait: float = FIRST_WAIT
    ) -> None:
        """`folder` has a results.jsonl, which others append to. Where nothing was sent before, only what comes is."""
        check_address(url)
        parts = urlsplit(url)
        self._address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        self._name = f"webhook {parts.scheme}://{parts.hostname}"
        self._headers = {"Content-Type": "application/json", "User-Agent": "tipsomaly"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._open = urllib.request.build_opener(_NoRedirects).open
        self._results, self._cursor = folder / RESULTS, folder / CURSOR
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._first_wait, self._failures = first_wait, 0
        self._sent, self._offset = self._start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Try once more to send what is left, for at most TIMEOUT, and say how much there still is."""
        self._stop.set()
        self._thread.join(2 * TIMEOUT)
        if left := self._left():
            self._say(f"{self._name}: {left} results are not sent yet; the next watch of the same folder sends them")

    def _start(self) -> tuple[int, int]:
        """How many results were taken, and where in the file the next one begins."""
        with self._results.open("rb") as file:
            ends = [file.tell() for line in iter(file.readline, b"") if _is_result(line)]
        try:
            sent = json.loads(self._cursor.read_bytes())["sent"]
            sent = min(sent, len(ends)) if type(sent) is int and sent >= 0 else 0
        except FileNotFoundError:
            sent = len(ends)
        except (ValueError, LookupError, TypeError):
            sent = 0  # rather twice than never
        self._note(sent)
        return sent, ends[sent - 1] if sent else 0

    def _note(self, sent: int) -> None:
        write_atomically(self._cursor, to_json({"sent": sent}) + "\n")

    def _run(self) -> None:
        while not self._stop.wait(self._deliver()):
            pass
        self._deliver()

    def _deliver(self) -> float:
        """Send what there is, until one is not taken; returns the seconds to wait."""
        deadline = time.monotonic() + TIMEOUT
        try:
            with self._results.open("rb") as file:
                file.seek(self._offset)
                for line in iter(file.readline, b""):
                    if not line.endswith(b"\n") or (self._stop.is_set() and time.monotonic() > deadline):
                        break
                    if _is_result(line):
                        self._post(line)
                        self._note(self._sent + 1)
                        self._sent += 1
                        if self._failures:
                            self._say(f"{self._name}: takes results again")
                        self._failures = 0
                    self._offset = file.tell()
            return POLL
        except (OSError, http.client.HTTPException, ValueError) as error:
            wait = min(self._first_wait * 2 ** min(self._failures, 16), LONGEST_WAIT)
            self._failures += 1
            if self._failures == 1:
                self._say(f"{self._name}: {_why(error)}; what it does not take is kept and sent later")
            return wait

    def _post(self, line: bytes) -> None:
        key = hashlib.sha256(line).hexdigest()[:32]
        request = urllib.request.Request(self._address, line.strip(), self._headers | {"Idempotency-Key": key})
        with self._open(request, timeout=TIMEOUT):
            pass  # a status of 300 or more was raised

    def _left(self) -> int:
        with self._results.open("rb") as file:
            file.seek(self._offset)
            return sum(map(_is_result, file))


def _is_result(line: bytes) -> bool:
    record = parse_record(line)
    return record is not None and "error" not in record


def _why(error: Exception) -> str:
    """What went wrong, without the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code}"
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return f"no answer in {TIMEOUT:.0f} s"
    if isinstance(error, urllib.error.URLError):
        return one_line(error.reason)
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
