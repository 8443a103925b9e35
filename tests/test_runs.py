"""Whole runs of the scripts on tiny random models: training, output files and input errors."""

import importlib
import json
import math
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
import transformers
from conftest import (
    POLICY_IS_SAVED,
    ROOT,
    SCRIPTS,
    SMALL,
    all_files,
    compare_saved_model,
    read_lines,
    shared,
    spy,
    weights_of,
    without_times,
)
from safetensors.torch import load_file, save_file

import compare
import hypervolume
import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
SUMMARY = compare.summary  # The fixture run_script replaces it, so that no pictures are drawn.


def change_loss(script, monkeypatch, factor):
    """Multiplies the policy loss of a script by a factor."""
    policy_loss = script.policy_loss

    def changed(*args):
        loss, is_clipped = policy_loss(*args)
        return loss * factor, is_clipped

    monkeypatch.setattr(script, "policy_loss", changed)


def change_gram_matrix(script, monkeypatch, factor):
    """Multiplies the Gram matrix of a script by a factor."""
    gram_matrix = script.gram_matrix

    def changed(*args):
        gram, old_logprobs = gram_matrix(*args)
        return gram * factor, old_logprobs

    monkeypatch.setattr(script, "gram_matrix", changed)


def weights_in(line):
    """Returns the weights of the three objectives in a line of the metrics."""
    return [line[f"weights/{name}"] for name in rewards.OBJECTIVES]


