"""Protects users: bad input ends in one line that names the flag, and a bug keeps its traceback."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, changes, read_lines, shared, weights_of
from safetensors.torch import load_file

import rewards

NAMES = ["accuracy", "conciseness", "clarity"]
# The message names the last flag. {run} is the folder of a run, and {qwen3} that of a model.
BAD = [
    ["--model", "no/such-model"],  # on the Hub
    ["--model", "{run}/no-model"],
    ["--model", "{run}"],
    ["--model", "{qwen3}/model.safetensors"],
    ["--dataset", "{run}/no-data"],
    ["--objectives", "accuracy", "beauty"],
    ["--objectives", "accuracy", "accuracy"],
    ["--weights", "0.3", "0.3", "0.3"],
    ["--weights", "1.5", "-0.5", "0"],
    ["--micro-batch-size", "0"],
    ["--device", "cuda"],
    ["--mu", "-1"],
    ["--updates-per-step", "2", "--prompts-per-step", "5"],
    ["--output-dir", "{run}"],
    ["--weighting", "gradient", "--objectives", "accuracy", "clarity", "--influence-scale", "unit"],
]


def refuse(run, script, capfd, flags):
    """Asserts that a run ends with exit code 2 and one line, which names the last flag."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    err = capfd.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and err.startswith(f"{script.__name__}.py: error")
    assert [flag for flag in flags if flag.startswith("--")][-1] in err


@shared
@pytest.mark.parametrize("flags", BAD, ids=" ".join)
def test_bad_input_ends_in_one_line_and_writes_nothing(run, script, folders, tmp_path, capfd, flags):
    folder = tmp_path / "a-run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    refuse(run, script, capfd, [flag.format(run=folder, **folders) for flag in flags])
    assert [path.name for path in tmp_path.rglob("*")] == ["a-run", "metrics.jsonl"]


@pytest.mark.parametrize("script", ["grpo_dynw", "rloo_dynw"], indirect=True)
def test_grpo_and_rloo_need_two_responses_to_a_problem(run, script, capfd):
    refuse(run, script, capfd, ["--num-generations", "1"])


@shared
@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_an_error_in_an_objective_keeps_its_traceback_and_the_last_checkpoint(run, tmp_path, error):
    def mood(step, **_):
        if step == 2:
            raise error("a bug")
        return 1.0

    rewards.OBJECTIVES["mood"] = mood
    with pytest.raises(error, match="a bug"):
        run("--objectives", "mood", "--checkpoint-every", "1")
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["state"]["step"] == 1


@shared
def test_numbers_that_are_not_finite_change_nothing_and_become_null(run, script, folders, monkeypatch):
    policy_loss, gram_matrix = script.policy_loss, script.gram_matrix
    monkeypatch.setattr(script, "policy_loss", lambda *args: (math.nan * policy_loss(*args)[0], args[0] > 0))
    monkeypatch.setattr(script, "gram_matrix", lambda *args: math.inf * gram_matrix(*args))
    metrics, folder = run("--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    missing = {"loss", "grad_norm", *(f"influence/{name}" for name in NAMES)}
    for line in metrics[1:]:
        assert {key for key, value in line.items() if value is None} == missing
        assert [line[f"weights/{name}"] for name in NAMES] == pytest.approx([0.7, 0.2, 0.1], abs=1e-12)
    initial = load_file(folders["qwen3"] / "model.safetensors")
    assert max(changes(initial, weights_of(folder)).values()) == 0


def test_a_copied_script_runs_with_only_hypervolume_and_rewards_beside_it(folders, tmp_path):
    """Its algorithm does not depend on its name. All scripts have the same imports."""
    shutil.copy(ROOT / "reinforce_dynw.py", tmp_path / "mine.py")
    for file in ("hypervolume.py", "rewards.py"):
        shutil.copy(ROOT / file, tmp_path)
    command = [sys.executable, "mine.py", *SMALL, "--model", folders["qwen3"], "--dataset", folders["data"]]
    process = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("reinforce-fixed-") and folder.name in process.stdout
    assert json.loads((folder / "args.json").read_text())["algorithm"] == "reinforce"
    assert len(read_lines(folder / "metrics.jsonl")) == 3 and (folder / "model").exists()
