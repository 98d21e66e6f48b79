"""The bash scripts: they parse, name no path of a machine, and run the stages in order and only once."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from checkouts import call
from processes import is_alive, stopped
from test_readme import parse

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*ROOT.glob("[bs]*/*.sh"), ROOT / ".ci" / "run"])
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|work|mnt|data|scratch|Users|tmp|opt)/")
SOURCED = ("setup.sh", "steps.sh", "beside.sh", "miniature_need.sh")
SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
STAGES = ["create_dataset.py", "train_sft.py", "train_grpo.py", "generate_bbox.py", "generate_final_answers.py"]
STAGES += ["vqa_accuracy.py"] * 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_read_it_and_it_says_what_it_does(script):
    result = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    text = script.read_text(encoding="utf-8")
    if script.name in SOURCED:  # the sourcing script sets the options
        assert text.startswith("# ")
    else:
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "\nset -euo pipefail\n" in text


def test_no_file_names_a_path_of_a_machine():
    patterns = ["[!.]*.*", "scripts/*.sh", ".ci/*", "cropvlm/*.py", "miniature/*.py", "tests/*.py"]
    files = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    named = [path.name for path in files if MACHINE_PATH.search(path.read_text(encoding="utf-8"))]
    assert len(files) > 30
    assert named == []


def calls_of(checkout: Path, script: str, *args: str) -> list[list[str]]:
    """The python calls of a script that ends well."""
    result, calls = call(checkout, script, *args)
    assert result.returncode == 0, result.stderr
    return calls


def test_reproduce_hands_each_output_to_the_next_stage_and_reuses_what_is_done(checkout):
    calls = calls_of(checkout, "reproduce.sh", "3")
    assert [call[0] for call in calls] == STAGES
    assert [call[0] for call in calls_of(checkout, "reproduce.sh", "3")] == STAGES[-2:]
    create, sft, grpo, bbox, answers, base, cropvlm = [" ".join(call) for call in calls]
    assert [call[-2:] for call in calls[1:3]] == [["--resume_from_checkpoint", "True"]] * 2
    assert "--dataset_path textvqa --output_path datasets/cropvlm_dataset --gpu 3" in create
    assert "--dataset_path datasets/cropvlm_dataset_sft --output_dir models/sft_512" in sft
    assert "--base_model models/sft_512 --dataset_path datasets/cropvlm_dataset_grpo --output_dir models/grpo_5" in grpo
    assert "--model_path models/grpo_512 --dataset textvqa --output predictions/textvqa_bbox.json" in bbox
    assert "--bbox predictions/textvqa_bbox.json --output_path predictions" in answers
    assert base == "vqa_accuracy.py --predictions_file predictions/textvqa_base_answers.json"
    assert cropvlm.startswith("vqa_accuracy.py --predictions_file predictions/textvqa_cropvlm_answers.json --compare")


def test_reproduce_keeps_the_mixture_apart(checkout):
    calls_of(checkout, "reproduce.sh", "0")
    calls = calls_of(checkout, "reproduce.sh", "0", "mixture")
    assert [call[0] for call in calls] == STAGES
    assert calls[0][1:6] == ["--dataset_path", "textvqa", "docvqa", "infovqa", "stvqa"]  # whole: 124,085 rows
    assert all("mixture" in " ".join(call) for call in calls)


@pytest.mark.parametrize(
    ("failing", "code", "ends", "stages"),
    [("generate_bbox.py", 3, 0, STAGES), ("train_sft.py", 1, 1, STAGES[:2]), ("train_sft.py", 2, 2, STAGES[:2])],
)
def test_reproduce_stops_where_a_stage_fails_but_not_for_listed_rows(checkout, failing, code, ends, stages):
    result, calls = call(checkout, "reproduce.sh", "0", FAILING=failing, CODE=str(code))
    assert result.returncode == ends, result.stderr
    assert [call[0] for call in calls] == stages


@pytest.mark.parametrize(("stage", "files"), [("sft", ["adapter_model.safetensors"]), ("grpo", ["run.json"])])
def test_half_a_model_is_not_taken_for_a_finished_one(stage, files, checkout):
    """Weights without the record that is written last, as a killed run may leave them; a record without weights."""
    calls_of(checkout, "reproduce.sh", "0")
    for name in {"adapter_model.safetensors", "run.json"} - {*files}:
        (checkout / "models" / f"{stage}_512" / name).unlink()
    assert call(checkout, "reproduce.sh", "0")[1][0][0] == f"train_{stage}.py"


@pytest.mark.parametrize("what", ["paper", "need"])
def test_reproduce_hands_the_larger_runs_to_their_driver(checkout, what):
    flags = f"2 --claims scripts/claims/{what}.yaml --predictions predictions/{what} --plan"
    assert calls_of(checkout, "reproduce.sh", "2", what, "--plan") == [["scripts/reproduce.py", *flags.split()]]


@pytest.mark.parametrize(
    ("script", "args"), [("reproduce.sh", ""), ("reproduce.sh", "0 mixture 1"), ("miniature.sh", "0 acuracy")]
)
def test_unknown_arguments_are_one_line(checkout, script, args):
    result, calls = call(checkout, script, *args.split())
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"bash scripts/{script} 0" in result.stderr
    assert calls == []


@pytest.mark.parametrize("args", [(), ("3", "accuracy"), ("0", "need")])
def test_the_miniature_hands_flags_to_the_scripts_that_they_accept(checkout, args, monkeypatch):
    calls = calls_of(checkout, "miniature.sh", *args)
    scoring = {"scripts/report.py"} if "need" in args else {"scripts/report.py", "vqa_accuracy.py"}
    assert {script for script, *_ in calls} == {*STAGES[:5], "-m", *scoring}
    monkeypatch.chdir(ROOT)
    for script, *flags in calls:
        parse([f"{flags[0].replace('.', '/')}.py", *flags[1:]] if script == "-m" else [script, *flags], monkeypatch)


def test_the_miniatures_other_reward_shares_what_comes_before_grpo(checkout):
    first, second = (calls_of(checkout, "miniature.sh", "1", *reward) for reward in ([], ["accuracy"]))
    trainings = [[c[0] for c in calls if c[0].startswith("train")] for calls in (first, second)]
    assert trainings == [["train_sft.py", "train_grpo.py"], ["train_grpo.py"]]
    assert "create_dataset.py" not in {c[0] for c in second}
    (grpo,) = [" ".join(c) for c in second if c[0] == "train_grpo.py"]
    assert "--base_model models/miniature_seed1_sft" in grpo
    assert "--output_dir models/miniature_seed1_accuracy_grpo" in grpo


def test_the_miniature_reports_on_several_seeds_together(checkout):
    calls = calls_of(checkout, "miniature.sh", "--seeds", "2", "accuracy")
    assert sum(script == "train_grpo.py" for script, *_ in calls) == 2
    *_, last = (" ".join(words) for words in calls)
    assert last.startswith("scripts/report.py --predictions predictions --claims scripts/claims/miniature.yaml")
    assert "--names name=miniature,miniature_seed1 run=miniature_accuracy,miniature_seed1_accuracy" in last


def test_the_miniature_of_need_trains_two_croppers_on_the_same_boxes(checkout):
    lines = [" ".join(words) for words in calls_of(checkout, "miniature.sh", "--seeds", "2", "need")]
    made = [line for line in lines if line.startswith("create_dataset.py") and "need_seed1" in line]
    assert ["--label_need" in line for line in made] == [False, True]
    trained = [line for line in lines if line.startswith("train_grpo.py") and "need_seed1" in line]
    assert sorted("--crop_cost" in line for line in trained) == [False, True]
    needs = [line for line in lines if line.startswith("generate_bbox.py") and "--need" in line and "_seed1" in line]
    outputs = [f"predictions/miniature_need_seed1_{name}_bbox.json" for name in ("decide", "labelled")]
    assert [line.partition(" --output ")[2].split()[0] for line in needs] == outputs
    assert "--claims scripts/claims/miniature_need.yaml" in lines[-1]
    assert "--names name=miniature_need,miniature_need_seed1 " in lines[-1]
    assert " threshold=-0.5,-0.5 " in lines[-1]


@pytest.mark.parametrize(("failing", "code"), [("create_dataset.py", 2), ("train_grpo.py", 1), ("generate_bbox.py", 2)])
def test_the_miniature_stops_where_a_step_fails(checkout, failing, code):
    result, calls = call(checkout, "miniature.sh", FAILING=failing, CODE=str(code))
    assert result.returncode == code
    assert calls[-1][0] in (failing, "-m")  # the first of a pair, or its other half at work beside it
    assert "vqa_accuracy.py" not in {c[0] for c in calls}


@pytest.fixture
def running(checkout):
    """Start a script whose steps take a minute; return its process and the pids of `steps` steps once they run."""

    def start(script: str, *args: str, steps: int, ignored: signal.Signals | None = None) -> tuple:
        (checkout / "datasets" / "miniature").mkdir(parents=True)  # the miniature's first step has its result already
        environment = {"PATH": "/usr/bin:/bin", "SLOW": "yes", "TMPDIR": str(checkout)}

        def heed_signals() -> None:
            """Tests that run in the background may ignore a signal, and what they start would, too."""
            for name in SIGNALS:
                signal.signal(name, signal.SIG_IGN if name == ignored else signal.SIG_DFL)

        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = ["bash", checkout / "scripts" / script, *args]
        process = subprocess.Popen(command, env=environment, preexec_fn=heed_signals, **streams)
        pids, end = checkout / "pids.txt", time.monotonic() + 30
        while not pids.exists() or len(pids.read_text().split()) < steps:
            assert process.poll() is None, "it ended before its steps had begun"
            assert time.monotonic() < end, "its steps do not begin"
            time.sleep(0.05)
        return process, [int(pid) for pid in pids.read_text().split()]

    return start


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_the_two_steps_of_the_miniature(name, running, checkout):
    process, pids = running("miniature.sh", steps=2)
    process.send_signal(name)
    assert process.wait(timeout=20) == 128 + name
    assert stopped(pids)
    assert not list(checkout.glob("tmp.*"))  # the log of the second step


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_the_script(name, running):
    """Not at a signal that nohup ignores."""
    process, pids = running("reproduce.sh", "0", steps=1, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    assert all(map(is_alive, pids))
    process.send_signal(name)
    assert process.wait(timeout=20) == (128 + name if name == signal.SIGTERM else -name)
    if name == signal.SIGTERM or shutil.which("setpriv"):
        assert stopped(pids)


def test_a_step_that_cannot_start_is_named(checkout):
    (checkout / "bin" / "python3").write_text("#!/no/such/interpreter\n")
    result, _ = call(checkout, "miniature.sh")
    assert result.returncode == 2
    assert re.search(r"^error: exit code 2 of: python3 -m miniature.world", result.stderr, re.M)


@pytest.mark.skipif(not shutil.which("dash"), reason="dash is not installed")
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sh" and path.name not in SOURCED])
def test_another_shell_is_refused(script):
    result = subprocess.run(["dash", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, f"error: run it with bash: bash {script}\n")


@pytest.mark.parametrize("script", ["reproduce.sh", "train_sft.sh", "miniature.sh"])
def test_scripts_work_through_a_link_and_with_cdpath(script, checkout, tmp_path_factory):
    """CDPATH makes `cd scripts/..` go elsewhere; a link to a script stands in a folder without setup.sh."""
    (checkout / "scripts" / "setup.sh").write_text(
        (ROOT / "scripts" / "setup.sh").read_text().split("# stop")[0] + 'PATH="$PWD/bin:$PATH"\n'
    )
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "scripts").mkdir()
    (elsewhere / "link.sh").symlink_to(checkout / "scripts" / script)
    environment = {"PATH": "/usr/bin:/bin", "CDPATH": str(elsewhere)}
    for path, cwd in ((f"scripts/{script}", checkout), ("link.sh", elsewhere)):
        (checkout / "calls.txt").write_text("")
        result = subprocess.run(["bash", path, "0"], cwd=cwd, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert (checkout / "calls.txt").read_text().strip()
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["link.sh", "scripts"]
