"""Whole runs of the scripts, on tiny random models: what is trained, written, refused."""

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
from conftest import ROOT, SCRIPTS, SMALL, all_files, read_lines, shared, spy, weights_of, without_times
from safetensors.torch import load_file, save_file

import compare
import hypervolume
import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient"]
SUMMARY = compare.summary  # with the pictures, which the runs of these tests are made without


# What a run writes


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_run_changes_every_parameter_and_writes_what_it_says(
    run, script, folders, weighting, model, monkeypatch, capsys
):
    has_pictures = (weighting, model, script.__name__) == ("gradient", "qwen3", "grpo_dynw")
    if has_pictures:
        monkeypatch.setattr(compare, "summary", SUMMARY)
    metrics, folder = run("--weighting", weighting, "--weight-decay", "0", model=model)
    before, after = load_file(folders[model] / "model.safetensors"), weights_of(folder)
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    written = ["args.json", "completions.jsonl", "metrics.jsonl", "model"]
    written += ["curves.png", "fronts.png"] if has_pictures else []
    assert sorted(path.name for path in folder.iterdir()) == sorted(written)
    both = folders[model], folder / "model"
    settings = [json.loads((path / "generation_config.json").read_text()) for path in both]
    assert settings[0] == settings[1] and settings[0]["top_k"] == 2
    # All metrics, and no others
    names = list(rewards.OBJECTIVES)
    measured = {"performance/{}", "completions/mean_length", "completions/clipped_ratio"}
    initial = {"time/validate", "eval/hypervolume", *(f"eval/{key}" for key in measured)}
    initial |= {f"val/{key}" for key in measured} if weighting == "hypervolume" else set()
    trained = {
        "reward",
        "rewards/{}/mean",
        "rewards/{}/frac_zero_std",
        "weights/{}",
        "r_pareto",
        "learning_rate",
    }
    trained |= {"loss", "clip_fraction", "grad_norm", "completions/mean_length", "completions/clipped_ratio"}
    trained |= {"time/rollout", "time/reward", "time/probe", "time/update"} | (
        set() if "rloo" in script.__name__ else {"kl"}
    )
    trained |= {"fixed": set(), "hypervolume": {"delta_hv"}, "gradient": {"influence/{}"}}[weighting]
    for step, (line, wanted) in enumerate(
        zip(metrics, [initial, initial | trained, initial | trained], strict=True)
    ):
        assert line.keys() == {"step"} | {key.format(name) for key in wanted for name in names}
        assert line["step"] == step and all(math.isfinite(value) for value in line.values())
    for line in metrics[1:]:
        assert sum(line[f"weights/{name}"] for name in names) == pytest.approx(1, abs=1e-9)
    moved = [metrics[-1][f"weights/{name}"] != 1 / 3 for name in names]
    assert all(moved) if weighting == "gradient" else not any(moved)
    args = json.loads((folder / "args.json").read_text())
    assert args["weighting"] == weighting and args["algorithm"] == script.__name__.removesuffix("_dynw")
    assert args["torch"] == torch.__version__ and args["mu"] == 10 * args["learning_rate"] == 0.01
    assert args["weights"] == [1 / 3] * 3 and args["steps"] == 2
    out = capsys.readouterr().out
    assert "initial model" in out and "after step 2" in out and str(folder) in out


