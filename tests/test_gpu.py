"""benchmarks/gpu.py, at toy sizes and on the CPU: it waits for a day on which there is a GPU, and must run then."""

import re
import subprocess
import sys

from conftest import ROOT


def test_all_its_parts_run_at_toy_sizes():
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--toy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\d)\. After", done.stdout, re.M) == list("12345")
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    assert sum(row[-1] == "yes" for row in rows) == 3 and not any("NO" in row for row in rows)
    # Continuous batching does not run on every machine without a GPU.
    assert [row[-1] for row in rows if row[0] == "embedded" and row[1] != "generate_batch"] == ["4 of 4"] * 3
    assert sum(row[0] == "toy" for row in rows) == 2


def test_without_a_gpu_it_says_so():
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cuda:7"]
    done = subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("there is no GPU here")


def test_a_step_that_differs_is_seen(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    one = {"reward": 0.5, "loss": 0.0, "grad_norm": 0.2, "influence/a": 1.0, "influence/b": 0.5, "weights/a": 0.4}
    assert max(gpu.differences(one, one).values()) == 0
    found = gpu.differences({**one, "grad_norm": 0.22, "influence/b": 0.4}, one)
    assert abs(found["grad_norm, relative"] - 0.1) < 1e-9 and abs(found["influence"] - 0.1) < 1e-9
    assert found["grad_norm, relative"] > gpu.ALLOWED["grad_norm, relative"]
