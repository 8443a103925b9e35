"""benchmarks/gpu.py, at toy sizes and on the CPU: it waits for a day on which there is a GPU, and must run then."""

import math
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT


def rows_of(*parts):
    """The rows of these parts, run as anyone would, all of which are as they should be."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--toy", "--parts", *parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^Part (\d):", done.stdout, re.M) == [part for part in "123345" if part in parts]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    assert not any("NO" in row for row in rows)
    return rows


def test_it_resumes_and_runs_under_torchrun():
    assert sum(row[-1] == "yes" for row in rows_of("4", "5")) == 2


@pytest.mark.slow
def test_it_compares_with_the_cpu_and_times_steps_and_rollouts():
    rows = rows_of("1", "2", "3")
    assert sum(row[-1] == "yes" for row in rows) == 1
    # Continuous batching does not run on every machine without a GPU.
    for name in ("embedded", "random"):
        assert [row[-1] for row in rows if row[0] == name and row[1] != "generate_batch"] == ["4 of 4"] * 3
    assert sum(row[0] == "toy" for row in rows) == 2


def test_without_a_gpu_it_says_so():
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cuda:7"]
    done = subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("there is no GPU here")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.parametrize("replayed, said", [(True, "yes"), (False, "NO")])
def test_a_step_is_compared_on_the_same_responses(gpu, folders, monkeypatch, tmp_path, replayed, said):
    """The device samples others, as a GPU does: the steps are the same only where the responses are given."""
    first_step, train, seed = gpu.first_step, gpu.train, torch.manual_seed

    def sampling_others(script, folder, *flags):
        monkeypatch.setattr(torch, "manual_seed", lambda n: seed(n + (not str(folder).endswith("-cpu"))))
        return train(script, folder, *flags)

    monkeypatch.setattr(gpu, "train", sampling_others)
    if not replayed:
        monkeypatch.setattr(gpu, "first_step", lambda script, kept: first_step(script, []))
    flags = ["--prompts-per-step", "2", "--num-generations", "4", "--max-new-tokens", "64"]
    assert list(gpu.against_the_cpu("cpu", folders["data"], flags, tmp_path))[-1][-1] == said


@pytest.mark.slow
def test_a_resumed_run_that_lost_its_optimiser_or_its_generator_is_seen(gpu, folders, monkeypatch, tmp_path):
    from torch.distributed.checkpoint import state_dict

    flags = ["--prompts-per-step", "2", "--num-generations", "4", "--max-new-tokens", "64"]
    set_state = state_dict.set_state_dict

    def without_moments(policy, optimizer, *, model_state_dict, optim_state_dict, options):
        for state in optim_state_dict["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(state[name])
        return set_state(policy, optimizer, model_state_dict=model_state_dict, optim_state_dict=optim_state_dict,
                         options=options)  # fmt: skip

    monkeypatch.setattr(state_dict, "set_state_dict", without_moments)
    assert list(gpu.resumed("cpu", folders["data"], flags, tmp_path / "a"))[-1][-1] == "NO"
    monkeypatch.undo()
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert list(gpu.resumed("cpu", folders["data"], flags, tmp_path / "b"))[-1][-1] == "NO"


def test_a_step_that_differs_is_seen(gpu):
    one = {
        "rewards/a/mean": 0.5,
        "loss": 0.0,
        "grad_norm": 0.2,
        "influence/a": 1.0,
        "influence/b": 0.5,
        "weights/a": 0.4,
    }
    assert max(gpu.differences(one, one).values()) == 0
    for key, change, what in (
        ("rewards/a/mean", 0.01, "rewards"),
        ("loss", -0.01, "loss"),
        ("grad_norm", 0.02, "grad_norm, relative"),
        ("influence/b", -0.1, "influence"),
        ("weights/a", 0.01, "weights"),
    ):
        found = gpu.differences({**one, key: one[key] + change}, one)
        assert [name for name, most in gpu.ALLOWED.items() if found[name] > most] == [what]
    for key in one:  # as what is not finite is logged
        assert max(gpu.differences({**one, key: None}, one).values()) == math.inf


def test_a_part_that_fails_keeps_its_rows_and_says_so(gpu, monkeypatch, capsys):
    def fails(*_):
        yield ["what", "as it should be"]
        yield ["first", "yes"]
        raise RuntimeError("CUDA error:\nan illegal | access")

    monkeypatch.setattr(gpu, "resumed", fails)
    assert not gpu.run_part(4, "cpu", True)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["| first | yes |", "| it failed: RuntimeError: CUDA error: an illegal / access | NO |"]


def test_a_part_that_hangs_is_stopped(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--toy", "--parts", "4", "5"])
    monkeypatch.setattr(gpu, "SECONDS", dict.fromkeys(gpu.SECONDS, 0.01))
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 1
    assert re.findall(r"Part (\d) was stopped", capsys.readouterr().out) == ["4", "5"]
