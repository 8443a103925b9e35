"""benchmarks/gpu.py is for a GPU. These tests run it on a CPU, with toy sizes."""

import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

GPU = ROOT / "benchmarks/gpu.py"
STEP = {"rewards/a/mean": 0.5, "loss": 0.0, "grad_norm": 0.2, "weights/a": 0.4}
STEP |= {"influence/a": 1.0, "influence/b": 0.5}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.fixture
def one_run(gpu, monkeypatch, tmp_path):
    """one_run(*flags): part 1 with one script and one weighting. Returns the last row of its table."""
    monkeypatch.setattr(gpu, "ALGORITHMS", ["grpo"])
    monkeypatch.setattr(gpu, "WEIGHTINGS", ["gradient"])
    gpu.write_data(tmp_path / "data")

    def call(*flags):
        options = [*gpu.TOY_FLAGS, *flags]
        rows = list(gpu.compare_with_cpu("cpu", tmp_path / "data", options, tmp_path))
        assert len(rows) == 3
        return rows[-1]

    return call


# ---------- The whole script ----------


@pytest.mark.slow
def test_all_parts_pass_with_toy_sizes():
    start = time.monotonic()
    command = [sys.executable, GPU, "--device", "cpu", "--toy"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.findall(r"^Part (\d):", result.stdout, re.MULTILINE) == list("123455")  # Part 5 has two tables.
    seconds = [int(n) for n in re.findall(r"^Part \d took (\d+) s", result.stdout, re.MULTILINE)]
    assert len(seconds) == 5
    assert abs(time.monotonic() - start - sum(seconds)) < 15

    rows = [line.strip("|").split("|") for line in result.stdout.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in row] for row in rows]
    passed = [row[:2] for row in rows if row[-1] == "yes"]
    weightings = ["fixed", "hypervolume", "gradient", "nash"]
    assert passed[:12] == [[script, w] for script in ("grpo", "rloo", "reinforce") for w in weightings]
    assert [row[0] for row in passed[12:]] == [
        *["embedded", "toy", "toy", "toy", "1", "2", "end"],
        *["difference", "difference"],
    ]
    assert [row[5] for row in rows if row[0] == "embedded"] == ["8 of 8"] * 3


def test_missing_packages_are_named_in_one_line_before_any_is_imported(tmp_path):
    for name in ("torch", "transformers", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "transformers-5.17.0.dist-info").mkdir()
    (tmp_path / "transformers-5.17.0.dist-info/METADATA").write_text("Name: transformers\nVersion: 5.17.0\n")
    command = [sys.executable, "-S", GPU]  # without site-packages
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    missing, old = line.split("; ")
    expected = "datasets matplotlib dill multiprocess pandas pyarrow xxhash"
    assert missing.split("packages: ")[1] == expected
    assert old.startswith("transformers 5.17.0 is older than ")


def test_old_packages_only_give_a_warning(gpu, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu.importlib.metadata, "version", lambda name: "2.9.1" if name == "torch" else "99.0"
    )
    gpu.check_packages()
    assert capsys.readouterr().err == "gpu.py: warning: torch 2.9.1 is older than 2.11\n"


def test_without_a_gpu_the_error_is_one_line():
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    command = [sys.executable, GPU, "--device", "cuda:7"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("this machine has no GPU")


# ---------- Processes ----------


def test_a_part_over_its_limit_is_killed_with_its_children_and_later_parts_run(
    gpu, monkeypatch, capfd, tmp_path
):
    """The child is in another process group, as those of torchrun are."""
    part = """
import subprocess, sys, time
if sys.argv[sys.argv.index("--run") + 1] == "1":
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    print("child", child.pid, flush=True)
    time.sleep(60)
print("later part", flush=True)
"""
    (tmp_path / "part.py").write_text(part)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))
    monkeypatch.setattr(gpu, "TIME_LIMIT", 2)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--toy", "--parts", "1", "2"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 1
    output = capfd.readouterr().out
    lines = re.findall(r"^(Part 1 was stopped after|later part|Part 2 took)", output, re.MULTILINE)
    assert lines == ["Part 1 was stopped after", "later part", "Part 2 took"]
    status = Path("/proc", re.search(r"child (\d+)", output)[1], "status")
    # A process that was killed may stay as a zombie if nothing waits for it.
    assert not status.exists() or "zombie" in status.read_text()


