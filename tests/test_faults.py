"""Unusual or broken models, tokenizers, objectives and disks, and runs that are killed at random."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, shared, without_times
from safetensors.torch import load_file, save_file
from test_resume import assert_same
from test_runs import refused
from transformers import AutoTokenizer

import compare
import grpo_dynw
import rewards

# A program that runs grpo_dynw.py with an added objective.
PROGRAM = """
import sys, runpy
sys.path.insert(0, {root!r})
import rewards
{objective}
sys.argv = ["grpo_dynw.py", *{flags!r}]
runpy.run_path({root!r} + "/grpo_dynw.py", run_name="__main__")
"""


def copy_model(folder, copy, **settings):
    """Copies the folder of a model and changes its tokenizer's settings. Returns the copy and tokenizer."""
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(copy)
    return copy, tokenizer


@shared
def test_a_pad_token_without_an_embedding_is_replaced(run, folders, tmp_path):
    folder, tokenizer = copy_model(folders["qwen3"], tmp_path / "padded")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    model, _, _ = grpo_dynw.load_model(str(folder), "cpu")
    assert tokenizer.pad_token_id == model.get_input_embeddings().num_embeddings
    metrics, _ = run("--model", folder, "--steps", "1")
    expected, _ = run("--steps", "1", name="expected")
    assert metrics[1]["loss"] == expected[1]["loss"]


@shared
def test_the_error_of_a_chat_template_is_reported(run, folders, script, tmp_path, monkeypatch, capfd):
    template = "{{ raise_exception('Only for poems, ' + messages[0].content[:4]) }}"
    folder, _ = copy_model(folders["qwen3"], tmp_path / "raising", chat_template=template)
    assert "Only for poems" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", folder)


