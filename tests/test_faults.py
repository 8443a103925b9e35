"""Models, tokenizers, objectives and machines that are not as they should be: one line, or the right thing done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
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

LOOP = """
import sys, runpy
sys.path.insert(0, {root!r})
import rewards
{objective}
sys.argv = ["grpo_dynw.py", *{flags!r}]
runpy.run_path({root!r} + "/grpo_dynw.py", run_name="__main__")
"""


def changed(folder, to, **settings):
    """A copy of a model's folder, its tokenizer's settings changed."""
    shutil.copytree(folder, to)
    tokenizer = AutoTokenizer.from_pretrained(to)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(to)
    return to, tokenizer


@shared
def test_a_pad_token_that_the_model_lacks_is_none(run, folders, tmp_path):
    to, tokenizer = changed(folders["qwen3"], tmp_path / "padded")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(to)
    model, _, _ = grpo_dynw.load_model(str(to), "cpu")
    assert tokenizer.pad_token_id == model.get_input_embeddings().num_embeddings
    metrics, _ = run("--model", to, "--steps", "1")
    expected, _ = run("--steps", "1", name="own")
    assert metrics[1]["loss"] == expected[1]["loss"]


@shared
def test_a_template_that_raises_is_quoted(run, folders, script, tmp_path, monkeypatch, capfd):
    template = "{{ raise_exception('Only for poems, ' + messages[0].content[:4]) }}"
    to, _ = changed(folders["qwen3"], tmp_path / "raising", chat_template=template)
    assert "Only for poems" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", to)


@shared
def test_tokens_that_the_model_lacks_are_named(run, folders, script, tmp_path, monkeypatch, capfd):
    template = "{{ messages[0].content }}<new>"
    to, tokenizer = changed(folders["qwen3"], tmp_path / "larger", chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    tokenizer.save_pretrained(to)
    assert "tokens beyond the 308" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", to)


@shared
def test_weights_that_are_not_finite_are_refused(run, folders, script, tmp_path, monkeypatch, capfd):
    to, _ = changed(folders["qwen3"], tmp_path / "broken")
    weights = load_file(to / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    assert "not finite" in refused(run, script, tmp_path, monkeypatch, capfd, "--model", to)


def test_the_end_of_a_turn_ends_a_response_of_a_base_model(folders, tmp_path):
    """Its settings know only the end of a document, here <|endoftext|>, but the template ends turns by <|im_end|>."""
    to, _ = changed(folders["qwen3"], tmp_path / "base", eos_token="<|endoftext|>")
    for name in ("config.json", "generation_config.json"):
        (to / name).write_text(json.dumps({**json.loads((to / name).read_text()), "eos_token_id": 0}))
    model, tokenizer, _ = grpo_dynw.load_model(str(to), "cpu")
    assert model.generation_config.eos_token_id == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert rewards.turn_end(tokenizer) is None  # a newline ends no response


def in_a_process(folders, objective, *flags):
    flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"], *flags]
    code = LOOP.format(root=str(ROOT), objective=objective, flags=list(map(str, flags)))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_an_objective_that_fails_keeps_its_traceback_and_is_named_and_nothing_is_lost(folders, tmp_path):
    objective = "@rewards.objective\ndef mood(step, **_):\n    return 1 / (step - 2)"
    flags = ["--objectives", "mood", "accuracy", "--output-dir", tmp_path / "run", "--checkpoint-every", "1"]
    done = in_a_process(folders, objective, *flags)
    assert done.returncode == 1 and "Traceback" in done.stderr and "in mood" in done.stderr
    error = done.stderr[done.stderr.index("ZeroDivisionError") :]
    assert (
        "objective mood, split train, step 2" in error and "the prompt begins with '<|im_start|>user" in error
    )
    assert torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["state"]["step"] == 1


@pytest.mark.parametrize("value, warned", [(1.5, 1), (-0.5, 1), (1.0, 0)])
def test_rewards_outside_the_unit_cube_are_warned_of_once(folders, tmp_path, value, warned):
    objective = f"@rewards.objective\ndef mood(**_):\n    return {value}"
    flags = ["--objectives", "mood", "accuracy", "--weighting", "hypervolume", "--steps", "3"]
    done = in_a_process(folders, objective, *flags, "--output-dir", tmp_path / "run")
    assert done.returncode == 0 and done.stderr.count("UserWarning: rewards outside [0, 1]") == warned


@shared
def test_an_objective_of_weight_zero_is_logged_and_changes_nothing(run):
    """Under fixed weights and under gradient-based ones, whatever it is."""
    for weighting in ("fixed", "gradient"):
        flags = [
            "--weighting",
            weighting,
            "--influence-scale",
            "clip",
            "--objectives",
            "accuracy",
            "clarity",
            "mood",
        ]
        found = []
        for i, mood in enumerate(
            (lambda length, **_: float(length > 6), lambda response, **_: float("e" in response))
        ):
            rewards.OBJECTIVES["mood"] = mood
            metrics, _ = run(*flags, "--weights", "0.5", "0.5", "0", name=f"{weighting}{i}")
            found.append(
                [metrics[-1][key] for key in ("loss", "grad_norm", "weights/accuracy", "weights/mood")]
            )
            assert 0 < metrics[1]["rewards/mood/mean"] < 1
        assert found[0] == found[1] and found[0][-1] == 0.0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="it takes root to mount a small disk")
def test_a_full_disk_ends_in_a_line_and_leaves_the_last_checkpoint_whole(folders, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no small disk can be mounted")
    try:
        flags = ["--output-dir", disk / "run", "--checkpoint-every", "1", "--steps", "4"]
        done = in_a_process(folders, "", *flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("grpo_dynw.py: error: --output-dir")
        ]
        assert len(lines) == 1
        assert torch.load(disk / "run/checkpoint.pt", weights_only=True)["state"]["step"] >= 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_at_the_end_ends_in_a_line(folders, tmp_path):
    """safetensors has an exception of its own for it."""
    objective = "import transformers\nfrom safetensors import SafetensorError\n"
    objective += "def full(*_): raise SafetensorError('No space left on device')\n"
    objective += "transformers.Qwen3ForCausalLM.save_pretrained = full"
    done = in_a_process(folders, objective, "--output-dir", tmp_path / "run")
    assert done.returncode == 2 and "error: --output-dir: No space left on device" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["fixed", "hypervolume", "gradient"])
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(folders, tmp_path, weighting):
    """By SIGKILL, at 20 random moments; each time it goes on from its last checkpoint, and at its end begins anew."""
    script, quiet = ROOT / "grpo_dynw.py", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    flags = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"], "--weighting", weighting]
    flags += ["--steps", "60", "--eval-every", "5", "--checkpoint-every", "2"]

    def run(folder, seconds=None):
        """True if it came to its end within `seconds`."""
        to_go_on = (
            ["--resume", folder] if (folder / "checkpoint.pt").exists() else [*flags, "--output-dir", folder]
        )
        if "--resume" not in to_go_on:
            shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen([sys.executable, script, *to_go_on], **quiet)
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
        return True

    def outcome(folder):
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        for name in ("output_dir", "resume"):
            state["args"].pop(name)
        return state, without_times(compare.read_metrics(folder))

    started = time.perf_counter()
    run(tmp_path / "whole")
    longest, rng, kills, killed = (
        time.perf_counter() - started,
        random.Random(weighting),
        0,
        tmp_path / "killed",
    )
    while kills < 20:
        if not run(killed, rng.uniform(0.2, 0.9) * longest):
            kills += 1
        else:
            assert_same(outcome(tmp_path / "whole"), outcome(killed))
            shutil.rmtree(killed)
    run(killed)
    assert_same(outcome(tmp_path / "whole"), outcome(killed))


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path):
    """Over 500 steps of the embedded default, after 50 to warm up: by 5% at most."""
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
