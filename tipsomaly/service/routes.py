"""Plain HTTP beside the page: a picture in one POST, health, readiness, and the picture that links show."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from tipsomaly import __version__
from tipsomaly.errors import ImageError
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.service import uploads
from tipsomaly.service.exports import record
from tipsomaly.service.space import Space

THUMBNAIL = "/thumbnail.jpg"
AT_ONCE = 2
"""Pictures of POST /detect that the model has at once, as many as of the page."""
MAX_WAITING = 200
"""Requests in hand; more are turned away until some are answered."""
PATIENCE = 120
"""Seconds that an upload may take."""
FORM = 16 * 2**10
"""Bytes that a form may have beside its picture."""


class Routes:
    """What a server answers beside the page, over one Space."""

    def __init__(self, space: Space, waiting: Callable[[], int], thumbnail: Path) -> None:
        """`waiting` says how many requests of the page are in its queue."""
        self.space, self.waiting, self.thumbnail = space, waiting, thumbnail
        self.in_hand = 0
        self.turns = anyio.Semaphore(AT_ONCE)

    def all(self) -> list[Route]:
        return [
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/detect", self.detect, methods=["POST"]),
            Route(THUMBNAIL, self.picture),
        ]

    async def health(self, _: Request) -> Response:
        """Whether the process answers; for whoever restarts it."""
        return JSONResponse({"status": "ok", "version": __version__, "models": self.space.choices})

    async def ready(self, _: Request) -> Response:
        """Whether it takes another picture; for whoever spreads requests over servers."""
        waiting = self.waiting() + self.in_hand
        if waiting >= MAX_WAITING:
            return refusal(503, f"{waiting} requests are waiting", after=5)
        return JSONResponse({"status": "ready", "waiting": waiting})

    async def picture(self, _: Request) -> Response:
        return FileResponse(self.thumbnail, media_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})

    async def detect(self, request: Request) -> Response:
        """Scores of the picture in a multipart form, as JSON; its fields are in the README. Never raises."""
        if self.in_hand >= MAX_WAITING:
            return refusal(503, f"{self.in_hand} requests are waiting: try again later", after=5)
        self.in_hand += 1
        try:
            async with form(request) as given, self.turns:
                return await anyio.to_thread.run_sync(self._detect, *given)
        except TimeoutError:
            return refusal(408, f"the upload took more than {PATIENCE} seconds")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except HTTPException as error:
            return refusal(error.status_code, error.detail)
        except ImageError as error:
            return refusal(400, f"This picture cannot be used: {uploads.reason(error)}.")
        except ValueError as error:
            return refusal(400, str(error))
        finally:
            self.in_hand -= 1

    def _detect(self, picture: bytes, fields: dict[str, str]) -> Response:
        threshold = fields.get("threshold")
        level = uploads.checked_threshold(threshold) if threshold else None
        inspection = self.space.inspect(
            picture,
            fields.get("class_name") or "object",
            fields.get("domain") or next(iter(ENSEMBLES)),
            fields.get("model") or self.space.choices[0],
        )
        return JSONResponse(record(inspection.result, level))


@asynccontextmanager
async def form(request: Request) -> AsyncIterator[tuple[bytes, dict[str, str]]]:
    """The picture of a multipart form, and its other fields. Raises HTTPException, or TimeoutError, before more than
    the limits of an upload are read."""
    most = uploads.MAX_FILE + FORM
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large()
    read = 0

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > most:
            raise too_large()
        return message

    with anyio.fail_after(PATIENCE):
        fields = await Request(request.scope, receive).form(max_files=1, max_fields=10, max_part_size=FORM)
    try:
        picture = fields.get("picture")
        if picture is None or isinstance(picture, str):
            raise HTTPException(400, "send the picture as the file 'picture' of a multipart form")
        yield await picture.read(), {name: value for name, value in fields.items() if isinstance(value, str)}
    finally:
        await fields.close()


def too_large() -> HTTPException:
    return HTTPException(413, f"at most {uploads.MAX_FILE >> 20} MiB are taken")


def refusal(status: int, error: str, after: int | None = None) -> JSONResponse:
    """An error as JSON; `after`: seconds until it is worth trying again."""
    return JSONResponse({"error": error}, status, headers=None if after is None else {"Retry-After": str(after)})