def test_copies_of_three_files_are_a_working_program(folders, tmp_path):
    """Without compare.py there are no pictures, and a line says so."""
    started = []
    for name in SCRIPTS:
        elsewhere = tmp_path / name
        elsewhere.mkdir()
        for file in (f"{name}.py", "hypervolume.py", "rewards.py"):
            shutil.copy(ROOT / file, elsewhere)
        line = [sys.executable, f"{name}.py", *SMALL, "--steps", "1", "--weighting", "gradient"]
        line += ["--model", folders["qwen3"], "--dataset", folders["data"], "--output-dir", "run"]
        started.append(
            subprocess.Popen(line, cwd=elsewhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    for name, process in zip(SCRIPTS, started):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and "Traceback" not in err, err
        [_, about_pictures, about_the_rest] = out.splitlines()  # the first tells what was read
        assert "No pictures" in about_pictures and "compare.py" in about_pictures and "run" in about_the_rest
        written = {path.name for path in (tmp_path / name / "run").iterdir()}
        assert written == {"args.json", "completions.jsonl", "metrics.jsonl", "model"}
        assert len(compare.read_metrics(tmp_path / name / "run")) == 2


@pytest.mark.parametrize("script, weighting", list(zip(SCRIPTS, WEIGHTINGS)), indirect=["script"])
def test_two_runs_of_one_seed_agree_bit_for_bit(run, weighting):
    one, folder_one = run("--weighting", weighting, name="one")
    two, folder_two = run("--weighting", weighting, name="two")
    other, _ = run("--weighting", weighting, "--seed", "2", name="other")
    assert without_times(one) == without_times(two) != without_times(other)
    a, b = weights_of(folder_one), weights_of(folder_two)
    assert all(torch.equal(a[name], b[name]) for name in a)


@shared
def test_evaluations_are_greedy_and_can_be_recomputed_from_the_completions(run, folders, tokenizer):
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
    assert [s["performance"]["conciseness"] for s in samples] == pytest.approx(
        [1 - s["length"] / 12 for s in samples]
    )
    assert last["completions/clipped_ratio"] == sum(s["cut_off"] for s in samples) / 6
    assert all(s["length"] == 12 for s in samples if s["cut_off"])
    points = [[line[f"eval/performance/{name}"] for name in rewards.OBJECTIVES] for line in metrics]
    for i, line in enumerate(metrics):
        assert line["eval/hypervolume"] == hypervolume.hypervolume(points[: i + 1], [0, 0, 0])


@shared
def test_steps_that_are_evaluated(run):
    metrics, _ = run("--steps", "5", "--eval-every", "2")
    assert [line["step"] for line in metrics if "eval/hypervolume" in line] == [0, 2, 4, 5]
    metrics, folder = run("--steps", "0", name="none")
    assert (
        [line["step"] for line in metrics] == [0] and "loss" not in metrics[0] and (folder / "model").exists()
    )


@shared
def test_own_objectives_by_name(run):
    @rewards.objective
    def evenness(response, **_):
        return float(len(response) % 2 == 0)

    metrics, _ = run("--objectives", "evenness", "accuracy", "--weights", "0.75", "0.25")
    assert metrics[1]["weights/evenness"] == pytest.approx(0.75, abs=0.05)
    assert "rewards/evenness/mean" in metrics[1] and "rewards/clarity/mean" not in metrics[1]


@shared
def test_an_objective_of_any_name_overwrites_nothing(run, folders):
    """Each is as much as it says, and nothing that an evaluation notes beside it. Points go by the right objective."""
    names = [
        "length",
        "prompt",
        "response",
        "answer",
        "cut_off",
        "mean_length",
        "hypervolume",
        "clipped_ratio",
    ]
    values = {name: i / 16 for i, name in enumerate(names, 1)}
    for name, value in values.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    weights = [1 / len(names)] * len(names)
    metrics, folder = run(
        "--steps", "1", "--weighting", "hypervolume", "--objectives", *names, "--weights", *weights
    )
    problems = read_lines(folders["data"] / "test.jsonl")
    for sample, problem in zip(read_lines(folder / "completions.jsonl"), problems, strict=True):
        assert problem["problem"] in sample["prompt"] and sample["answer"] == problem["answer"]
        assert (
            isinstance(sample["response"], str)
            and type(sample["length"]) is int
            and type(sample["cut_off"]) is bool
        )
        assert sample["performance"] == values
    for line in metrics:
        for prefix in ("eval", "val"):
            assert 1 <= line[f"{prefix}/completions/mean_length"] <= 12
            assert {name: line[f"{prefix}/performance/{name}"] for name in names} == values
        assert line["eval/hypervolume"] == pytest.approx(math.prod(values.values()))
    assert {name: metrics[1][f"rewards/{name}/mean"] for name in names} == values
    read = compare.read_run(folder)
    assert read["objectives"] == names and read["points"].tolist() == [list(values.values())] * 2


@shared
def test_metrics_are_json_though_one_is_not_a_number(run, script, monkeypatch):
    """As is the gradient, whose update is skipped, and the influence of an objective, which leaves the weights."""
    function, probe = script.policy_loss, script.gram_matrix
    monkeypatch.setattr(
        script, "policy_loss", lambda *args: (function(*args)[0] * math.nan, function(*args)[1])
    )
    monkeypatch.setattr(script, "gram_matrix", lambda *args: (probe(*args)[0] * math.inf, probe(*args)[1]))
    _, folder = run("--weighting", "gradient")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [
        json.loads(line, parse_constant=refuse)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    for line in lines[1:]:
        assert {key for key, value in line.items() if value is None} == {
            "loss", "grad_norm", *(f"influence/{name}" for name in rewards.OBJECTIVES),
        }  # fmt: skip
    assert None not in lines[0].values()


@shared
def test_of_two_runs_into_one_folder_the_second_is_refused(run, script, monkeypatch, capsys):
    """Before it loads a model; or after that, if the other makes its folder meanwhile."""
    _, first = run("--steps", "1")
    before, loaded = all_files(first), spy(monkeypatch, script, "load_model")
    with pytest.raises(SystemExit) as stop:
        run("--steps", "1", "--seed", "2")
    assert (
        stop.value.code == 2
        and str(first) in capsys.readouterr().err
        and all_files(first) == before
        and not loaded
    )
    load, other = script.load_model, first.with_name("other")
    monkeypatch.setattr(script, "load_model", lambda *args: (other.mkdir(exist_ok=True), load(*args))[1])
    with pytest.raises(SystemExit) as stop:
        run("--steps", "1", name="other")
    assert stop.value.code == 2 and list(other.iterdir()) == []


@shared
def test_runs_that_start_at_once_have_folders_of_their_own(run, folders, main, script, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        script, "strftime", lambda pattern: time.strftime(pattern, (2026, 1, 2, 3, 4, 5, 0, 1, 0))
    )
    for pid in (123, 124):
        monkeypatch.setattr(script.os, "getpid", lambda pid=pid: pid)
        main(script, *SMALL, "--steps", "0", "--model", folders["qwen3"], "--dataset", folders["data"])
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(names) == 2 and all(name.startswith("grpo-fixed-20260102-030405") for name in names)


# All scripts


def without_kl(script):
    """The flag that leaves the KL term out, where there is one."""
    return ["--kl-coefficient", "0"] if hasattr(script, "kl_penalty") else []


def in_turn(run_script, *flags):
    """The metrics and final weights of a run of each script, in turn."""
    for name in SCRIPTS:
        script = importlib.import_module(name)
        yield run_script(script, *flags, *without_kl(script), name=name)


def test_with_the_same_advantages_and_no_kl_all_scripts_take_the_same_step(run_script, sgd, monkeypatch):
    for name in SCRIPTS:
        monkeypatch.setattr(
            importlib.import_module(name), "advantage", lambda r, lengths, args: r - lengths / 10
        )
    runs = list(in_turn(run_script, "--steps", "1", "--weighting", "gradient"))
    first = weights_of(runs[0][1])
    for metrics, folder in runs[1:]:
        other = weights_of(folder)
        assert all(torch.equal(first[name], other[name]) for name in first)
        assert metrics[1]["loss"] == runs[0][0][1]["loss"]


def test_one_seed_gives_all_scripts_the_same_first_rollouts(run_script):
    runs = [metrics[1] for metrics, _ in in_turn(run_script, "--steps", "1", "--learning-rate", "1e-9")]
    for name in (
        "rewards/accuracy/mean",
        "rewards/clarity/mean",
        "completions/mean_length",
        "eval/hypervolume",
    ):
        assert len({line[name] for line in runs}) == 1
    assert len({line["grad_norm"] for line in runs}) == len(SCRIPTS)


# Rewards and advantages in the loop


@shared
def test_conciseness_compares_with_the_mean_over_all_training_rollouts_so_far(run, monkeypatch):
    calls = spy(monkeypatch, rewards, "score")
    run("--steps", "3", "--eval-every", "3")
    lengths, training = [], [args for args, _ in calls if len(args[1]) == 16]
    assert len(training) == 3
    for _, _, _, batch, mean_length, *_ in training:
        lengths += batch
        assert mean_length == pytest.approx(sum(lengths) / len(lengths))


def test_the_loss_at_ratio_one_is_minus_the_mean_advantage_of_the_tokens(run, script, monkeypatch):
    """
    Advantages of GRPO and RLOO have mean 0 over the responses of a group, but not over their tokens: the loss is small,
    not 0. Those of REINFORCE++ have mean 0 over the tokens.
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
def test_an_update_takes_its_share_of_the_problems_alike_lengths_together(
    run, script, monkeypatch, weighting
):
    losses, batches = spy(monkeypatch, script, "policy_loss"), spy(monkeypatch, script, "micro_batch")
    flags = ["--updates-per-step", "2", "--micro-batch-size", "3", "--weighting", weighting]
    metrics, _ = run("--steps", "1", "--learning-rate", "0.01", *flags, *without_kl(script))
    assert len(losses) == 6 and len(batches) == 12  # the first six before the updates
    for part in (batches[:6], batches[6:]):
        for half, expected in ((part[:3], range(8)), (part[3:], range(8, 16))):
            rows = [args[1].tolist() for args, _ in half]
            assert [len(some) for some in rows] == [3, 3, 2]
            assert sorted(sum(rows, [])) == list(expected)
            lengths = half[0][0][0]["lengths"][sum(rows, [])].tolist()
            assert lengths == sorted(lengths)
    # What is logged is the mean of both updates, each of which is a mean over tokens
    masks = [batch["mask"] for _, batch in batches[6:]]
    for i, name in enumerate(["loss", "clip_fraction"]):
        sums = [(result[i] * mask).sum().item() for (_, result), mask in zip(losses, masks)]
        tokens = [mask.sum().item() for mask in masks]
        expected = (sum(sums[:3]) / sum(tokens[:3]) + sum(sums[3:]) / sum(tokens[3:])) / 2
        assert metrics[1][name] == pytest.approx(expected, abs=1e-6) and expected != 0


@shared
def test_micro_batches_add_up_their_gradients_and_updates_do_not(run, script, monkeypatch):
    loaded, loss, clean = spy(monkeypatch, script, "load_model"), script.policy_loss, []

    def look(*args):
        gradients = [p.grad for p in loaded[0][1][0].parameters()]
        clean.append(all(g is None or not g.any() for g in gradients))
        return loss(*args)

    monkeypatch.setattr(script, "policy_loss", look)
    run("--steps", "2", "--updates-per-step", "2", "--micro-batch-size", "3", "--weighting", "gradient")
    assert clean == [True, False, False] * 4


@pytest.mark.parametrize("updates", [1, 2])
def test_micro_batches_do_not_change_the_gradient(run, sgd, updates):
    """Token means are over the whole update: with means per micro-batch, short ones would weigh as much as long."""
    results = {}
    for size in (1, 3, 16):
        flags = [
            "--micro-batch-size",
            size,
            "--updates-per-step",
            updates,
            "--steps",
            1,
            "--max-grad-norm",
            1e9,
        ]
        metrics, folder = run(*flags, "--weighting", "gradient", name=f"size{size}")
        results[size] = metrics[1], weights_of(folder)
    for size in (1, 3):
        for name, value in results[16][1].items():
            torch.testing.assert_close(results[size][1][name], value, rtol=1e-4, atol=1e-5)
        for name in (
            "loss",
            "grad_norm",
            "reward",
            "influence/accuracy",
            "influence/clarity",
            "clip_fraction",
        ):
            assert results[size][0][name] == pytest.approx(results[16][0][name], rel=1e-3, abs=1e-6)


@shared
@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_several_updates_take_the_ratio_from_one(run, script, monkeypatch, weighting):
    calls = spy(monkeypatch, script, "policy_loss")
    flags = ["--steps", "1", "--updates-per-step", "2", "--micro-batch-size", "8", "--learning-rate", "0.01"]
    run(*flags, "--weighting", weighting)
    first, second = [(args[0] - args[1]).abs().max() for args, _ in calls]
    assert first < 1e-5 < 1e-2 < second


@shared
def test_every_group_holds_the_responses_to_one_problem_and_its_answer(
    run, folders, monkeypatch, script, tokenizer
):
    scored, rolled = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "rollout")
    run("--steps", "1")
    problems = read_lines(folders["data"] / "train.jsonl")
    [(args, batch)] = [call for call in rolled if len(call[1]["texts"]) == 16]
    [(_, responses, scored_for, lengths, _, step, split)] = [args for args, _ in scored if len(args[1]) == 16]
    assert args[3] == 4 and len(args[2]) == 4
    asked = [next(p for p in problems if p["problem"] in tokenizer.decode(prompt)) for prompt in args[2]]
    assert len({p["problem"] for p in asked}) == 4
    assert step == 1 and split == "train" and [p["answer"] for p in scored_for] == [p["answer"] for p in asked for _ in range(4)]
    prompts = [ids[at.bool()].tolist() for ids, at in zip(batch["ids"], batch["attention"])]
    assert all(row[: len(args[2][i // 4])] == args[2][i // 4] for i, row in enumerate(prompts))
    assert responses == batch["texts"] and lengths == batch["lengths"].tolist()


def test_rewards_become_advantages_by_name_and_weight(run, script, monkeypatch):
    scored, probed = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "gram_matrix")
    advantages = spy(monkeypatch, script, "advantage")
    metrics, _ = run("--steps", "1", "--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    [r_vec] = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scored if len(args[1]) == 16]
    names = ["accuracy", "conciseness", "clarity"]
    (each, together), args = advantages, advantages[0][0][2]
    lengths = each[0][1]
    for k, name in enumerate(names):
        assert metrics[1][f"rewards/{name}/mean"] == pytest.approx(r_vec[k].mean().item())
        equal = [len(set(r_vec[k, i : i + 4].tolist())) == 1 for i in range(0, 16, 4)]
        assert metrics[1][f"rewards/{name}/frac_zero_std"] == sum(equal) / 4
        expected = script.advantage(r_vec[k], lengths, args).float()
        torch.testing.assert_close(probed[0][0][4][k], expected)
    w = torch.tensor([metrics[1][f"weights/{name}"] for name in names], dtype=torch.float64)
    assert w.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.05) and w.tolist() != [0.7, 0.2, 0.1]
    assert metrics[1]["reward"] == pytest.approx((w @ r_vec).mean().item())
    torch.testing.assert_close(together[0][0], w @ r_vec)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_kl_term_is_that_from_the_initial_model_and_part_of_the_loss(run, sgd):
    with_kl, one = run("--kl-coefficient", "0.5", name="one")
    without, two = run("--kl-coefficient", "0", name="two")
    assert with_kl[1]["kl"] == pytest.approx(0, abs=1e-9) and with_kl[2]["kl"] > 1e-6
    assert with_kl[2]["loss"] == pytest.approx(without[2]["loss"] + 0.5 * with_kl[2]["kl"], abs=1e-6)
    a, b = weights_of(one), weights_of(two)
    assert max((a[name] - b[name]).abs().max().item() for name in a) > 1e-5


@shared
def test_flags_reach_what_they_set(run, script, monkeypatch):
    losses, optimisers = spy(monkeypatch, script, "policy_loss"), spy(monkeypatch, torch.optim, "AdamW")
    made = []
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda p, **kwargs: made.append(kwargs) or torch.optim.SGD(p, lr=1e-3)
    )
    run(
        "--steps", "1", "--clip-low", "0.1", "--clip-high", "0.3", "--clip-dual", "4", "--weight-decay", "0.5"
    )
    assert losses[0][0][3:] == (0.1, 0.3, 4.0)
    assert made == [{"lr": 1e-3, "weight_decay": 0.5, "fused": False}] and not optimisers


@shared
def test_an_influence_that_is_not_finite_leaves_the_weights(run, script, monkeypatch):
    probe = script.gram_matrix
    monkeypatch.setattr(script, "gram_matrix", lambda *args: (probe(*args)[0] * math.nan, probe(*args)[1]))
    metrics, _ = run("--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    for line in metrics[1:]:
        assert [line[f"weights/{name}"] for name in rewards.OBJECTIVES] == pytest.approx(
            [0.7, 0.2, 0.1], abs=1e-12
        )


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@shared
def test_a_run_in_bfloat16_autocast(run, monkeypatch, weighting, model):
    """What CUDA does, on the CPU."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: autocast("cpu", torch.bfloat16))
    metrics, _ = run("--weighting", weighting, model=model)
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[1]["clip_fraction"] == 0 and metrics[1]["grad_norm"] > 0


@shared
def test_six_steps_on_the_embedded_task_improve_it(main, script, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "summary", compare.before_and_after)
    main(
        script,
        "--steps",
        "6",
        "--eval-every",
        "6",
        "--weighting",
        "gradient",
        "--output-dir",
        tmp_path / "run",
    )
    first, last = [line for line in compare.read_metrics(tmp_path / "run") if "eval/hypervolume" in line]
    assert last["eval/performance/accuracy"] > first["eval/performance/accuracy"] + 0.1
    assert last["eval/completions/mean_length"] < 0.9 * first["eval/completions/mean_length"]
    assert last["eval/performance/clarity"] > first["eval/performance/clarity"]


# Weightings


def hypervolume_run(run, monkeypatch, script, name, gain, *flags):
    """The weights after two steps, of which the first gains `gain` in hypervolume: Eq. (1) scales the second."""
    monkeypatch.setattr(script, "contribution", lambda *_: gain)
    metrics, folder = run("--weighting", "hypervolume", "--hv-scale", "1", *flags, name=name)
    assert [line.get("delta_hv") for line in metrics] == [None, gain, gain]
    expected = 0.5 + 1.5 * (math.exp(2 * gain) - 1) / (math.exp(2 * gain) + 1)
    assert [line.get("r_pareto") for line in metrics] == [None, 1.0, pytest.approx(expected, abs=1e-12)]
    return weights_of(folder)


def test_r_pareto_on_the_advantage_scales_the_step_and_on_the_reward_does_not(run, sgd, script, monkeypatch):
    """GRPO and REINFORCE++ divide by a standard deviation, which takes a factor on the reward out again."""
    flags = ["--max-grad-norm", "1e9", *without_kl(script)]
    one = hypervolume_run(run, monkeypatch, script, "one", math.atanh(1 / 3), *flags)  # a factor of 1
    moves = {}
    for where in ("advantage", "reward"):
        two = hypervolume_run(run, monkeypatch, script, where, 2.0, *flags, "--meta-reward-on", where)
        moves[where] = max((two[name] - one[name]).abs().max().item() for name in one)
    assert moves["advantage"] > 1e-2
    if script.__name__ == "rloo_dynw":
        assert moves["reward"] == pytest.approx(moves["advantage"], rel=1e-3)
    else:
        assert moves["reward"] < 1e-4


@shared
def test_hypervolume_weighting_starts_from_the_initial_model_and_scales_the_next_step(
    run, script, monkeypatch
):
    """The second point is better than the first, the third no better than the second, the fourth better in a part."""
    points = [[0.2] * 3, [0.4] * 3, [0.4] * 3, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9]]
    validated, evaluate = iter(points), script.evaluate
    monkeypatch.setattr(
        script,
        "evaluate",
        lambda *args: ({}, next(validated), []) if args[3] == "validation" else evaluate(*args),
    )
    metrics, _ = run("--weighting", "hypervolume", "--hv-scale", "100", "--steps", "4", "--eval-every", "4")
    assert [line["delta_hv"] > 0 for line in metrics[1:]] == [True, False, True, False]
    for i, line in enumerate(metrics[1:], 1):
        gain = hypervolume.hypervolume(points[: i + 1], [0] * 3) - hypervolume.hypervolume(
            points[:i], [0] * 3
        )
        assert line["delta_hv"] == pytest.approx(gain, abs=1e-12)
        expected = 1.0 if i == 1 else 0.5 + 1.5 * math.tanh(100 * metrics[i - 1]["delta_hv"])
        assert line["r_pareto"] == pytest.approx(expected, abs=1e-12)


@shared
@pytest.mark.parametrize("reference", ["worst", "initial"])
def test_a_validated_point_is_compared_with_all_before_it(run, monkeypatch, script, reference):
    asked, evaluated = spy(monkeypatch, script, "contribution"), spy(monkeypatch, script, "evaluate")
    run("--weighting", "hypervolume", "--steps", "3", "--hv-reference", reference)
    points = [result[1] for args, result in evaluated if args[3] == "validation"]
    assert len(points) == 4
    corner = points[0] if reference == "initial" else [0, 0, 0]
    assert [args for args, _ in asked] == [(points[i], points[:i], corner) for i in (1, 2, 3)]


@shared
def test_influence_and_weights_of_two_gradients_by_hand(run, script, monkeypatch):
    """
    g_1 = (3, 4), of norm 5, becomes (.6, .8); g_2 = (.5, 0) stays. I = (.6 * 1.1 + .8 * .8, .5 * 1.1). Each step, w_k
    grows by exp(0.1 I_k) in proportion; a weight of 0 stays one.
    """
    g, probe = torch.tensor([[3.0, 4.0], [0.5, 0.0]], dtype=torch.float64), script.gram_matrix
    monkeypatch.setattr(script, "gram_matrix", lambda *args: (g @ g.T, probe(*args)[1]))
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
def test_weights_follow_the_influence(run):
    metrics, _ = run("--weighting", "gradient", "--steps", "3", "--mu", "1e-4", "--learning-rate", "1e-3")
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:
        influence = torch.tensor(
            [line[f"influence/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64
        )
        w = w * torch.exp(1e-3 * influence / 1e-4)
        w = w / w.sum()
        assert [line[f"weights/{name}"] for name in rewards.OBJECTIVES] == pytest.approx(w.tolist(), abs=1e-9)
    assert (w - 1 / 3).abs().max() > 1e-3


@shared
def test_the_learning_rate_falls_as_that_of_pytorch(run, monkeypatch):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, expected = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=5, power=1.03), []
    for _ in range(5):
        expected += schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    used, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *args: (used.append(self.param_groups[0]["lr"]), step(self, *args)),
    )
    flags = ["--steps", "5", "--eval-every", "5", "--weighting", "gradient", "--mu", "1e-4"]
    metrics, _ = run(*flags, "--lr-schedule", "polynomial")
    assert used == pytest.approx(expected, rel=1e-9)
    assert [line["learning_rate"] for line in metrics[1:]] == used
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:  # Eq. (3) has the same
        influence = torch.tensor(
            [line[f"influence/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64
        )
        w = torch.softmax(w.log() + line["learning_rate"] * influence / 1e-4, 0)
        assert [line[f"weights/{name}"] for name in rewards.OBJECTIVES] == pytest.approx(w.tolist(), abs=1e-9)


@shared
def test_a_gradient_that_is_not_finite_skips_the_update(run, script, folders, monkeypatch):
    function = script.policy_loss
    monkeypatch.setattr(
        script, "policy_loss", lambda *args: (function(*args)[0] * math.nan, function(*args)[1])
    )
    metrics, folder = run("--weighting", "gradient")
    assert [line["grad_norm"] for line in metrics[1:]] == [None, None]
    before, after = load_file(folders["qwen3"] / "model.safetensors"), weights_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


@shared
def test_rollouts_in_parts_are_as_good(run):
    """Greedy ones are the same, whatever is generated at once."""
    for size in ("1", "4", "100"):
        metrics, folder = run(
            "--steps", "1", "--rollout-batch-size", size, "--learning-rate", "1e-9", name=size
        )
        assert metrics[0]["eval/completions/mean_length"] == metrics[1]["eval/completions/mean_length"]
        assert metrics[1]["clip_fraction"] == 0 and metrics[1]["completions/mean_length"] > 2
    texts = [(folder.with_name(size) / "completions.jsonl").read_text() for size in ("1", "4", "100")]
    assert texts[0] == texts[1] == texts[2]


def test_equal_rewards_of_a_group_move_nothing(run, script, monkeypatch):
    """Sums such as 0.1 + 0.2 + 0.7 are rounded, and a difference over a spread of 0 would be an advantage."""
    for name, value in {"accuracy": 0.1, "conciseness": 0.2, "clarity": 0.7}.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    metrics, _ = run("--num-generations", "7", "--steps", "1", *without_kl(script))
    assert metrics[1]["grad_norm"] < 1e-6


# Bad input


def dataset(folder, **splits):
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
    "no coefficient": ["--clip-high", "nan"],
    "infinite learning rate": ["--learning-rate", "inf"],
    "a seed too large": ["--seed", "9999999999999999999"],
    "a dual clip that takes gradients at ratio 1": ["--clip-dual", "1"],
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
    "no such dataset": ["--dataset", "no/such-dataset"],
    "empty dataset": ["--dataset", "{empty}"],
    "missing columns": ["--dataset", "{columns}"],
    "a file that is no data": ["--dataset", "{empty}.txt"],
    "missing split": ["--dataset", "{split}"],
    "empty split": ["--dataset", "{nothing}"],
    "no validation split": ["--dataset", "{unvalidated}", "--weighting", "hypervolume"],
    "broken data": ["--dataset", "{broken}"],
    "no prompt within the limit": ["--max-prompt-tokens", "3"],
    "a run folder that exists": ["--output-dir", "{empty}"],
    "nothing to resume": ["--resume", "{empty}"],
    "a folder that cannot be": ["--output-dir", "{columns}/train.jsonl/run"],
    "a package that is not there": ["--report-to", "wandb"],
}


@pytest.fixture(scope="module")
def inputs(folders, tmp_path_factory):
    """Paths of what cannot be used, by name."""
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
        **{name: base / name for name in ("empty", "partial", "endless")},
    }
    (paths["broken"] / "train.jsonl").write_text('{"problem": ')
    paths["empty"].mkdir()
    (base / "empty.txt").write_text("Hello")
    shutil.copytree(folders["qwen3"], paths["partial"])
    weights = load_file(paths["partial"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, paths["partial"] / "model.safetensors", {"format": "pt"})
    shutil.copytree(folders["qwen3"], paths["endless"])
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((paths["endless"] / name).read_text())
        (paths["endless"] / name).write_text(
            json.dumps({**settings, "eos_token_id": None, "eos_token": None})
        )
    (paths["endless"] / "chat_template.jinja").unlink()  # which would know the end of a turn
    return paths


def refused(run, script, tmp_path, monkeypatch, capfd, *flags):
    """The one line in which a run with these flags is refused, with exit code 2 and nothing written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and sorted(tmp_path.rglob("*")) == before
    assert err.startswith(f"{script.__name__}.py: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", BAD)
@shared
def test_bad_input_gets_one_line_and_exit_code_two_and_writes_nothing(
    run, inputs, tmp_path, monkeypatch, capfd, script, name
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not there
    before = all_files(inputs["empty"].parent)
    err = refused(run, script, tmp_path, monkeypatch, capfd, *[flag.format(**inputs) for flag in BAD[name]])
    for part in BAD[name]:
        assert part[:4] != "--no" or part in err
    assert all_files(inputs["empty"].parent) == before and list(inputs["empty"].iterdir()) == []


@pytest.mark.parametrize("flags", [["--baseline", "magic"], ["--kl-coefficient", "-1"]])
@pytest.mark.parametrize("script", ["reinforce_dynw"], indirect=True)
def test_bad_input_of_an_algorithms_own(run, tmp_path, monkeypatch, capfd, script, flags):
    assert flags[0] in refused(run, script, tmp_path, monkeypatch, capfd, *flags)


@shared
def test_prompts_over_the_limit_are_left_out_and_counted(run, tokenizer, tmp_path, capsys):
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
    entries = {}  # by flag, its text
    for line in re.sub(r"\n {10,}", " ", out).splitlines():
        if found := re.match(r"  --([a-z-]+)(.*)", line):
            assert found[1] not in entries
            entries[found[1]] = found[2]
    assert entries.keys() == {name.replace("_", "-") for name in defaults} and len(entries) > 30
    for name, default in defaults.items():
        text = entries[name.replace("_", "-")]
        if default is None or default is False:
            assert text.count("default") <= 1
        else:
            assert text.count("default") == 1 and text.endswith(f"(default: {default})")
