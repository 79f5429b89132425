"""What stands between the network and the page: a limit of requests a visitor, and what a link to the page shows."""

import ipaddress
import math
import re
import secrets
import time
from collections import OrderedDict
from html import escape

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tipsomaly.service.routes import THUMBNAIL, refusal

WORK = re.compile(r"^(/gradio_api)?/(detect|upload|queue/join|(call|run|api|mcp)(/.*)?)/?$")
"""Paths whose POST costs something; without /gradio_api they are older names of gradio's."""
VISITORS = 10_000
"""Visitors that are remembered; the one longest unseen is forgotten."""
COUNTED = b"x-tipsomaly-counted"


class RateLimit:
    """At most so many requests a minute for each visitor, which may come at once; uploads count, too. Others get 429.

    A visitor is an IPv4 address or an IPv6 /64, as uvicorn knows it: whoever connects or, where that is a proxy which
    FORWARDED_ALLOW_IPS names (uvicorn's default: one on this machine), whom the proxy's X-Forwarded-For names. Anybody
    else's X-Forwarded-For is not believed.
    """

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self.app, self.per_minute = app, per_minute
        self.seen: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, when
        self.secret = secrets.token_hex().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and WORK.match(scope["path"]):
            counted = (COUNTED, self.secret) in scope["headers"]  # gradio's MCP server calls the page with its headers
            if not counted and (wait := self.take(visitor(scope))):
                error = f"at most {self.per_minute} requests a minute are taken: try again in {wait} seconds"
                await refusal(429, error, after=wait)(scope, receive, send)
                return
            if "/mcp" in scope["path"]:
                headers = [header for header in scope["headers"] if header[0] != COUNTED]
                scope = {**scope, "headers": [*headers, (COUNTED, self.secret)]}
        await self.app(scope, receive, send)

    def take(self, name: str) -> int:
        """0 if a visitor may, else the seconds until they may."""
        now = time.monotonic()
        left, when = self.seen.pop(name, (float(self.per_minute), now))
        left = min(left + (now - when) * self.per_minute / 60, self.per_minute)
        may = left >= 1
        self.seen[name] = (left - may, now)
        if len(self.seen) > VISITORS:
            self.seen.popitem(last=False)
        return 0 if may else math.ceil((1 - left) * 60 / self.per_minute)


def visitor(scope: Scope) -> str:
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


class Preview:
    """What a link to the page shows elsewhere (Open Graph): gradio's own tags name gradio and have no picture."""

    def __init__(self, app: ASGIApp, title: str, description: str) -> None:
        self.app, self.title, self.description = app, title, description

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        page = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                start = message
                return
            page += message.get("body", b"")
            if message.get("more_body"):
                return
            if Headers(raw=start["headers"]).get("content-type", "").startswith("text/html"):
                page = self.rewritten(page.decode(), Request(scope)).encode()
                MutableHeaders(raw=start["headers"])["content-length"] = str(len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, rewrite)

    def rewritten(self, page: str, request: Request) -> str:
        address = origin(request)
        tags = {
            "og:type": "website",
            "og:url": f"{address}/",
            "og:title": self.title,
            "og:description": self.description,
            "og:image": f"{address}{THUMBNAIL}",
            "twitter:card": "summary_large_image",
        }
        ours = "".join(f'<meta property="{name}" content="{escape(text)}" />\n' for name, text in tags.items())
        ours += f'<meta name="description" content="{escape(self.description)}" />\n'
        page = re.sub(r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*?/>\s*', "", page)
        return page.replace("</head>", f"{ours}</head>", 1)


def origin(request: Request) -> str:
    """The address that a visitor sees, of a server behind a proxy, too. It only goes into the visitor's own page."""
    headers = request.headers
    host = headers.get("x-forwarded-host", request.url.netloc).split(",")[0].strip()
    scheme = headers.get("x-forwarded-proto", request.url.scheme).split(",")[0].strip()
    return f"{scheme}://{host}{request.scope.get('root_path', '')}"
