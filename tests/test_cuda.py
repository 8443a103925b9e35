"""
Protects the scripts on a GPU, and is skipped without one. All other tests run on the CPU (see conftest.py).

    pytest -m slow tests/test_cuda.py    the same checks on the CPU, which test this file

One process does all checks. The tests judge what they return. These tests have not run on a GPU yet.
"""

import contextlib
import importlib
import json
import math
import os
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
    spy,
    weights_of,
)
from safetensors.torch import load_file

import compare
import grpo_dynw
import rewards

# The embedded model gets real rewards for its responses: 64 in a step.
EMBEDDED = ["--prompts-per-step", "8", "--eval-every", "2", "--weighting", "gradient"]


def train(name, device, inputs, folder, *flags):
    """Runs a script, by default with the embedded model. Returns its metrics."""
    output = [] if "--resume" in flags else ["--output-dir", folder, "--dataset", inputs["data"]]
    sys.argv = [f"{name}.py", *map(str, [*output, "--device", device, *flags])]
    with patch.object(compare, "summary", str):  # Draw no pictures.
        importlib.import_module(name).main()
    return compare.read_metrics(folder)


def check_run(device, inputs, scratch, name, weighting, *flags):
    """Three steps of a random model with the rewards that random text gets by chance."""
    folder = scratch / f"{name}-{weighting}-{len(flags)}"
    options = [*SMALL, "--model", inputs["qwen3"], "--steps", "3", "--eval-every", "3"]
    options += ["--weighting", weighting, "--checkpoint-every", "3", *flags]
    with patch.dict(rewards.OBJECTIVES, CHANCE_REWARDS):
        metrics = train(name, device, inputs, folder, *options)
    return {"metrics": metrics, **compare_saved_model(folder, inputs["qwen3"])}


def record_step(name, device, inputs, folder, batches):
    """
    Returns log-probabilities, Gram matrix, gradient and metrics of a step on the responses in the list
    `batches`. If it is empty, the step generates and adds them.
    """
    script = importlib.import_module(name)
    generate = script.rollout

    def rollout(model, tokenizer, problems, args, sample=True):
        if not sample:
            return generate(model, tokenizer, problems, args, sample)
        if not batches:
            batches.append(generate(model, tokenizer, problems, args))
        return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[0].items()}

    with pytest.MonkeyPatch.context() as context:
        context.setattr(script, "rollout", rollout)
        calls, grams = (spy(context, script, key) for key in ("token_logprobs", "gram_matrix"))
        metrics = train(name, device, inputs, folder, *EMBEDDED, "--steps", "1", "--checkpoint-every", "1")
    logprobs = [logprobs.detach()[micro["mask"]].cpu() for (_, micro), logprobs in calls]
    moments = torch.load(folder / "checkpoint.pt", weights_only=True)["states"]["optim_state_dict"]["state"]
    gradient = [state["exp_avg"].flatten() for state in moments.values()]  # 0.1 times the gradient
    return torch.cat(logprobs), grams[0][1].cpu(), torch.cat(gradient), metrics[1]


def check_first_step(device, inputs, scratch, name):
    """The first step on the same responses, on the CPU in float32 and on the device in bfloat16 autocast."""
    batches, autocast, context = [], torch.autocast, contextlib.nullcontext()
    expected = record_step(name, "cpu", inputs, scratch / f"{name}-cpu", batches)
    if device == "cpu":
        context = patch.object(torch, "autocast", lambda *_, **__: autocast("cpu", torch.bfloat16))
    with context:
        step = record_step(name, device, inputs, scratch / f"{name}-{device}-autocast", batches)
    logprobs, gram, gradient, metrics = zip(step, expected)
    differences, norms = (logprobs[0] - logprobs[1]).abs(), gram[1].diagonal().sqrt()
    keys = [key for key in metrics[0] if key.startswith(("rewards/", "completions/"))]
    return {
        "log-probability, mean": differences.mean().item(),
        "log-probability, largest": differences.max().item(),
        "gram": ((gram[0] - gram[1]) / norms.outer(norms)).abs().max().item(),
        "gradient, relative": ((gradient[0] - gradient[1]).norm() / gradient[1].norm()).item(),
        "rewards": max(abs(metrics[0][key] - metrics[1][key]) for key in keys),
        "metrics": metrics[0],
    }


