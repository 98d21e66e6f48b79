"""GRPO with a price for crops: the three rewards by hand, what is logged, what a resume compares."""

import json

import pytest
from PIL import Image
from trainers import make_grpo_trainer

from cropvlm.errors import UserError
from cropvlm.modeling import load_model, load_processor
from cropvlm.rewards import AnswerLikelihoodReward
from cropvlm.trainers.checkpoints import need_learnt
from cropvlm.trainers.crop_cost import STEPS, CollapseWarning, CropCostReward, decision_reward
from cropvlm.trainers.results import save_card
from cropvlm.trainers.settings import PolicyArguments
from train_grpo import GRPOPolicyArguments

TEXTS = ["[0, 0, 50, 50].", "Not neded.", "no box", "[0, 0, 100, 100]."]


def test_a_text_that_begins_as_not_needed_is_valid():
    """However the rest is spelled, which a policy that samples may not know yet."""
    assert decision_reward([*TEXTS, " Not neeedd.", "not needed"]) == [1, 1, 0, 1, 1, 0]


def test_a_crop_costs_its_share_of_the_full_images_tokens(tiny_smolvlm):
    full = Image.new("RGB", (128, 64))
    # Tiles of 64 px at a longer side of 128: the full image has 2 x 1 of them and one of the whole, so does its half as
    # wide as high; a square crop has 2 x 2 and one, the 2 x 2 px of the corner as well.
    reward = CropCostReward(0.5, load_processor(str(tiny_smolvlm), 128))
    assert reward(TEXTS, [full] * 4) == [-0.5, 0, -0.5 * 5 / 3, -0.5]
    assert reward(["[0, 0, 50, 100]."], [full]) == [-0.5 * 5 / 3]
    # At 64 px every image is one tile.
    assert CropCostReward(0.5, load_processor(str(tiny_smolvlm), 64))(TEXTS, [full] * 4) == [-0.5, 0, -0.5, -0.5]


def test_what_needs_no_crop_is_scored_by_the_full_image(tiny_smolvlm):
    model, processor = load_model(str(tiny_smolvlm), device="cpu"), load_processor(str(tiny_smolvlm))
    shown = []

    class Recording(AnswerLikelihoodReward):
        def score(self, images, questions, answers):
            shown.extend([len(views) for views in images])
            return super().score(images, questions, answers)

    full = Image.new("RGB", (128, 64), "teal")
    rows = [TEXTS, [full] * 4, ["Which?"] * 4, [["stop"]] * 4]
    decides = Recording(model, processor, may_decide=True)(*rows)
    assert shown == [2, 1, 2, 2]
    shown.clear()
    released = Recording(model, processor)(*rows)  # a broken box: the corner, with that of the third
    assert shown == [2, 2, 2]
    assert released[1] == released[2] != decides[1]
    assert [decides[i] for i in (0, 2, 3)] == pytest.approx([released[i] for i in (0, 2, 3)], abs=1e-4)


@pytest.mark.parametrize("price", [-0.5, float("nan")])
def test_a_price_is_at_least_0(price):
    with pytest.raises(UserError, match="--crop_cost .*: expected a price of at least 0"):
        GRPOPolicyArguments(crop_cost=price)


def test_a_collapse_is_told_once(caplog):
    warning = CollapseWarning()
    for _ in range(STEPS - 1):
        warning([0, 0, 0])
    warning([0, 1, 0])
    for _ in range(STEPS):
        warning([0, 1])  # undecided, not collapsed
    assert caplog.text == ""
    for _ in range(3 * STEPS):
        warning([1, 1, 1])
    assert caplog.text.count("never asks for a crop; lower --crop_cost") == 1


def test_for_whom_the_decision_was_learnt(tmp_path):
    """As the card and the record of a training say it."""
    labels = {"reward_model": "vlm", "longest_edge": 64, "threshold": 0.5}
    (tmp_path / "inputs.json").write_text(json.dumps({"inputs": {"need": labels}}))
    labelled = {"dataset_path": str(tmp_path)}
    learnt = {"answerer": "vlm", "longest_edge": 64, "need_threshold": 0.5}
    assert need_learnt(PolicyArguments(**labelled)) == learnt
    assert need_learnt(PolicyArguments(dataset_path="org/rows")) is None
    assert need_learnt(GRPOPolicyArguments(**labelled)) is None  # which reads no labels
    learnt = {"answerer": "m", "longest_edge": 128, "crop_cost": 0.0}
    assert need_learnt(GRPOPolicyArguments(crop_cost=0.0, vqa_model="m", vqa_longest_edge=128)) == learnt


@pytest.mark.parametrize("price", [None, 0.25])
def test_a_step(price, sft_adapter, tiny_smolvlm, tiny_world, tmp_path):
    policy = {"crop_cost": price} if price else {}
    trainer = make_grpo_trainer(tmp_path, sft_adapter, tiny_world, tiny_smolvlm, policy=policy, max_steps=1)
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert ("rewards/crop_cost_reward/mean" in logged) == (price is not None)
    assert ("boxes/not_needed" in logged) == (price is not None)
    save_card(trainer, tmp_path, "cropper")
    learnt = f"\n- whether to crop: learnt for `{tiny_smolvlm}` at 64 px"
    assert (learnt in (tmp_path / "README.md").read_text()) == (price is not None)
