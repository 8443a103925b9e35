"""Protects runs of the scripts: training, evaluation, and what they write."""

import argparse
import json
import math

import pytest
import torch
from conftest import (
    POLICY_IS_SAVED,
    changes,
    compare_saved_model,
    read_lines,
    shared,
    spy,
    weights_of,
    without_times,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import compare
import hypervolume
import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
NAMES = ["accuracy", "conciseness", "clarity"]


def without_kl(script):
    """Returns the flags that remove the KL penalty of a script, if it has one."""
    return ["--kl-coefficient", "0"] if hasattr(script, "kl_penalty") else []


def is_same(one, other):
    """Whether the runs in two folders have saved the same model, to the bit."""
    return max(changes(weights_of(one), weights_of(other)).values()) == 0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_run_changes_every_parameter_and_writes_all_files_and_metrics(run, script, folders, weighting):
    metrics, folder = run("--weighting", weighting)
    moves = changes(load_file(folders["qwen3"] / "model.safetensors"), weights_of(folder))
    assert min(moves.values()) > 5e-4  # AdamW's weight decay alone moves a weight by 1e-5.
    files = "args.json", "completions.jsonl", "metrics.jsonl", "model"
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)

    # Keys with {} exist once per objective.
    evaluation = {"performance/{}", "completions/mean_length", "completions/clipped_ratio"}
    evaluated = {"time/validate", "eval/hypervolume", *(f"eval/{key}" for key in evaluation)}
    evaluated |= {f"val/{key}" for key in evaluation} if weighting == "hypervolume" else set()
    trained = {"reward", "rewards/{}/mean", "rewards/{}/frac_zero_std", "weights/{}", "r_pareto"}
    trained |= {"completions/mean_length", "completions/clipped_ratio"}
    trained |= {"learning_rate", "loss", "clip_fraction", "grad_norm"}
    trained |= {"time/rollout", "time/reward", "time/probe", "time/update"}
    trained |= {"kl"} if hasattr(script, "kl_penalty") else set()
    trained |= {"hypervolume": {"delta_hv"}, "gradient": {"influence/{}"}}.get(weighting, set())
    assert len(metrics) == 3
    for step, line in enumerate(metrics):
        keys = evaluated | trained if step else evaluated
        assert line.keys() == {"step"} | {key.format(name) for key in keys for name in NAMES}
        assert line["step"] == step and all(map(math.isfinite, line.values()))
    weights = [metrics[2][f"weights/{name}"] for name in NAMES]
    assert (weights != [1 / 3] * 3) == (weighting in ("gradient", "nash"))
    args = json.loads((folder / "args.json").read_text())
    assert args["weighting"] == weighting and f"{args['algorithm']}_dynw" == script.__name__


@shared
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_saved_models_are_the_policy_to_the_bit(run, script, folders, device, monkeypatch):
    """On CUDA, a bfloat16 copy of the policy generates. Saving a model must not change the training."""
    load_model, to = script.load_model, PreTrainedModel.to

    def load_as_on_device(args, is_actor=False):
        return load_model(argparse.Namespace(**{**vars(args), "device": device}), is_actor)

    def stay(model, *args):
        return to(model, *[arg for arg in args if arg != "cuda"])

    monkeypatch.setattr(script, "load_model", load_as_on_device)
    monkeypatch.setattr(PreTrainedModel, "to", stay)
    loads, flags = spy(monkeypatch, script, "load_model"), ["--steps", "3", "--learning-rate", "1e-4"]
    expected, plain = run(*flags, "--checkpoint-every", "3", name="plain")
    metrics, folder = run(*flags, "--checkpoint-every", "2", "--save-every", "2", name="saved")
    _, actor, _ = [model for _, (model, _) in loads[:3]]
    assert actor.dtype == (torch.bfloat16 if device == "cuda" else torch.float32)
    assert compare_saved_model(plain, folders["qwen3"]) == POLICY_IS_SAVED
    assert compare_saved_model(folder, folders["qwen3"], "model-2") == POLICY_IS_SAVED
    assert sorted(path.name for path in folder.glob("model*")) == ["model", "model-2"]
    assert without_times(metrics) == without_times(expected) and is_same(plain, folder)


@shared
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_two_runs_with_the_same_seed_are_equal_to_the_bit(run, weighting):
    runs = [run("--weighting", weighting, "--seed", seed, name=f"{i}") for i, seed in enumerate("112")]
    one, two, other = [without_times(metrics) for metrics, _ in runs]
    assert one == two != other and is_same(runs[0][1], runs[1][1])