def influences_in(line):
    """Returns the influences (K,) of the three objectives in a line of the metrics."""
    return torch.tensor([line[f"influence/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64)


# The output of a run


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_run_changes_every_parameter_and_writes_all_files_and_metrics(
    run, script, folders, weighting, model, monkeypatch, capsys
):
    has_pictures = (weighting, model, script.__name__) == ("gradient", "qwen3", "grpo_dynw")
    if has_pictures:
        monkeypatch.setattr(compare, "summary", SUMMARY)
    metrics, folder = run("--weighting", weighting, "--weight-decay", "0", model=model)
    initial, final = load_file(folders[model] / "model.safetensors"), weights_of(folder)
    assert initial.keys() == final.keys()
    assert [name for name in initial if torch.equal(initial[name], final[name])] == []
    files = ["args.json", "completions.jsonl", "metrics.jsonl", "model"]
    files += ["curves.png", "fronts.png"] if has_pictures else []
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    paths = folders[model], folder / "model"
    settings = [json.loads((path / "generation_config.json").read_text()) for path in paths]
    assert settings[0] == settings[1] and settings[0]["top_k"] == 2

    # The metrics are exactly these. Keys with {} exist once per objective.
    names = list(rewards.OBJECTIVES)
    rollouts = {"completions/mean_length", "completions/clipped_ratio"}
    evaluation = {"performance/{}", *rollouts}
    evaluated = {"time/validate", "eval/hypervolume", *(f"eval/{key}" for key in evaluation)}
    evaluated |= {f"val/{key}" for key in evaluation} if weighting == "hypervolume" else set()
    trained = {"reward", "rewards/{}/mean", "rewards/{}/frac_zero_std", "weights/{}", "r_pareto"}
    trained |= {"learning_rate", "loss", "clip_fraction", "grad_norm", *rollouts}
    trained |= {"time/rollout", "time/reward", "time/probe", "time/update"}
    trained |= set() if "rloo" in script.__name__ else {"kl"}
    trained |= {"hypervolume": {"delta_hv"}, "gradient": {"influence/{}"}}.get(weighting, set())
    keys_of_steps = [evaluated, evaluated | trained, evaluated | trained]
    for step, (line, keys) in enumerate(zip(metrics, keys_of_steps, strict=True)):
        assert line.keys() == {"step"} | {key.format(name) for key in keys for name in names}
        assert line["step"] == step and all(math.isfinite(value) for value in line.values())
    for line in metrics[1:]:
        assert sum(line[f"weights/{name}"] for name in names) == pytest.approx(1, abs=1e-9)
    has_changed = [metrics[-1][f"weights/{name}"] != 1 / 3 for name in names]
    assert all(has_changed) if weighting in ("gradient", "nash") else not any(has_changed)

    args = json.loads((folder / "args.json").read_text())
    assert args["weighting"] == weighting and args["algorithm"] == script.__name__.removesuffix("_dynw")
    assert args["torch"] == torch.__version__ and args["mu"] == 10 * args["learning_rate"] == 0.01
    assert args["weights"] == [1 / 3] * 3 and args["steps"] == 2
    out = capsys.readouterr().out
    assert "initial model" in out and "after step 2" in out and str(folder) in out


class NamedCuda(str):
    """The name of a device, "cpu". But its type is that of CUDA, so that the scripts take it for CUDA."""

    type = "cuda"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_saved_model_is_the_policy_to_the_bit(run, script, folders, device, monkeypatch):
    """On CUDA, a bfloat16 copy of the policy generates. It loses small changes of the weights."""
    if device == "cuda":
        monkeypatch.setattr(transformers.PreTrainedModel, "device", property(lambda _: NamedCuda("cpu")))
        monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    rollout, dtypes = script.rollout, set()

    def record_dtype(model, *args, **options):
        dtypes.add(model.dtype)
        return rollout(model, *args, **options)

    monkeypatch.setattr(script, "rollout", record_dtype)
    _, folder = run("--weight-decay", "0", "--learning-rate", "1e-5", "--checkpoint-every", "2")
    assert dtypes == {torch.bfloat16 if device == "cuda" else torch.float32}
    assert compare_saved_model(folder, folders["qwen3"]) == POLICY_IS_SAVED


def test_a_script_runs_with_only_hypervolume_and_rewards_beside_it(folders, tmp_path):
    """
    Without compare.py, it draws no pictures and prints a line about that. One script is enough, because the
    scripts share their imports.
    """
    for file in ("reinforce_dynw.py", "hypervolume.py", "rewards.py"):
        shutil.copy(ROOT / file, tmp_path)
    command = [sys.executable, "reinforce_dynw.py", *SMALL, "--steps", "1", "--weighting", "gradient"]
    command += ["--model", folders["qwen3"], "--dataset", folders["data"], "--output-dir", "run"]
    process = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    [_, pictures_line, folder_line] = process.stdout.splitlines()  # The first line is about the dataset.
    assert "No pictures" in pictures_line and "compare.py" in pictures_line and "run" in folder_line
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"args.json", "completions.jsonl", "metrics.jsonl", "model"}
    assert len(compare.read_metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "script, weighting", list(zip([*SCRIPTS, "grpo_dynw"], WEIGHTINGS)), indirect=["script"]
)
def test_two_runs_with_the_same_seed_are_equal_bit_for_bit(run, weighting):
    one, folder_one = run("--weighting", weighting, name="one")
    two, folder_two = run("--weighting", weighting, name="two")
    other, _ = run("--weighting", weighting, "--seed", "2", name="other")
    assert without_times(one) == without_times(two) != without_times(other)
    a, b = weights_of(folder_one), weights_of(folder_two)
    assert all(torch.equal(a[name], b[name]) for name in a)


@shared
def test_evaluations_can_be_recomputed_from_the_completions(run, folders, tokenizer):
    metrics, folder = run("--steps", "1")
    samples, problems = read_lines(folder / "completions.jsonl"), read_lines(folders["data"] / "test.jsonl")
    keys = {"prompt", "response", "answer", "length", "cut_off", "performance"}
    assert all(s.keys() == keys and s["performance"].keys() == rewards.OBJECTIVES.keys() for s in samples)
    assert [s["answer"] for s in samples] == [p["answer"] for p in problems]
    assert all(p["problem"] in s["prompt"] for s, p in zip(samples, problems))
    last = {key.removeprefix("eval/"): value for key, value in metrics[-1].items()}
    for name in ("accuracy", "clarity"):
        scores = [rewards.score([name], [s["response"]], [s], [0], 0)[0][0] for s in samples]
        assert [s["performance"][name] for s in samples] == scores
        assert last[f"performance/{name}"] == pytest.approx(sum(scores) / 6)
    length = sum(s["length"] for s in samples) / 6
    assert last["completions/mean_length"] == pytest.approx(length)
    assert last["performance/conciseness"] == pytest.approx(1 - length / 12)
    for sample in samples:
        assert sample["performance"]["conciseness"] == pytest.approx(1 - sample["length"] / 12)
    assert last["completions/clipped_ratio"] == sum(s["cut_off"] for s in samples) / 6
    assert all(s["length"] == 12 for s in samples if s["cut_off"])
    points = [[line[f"eval/performance/{name}"] for name in rewards.OBJECTIVES] for line in metrics]
    for i, line in enumerate(metrics):
        assert line["eval/hypervolume"] == hypervolume.hypervolume(points[: i + 1], [0, 0, 0])


@shared
def test_evaluations_are_made_every_few_steps_and_at_the_end(run):
    metrics, _ = run("--steps", "5", "--eval-every", "2")
    assert [line["step"] for line in metrics if "eval/hypervolume" in line] == [0, 2, 4, 5]
    metrics, folder = run("--steps", "0", name="none")
    assert [line["step"] for line in metrics] == [0] and "loss" not in metrics[0]
    assert (folder / "model").exists()


@shared
def test_an_objective_can_be_added(run):
    @rewards.objective
    def evenness(response, **_):
        return float(len(response) % 2 == 0)

    metrics, _ = run("--objectives", "evenness", "accuracy", "--weights", "0.75", "0.25")
    assert metrics[1]["weights/evenness"] == pytest.approx(0.75, abs=0.05)
    assert "rewards/evenness/mean" in metrics[1] and "rewards/clarity/mean" not in metrics[1]


@shared
def test_the_name_of_an_objective_may_be_that_of_another_entry(run, folders):
    """All entries of metrics and completions keep their values, and compare.py reads the right ones."""
    names = ["length", "prompt", "response", "answer", "cut_off"]
    names += ["mean_length", "hypervolume", "clipped_ratio"]
    values = {name: i / 16 for i, name in enumerate(names, 1)}
    for name, value in values.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    flags = ["--steps", "1", "--weighting", "hypervolume"]
    flags += ["--objectives", *names, "--weights", *[1 / len(names)] * len(names)]
    metrics, folder = run(*flags)
    problems = read_lines(folders["data"] / "test.jsonl")
    for sample, problem in zip(read_lines(folder / "completions.jsonl"), problems, strict=True):
        assert problem["problem"] in sample["prompt"] and sample["answer"] == problem["answer"]
        assert isinstance(sample["response"], str)
        assert type(sample["length"]) is int and type(sample["cut_off"]) is bool
        assert sample["performance"] == values
    for line in metrics:
        for prefix in ("eval", "val"):
            assert 1 <= line[f"{prefix}/completions/mean_length"] <= 12
            assert {name: line[f"{prefix}/performance/{name}"] for name in names} == values
        assert line["eval/hypervolume"] == pytest.approx(math.prod(values.values()))
    assert {name: metrics[1][f"rewards/{name}/mean"] for name in names} == values
    results = compare.read_run(folder)
    assert results["objectives"] == names and results["points"].tolist() == [list(values.values())] * 2


@shared
def test_metrics_that_are_not_finite_are_written_as_null(run, script, monkeypatch):
    """Here, the loss and the Gram matrix are not finite. JSON has no NaN and no infinity."""
    change_loss(script, monkeypatch, math.nan)
    change_gram_matrix(script, monkeypatch, math.inf)
    _, folder = run("--weighting", "gradient")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    influences = {f"influence/{name}" for name in rewards.OBJECTIVES}
    for line in lines[1:]:
        assert {key for key, value in line.items() if value is None} == {"loss", "grad_norm", *influences}
    assert None not in lines[0].values()


@shared
def test_a_run_into_the_folder_of_another_run_is_refused(run, script, monkeypatch, capsys):
    """It is refused before it loads a model, or later if the other run makes its folder in the meantime."""
    _, first = run("--steps", "1")
    files, loads = all_files(first), spy(monkeypatch, script, "load_model")
    with pytest.raises(SystemExit) as stop:
        run("--steps", "1", "--seed", "2")
    assert stop.value.code == 2 and str(first) in capsys.readouterr().err
    assert all_files(first) == files and not loads
    load, other = script.load_model, first.with_name("other")
    monkeypatch.setattr(script, "load_model", lambda *args: (other.mkdir(exist_ok=True), load(*args))[1])
    with pytest.raises(SystemExit) as stop:
        run("--steps", "1", name="other")
    assert stop.value.code == 2 and list(other.iterdir()) == []


@shared
def test_runs_that_start_in_the_same_second_get_different_folders(
    run, folders, main, script, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    now = (2026, 1, 2, 3, 4, 5, 0, 1, 0)
    monkeypatch.setattr(script, "strftime", lambda pattern: time.strftime(pattern, now))
    for pid in (123, 124):
        monkeypatch.setattr(script.os, "getpid", lambda pid=pid: pid)
        main(script, *SMALL, "--steps", "0", "--model", folders["qwen3"], "--dataset", folders["data"])
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2 and all(name.startswith("grpo-fixed-20260102-030405") for name in names)


# Comparisons of the scripts


def without_kl(script):
    """Returns the flags that remove the KL penalty from the loss of a script, if it has one."""
    return ["--kl-coefficient", "0"] if hasattr(script, "kl_penalty") else []


def run_each_script(run_script, *flags):
    """Runs each script without the KL penalty. Returns the metrics and the folder of each run."""
    scripts = [importlib.import_module(name) for name in SCRIPTS]
    return [run_script(script, *flags, *without_kl(script), name=script.__name__) for script in scripts]


def test_with_the_same_advantages_and_no_kl_all_scripts_take_the_same_step(run_script, sgd, monkeypatch):
    for name in SCRIPTS:
        script = importlib.import_module(name)
        monkeypatch.setattr(script, "advantage", lambda r, lengths, args: r - lengths / 10)
    runs = run_each_script(run_script, "--steps", "1", "--weighting", "gradient")
    first = weights_of(runs[0][1])
    for metrics, folder in runs[1:]:
        other = weights_of(folder)
        assert all(torch.equal(first[name], other[name]) for name in first)
        assert metrics[1]["loss"] == runs[0][0][1]["loss"]


def test_with_the_same_seed_all_scripts_have_the_same_first_rollouts(run_script):
    runs = run_each_script(run_script, "--steps", "1", "--learning-rate", "1e-9")
    lines = [metrics[1] for metrics, _ in runs]
    keys = ["rewards/accuracy/mean", "rewards/clarity/mean", "completions/mean_length", "eval/hypervolume"]
    for key in keys:
        assert len({line[key] for line in lines}) == 1
    assert len({line["grad_norm"] for line in lines}) == len(SCRIPTS)


# Rewards, advantages and policy updates in the main loop


@shared
def test_the_mean_length_is_that_of_all_training_rollouts_so_far(run, monkeypatch):
    calls = spy(monkeypatch, rewards, "score")
    run("--steps", "3", "--eval-every", "3")
    all_lengths, arguments = [], [args for args, _ in calls if len(args[1]) == 16]
    assert len(arguments) == 3
    for _, _, _, lengths, mean_length, *_ in arguments:
        all_lengths += lengths
        assert mean_length == pytest.approx(sum(all_lengths) / len(all_lengths))


def test_the_loss_at_ratio_one_is_minus_the_mean_advantage_of_the_tokens(run, script, monkeypatch):
    """
    The advantages of GRPO and RLOO have mean 0 over the responses of a group, but not over their tokens. So
    the loss is small, but not 0. The advantages of REINFORCE++ have mean 0 over the tokens.
    """
    losses, batches = spy(monkeypatch, script, "policy_loss"), spy(monkeypatch, script, "micro_batch")
    metrics, _ = run("--steps", "1", "--micro-batch-size", "16", *without_kl(script))
    [((logprobs, old, A, *_), (_, clipped))] = losses
    assert torch.equal(logprobs, old) and not clipped.any()
    lengths = batches[0][1]["mask"].sum(1)
    assert metrics[1]["loss"] == pytest.approx(-(A * lengths).sum().item() / lengths.sum().item(), abs=1e-6)
    assert (abs(metrics[1]["loss"]) > 1e-4) == (script.__name__ != "reinforce_dynw")


@shared
@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_each_update_has_its_share_of_the_responses_sorted_by_length(run, script, monkeypatch, weighting):
    losses, batches = spy(monkeypatch, script, "policy_loss"), spy(monkeypatch, script, "micro_batch")
    flags = ["--updates-per-step", "2", "--micro-batch-size", "3", "--weighting", weighting]
    metrics, _ = run("--steps", "1", "--learning-rate", "0.01", *flags, *without_kl(script))
    assert len(losses) == 6 and len(batches) == 12  # The first six are for the old log-probabilities.
    for part in (batches[:6], batches[6:]):
        for update, expected in ((part[:3], range(8)), (part[3:], range(8, 16))):
            rows = [args[1].tolist() for args, _ in update]
            assert [len(micro) for micro in rows] == [3, 3, 2]
            assert sorted(sum(rows, [])) == list(expected)
            lengths = update[0][0][0]["lengths"][sum(rows, [])].tolist()
            assert lengths == sorted(lengths)
    # The logged value is the mean of both updates. That of an update is a mean over its tokens.
    masks = [batch["mask"] for _, batch in batches[6:]]
    for i, name in enumerate(["loss", "clip_fraction"]):
        sums = [(result[i] * mask).sum().item() for (_, result), mask in zip(losses, masks)]
        tokens = [mask.sum().item() for mask in masks]
        expected = (sum(sums[:3]) / sum(tokens[:3]) + sum(sums[3:]) / sum(tokens[3:])) / 2
        assert metrics[1][name] == pytest.approx(expected, abs=1e-6) and expected != 0


@shared
def test_gradients_add_up_over_the_micro_batches_of_an_update_only(run, script, monkeypatch):
    loads, policy_loss, zero_gradients = spy(monkeypatch, script, "load_model"), script.policy_loss, []

    def check_gradients(*args):
        gradients = [p.grad for p in loads[0][1][0].parameters()]
        zero_gradients.append(all(g is None or not g.any() for g in gradients))
        return policy_loss(*args)

    monkeypatch.setattr(script, "policy_loss", check_gradients)
    run("--steps", "2", "--updates-per-step", "2", "--micro-batch-size", "3", "--weighting", "gradient")
    assert zero_gradients == [True, False, False] * 4


@pytest.mark.parametrize("updates", [1, 2])
def test_the_micro_batch_size_does_not_change_the_gradient(run, sgd, updates):
    """
    Means are over the tokens of the whole update. With means over each micro-batch, a micro-batch of few
    tokens would count as much as one of many.
    """
    results = {}
    for size in (1, 3, 16):
        flags = ["--steps", 1, "--micro-batch-size", size, "--updates-per-step", updates]
        flags += ["--max-grad-norm", 1e9]
        metrics, folder = run(*flags, "--weighting", "gradient", name=f"size{size}")
        results[size] = metrics[1], weights_of(folder)
    for size in (1, 3):
        for name, value in results[16][1].items():
            torch.testing.assert_close(results[size][1][name], value, rtol=1e-4, atol=1e-5)
        keys = ["loss", "grad_norm", "reward", "influence/accuracy", "influence/clarity", "clip_fraction"]
        for key in keys:
            assert results[size][0][key] == pytest.approx(results[16][0][key], rel=1e-3, abs=1e-6)


@shared
@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_only_the_first_update_of_a_step_has_ratio_one(run, script, monkeypatch, weighting):
    calls = spy(monkeypatch, script, "policy_loss")
    flags = ["--steps", "1", "--updates-per-step", "2", "--micro-batch-size", "8", "--learning-rate", "0.01"]
    run(*flags, "--weighting", weighting)
    first, second = [(args[0] - args[1]).abs().max() for args, _ in calls]
    assert first < 1e-5 < 1e-2 < second


@shared
def test_each_group_holds_the_responses_to_one_problem_with_its_answer(
    run, folders, monkeypatch, script, tokenizer
):
    scores, rollouts = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "rollout")
    run("--steps", "1")
    train_split = read_lines(folders["data"] / "train.jsonl")
    [((_, _, prompts, G, *_), batch)] = [call for call in rollouts if len(call[1]["texts"]) == 16]
    [(_, responses, problems, lengths, _, step, split)] = [args for args, _ in scores if len(args[1]) == 16]
    assert G == 4 and len(prompts) == 4
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    expected = [next(p for p in train_split if p["problem"] in text) for text in texts]
    assert len({p["problem"] for p in expected}) == 4
    assert step == 1 and split == "train"
    assert [p["answer"] for p in problems] == [p["answer"] for p in expected for _ in range(4)]
    rows = [ids[attention.bool()].tolist() for ids, attention in zip(batch["ids"], batch["attention"])]
    assert all(row[: len(prompts[i // 4])] == prompts[i // 4] for i, row in enumerate(rows))
    assert responses == batch["texts"] and lengths == batch["lengths"].tolist()


def test_metrics_and_advantages_come_from_the_rewards_and_weights(run, script, monkeypatch):
    scores, probes = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "gram_matrix")
    advantages = spy(monkeypatch, script, "advantage")
    metrics, _ = run("--steps", "1", "--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    [r_vec] = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scores if len(args[1]) == 16]
    names = ["accuracy", "conciseness", "clarity"]
    ((_, lengths, args), _), ((weighted_sum, *_), _) = advantages
    for k, name in enumerate(names):
        assert metrics[1][f"rewards/{name}/mean"] == pytest.approx(r_vec[k].mean().item())
        equal = [len(set(r_vec[k, i : i + 4].tolist())) == 1 for i in range(0, 16, 4)]
        assert metrics[1][f"rewards/{name}/frac_zero_std"] == sum(equal) / 4
        expected = script.advantage(r_vec[k], lengths, args).float()
        torch.testing.assert_close(probes[0][0][4][k], expected)
    w = torch.tensor([metrics[1][f"weights/{name}"] for name in names], dtype=torch.float64)
    assert w.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.05) and w.tolist() != [0.7, 0.2, 0.1]
    assert metrics[1]["reward"] == pytest.approx((w @ r_vec).mean().item())
    torch.testing.assert_close(weighted_sum, w @ r_vec)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_kl_penalty_starts_at_zero_and_is_part_of_the_loss(run, sgd):
    """The reference model is the initial model."""
    with_kl, folder_with_kl = run("--kl-coefficient", "0.5", name="with-kl")
    without, folder_without = run("--kl-coefficient", "0", name="without")
    assert with_kl[1]["kl"] == pytest.approx(0, abs=1e-9) and with_kl[2]["kl"] > 1e-6
    assert with_kl[2]["loss"] == pytest.approx(without[2]["loss"] + 0.5 * with_kl[2]["kl"], abs=1e-6)
    a, b = weights_of(folder_with_kl), weights_of(folder_without)
    assert max((a[name] - b[name]).abs().max().item() for name in a) > 1e-5


@shared
def test_flags_reach_the_loss_and_the_optimizer(run, script, monkeypatch):
    losses, options = spy(monkeypatch, script, "policy_loss"), []

    def make_optimizer(parameters, **kwargs):
        options.append(kwargs)
        return torch.optim.SGD(parameters, lr=1e-3)

    monkeypatch.setattr(torch.optim, "AdamW", make_optimizer)
    flags = ["--clip-low", "0.1", "--clip-high", "0.3", "--clip-dual", "4", "--weight-decay", "0.5"]
    run("--steps", "1", *flags)
    assert losses[0][0][3:] == (0.1, 0.3, 4.0)
    assert options == [{"lr": 1e-3, "weight_decay": 0.5, "fused": False}]


@shared
def test_influences_that_are_not_finite_do_not_change_the_weights(run, script, monkeypatch):
    change_gram_matrix(script, monkeypatch, math.nan)
    metrics, _ = run("--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    for line in metrics[1:]:
        assert weights_in(line) == pytest.approx([0.7, 0.2, 0.1], abs=1e-12)


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@shared
def test_a_run_in_bfloat16_autocast(run, monkeypatch, weighting, model):
    """The scripts use bfloat16 autocast on CUDA only. Here, it is switched on for the CPU."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: autocast("cpu", torch.bfloat16))
    metrics, _ = run("--weighting", weighting, model=model)
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[1]["clip_fraction"] == 0 and metrics[1]["grad_norm"] > 0


@shared
def test_six_steps_on_the_embedded_task_improve_it(main, script, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "summary", compare.before_and_after)
    flags = ["--steps", "6", "--eval-every", "6", "--weighting", "gradient"]
    main(script, *flags, "--output-dir", tmp_path / "run")
    first, last = [line for line in compare.read_metrics(tmp_path / "run") if "eval/hypervolume" in line]
    assert last["eval/performance/accuracy"] > first["eval/performance/accuracy"] + 0.1
    assert last["eval/completions/mean_length"] < 0.9 * first["eval/completions/mean_length"]
    assert last["eval/performance/clarity"] > first["eval/performance/clarity"]


# Weightings


def hypervolume_run(run, monkeypatch, script, name, gain, *flags):
    """
    Returns the model's weights after two steps. The hypervolume contribution of the first step is `gain`,
    which sets the meta reward of the second step by Eq. (1).
    """
    monkeypatch.setattr(script, "contribution", lambda *_: gain)
    metrics, folder = run("--weighting", "hypervolume", "--hv-scale", "1", *flags, name=name)
    assert [line.get("delta_hv") for line in metrics] == [None, gain, gain]
    expected = 0.5 + 1.5 * (math.exp(2 * gain) - 1) / (math.exp(2 * gain) + 1)
    assert [line.get("r_pareto") for line in metrics] == [None, 1.0, pytest.approx(expected, abs=1e-12)]
    return weights_of(folder)


def test_the_meta_reward_scales_the_step_if_it_is_on_the_advantage(run, sgd, script, monkeypatch):
    """On the reward, it has an effect in RLOO only: GRPO and REINFORCE++ divide by a standard deviation."""
    flags = ["--max-grad-norm", "1e9", *without_kl(script)]
    # By Eq. (1), this contribution gives a meta reward of 1.
    unscaled = hypervolume_run(run, monkeypatch, script, "unscaled", math.atanh(1 / 3), *flags)
    differences = {}
    for place in ("advantage", "reward"):
        scaled = hypervolume_run(run, monkeypatch, script, place, 2.0, *flags, "--meta-reward-on", place)
        differences[place] = max((scaled[name] - unscaled[name]).abs().max().item() for name in unscaled)
    assert differences["advantage"] > 1e-2
    if script.__name__ == "rloo_dynw":
        assert differences["reward"] == pytest.approx(differences["advantage"], rel=1e-3)
    else:
        assert differences["reward"] < 1e-4


@shared
def test_each_hypervolume_contribution_sets_the_meta_reward_of_the_next_step(run, script, monkeypatch):
    """
    The first point is that of the initial model. The second is better, the third equals the second, the
    fourth is better in two objectives, and the fifth equals the fourth.
    """
    points = [[0.2] * 3, [0.4] * 3, [0.4] * 3, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9]]
    validation_points, evaluate = iter(points), script.evaluate

    def replay(*args):
        return ({}, next(validation_points), []) if args[3] == "validation" else evaluate(*args)

    monkeypatch.setattr(script, "evaluate", replay)
    metrics, _ = run("--weighting", "hypervolume", "--hv-scale", "100", "--steps", "4", "--eval-every", "4")
    assert [line["delta_hv"] > 0 for line in metrics[1:]] == [True, False, True, False]
    volumes = [hypervolume.hypervolume(points[:i], [0] * 3) for i in range(1, 6)]
    for i, line in enumerate(metrics[1:], 1):
        assert line["delta_hv"] == pytest.approx(volumes[i] - volumes[i - 1], abs=1e-12)
        expected = 1.0 if i == 1 else 0.5 + 1.5 * math.tanh(100 * metrics[i - 1]["delta_hv"])
        assert line["r_pareto"] == pytest.approx(expected, abs=1e-12)


@shared
@pytest.mark.parametrize("reference", ["worst", "initial"])
def test_each_validation_point_is_compared_with_all_earlier_points(run, monkeypatch, script, reference):
    contributions = spy(monkeypatch, script, "contribution")
    evaluations = spy(monkeypatch, script, "evaluate")
    run("--weighting", "hypervolume", "--steps", "3", "--hv-reference", reference)
    points = [result[1] for args, result in evaluations if args[3] == "validation"]
    assert len(points) == 4
    corner = points[0] if reference == "initial" else [0, 0, 0]
    assert [args for args, _ in contributions] == [(points[i], points[:i], corner) for i in (1, 2, 3)]


@shared
def test_influences_and_weights_of_two_gradients_have_a_closed_form(run, script, monkeypatch):
    """
    g_1 = (3, 4) has norm 5 and is clipped to (.6, .8). g_2 = (.5, 0) is kept. The influences are
    I = (.6 * 1.1 + .8 * .8, .5 * 1.1). In each step, w_k is multiplied by exp(0.1 I_k) and normalized. A
    weight of 0 stays 0.
    """
    g, gram_matrix = torch.tensor([[3.0, 4.0], [0.5, 0.0]], dtype=torch.float64), script.gram_matrix
    monkeypatch.setattr(script, "gram_matrix", lambda *args: (g @ g.T, gram_matrix(*args)[1]))
    flags = ["--weighting", "gradient", "--objectives", "accuracy", "clarity", "--influence-scale", "clip"]
    flags += ["--learning-rate", "1e-6", "--mu", "1e-5"]
    metrics, _ = run(*flags, "--weights", "0.3", "0.7")
    for step in (1, 2):
        influence = [metrics[step][f"influence/{name}"] for name in ("accuracy", "clarity")]
        assert influence == pytest.approx([1.3, 0.55], abs=1e-12)
        a, b = 0.3 * math.exp(0.13 * step), 0.7 * math.exp(0.055 * step)
        weights = [metrics[step][f"weights/{name}"] for name in ("accuracy", "clarity")]
        assert weights == pytest.approx([a / (a + b), b / (a + b)], abs=1e-9)
    metrics, _ = run(*flags, "--weights", "0", "1", name="bound")
    assert [[line["weights/accuracy"], line["weights/clarity"]] for line in metrics[1:]] == [[0.0, 1.0]] * 2


@shared
def test_the_weights_of_each_step_follow_from_its_influences(run):
    metrics, _ = run("--weighting", "gradient", "--steps", "3", "--mu", "1e-4", "--learning-rate", "1e-3")
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:
        w = w * torch.exp(1e-3 * influences_in(line) / 1e-4)
        w = w / w.sum()
        assert weights_in(line) == pytest.approx(w.tolist(), abs=1e-9)
    assert (w - 1 / 3).abs().max() > 1e-3


@shared
def test_the_polynomial_schedule_is_that_of_pytorch(run, monkeypatch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, expected = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=5, power=1.03), []
    for _ in range(5):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    rates, step = [], torch.optim.AdamW.step

    def record_rate(self, *args):
        rates.append(self.param_groups[0]["lr"])
        step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", record_rate)
    flags = ["--steps", "5", "--eval-every", "5", "--weighting", "gradient", "--mu", "1e-4"]
    metrics, _ = run(*flags, "--lr-schedule", "polynomial")
    assert rates == pytest.approx(expected, rel=1e-9)
    assert [line["learning_rate"] for line in metrics[1:]] == rates
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:  # Eq. (3) uses the same learning rate.
        w = torch.softmax(w.log() + line["learning_rate"] * influences_in(line) / 1e-4, 0)
        assert weights_in(line) == pytest.approx(w.tolist(), abs=1e-9)


@shared
def test_a_gradient_that_is_not_finite_skips_the_update(run, script, folders, monkeypatch):
    change_loss(script, monkeypatch, math.nan)
    metrics, folder = run("--weighting", "gradient")
    assert [line["grad_norm"] for line in metrics[1:]] == [None, None]
    initial, final = load_file(folders["qwen3"] / "model.safetensors"), weights_of(folder)
    assert all(torch.equal(initial[name], final[name]) for name in initial)


@shared
def test_the_rollout_batch_size_does_not_change_greedy_responses(run):
    flags = ["--steps", "1", "--learning-rate", "1e-9"]
    for size in ("1", "4", "100"):
        metrics, folder = run(*flags, "--rollout-batch-size", size, name=size)
        assert metrics[0]["eval/completions/mean_length"] == metrics[1]["eval/completions/mean_length"]
        assert metrics[1]["clip_fraction"] == 0 and metrics[1]["completions/mean_length"] > 2
    texts = [(folder.with_name(size) / "completions.jsonl").read_text() for size in ("1", "4", "100")]
    assert texts[0] == texts[1] == texts[2]


def test_equal_rewards_in_a_group_give_no_gradient(run, script, monkeypatch):
    """Sums such as 0.1 + 0.2 + 0.7 have rounding errors, which must not become advantages."""
    for name, value in {"accuracy": 0.1, "conciseness": 0.2, "clarity": 0.7}.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    metrics, _ = run("--num-generations", "7", "--steps", "1", *without_kl(script))
    assert metrics[1]["grad_norm"] < 1e-6


# Input errors


def dataset(folder, **splits):
    """Writes a dataset: splits of rows, which are dictionaries. Returns its folder."""
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


GOOD = [{"problem": "What is 1+1?", "answer": "2"}] * 4
BAD = {
    "unknown flag": ["--no-such-flag", "1"],
    "part of a flag": ["--step", "1"],
    "unknown choice": ["--weighting", "magic"],
    "not a number": ["--steps", "many"],
    "unknown objective": ["--objectives", "accuracy", "beauty"],
    "one objective": ["--objectives", "accuracy"],
    "an objective twice": ["--objectives", "accuracy", "accuracy"],
    "negative weight": ["--weights", "1.5", "-0.5", "0"],
    "weights that do not sum to 1": ["--weights", "0.3", "0.3", "0.3"],
    "too few weights": ["--weights", "0.5", "0.5"],
    "weights that are not numbers": ["--weights", "0.5", "nan", "0.5"],
    "one rollout a prompt": ["--num-generations", "1"],
    "no mu": ["--mu", "0"],
    "no problems": ["--prompts-per-step", "0"],
    "no tokens": ["--max-new-tokens", "0"],
    "no micro-batches": ["--micro-batch-size", "0"],
    "negative steps": ["--steps", "-1"],
    "negative clip": ["--clip-low", "-1"],
    "a limit that is not a number": ["--clip-high", "nan"],
    "infinite learning rate": ["--learning-rate", "inf"],
    "a seed too large": ["--seed", "9999999999999999999"],
    "a dual clip that removes gradients at ratio 1": ["--clip-dual", "1"],
    "more tokens than positions": ["--max-new-tokens", "100"],
    "a model that lacks weights": ["--model", "{partial}"],
    "a model that never ends": ["--model", "{endless}"],
    "a name too long": ["--output-dir", "a" * 300],
    "a row without an answer": ["--dataset", "{unanswered}"],
    "probe layers out of order": ["--probe-layers", "0.75", "0.25"],
    "one probe layer": ["--probe-layers", "0.75"],
    "updates that do not divide": ["--updates-per-step", "3"],
    "no such device": ["--device", "toaster"],
    "no such model": ["--model", "no/such-model"],
    "not a model": ["--model", "{empty}"],
    "the folder of an adapter": ["--model", "{adapter}"],
    "no such dataset": ["--dataset", "no/such-dataset"],
    "empty dataset": ["--dataset", "{empty}"],
    "missing columns": ["--dataset", "{columns}"],
    "a file without data": ["--dataset", "{empty}.txt"],
    "missing split": ["--dataset", "{split}"],
    "empty split": ["--dataset", "{nothing}"],
    "no validation split": ["--dataset", "{unvalidated}", "--weighting", "hypervolume"],
    "broken data": ["--dataset", "{broken}"],
    "no prompt within the limit": ["--max-prompt-tokens", "3"],
    "a run folder that exists": ["--output-dir", "{empty}"],
    "nothing to resume": ["--resume", "{empty}"],
    "a folder that cannot be made": ["--output-dir", "{columns}/train.jsonl/run"],
    "a package that is not installed": ["--report-to", "wandb"],
}


@pytest.fixture(scope="module")
def inputs(folders, tmp_path_factory):
    """The paths of datasets and models that cannot be used: {name: path}."""
    base = tmp_path_factory.mktemp("bad")
    paths = {
        "columns": dataset(base / "columns", train=[{"question": "1+1?"}] * 4, test=[{"question": "1+1?"}]),
        "split": dataset(base / "split", train=GOOD),
        "nothing": dataset(base / "nothing", train=GOOD, test=[]),
        "unvalidated": dataset(base / "unvalidated", train=GOOD, test=GOOD[:1]),
        "unanswered": dataset(
            base / "unanswered", train=[*GOOD, {"problem": "?", "answer": None}], test=GOOD
        ),
        "broken": dataset(base / "broken", train=GOOD, test=GOOD),
        **{name: base / name for name in ("empty", "partial", "endless", "adapter")},
    }
    (paths["broken"] / "train.jsonl").write_text('{"problem": ')
    for name in ("empty", "adapter"):
        paths[name].mkdir()
    (base / "empty.txt").write_text("Hello")
    shutil.copytree(folders["qwen3"], paths["partial"])
    weights = load_file(paths["partial"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, paths["partial"] / "model.safetensors", {"format": "pt"})
    shutil.copytree(folders["qwen3"], paths["endless"])
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((paths["endless"] / name).read_text())
        settings |= {"eos_token_id": None, "eos_token": None}
        (paths["endless"] / name).write_text(json.dumps(settings))
    (paths["endless"] / "chat_template.jinja").unlink()  # It would show how a turn ends.
    (paths["adapter"] / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return paths


@shared
def test_the_message_about_an_adapter_says_what_to_do(run, script, inputs, tmp_path, monkeypatch, capfd):
    err = refused(run, script, tmp_path, monkeypatch, capfd, "--model", inputs["adapter"])
    assert err.endswith("is an adapter; merge the adapter into its base model first\n")


def refused(run, script, tmp_path, monkeypatch, capfd, *flags):
    """Returns the line with which a run is refused. Asserts that it has exit code 2 and writes no file."""
    monkeypatch.chdir(tmp_path)
    paths = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and sorted(tmp_path.rglob("*")) == paths
    assert err.startswith(f"{script.__name__}.py: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", BAD)
@shared
def test_wrong_input_is_refused_in_one_line_and_writes_no_file(
    run, inputs, tmp_path, monkeypatch, capfd, script, name
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # It cannot be imported.
    files = all_files(inputs["empty"].parent)
    err = refused(run, script, tmp_path, monkeypatch, capfd, *[flag.format(**inputs) for flag in BAD[name]])
    for flag in BAD[name]:
        assert flag[:4] != "--no" or flag in err
    assert all_files(inputs["empty"].parent) == files and list(inputs["empty"].iterdir()) == []


@pytest.mark.parametrize("flags", [["--baseline", "magic"], ["--kl-coefficient", "-1"]])
@pytest.mark.parametrize("script", ["reinforce_dynw"], indirect=True)
def test_wrong_input_of_reinforce_is_refused(run, tmp_path, monkeypatch, capfd, script, flags):
    assert flags[0] in refused(run, script, tmp_path, monkeypatch, capfd, *flags)


@shared
def test_problems_with_long_prompts_are_left_out_and_counted(run, tokenizer, tmp_path, capsys):
    long = [{"problem": "What is " + "+".join(["1"] * 30) + "?", "answer": "30"}]
    data = dataset(tmp_path / "data", train=GOOD + long, test=GOOD)
    run("--dataset", data, "--steps", "1")
    assert "train: left out 1 of 5 prompts" in capsys.readouterr().out


def test_help_shows_every_flag_and_every_default_once(script, main, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    defaults = vars(script.make_parser().parse_args([]))
    with pytest.raises(SystemExit) as stop:
        main(script, "--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    entries = {}  # {flag: text}
    for line in re.sub(r"\n {10,}", " ", out).splitlines():
        if match := re.match(r"  --([a-z-]+)(.*)", line):
            assert match[1] not in entries
            entries[match[1]] = match[2]
    assert entries.keys() == {name.replace("_", "-") for name in defaults} and len(entries) > 30
    for name, default in defaults.items():
        text = entries[name.replace("_", "-")]
        if default is None or default is False:
            assert text.count("default") <= 1
        else:
            assert text.count("default") == 1 and text.endswith(f"(default: {default})")
