"""A folder of rows and predictions to be judged."""

from pathlib import Path

import pytest
import yaml
from reporting_worlds import BOXES, CLAIMS, right, write_answers, write_boxes, write_folder, write_rows

from cropvlm.runs import scoring
from reporting import results
from reporting.claims_file import read_claims
from reporting.results import read_folder
from reporting.verdicts import judge


@pytest.fixture
def rows(tmp_path, monkeypatch) -> None:
    """Work in a folder with 100 rows that share one image."""
    monkeypatch.chdir(tmp_path)
    results._load_rows.cache_clear()  # which knows folders by their relative path
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    write_rows(Path("rows"))


@pytest.fixture
def answered(rows) -> None:
    """Answers in p/: without a crop 40 right, with SFT's BOXES 60; and claims."""
    write_boxes(Path("p/sft_bbox.json"), BOXES, "models/sft", "rows")
    write_answers(Path("p/none_answers.json"), right(40), "rows")
    write_answers(Path("p/sft_answers.json"), right(60), "rows", boxes=BOXES)
    Path("claims.yaml").write_text(CLAIMS)


@pytest.fixture
def world(rows, monkeypatch):
    """Returns a function that writes predictions and judges figures and claims."""
    monkeypatch.setattr(scoring, "RESAMPLES", 1000)

    def verdicts(scores: dict[str, int], head: str = CLAIMS, **content: list[dict]):
        write_folder(Path("p"), scores)
        Path("claims.yaml").write_text(head + yaml.safe_dump(content))
        return judge(
            [read_claims("claims.yaml")],
            read_folder("p"),
            lambda settings: f"run {', '.join(setting.title for setting in settings)}",
        )

    return verdicts
