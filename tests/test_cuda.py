"""
The scripts on a GPU. Skipped without one. All other tests run on the CPU (see conftest.py).

    pytest -m slow tests/test_cuda.py    the same checks on the CPU, which test this file

One process does all checks, because importing the libraries takes seconds. It prints a JSON line per check,
which the tests read. These tests have not yet run on a GPU.
"""

import contextlib
import functools
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import (
    CHANCE_REWARDS,
    POLICY_IS_SAVED,
    ROOT,
    SCRIPTS,
    SMALL,
    compare_saved_model,
    read_lines,
    weights_of,
)
from safetensors.torch import load_file

import compare
import grpo_dynw
import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
# The embedded model gets real rewards for its responses: 64 in a step.
EMBEDDED = ["--prompts-per-step", "8", "--eval-every", "2", "--weighting", "gradient"]
OBJECTIVES = list(rewards.OBJECTIVES)


# ---------- The checks, in a process that sees the GPU: each returns values, which the tests judge ----------


def train(name, device, inputs, folder, *flags, resume=False):
    """Runs a script in this process, by default with the embedded model. Returns its metrics."""
    output = ["--output-dir", folder, "--dataset", inputs["data"], "--device", device]
    sys.argv = [f"{name}.py", *map(str, ["--resume", folder] if resume else [*output, *flags])]
    with contextlib.redirect_stdout(sys.stderr), patch.object(compare, "summary", str):  # Draw no pictures.
        importlib.import_module(name).main()
    return compare.read_metrics(folder)


def check_run(device, inputs, scratch, name, weighting, graph=False):
    """Three steps of a random model with the rewards that random text gets by chance."""
    folder = scratch / f"{name}-{weighting}-{graph}"
    options = [*SMALL, "--model", inputs["qwen3"], "--steps", "3", "--eval-every", "3", "--weight-decay", "0"]
    with patch.dict(rewards.OBJECTIVES, CHANCE_REWARDS):
        options += ["--weighting", weighting, "--checkpoint-every", "3"]
        options += ["--cuda-graph"] * (graph and device == "cuda")
        metrics = train(name, device, inputs, folder, *options)
    return {"metrics": metrics, **compare_saved_model(folder, inputs["qwen3"])}


def record_step(name, device, inputs, folder, batches):
    """
    Runs one step of the embedded model. Returns its log-probabilities, Gram matrix and gradient.

    The responses are those in the list `batches`. If it is empty, the step generates and adds them.
    """
    script, values = importlib.import_module(name), {"logprobs": []}
    functions = {key: getattr(script, key) for key in ("rollout", "token_logprobs", "gram_matrix")}
    clip = torch.nn.utils.clip_grad_norm_

    def rollout(model, tokenizer, prompts, G, limit, batch_size, sample=True, graph=False):
        if batches and sample:
            return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[0].items()}
        batch = functions["rollout"](model, tokenizer, prompts, G, limit, batch_size, sample, graph)
        batches.extend([batch] * sample)
        return batch

    def token_logprobs(model, micro):
        logprobs = functions["token_logprobs"](model, micro)
        values["logprobs"].append(logprobs.detach()[micro["mask"]].cpu())
        return logprobs

    def gram_matrix(*args):
        gram, old_logprobs = functions["gram_matrix"](*args)
        values["gram"] = gram.cpu()
        return gram, old_logprobs

    def clip_grad_norm_(parameters, *args):
        parameters = list(parameters)
        values["gradient"] = torch.cat([p.grad.flatten().cpu() for p in parameters])
        return clip(parameters, *args)

    changed = {"rollout": rollout, "token_logprobs": token_logprobs, "gram_matrix": gram_matrix}
    with patch.multiple(script, **changed), patch.object(torch.nn.utils, "clip_grad_norm_", clip_grad_norm_):
        values["metrics"] = train(name, device, inputs, folder, *EMBEDDED, "--steps", "1")[1]
    values["logprobs"] = torch.cat(values["logprobs"])
    return values