@shared
def test_evaluations_can_be_recomputed_from_the_completions(run, folders):
    metrics, folder = run("--steps", "1")
    samples, problems = read_lines(folder / "completions.jsonl"), read_lines(folders["data"] / "test.jsonl")
    for sample, problem in zip(samples, problems, strict=True):
        assert sample.keys() == {"prompt", "response", "answer", "length", "cut_off", "performance"}
        assert problem["problem"] in sample["prompt"] and sample["answer"] == problem["answer"]
        [scores] = rewards.score(["accuracy", "clarity"], [sample["response"]], [sample], [0], 0)
        assert [sample["performance"][name] for name in ("accuracy", "clarity")] == scores
        assert sample["performance"]["conciseness"] == pytest.approx(1 - sample["length"] / 12)
        assert sample["length"] == 12 or not sample["cut_off"]
    for name in NAMES:
        mean = sum(sample["performance"][name] for sample in samples) / 6
        assert metrics[1][f"eval/performance/{name}"] == pytest.approx(mean)
    for key, name in {"mean_length": "length", "clipped_ratio": "cut_off"}.items():
        mean = sum(sample[name] for sample in samples) / 6
        assert metrics[1][f"eval/completions/{key}"] == pytest.approx(mean)
    points = [[line[f"eval/performance/{name}"] for name in NAMES] for line in metrics]
    for i, line in enumerate(metrics, 1):
        assert line["eval/hypervolume"] == hypervolume.hypervolume(points[:i], [0, 0, 0])


@shared
@pytest.mark.parametrize("steps, evaluated", [(5, [0, 2, 4, 5]), (0, [0])])
def test_evaluations_are_made_before_training_every_few_steps_and_at_the_end(run, steps, evaluated):
    metrics, _ = run("--steps", steps, "--eval-every", "2")
    assert [line["step"] for line in metrics if "eval/hypervolume" in line] == evaluated


