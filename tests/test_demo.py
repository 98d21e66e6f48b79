"""The demo: what the page answers, with models that answer at once; the page itself where gradio is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cropper(prompt) -> str:
    return "[0, 0, 50, 50]."


def answerer(prompt) -> str:
    """Answers with the sizes of the images that it sees."""
    return " ".join(f"{image.width}x{image.height}" for image in prompt[1]) + "."


IMAGE = Image.new("RGB", (200, 100))


def test_the_croppers_box(demo):
    marked, crop, box, without, with_crop = demo.answer(cropper, answerer, IMAGE, "What?", "")
    assert marked.getpixel((99, 20)) == (255, 0, 0)  # the right side of the box, 2 px wide
    assert crop.size == (100, 50)
    assert box == "[0, 0, 50, 50]."
    assert without.startswith("200x100\n(")
    assert with_crop.startswith("200x100 100x50\n(")
    assert IMAGE.getpixel((99, 20)) == (0, 0, 0)


def test_a_typed_box_replaces_the_croppers(demo):
    _, crop, box, *_ = demo.answer(None, answerer, IMAGE, "What?", "[50, 50, 60, 60]")
    assert (crop.size, box) == ((20, 10), "[50, 50, 60, 60]")


def test_an_invalid_box_shows_the_full_image(demo):
    marked, crop, box, _, with_crop = demo.answer(cropper, answerer, IMAGE, "What?", "somewhere")
    assert crop.size == IMAGE.size
    assert box == "somewhere (invalid: the full image is shown again)"
    assert with_crop.startswith("200x100 200x100")


@pytest.mark.parametrize(("image", "question"), [(None, "What?"), (IMAGE, " ")], ids=["no image", "no question"])
def test_what_is_missing_is_said(demo, image, question):
    with pytest.raises(ValueError, match="an image and a question are needed"):
        demo.answer(cropper, answerer, image, question, "")


def test_two_clicks_draw_a_box_and_a_third_begins_another(demo):
    corners, box = demo.add_corner([], 60.4, 20)
    assert box == ""
    corners, box = demo.add_corner(corners, 10, 80)
    assert box == "[10, 20, 60, 80]."
    corners, box = demo.add_corner(corners, 1, 2)
    assert (corners, box) == ([(1, 2)], "")


def test_without_a_model_it_says_what_to_run(tmp_path):
    for name in ("cropvlm", "scripts"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "demo.py").write_text((ROOT / "scripts" / "demo.py").read_text())
    (tmp_path / "cropvlm").rmdir()
    (tmp_path / "cropvlm").symlink_to(ROOT / "cropvlm")
    call = [sys.executable, tmp_path / "scripts" / "demo.py"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run bash scripts/miniature.sh, or give --model_path" in done.stderr


def test_the_page_answers_its_client(demo, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed (bash scripts/demo.sh installs it)")
    from gradio_client import Client, handle_file

    page = demo.build(cropper, answerer, [[IMAGE, "What?", ""]])
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        IMAGE.save(tmp_path / "image.png")
        client = Client(url, verbose=False)
        result = client.predict(handle_file(tmp_path / "image.png"), "What?", "", api_name="/answer")
        assert result[2] == "[0, 0, 50, 50]."
        assert result[4].startswith("200x100 100x50")
    finally:
        page.close()