def check_first_step(device, inputs, scratch, name):
    """The first step on the same responses, on the CPU in float32 and on the device in bfloat16 autocast."""
    batches, autocast = [], torch.autocast
    expected = record_step(name, "cpu", inputs, scratch / f"{name}-cpu", batches)
    context = contextlib.nullcontext()
    if device == "cpu":
        context = patch.object(torch, "autocast", lambda *_, **__: autocast("cpu", torch.bfloat16))
    with context:
        values = record_step(name, device, inputs, scratch / f"{name}-{device}-autocast", batches)
    differences = (values["logprobs"] - expected["logprobs"]).abs()
    norms = expected["gram"].diagonal().sqrt()
    a, b = values["gradient"], expected["gradient"]
    keys = [key for key in values["metrics"] if key.startswith("rewards/") or key.startswith("completions/")]
    return {
        "log-probability, mean": differences.mean().item(),
        "log-probability, largest": differences.max().item(),
        "gram": ((values["gram"] - expected["gram"]) / norms.outer(norms)).abs().max().item(),
        "gradient, relative": ((a - b).norm() / b.norm()).item(),
        "gradient norm": b.norm().item(),
        "rewards": max(abs(values["metrics"][key] - expected["metrics"][key]) for key in keys),
        "metrics": values["metrics"],
    }


def prompts_of(inputs, tokenizer, count):
    with contextlib.redirect_stdout(sys.stderr):
        problems = rewards.read_problems(inputs["tiny data"], ["train"], tokenizer, 64)["train"]
    return [problem["prompt_ids"] for problem in problems[:count]]


def responses_of(batch):
    responses = batch["ids"][:, -batch["mask"].shape[1] :]
    return [row[mask].tolist() for row, mask in zip(responses, batch["mask"])]


@torch.no_grad()
def check_greedy(device, inputs, scratch, model, limit):
    """Greedy responses with and without the graph, in float32. Some end early, and leave the batch."""
    model, tokenizer, _ = grpo_dynw.load_model(inputs[model], device)
    rollout = functools.partial(grpo_dynw.rollout, model, tokenizer, prompts_of(inputs, tokenizer, 64), 1)
    plain, replayed = (rollout(limit, 64, sample=False, graph=graph) for graph in (False, True))
    pairs = list(zip(responses_of(plain), responses_of(replayed)))
    return {"lengths": plain["lengths"].tolist(), "equal": sum(a == b for a, b in pairs), "of": len(pairs)}


@torch.no_grad()
def check_sampling(device, inputs, scratch):
    """
    Samples 2000 responses with the graph. Returns two sums over their tokens, each divided by its standard
    deviation, which are near 0 if the responses follow the model's distribution.

    "log-probability" sums the log-probability of each token minus its expectation. "repeats" sums whether a
    token repeats the token before it, minus the probability of that. If each replay of the graph used the
    same random numbers, tokens would repeat too often.
    """
    model, tokenizer, _ = grpo_dynw.load_model(inputs["qwen3"], device)
    [prompt] = prompts_of(inputs, tokenizer, 1)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(grpo_dynw.rollout(model, tokenizer, [prompt], 2000, 24, 2000, graph=True))
    ids, mask = batches[0]["ids"], batches[0]["mask"]
    logits = model(ids, attention_mask=batches[0]["attention"]).logits[:, -mask.shape[1] - 1 : -1]
    logprobs = logits.double().log_softmax(-1)  # (N, R, V)
    probabilities, tokens = logprobs.exp(), ids[:, -mask.shape[1] :]

    mean = (probabilities * logprobs).sum(-1)
    variance = (probabilities * logprobs**2).sum(-1) - mean**2
    chosen = logprobs.gather(-1, tokens[..., None]).squeeze(-1)
    repeats = (tokens[:, 1:] == tokens[:, :-1]).double()
    p = probabilities[:, 1:].gather(-1, tokens[:, :-1, None]).squeeze(-1)
    responses = [responses_of(batch) for batch in batches]
    return {
        "log-probability": ((chosen - mean)[mask].sum() / variance[mask].sum().sqrt()).item(),
        "repeats": ((repeats - p)[mask[:, 1:]].sum() / (p * (1 - p))[mask[:, 1:]].sum().sqrt()).item(),
        "same seed": sum(a == b for a, b in zip(*responses[:2])),
        "other seed": sum(a == b for a, b in zip(*responses[1:])),
        "tokens": mask.sum().item(),
    }


