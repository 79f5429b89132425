"""The app's functions, and its endpoints through gradio's own client."""

import sys
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import app  # noqa: E402

PICTURE = str(ROOT / "examples" / "pictures" / "zipper-1.jpg")


@pytest.fixture(scope="module")
def demo(golden):
    return app.Demo(golden.pipe)


@pytest.fixture(scope="module")
def client(golden):
    blocks = app.build(golden.pipe)
    _, url, _ = blocks.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield Client(url, verbose=False)
    blocks.close()


def test_detect(demo, golden):
    text, overlay = demo.detect(PICTURE, "zipper", "industrial")
    assert f"{golden.pipe(PICTURE, 'zipper').score:.3f}" in text
    assert overlay.size == Image.open(PICTURE).size


def test_localize_redraws_for_each_threshold(demo):
    (picture, heatmap), _, low = demo.localize(PICTURE, "zipper", "industrial", 0.0)
    _, outlined, high = demo.localize(PICTURE, "zipper", "industrial", 1.0)
    assert picture.size == heatmap.size == outlined.size
    assert low[0][:5] == [0, 0, 448, 448, 448 * 448]
    assert high == []


def test_compare_shows_the_ablation(demo):
    gallery, table = demo.compare(PICTURE, "zipper", "medical")
    assert [caption.split(":")[0] for _, caption in gallery] == ["fixed", "learned", "decoupled"]
    assert [row[0] for row in table] == ["fixed", "learned", "decoupled"]
    assert all(len(row) == 9 for row in table)


@pytest.mark.parametrize("function", ["detect", "compare"])
@pytest.mark.parametrize("picture", [None, "broken"])
def test_a_picture_that_cannot_be_used_is_one_safe_line(demo, tmp_path, function, picture):
    if picture:
        picture = tmp_path / "<b>secret.png"
        picture.write_bytes(b"\x89PNG broken")
    with pytest.raises(gr.Error) as caught:
        getattr(demo, function)(picture, "zipper", "industrial")
    assert "<b>" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_examples_are_bundled_with_their_class():
    examples = app.examples()
    assert [PICTURE, "zipper"] in examples
    assert len(examples) >= 6


def test_endpoints_answer_gradios_client(client):
    text, overlay = client.predict(handle_file(PICTURE), "zipper", "industrial", api_name="/detect")
    assert "image score" in text
    assert Image.open(overlay).size == (448, 448)
    _, _, regions = client.predict(handle_file(PICTURE), "zipper", "industrial", 0.5, api_name="/localize")
    assert regions["headers"][0] == "left"
    gallery, _ = client.predict(handle_file(PICTURE), "zipper", "industrial", api_name="/compare")
    assert len(gallery) == 3


def test_endpoints_refuse_what_is_not_on_offer(client):
    with pytest.raises(AppError):
        client.predict(handle_file(PICTURE), "zipper", "no such domain", api_name="/detect")
