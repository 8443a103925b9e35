"""Several processes, with gloo on the CPU: their results are those of one process."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import (
    POLICY_IS_SAVED,
    ROOT,
    SMALL,
    all_files,
    compare_saved_model,
    run_chains,
    weights_of,
    without_times,
)
from processes import free_port
from safetensors.torch import load_file

import grpo_dynw
from compare import read_metrics

FLAGS = ["--prompts-per-step", "8", "--learning-rate", "1e-4"]
# Name: (script, flags). Each runs with 1 and 2 processes, and "gradient" also with 4.
CASES = {
    "hypervolume": ("grpo_dynw", ["--weighting", "hypervolume"]),
    "gradient": ("grpo_dynw", ["--weighting", "gradient", "--mu", "1e-5", "--updates-per-step", "2"]),
    "nash": ("grpo_dynw", ["--weighting", "nash", "--updates-per-step", "2"]),
    "whitened": ("reinforce_dynw", ["--weighting", "gradient", "--mu", "1e-5"]),
    "gpt2": ("rloo_dynw", ["--weighting", "gradient", "--mu", "1e-5"]),
}
MODELS = {"gpt2": "gpt2"}  # All other cases use qwen3.
RESUMED = {"hypervolume": "reinforce_dynw", "gradient": "grpo_dynw"}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """
    The folder of all runs: CASE-PROCESSES, WEIGHTING-whole (never interrupted) and WEIGHTING-resumed (killed
    and resumed). They are all made at once.
    """
    base = tmp_path_factory.mktemp("processes")
    inputs = [*SMALL, *FLAGS, "--dataset", folders["data"]]
    chains = []
    for name, (script, flags) in CASES.items():
        for world in (1, 2, 4) if name == "gradient" else (1, 2):
            # Recomputed activations and other micro-batches must not change the results either.
            extra = ["--gradient-checkpointing", "--micro-batch-size", "3"] if world == 4 else []
            output = ["--model", folders[MODELS.get(name, "qwen3")], "--output-dir", base / f"{name}-{world}"]
            case = {"processes": world, "script": script, "seed_per_prompt": True}
            chains.append([{**case, "flags": [*inputs, *flags, *extra, *output]}])
    for weighting, script in RESUMED.items():
        case, folder = {"processes": 2, "script": script}, base / f"{weighting}-resumed"
        flags = [*inputs, "--model", folders["qwen3"], "--weighting", weighting, "--steps", "3"]
        flags += ["--checkpoint-every", "1"]
        chains.append([{**case, "flags": [*flags, "--output-dir", base / f"{weighting}-whole"]}])
        killed = {**case, "flags": [*flags, "--output-dir", folder]}
        killed |= {"kill_before": ["policy_loss", 11], "exit_code": -9}
        chains.append([killed, {**case, "flags": ["--resume", folder]}])
    run_chains(chains)
    return base


def largest_difference(one, other):
    """Returns the largest difference between weights of two runs."""
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    for name in a:
        # c_attn.bias joins the biases of GPT-2's queries, keys and values. Leave out that of the keys: it
        # does not change the softmax, so its gradient is a rounding error, which AdamW scales to whole steps.
        if name.endswith("c_attn.bias"):
            for weights in (a, b):
                weights[name] = torch.cat([weights[name].chunk(3)[i] for i in (0, 2)])
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("name, world", [*((name, 2) for name in CASES), ("gradient", 4)])
def test_several_processes_give_the_results_of_one(runs, name, world):
    metrics_of_one, metrics = read_metrics(runs / f"{name}-1"), read_metrics(runs / f"{name}-{world}")
    for a, b in zip(without_times(metrics_of_one), without_times(metrics), strict=True):
        assert a.keys() == b.keys()
        equal = {key: b[key] == pytest.approx(a[key], abs=1e-5, rel=1e-5) for key in a}
        assert {key: (a[key], b[key]) for key in a if not equal[key]} == {}
    assert any(line["grad_norm"] > 0.01 for line in metrics_of_one[1:])
    moving_weights = "gradient" in CASES[name][1] or "nash" in CASES[name][1]
    assert metrics_of_one[-1]["weights/accuracy"] != 1 / 3 or not moving_weights
    assert largest_difference(runs / f"{name}-1", runs / f"{name}-{world}") < 1e-5
    completions = [(runs / f"{name}-{n}/completions.jsonl").read_text() for n in (1, world)]
    assert completions[0] == completions[1]


def test_every_parameter_that_is_compared_has_changed(runs, folders):
    """The runs take two steps of at most 1e-4. The comparison tolerates 1e-5, which is a tenth of a step."""
    for name in CASES:
        initial = load_file(folders[MODELS.get(name, "qwen3")] / "model.safetensors")
        final = weights_of(runs / f"{name}-2")
        assert min((initial[key] - final[key]).abs().max().item() for key in initial) > 5e-5


@pytest.mark.parametrize("weighting", RESUMED)
def test_killed_and_resumed_processes_give_the_results_of_uninterrupted_ones(runs, weighting):
    whole, resumed = runs / f"{weighting}-whole", runs / f"{weighting}-resumed"
    assert without_times(read_metrics(whole)) == without_times(read_metrics(resumed))
    assert largest_difference(whole, resumed) == 0


def test_a_checkpoint_of_several_processes_holds_whole_tensors(runs, folders):
    checkpoint = torch.load(runs / "gradient-whole/checkpoint.pt", weights_only=True)
    weights = load_file(folders["qwen3"] / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    assert {name: checkpoint["policy"][name].shape for name in shapes} == shapes
    assert all(checkpoint["optimizer"]["state"][name]["exp_avg"].shape == shapes[name] for name in shapes)
    assert len(checkpoint["rng"]) == 2 and not torch.equal(*checkpoint["rng"])


@pytest.mark.parametrize("weighting", RESUMED)
def test_the_saved_model_of_several_processes_is_the_policy(runs, folders, weighting):
    for name in ("whole", "resumed"):
        folder = runs / f"{weighting}-{name}"
        assert compare_saved_model(folder, folders["qwen3"]) == POLICY_IS_SAVED


# The options of torchrun on each machine.
MACHINES = {
    "one process": [["--standalone", "--nproc-per-node", "1"]],
    "two processes": [["--standalone", "--nproc-per-node", "2"]],
    "two machines": [
        ["--nnodes", "2", "--node-rank", rank, "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        for rank in "01"
    ],
}


def start_torchrun(folders, folder, machines, *flags):
    """Starts torchrun for each machine of MACHINES[machines], in its own folder. Returns the processes."""
    port, processes = str(free_port()), []
    for i, options in enumerate(MACHINES[machines]):
        command = [sys.executable, "-m", "torch.distributed.run", *options]
        command += ["--master-port", port] if machines == "two machines" else []
        command += [ROOT / "rloo_dynw.py", *SMALL, "--checkpoint-every", "2", *flags]
        command += ["--model", folders["qwen3"], "--dataset", folders["data"]]
        (folder / str(i)).mkdir(parents=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # The pictures do not need the backend that a user has set.
        pipes["env"] = {**os.environ, "MPLBACKEND": "nonsense"}
        processes.append(subprocess.Popen(command, cwd=folder / str(i), **pipes))
    return processes


@pytest.fixture(scope="module")
def launched(folders, tmp_path_factory):
    """The results of torchrun: {name in MACHINES: [(folder, exit code, stdout, stderr) of each machine]}."""
    base, results = tmp_path_factory.mktemp("torchrun"), {}
    started = {name: start_torchrun(folders, base / name, name) for name in MACHINES}
    for name, processes in started.items():
        outputs = [process.communicate(timeout=120) for process in processes]
        # gloo sometimes fails at exit (pytorch/pytorch#179291).
        if any("terminate called without an active exception" in err for _, err in outputs):
            shutil.rmtree(base / name)
            processes = start_torchrun(folders, base / name, name)
            outputs = [process.communicate(timeout=120) for process in processes]
        results[name] = [
            (base / name / str(i), process.returncode, *output)
            for i, (process, output) in enumerate(zip(processes, outputs))
        ]
    return results


@pytest.mark.parametrize("machines", MACHINES)
def test_torchrun(launched, folders, machines):
    """
    The commands of the README, from another folder. Under torchrun, even one process shards its parameters.

    The first machine writes all files. Two processes give the same results on one machine and on two.
    """
    (folder, code, out, err), *others = launched[machines]
    assert code == 0, err
    assert out.count("after step 2") == 1
    [run] = (folder / "runs").iterdir()
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2]
    assert {path.name for path in run.iterdir()} >= {"curves.png", "fronts.png", "model"}
    assert compare_saved_model(run, folders["qwen3"]) == POLICY_IS_SAVED
    assert len(others) == (machines == "two machines")
    for folder, code, out, err in others:
        assert code == 0, err
        assert out == "" and list(folder.iterdir()) == []
        [expected] = (launched["two processes"][0][0] / "runs").iterdir()
        assert without_times(read_metrics(run)) == without_times(read_metrics(expected))
        assert largest_difference(run, expected) == 0


def test_wrong_input_ends_all_processes_with_one_line(folders, tmp_path):
    [process] = start_torchrun(folders, tmp_path, "two processes", "--clip-low=-1")
    err = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and err.count("error: --clip-low") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("local_rank, lines", [("0", 1), ("1", 0)])
def test_one_process_of_each_machine_reports_wrong_input(monkeypatch, capsys, local_rank, lines):
    """The first process of the second machine reports, too."""
    monkeypatch.setenv("RANK", f"2{local_rank}")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(grpo_dynw, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as stopped:
        grpo_dynw.fail("--clip-low: is out of range")
    assert stopped.value.code == 2 and capsys.readouterr().err.count("error: --clip-low") == lines


def test_a_run_of_two_processes_cannot_be_resumed_by_one(runs, main, capsys):
    folder = runs / "gradient-whole"
    files = all_files(folder)
    with pytest.raises(SystemExit):
        main(grpo_dynw, "--resume", folder, "--steps", "9")
    assert "2 processes" in capsys.readouterr().err
    assert files == all_files(folder)
