"""What happens on the page's comparison and where good pictures are chosen, without a browser."""

from contextlib import nullcontext
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from tipsomaly import Calibration, Result
from tipsomaly.service.cards import known
from tipsomaly.service.comparison_tab import EMPTY, ComparisonTab
from tipsomaly.service.examples import Examples
from tipsomaly.service.space import Space
from tipsomaly.service.verdict_panel import VerdictPanel

EXAMPLES = Path(__file__).parent.parent / "examples"
TILE = str(EXAMPLES / "pictures" / "tile-defect.jpg")
SETTINGS = ("tile", "industrial", "nano / industrial")


@pytest.fixture(scope="module")
def panels():
    given = Space(), Examples(EXAMPLES), nullcontext
    with gr.Blocks():
        return ComparisonTab(*given), VerdictPanel(*given)


def test_a_comparison_follows_what_is_chosen(panels):
    tab, _ = panels
    inputs = (TILE, *SETTINGS, "", "", None)
    assert tab.refresh(False, None, *inputs) == (EMPTY, None)
    page, shown = tab.refresh(True, None, *inputs)
    assert "the defect" in page and "pixel AUROC" in page  # the mask of an example comes with it
    assert all(answer == gr.skip() for answer in tab.refresh(True, shown, *inputs))
    own, shown = tab.refresh(True, shown, *inputs[:4], "clean", "dirty", None)
    assert '<th scope="row">own</th>' in own and '<th scope="row">own</th>' not in page
    assert tab.refresh(True, shown, None, *inputs[1:])[0] == EMPTY
    half = tab.compare(*inputs[:4], "clean", " ", None)
    assert "when there is one for each state" in half


def test_a_good_example_is_known_to_be_good(panels):
    tab, _ = panels
    page = tab.compare(TILE.replace("defect", "good"), *SETTINGS, "", "", None)
    assert "Nothing is defective here" in page and "pixel AUROC" not in page.split('id="comparison"')[1]


def test_bundled_pictures_give_a_file_for_the_command(panels):
    _, panel = panels
    steps = panel.calibrate_bundled(TILE, 0.1, *SETTINGS)
    calibration, status, file = next(steps)
    assert Calibration.load(file.value["path"] if isinstance(file.value, dict) else file.value) == calibration
    assert (calibration.pictures, calibration.target_fpr) == (10, 0.1)
    assert "just above all but 1 of 10" in status and "--calibration calibration.json" in status
    with pytest.raises(ValueError, match="choose 5 to 20 good pictures; these are 0"):
        next(panel.calibrate(None, 0.1, *SETTINGS))


@pytest.mark.parametrize(
    ("defective", "score", "twin", "said"),
    [
        (True, 1.5, 0.2, "the verdict is right, it is defective. The good one of its pair scores 0.200.</p>"),
        (False, 0.5, None, "the verdict is right, it is good.</p>"),
        (False, 1.5, None, "is wrong, it is good. The threshold is of other products, and what is usual on this one"),
        (True, 0.5, 0.2, "some of which score more than this defect. Good pictures of the product itself would draw"),
        (True, 0.5, 0.6, "The good one of its pair scores 0.600. The model does not see this defect well.</p>"),
    ],
)
def test_of_an_example_it_is_said_why_a_verdict_is_wrong(defective, score, twin, said):
    example = next(each for each in Examples(EXAMPLES).all if (each.mask is not None) is defective)
    patches = np.zeros((2, 2), np.float32)
    result = Result(0, score, patches, 28, 28, (28, 28), "tile", "decoupled", image_threshold=1.0)
    assert said in known(example, result, twin)