def test_a_part_that_fails_keeps_its_rows_and_adds_the_error(gpu, monkeypatch, capsys, tmp_path):
    def raise_after_a_row(*_):
        yield ["name", "passed"]
        yield ["first", "yes"]
        raise RuntimeError("CUDA error:\nan illegal | access")

    monkeypatch.setattr(gpu, "run_readme_command", raise_after_a_row)
    assert not gpu.run_part(4, "cpu", True, False, tmp_path)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["| first | yes |", "| failed: RuntimeError: CUDA error: an illegal / access | NO |"]


@pytest.mark.parametrize(
    "cell, is_right", [("yes", True), ("", True), ("NO", False), ("nothing happened", False)]
)
def test_a_part_is_right_only_if_each_check_says_yes(gpu, monkeypatch, tmp_path, cell, is_right):
    monkeypatch.setattr(gpu, "run_readme_command", lambda *_: iter([["titles"], [cell], ["yes"]]))
    assert gpu.run_part(4, "cpu", True, False, tmp_path) == is_right


# ---------- Verdicts ----------


@pytest.mark.parametrize(
    "shares, norm, is_right, passed",
    [
        ([0.9, 1.0], 0.1, True, "yes"),
        ([0.9, 1.0], 0.1, False, "NO"),
        ([1.0, 1.0], 0.1, True, "nothing happened"),
        ([0.9, 1.0], 0.0, True, "nothing happened"),
        ([0.9, 1.0], None, True, "NO"),
        ([0.9, 1.0], math.nan, True, "NO"),
    ],
)
def test_a_row_says_yes_only_if_something_happened(gpu, shares, norm, is_right, passed):
    step = {f"rewards/{name}/frac_zero_std": share for name, share in zip("ab", shares)}
    good = {"rewards/a/frac_zero_std": 0.5, "grad_norm": 1.0}
    assert gpu.verdict(is_right, good, {**step, "grad_norm": norm}) == passed


def test_a_step_with_equal_rewards_is_no_success(one_run):
    """Responses of one token have the same length and no answer."""
    *_, weights, passed = one_run("--max-new-tokens", "1")
    assert (weights, passed) == ("0.0e+00", "nothing happened")


@pytest.mark.parametrize("replay, passed", [(True, "yes"), (False, "NO")])
def test_a_step_passes_only_if_it_has_the_same_responses(gpu, one_run, monkeypatch, replay, passed):
    """The device gets other seeds than the CPU, so it samples other responses, as a GPU does."""
    replay_rollouts, train, seed = gpu.replay_rollouts, gpu.train, torch.manual_seed

    def train_with_other_seed(script, folder, *flags):
        offset = 0 if str(folder).endswith("-1") else 1
        monkeypatch.setattr(torch, "manual_seed", lambda n: seed(n + offset))
        return train(script, folder, *flags)

    monkeypatch.setattr(gpu, "train", train_with_other_seed)
    if not replay:
        monkeypatch.setattr(gpu, "replay_rollouts", lambda script, _: replay_rollouts(script, []))
    assert one_run()[-1] == passed


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
    happened = {"rewards/a/frac_zero_std": 0.5}
    step = {**happened, **STEP, metric: STEP[metric] + change}
    differences = gpu.compare_steps(step, {**happened, **STEP})
    exceeded = [name for name, tolerance in gpu.TOLERANCES.items() if differences[name] > tolerance]
    assert exceeded == [difference]
    assert gpu.difference_cells(differences, gpu.TOLERANCES, step)[-1] == "NO"


