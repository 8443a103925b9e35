"""Whole runs of the scripts, on tiny random models: what is trained, written, resumed, refused."""
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from conftest import ROOT, SCRIPTS, SMALL, copy_scripts, without_times
from safetensors.torch import load_file, save_file

import hypervolume
import rewards

WEIGHTINGS = ["fixed", "hypervolume", "gradient"]


def weights_of(folder):
    return load_file(folder / "model/model.safetensors")


def command(script, folders, output, *flags):
    """The command line of a small run."""
    small = [*SMALL, "--model", folders["qwen3"], "--dataset", folders["data"], "--output-dir", output]
    return [sys.executable, str(ROOT / f"{script.__name__}.py"), *map(str, [*small, *flags])]


# What a run writes


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_run_changes_every_parameter_and_writes_what_it_says(run, folders, weighting, model, capsys):
    metrics, folder = run("--weighting", weighting, "--weight-decay", "0", model=model, pictures=True)
    before, after = load_file(folders[model] / "model.safetensors"), weights_of(folder)
    assert before.keys() == after.keys()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    assert sorted(path.name for path in folder.iterdir()) == [
        "args.json", "completions.jsonl", "curves.png", "fronts.png", "metrics.jsonl", "model"]
    both = folders[model], folder / "model"
    settings = [json.loads((path / "generation_config.json").read_text()) for path in both]
    assert settings[0] == settings[1] and settings[0]["top_k"] == 2
    assert [line["step"] for line in metrics] == [0, 1, 2]
    names = rewards.OBJECTIVES
    every = ["reward", "loss", "grad_norm", "clip_fraction", "meta_reward", "learning_rate", "tokens_per_second",
             "completions/mean_length", "completions/clipped_ratio", "time/rollout", "time/probe", "time/update",
             "time/validate", "eval/mean_length", "eval/clipped_ratio", "eval/hypervolume"]
    every += [key.format(name) for name in names for key in ("rewards/{}/mean", "rewards/{}/frac_zero_std",
                                                             "weights/{}", "eval/{}")]
    if weighting == "gradient":
        every += [f"influence/{name}" for name in names]
    if weighting == "hypervolume":
        every += ["delta_hv", "val/mean_length", *(f"val/{name}" for name in names)]
    for line in metrics[1:]:
        assert set(every) <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert sum(line[f"weights/{name}"] for name in names) == pytest.approx(1, abs=1e-9)
    moved = [metrics[-1][f"weights/{name}"] != 1 / 3 for name in names]
    assert all(moved) if weighting == "gradient" else not any(moved)
    args = json.loads((folder / "args.json").read_text())
    assert args["weighting"] == weighting and args["versions"]["transformers"] == transformers.__version__
    out = capsys.readouterr().out
    assert "initial model" in out and "after step 2" in out


