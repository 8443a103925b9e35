"""The embedded model and data are as tiny/README.md describes them."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, read_lines
from safetensors.torch import load_file
from test_algorithm import arguments
from transformers import AutoConfig

import grpo_dynw
import rewards

TINY = ROOT / "tiny"
SPLITS = {split: read_lines(TINY / f"data/{split}.jsonl") for split in ("train", "validation", "test")}


def test_the_answers_are_right_and_no_two_problems_are_alike():
    assert [len(rows) for rows in SPLITS.values()] == [4000, 100, 200]
    all_rows = [row for rows in SPLITS.values() for row in rows]
    assert len({row["problem"] for row in all_rows}) == len(all_rows)
    for row in all_rows:
        assert row.keys() == {"problem", "answer"}
        terms = re.fullmatch(r"What is (\d+(?:[+-]\d+){4})\?", row["problem"]).group(1)
        assert str(eval(terms)) == row["answer"]


def test_the_model_is_a_small_qwen3_in_float32():
    weights = load_file(TINY / "model/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert 0.5e6 < sum(weight.numel() for weight in weights.values()) < 1.5e6
    assert (TINY / "model/model.safetensors").stat().st_size <= 8e6
    assert AutoConfig.from_pretrained(TINY / "model").architectures == ["Qwen3ForCausalLM"]


@pytest.mark.parametrize("sample", [True, False])
def test_the_initial_model_is_partly_accurate_wordy_and_often_cut_off(sample):
    args = arguments(model=str(TINY / "model"), max_new_tokens=96, rollout_batch_size=200)
    model, tokenizer = grpo_dynw.load_model(args)
    problems = rewards.read_problems(str(TINY / "data"), ["test"], tokenizer, 64)["test"]
    assert len(problems) == 200
    torch.manual_seed(1)
    batch = grpo_dynw.rollout(model, tokenizer, problems, args, sample)
    lengths = batch["lengths"].tolist()
    scores = rewards.score(["accuracy", "clarity"], batch["texts"], problems, lengths, 0, split="test")
    accuracy, clarity = (sum(column) / 200 for column in zip(*scores))
    assert 0.2 <= accuracy <= 0.65
    assert 0.1 <= clarity <= 0.6
    assert sum(lengths) / 200 >= 0.6 * 96
    assert 0.2 <= batch["cut_off"].sum() / 200 <= 0.6


def test_make_tiny_makes_these_data_and_a_model_that_loads(tmp_path):
    command = [sys.executable, TINY / "make_tiny.py", "--output", tmp_path]
    command += ["--skill-updates", "1", "--shortcut-updates", "1", "--manner-updates", "1"]
    subprocess.run(command, check=True, capture_output=True)
    for split in SPLITS:
        assert (tmp_path / f"data/{split}.jsonl").read_bytes() == (TINY / f"data/{split}.jsonl").read_bytes()
    assert (tmp_path / "model/tokenizer.json").read_bytes() == (TINY / "model/tokenizer.json").read_bytes()
    model, _ = grpo_dynw.load_model(arguments(model=str(tmp_path / "model")))
    assert model.generation_config.eos_token_id == [2]