def check_resume(device, inputs, scratch):
    """A run of 4 steps, and one that resumes from a copy of its checkpoint after step 2."""
    whole, resumed, save_checkpoint = scratch / "whole", scratch / "resumed", grpo_dynw.save_checkpoint

    def save_and_copy(policy, optimizer, state, args):
        save_checkpoint(policy, optimizer, state, args)
        if not resumed.exists():
            shutil.copytree(whole, resumed)

    flags = [*SMALL, "--model", inputs["qwen3"], "--weighting", "gradient"]
    flags += ["--steps", "4", "--checkpoint-every", "2"]
    with patch.dict(rewards.OBJECTIVES, CHANCE_REWARDS):
        with patch.object(grpo_dynw, "save_checkpoint", save_and_copy):
            metrics = train("grpo_dynw", device, inputs, whole, *flags)
        resumed_metrics = train("grpo_dynw", device, inputs, resumed, resume=True)
    a, b, initial = weights_of(whole), weights_of(resumed), load_file(f"{inputs['qwen3']}/model.safetensors")
    change, difference = (sum((a[name] - x[name]).square().sum() for name in a).sqrt() for x in (initial, b))
    return {"whole": metrics, "resumed": resumed_metrics, "difference": (difference / change).item()}


def check_torchrun(device, inputs, scratch):
    """Two steps under torchrun with one process, whose parameters are sharded, and without torchrun."""
    folders = {name: scratch / f"torchrun-{name}" for name in ("plain", "sharded")}
    options = [*EMBEDDED, "--steps", "2", "--updates-per-step", "2", "--gradient-checkpointing"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "1", ROOT / "grpo_dynw.py", *options, "--checkpoint-every", "2"]
    command += ["--device", device, "--dataset", inputs["data"], "--output-dir", folders["sharded"]]
    pipes = {"stdout": sys.stderr, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, command)), **pipes) as process:
        plain = train("grpo_dynw", device, inputs, folders["plain"], *options)
        error = process.communicate()[1]
    # Gloo may abort as a finished run exits (pytorch/pytorch#179291).
    if process.returncode and not (folders["sharded"] / "model").exists():
        raise RuntimeError(error[-3000:])
    sharded = compare.read_metrics(folders["sharded"])
    return {
        "plain": plain,
        "sharded": sharded,
        **compare_saved_model(folders["sharded"], ROOT / "tiny/model"),
    }


CHECKS = {f"run {name} {w}": (check_run, name, w) for name in SCRIPTS for w in WEIGHTINGS}
CHECKS |= {f"first step {name}": (check_first_step, name) for name in SCRIPTS}
CHECKS |= {"resume": (check_resume,), "torchrun": (check_torchrun,)}
# Checks with a graph are last, because a capture that fails can break all later work of a process.
CHECKS |= {f"greedy {model}": (check_greedy, model, 40) for model in ("qwen3", "gpt2")}
CHECKS |= {"greedy embedded": (check_greedy, "embedded", 96), "sampling": (check_sampling,)}
CHECKS["run with a graph"] = check_run, "grpo_dynw", "nash", True


def main(device, inputs, scratch):
    inputs = {**json.loads(inputs), "embedded": f"{ROOT}/tiny/model", "tiny data": f"{ROOT}/tiny/data"}
    if device == "cpu":  # The step itself stands for its graph.
        grpo_dynw.capture = lambda step: step
    for name, (check, *arguments) in CHECKS.items():
        try:
            result = check(device, inputs, Path(scratch), *arguments)
        except (Exception, SystemExit):
            result = {"error": traceback.format_exc()[-3000:]}
        print(json.dumps({"check": name, **result}), flush=True)


# ---------- The tests ----------


def environment_with_gpus():
    """Returns the environment variables with those of CUDA as they were before conftest.py hid the GPUs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ["SAVED_VISIBLE_DEVICES"]}
    if environment["CUDA_VISIBLE_DEVICES"] == "all":
        del environment["CUDA_VISIBLE_DEVICES"]
    return environment


def test_only_the_process_of_these_tests_sees_gpus(monkeypatch):
    """conftest.py, which it imports, too, does not hide them again."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()
    for saved, visible in {"all": None, "": "", "0,1": "0,1"}.items():
        monkeypatch.setenv("SAVED_VISIBLE_DEVICES", saved)
        assert environment_with_gpus().get("CUDA_VISIBLE_DEVICES") == visible
    command = [sys.executable, "-c", "import conftest; print(conftest.os.environ['CUDA_VISIBLE_DEVICES'])"]
    options = {"env": environment_with_gpus(), "cwd": Path(__file__).parent}
    assert subprocess.check_output(command, text=True, **options) == "0,1\n"


