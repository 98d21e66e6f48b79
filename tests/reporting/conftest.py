"""A folder of rows and predictions to be judged."""

from pathlib import Path

import pytest
import yaml
from reporting_worlds import CLAIMS, write_folder, write_rows

from cropvlm.runs import scoring
from reporting import results
from reporting.claims import read_claims
from reporting.results import read_folder
from reporting.verdicts import judge


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Work in a folder with 100 rows; returns a function that writes predictions and judges figures and claims."""
    monkeypatch.chdir(tmp_path)
    results._load_rows.cache_clear()  # which knows folders by their relative path
    monkeypatch.setattr(scoring, "RESAMPLES", 1000)
    write_rows(Path("rows"))

    def verdicts(scores: dict[str, int], head: str = CLAIMS, **content: list[dict]):
        write_folder(Path("p"), scores)
        Path("claims.yaml").write_text(head + yaml.safe_dump(content))
        return judge(
            [read_claims("claims.yaml")],
            read_folder("p"),
            lambda settings: "run " + ", ".join(setting.title for setting in settings),
        )

    return verdicts