def generate(device, model, problems, sample, *flags):
    """Returns responses of a model (folder) to `problems`, indices of training problems, and the model."""
    flags = ["--device", device, "--model", model, "--rollout-batch-size", 2000, *flags]
    args = grpo_dynw.make_parser().parse_args(list(map(str, flags)))
    model, tokenizer = grpo_dynw.load_model(args)
    data = rewards.read_problems(args.dataset, ["train"], tokenizer, args.max_prompt_tokens)["train"]
    torch.manual_seed(1)
    return grpo_dynw.rollout(model, tokenizer, [data[i] for i in problems], args, sample), model


def check_greedy(device, inputs, scratch, model, limit):
    """Greedy responses with and without --compile, in float32. Some end early, and leave the batch."""
    responses = []
    for flags in ([], ["--compile"]):
        batch, _ = generate(device, inputs[model], range(64), False, "--max-new-tokens", limit, *flags)
        rows = batch["ids"][:, -batch["mask"].shape[1] :]
        responses.append([row[mask].tolist() for row, mask in zip(rows, batch["mask"])])
    return {"lengths": batch["lengths"].tolist(), "equal": sum(a == b for a, b in zip(*responses))}


@torch.no_grad()
def check_sampling(device, inputs, scratch):
    """
    Samples 2000 responses with --compile. Returns two sums over their tokens, each divided by its standard
    deviation: of the tokens' log-probabilities minus their expectations, and of whether a token repeats the
    one before it, minus the probability of that. Random numbers that stay the same would repeat tokens.
    """
    flags = ["--max-new-tokens", 24, "--compile"]
    batch, model = generate(device, inputs["qwen3"], [0] * 2000, True, *flags)
    ids, attention, mask = batch["ids"], batch["attention"], batch["mask"]
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=attention, position_ids=positions).logits
    logprobs = logits[:, -mask.shape[1] - 1 : -1].double().log_softmax(-1)  # (N, R, V)
    probabilities, tokens = logprobs.exp(), ids[:, -mask.shape[1] :]

    mean = (probabilities * logprobs).sum(-1)
    variance = (probabilities * logprobs**2).sum(-1) - mean**2
    surplus = logprobs.gather(-1, tokens[..., None]).squeeze(-1) - mean
    p = probabilities[:, 1:].gather(-1, tokens[:, :-1, None]).squeeze(-1)
    repeats, later = (tokens[:, 1:] == tokens[:, :-1]).double() - p, mask[:, 1:]
    return {
        "log-probability": (surplus[mask].sum() / variance[mask].sum().sqrt()).item(),
        "repeats": (repeats[later].sum() / (p * (1 - p))[later].sum().sqrt()).item(),
        "tokens": mask.sum().item(),
    }


def check_resume(device, inputs, scratch):
    """A run of 4 steps, and one that ends after 2 and resumes."""
    whole, resumed = scratch / "whole", scratch / "resumed"
    flags = [*SMALL, "--model", inputs["qwen3"], "--weighting", "gradient", "--checkpoint-every", "2"]
    with patch.dict(rewards.OBJECTIVES, CHANCE_REWARDS):
        metrics = train("grpo_dynw", device, inputs, whole, *flags, "--steps", "4")
        train("grpo_dynw", device, inputs, resumed, *flags)
        resumed_metrics = train("grpo_dynw", device, inputs, resumed, "--resume", resumed, "--steps", "4")
    a, b, initial = weights_of(whole), weights_of(resumed), load_file(f"{inputs['qwen3']}/model.safetensors")
    change, difference = (sum((a[name] - x[name]).square().sum() for name in a).sqrt() for x in (initial, b))
    return {"whole": metrics, "resumed": resumed_metrics, "difference": (difference / change).item()}


def check_torchrun(device, inputs, scratch):
    """Two steps under torchrun with one process, whose parameters are sharded, and without torchrun."""
    plain, sharded = scratch / "plain", scratch / "sharded"
    options = [*EMBEDDED, "--steps", "2", "--updates-per-step", "2", "--gradient-checkpointing"]
    options += ["--learning-rate", "1e-4", "--checkpoint-every", "2"]  # Each weight must change.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "1", ROOT / "grpo_dynw.py", *options]
    command += ["--device", device, "--dataset", inputs["data"], "--output-dir", sharded]
    code = subprocess.run(list(map(str, command))).returncode
    # Gloo may abort as a finished run exits (pytorch/pytorch#179291).
    assert code == 0 or (sharded / "model").exists()
    metrics = {"plain": train("grpo_dynw", device, inputs, plain, *options)}
    metrics["sharded"] = compare.read_metrics(sharded)
    return {**metrics, **compare_saved_model(sharded, ROOT / "tiny/model")}


WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
CHECKS = {f"run {name} {w}": (check_run, name, w) for name in SCRIPTS for w in WEIGHTINGS}
CHECKS |= {f"first step {name}": (check_first_step, name) for name in SCRIPTS}
CHECKS |= {"resume": (check_resume,), "torchrun": (check_torchrun,)}
# Checks of --compile are last, because a CUDA graph that fails can break all later work of a process.
CHECKS |= {f"greedy {model}": (check_greedy, model, 40) for model in ("qwen3", "gpt2")}
CHECKS |= {"greedy embedded": (check_greedy, "embedded", 96), "sampling": (check_sampling,)}
CHECKS["run --compile"] = check_run, "grpo_dynw", "nash", "--compile", "--save-every", "2"


def main(device, inputs, scratch):
    inputs, scratch = {**json.loads(inputs), "embedded": f"{ROOT}/tiny/model"}, Path(scratch)
    for name, (check, *arguments) in CHECKS.items():
        try:
            result = check(device, inputs, scratch, *arguments)
        except (Exception, SystemExit):
            result = {"error": traceback.format_exc()[-3000:]}
        with open(scratch / "results.jsonl", "a") as file:
            file.write(json.dumps({"check": name, **result}) + "\n")


def environment_with_gpus():
    """Returns the environment variables as they were before conftest.py hid the GPUs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ["SAVED_VISIBLE_DEVICES"]}
    if environment["CUDA_VISIBLE_DEVICES"] == "all":
        del environment["CUDA_VISIBLE_DEVICES"]
    return environment


def test_the_process_of_these_tests_sees_gpus(monkeypatch):
    """conftest.py, which it imports, too, does not hide them again."""
    monkeypatch.setenv("SAVED_VISIBLE_DEVICES", "0,1")
    command = [sys.executable, "-c", "import conftest; print(conftest.os.environ['CUDA_VISIBLE_DEVICES'])"]
    options = {"env": environment_with_gpus(), "cwd": Path(__file__).parent}
    assert subprocess.check_output(command, text=True, **options) == "0,1\n"


@pytest.fixture(scope="module", params=["cuda", pytest.param("cpu", marks=pytest.mark.slow)])
def results(request, folders, tmp_path_factory):
    """results(check): what a check has returned. On the CPU, these tests are slow."""
    scratch, environment = tmp_path_factory.mktemp(request.param), None
    if request.param == "cuda":
        environment = environment_with_gpus()
        code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
        if subprocess.run([sys.executable, "-c", code], env=environment).returncode:
            pytest.skip("PyTorch sees no GPU")
    command = [sys.executable, __file__, request.param, json.dumps(folders, default=str), scratch]
    # A check that hangs must not cost the results before it.
    with open(scratch / "output", "w") as output, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, env=environment, timeout=1200, stdout=output, stderr=output)
    finished = {line.pop("check"): line for line in read_lines(scratch / "results.jsonl")}

    def result(name):
        assert name in finished, f"not done: {(scratch / 'output').read_text()[-3000:]}"
        assert "error" not in finished[name], finished[name]["error"]
        return finished[name]

    return result


@pytest.mark.parametrize("check", [name for name in CHECKS if name.startswith("run")])
def test_a_run_learns_and_saves_the_policy(results, check):
    result = results(check)
    first, *steps = result["metrics"]
    assert len(steps) == 3
    assert all(math.isfinite(value) for line in [first, *steps] for value in line.values())
    for line in steps:
        assert line["grad_norm"] > 0.01
        assert min(line[f"rewards/{name}/frac_zero_std"] for name in rewards.OBJECTIVES) < 1
    assert len({line["reward"] for line in steps}) > 1
    assert {key: result[key] for key in POLICY_IS_SAVED} == POLICY_IS_SAVED


# Two to six times the differences that bfloat16 makes on the CPU: 0.001, 0.085, 0.031 and 0.038 at most
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
    assert result["metrics"]["grad_norm"] > 0.01 and result["metrics"]["clip_fraction"] == 0


@pytest.mark.parametrize("model", ["qwen3", "gpt2", "embedded"])
def test_greedy_responses_are_the_same_with_compile(results, model):
    result = results(f"greedy {model}")
    assert min(result["lengths"]) < max(result["lengths"])
    assert (
        result["equal"] >= len(result["lengths"]) - 1 == 63
    )  # Rounding may change one that is a close call.


def test_sampling_with_compile_follows_the_distribution_of_the_model(results):
    result = results("sampling")
    assert result["tokens"] > 4000
    assert abs(result["log-probability"]) < 4 and abs(result["repeats"]) < 4


def test_a_resumed_run_gives_the_results_of_an_uninterrupted_run(results):
    """Up to rounding: some kernels of a GPU do not always add in the same order."""
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
