"""Plain HTTP beside the page, without the page."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tipsomaly import Pipeline
from tipsomaly.service import middleware, routes, uploads
from tipsomaly.service.exports import record
from tipsomaly.service.middleware import Preview, RateLimit
from tipsomaly.service.routes import Routes
from tipsomaly.service.space import Space

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "examples" / "pictures" / "zipper-1.jpg"


@pytest.fixture(scope="module")
def served():
    return Routes(Space(), lambda: 0, PICTURE)


@pytest.fixture(scope="module")
def client(served):
    return TestClient(Starlette(routes=served.all()), raise_server_exceptions=False)


def test_a_picture_in_one_post(client):
    result = Pipeline.from_pretrained()(PICTURE, "zipper")
    picture = {"picture": PICTURE.read_bytes()}
    answer = client.post("/detect", files=picture, data={"class_name": "zipper", "threshold": "0.4"})
    assert answer.status_code == 200
    regions = [region | {"box": tuple(region["box"])} for region in answer.json()["regions"]]
    assert answer.json() | {"regions": regions} == record(result, 0.4)
    assert client.post("/detect", files=picture).json()["class_name"] == "object"


@pytest.mark.parametrize(
    ("files", "fields", "error"),
    [
        ({}, {"picture": "/etc/passwd"}, "send the picture as the file 'picture'"),
        ({"picture": ("/etc/passwd", b"no picture")}, {}, "This picture cannot be used: not a picture"),
        ({"picture": PICTURE.read_bytes()}, {"model": "/etc"}, "no such choice"),
        ({"picture": PICTURE.read_bytes()}, {"domain": "x"}, "no such choice"),
        ({"picture": PICTURE.read_bytes()}, {"class_name": "x" * 101}, "at most 100 are taken"),
        ({"picture": PICTURE.read_bytes()}, {"threshold": "nan"}, "a number from 0 to 1"),
        ({"picture": PICTURE.read_bytes(), "other": b""}, {}, "Maximum number of files is 1"),
        ({"picture": PICTURE.read_bytes()}, {"class_name": "x" * 20_000}, "maximum size"),
    ],
)
def test_what_cannot_be_used_is_one_line_of_json(client, files, fields, error):
    answer = client.post("/detect", files=files, data=fields)
    assert answer.status_code == 400
    assert error in answer.json()["error"]
    assert "/etc" not in answer.text


@pytest.mark.parametrize("chunks", [False, True])
def test_a_large_upload_ends_at_the_limit(client, monkeypatch, chunks):
    """Whether its length is announced or not."""
    monkeypatch.setattr(uploads, "MAX_FILE", 2**20)
    head = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n'
    body = head + bytes(2**21) + b"\r\n--b--\r\n"
    answer = client.post(
        "/detect",
        content=iter([body[i : i + 2**18] for i in range(0, len(body), 2**18)]) if chunks else body,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert answer.json() == {"error": "at most 1 MiB are taken"}


def test_health_readiness_and_a_full_house(client, served, monkeypatch):
    assert client.get("/health").json()["models"][:2] == ["nano / industrial", "nano / medical"]
    assert client.get("/ready").json() == {"status": "ready", "waiting": 0}
    assert client.get(routes.THUMBNAIL).content == PICTURE.read_bytes()
    monkeypatch.setattr(served, "in_hand", routes.MAX_WAITING)
    for answer in (client.get("/ready"), client.post("/detect", files={"picture": b"x"})):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
    assert client.get("/health").status_code == 200


def limited(per_minute, host="192.0.2.1"):
    async def seen(request):
        return PlainTextResponse(request.headers.get("x-tipsomaly-counted", ""))

    app = Starlette(
        routes=[Route("/{path:path}", seen, methods=["GET", "POST"])],
        middleware=[Middleware(RateLimit, per_minute=per_minute)],
    )
    return TestClient(app, client=(host, 1))


def test_a_visitor_is_served_at_a_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(middleware.time, "monotonic", lambda: now[0])
    client = limited(2)

    def post(path="/detect"):
        return client.post(path, headers={"X-Forwarded-For": "198.51.100.9"}).status_code

    assert [post(), post("/gradio_api/queue/join"), post("/gradio_api/call/v2/detect")] == [200, 200, 429]
    assert client.get("/").status_code == client.post("/gradio_api/cancel").status_code == 200
    refused = client.post("/gradio_api/upload")
    assert refused.headers["Retry-After"] == "30"
    assert refused.json() == {"error": "at most 2 requests a minute are taken: try again in 30 seconds"}
    now[0] += 30
    assert [post(), post()] == [200, 429]
    now[0] += 1000
    assert [post(), post(), post()] == [200, 200, 429]


def test_a_call_of_the_mcp_server_is_counted_once():
    client = limited(1)
    again = {"x-tipsomaly-counted": client.post("/gradio_api/mcp/", headers={"x-tipsomaly-counted": "guessed"}).text}
    assert client.post("/gradio_api/queue/join", headers=again).status_code == 200
    assert client.post("/gradio_api/queue/join", headers={"x-tipsomaly-counted": "guessed"}).status_code == 429


def test_who_is_a_visitor(monkeypatch):
    def name(host):
        return middleware.visitor({"client": (host, 1)})

    assert name("2001:db8::1") == name("2001:db8::2:3") != name("2001:db8:0:1::1")
    assert name("::ffff:192.0.2.1") == name("192.0.2.1") != name("192.0.2.2")
    limit = RateLimit(None, 1)
    monkeypatch.setattr(middleware, "VISITORS", 3)
    for i in range(9):
        limit.take(str(i))
    assert list(limit.seen) == ["6", "7", "8"]


def test_a_link_shows_us():
    page = '<head><meta property="og:title" content="Gradio" />\n<meta\n\tname="twitter:title"\n content="é" /></head>é'

    async def html(_):
        return HTMLResponse(page)

    app = Starlette(
        routes=[Route("/", html), Route("/other", html)],
        middleware=[Middleware(Preview, title="Ours", description='"quoted"')],
    )
    client = TestClient(app, base_url="http://example.org:7860")
    shown = client.get("/", headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": 'x"><script>'})
    assert "Gradio" not in shown.text and "twitter:title" not in shown.text and shown.text.endswith("</head>é")
    assert 'content="&quot;quoted&quot;"' in shown.text and "<script>" not in shown.text
    assert 'og:image" content="http://example.org:7860/thumbnail.jpg"' in client.get("/").text
    assert client.get("/other").text == page
