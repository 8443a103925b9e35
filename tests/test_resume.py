"""Protects --resume: a run that was killed or has ended continues like a run that was never interrupted."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, read_lines, shared, weights_of, without_times
from processes import run_chains

import rewards

# The runs save checkpoints after steps 2 and 4. They are killed as they write the second checkpoint, in the
# last evaluation after step 4, between the two policy updates of step 4 and as they save the model.
KILL_BEFORE = {
    "fixed": ["os.replace", 2],
    "hypervolume": ["evaluate", 8],
    "gradient": ["policy_loss", 8],
    "nash": ["save_model", 1],
}
# The scripts share the code of checkpoints, so all weightings are tried with one of them.
CASES = [("grpo_dynw", weighting) for weighting in KILL_BEFORE]
CASES += [("rloo_dynw", "hypervolume"), ("reinforce_dynw", "gradient")]


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """The folder of the runs SCRIPT-WEIGHTING-whole and SCRIPT-WEIGHTING-killed (and resumed)."""
    base, chains = tmp_path_factory.mktemp("resumed"), []
    for script, weighting in CASES:
        case, run = {"processes": 1, "script": script}, f"{base}/{script}-{weighting}"
        flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"]]
        flags += ["--steps", "5", "--eval-every", "2", "--checkpoint-every", "2"]
        flags += ["--weighting", weighting, "--prompts-per-step", "2", "--updates-per-step", "2"]
        chains.append([{**case, "flags": [*flags, "--output-dir", f"{run}-whole"]}])
        first = {**case, "flags": [*flags, "--output-dir", f"{run}-killed"]}
        first["kill_before"] = KILL_BEFORE[weighting]
        chains.append([first, {**case, "flags": ["--resume", f"{run}-killed"]}])
    run_chains(chains)
    return base


def metrics_of(folder):
    return without_times(read_lines(folder / "metrics.jsonl"))


def checkpoint_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(one, other):
    """Asserts that two values from checkpoints are equal to the bit, except for durations."""
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


@pytest.mark.parametrize("script, weighting", CASES)
def test_a_resumed_run_gives_the_results_of_an_uninterrupted_run(runs, script, weighting):
    whole, resumed = [runs / f"{script}-{weighting}-{kind}" for kind in ("whole", "killed")]
    assert [line["step"] for line in metrics_of(whole)] == [0, 1, 2, 3, 4, 5]
    assert metrics_of(whole) == metrics_of(resumed)
    assert_same(weights_of(whole), weights_of(resumed))
    assert (whole / "completions.jsonl").read_text() == (resumed / "completions.jsonl").read_text()
    expected, checkpoint = checkpoint_of(whole), checkpoint_of(resumed)
    assert expected["state"]["step"] == 4
    for key in ("origin", "state", "states"):
        assert_same(expected[key], checkpoint[key])
    assert not list(resumed.glob("*.tmp"))


@shared
def test_objectives_with_random_numbers_are_the_same_after_a_resume(run, main, script, monkeypatch):
    """Their random numbers come from Python or NumPy. The resumed run had reached its end."""
    chance = {"accuracy": lambda **_: random.random(), "clarity": lambda **_: np.random.rand()}
    monkeypatch.setattr(rewards, "OBJECTIVES", {**rewards.OBJECTIVES, **chance})
    flags = ["--checkpoint-every", "2", "--eval-every", "2", "--weighting", "hypervolume"]
    whole, _ = run(*flags, "--steps", "4", name="whole")
    _, folder = run(*flags, "--steps", "2", name="resumed")
    random.seed(5), np.random.seed(5)
    main(script, "--resume", folder, "--steps", "4")
    assert metrics_of(folder) == without_times(whole)
    other, _ = run(*flags, "--steps", "1", "--seed", "2", name="other")
    for key in ("rewards/accuracy/mean", "rewards/clarity/mean"):
        assert len({whole[1][key], whole[2][key], whole[3][key], other[1][key]}) == 4


@shared
def test_a_resumed_run_keeps_its_flags_and_takes_those_that_are_given(run, main, script, tmp_path):
    """With --output-dir, it becomes a new run, and the old one does not change."""
    flags = ["--objectives", "clarity", "accuracy", "--weights", "0.75", "0.25", "--weighting", "gradient"]
    flags += ["--influence-scale", "clip", "--prompt-suffix", " Why?", "--seed", "3", "--mu", "0.02"]
    expected, folder = run(*flags, "--steps", "3", "--checkpoint-every", "2")
    before, weights = metrics_of(folder), weights_of(folder)
    fork = tmp_path / "fork"
    main(script, "--resume", folder, "--output-dir", fork, "--learning-rate", "1e-4", "--steps", "4")
    assert metrics_of(folder) == before == without_times(expected)
    assert metrics_of(fork)[:3] == before[:3] and len(metrics_of(fork)) == 5
    assert [line["learning_rate"] for line in metrics_of(fork)[1:]] == [1e-3, 1e-3, 1e-4, 1e-4]
    main(script, "--resume", folder)
    assert metrics_of(folder) == before
    assert_same(weights, weights_of(folder))


def change_origin(folder):
    checkpoint = checkpoint_of(folder)
    checkpoint["origin"][0] = "rloo"
    torch.save(checkpoint, folder / "checkpoint.pt")


@shared
@pytest.mark.parametrize("case", ["missing checkpoint", "another algorithm"])
def test_a_run_that_cannot_be_resumed_is_refused_in_one_line(run, main, script, capsys, case):
    _, folder = run("--checkpoint-every", "1", "--steps", "1")
    change_origin(folder) if case == "another algorithm" else (folder / "checkpoint.pt").unlink()
    before, _ = metrics_of(folder), capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(script, "--resume", folder, "--steps", "2")
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "error: --resume" in err and err.count("\n") == 1
    assert metrics_of(folder) == before


@pytest.fixture
def tracked(run, main, script):
    """tracked(tracker): the folder of a run that ended after step 3 and was resumed from step 2."""

    def call(tracker):
        _, folder = run("--report-to", tracker, "--steps", "3", "--checkpoint-every", "2")
        main(script, "--resume", folder, "--steps", "4")
        return folder

    return call


class Events(dict):
    """Replaces TensorBoard: {folder: {name: [(step, value)]}}, the values that it would show."""

    def SummaryWriter(self, folder, purge_step, **_):  # noqa: N802
        scalars = self.setdefault(Path(folder), {})
        for name in scalars:
            scalars[name] = [(step, value) for step, value in scalars[name] if step < purge_step]

        def add_scalar(name, value, step):
            scalars.setdefault(name, []).append((step, value))

        return SimpleNamespace(add_scalar=add_scalar)


@shared
def test_tensorboard_gets_every_step_once_after_a_resume(tracked, monkeypatch):
    events = Events()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", events)
    folder = tracked("tensorboard")
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4] and events.keys() == {folder}
    for name in {name for line in lines for name in line} - {"step"}:
        assert events[folder][name] == [(line["step"], line[name]) for line in lines if name in line]


@shared
def test_the_real_tensorboard_shows_every_step_once_after_a_resume(tracked):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tracked("tensorboard")))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


class WeightsAndBiases(dict):
    """Replaces W&B: {run id: [steps]}. Like W&B, a run ignores steps that are earlier than its last one."""

    def init(self, id, resume, **_):
        assert resume == "allow" or id not in self
        steps = self.setdefault(id, [])

        def log(metrics, step):
            steps.extend([step] if step > max(steps, default=-1) else [])

        return SimpleNamespace(log=log)


@shared
def test_wandb_gets_every_step_once_after_a_resume(run, tracked, monkeypatch):
    steps = WeightsAndBiases()
    monkeypatch.setitem(sys.modules, "wandb", steps)
    run("--report-to", "wandb", "--steps", "1", name="other")
    assert steps == {"other": [0, 1], tracked("wandb").name: [0, 1, 2, 3, 4]}
