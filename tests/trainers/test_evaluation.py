"""The accuracy with the current crops, as several processes measure it together."""

import datasets

from cropvlm.trainers.evaluation import CropAccuracy
from cropvlm.trainers.settings import TrainerArguments


def test_processes_share_the_rows(tiny_world, monkeypatch):
    """Each row is measured once; of seven rows and two processes the first measures four."""
    rows = datasets.load_from_disk(str(tiny_world))["test"].select(range(7))
    args = object.__new__(TrainerArguments)
    args.eval_dataset_path = str(tiny_world)
    args.eval_split = "test"
    accuracy = CropAccuracy(args, rows, None, None)
    monkeypatch.setattr(accuracy, "_score_batch", lambda policy, processor, rows: [row["question_id"] for row in rows])
    shares = [accuracy(None, None, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(shares[0] + shares[1]) == sorted(rows["question_id"])
