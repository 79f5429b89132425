"""The comparison of prompts on one picture: four cells, a difference and a sentence that follow from the numbers."""

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tipsomaly.detection.result import Result
from tipsomaly.service import comparison
from tipsomaly.service.exports import Comparison

SIZE = 80
TOP_LEFT, BOTTOM_RIGHT = (1, 1), (6, 6)  # patches of 10 pixels


def result(mode, peak, global_score, high=0.8):
    patches = np.full((8, 8), 0.2, np.float32)
    patches[peak] = high
    content = BytesIO()
    Image.new("RGB", (SIZE, SIZE), "grey").save(content, "PNG")
    return Result(0.3, global_score, patches, SIZE, SIZE, (SIZE, SIZE), "nut", mode, source=content.getvalue())


def results(fixed=TOP_LEFT, learned=BOTTOM_RIGHT):
    return {
        "fixed": result("fixed", fixed, 0.5),
        "learned": result("learned", learned, 0.1, 0.9),
        "decoupled": result("decoupled", learned, 0.5, 0.9),
    }


def truth(peak):
    mask = np.zeros((SIZE, SIZE), bool)
    if peak:
        mask[10 * peak[0] : 10 * peak[0] + 10, 10 * peak[1] : 10 * peak[1] + 10] = True
    return mask


def test_the_fourth_cell_has_the_learned_score_and_the_fixed_map():
    found = comparison.cells(results())
    assert list(found) == ["fixed", "decoupled", "reversed", "learned"]
    assert found["reversed"].score == pytest.approx(0.1 + 0.8)
    np.testing.assert_array_equal(found["reversed"].patch_map, found["fixed"].patch_map)
    assert found["decoupled"].score == pytest.approx(0.5 + 0.9)


def test_the_difference_is_signed():
    values = comparison.difference(results())
    assert values[65, 65] > 0.2 and values[15, 15] < -0.2 and abs(values[40, 15]) < 0.01
    picture, most = comparison.difference_picture(Image.new("RGB", (SIZE, SIZE), "grey"), values)
    assert most == np.abs(values).max()
    red, _, blue = np.asarray(picture, int)[65, 65]
    assert red > blue
    red, _, blue = np.asarray(picture, int)[15, 15]
    assert red < blue


@pytest.mark.parametrize(
    ("fixed", "learned", "words"),
    [
        (
            0.1,
            0.9,
            "The fixed prompts' map misses the defect (AUPRO 10.0\xa0%), the learned prompts' finds the defect (",
        ),
        (
            0.9,
            0.4,
            "finds the defect (AUPRO 90.0\xa0%), the learned prompts' finds part of the defect (40.0\xa0%): here d",
        ),
        (0.7, 0.8, "Both maps find the defect (AUPRO 70.0\xa0% fixed, 80.0\xa0% learned). Decoupled takes"),
        (0.2, 0.1, "Both maps miss the defect (AUPRO 20.0\xa0% fixed, 10.0\xa0% learned): here decoupling does harm."),
        (None, None, "Nothing is defective here: the fixed prompts' map reaches 0."),
    ],
)
def test_the_sentence_says_what_the_mask_tells(fixed, learned, words):
    metrics = {"fixed": {"aupro": fixed}, "learned": {"aupro": learned}}
    said = comparison.sentence(Comparison(results(), metrics, truth(None if fixed is None else BOTTOM_RIGHT)))
    assert words in said
    assert said.endswith("picture: 0.50, where the learned ones say 0.10. Its image score is 1.40 of 2.")


def test_without_a_mask_no_map_is_called_right():
    said = comparison.sentence(Comparison(results(), {}))
    assert said.startswith(
        "The fixed prompts' map peaks at the top left, the learned prompts' at the bottom right; without"
    )
    assert comparison.sentence(Comparison(results(TOP_LEFT, TOP_LEFT), {})).startswith("Both maps peak at the top left")


def test_the_page_shows_every_column_and_marks_the_decoupled_one():
    metrics = {"pixel_auroc": 0.75, "aupro": 0.5}
    names = [*results(), "own", "dapo"]
    found = results() | {name: result(name, TOP_LEFT, 0.4) for name in ("own", "dapo")}
    page = comparison.html(Comparison(found, dict.fromkeys(names, metrics), truth(TOP_LEFT)))
    assert len(re.findall('<figure class="decoupled"', page)) == 1
    assert page.count("<img") == page.count('alt="') == 3 + 1 + 2
    assert page.count("1.400<br>decoupled") == 1 and page.count("0.900<br>reversed") == 1
    rows = re.findall(r'<th scope="row">([a-z]+)</th>(.*?)</tr>', page)
    assert [name for name, _ in rows] == ["fixed", "decoupled", "reversed", "learned", "own", "dapo"]
    s1_to_s5 = ["0.300", "0.500", "0.500", "0.400", "1.400"]
    assert re.findall("<td>(.*?)</td>", dict(rows)["decoupled"]) == [*s1_to_s5, "75.0\xa0%", "50.0\xa0%"]
    page = comparison.html(Comparison(found, {}, strategies=("S1", "S5")))  # of a backbone without a spatial token
    rows = dict(re.findall(r'<th scope="row">([a-z]+)</th>(.*?)</tr>', page))
    assert re.findall("<td>(.*?)</td>", rows["decoupled"]) == ["0.300", "1.400"]
    assert re.findall(r'<th scope="col">(S\d)', page) == ["S1", "S5"]


def test_the_papers_tables_are_whole():
    tables = comparison.paper().split('<p class="note">Table')[1:]
    for table, rows, numbers in zip(tables, (3, 3, 5), (8, 8, 4), strict=True):
        assert table.count('<th scope="row">') == rows
        assert len(re.findall("<td( class=.first.)?>[0-9]", table)) == rows * numbers
        assert "the paper, TIPS-L/14-HR" in table
    row = re.search(r'<th scope="row">fixed</th>(.*?)</tr>', tables[0])[1]
    assert re.findall("<td.*?>(.*?)</td>", row) == ["93.4", "96.1", "55.4", "24.6", "87.7", "90.9", "43.1", "11.5"]