@shared
def test_tokens_without_an_embedding_are_refused(run, folders, script, tmp_path, monkeypatch, capfd):
    template = "{{ messages[0].content }}<new>"
    folder, tokenizer = copy_model(folders["qwen3"], tmp_path / "larger", chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    tokenizer.save_pretrained(folder)
    assert "tokens beyond the 308" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", folder)


@shared
def test_weights_that_are_not_finite_are_refused(run, folders, script, tmp_path, monkeypatch, capfd):
    folder, _ = copy_model(folders["qwen3"], tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "not finite" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", folder)


def test_the_end_of_a_turn_ends_a_response_of_a_base_model(folders, tmp_path):
    """
    The only end token in the settings of a base model is the end of a document, here <|endoftext|>. But its
    chat template ends a turn with <|im_end|>.
    """
    folder, _ = copy_model(folders["qwen3"], tmp_path / "base", eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": 0}))
    model, tokenizer, _ = grpo_dynw.load_model(str(folder), "cpu")
    assert model.generation_config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert rewards.turn_end(tokenizer) is None  # A newline does not end a response.


def run_program(folders, objective, *flags):
    """Runs the code `objective` and then grpo_dynw.py in a new process. Returns its exit code and output."""
    flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"], *flags]
    code = PROGRAM.format(root=str(ROOT), objective=objective, flags=list(map(str, flags)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_error_of_an_objective_names_it_and_leaves_the_last_checkpoint(folders, tmp_path):
    objective = "@rewards.objective\ndef mood(step, **_):\n    return 1 / (step - 2)"
    flags = ["--objectives", "mood", "accuracy", "--output-dir", tmp_path / "run", "--checkpoint-every", "1"]
    result = run_program(folders, objective, *flags)
    assert result.returncode == 1 and "Traceback" in result.stderr and "in mood" in result.stderr
    error = result.stderr[result.stderr.index("ZeroDivisionError") :]
    assert "objective mood, split train, step 2" in error
    assert "the prompt begins with '<|im_start|>user" in error
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["state"]["step"] == 1


@shared
@pytest.mark.parametrize("value, count", [(1.5, 1), (-0.5, 1), (1.0, 0)])
def test_rewards_outside_the_unit_interval_cause_one_warning(run, value, count):
    rewards.OBJECTIVES["mood"] = lambda **_: value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as outside of pytest: once for each line of code
        run("--objectives", "mood", "accuracy", "--weighting", "hypervolume", "--steps", "3")
    messages = [str(warning.message) for warning in caught]
    assert messages.count("--weighting hypervolume expects rewards in [0, 1]") == count


@shared
@pytest.mark.parametrize("weighting", ["fixed", "gradient", "nash"])
def test_an_objective_with_zero_weight_is_logged_and_does_not_affect_training(run, weighting):
    keys = ["loss", "grad_norm", "weights/accuracy", "weights/mood"]
    flags = ["--weighting", weighting, "--influence-scale", "clip"]
    flags += ["--objectives", "accuracy", "clarity", "mood", "--weights", "0.5", "0.5", "0"]
    moods = (lambda length, **_: float(length > 6), lambda response, **_: float("e" in response))
    results = []
    for i, mood in enumerate(moods):
        rewards.OBJECTIVES["mood"] = mood
        metrics, _ = run(*flags, name=f"{weighting}{i}")
        results.append([metrics[-1][key] for key in keys])
        assert 0 < metrics[1]["rewards/mood/mean"] < 1
    assert results[0] == results[1] and results[0][-1] == 0.0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root can mount a small disk")
def test_a_full_disk_is_reported_in_one_line_and_leaves_the_last_checkpoint(folders, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted")
    try:
        flags = ["--output-dir", disk / "run", "--checkpoint-every", "1", "--steps", "4"]
        result = run_program(folders, "", *flags)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        start = "grpo_dynw.py: error: --output-dir"
        assert len([line for line in result.stderr.splitlines() if line.startswith(start)]) == 1
        assert torch.load(disk / "run/checkpoint.pt", weights_only=True)["state"]["step"] >= 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_at_the_end_of_a_run_is_reported_in_one_line(folders, tmp_path):
    """The final model is saved by safetensors, which raises an exception of its own."""
    objective = "import transformers\nfrom safetensors import SafetensorError\n"
    objective += "def full(*_): raise SafetensorError('No space left on device')\n"
    objective += "transformers.Qwen3ForCausalLM.save_pretrained = full"
    result = run_program(folders, objective, "--output-dir", tmp_path / "run")
    assert result.returncode == 2 and "error: --output-dir: No space left on device" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["fixed", "hypervolume", "gradient", "nash"])
def test_a_run_killed_at_random_times_gives_the_results_of_an_uninterrupted_run(folders, tmp_path, weighting):
    """
    SIGKILL kills the run at 20 random times. After each, it resumes from its last checkpoint. A run that
    reaches its end is compared with the uninterrupted run, and the next one starts anew.
    """
    script, no_output = ROOT / "grpo_dynw.py", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"], "--weighting", weighting]
    flags += ["--steps", "60", "--eval-every", "5", "--checkpoint-every", "2"]

    def run(folder, seconds=None):
        """Starts or resumes a run, and kills it after `seconds`. Returns whether it reached its end."""
        start_or_resume = ["--resume", folder]
        if not (folder / "checkpoint.pt").exists():
            start_or_resume = [*flags, "--output-dir", folder]
            shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen([sys.executable, script, *start_or_resume], **no_output)
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
        return True

    def results(folder):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        for name in ("output_dir", "resume"):
            state["args"].pop(name)
        return state, without_times(compare.read_metrics(folder))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.perf_counter()
    run(whole)
    duration, rng, kills = time.perf_counter() - began, random.Random(weighting), 0
    while kills < 20:
        if not run(killed, rng.uniform(0.2, 0.9) * duration):
            kills += 1
        else:
            assert_same(results(whole), results(killed))
            shutil.rmtree(killed)
    run(killed)
    assert_same(results(whole), results(killed))


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path):
    """The memory of steps 51 to 500 of a default run is at most 5% more than that of the first 50 steps."""
    command = [sys.executable, ROOT / "grpo_dynw.py", "--steps", "500", "--output-dir", tmp_path / "run"]
    process, sizes = subprocess.Popen([*command, "--weighting", "gradient"], stderr=subprocess.DEVNULL), {}
    while process.poll() is None:
        time.sleep(1)
        status = Path(f"/proc/{process.pid}/status").read_text()
        metrics = tmp_path / "run/metrics.jsonl"
        if "VmRSS" in status and metrics.exists():
            sizes[len(metrics.read_text().splitlines()) - 1] = int(status.split("VmRSS:")[1].split()[0])
    assert process.returncode == 0
    early = max(size for step, size in sizes.items() if step <= 50)
    late = max(size for step, size in sizes.items() if step > 50)
    assert late <= 1.05 * early, (early, late)
