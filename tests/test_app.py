"""The page's functions, and its endpoints as clients call them."""

import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from ast import literal_eval
from base64 import b64decode, b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import anyio
import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from tipsomaly import Pipeline
from tipsomaly.service import uploads
from tipsomaly.service.batch_tab import BatchTab
from tipsomaly.service.cards import score_card
from tipsomaly.service.demo import Demo, explained
from tipsomaly.service.endpoints import PARAMETERS, Endpoints
from tipsomaly.service.examples import Examples
from tipsomaly.service.exports import record
from tipsomaly.service.space import Space
from tipsomaly.service.verdict_panel import VerdictPanel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import app  # noqa: E402

PICTURE = str(ROOT / "examples" / "pictures" / "zipper-1.jpg")
MASK = str(ROOT / "examples" / "masks" / "zipper-1.png")
NANO = "nano / industrial"
SETTINGS = ("zipper", "industrial", NANO)


@pytest.fixture(scope="module")
def demo():
    return Demo(Space(), Examples(ROOT / "examples"))


@pytest.fixture(scope="module")
def url(demo):
    blocks, address = app.launch(demo.space, block=False, mcp=True)
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def endpoints(demo):
    with gr.Blocks():
        verdicts = VerdictPanel(demo.space, demo.examples, explained)
        return Endpoints(demo.space, BatchTab(demo.space, verdicts, explained))


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def result():
    return Pipeline.from_pretrained()(PICTURE, "zipper")


def test_an_inspection_shows_score_parts_and_sentences(demo, result):
    inspection, card, overlay, data, sentences, threshold, *_ = demo.inspect(PICTURE, *SETTINGS, 0.5)
    for value in (result.score, result.global_score, result.local_score):
        assert f"{value:.3f}" in card
    assert "of 10 good pictures of other products" in card  # it is an example
    assert {key: data[key] for key in record(result)} == record(result)
    assert f"peaks at {result.anomaly_map.max():.2f}" in card
    assert overlay["value"].size == (448, 448)
    assert f"peaks at {result.anomaly_map.max():.2f}" in overlay["alt_text"]
    assert next(iter(inspection.abnormal)) in sentences
    assert threshold == math.ceil(100 * inspection.result.pixel_threshold) / 100
    assert inspection.result.pixel_threshold == inspection.calibration.pixel_threshold


def test_a_visitor_finds_an_example_and_hears_whether_its_verdict_is_right(demo):
    picture, class_name, domain, *results = demo.opening()
    expected = Pipeline.from_pretrained(domain=domain)(picture, class_name)
    assert results[0].result.score == expected.score
    verdict = "right" if results[0].result.is_anomalous else "wrong"  # it is a defective one
    assert f"the verdict is {verdict}, it is defective" in results[1]
    good = Pipeline.from_pretrained(domain=domain)(Path(picture).with_name("concrete-good.jpg"), class_name)
    assert f"The good one of its pair scores {good.score:.3f}" in results[1]
    assert demo.own_class(results[0], class_name, domain) == ("object", "industrial")  # another picture comes
    assert demo.own_class(results[0], "my class", domain) == ("my class", domain)
    assert demo.own_class(None, class_name, domain) == (class_name, domain)


def test_another_picture_has_no_verdict_until_good_ones_are_chosen(demo, tmp_path):
    Image.open(PICTURE).resize((200, 200)).save(tmp_path / "own.png")
    given = (tmp_path / "own.png", *SETTINGS, 0.5)
    _, card, *_, threshold = demo.inspect(*given)[:6]
    assert "No verdict yet" in card and threshold == gr.skip()  # never written back
    example = demo.inspect(PICTURE, *SETTINGS, 0.5)
    for sent in (given[0], tmp_path / "none.png", None):  # the example's threshold goes with the example
        assert demo.inspect(sent, *SETTINGS, example[5], None, example[0])[5] == 0.5
    chosen = replace(demo.bundled.calibration(PICTURE, *SETTINGS), image_threshold=0.1)
    assert ">Defective<" in demo.inspect(*given, chosen)[1]
    assert "do not serve here: they are of the class" in demo.inspect(*given, replace(chosen, class_name="nut"))[1]


