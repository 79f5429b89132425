"""The page in a real browser, on the bundled model: Debian's chromium, driven by playwright."""

import re
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tipsomaly import Pipeline
from tipsomaly.service.space import Space

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import app  # noqa: E402

PICTURE = ROOT / "examples" / "pictures" / "zipper-1.jpg"
TABS = ("Detection", "Localization", "Prompt comparison", "Batch", "About")
FOLDS = "details:not([open]) > summary, button.label-wrap:not(.open)"
COVERED = """[...document.querySelectorAll(".block > label.float")].filter(label => {
  const bottom = label.getBoundingClientRect().bottom;
  return [...label.parentElement.querySelectorAll("img")].some(image => image.getBoundingClientRect().top < bottom - 1
    && image.offsetParent && label.offsetParent);
}).map(label => label.innerText)"""  # labels that lie over their picture
WIDE = pytest.mark.parametrize("width", [1440], ids=["wide"])
NARROW = pytest.mark.parametrize("width", [390], ids=["narrow"])
BOTH = pytest.mark.parametrize("width", [1440, 390], ids=["wide", "narrow"])
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]


@pytest.fixture(scope="module")
def space():
    return Space()


@pytest.fixture(scope="module")
def url(space):
    blocks, address = app.launch(space, block=False)
    yield address
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    """One visitor, so that the page's scripts are fetched and compiled once."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium.new_context()
        chromium.close()


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained()


@pytest.fixture
def page(browser, url, width):
    """A fresh page; no test may leave an error on the console."""
    tab = browser.new_page()
    tab.set_viewport_size({"width": width, "height": 900})
    tab.set_default_timeout(60_000)
    problems = []
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto(url)
    tab.locator("#score-card").wait_for()  # it opens on an example
    yield tab
    tab.close()
    assert not problems


def upload(page, path=PICTURE):
    page.locator("#picture input[type=file]").set_input_files(path)
    page.locator("#score-card").get_by_text("of 2 · object").wait_for()  # not the example's class


OPAQUE = """() => {
  for (let each = document.querySelector("#comparison"); each; each = each.parentElement)
    if (getComputedStyle(each).opacity != 1) return false;
  return true;
}"""


@BOTH
def test_detection_then_localization(page, pipe):
    upload(page)
    name = page.get_by_label("What is on it?")
    name.fill("zipper")
    name.press("Enter")
    page.get_by_role("button", name="Inspect").click()
    page.get_by_text("of 2 · zipper").wait_for()
    result = pipe(PICTURE, "zipper")
    assert f"{result.score:.3f}" in page.locator("#score-card").inner_text()
    assert page.get_by_text("Closest for abnormal").is_visible()

    page.get_by_role("tab", name="Localization").click()
    slider = page.locator("#threshold input[type=number]")
    peak = float(result.anomaly_map.max())
    for threshold in (round(0.3 * peak, 2), round(0.8 * peak, 2)):
        slider.fill(str(threshold))
        slider.press("Enter")
        area = result.regions(threshold)[0].area
        page.locator("#regions tr[data-region='1'] td:nth-of-type(2)", has_text=re.compile(f"^{area}$")).wait_for()
    until, row = time.monotonic() + 20, page.locator("#regions tr[data-region='1'] button")
    while page.locator("#regions rect.on").count() != 2:  # on the picture and on the mask
        assert time.monotonic() < until
        row.blur()  # what Inspect asked for may come only now, and is drawn anew
        row.focus()
    page.get_by_role("button", name="Make files").focus()
    page.locator("#regions rect[data-region='1']").first.hover()
    sync_api.expect(page.locator("#regions tr.on button")).to_have_text("1")
    page.get_by_role("button", name="Make files").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="map.npy").or_(page.get_by_role("button", name="map.npy")).first.click()
    assert download.value.suggested_filename == "map.npy"


@WIDE
def test_the_page_opens_on_an_inspected_example_and_shows_the_method(page, pipe):
    card = page.locator("#score-card")
    card.get_by_text("Concrete floor with an oil stain").wait_for()
    result = pipe(PICTURE.parent / "concrete-defect.jpg", "concrete")
    assert f"{result.score:.3f}" in card.inner_text()
    assert page.get_by_label("What is on it?").input_value() == "concrete"
    pictures = page.locator("#picture img, [role=tabpanel] img").filter(visible=True)
    pictures.nth(1).wait_for()

    page.get_by_role("tab", name="About").click()
    page.get_by_text("The method in five sentences").wait_for()
    assert page.get_by_text("its results are not the paper's").is_visible()


@NARROW
def test_an_example_is_one_click_to_a_verdict_and_a_comparison_with_its_mask(page, pipe):
    page.locator("#examples button").filter(has_text="Floor tiles with a crack").click()
    page.get_by_text("of 2 · tile. Above").wait_for()
    for result in (page.locator("#score-card .verdict"), page.locator("#overlay img")):
        sync_api.expect(result).to_be_in_viewport(ratio=0.99, timeout=60_000)  # brought there, not scrolled by hand
    page.get_by_role("tab", name="Prompt comparison").click()
    said = page.locator("#comparison .said")
    found = pipe.compare(PICTURE.parent / "tile-defect.jpg", "tile")
    said.get_by_text(f"Its image score is {found['decoupled'].score:.2f}").wait_for()
    assert page.locator("#comparison img").count() == len(found) + 1  # the difference
    assert page.get_by_text("not measured here").is_visible()
    page.get_by_role("button", name="Try: Stained").click()
    page.locator("#comparison th", has_text="own").wait_for()
    page.get_by_role("button", name="A ground-truth mask").click()
    page.locator("#truth input[type=file]").set_input_files(ROOT / "examples" / "masks" / "tile-defect.png")
    page.locator("#truth img").wait_for()

    page.locator("#examples button").filter(has_text="T-shirt with a coffee stain").click()  # all of it follows
    found = pipe.compare(PICTURE.parent / "shirt-defect.jpg", "shirt")
    said.get_by_text(f"Its image score is {found['decoupled'].score:.2f}").wait_for()
    sync_api.expect(page.locator("#truth img")).to_have_count(0)  # of the picture before
    page.get_by_role("tab", name="Detection").click()
    page.get_by_text("of 2 · shirt").wait_for()


@WIDE
def test_good_pictures_give_a_verdict(page, tmp_path):
    picture, goods = Image.open(PICTURE.parent / "tile-good.jpg"), [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(goods):
        picture.crop((40 * i, 0, 40 * i + 300, 300)).save(path)
    picture.crop((100, 200, 400, 500)).save(tmp_path / "next.png")
    upload(page, tmp_path / "next.png")
    page.get_by_text("No verdict yet").wait_for()
    page.get_by_role("tab", name="Localization").click()
    sync_api.expect(page.locator("#threshold input[type=number]")).to_have_value("0.5")  # no longer the example's
    page.get_by_role("tab", name="Detection").click()
    page.get_by_role("button", name="A verdict of your own").click()
    page.locator("#goods input[type=file]").set_input_files(goods)
    page.locator("#goods").get_by_text("4").first.wait_for()
    page.get_by_role("button", name="Use these good pictures").click()
    page.locator("#score-card").get_by_text("of 5 good pictures").first.wait_for()
    page.get_by_role("button", name="Forget them").click()
    page.get_by_text("No verdict yet").wait_for()


@NARROW
def test_a_broken_upload_is_one_line(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(PICTURE.read_bytes()[:3000])
    page.locator("#picture input[type=file]").set_input_files(broken)
    message = page.get_by_text("This picture cannot be used")
    message.wait_for()
    assert str(tmp_path) not in message.inner_text()


@WIDE
def test_batch_table(page, pipe, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    names = ["wood-defect.jpg", "zipper-2.jpg"]
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.write(PICTURE.parent / names[1], "<img src=x onerror='window.harmed = true'>.jpg")
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch input[type=file]").set_input_files([PICTURE.parent / names[0], hostile, broken])
    page.locator("#batch").get_by_text("broken").first.wait_for()
    sync_api.expect(page.get_by_label("What is on it?")).to_have_value("object")  # no longer the example's class
    page.get_by_role("button", name="Score the batch").click()
    page.get_by_text("2 pictures scored").wait_for()
    page.get_by_text("not a picture in a known format").wait_for()
    found = pipe([PICTURE.parent / name for name in names], "object")
    scores = sorted((result.score for result in found), reverse=True)
    table = page.locator("#scores tr[data-score]")
    assert [line.split()[0] for line in table.locator("td:nth-child(2)").all_inner_texts()] == [
        f"{score:.3f}" for score in scores
    ]
    threshold = page.get_by_label("Threshold of the score")
    assert page.get_by_text("1 of 2 pictures score at least").is_visible()
    threshold.press("Home")  # the browser's alone
    assert page.get_by_text("2 of 2 pictures score at least").is_visible()
    assert table.locator(".judged").all_inner_texts() == ["reached"] * 2
    with page.expect_download() as download:
        page.locator("a[download='scores.csv']").first.click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert text.splitlines()[0] == "picture,score,global,local,verdict,error"
    assert "<img src=x" in text
    assert not page.evaluate("window.harmed")  # names are text, never HTML
    table.locator("button").last.click()
    sync_api.expect(page.get_by_role("tab", name="Localization")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Detection").click()
    page.locator("#score-card").get_by_text(f"{scores[1]:.3f} of 2 · object").wait_for()
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch").get_by_label("Clear").click()
    page.get_by_text("The scores appear here").wait_for()  # nothing of other files stays
    page.locator("#examples button").first.click()  # whose result comes into view
    sync_api.expect(page.get_by_role("tab", name="Detection")).to_have_attribute("aria-selected", "true")


@WIDE
def test_good_pictures_of_a_batch_judge_it(page, tmp_path):
    good, paths = Image.open(PICTURE.parent / "tile-good.jpg"), [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        good.crop((40 * i, 0, 40 * i + 300, 300)).save(path)
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch input[type=file]").set_input_files([*paths, PICTURE.parent / "tile-defect.jpg"])
    page.locator("#batch a[href*='tile-defect']").wait_for()
    page.get_by_role("button", name="Score the batch").click()
    page.get_by_text("6 pictures scored").wait_for()
    judge = page.get_by_role("button", name="Judge by them")
    assert judge.is_disabled()
    below, boxes = page.get_by_role("button", name="Tick those below"), page.locator("#scores input[type=checkbox]")
    page.locator("#scores").evaluate("each => { each.dataset.goods = '2 3'; }")
    below.click()
    assert [box.is_checked() for box in boxes.all()] == [False, True, True, False, True, False]  # evenly spread
    page.locator("#scores").evaluate("each => { each.dataset.goods = '5 20'; }")
    below.click()
    page.get_by_text("5 ticked as good").wait_for()
    page.get_by_label("4.png is good").uncheck()
    assert judge.is_disabled()
    page.get_by_label("4.png is good").check()
    judge.click()
    output = page.locator("#scores output")
    sync_api.expect(output).to_contain_text("1 of 6 pictures")
    sync_api.expect(page.locator("#scores input[type=checkbox]:checked")).to_have_count(0)  # it was scored again
    highest = page.locator("#scores tr[data-score]").nth(1).get_attribute("data-score")
    assert f"{float(highest):.3f}" in output.inner_text()  # just above all good ones
    page.get_by_role("tab", name="Detection").click()
    page.locator("#score-card").get_by_text("of 5 good pictures").first.wait_for()


@NARROW
def test_a_batch_ends_with_the_visit(page, space, tmp_path, monkeypatch):
    pictures, scored, rows = 150, [], space._rows
    monkeypatch.setattr(space, "_rows", lambda chunk, *given: scored.append(len(chunk)) or rows(chunk, *given))
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for i in range(pictures):
            archive.write(PICTURE, f"{i}.jpg")
    page.get_by_role("tab", name="Batch").click()
    page.locator("#batch input[type=file]").set_input_files(tmp_path / "many.zip")
    page.locator("#batch a[href*='many.zip']").wait_for()  # it is there
    page.get_by_role("button", name="Score the batch").click()
    page.get_by_text(f"of {pictures} pictures, about").first.wait_for()
    page.close()
    before = 0
    while (now := sum(scored)) > before:  # a few come between the visitor's leaving and the server's noticing
        before = now
        time.sleep(3)
    assert 0 < before < pictures


@BOTH
def test_pictures_keep_their_size_and_nothing_is_wider_than_the_page(page, tmp_path):
    path = tmp_path / "wide.png"
    Image.open(PICTURE).resize((600, 200)).save(path)
    upload(page, path)
    picture = page.get_by_role("tabpanel").locator("img:visible").first
    picture.wait_for()
    natural = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert natural == [600, 200]
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.wait_for_function(f"{COVERED}.length == 0")  # once all is drawn


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_nothing_of_ours_shuts_a_visitor_out(browser, url, scheme, width):
    """WCAG 2.1 A and AA, as far as axe can tell, with everything unfolded."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{url}?__theme={scheme}")
    page.locator("#score-card").wait_for()
    page.get_by_alt_text("Anomaly map of the concrete").wait_for()  # it says the result
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        page.evaluate(f"document.querySelectorAll('{FOLDS}').forEach(fold => fold.click())")
        if name == "Prompt comparison":
            page.locator("#comparison img").first.wait_for()
            page.wait_for_function(OPAQUE)  # what is being made again is pale until it is there
        elif name == "Batch":
            page.locator("#batch input[type=file]").set_input_files([PICTURE, PICTURE.parent / "wood-good.jpg"])
            page.locator("#batch a[href*='wood-good']").wait_for()
            page.get_by_role("button", name="Score the batch").click()
            page.get_by_role("button", name="Tick those below").click()
        elif name == "Detection":
            page.get_by_role("button", name="Use the bundled good examples").click()
            page.locator("#trust pre").wait_for()
        page.wait_for_function("document.getAnimations().every(each => each.playState != 'running')")
        context = {"include": "body" if name == TABS[0] else "[role=tabpanel]", "exclude": [".empty", "#batch"]}
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        found = axe.run(page, context, {"runOnly": tags, "resultTypes": ["violations"]}).response["violations"]
        assert not [(each["id"], node["html"]) for each in found for node in each["nodes"]], name
    page.close()