@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_a_step_is_that_of_a_plain_loop(run, script, folders, monkeypatch, weighting):
    """The loop has no micro-batches. Each of its two updates takes half of the responses."""
    rollouts, scores = spy(monkeypatch, script, "rollout"), spy(monkeypatch, rewards, "score")
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    flags = ["--updates-per-step", "2", "--micro-batch-size", "3", "--learning-rate", "0.05"]
    flags += ["--kl-coefficient", "0.5"] if hasattr(script, "kl_penalty") else []
    metrics, folder = run("--steps", "1", "--weighting", weighting, "--weights", "0.7", "0.2", "0.1", *flags)
    batch, r_vec = rollouts[1][1], torch.tensor(scores[1][1], dtype=torch.float64)  # (N, K)
    args = argparse.Namespace(num_generations=4, baseline="whiten", clip=0.2, clip_dual=3.0)
    w = torch.tensor([metrics[1][f"weights/{name}"] for name in NAMES], dtype=torch.float64)
    A = script.advantage(r_vec @ w, batch["lengths"], args).float()

    def logprobs(model, rows):
        ids, attention, R = batch["ids"][rows], batch["attention"][rows], batch["mask"].shape[1]
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=attention, position_ids=positions).logits[:, -R - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[:, -R:, None]).squeeze(-1)  # (B, R)

    model, initial = [AutoModelForCausalLM.from_pretrained(folders["qwen3"]).eval() for _ in range(2)]
    losses = []
    for rows in torch.arange(16).chunk(2):
        new, old, mask = logprobs(model, rows), logprobs(initial, rows).detach(), batch["mask"][rows]
        loss, _ = script.policy_loss(new, old, A[rows], args)
        if hasattr(script, "kl_penalty"):
            loss = loss + 0.5 * script.kl_penalty(new, old)
        losses.append((loss * mask).sum() / mask.sum())
        losses[-1].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameter in model.parameters():
            parameter.data -= 0.05 * parameter.grad
        model.zero_grad()
    assert metrics[1]["loss"] == pytest.approx(sum(losses).item() / 2, abs=1e-5)
    assert metrics[1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert metrics[1]["reward"] == pytest.approx((r_vec @ w).mean().item())
    final = weights_of(folder)
    for (name, expected), before in zip(model.named_parameters(), initial.parameters()):
        torch.testing.assert_close(final[name], expected.data, rtol=1e-4, atol=2e-6)
        assert (expected - before).abs().max() > 1e-4


@shared
def test_each_group_holds_the_responses_to_one_problem_with_its_answer(run, folders, monkeypatch, script):
    """The mean length is that of all training rollouts so far."""
    scores, rollouts = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "rollout")
    metrics, _ = run("--steps", "3", "--eval-every", "3")
    answers = {row["problem"]: row["answer"] for row in read_lines(folders["data"] / "train.jsonl")}
    all_lengths = []
    for step in (1, 2, 3):
        (names, texts, problems, lengths, mean_length, *_), rewards_of_step = scores[step]
        batch = rollouts[step][1]
        all_lengths += lengths
        assert names == NAMES and mean_length == pytest.approx(sum(all_lengths) / len(all_lengths))
        assert texts == batch["texts"] and lengths == batch["lengths"].tolist()
        assert len({problem["prompt"] for problem in problems}) == 4
        for i, problem in enumerate(problems):
            assert problem is problems[i // 4 * 4] and problem["answer"] == answers[problem["problem"]]
            row = batch["ids"][i][batch["attention"][i].bool()].tolist()
            assert row[: len(problem["prompt_ids"])] == problem["prompt_ids"]
        for name, r in zip(NAMES, torch.tensor(rewards_of_step).T.view(3, 4, 4)):  # (problems, G)
            assert metrics[step][f"rewards/{name}/mean"] == pytest.approx(r.mean().item())
            assert metrics[step][f"rewards/{name}/frac_zero_std"] == (r.std(1) == 0).float().mean()


def test_equal_rewards_in_a_group_give_no_gradient(run, script):
    """Sums such as 0.1 + 0.2 + 0.7 have rounding errors, which must not become advantages."""
    for name, value in {"accuracy": 0.1, "conciseness": 0.2, "clarity": 0.7}.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    metrics, _ = run("--num-generations", "7", "--steps", "1", *without_kl(script))
    assert metrics[1]["grad_norm"] < 1e-6


@shared
@pytest.mark.parametrize("reference", ["worst", "initial"])
def test_each_validation_point_is_compared_with_all_earlier_points(run, reference):
    points = [(0.2, 0.1), (0.4, 0.3), (0.3, 0.6), (0.9, 0.2), (0.3, 0.3)]
    for k, name in enumerate(["accuracy", "clarity"]):
        rewards.OBJECTIVES[name] = lambda step, k=k, **_: points[step][k]
    flags = ["--objectives", "accuracy", "clarity", "--steps", "4", "--hv-reference", reference]
    metrics, _ = run("--weighting", "hypervolume", *flags)
    corner = points[0] if reference == "initial" else [0, 0]
    volumes = [hypervolume.hypervolume(points[: i + 1], corner) for i in range(5)]
    gains = [after - before for before, after in zip(volumes, volumes[1:])]
    assert [line["delta_hv"] for line in metrics[1:]] == pytest.approx(gains, abs=1e-12) and max(gains) > 0


@shared
def test_the_learning_rate_decays_in_the_optimizer_and_in_the_update_of_the_weights(run, script, monkeypatch):
    updates, rates, step = spy(monkeypatch, script, "update_weights"), [], torch.optim.AdamW.step

    def record_rate(self, *args):
        rates.append(self.param_groups[0]["lr"])
        step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", record_rate)
    metrics, _ = run("--steps", "4", "--eval-every", "4", "--weighting", "gradient", "--lr-power", "1.03")
    assert rates == pytest.approx([1e-3 * (t / 4) ** 1.03 for t in (4, 3, 2, 1)], rel=1e-9)
    assert rates == [line["learning_rate"] for line in metrics[1:]]
    assert [args[2:] for args, _ in updates] == [(rate, 1e-2) for rate in rates]  # lr and mu, 10 times 1e-3


@pytest.mark.parametrize("script, G", [("grpo_dynw", 8), ("reinforce_dynw", 1)], indirect=["script"])
def test_a_few_steps_on_the_embedded_task_improve_it(main, script, G, tmp_path, monkeypatch):
    """REINFORCE++ needs only one response to a problem."""
    monkeypatch.setattr(compare, "summary", compare.before_and_after)
    flags = ["--steps", "4", "--eval-every", "4", "--max-eval-problems", "48", "--learning-rate", "1e-4"]
    flags += ["--prompts-per-step", 32 // G, "--num-generations", G, "--output-dir", tmp_path / "run"]
    main(script, *flags, "--weighting", "gradient")
    metrics = compare.read_metrics(tmp_path / "run")
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    first, last = metrics[0], metrics[4]
    assert last["eval/performance/accuracy"] > first["eval/performance/accuracy"] + 0.1
    assert last["eval/completions/mean_length"] < first["eval/completions/mean_length"]