@pytest.mark.parametrize("metric", STEP)
def test_a_metric_that_is_not_finite_never_passes(gpu, metric):
    """The scripts log null for it."""
    assert max(gpu.compare_steps({**STEP, metric: None}, STEP).values()) == math.inf


# ---------- Parts 2 to 5 ----------


@pytest.mark.parametrize("fault", ["wrong token", "exception"])
def test_a_cuda_graph_that_fails_is_found_and_the_other_ways_are_timed(gpu, monkeypatch, tmp_path, fault):
    respond = gpu.grpo_dynw.respond

    def respond_wrongly(*inputs, **options):
        responses = respond(*inputs, **options)
        if "graph" in options and fault == "exception":
            raise RuntimeError("operation not permitted")
        if "graph" in options:
            responses[0, 0] += 1
        return responses

    monkeypatch.setattr(gpu.grpo_dynw, "respond", respond_wrongly)
    monkeypatch.setattr(gpu, "run_limited", lambda *_, **__: (None, None))
    gpu.write_data(tmp_path / "data")
    rows = list(gpu.time_ways("cpu", True, tmp_path))[1:]
    assert [row[-1] for row in rows] == ["", "", "NO", "", "", "NO", ""]
    expected = "7 of 8" if fault == "wrong token" else "RuntimeError: operation not permitted"
    assert [rows[i][5] for i in (0, 2, 3, 5)] == ["8 of 8", expected] * 2
    assert rows[-1][5].startswith("not done in ")


def test_the_micro_batch_is_the_largest_that_fits(gpu, monkeypatch, tmp_path):
    train, sizes = gpu.train, []

    def train_if_it_fits(script, folder, _, size, *flags):
        sizes.append(size)
        if size > (16 if "fixed" in flags else 8):
            raise RuntimeError("CUDA out of memory")
        return train(script, folder, "--micro-batch-size", size, *flags)

    monkeypatch.setattr(gpu, "train", train_if_it_fits)
    gpu.write_data(tmp_path / "data")
    _, fixed, gradient = gpu.time_steps("cpu", tmp_path / "data", True, False, tmp_path)
    assert sizes == [64, 32, 16, 16, 8]
    assert (fixed[3], gradient[3]) == (16, 8)
    assert fixed[4] == gradient[4] > "0.00"  # the time of the only rollout
    assert (fixed[-1], gradient[-1]) == ("yes", "yes")


def test_a_shape_that_never_fits_has_a_row(gpu, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(gpu, "train", fail)
    rows = list(gpu.time_steps("cpu", tmp_path, True, False, tmp_path))
    assert [row[-1] for row in rows[1:]] == ["out of memory"] * 2


def test_the_command_of_the_readme_must_end_without_an_error(gpu, tmp_path):
    *_, last = gpu.run_readme_command("cpu", ["--steps", "one"], tmp_path)
    assert last[0] == "end"
    assert "--steps" in last[1]
    assert last[-1] == "NO"


@pytest.mark.slow
def test_a_resumed_run_without_its_moments_fails(gpu, monkeypatch, tmp_path):
    from torch.distributed.checkpoint import state_dict

    set_state_dict = state_dict.set_state_dict

    def set_without_moments(policy, optimizer, *, optim_state_dict, **options):
        for state in optim_state_dict["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(state[name])
        return set_state_dict(policy, optimizer, optim_state_dict=optim_state_dict, **options)

    monkeypatch.setattr(state_dict, "set_state_dict", set_without_moments)
    gpu.write_data(tmp_path / "data")
    assert list(gpu.compare_resumed("cpu", tmp_path / "data", gpu.TOY_FLAGS, tmp_path))[-1][-1] == "NO"


@pytest.mark.slow
def test_a_resumed_run_without_its_random_state_fails(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    gpu.write_data(tmp_path / "data")
    assert list(gpu.compare_resumed("cpu", tmp_path / "data", gpu.TOY_FLAGS, tmp_path))[-1][-1] == "NO"
