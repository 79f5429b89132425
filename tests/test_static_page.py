"""The page without a server inspects pictures in Chromium, offline, and says what the pipeline says."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tipsomaly import Pipeline

for module in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(module)
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "browser"))
import assemble  # noqa: E402

pytestmark = pytest.mark.skipif(not CHROMIUM or not shutil.which("npm"), reason="no chromium or no npm here")


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_offline", "true")
    try:
        assemble.fetch_runtime(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip(f"not in npm's cache, which `npm cache add {assemble.RUNTIME}` fills")
    assemble.assemble(tmp_path, pictures=2)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_page_says_what_the_pipeline_says(address):
    picture, problems = ROOT / "examples" / "pictures" / "zipper-1.jpg", []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(address) else problems.append(request.url))
        page.goto(address)
        page.get_by_text("Ready.").wait_for()
        page.context.set_offline(True)
        page.locator("#name").select_option("zipper")
        page.locator("#file").set_input_files(picture)
        page.get_by_text(" of 2 = ").wait_for()
        score = float(page.locator("#score").inner_text().split()[0])
        assert page.locator("#map").is_visible()
        browser.close()
    assert score == pytest.approx(Pipeline.from_pretrained(device="cpu")(picture, "zipper").score, abs=1e-3)
    assert problems == []
