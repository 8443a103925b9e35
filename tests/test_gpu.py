"""benchmarks/gpu.py is for a GPU. These tests run it on a CPU, with toy sizes."""

import argparse
import math
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

# Long enough that some sampled responses are not cut off.
FLAGS = ["--prompts-per-step", "2", "--num-generations", "4", "--max-new-tokens", "64"]


def run_parts(*parts):
    """Runs parts of gpu.py as a command, checks that all passed, and returns the rows of their tables."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--toy", "--parts", *parts]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    tables = re.findall(r"^Part (\d):", result.stdout, re.MULTILINE)
    assert tables == [part for part in "123345" if part in parts]  # Part 3 has two tables.
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("|")]
    assert not any("NO" in row for row in rows)
    return rows


@pytest.mark.slow
def test_resumed_and_sharded_runs_pass():
    assert sum(row[-1] == "yes" for row in run_parts("4", "5")) == 2


@pytest.mark.slow
def test_all_weightings_pass_and_steps_and_rollouts_are_timed():
    rows = run_parts("1", "2", "3")
    passed = [row[1] for row in rows if row[-1] == "yes"]
    assert passed == ["fixed", "hypervolume", "gradient", "nash"]
    assert sum(row[0] == "toy" for row in rows) == 2
    # Continuous batching does not run on every machine without a GPU.
    for name in ("embedded", "random"):
        assert [row[-1] for row in rows if row[0] == name and row[1] != "generate_batch"] == ["4 of 4"] * 3


def test_without_a_gpu_the_error_is_one_line():
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cuda:7"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("this machine has no GPU")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.parametrize("replay, passed", [(True, "yes"), (False, "NO")])
def test_a_step_passes_only_if_it_has_the_same_responses(gpu, folders, monkeypatch, tmp_path, replay, passed):
    """The device gets other seeds than the CPU, so it samples other responses, as a GPU does."""
    replay_first_rollout, train, seed = gpu.replay_first_rollout, gpu.train, torch.manual_seed

    def train_with_other_seed(script, folder, *flags):
        offset = 0 if str(folder).endswith("-cpu") else 1
        monkeypatch.setattr(torch, "manual_seed", lambda n: seed(n + offset))
        return train(script, folder, *flags)

    monkeypatch.setattr(gpu, "WEIGHTINGS", ["gradient"])
    monkeypatch.setattr(gpu, "train", train_with_other_seed)
    if not replay:
        monkeypatch.setattr(gpu, "replay_first_rollout", lambda script, _: replay_first_rollout(script, []))
    rows = list(gpu.compare_with_cpu("cpu", folders["data"], FLAGS, tmp_path))
    assert len(rows) == 3
    assert rows[-1][-1] == passed


@pytest.mark.slow
def test_a_resumed_run_without_its_moments_fails(gpu, folders, monkeypatch, tmp_path):
    from torch.distributed.checkpoint import state_dict

    set_state_dict = state_dict.set_state_dict

    def set_without_moments(policy, optimizer, *, optim_state_dict, **options):
        for state in optim_state_dict["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(state[name])
        return set_state_dict(policy, optimizer, optim_state_dict=optim_state_dict, **options)

    monkeypatch.setattr(state_dict, "set_state_dict", set_without_moments)
    assert list(gpu.compare_resumed("cpu", folders["data"], FLAGS, tmp_path))[-1][-1] == "NO"


@pytest.mark.slow
def test_a_resumed_run_without_its_random_state_fails(gpu, folders, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert list(gpu.compare_resumed("cpu", folders["data"], FLAGS, tmp_path))[-1][-1] == "NO"


def test_evaluations_are_short_where_they_are_not_measured(gpu):
    script = gpu.load_script("grpo")
    script.evaluate = lambda *inputs: inputs
    args = argparse.Namespace(max_new_tokens=256, seed=1)
    *others, short = gpu.with_short_evaluations(script).evaluate("model", "tokenizer", args)
    assert others == ["model", "tokenizer"]
    assert vars(short) == {"max_new_tokens": 8, "seed": 1}
    assert args.max_new_tokens == 256


STEP = {"rewards/a/mean": 0.5, "loss": 0.0, "grad_norm": 0.2, "weights/a": 0.4}
STEP |= {"influence/a": 1.0, "influence/b": 0.5}


def test_equal_steps_have_no_differences(gpu):
    assert max(gpu.compare_steps(STEP, STEP).values()) == 0


@pytest.mark.parametrize(
    "metric, change, difference",
    [
        ("rewards/a/mean", 0.01, "rewards"),
        ("loss", -0.01, "loss"),
        ("grad_norm", 0.02, "grad_norm, relative"),
        ("influence/b", -0.1, "influence"),
        ("weights/a", 0.01, "weights"),
    ],
)
def test_a_change_exceeds_the_tolerance_of_its_metric_alone(gpu, metric, change, difference):
    differences = gpu.compare_steps({**STEP, metric: STEP[metric] + change}, STEP)
    exceeded = [name for name, tolerance in gpu.TOLERANCES.items() if differences[name] > tolerance]
    assert exceeded == [difference]
    assert not gpu.within(differences, gpu.TOLERANCES)


@pytest.mark.parametrize("metric", STEP)
def test_a_metric_that_is_not_finite_never_passes(gpu, metric):
    """The scripts log null for it."""
    assert max(gpu.compare_steps({**STEP, metric: None}, STEP).values()) == math.inf


def test_a_part_that_fails_keeps_its_rows_and_adds_the_error(gpu, monkeypatch, capsys):
    def raise_after_a_row(*_):
        yield ["name", "passed"]
        yield ["first", "yes"]
        raise RuntimeError("CUDA error:\nan illegal | access")

    monkeypatch.setattr(gpu, "compare_resumed", raise_after_a_row)
    assert not gpu.run_part(4, "cpu", True)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["| first | yes |", "| failed: RuntimeError: CUDA error: an illegal / access | NO |"]


def test_a_part_is_stopped_at_its_time_limit(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--toy", "--parts", "4", "5"])
    monkeypatch.setattr(gpu, "TIME_LIMITS", dict.fromkeys(gpu.TIME_LIMITS, 0.01))
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 1
    assert re.findall(r"Part (\d) was stopped", capsys.readouterr().out) == ["4", "5"]