def test_what_a_visitor_writes_is_no_html(demo):
    _, card, _, _, sentences, *_ = demo.inspect(PICTURE, "<img src=x onerror=alert(1)>", *SETTINGS[1:], 0.5)
    assert "<img" not in card + sentences
    assert "&lt;img, src=x, onerror=alert(1)&gt;" in card  # among the words that nano does not know


def test_another_threshold_redraws_without_the_model(demo, result, monkeypatch):
    inspection = demo.inspect(PICTURE, *SETTINGS, 0.5)[0]
    monkeypatch.setattr(demo, "space", None)
    for threshold in (0.0, 0.3, 1.0):
        (picture, heatmap), _, page, *files = demo.redraw(inspection, threshold, False)
        assert picture.size == heatmap.size == (448, 448)
        rows = re.findall(r'<tr data-region="(\d+)">.*?</th>(.*?)</tr>', page)
        found = [[f"{r.peak:.3f}", str(r.area), *map(str, r.box)] for r in result.regions(threshold)]
        assert [re.findall("<td>(.*?)</td>", cells) for _, cells in rows] == found
        boxes = re.findall(r'<rect data-region="(\d+)" x="(\d+)" y="(\d+)"', page)
        assert len(boxes) == 2 * len(rows)  # on the picture and on the mask
        assert {(i, x, y) for i, x, y in boxes} == {(i, *found[int(i) - 1][2:4]) for i, _ in rows}
        assert [file["visible"] for file in files] == [False] * 6
        mask = np.asarray(Image.open(BytesIO(b64decode(re.findall(r"base64,([^\"]+)", page)[1]))).convert("L")) > 127
        assert (mask != result.mask(threshold)).mean() < 0.002  # it is a JPEG
    (_, plain), fixed_scale, *_ = demo.redraw(inspection, 0.5, False)
    (_, stretched), own_scale, *_ = demo.redraw(inspection, 0.5, True)
    assert np.asarray(stretched).max() > np.asarray(plain).max()
    assert "1.00 abnormal" in fixed_scale
    assert f"{result.anomaly_map.max():.2f} most here" in own_scale


def test_taking_the_picture_away_empties_the_page(demo):
    inspection, card, overlay, data, *_ = demo.inspect(None, *SETTINGS, 0.5)
    assert inspection is overlay is data is None
    assert "Choose a picture" in card


def test_a_picture_that_cannot_be_used_leaves_no_old_result_beside_it(demo, tmp_path):
    (tmp_path / "<b>.png").write_bytes(b"no picture")
    inspection, card, overlay, data, *_ = demo.inspect(tmp_path / "<b>.png", *SETTINGS, 0.5)
    assert inspection is overlay is data is None
    assert "This picture cannot be used" in card and str(tmp_path) not in card and "<b>" not in card


@pytest.mark.parametrize("function", ["compare", "detect"])
def test_a_picture_that_cannot_be_used_is_one_safe_line(endpoints, tmp_path, function):
    picture = tmp_path / "<b>secret.png"
    picture.write_bytes(b"\x89PNG broken")
    with pytest.raises(gr.Error) as caught:
        getattr(endpoints, function)(picture, *SETTINGS)
    assert "This picture cannot be used" in caught.value.message
    assert "<b>" not in caught.value.message
    assert "&" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_calibrated_class_gets_a_verdict_and_a_tick_in_the_bar(demo):
    inspection = demo.space.inspect(PICTURE, *SETTINGS)
    for threshold, word in ((0.5, "anomalous"), (1.9, "normal")):
        result = replace(inspection.result, image_threshold=threshold)
        card = score_card(replace(inspection, result=result))
        assert f'class="verdict {word}"' in card
        assert f"left:{threshold * 50:.2f}%" in card


def test_detect_endpoint(client, result):
    answer = client.predict(handle_file(PICTURE), *SETTINGS, api_name="/detect")
    assert answer == json.loads(json.dumps(record(result)))


def test_localize_endpoint(client, result):
    answer, files = client.predict(handle_file(PICTURE), *SETTINGS, 0.4, api_name="/localize")
    assert answer == json.loads(json.dumps(record(result, 0.4)))
    paths = {Path(path).name: path for path in files}
    np.testing.assert_array_equal(np.load(paths["map.npy"]), result.anomaly_map)
    assert {"overlay.png", "mask.png", "map_16bit.png", "regions.json"} < set(paths)