@pytest.fixture(scope="module", params=["cuda", pytest.param("cpu", marks=pytest.mark.slow)])
def results(request, folders, tmp_path_factory):
    """results(check): what a check has returned. On the CPU, these tests are slow."""
    scratch, environment, program = tmp_path_factory.mktemp(request.param), None, [sys.executable]
    if request.param == "cuda":
        if not torch.backends.cuda.is_built():
            pytest.skip("this PyTorch has no CUDA")
        environment = environment_with_gpus()
        code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([*program, "-c", code], env=environment).returncode:
            pytest.skip("this machine has no GPU")
    command = [*program, __file__, request.param, json.dumps(folders, default=str), scratch]
    pipes = {"stdout": (scratch / "results.jsonl").open("w"), "stderr": (scratch / "errors.txt").open("w")}
    # A check that hangs must not cost the results of the checks before it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, env=environment, timeout=600, **pipes)
    finished = {line.pop("check"): line for line in read_lines(scratch / "results.jsonl")}

    def result(name):
        assert name in finished, f"not done: {(scratch / 'errors.txt').read_text()[-3000:]}"
        assert "error" not in finished[name], finished[name]["error"]
        return finished[name]

    return result


@pytest.mark.parametrize("check", [name for name in CHECKS if name.startswith("run")])
def test_a_run_learns_and_saves_the_policy(results, check):
    result = results(check)
    first, *steps = result["metrics"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(math.isfinite(value) for line in [first, *steps] for value in line.values())
    for line in steps:
        assert line["grad_norm"] > 0.01
        assert min(line[f"rewards/{name}/frac_zero_std"] for name in OBJECTIVES) < 1
    assert len({line["reward"] for line in steps}) > 1
    assert {key: result[key] for key in POLICY_IS_SAVED} == POLICY_IS_SAVED


# Two to four times the differences that bfloat16, with 8 significant bits, makes on the CPU: 0.0009, 0.18,
# 0.024 and 0.047 at most. The gradients differ most, because the gradients of many tokens cancel out.
TOLERANCES = {
    "log-probability, mean": 0.003,
    "log-probability, largest": 0.5,
    "gram": 0.06,
    "gradient, relative": 0.12,
    "rewards": 1e-9,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_first_step_is_that_of_the_cpu(results, name):
    result = results(f"first step {name}")
    assert {key: result[key] for key in TOLERANCES if not result[key] <= TOLERANCES[key]} == {}
    assert result["log-probability, largest"] > 0  # Otherwise, no bfloat16 was used.
    assert result["gradient norm"] > 0.01 and result["metrics"]["clip_fraction"] == 0


@pytest.mark.parametrize("model", ["qwen3", "gpt2", "embedded"])
def test_greedy_responses_are_the_same_with_the_graph(results, model):
    result = results(f"greedy {model}")
    assert min(result["lengths"]) < max(result["lengths"])
    assert result["equal"] >= result["of"] - 1 == 63  # Two tokens may be equally likely up to rounding.


def test_sampling_with_the_graph_follows_the_distribution_of_the_model(results):
    result = results("sampling")
    assert result["tokens"] > 4000
    assert abs(result["log-probability"]) < 4 and abs(result["repeats"]) < 4
    assert result["other seed"] < 1000 < 1900 < result["same seed"]


def test_a_resumed_run_gives_the_results_of_an_uninterrupted_run(results):
    """Up to the order in which the GPU adds: some of its kernels do not always add in the same order."""
    result = results("resume")
    whole, resumed = result["whole"], result["resumed"]
    assert [line["step"] for line in resumed] == [0, 1, 2, 3, 4]
    for key in whole[3]:  # the first step after the checkpoint: its responses are the same
        if not key.startswith(("time/", "eval/")):
            assert resumed[3][key] == pytest.approx(whole[3][key], rel=1e-3, abs=1e-4), key
    # Without the moments of AdamW, or with other random numbers, it is above 0.4.
    assert result["difference"] < 0.2


def test_torchrun_gives_the_results_of_a_run_without_it(results):
    result = results("torchrun")
    plain, sharded = result["plain"][1], result["sharded"][1]
    for key in plain:
        tolerance = {"loss": 3e-3, "grad_norm": 0.05 * plain["grad_norm"]}.get(key, 5e-3)
        assert key.startswith("time/") or sharded[key] == pytest.approx(plain[key], abs=tolerance), key
    assert plain["grad_norm"] > 0.01
    assert {key: result[key] for key in POLICY_IS_SAVED} == POLICY_IS_SAVED


if __name__ == "__main__":
    main(*sys.argv[1:])
