"""The flags that the generating scripts share, and the data sets that they name."""

from argparse import Namespace

import pytest

from cropvlm.errors import UserError
from cropvlm.runs.text_models import data_sources


def sources(**flags):
    defaults = {"dataset": None, "dataset_path": None, "split": None, "max_samples": None, "name": None}
    return data_sources(Namespace(**defaults | flags))


def test_data_sources():
    common = {"split": None, "max_samples": None}
    assert sources() == [{"dataset_path": "lmms-lab/textvqa", "dataset": None} | common]
    assert sources(dataset=["docvqa", "vstar"]) == [
        {"dataset_path": "docvqa", "dataset": None} | common,
        {"dataset_path": "vstar", "dataset": None} | common,
    ]
    assert sources(dataset=["docvqa"], dataset_path="copy") == [{"dataset_path": "copy", "dataset": "docvqa"} | common]
    with pytest.raises(UserError, match="run them one by one"):
        sources(dataset=["docvqa", "vstar"], name="both")
