"""The demo: what the page answers, with models that answer at once; then the page itself, in a browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import find, requested_urls
from PIL import Image

from cropvlm.boxes import parse_bbox
from scripts import demo

ROOT = Path(__file__).resolve().parents[1]


def answerer(prompt) -> str:
    """Answers with the sizes of the images that it sees."""
    return " ".join(f"{image.width}x{image.height}" for image in prompt[1]) + "."


IMAGE = Image.new("RGB", (200, 100))


# Box of the cropper (none: it is not asked), box typed, size of the crop, box shown, images of the second answer
BOXES = {
    "cropper": ("[0, 0, 50, 50].", "", (100, 50), "[0, 0, 50, 50].", "200x100 100x50"),
    "typed": (None, "[50, 50, 60, 60]", (20, 10), "[50, 50, 60, 60]", "200x100 20x10"),
    "invalid": ("here", "", (200, 100), "here (invalid: the full image is shown again)", "200x100 200x100"),
    "no crop": ("Not needed.", "", (200, 100), "Not needed.", "200x100"),
}


@pytest.mark.parametrize(("written", "typed", "size", "used", "images"), BOXES.values(), ids=BOXES)
def test_a_box_leads_to_a_crop_and_two_answers(written, typed, size, used, images):
    cropper = written and (lambda image, question: written)
    _, crop, box, without, with_crop = demo.answer(cropper, answerer, IMAGE, "What?", typed)
    assert (crop.size, box) == (size, used)
    assert without.startswith("200x100\n(")
    assert with_crop.startswith(f"{images}\n(")
    for image, question in ((None, "What?"), (IMAGE, " ")):
        with pytest.raises(ValueError, match="an image and a question are needed"):
            demo.answer(cropper, answerer, image, question, typed)


def test_the_box_is_drawn_on_a_copy_of_the_file_as_the_pipeline_opens_it(tmp_path):
    Image.new("RGBA", (200, 100), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    marked, crop, *_ = demo.answer(None, answerer, str(tmp_path / "transparent.png"), "What?", "[0, 0, 50, 50]")
    assert marked.getpixel((99, 20)) == (255, 0, 0)  # the right side of the box, 2 px wide
    assert crop.getpixel((99, 20)) == (255, 255, 255)  # on white, not on black


def test_two_clicks_draw_a_box_and_a_third_begins_another():
    corners, box = demo.add_corner([], 60.4, 20)
    assert box == ""
    corners, box = demo.add_corner(corners, 10, 80)
    assert box == "[10, 20, 60, 80]."
    corners, box = demo.add_corner(corners, 1, 2)
    assert (corners, box) == ([(1, 2)], "")


def beside_the_package(folder: Path) -> Path:
    """The script, in a folder without the miniature's models."""
    (folder / "scripts").mkdir()
    (folder / "cropvlm").symlink_to(ROOT / "cropvlm")
    return shutil.copy(ROOT / "scripts/demo.py", folder / "scripts")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "run bash scripts/miniature.sh, or give --model_path"),
        (["--model_path", "m"], "bash scripts/demo.sh installs what the page needs"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, flags, problem):
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio here')")
    call = [sys.executable, beside_the_package(tmp_path), *flags]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert problem in done.stderr


# The page in earnest: started as a user does, without flags, in a folder that looks like one after the miniature.
GRADIO = Path(os.environ.get("CROPVLM_DEMO_PYTHON", ROOT / ".venv/demo/bin/python3"))  # made by scripts/demo.sh


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_smolvlm, tiny_world) -> Iterator[str]:
    """Where the demo listens: a random cropper, whose boxes are invalid, and the miniature's answerer."""
    if not GRADIO.exists():
        pytest.skip("gradio is not installed (bash scripts/demo.sh --help installs it)")
    folder = tmp_path_factory.mktemp("demo")
    for name in ("models", "datasets"):
        (folder / name).mkdir()
    script, sources = beside_the_package(folder), {"miniature": ROOT / "miniature"}
    sources |= {"models/miniature_grpo": tiny_smolvlm, "datasets/miniature": tiny_world}
    for name, source in sources.items():
        (folder / name).symlink_to(source)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "log"
    # As on a shared machine behind a proxy: another user's folder of gradio, and variables that other pages were given.
    (folder / "gradio").touch()
    environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
    environment |= {"TMPDIR": str(folder), "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    environment |= {"GRADIO_SERVER_PORT": "1", "GRADIO_SHARE": "True", "GRADIO_ROOT_PATH": "/proxy"}
    with log.open("w") as file:
        call = [GRADIO, script, "--port", str(port)]
        process = subprocess.Popen(call, stdout=file, stderr=file, env=environment)
    try:
        end = time.monotonic() + 120
        while "Running on local URL" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_the_demo_in_a_browser(address, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition())

    def text(label: str):
        """The text box with a label that begins so."""
        labels = browser.find_elements("css selector", "label")
        (found,) = [each for each in labels if each.text.startswith(label)]
        return found.find_element("css selector", "textarea, input")

    def value(label: str) -> str:
        return text(label).get_attribute("value")

    def shown_pictures() -> list:
        """(width, height) of the pictures that have been loaded: the input, and after an answer box and crop."""
        script = "return [...document.querySelectorAll('.image-frame img, .image-container img')]"
        script += ".filter(i => i.complete && i.naturalWidth).map(i => [i.naturalWidth, i.naturalHeight])"
        return browser.execute_script(script)

    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address)
    wait(lambda: browser.find_elements("css selector", "tr.tr-body"))[1].click()  # an example
    wait(lambda: value("question"))
    wait(shown_pictures)
    (button,) = [each for each in browser.find_elements("css selector", "button") if each.text == "answer"]
    button.click()
    wait(lambda: value("box used").endswith("(invalid: the full image is shown again)"))
    assert re.search(r"\(\d+\.\d\d s\)$", value("without the crop"))
    assert re.search(r"s for the box$", value("with the crop"))

    # Typed.
    text("box: [").send_keys("[50, 50, 100, 100]", Keys.ENTER)
    wait(lambda: value("box used") == "[50, 50, 100, 100]")
    wait(lambda: len(shown_pictures()) == 3)
    (width, height), _, crop = shown_pictures()
    assert crop == pytest.approx([width / 2, height / 2], abs=1)

    # Drawn by two clicks, at a quarter and at half of the sides.
    image = find(browser, ".image-frame img, .image-container img")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    for share in (0.25, 0.5):
        offset = [round((share - 0.5) * image.size[side]) for side in ("width", "height")]
        ActionChains(browser).move_to_element_with_offset(image, *offset).click().perform()
        time.sleep(0.5)
    wait(lambda: parse_bbox(value("box: [")))
    assert parse_bbox(value("box: [")) == pytest.approx((25, 25, 50, 50), abs=2)
    button.click()
    wait(lambda: value("box used") == value("box: ["))

    assert [url for url in requested_urls(browser) if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
