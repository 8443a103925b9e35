"""Runs that are resumed after a kill or after their end give the results of an uninterrupted run."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SMALL,
    all_files,
    read_lines,
    run_chains,
    shared,
    weights_of,
    without_times,
)

import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
# The runs save checkpoints after steps 2 and 4. They are killed in step 4 and resumed from step 2. They are
# killed as the second checkpoint is written (fixed), in the evaluation on the test split (hypervolume) and in
# the policy update (gradient, nash).
KILL_BEFORE = {
    "fixed": ["os.replace", 2, "checkpoint.tmp"],
    "hypervolume": ["evaluate", 8],
    "gradient": ["policy_loss", 7],
    "nash": ["policy_loss", 7],
}
# The scripts share the code of checkpoints, so all weightings are tried with one of them.
CASES = [("grpo_dynw", weighting) for weighting in WEIGHTINGS]
CASES += [("rloo_dynw", "hypervolume"), ("reinforce_dynw", "gradient")]
LOGGED = {"fixed": 4, "hypervolume": 3, "gradient": 3, "nash": 3}  # the last step in metrics.jsonl


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """
    The folder of runs SCRIPT-WEIGHTING-KIND, all made at once. Of the kinds, "whole" is never interrupted,
    "killed" is killed and resumed, and "finished" ends after step 3 and is resumed. The suffix "-copy" marks
    the state before the run is resumed.
    """
    base, chains = tmp_path_factory.mktemp("resumed"), []
    for script, weighting in CASES:
        case = {"processes": 1, "script": script}
        run = f"{base}/{script}-{weighting}"
        whole, killed, finished = f"{run}-whole", f"{run}-killed", f"{run}-finished"
        flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"]]
        flags += ["--steps", "5", "--eval-every", "2", "--checkpoint-every", "2"]
        flags += ["--weighting", weighting, "--prompts-per-step", "2", "--updates-per-step", "2"]
        chains.append([{**case, "flags": [*flags, "--output-dir", whole]}])
        first = {**case, "kill_before": KILL_BEFORE[weighting], "exit_code": -signal.SIGKILL}
        second = {**case, "copy": [killed, f"{killed}-copy"], "flags": ["--resume", killed]}
        chains.append([{**first, "flags": [*flags, "--output-dir", killed]}, second])
        flags += ["--output-dir", finished, "--steps", "3", "--checkpoint-every", "3"]
        resume = ["--resume", finished, "--steps", "5", "--checkpoint-every", "2"]
        second = {**case, "copy": [finished, f"{finished}-copy"], "flags": resume}
        chains.append([{**case, "flags": flags}, second])
    run_chains(chains)
    return base


def assert_same(one, other):
    """Asserts that two values from checkpoints are equal bit for bit, except for durations."""
    if isinstance(one, dict):
        keys = [key for key in one if not str(key).startswith("time/")]
        assert keys == [key for key in other if not str(key).startswith("time/")]
        for key in keys:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            assert_same(a, b)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("kind", ["killed", "finished"])
@pytest.mark.parametrize("script, weighting", CASES)
def test_a_resumed_run_gives_the_results_of_an_uninterrupted_run(runs, script, weighting, kind):
    names = "whole", kind, f"{kind}-copy"
    whole, resumed, interrupted = paths = [runs / f"{script}-{weighting}-{name}" for name in names]
    lines = [without_times(read_lines(path / "metrics.jsonl")) for path in paths]
    assert [line["step"] for line in lines[0]] == [0, 1, 2, 3, 4, 5]
    assert lines[0] == lines[1]
    expected, weights = weights_of(whole), weights_of(resumed)
    assert expected.keys() == weights.keys()
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    assert (whole / "completions.jsonl").read_text() == (resumed / "completions.jsonl").read_text()
    checkpoints = [torch.load(path / "checkpoint.pt", weights_only=True) for path in paths]
    for checkpoint in checkpoints:
        del checkpoint["args"]
    assert checkpoints[0]["state"]["step"] == 4
    assert_same(checkpoints[0], checkpoints[1])
    assert not list(resumed.glob("*.tmp"))
    # The interrupted run: the last step of a finished run is evaluated, unlike the same step of a longer run.
    assert checkpoints[2]["state"]["step"] == (2 if kind == "killed" else 3)
    assert (interrupted / "model").exists() == (kind == "finished")
    logged = LOGGED[weighting] + 1 if kind == "killed" else 3
    assert lines[2][:logged] == lines[0][:logged]
    assert ["eval/hypervolume" in line for line in lines[2][:4]] == [True, False, True, kind == "finished"]


@shared
def test_a_resumed_run_keeps_the_flags_that_are_not_defaults(run, main, script):
    flags = ["--objectives", "clarity", "accuracy", "--weights", "0.75", "0.25", "--weighting", "gradient"]
    flags += ["--influence-scale", "clip"]
    flags += ["--prompt-suffix", " Why?", "--seed", "3", "--mu", "0.02", "--lr-schedule", "polynomial"]
    _, folder = run(*flags, "--steps", "3", "--checkpoint-every", "2")
    expected_lines, expected = read_lines(folder / "metrics.jsonl"), weights_of(folder)
    main(script, "--resume", folder)
    weights = weights_of(folder)
    assert all(torch.equal(expected[name], weights[name]) for name in weights)
    assert without_times(read_lines(folder / "metrics.jsonl")) == without_times(expected_lines)


@shared
def test_only_flags_that_do_not_affect_results_may_change(
    run, main, script, folders, monkeypatch, tmp_path, capsys
):
    """Passing the old value again is allowed. A relative path of a model is valid in another folder, too."""
    monkeypatch.chdir(folders["data"].parent)
    _, folder = run("--checkpoint-every", "1", "--model", "qwen3", "--dataset", "data")
    files = all_files(folder)
    for flags in (["--seed", "5"], ["--output-dir", "x"], ["--weighting=nash"], ["--enable-thinking"]):
        with pytest.raises(SystemExit) as stop:
            main(script, "--resume", folder, *flags)
        assert stop.value.code == 2 and all_files(folder) == files
        assert flags[0].split("=")[0] in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "4", "--micro-batch-size", "2", "--eval-every", "2", "--checkpoint-every", "3"]
    paths = ["--model", folders["qwen3"], f"--dataset={folders['data']}", "--seed", "1", "--weighting=fixed"]
    main(script, "--resume", folder.name, *flags, *paths)
    lines = read_lines(folder / "metrics.jsonl")
    assert ["eval/hypervolume" in line for line in lines] == [True, True, True, False, True]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"] == 3


class Harmful:
    """An object that creates a file when pickle loads it."""

    def __reduce__(self):
        return open, ("harm.txt", "w")


# Name: (a function that changes the folder of a run, flags). With them, --resume is refused.
REFUSED = {
    "no checkpoint": (lambda folder: (folder / "checkpoint.pt").unlink(), []),
    "no folder": (lambda folder: folder.rename(folder.with_name("other")), []),
    "a truncated checkpoint": (lambda folder: (folder / "checkpoint.pt").write_bytes(b"PK"), []),
    "a checkpoint that would run code": (lambda folder: torch.save(Harmful(), folder / "checkpoint.pt"), []),
    "a checkpoint of another program": (lambda folder: torch.save({"a": 1}, folder / "checkpoint.pt"), []),
    "lost metrics": (lambda folder: (folder / "metrics.jsonl").write_text("{}\n"), []),
    "another model": (lambda folder: None, ["--model", "{gpt2}"]),
    "an old checkpoint": (
        lambda folder: torch.save({"algorithm": "grpo", "step": 1}, folder / "checkpoint.pt"),
        [],
    ),
    "another algorithm": (
        lambda folder: change_checkpoint(folder, origin="rloo_dynw.py with 1 processes"),
        [],
    ),
    "another number of processes": (
        lambda folder: change_checkpoint(folder, origin="grpo_dynw.py with 2 processes"),
        [],
    ),
    "fewer steps than taken": (lambda folder: None, ["--steps", "1"]),
    "more steps of a decaying learning rate": (
        lambda folder: change_checkpoint(
            folder, args={**load_checkpoint(folder)["args"], "lr_schedule": "polynomial"}
        ),
        ["--steps", "3"],
    ),
}


def load_checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def change_checkpoint(folder, **values):
    torch.save({**load_checkpoint(folder), **values}, folder / "checkpoint.pt")


@shared
def test_a_run_that_cannot_be_resumed_is_refused_in_one_line_and_not_changed(
    run, main, script, folders, capfd, subtests
):
    _, original = run("--checkpoint-every", "1", "--steps", "2")
    for name, (damage, flags) in REFUSED.items():
        with subtests.test(name):
            folder = original.with_name(name.replace(" ", "-"))
            shutil.copytree(original, folder)
            damage(folder)
            files = all_files(folder)
            capfd.readouterr()
            with pytest.raises(SystemExit) as stop:
                main(script, "--resume", folder, *[flag.format(**folders) for flag in flags])
            err = capfd.readouterr().err
            assert stop.value.code == 2 and err.startswith("grpo_dynw.py: error: ") and err.count("\n") == 1
            assert all_files(folder) == files and not Path("harm.txt").exists()


# Metrics in TensorBoard


class Events(dict):
    """Replaces TensorBoard: {folder: {name: [(step, value)]}}, the values that it would show."""

    def SummaryWriter(self, folder, purge_step=None):  # noqa: N802
        scalars = self.setdefault(Path(folder), {})
        for name in scalars:
            scalars[name] = [(step, value) for step, value in scalars[name] if step < (purge_step or 0)]

        def add_scalar(name, value, step):
            scalars.setdefault(name, []).append((step, value))

        return SimpleNamespace(add_scalar=add_scalar, close=lambda: None, flush=lambda: None)


@shared
def test_tensorboard_gets_every_step_once_after_a_resume(run, main, script, monkeypatch):
    events = Events()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", events)
    _, folder = run("--report-to", "tensorboard", "--steps", "3", "--checkpoint-every", "2")
    assert events.keys() == {folder}
    main(script, "--resume", folder, "--steps", "4")
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for name in {name for line in lines for name in line} - {"step"}:
        assert events[folder][name] == [(line["step"], line[name]) for line in lines if name in line]


@shared
def test_the_real_tensorboard_shows_every_step_once_after_a_resume(run, main, script):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, folder = run("--report-to", "tensorboard", "--steps", "3", "--checkpoint-every", "2")
    main(script, "--resume", folder, "--steps", "4")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/hypervolume")] == [0, 1, 2, 3, 4]


@shared
def test_wandb_continues_its_run_after_a_resume(run, main, script, monkeypatch):
    """The project comes from the environment, as users of W&B expect. A new run must get a new id."""
    starts, logged = [], []

    def init(**options):
        starts.append(options)
        return SimpleNamespace(
            id=options["id"] or f"id{len(starts)}", log=lambda *_, step: logged.append(step)
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    _, folder = run("--report-to", "wandb", "--steps", "3", "--checkpoint-every", "2")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    main(script, "--resume", folder, "--steps", "4")
    assert [options["id"] for options in starts] == [None, "id1"] and starts[1]["resume"] == "allow"
    assert [options["project"] for options in starts] == ["dynw", "mine"]
    assert logged == [0, 1, 2, 3, 3, 4]


@shared
def test_objectives_with_random_numbers_are_the_same_after_a_resume(run, main, script, monkeypatch):
    """Their random numbers come from Python or NumPy. They depend on the seed and on the step."""
    chance = {"accuracy": lambda **_: random.random(), "clarity": lambda **_: np.random.rand()}
    monkeypatch.setattr(rewards, "OBJECTIVES", {**rewards.OBJECTIVES, **chance})
    flags = ["--checkpoint-every", "2", "--eval-every", "2"]
    whole, _ = run(*flags, "--steps", "4", name="whole")
    _, folder = run(*flags, "--steps", "2", name="resumed")
    random.seed(5), np.random.seed(5)
    main(script, "--resume", folder, "--steps", "4")
    assert without_times(read_lines(folder / "metrics.jsonl")) == without_times(whole)
    other, _ = run(*flags, "--steps", "1", "--seed", "2", name="other")
    for key in ("rewards/accuracy/mean", "rewards/clarity/mean"):
        assert len({whole[1][key], whole[2][key], whole[3][key], other[1][key]}) == 4


@shared
def test_a_resume_with_other_problems_is_refused(run, main, script, folders, tmp_path, capsys):
    _, folder = run("--checkpoint-every", "1", "--steps", "1")
    files = all_files(folder)
    other = shutil.copytree(folders["data"], tmp_path / "other")
    (other / "test.jsonl").write_text((other / "test.jsonl").read_text().replace("What is", "How much is"))
    with pytest.raises(SystemExit) as stop:
        main(script, "--resume", folder, "--steps", "2", "--dataset", other)
    assert stop.value.code == 2 and "--dataset: has other problems than the run" in capsys.readouterr().err
    assert all_files(folder) == files
    main(
        script,
        "--resume",
        folder,
        "--steps",
        "2",
        "--dataset",
        shutil.copytree(folders["data"], tmp_path / "same"),
    )


@shared
def test_ctrl_c_ends_a_run_with_one_line(script, folders, tmp_path):
    command = [sys.executable, ROOT / "grpo_dynw.py", *SMALL, "--steps", "10000"]
    command += ["--model", folders["qwen3"], "--dataset", folders["data"], "--output-dir", tmp_path / "run"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Interrupted: --resume continues")


@shared
def test_a_full_disk_on_resume_keeps_the_metrics(run, main, script, monkeypatch, capsys):
    """The disk is full as the metrics up to the checkpoint are written again."""
    _, folder = run("--checkpoint-every", "1", "--steps", "2")
    lines, write_text = (folder / "metrics.jsonl").read_bytes(), Path.write_text

    def full(path, text, *args, **kwargs):
        if path.name.startswith("metrics"):
            path.open("w").close()  # as open() does before the first byte fails
            raise OSError(28, "No space left on device")
        return write_text(path, text, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit) as stop:
        main(script, "--resume", folder, "--steps", "4")
    assert stop.value.code == 2 and "No space left" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == lines
