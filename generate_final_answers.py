"""Step 5: any frozen VLM answers from [full image, crop] and from the full image alone.

    python3 generate_final_answers.py --bbox predictions/textvqa_bbox.json
    OPENAI_API_KEY=... python3 generate_final_answers.py --bbox predictions/textvqa_bbox.json \\
        --api_model gpt-4.1-nano --longest_edge 512

writes predictions/{name}_cropvlm_answers.json and predictions/{name}_base_answers.json. Data set, split and number of
rows are read from the box file's meta unless flags say otherwise; a data set that has changed since is refused. An
invalid box is answered with the full image in the crop's place, and counted; `Not needed.` is answered from the full
image alone. The same command continues an interrupted run, asks failed rows again, and does nothing where models, boxes
and data are those of a finished one. Exit code 3: complete, but for some images that could not be read, or prompts that
the server rejected; the meta files name them. On several GPUs: accelerate launch generate_final_answers.py ... (exit
codes 2 and 3 become 1)

SmolVLM sees images at 512 px unless --longest_edge says otherwise, as the reward VLM does in training; its processor
alone would make it 2048 px. Qwen2.5-VL sees an image at a number of pixels: --max_pixels alone leaves a small crop
small, --min_pixels enlarges it.

With --api_model a model behind an OpenAI-compatible server answers (--api_base: vLLM, SGLang, transformers serve; by
default OpenAI's own, which has GPT-4.1 nano, by notes on the paper one of its answerers). It sees the pictures at
--longest_edge. What it refuses to answer is an empty answer.

--controls answers with something else in the crop's place (`cropvlm/runs/controls.py` says what each isolates), one
file each, predictions/{name}_{control}_answers.json; the report splits the crop's gain by them. A control may leave
rows out: its meta file names them.

Differences from the released experiment: both answers of a question share one preprocessing and one encoding of the
full image; boxes are joined to rows on question_id.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from cropvlm.boxes import decide, is_not_needed, parse_bbox
from cropvlm.data.catalog import dataset_name
from cropvlm.data.rows import benchmark_for, load_rows
from cropvlm.errors import UserError
from cropvlm.prompts import BRIEF_ANSWER, answerer_messages, clean_answer
from cropvlm.runs.cli import ArgumentParser, finite, nonempty, pixels, positive, run, start_logging
from cropvlm.runs.controls import CONTROLS, control_boxes
from cropvlm.runs.predictions import PredictionFile, check_output, check_same_data, join_on_question_id, read_file
from cropvlm.runs.prompt_sources import BASE, CROPVLM, AnswerPrompts
from cropvlm.runs.provenance import hash_of, row_keys
from cropvlm.runs.run import Job, Run
from cropvlm.runs.text_models import TextModel, add_common_flags, answerer, check_model_flags, data_sources

MODES = (BASE, CROPVLM)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--bbox", type=nonempty, nargs="+", help="box file(s) of generate_bbox.py; without one only --modes base")
    add("--vqa_model_path", type=nonempty, default="HuggingFaceTB/SmolVLM-256M-Instruct", help="Hub id or folder")
    add("--output_path", type=nonempty, default="predictions", help="folder of the answer files (default predictions)")
    add("--modes", nargs="+", choices=MODES, default=MODES, help="base: without the crop; cropvlm: with it")
    add("--need_threshold", type=finite, help="nats: no crop where a box's need is below (boxes of --need; its own: 0)")
    add("--controls", nargs="+", choices=(*CONTROLS, "all"), default=(), help="answers with these in the crop's place")
    add("--longest_edge", type=pixels, help="pixels of the longer side (SmolVLM: default 512; servers: image's own)")
    add("--min_pixels", type=positive, help="width x height of an image at least (Qwen2.5-VL)")
    add("--max_pixels", type=positive, help="width x height of an image at most (Qwen2.5-VL)")
    add("--image_fit", choices=("pad", "crop"), default="pad", help="for LLaVA-1.5: pad images to squares, or cut them")
    add("--max_new_tokens", type=positive, default=64, help="of an answer (default 64)")
    add_common_flags(parser)
    args = parser.parse_args()
    check_model_flags(args, "min_pixels", "max_pixels")
    args.modes = [mode for mode in MODES if mode in args.modes]  # a row without a crop has the base answer
    args.controls = [control for control in CONTROLS if {control, "all"} & set(args.controls)]
    if args.bbox is None and (CROPVLM in args.modes or args.controls):
        needs = "--modes cropvlm needs" if CROPVLM in args.modes else "--controls need"
        raise UserError(f"{needs} the boxes: give --bbox FILE, or --modes base")
    if args.need_threshold is not None and CROPVLM not in args.modes and not args.controls:
        raise UserError("--need_threshold decides about crops; add cropvlm to --modes or leave it out")
    if args.bbox and len(args.bbox) > 1 and (args.dataset or args.dataset_path or args.name):
        raise UserError("several --bbox go with none of --dataset, --dataset_path and --name; run them one by one")
    return args


def boxes_and_sources(args: argparse.Namespace) -> list[tuple[PredictionFile | None, dict[str, Any]]]:
    """The box file, None without one, and the source of each data set to answer."""
    if args.bbox is None:
        return [(None, source) for source in data_sources(args)]
    files = [read_file(path, "cropper") for path in dict.fromkeys(args.bbox)]
    return [(file, source_of(args, file)) for file in files]


def source_of(args: argparse.Namespace, file: PredictionFile) -> dict[str, Any]:
    """The data set of a box file: what its meta says, unless flags say otherwise."""
    known = file.meta
    if args.dataset or args.dataset_path:
        (source,) = data_sources(args)
    elif known.get("dataset_path"):
        source = {"dataset_path": known["dataset_path"], "dataset": known.get("dataset")}
    else:
        raise UserError(f"no meta file beside {file.path}; name its data set with --dataset_path and --split")
    asked = {"split": args.split, "max_samples": args.max_samples}
    return source | {key: known.get(key) if value is None else value for key, value in asked.items()}


def answer_job(args: argparse.Namespace, model: TextModel, file: PredictionFile | None, source: dict[str, Any]) -> Job:
    """One data set to answer: its files are checked, its rows are loaded and joined to the boxes."""
    name = args.name or (file and file.name) or dataset_name(source["dataset_path"], source["dataset"])
    paths = {mode: Path(args.output_path) / f"{name}_{mode}_answers.json" for mode in (*args.modes, *args.controls)}
    for path in paths.values():
        check_output(path)
        if file and path.resolve() == file.path.resolve():
            raise UserError(f"the answers would replace the boxes in {path}; give another --name or --output_path")
    rows, keys = load_checked_rows(source, file)
    ids = list(rows["question_id"])
    boxes = file and join_on_question_id(file.records[: args.max_samples], rows, str(file.path))
    boxes_key, decision = hash_of(json.dumps(boxes)), {}
    if file and args.need_threshold is not None:
        boxes = decide(boxes, file.needs(ids), args.need_threshold)
        decision = {"need_threshold": args.need_threshold, "decided": hash_of(json.dumps(boxes))}
    shown = {mode: ids if mode == BASE else boxes for mode in args.modes}
    shown |= {control: control_boxes(control, boxes, rows) for control in args.controls}
    own = benchmark_for(source["dataset_path"], source["dataset"], source["split"]).instruction
    instruction = BRIEF_ANSWER if own is None else own
    without_crop = {i for i, text in zip(ids, boxes or [], strict=False) if is_not_needed(text)}
    outputs = []
    for mode, path in paths.items():
        settings = {"mode": mode, "longest_edge": model.longest_edge}
        settings |= {key: getattr(args, key) for key in ("min_pixels", "max_pixels", "max_new_tokens")}
        settings["prompt"] = answerer_messages("{question}", 1 if mode in (BASE, "crop_alone") else 2, instruction)
        if mode != BASE:
            settings |= {"boxes": boxes_key} | decision
        if mode in args.controls:
            settings |= {"control": mode, "control_boxes": hash_of(json.dumps(shown[mode]))}
        count = functools.partial(count_answers, boxes=None if mode == BASE else shown[mode])
        output = model.output(path, source, rows, keys, settings, count, clean_answer)
        output.known |= {} if mode == BASE else {"boxes": file.known()}
        output.left_out = dict.fromkeys(i for i, text in zip(ids, shown[mode], strict=True) if text is None)
        if args.modes[0] == BASE and mode != BASE:
            output.as_first = without_crop
            shown[mode] = [None if i in without_crop else text for i, text in zip(ids, shown[mode], strict=True)]
        outputs.append(output)
    return Job(ids, AnswerPrompts(rows, shown, instruction, model.seen_size), outputs, keys)


def load_checked_rows(source: dict[str, Any], file: PredictionFile | None) -> tuple[Any, list[int]]:
    """The rows to answer and their keys. Those of a box file must be what it was made from, all of them."""
    if file is None or "dataset_path" not in file.meta:
        rows = load_rows(**source)
        return rows, row_keys(rows)
    asked, whole = source["max_samples"], file.meta.get("max_samples")
    is_part = asked is not None and (whole is None or asked <= whole)
    rows = load_rows(**source | ({"max_samples": whole} if is_part else {}))
    keys = row_keys(rows)
    check_same_data(file, rows, keys)
    return (rows.select(range(min(asked, len(rows)))), keys[:asked]) if is_part else (rows, keys)


def count_answers(records: list[dict], boxes: list[str] | None) -> dict[str, Any]:
    """Empty answers of rows that did not fail (a server's refusals are some) and invalid boxes of the crops."""
    counts = {"empty_answers": sum(not (record["answer"] or "failed" in record) for record in records)}
    if boxes is None:
        return counts
    shown = [text for text in boxes if text is not None]
    not_needed = sum(map(is_not_needed, shown))
    counts["invalid_boxes"] = sum(parse_bbox(text) is None for text in shown) - not_needed
    some = {"not_needed": not_needed, "left_out": len(boxes) - len(shown)}
    return counts | {name: number for name, number in some.items() if number}


def main() -> int:
    args = parse_args()
    start_logging(args)
    asked = boxes_and_sources(args)
    model = answerer(args)
    if "no_detail" in args.controls and model.seen_size((1, 1)) is None:
        raise UserError("--controls no_detail: the size at which the model sees images is unknown; give --longest_edge")
    jobs = [answer_job(args, model, file, source) for file, source in asked]  # all checked before the weights load
    return Run(jobs, model.generate).finish()


if __name__ == "__main__":
    run(main)