def test_copies_of_three_files_are_a_working_program(script, folders, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy_scripts(tmp_path / "elsewhere", f"{script.__name__}.py", "hypervolume.py", "rewards.py")
    line = command(script, folders, tmp_path / "run", "--steps", "1", "--weighting", "gradient")
    line[1] = f"{script.__name__}.py"
    done = subprocess.run(line, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_two_runs_of_one_seed_agree_bit_for_bit(run, weighting):
    one, folder_one = run("--weighting", weighting, name="one")
    two, folder_two = run("--weighting", weighting, name="two")
    other, _ = run("--weighting", weighting, "--seed", "2", name="other")
    assert without_times(one) == without_times(two) != without_times(other)
    a, b = weights_of(folder_one), weights_of(folder_two)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_evaluations_are_greedy_and_can_be_recomputed_from_the_completions(run, folders):
    metrics, folder = run("--steps", "1")
    samples = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    problems = [json.loads(line) for line in (folders["data"] / "test.jsonl").read_text().splitlines()]
    assert [s["answer"] for s in samples] == [p["answer"] for p in problems]
    for name in ("accuracy", "clarity"):
        scores = rewards.score([name], [s["response"] for s in samples], [p["answer"] for p in problems], [0] * 6, 0)
        assert metrics[-1][f"eval/{name}"] == pytest.approx(sum(map(sum, scores)) / 6)
    length = sum(s["length"] for s in samples) / 6
    assert metrics[-1]["eval/mean_length"] == pytest.approx(length)
    assert metrics[-1]["eval/conciseness"] == pytest.approx(1 - length / 12)
    points = [[line[f"eval/{name}"] for name in rewards.OBJECTIVES] for line in metrics]
    for i, line in enumerate(metrics):
        assert line["eval/hypervolume"] == hypervolume.hypervolume(points[: i + 1], [0, 0, 0])


def test_own_objectives_by_name(run):
    @rewards.objective
    def evenness(response, **_):
        return float(len(response) % 2 == 0)

    metrics, _ = run("--objectives", "evenness", "accuracy", "--weights", "0.75", "0.25", "--weighting", "gradient")
    assert metrics[1]["weights/evenness"] == pytest.approx(0.75, abs=0.05)
    assert "rewards/evenness/mean" in metrics[1] and "rewards/clarity/mean" not in metrics[1]


# All scripts


def in_turn(run_script, *flags):
    """The metrics and final weights of a run of each script, in turn."""
    for name in SCRIPTS:
        script = importlib.import_module(name)
        kl = ["--kl-coefficient", "0"] if hasattr(script.Args, "kl_coefficient") else []
        yield run_script(script, *flags, *kl, name=name)


def test_with_the_same_advantages_and_no_kl_all_scripts_take_the_same_step(run_script, sgd, monkeypatch):
    for name in SCRIPTS:
        monkeypatch.setattr(importlib.import_module(name), "advantage", lambda r, lengths, args: r - lengths / 10)
    runs = list(in_turn(run_script, "--steps", "1", "--weighting", "gradient"))
    first = weights_of(runs[0][1])
    for metrics, folder in runs[1:]:
        other = weights_of(folder)
        assert all(torch.equal(first[name], other[name]) for name in first)
        assert metrics[1]["loss"] == runs[0][0][1]["loss"]


def test_one_seed_gives_all_scripts_the_same_first_rollouts(run_script):
    runs = [metrics[1] for metrics, _ in in_turn(run_script, "--steps", "1", "--learning-rate", "1e-9")]
    for name in ("rewards/accuracy/mean", "rewards/clarity/mean", "completions/mean_length", "eval/accuracy"):
        assert len({line[name] for line in runs}) == 1
    assert len({line["grad_norm"] for line in runs}) == len(SCRIPTS)


# Rewards and advantages in the loop


def spy(monkeypatch, module, name):
    """Records the arguments and results of calls to module.name."""
    calls, function = [], getattr(module, name)

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, wrapped)
    return calls


def test_conciseness_compares_with_the_mean_over_all_training_rollouts_so_far(run, monkeypatch):
    calls = spy(monkeypatch, rewards, "score")
    run("--steps", "3", "--eval-every", "3")
    lengths, training = [], [args for args, _ in calls if len(args[1]) == 16]
    assert len(training) == 3
    for _, _, _, batch, mean_length in training:
        lengths += batch
        assert mean_length == pytest.approx(sum(lengths) / len(lengths))


def test_the_loss_at_ratio_one_is_minus_the_mean_advantage_of_the_tokens(run, script, monkeypatch):
    """
    Advantages of GRPO and RLOO have mean 0 over the responses of a group, but not over their tokens: the loss is small,
    not 0. Those of REINFORCE++ have mean 0 over the tokens.
    """
    calls = spy(monkeypatch, script, "policy_loss")
    metrics, _ = run("--steps", "1", "--micro-batch-size", "16")
    (logprobs, old, A, *_), (_, clipped) = calls[0]
    assert torch.equal(logprobs, old) and not clipped.any()
    rows = spy(monkeypatch, script, "micro_batches")
    metrics, _ = run("--steps", "1", "--micro-batch-size", "16", name="again")
    lengths = rows[0][1][0]["response_mask"].sum(1)
    assert metrics[1]["loss"] == pytest.approx(-(A * lengths).sum().item() / lengths.sum().item(), abs=1e-6)
    assert (abs(metrics[1]["loss"]) > 1e-4) == (script.__name__ != "reinforce_dynw")


@pytest.mark.parametrize("updates", [1, 2])
def test_micro_batches_do_not_change_the_gradient(run, sgd, updates):
    """Token means are over the whole update: with means per micro-batch, short ones would weigh as much as long."""
    results = {}
    for size in (1, 3, 16):
        flags = ["--micro-batch-size", size, "--updates-per-step", updates, "--steps", 1, "--max-grad-norm", 1e9]
        metrics, folder = run(*flags, "--weighting", "gradient", name=f"size{size}")
        results[size] = metrics[1], weights_of(folder)
    for size in (1, 3):
        for name, value in results[16][1].items():
            torch.testing.assert_close(results[size][1][name], value, rtol=1e-4, atol=1e-5)
        for name in ("loss", "grad_norm", "reward", "influence/accuracy", "influence/clarity", "clip_fraction"):
            assert results[size][0][name] == pytest.approx(results[16][0][name], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_several_updates_take_the_ratio_from_one(run, script, monkeypatch, weighting):
    calls = spy(monkeypatch, script, "policy_loss")
    run("--steps", "1", "--updates-per-step", "2", "--micro-batch-size", "8", "--learning-rate", "0.01",
        "--weighting", weighting)
    first, second = [(args[0] - args[1]).abs().max() for args, _ in calls]
    assert first < 1e-5 < 1e-2 < second


def test_every_group_holds_the_responses_to_one_problem_and_its_answer(run, folders, monkeypatch, script):
    scored, rolled = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "rollout")
    run("--steps", "1")
    answers = {p["problem"]: p["answer"] for split in ("train", "test") for p in map(
        json.loads, (folders["data"] / f"{split}.jsonl").read_text().splitlines())}
    [prompts] = [args[1] for args, _ in rolled if len(args[1]) == 16]
    [given] = [args[2] for args, _ in scored if len(args[2]) == 16]
    tokenizer = script.AutoTokenizer.from_pretrained(folders["qwen3"])
    asked = [next(q for q in answers if q in tokenizer.decode(prompt)) for prompt in prompts]
    assert [answers[question] for question in asked] == given
    assert all(len(set(asked[i : i + 4])) == 1 for i in range(0, 16, 4)) and len(set(asked)) == 4


def test_rewards_become_advantages_by_name_and_weight(run, script, monkeypatch):
    scored, probed = spy(monkeypatch, rewards, "score"), spy(monkeypatch, script, "gram_matrix")
    advantages = spy(monkeypatch, script, "advantage")
    metrics, _ = run("--steps", "1", "--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    [r_vec] = [torch.tensor(rows, dtype=torch.float64).T for args, rows in scored if len(args[1]) == 16]
    lengths = advantages[0][0][1]
    for k, name in enumerate(["accuracy", "conciseness", "clarity"]):
        assert metrics[1][f"rewards/{name}/mean"] == pytest.approx(r_vec[k].mean().item())
        equal = [len(set(r_vec[k, i : i + 4].tolist())) == 1 for i in range(0, 16, 4)]
        assert metrics[1][f"rewards/{name}/frac_zero_std"] == sum(equal) / 4
        expected = script.advantage(r_vec[k], lengths, advantages[0][0][2]).float()
        torch.testing.assert_close(probed[0][0][3][k], expected)
    influence = script.influence(probed[0][1]).tolist()
    w = torch.tensor([metrics[1][f"weights/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64)
    assert [metrics[1][f"influence/{name}"] for name in rewards.OBJECTIVES] == influence
    assert w.tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.05)
    assert metrics[1]["reward"] == pytest.approx((w @ r_vec).mean().item())
    torch.testing.assert_close(advantages[3][0][0], w @ r_vec)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_kl_term_is_that_from_the_initial_model_and_part_of_the_loss(run, sgd):
    with_kl, one = run("--kl-coefficient", "0.5", name="one")
    without, two = run("--kl-coefficient", "0", name="two")
    assert with_kl[1]["kl"] == pytest.approx(0, abs=1e-9) and with_kl[2]["kl"] > 1e-6
    assert with_kl[2]["loss"] == pytest.approx(without[2]["loss"] + 0.5 * with_kl[2]["kl"], abs=1e-6)
    a, b = weights_of(one), weights_of(two)
    assert max((a[name] - b[name]).abs().max().item() for name in a) > 1e-5


def test_flags_reach_what_they_set(run, script, monkeypatch):
    losses, optimisers = spy(monkeypatch, script, "policy_loss"), spy(monkeypatch, torch.optim, "AdamW")
    made = []
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, **kwargs: made.append(kwargs) or torch.optim.SGD(p, lr=1e-3))
    run("--steps", "1", "--clip-low", "0.1", "--clip-high", "0.3", "--clip-dual", "4", "--weight-decay", "0.5")
    assert losses[0][0][3:] == (0.1, 0.3, 4.0)
    assert made == [{"lr": 1e-3, "weight_decay": 0.5}] and not optimisers


def test_an_influence_that_is_not_finite_leaves_the_weights(run, script, monkeypatch):
    monkeypatch.setattr(script, "influence", lambda gram: torch.full((3,), math.nan, dtype=torch.float64))
    metrics, _ = run("--steps", "1", "--weighting", "gradient", "--weights", "0.7", "0.2", "0.1")
    assert [metrics[1][f"weights/{name}"] for name in rewards.OBJECTIVES] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)
def test_a_run_in_bfloat16_autocast(run, monkeypatch, weighting, model):
    """What CUDA does, on the CPU."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: autocast("cpu", torch.bfloat16))
    metrics, _ = run("--weighting", weighting, model=model)
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    assert metrics[1]["clip_fraction"] == 0 and metrics[1]["grad_norm"] > 0


def test_the_probe_refuses_models_whose_weights_are_mostly_not_in_linear_maps(script, capsys):
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Embedding(100, 4)])
    with pytest.raises(SystemExit):
        script.linear_maps(layers)
    assert "linear maps" in capsys.readouterr().err
    assert len(script.linear_maps(layers[:1])) == 1


@pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)
def test_ten_steps_on_the_embedded_task_improve_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grpo_dynw.py", "--steps", "10", "--weighting", "gradient", "--output-dir",
                                      str(tmp_path / "run")])
    script.main()
    first, last = [line for line in hypervolume.read_metrics(tmp_path / "run") if "eval/hypervolume" in line]
    assert last["eval/accuracy"] > first["eval/accuracy"] + 0.1
    assert last["eval/mean_length"] < 0.9 * first["eval/mean_length"]
    assert last["eval/clarity"] > first["eval/clarity"] + 0.3


def hypervolume_run(run, monkeypatch, script, name, factor, *flags):
    monkeypatch.setattr(script, "meta_reward", lambda delta_hv: factor)
    metrics, folder = run("--weighting", "hypervolume", *flags, name=name)
    assert [line.get("meta_reward") for line in metrics] == [None, 1.0, factor]
    return weights_of(folder)


def test_r_pareto_on_the_advantage_scales_the_step_and_on_the_reward_does_not(run, sgd, script, monkeypatch):
    """GRPO and REINFORCE++ divide by a standard deviation, which takes a factor on the reward out again."""
    flags = ["--max-grad-norm", "1e9"] + (["--kl-coefficient", "0"] if hasattr(script.Args, "kl_coefficient") else [])
    one = hypervolume_run(run, monkeypatch, script, "one", 1.0, *flags)
    moves = {}
    for where in ("advantage", "reward"):
        two = hypervolume_run(run, monkeypatch, script, where, 2.0, *flags, "--meta-reward-on", where)
        moves[where] = max((two[name] - one[name]).abs().max().item() for name in one)
    assert moves["advantage"] > 1e-2
    if script.__name__ == "rloo_dynw":
        assert moves["reward"] == pytest.approx(moves["advantage"], rel=1e-3)
    else:
        assert moves["reward"] < 1e-4


def test_hypervolume_weighting_starts_from_the_initial_model_and_scales_the_next_step(run, script, monkeypatch):
    """The second point is better than the first, the third no better than the second, the fourth better in a part."""
    points, evaluate = [[0.2] * 3, [0.4] * 3, [0.4] * 3, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9]], script.evaluate
    validated = iter(points)
    monkeypatch.setattr(script, "evaluate", lambda *args, prefix, **kwargs: (
        ({}, next(validated), []) if prefix == "val/" else evaluate(*args, prefix=prefix, **kwargs)))
    metrics, _ = run("--weighting", "hypervolume", "--steps", "4", "--eval-every", "4")
    assert [line["delta_hv"] > 0 for line in metrics[1:]] == [True, False, True, False]
    for i, line in enumerate(metrics[1:], 1):
        gain = hypervolume.hypervolume(points[: i + 1], [0] * 3) - hypervolume.hypervolume(points[:i], [0] * 3)
        assert line["delta_hv"] == pytest.approx(gain, abs=1e-12)
        expected = 1.0 if i == 1 else 0.5 + 1.5 * math.tanh(metrics[i - 1]["delta_hv"])
        assert line["meta_reward"] == pytest.approx(expected, abs=1e-12)


def test_hypervolume_above_the_initial_model(run, monkeypatch, script):
    seen = spy(monkeypatch, script, "ParetoBuffer")
    metrics, _ = run("--weighting", "hypervolume", "--hv-reference", "initial")
    (reference,), _ = seen[0]
    assert reference == [metrics[0][f"val/{name}"] for name in rewards.OBJECTIVES]


def test_weights_follow_the_influence(run):
    metrics, _ = run("--weighting", "gradient", "--steps", "3", "--mu", "1e-4", "--learning-rate", "1e-3")
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:
        influence = torch.tensor([line[f"influence/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64)
        w = w * torch.exp(1e-3 * influence / 1e-4)
        w = w / w.sum()
        assert [line[f"weights/{name}"] for name in rewards.OBJECTIVES] == pytest.approx(w.tolist(), abs=1e-9)
    assert (w - 1 / 3).abs().max() > 1e-3


def test_the_learning_rate_falls_as_that_of_pytorch(run, monkeypatch):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, expected = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=5, power=1.03), []
    for _ in range(5):
        expected += schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    used, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (
        used.append(self.param_groups[0]["lr"]), step(self, *args)))
    flags = ["--steps", "5", "--eval-every", "5", "--weighting", "gradient", "--mu", "1e-4"]
    metrics, _ = run(*flags, "--lr-schedule", "polynomial")
    assert used == pytest.approx(expected, rel=1e-9)
    assert [line["learning_rate"] for line in metrics[1:]] == used
    w = torch.full((3,), 1 / 3, dtype=torch.float64)
    for line in metrics[1:]:  # Eq. (3) has the same
        influence = torch.tensor([line[f"influence/{name}"] for name in rewards.OBJECTIVES], dtype=torch.float64)
        w = torch.softmax(w.log() + line["learning_rate"] * influence / 1e-4, 0)
        assert [line[f"weights/{name}"] for name in rewards.OBJECTIVES] == pytest.approx(w.tolist(), abs=1e-9)


def test_a_gradient_that_is_not_finite_skips_the_update(run, script, folders, monkeypatch, capsys):
    function = script.policy_loss
    monkeypatch.setattr(script, "policy_loss", lambda *args: (function(*args)[0] * math.nan, function(*args)[1]))
    _, folder = run("--weighting", "gradient")
    assert "not finite" in "".join(capsys.readouterr())
    before, after = load_file(folders["qwen3"] / "model.safetensors"), weights_of(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)


# Checkpoints


@pytest.mark.parametrize(
    "script, weighting", list(zip(SCRIPTS, ["gradient", "hypervolume", "fixed"])), indirect=["script"])
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_is_not(script, folders, tmp_path, weighting):
    flags = ["--weighting", weighting, "--checkpoint-every", "2", "--steps", "7", "--updates-per-step", "2"]
    subprocess.run(command(script, folders, tmp_path / "whole", *flags), check=True, capture_output=True)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(script, folders, folder, *flags[:-4], "--steps", "1000", *flags[-2:]), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (folder / "checkpoint.pt").exists() and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["step"] < 7
    line = [sys.executable, str(ROOT / f"{script.__name__}.py"), "--resume", str(folder), "--steps", "7"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = weights_of(tmp_path / "whole"), weights_of(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)
    metrics = [hypervolume.read_metrics(path) for path in (tmp_path / "whole", folder)]
    assert without_times(metrics[0]) == without_times(metrics[1])
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)
def test_ctrl_c_ends_a_run_in_one_line(script, folders, tmp_path):
    process = subprocess.Popen(
        command(script, folders, tmp_path / "run", "--steps", "10000"), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.time() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("Interrupted: --resume goes on")


def test_resume_refuses_other_settings_and_runs_without_a_checkpoint(run, script, monkeypatch, capsys):
    _, with_one = run("--steps", "1", "--checkpoint-every", "1")
    _, without = run("--steps", "1", name="without")
    _, falling = run("--steps", "1", "--checkpoint-every", "1", "--lr-schedule", "polynomial", name="falling")
    other = dataset(with_one.parent / "other", train=GOOD, validation=GOOD, test=GOOD)
    cases = [(with_one, ["--seed", "5"], "seed was 1"), (with_one, ["--output-dir", "x"], "output_dir was"),
             (with_one, ["--dataset", str(other)], "began with"), (falling, ["--steps", "2"], "steps was 1"),
             (without, [], "no checkpoint.pt")]
    for folder, flags, message in cases:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--resume", str(folder), *flags])
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as stop:
            script.main()
        assert stop.value.code == 2 and message in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage_script(folder):
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps({**args, "script": "other_dynw.py"}))


DAMAGE = {
    "another script's": (damage_script, "is a run of other_dynw.py"),
    "no args": (lambda folder: (folder / "args.json").unlink(), "not that of a run"),
    "args of another kind": (lambda folder: (folder / "args.json").write_text("[1]"), "not that of a run"),
    "a truncated checkpoint": (lambda folder: (folder / "checkpoint.pt").write_bytes(b"PK"), "not a checkpoint"),
    "a foreign checkpoint": (lambda folder: torch.save({"a": 1}, folder / "checkpoint.pt"), "not a checkpoint"),
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), "lacks a step"),
    "broken metrics": (lambda folder: (folder / "metrics.jsonl").write_text("nonsense\n"), "line 1"),
    "metrics without steps": (lambda folder: (folder / "metrics.jsonl").write_text("{}\n{}\n{}\n"), "lacks a step"),
    "fewer steps than made": (lambda folder: None, "already made 2"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)
def test_resume_refuses_a_damaged_run_and_leaves_it_as_it_is(run, script, monkeypatch, capsys, name):
    damage, message = DAMAGE[name]
    _, folder = run("--checkpoint-every", "1")
    damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    flags = ["--steps", "1" if name.startswith("fewer") else "3"]
    monkeypatch.setattr(sys, "argv", ["grpo_dynw.py", "--resume", str(folder), *flags])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        script.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_relative_paths_is_resumed_from_another_folder(run, folders, script, monkeypatch, tmp_path):
    monkeypatch.chdir(folders["data"].parent)
    _, folder = run("--checkpoint-every", "1", "--model", "qwen3", "--dataset", "data")
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "3", "--micro-batch-size", "2", "--gradient-checkpointing"]  # less memory, the same results
    monkeypatch.setattr(sys, "argv", ["script", "--resume", "run", *flags])
    script.main()
    assert [line["step"] for line in hypervolume.read_metrics(folder)] == [0, 1, 2, 3]


def test_rollouts_in_parts_are_as_good(run):
    """Greedy ones are the same, whatever is generated at once."""
    for size in ("1", "4", "100"):
        metrics, folder = run("--steps", "1", "--rollout-batch-size", size, "--learning-rate", "1e-9", name=size)
        assert metrics[0]["eval/mean_length"] == metrics[1]["eval/mean_length"]
        assert metrics[1]["clip_fraction"] == 0 and metrics[1]["completions/mean_length"] > 2
    texts = [(folder.with_name(size) / "completions.jsonl").read_text() for size in ("1", "4", "100")]
    assert texts[0] == texts[1] == texts[2]


def test_equal_rewards_of_a_group_move_nothing(run, script, monkeypatch):
    """Sums such as 0.1 + 0.2 + 0.7 are rounded, and a difference over a spread of 0 would be an advantage."""
    for name, value in {"accuracy": 0.1, "conciseness": 0.2, "clarity": 0.7}.items():
        rewards.OBJECTIVES[name] = lambda value=value, **_: value
    kl = ["--kl-coefficient", "0"] if hasattr(script.Args, "kl_coefficient") else []
    metrics, _ = run("--num-generations", "7", "--steps", "1", *kl)
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
    "unknown choice": ["--weighting", "magic"],
    "not a number": ["--steps", "many"],
    "unknown objective": ["--objectives", "accuracy", "beauty"],
    "one objective": ["--objectives", "accuracy"],
    "an objective twice": ["--objectives", "accuracy", "accuracy"],
    "negative weight": ["--weights", "1.5", "-0.5", "0"],
    "weights that do not sum to 1": ["--weights", "0.3", "0.3", "0.3"],
    "too few weights": ["--weights", "0.5", "0.5"],
    "weights that are not numbers": ["--weights", "nan", "0.5", "0.5"],
    "one rollout a prompt": ["--num-generations", "1"],
    "no step": ["--steps", "0"],
    "no rollout batch": ["--rollout-batch-size", "0"],
    "unknown schedule": ["--lr-schedule", "cosine"],
    "no mu": ["--mu", "0"],
    "negative clip": ["--clip-low", "-1"],
    "no coefficient": ["--clip-high", "nan"],
    "infinite learning rate": ["--learning-rate", "inf"],
    "a seed too large": ["--seed", "9999999999999999999"],
    "a device that is none": ["--device", "meta"],
    "a dual clip that takes gradients at ratio 1": ["--clip-dual", "1"],
    "more tokens than positions": ["--max-new-tokens", "100"],
    "a model that lacks weights": ["--model", "{partial}"],
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
    "a broken checkpoint": ["--resume", "{damaged}"],
    "a folder that cannot be": ["--output-dir", "{columns}/train.jsonl/run"],
    "a package that is not there": ["--report-to", "wandb"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_exit_code_two_and_writes_nothing(
    run, folders, tmp_path, monkeypatch, capfd, script, name
):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    paths = {
        "empty": inputs / "empty",
        "columns": dataset(inputs / "columns", train=[{"question": "1+1?"}] * 4, test=[{"question": "1+1?"}]),
        "split": dataset(inputs / "split", train=GOOD),
        "nothing": dataset(inputs / "nothing", train=GOOD, test=[]),
        "unvalidated": dataset(inputs / "unvalidated", train=GOOD, test=GOOD[:1]),
        "unanswered": dataset(inputs / "unanswered", train=[*GOOD, {"problem": "?", "answer": None}], test=GOOD),
        "broken": dataset(inputs / "broken", train=GOOD, test=GOOD),
    }
    paths["empty"].mkdir()
    (inputs / "empty.txt").write_text("Hello")
    paths["partial"] = inputs / "partial"
    shutil.copytree(folders["qwen3"], paths["partial"])
    weights = load_file(paths["partial"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, paths["partial"] / "model.safetensors", {"format": "pt"})
    paths["damaged"] = inputs / "damaged"
    paths["damaged"].mkdir()
    for name_of_file in ("args.json", "checkpoint.pt"):
        (paths["damaged"] / name_of_file).write_text("{")
    (paths["broken"] / "train.jsonl").write_text('{"problem": ')
    monkeypatch.chdir(tmp_path)
    if name == "a package that is not there":
        monkeypatch.setattr(script.importlib.util, "find_spec", lambda package: None)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*[flag.format(**paths) for flag in BAD[name]])
    captured = capfd.readouterr()
    assert stop.value.code == 2
    lines = captured.err.splitlines()
    assert lines[-1].startswith(f"{script.__name__}.py: error: ")
    assert len(lines) == 1 or name == "a model that lacks weights"  # of which transformers reports itself, too
    assert sorted(tmp_path.rglob("*")) == before


def test_prompts_over_the_limit_are_left_out_and_counted(run, tokenizer, tmp_path, capsys):
    long = [{"problem": "What is " + "+".join(["1"] * 30) + "?", "answer": "30"}]
    data = dataset(tmp_path / "data", train=GOOD + long, test=GOOD)
    run("--dataset", data, "--steps", "1")
    assert "train: left out 1 of 5 prompts" in capsys.readouterr().out


def test_help_names_every_flag(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit) as stop:
        script.main()
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for field in script.dataclasses.fields(script.Args):
        assert "--" + field.name.replace("_", "-") in out
