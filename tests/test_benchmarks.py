"""Protects the formulas of benchmarks/ and the smallest run of step_cost.py."""

import os
import sys
from statistics import fmean
from unittest.mock import patch

import moocore
import numpy as np
import pytest
import torch
from conftest import ROOT, read_lines
from test_compare import NAMES
from test_experiment import table

sys.path.insert(0, str(ROOT / "benchmarks"))
import adamw
import smollm2
import step_cost


def test_the_probe_is_right_and_steps_are_timed(tmp_path, monkeypatch):
    model = step_cost.make_model("toy", tmp_path)
    assert max(float(row[-1]) for row in step_cost.probe_rows("toy", model, "cpu", 1)[1:]) < 1e-5

    kind = "gradient", 1
    monkeypatch.setattr(step_cost, "KINDS", [kind])
    [[run]] = step_cost.time_runs([ROOT], step_cost.flags_of("toy", model, "cpu"), 1, 2).values()
    assert run.shape == (2, 5) and run[:, :3].min() > 0
    runs = {(kind, ROOT): [2 * run, 3 * run], (kind, "old"): [run, 2 * run]}
    assert step_cost.step_rows(runs)[-1][-2] == "1.750 (1.500 to 2.000)"


def test_adamw_gets_a_factor_that_doubles():
    ratios, weight = [[]], torch.nn.Parameter(torch.zeros(3))
    with patch.object(torch.optim.AdamW, "step", adamw.make_recorder([[1.0, 2.0]], ratios)):
        optimizer = torch.optim.AdamW([weight])
        for _ in range(2):
            weight.grad = torch.tensor([1.0, -2.0, 3.0])
            optimizer.step()
    mean, square = (0.9 + 2) / 1.9, (0.999 + 4) / 1.999
    assert ratios[0] == pytest.approx([1, mean / square**0.5], rel=1e-4)


def test_word_problems_and_interrupted_runs(tmp_path):
    smollm2.make_data(tmp_path / "data")
    for row in read_lines(tmp_path / "data/test.jsonl"):
        a, b = [int(word) for word in row["prompt"][-1]["content"].split() if word.isdigit()]
        assert int(row["answer"]) == a + b

    assert "--resume" not in smollm2.command(tmp_path, "fixed", [])
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed/checkpoint.pt").touch()
    assert "--resume" in smollm2.command(tmp_path, "fixed", [])


def test_runs_side_by_side():
    code = "import os, sys; sys.exit(int(sys.argv[1]) + int(os.environ['OMP_NUM_THREADS']))"
    with pytest.raises(SystemExit) as stopped:
        smollm2.run_side_by_side([[sys.executable, "-c", code, number] for number in ("0", "5")])
    assert stopped.value.code == 5 + max(1, os.cpu_count() // 2)


def test_other_flags_need_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--output", str(tmp_path), "--seed=2"])
    (tmp_path / "fixed").mkdir()
    (tmp_path / "flags.txt").write_text("--seed=1")
    with pytest.raises(SystemExit) as stopped:
        smollm2.main()
    assert stopped.value.code == 2


def test_table_of_the_chat_model():
    folder = ROOT / "benchmarks/smollm2"
    rows = table("## Results", (folder / "README.md").read_text())[1:]
    assert [row[0] for row in rows] == smollm2.WEIGHTINGS
    for name, *cells in rows:
        first, *steps = lines = read_lines(folder / name / "metrics.jsonl")
        assert len(steps) == 40
        keys = [f"eval/performance/{k}" for k in NAMES]
        points = np.array([[line[k] for k in keys] for line in lines if keys[0] in line])
        row = [f"{first[k]:.2f} → {steps[-1][k]:.2f}" for k in keys]
        row.append(f"{moocore.hypervolume(points, ref=[0, 0, 0], maximise=True):.3f}")
        for key in ("rewards/accuracy/mean", "rewards/clarity/mean", "completions/mean_length"):
            means = [fmean(line[key] for line in part) for part in (steps[:5], steps[35:])]
            row.append(" → ".join(f"{x:.{1 if 'length' in key else 2}f}" for x in means))
        assert cells == [*row, " ".join(f"{steps[-1][f'weights/{k}']:.2f}" for k in NAMES)]
