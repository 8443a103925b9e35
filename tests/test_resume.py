"""Runs that are killed, or finished, and resumed: they end as if they had never stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    ROOT,
    SCRIPTS,
    SMALL,
    all_files,
    read_lines,
    run_chains,
    shared,
    weights_of,
    without_times,
)

WEIGHTINGS = ["fixed", "hypervolume", "gradient"]
# Where a run with checkpoints after steps 2 and 4 is killed in step 4: as it writes the second checkpoint, in the
# evaluation before that, and in the update. All resume from step 2. LOGGED: the last step in metrics.jsonl.
KILLED_IN = {
    "fixed": ["os.replace", 2, ".tmp"],
    "hypervolume": ["evaluate", 8],
    "gradient": ["policy_loss", 7],
}
LOGGED = {"fixed": 4, "hypervolume": 3, "gradient": 3}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """The folder of runs SCRIPT-WEIGHTING-KIND: whole, killed (and resumed), finished (and resumed), all in one go."""
    base, chains = tmp_path_factory.mktemp("resumed"), []
    for script in SCRIPTS:
        for weighting in WEIGHTINGS:
            case = {"processes": 1, "script": script}
            run = f"{base}/{script}-{weighting}"
            whole, killed, finished = f"{run}-whole", f"{run}-killed", f"{run}-finished"
            flags = [
                *SMALL,
                "--model",
                folders["qwen3"],
                "--dataset",
                folders["data"],
                "--weighting",
                weighting,
            ]
            flags += ["--steps", "5", "--eval-every", "2", "--checkpoint-every", "2"]
            flags += ["--prompts-per-step", "2", "--updates-per-step", "2"]
            chains.append([{**case, "flags": [*flags, "--output-dir", whole]}])
            first = {**case, "killed_in": KILLED_IN[weighting], "exit_code": -signal.SIGKILL}
            copy = {**case, "copy": [killed, f"{killed}-copy"], "flags": ["--resume", killed]}
            chains.append([{**first, "flags": [*flags, "--output-dir", killed]}, copy])
            first = {
                **case,
                "flags": [*flags, "--output-dir", finished, "--steps", "3", "--checkpoint-every", "3"],
            }
            more = ["--resume", finished, "--steps", "5", "--checkpoint-every", "2"]
            chains.append([first, {**case, "copy": [finished, f"{finished}-copy"], "flags": more}])
    run_chains(chains)
    return base


def assert_same(one, other):
    """Two values out of a checkpoint are the same to the bit, but for times."""
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
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_ends_as_one_that_never_stopped(runs, script, weighting, kind):
    whole, resumed, before = (
        runs / f"{script}-{weighting}-{name}" for name in ("whole", kind, f"{kind}-copy")
    )
    lines = [without_times(read_lines(folder / "metrics.jsonl")) for folder in (whole, resumed, before)]
    assert [line["step"] for line in lines[0]] == [0, 1, 2, 3, 4, 5]
    assert lines[0] == lines[1]
    one, two = weights_of(whole), weights_of(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert (whole / "completions.jsonl").read_text() == (resumed / "completions.jsonl").read_text()
    saved = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, resumed, before)]
    for checkpoint in saved:
        del checkpoint["args"]
    assert saved[0]["state"]["step"] == 4
    assert_same(saved[0], saved[1])
    assert not list(resumed.glob("*.tmp"))
    # What it was resumed from: of a run that is finished, the last step was evaluated, as that of a longer one is not
    assert saved[2]["state"]["step"] == (2 if kind == "killed" else 3)
    assert (before / "model").exists() == (kind == "finished")
    logged = LOGGED[weighting] + 1 if kind == "killed" else 3
    assert lines[2][:logged] == lines[0][:logged]
    assert ["eval/hypervolume" in line for line in lines[2][:4]] == [True, False, True, kind == "finished"]


@shared
def test_two_objectives_and_other_settings_than_by_default_are_resumed(run, main, script):
    flags = ["--objectives", "clarity", "accuracy", "--weights", "0.75", "0.25", "--weighting", "gradient"]
    flags += ["--influence-scale", "clip"]
    flags += ["--prompt-suffix", " Why?", "--seed", "3", "--mu", "0.02", "--lr-schedule", "polynomial"]
    _, folder = run(*flags, "--steps", "3", "--checkpoint-every", "2")
    lines, before = read_lines(folder / "metrics.jsonl"), weights_of(folder)
    main(script, "--resume", folder)
    after = weights_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert without_times(read_lines(folder / "metrics.jsonl")) == without_times(lines)


@shared
def test_only_flags_that_change_no_result_may_change(
    run, main, script, folders, monkeypatch, tmp_path, capsys
):
    """An old value that is passed again is no change. A relative path of a model holds in another folder, too."""
    monkeypatch.chdir(folders["data"].parent)
    _, folder = run("--checkpoint-every", "1", "--model", "qwen3", "--dataset", "data")
    before = all_files(folder)
    for flags in (["--seed", "5"], ["--output-dir", "x"], ["--weighting=nash"], ["--enable-thinking"]):
        with pytest.raises(SystemExit) as stop:
            main(script, "--resume", folder, *flags)
        assert stop.value.code == 2 and all_files(folder) == before
        assert flags[0].split("=")[0] in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "4", "--micro-batch-size", "2", "--eval-every", "2", "--checkpoint-every", "3"]
    paths = ["--model", folders["qwen3"], f"--dataset={folders['data']}", "--seed", "1", "--weighting=fixed"]
    main(script, "--resume", folder.name, *flags, *paths)
    lines = read_lines(folder / "metrics.jsonl")
    assert ["eval/hypervolume" in line for line in lines] == [True, True, True, False, True]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"] == 3


class Harmful:
    """What pickle makes a file of when it is loaded."""

    def __reduce__(self):
        return open, ("harm.txt", "w")


REFUSED = {
    "no checkpoint": (lambda folder: (folder / "checkpoint.pt").unlink(), []),
    "no folder": (lambda folder: folder.rename(folder.with_name("other")), []),
    "a truncated checkpoint": (lambda folder: (folder / "checkpoint.pt").write_bytes(b"PK"), []),
    "a checkpoint that would run code": (lambda folder: torch.save(Harmful(), folder / "checkpoint.pt"), []),
    "a foreign checkpoint": (lambda folder: torch.save({"a": 1}, folder / "checkpoint.pt"), []),
    "another model": (lambda folder: None, ["--model", "{gpt2}"]),
    "an old checkpoint": (
        lambda folder: torch.save({"algorithm": "grpo", "step": 1}, folder / "checkpoint.pt"),
        [],
    ),
    "another algorithm": (lambda folder: change(folder, origin=["rloo", 1]), []),
    "other processes": (lambda folder: change(folder, origin=["grpo", 2]), []),
    "fewer steps than made": (lambda folder: None, ["--steps", "1"]),
    "more steps of a falling learning rate": (
        lambda folder: change(folder, args={**load(folder)["args"], "lr_schedule": "polynomial"}),
        ["--steps", "3"],
    ),
}


def load(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def change(folder, **values):
    torch.save({**load(folder), **values}, folder / "checkpoint.pt")


@shared
def test_what_cannot_be_resumed_is_refused_in_one_line_and_left_as_it_is(
    run, main, script, folders, capfd, subtests
):
    _, made = run("--checkpoint-every", "1", "--steps", "2")
    for name, (damage, flags) in REFUSED.items():
        with subtests.test(name):
            folder = made.with_name(name.replace(" ", "-"))
            for path, content in all_files(made).items():
                (folder / path.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
                (folder / path.relative_to(made)).write_bytes(content)
            damage(folder)
            before = all_files(folder)
            capfd.readouterr()
            with pytest.raises(SystemExit) as stop:
                main(script, "--resume", folder, *[flag.format(**folders) for flag in flags])
            err = capfd.readouterr().err
            assert stop.value.code == 2 and err.startswith("grpo_dynw.py: error: ") and err.count("\n") == 1
            assert all_files(folder) == before and not Path("harm.txt").exists()


# Where else metrics go


class Events(dict):
    """In place of TensorBoard: what it shows of a folder, which is what all its writers have written."""

    def SummaryWriter(self, folder, purge_step=None):  # noqa: N802
        shown = self.setdefault(Path(folder), {})
        for name in shown:
            shown[name] = [(step, value) for step, value in shown[name] if step < (purge_step or 0)]

        def add_scalar(name, value, step):
            shown.setdefault(name, []).append((step, value))

        return SimpleNamespace(add_scalar=add_scalar, close=lambda: None, flush=lambda: None)


@shared
def test_tensorboard_shows_every_step_once_after_a_resume(run, main, script, monkeypatch):
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
def test_tensorboard_itself_shows_every_step_once_after_a_resume(run, main, script):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, folder = run("--report-to", "tensorboard", "--steps", "3", "--checkpoint-every", "2")
    main(script, "--resume", folder, "--steps", "4")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/hypervolume")] == [0, 1, 2, 3, 4]


@shared
def test_ctrl_c_ends_a_run_in_one_line(script, folders, tmp_path):
    inputs = [
        *SMALL,
        "--model",
        folders["qwen3"],
        "--dataset",
        folders["data"],
        "--output-dir",
        tmp_path / "run",
    ]
    process = subprocess.Popen(
        [sys.executable, ROOT / "grpo_dynw.py", *inputs, "--steps", "10000"],
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