def test_compare_endpoint(client):
    answer, gallery = client.predict(
        handle_file(PICTURE), *SETTINGS, "clean", "dirty", handle_file(MASK), api_name="/compare"
    )
    assert list(answer)[:4] == ["fixed", "learned", "decoupled", "own"]  # then the other methods that nano has
    assert answer["fixed"]["global_score"] == answer["decoupled"]["global_score"]
    assert answer["learned"]["local_score"] == answer["decoupled"]["local_score"]
    assert 0 <= answer["own"]["metrics"]["aupro"] <= 1
    assert [picture["caption"] for picture in gallery] == list(answer)


def test_batch_endpoint(client, tmp_path, result):
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(PICTURE, "in zip.jpg")
        file.writestr("broken.png", b"no")
    report, gallery, table, files = client.predict(
        [handle_file(PICTURE), handle_file(str(archive))], *SETTINGS, api_name="/batch"
    )
    assert "2 pictures scored" in report
    assert len(gallery) == 2
    assert [row[0] for row in table["data"]] == ["broken.png", "zipper-1.jpg", "in zip.jpg"]
    assert table["data"][1][1] == round(result.score, 4)
    assert [Path(path).name for path in files] == ["scores.csv", "overlays.zip"]
    assert len(zipfile.ZipFile(files[1]).namelist()) == 2


