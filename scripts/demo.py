"""A page on this machine to try a cropper: an image and a question in; box, crop and both answers out.

    bash scripts/demo.sh --model_path models/grpo_512 --vqa_model_path HuggingFaceTB/SmolVLM-256M-Instruct

A box that is typed, in percent, or drawn by clicking two of its corners replaces the cropper's.
"""

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for name, value in list(os.environ.items()):
    # An address, a port or a proxy's path that another page was given; a proxy of a kind that no client here can use.
    if name.startswith("GRADIO_") or (name.lower().endswith("_proxy") and value.startswith("socks")):
        del os.environ[name]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
for name in ("NO_PROXY", "no_proxy"):  # the page asks itself whether it is there
    os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))

from PIL import Image  # noqa: E402

from cropvlm.boxes import format_bbox, is_not_needed, parse_bbox  # noqa: E402
from cropvlm.crops import crop_or_full_image, full_and_crop  # noqa: E402
from cropvlm.data.images import image_size, open_image  # noqa: E402
from cropvlm.errors import UserError, one_line  # noqa: E402
from cropvlm.prompts import Prompt, answerer_prompt, clean_answer  # noqa: E402
from cropvlm.runs.cli import ArgumentParser, nonempty, pixels, port, positive, run  # noqa: E402
from cropvlm.runs.drawing import draw_boxes  # noqa: E402
from cropvlm.runs.server import Server, fit_longest_edge  # noqa: E402
from cropvlm.runs.text_models import add_api_flags, server_of  # noqa: E402

