"""The report's page in a real browser: filters, search, keyboard, no script error, no request, text that stays text."""

import json
from pathlib import Path

import numpy as np
import pytest
from browsers import find, press, requested_urls
from PIL import Image
from reporting_worlds import write_answers, write_boxes, write_rows

from cropvlm.runs import scoring
from reporting import results
from reporting.examples import CROP_SIDE, IMAGE_SIDE, PICTURE_BYTES, data_uri
from reporting.report import compare_files, write

EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
BOXES = ["[0, 0, 50, 50].", "[50, 50, 100, 100].", "no box", "[10, 10, 20, 20].", "[0, 0, 100, 100].", ""]
COUNT = len(BOXES)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page of six questions: rows 0 and 1 better, 2 worse, 3 to 5 equal; 2 and 5 have no valid box."""
    folder = tmp_path_factory.mktemp("page") / "a <b>&'evil' folder"
    folder.mkdir()
    rows = folder / "rows"
    ids = [f"{EVIL}{i}" for i in range(COUNT)]
    questions = [f"What about {color}? {EVIL}" for color in ("red", "green", "blue", "pink", "teal", "grey")]
    write_rows(rows, COUNT, question_id=ids, question=questions, answers=[["yes", f"{EVIL} as a reference"]] * COUNT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "RESAMPLES", 100)
        results._load_rows.cache_clear()
        for name, answers, boxes in (
            ("before", ["no", EVIL, "yes", "yes", "no", ""], None),
            ("after <i>", ["yes", "yes", EVIL, "yes", "no", ""], BOXES),
        ):
            if boxes:
                write_boxes(folder / f"{name}_bbox.json", boxes, EVIL, str(rows))
            write_answers(folder / f"{name}_answers.json", answers, str(rows), answerer=EVIL, boxes=boxes)
        for file in folder.glob("*.json"):
            if not file.name.endswith(".meta.json"):
                records = json.loads(file.read_text())
                named = [record | {"question_id": ids[record["question_id"]]} for record in records]
                file.write_text(json.dumps(named))
        made = compare_files(folder / "after <i>_answers.json", folder / "before_answers.json")
        write(made, folder / "out", example_count=300)
    return folder / "out" / "report.html"


@pytest.fixture
def opened(browser, page):
    """The page, loaded anew."""
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(page.as_uri())
    return browser


def visible(browser) -> list[str]:
    """The colors of the questions that are shown, in order."""
    script = "return [...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => c.innerText)"
    colors = ("red", "green", "blue", "pink", "teal", "grey")
    return [next(color for color in colors if color in text) for text in browser.execute_script(script)]


def test_nothing_is_requested_and_no_script_fails(opened):
    press(opened, "/", "green")
    find(opened, ".card:not([hidden])").click()
    urls = requested_urls(opened)
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in urls if url.startswith("file:")]) == 1  # the page itself
    assert opened.get_log("browser") == []


def test_all_text_stays_text(opened):
    assert "taken" not in opened.title
    assert opened.execute_script("return document.querySelectorAll('script, [onerror], b, i:not([style])').length") == 1
    find(opened, ".card").click()
    assert opened.execute_script("return document.querySelectorAll('script, [onerror]').length") == 1
    assert EVIL in find(opened, "#opened h3").text
    assert f"id\n{EVIL}0" in find(opened, "#opened").text
    assert "taken" not in opened.title


def test_filters_and_their_count(opened):
    everything = ["red", "green", "pink", "teal", "grey", "blue"]  # the largest gain first
    assert visible(opened) == everything
    expected = {
        "better": ["red", "green"],
        "worse": ["blue"],
        "equal": ["pink", "teal", "grey"],
        "invalid box": ["grey", "blue"],
        "all": everything,
    }
    for name, colors in expected.items():
        button = find(opened, f"[data-filter='{name}']")
        button.click()
        assert visible(opened) == colors
        assert button.get_attribute("aria-pressed") == "true"
        assert find(opened, "#count").text == f"{len(colors)} of 6 questions"


def test_order_and_search_in_questions_and_answers(opened):
    from selenium.webdriver.support.ui import Select

    Select(find(opened, "#order")).select_by_value("loss")
    assert visible(opened) == ["blue", "pink", "teal", "grey", "red", "green"]
    find(opened, "h1").click()
    press(opened, "/", "NO")
    assert set(visible(opened)) == {"red", "blue", "teal"}  # "no" was answered, or "no box"
    find(opened, "[data-filter='better']").click()
    assert visible(opened) == ["red"]
    find(opened, "#search").send_keys(" RED about")
    assert visible(opened) == ["red"]


def test_keyboard(opened):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    opened.execute_script("document.querySelector('.card').focus()")
    press(opened, Keys.ARROW_RIGHT, Keys.ENTER)
    dialog = find(opened, "dialog")
    assert dialog.get_attribute("open") is not None
    assert "green" in find(opened, "#opened h3").text
    press(opened, Keys.ARROW_RIGHT)
    assert "pink" in find(opened, "#opened h3").text
    press(opened, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert "red" in find(opened, "#opened h3").text  # the first: no further
    press(opened, Keys.ESCAPE)
    assert dialog.get_attribute("open") is None
    # Where it was; the browser announces the closing a moment later.
    assert WebDriverWait(opened, 10).until(lambda browser: "red" in browser.switch_to.active_element.text)


def test_the_box_lies_where_it_is(opened):
    script = """
        const card = [...document.querySelectorAll('.card')].find(c => c.innerText.includes('green'));
        const [image, box] = ['img', '.marked i'].map(s => card.querySelector(s).getBoundingClientRect());
        return [(box.left - image.left) / image.width, (box.top - image.top) / image.height, box.width / image.width];
    """
    assert opened.execute_script(script) == pytest.approx([0.5, 0.5, 0.5], abs=0.02)


def test_a_phone_needs_no_sideways_scrolling(opened):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_300_examples_fit_into_20_megabytes():
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), np.uint8)  # compresses worst
    sizes = {side: len(data_uri(Image.fromarray(noise), side)) for side in (IMAGE_SIDE, CROP_SIDE)}
    assert all(size <= PICTURE_BYTES[side] * 4 / 3 + 30 for side, size in sizes.items())
    assert 300 * (sum(sizes.values()) + 2000) < 20e6
    assert len(data_uri(Image.new("RGB", (4, 4)), IMAGE_SIDE)) < 1500  # a small one is not enlarged