def test_a_batch_says_what_it_left_out_and_what_was_wrong(client, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BATCH", 2)
    monkeypatch.setattr("tipsomaly.service.space.MAX_BATCH", 2)
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(5):
            file.writestr(f"{i}.png", b"no")
    report, *_ = client.predict([handle_file(str(archive))], *SETTINGS, api_name="/batch")
    assert report.startswith("**0 pictures scored**, 2 could not be used. 3 more were left out: at most 2 are")
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(AppError, match=r"^there is no picture in these files$"):
        client.predict([handle_file(str(archive))], *SETTINGS, api_name="/batch")


@pytest.mark.parametrize(
    "settings", [("zipper", "no such domain", NANO), ("zipper", "industrial", "/etc"), ("x" * 200, "industrial", NANO)]
)
def test_endpoints_refuse_what_is_not_on_offer(client, settings):
    with pytest.raises(AppError):
        client.predict(handle_file(PICTURE), *settings, api_name="/detect")


@pytest.mark.parametrize("threshold", [float("nan"), None])
def test_a_threshold_that_is_no_number_is_refused(endpoints, threshold):
    with pytest.raises(gr.Error, match="the threshold is a number from 0 to 1"):
        next(endpoints.localize(PICTURE, *SETTINGS, threshold))


@pytest.mark.parametrize(
    ("name", "content"), [("empty.jpg", b""), ("text.png", b"text"), ("a.heic", b"\0\0\0\x18ftyp")]
)
def test_files_that_gradio_cannot_open_are_one_line(client, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=r"^This picture cannot be used: [^/&<]+$"):
        client.predict(handle_file(tmp_path / name), *SETTINGS, api_name="/detect")


def test_only_the_four_endpoints_are_public(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        *("/detect", "/localize", "/compare", "/batch")
    }


def test_an_assistant_finds_tools_that_say_what_they_take_and_uses_one(url, result):
    picture = f"data:image/jpeg;base64,{b64encode(Path(PICTURE).read_bytes()).decode()}"

    async def visit():
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return tools, await session.call_tool("detect", {"image": picture, "class_name": "zipper"})

    tools, answer = anyio.run(visit)
    assert [tool.name for tool in tools] == ["detect", "localize", "compare", "batch"]
    for tool in tools:
        parameters = tool.inputSchema["properties"]
        assert all(parameter["description"] == PARAMETERS[name] for name, parameter in parameters.items())
        assert tool.inputSchema["required"] == list(parameters)[:1]  # the picture is enough
    assert not answer.isError
    assert literal_eval(answer.content[0].text)["score"] == pytest.approx(result.score, abs=1e-6)


def upload(url: str) -> str:
    """A file to the server in plain HTTP."""
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    body += Path(PICTURE).read_bytes() + b"\r\n--b--\r\n"
    request = urllib.request.Request(
        f"{url}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    return json.load(urllib.request.urlopen(request))[0]


def call(url: str, image: object) -> str:
    """The events that /detect answers with in plain HTTP."""
    request = urllib.request.Request(
        f"{url}gradio_api/call/detect",
        json.dumps({"data": [image, *SETTINGS]}).encode(),
        {"Content-Type": "application/json"},
    )
    event = json.load(urllib.request.urlopen(request))["event_id"]
    return urllib.request.urlopen(f"{url}gradio_api/call/detect/{event}").read().decode()


def test_plain_http(url, result):
    """What the page about the service does with curl."""
    answer = call(url, {"path": upload(url), "meta": {"_type": "gradio.FileData"}})
    assert "event: complete" in answer
    data = json.loads(answer.split("data: ", 1)[1].splitlines()[0])
    assert data[0]["score"] == pytest.approx(result.score)


@pytest.mark.parametrize(("language", "program"), [("python", [sys.executable, "-c"]), ("sh", ["bash", "-c"])])
def test_the_clients_of_the_documentation(url, language, program, result):
    page = (ROOT / "hub" / "site" / "pages" / "service.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if "/detect" in c)
    code = code.replace("http://127.0.0.1:7860", url.rstrip("/"))
    done = subprocess.run([*program, code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{result.score:.10f}"[:10] in done.stdout


def test_health(url):
    health = json.load(urllib.request.urlopen(f"{url}health"))
    assert health["status"] == "ok"
    assert health["models"][:2] == [NANO, "nano / medical"]


def test_a_picture_in_one_post_and_a_preview_of_our_own(url, result):
    body = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\n' + Path(PICTURE).read_bytes()
    body += b'\r\n--b\r\nContent-Disposition: form-data; name="class_name"\r\n\r\nzipper\r\n--b--\r\n'
    request = urllib.request.Request(f"{url}detect", body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert json.load(urllib.request.urlopen(request)) == json.loads(json.dumps(record(result)))
    page = urllib.request.urlopen(url).read().decode()
    assert re.findall('<meta property="og:(?:title|image)" content="(.*?)"', page) == [
        "Tipsomaly",
        f"{url}thumbnail.jpg",
    ]


@pytest.mark.parametrize(
    "picture",
    [
        {"path": "http://127.0.0.1:7860/x.png"},
        {"path": "x.png", "url": "http://[::1]/x.png"},
        {"path": "http://169.254.169.254/latest"},
        {"path": "/etc/passwd"},
        {"path": "../../etc/passwd"},
        {"path": "file:///etc/passwd"},
    ],
)
def test_endpoints_reach_nothing_of_the_server(url, picture):
    """Neither its files nor what only it can ask; in plain HTTP, as gradio's client would send a file of its own."""
    answer = call(url, picture | {"meta": {"_type": "gradio.FileData"}})
    assert "event: error" in answer and f'"error": "{app.UNREADABLE}"' in answer
    assert "root:" not in answer and "score" not in answer


@pytest.mark.parametrize("picture", [5, "x", []])
def test_what_is_no_file_is_one_line(url, picture):
    assert f'"error": "{app.UNREADABLE}"' in call(url, picture)


def test_nothing_passes_by_the_queue(url):
    call = urllib.request.Request(f"{url}gradio_api/run/detect", b'{"data": []}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(call)
    assert caught.value.code == 404


def test_no_file_of_the_server_is_served(url):
    for path in ("/etc/passwd", str(ROOT / "README.md")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}gradio_api/file={path}")
        assert caught.value.code in (403, 404)


def test_temporary_files_are_deleted(tmp_path, monkeypatch):
    """Ours at once, gradio's after FILES_KEPT."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(app, "FILES_KEPT", 4)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    blocks, address = app.launch(Space(), block=False)
    try:
        page = set((tmp_path / "cache").rglob("*.*"))  # examples, the figure
        client = Client(address, verbose=False, download_files=False)
        client.predict(handle_file(PICTURE), *SETTINGS, 0.4, api_name="/localize")
        made = set((tmp_path / "cache").rglob("*.*")) - page
        assert {"overlay.png", "mask.png", "map.npy"} < {path.name for path in made}
        until = time.monotonic() + 20
        while any(path.exists() for path in made) and time.monotonic() < until:
            time.sleep(0.5)
        assert not any(path.exists() for path in made)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]
    finally:
        blocks.close()
