"""Fixtures of the tests of create_dataset.py."""

import dataclasses
from pathlib import Path

import pytest
from datasets import Dataset
from made_sets import RESPONSES, content

import create_dataset
from cropvlm.sets import responses


@pytest.fixture
def script(call, tmp_path, tiny_world, tiny_qwen):
    """Run the script in this process, on the tiny world with the tiny teacher unless told otherwise; its exit code."""
    defaults = ["--dataset_path", tiny_world, "--model_path", tiny_qwen, "--output_path", tmp_path / "made"]
    return lambda *flags: call(create_dataset.main, *defaults, "--max_new_tokens", 8, *flags)


@pytest.fixture
def asked(monkeypatch) -> list:
    """Replace the teacher by RESPONSES, in turn. The list fills with the ids that it was asked for."""
    ids, teacher = [], responses.teacher

    def generate(prompts, done):
        for i in sorted(set(range(len(prompts))) - set(done)):
            row = prompts.rows[i]  # among those of all processes
            ids.append(prompts.prompts.rows[row]["question_id"])
            yield i, [RESPONSES[row % len(RESPONSES)][0]]

    def played(args):
        if args.from_journal:
            return teacher(args)
        return dataclasses.replace(teacher(args), generate=generate, seen_size=lambda size: (1000, 1000))

    def of_one_size(self, i, text):
        return make_record(self, i, text) | ({"size": [1000, 1000]} if isinstance(text, str) else {})

    make_record = responses.Responses.make_record
    monkeypatch.setattr(responses, "teacher", played)
    monkeypatch.setattr(responses.Responses, "make_record", of_one_size)
    return ids


@pytest.fixture
def pictures(tmp_path, tiny_world) -> Path:
    """A saved data set of ten rows whose images are files in its folder: 0.png to 9.png."""
    (tmp_path / "pictures").mkdir()
    rows = content(tiny_world / "train")[:10]
    for i, row in enumerate(rows):
        picture = tmp_path / "pictures" / f"{i}.png"
        picture.write_bytes(row["image"]["bytes"])
        row["image"] = str(picture)
    Dataset.from_list(rows).save_to_disk(tmp_path / "pictures")
    return tmp_path / "pictures"