CROPPER, ANSWERER = ROOT / "models/miniature_grpo", ROOT / "miniature/models/smolvlm"
WORLD = ROOT / "datasets/miniature"
Ask = Callable[[Prompt], str]  # a prompt to the text that the answerer writes
Crop = Callable[[Image.Image, str], str]  # an image and a question to the text of a box


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model_path", type=nonempty, help="cropper: Hub id or folder (default: the miniature's)")
    add("--vqa_model_path", type=nonempty, default=str(ANSWERER), help="answerer (default: the miniature's SmolVLM)")
    add("--longest_edge", type=pixels, help="pixels at which both see images (default 512; miniature 64)")
    add("--max_new_tokens", type=positive, default=64, help="of an answer (default 64)")
    add("--gpu", type=int, default=0, help="index of the GPU; without one the CPU")
    add("--port", type=port, default=7860, help="of the page on 127.0.0.1 (default 7860)")
    add_api_flags(parser)
    args = parser.parse_args()
    if args.model_path is None and not CROPPER.is_dir():
        raise UserError("the miniature's cropper is not there; run bash scripts/miniature.sh, or give --model_path")
    args.longest_edge = args.longest_edge or (512 if args.model_path else 64)
    return args


def load(path: str, longest_edge: int, gpu: int, max_new_tokens: int) -> Ask:
    """Return a model on this machine; one whose image size cannot be set keeps its own."""
    from cropvlm import generation, modeling

    try:
        processor = modeling.load_processor(path, longest_edge)
    except UserError:  # of a family that resizes images in another way, or nothing is there
        processor = modeling.load_processor(path)
    device, dtype = modeling.device_and_dtype(gpu if gpu >= 0 else None)
    model = modeling.load_model(path, device=device, dtype=dtype)
    ask = functools.partial(generation.generate_texts, model, processor, max_new_tokens=max_new_tokens)
    return lambda prompt: ask([prompt[0]], [prompt[1]])[0]


def ask_server(server: Server, longest_edge: int, prompt: Prompt) -> str:
    """Return the text of the model behind a server, or the reason for its absence."""
    resize = functools.partial(fit_longest_edge, longest_edge=longest_edge)
    ((_, (text,)),) = server.answer_rows([[prompt]], resize)
    return str(text)


def answer(cropper: Crop, answerer: Ask, image: Image.Image | str | None, question: str, box: str) -> tuple:
    """Return the image with its box, the crop, the box's text (empty: the cropper's), both answers with seconds."""
    if image is None or not question.strip():
        raise ValueError("an image and a question are needed")
    image, start = open_image(image), time.perf_counter()
    box = box if box.strip() else cropper(image, question)
    texts, seconds = [], time.perf_counter() - start
    crop, valid = crop_or_full_image(image, box)
    for images in ([image], full_and_crop(image, box)):
        start = time.perf_counter()
        text = clean_answer(answerer(answerer_prompt(question, images)))
        texts.append(f"{text}\n({time.perf_counter() - start:.2f} s)")
    texts[1] += f" and {seconds:.2f} s for the box"
    marked = draw_boxes(image, [(parse_bbox(box), "red")] if valid else [], width=max(2, max(image.size) // 200))
    used = box if valid or is_not_needed(box) else f"{box} (invalid: the full image is shown again)"
    return marked, crop, used, *texts


def add_corner(corners: list, x: float, y: float) -> tuple[list, str]:
    """Return the corners clicked so far (percent) and, of two of them, the text of their box."""
    corners = [*corners, (round(x), round(y))] if len(corners) == 1 else [(round(x), round(y))]
    (x1, x2), (y1, y2) = (sorted((corners[0][i], corners[-1][i])) for i in (0, 1))
    return corners, format_bbox((x1, y1, x2, y2)) if len(corners) == 2 else ""


def build(cropper: Crop, answerer: Ask, examples: list):
    """Return the page, a `gradio.Blocks`. examples: [image, question] of each."""
    import gradio as gr

    def submit(image, question, box):
        try:
            return answer(cropper, answerer, image, question, box)
        except (ValueError, UserError) as error:
            raise gr.Error(str(error)) from error

    def click(image, corners, event: gr.SelectData):
        x, y = (100 * place / side for place, side in zip(event.index, image_size(image), strict=True))
        return add_corner(corners, x, y)

    with gr.Blocks(title="CropVLM", analytics_enabled=False) as page:
        gr.Markdown("# CropVLM\nA small model chooses where to look. Click two corners on the image to draw a box.")
        corners = gr.State([])
        with gr.Row():
            # The file as it was sent: gradio's own reading shows transparency black and 16-bit grey white.
            as_sent = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
            image = gr.Image(label="image", buttons=["fullscreen"], **as_sent)
            with gr.Column():
                question = gr.Textbox(label="question")
                box = gr.Textbox(label="box: [x1, y1, x2, y2] in percent; empty: the cropper's")
                button = gr.Button("answer", variant="primary")
                with gr.Row():
                    answers = [gr.Textbox(label=label) for label in ("without the crop", "with the crop")]
                used = gr.Textbox(label="box used")
        with gr.Row():
            outputs = [gr.Image(label=label, buttons=["fullscreen", "download"]) for label in ("box", "crop")]
        outputs += [used, *answers]
        gr.on([button.click, question.submit, box.submit], submit, [image, question, box], outputs, api_name="answer")
        image.select(click, [image, corners], [corners, box], api_name=False)
        image.change(lambda: ([], ""), None, [corners, box], api_name=False)
        if examples:
            gr.Examples(examples, [image, question], cache_examples=False)
    return page


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="cropvlm_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the default one may be another user's
        serve(args)


def serve(args: argparse.Namespace) -> None:
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError(f"{error}; bash scripts/demo.sh installs what the page needs and starts it") from error

    from cropvlm import Cropper
    from cropvlm.data.rows import load_rows
    from cropvlm.modeling import device_and_dtype

    rows = load_rows(WORLD, "test", max_samples=6) if WORLD.is_dir() else []
    examples = [[open_image(row["image"]), row["question"]] for row in rows]
    device, dtype = device_and_dtype(args.gpu)
    cropper = Cropper(args.model_path or str(CROPPER), None, args.longest_edge, device, dtype)
    server, own = server_of(args), (args.vqa_model_path, args.longest_edge, args.gpu, args.max_new_tokens)
    answerer = functools.partial(ask_server, server, args.longest_edge) if server else load(*own)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no font from elsewhere
    page = build(lambda image, question: cropper.texts([image], [question])[0], answerer, examples)
    try:
        page.launch(server_name="127.0.0.1", server_port=args.port, theme=theme, share=False)
    except OSError as error:
        raise UserError(f"--port {args.port} cannot be used ({one_line(error)}); name another one") from error


if __name__ == "__main__":
    run(main)
