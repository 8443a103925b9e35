"""Protects training with several processes (gloo, on the CPU): its results are those of one process."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import (
    POLICY_IS_SAVED,
    ROOT,
    SMALL,
    changes,
    compare_saved_model,
    read_lines,
    weights_of,
    without_times,
)
from processes import free_port, run_chains
from safetensors.torch import load_file

import grpo_dynw

FLAGS = ["--prompts-per-step", "8", "--learning-rate", "1e-4"]
GRADIENT = ["--weighting", "gradient", "--mu", "1e-5"]
# Name: (script, flags). Each runs with 1 and 2 processes, and "gradient" also with 4.
CASES = {
    "hypervolume": ("grpo_dynw", ["--weighting", "hypervolume"]),
    "gradient": ("grpo_dynw", [*GRADIENT, "--updates-per-step", "2"]),
    "nash": ("grpo_dynw", ["--weighting", "nash", "--updates-per-step", "2"]),
    "whitened": ("reinforce_dynw", GRADIENT),
    "gpt2": ("rloo_dynw", GRADIENT),
}
MODELS = {"gpt2": "gpt2"}  # All other cases use qwen3.
RESUMED = {"hypervolume": "reinforce_dynw", "gradient": "grpo_dynw"}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """The folder of the runs CASE-PROCESSES, WEIGHTING-whole and WEIGHTING-resumed (after a kill)."""
    base, chains = tmp_path_factory.mktemp("processes"), []
    inputs = [*SMALL, *FLAGS, "--dataset", folders["data"]]
    for name, (script, flags) in CASES.items():
        for world in (1, 2, 4) if name == "gradient" else (1, 2):
            # Recomputed activations and other micro-batches must not change the results either.
            extra = ["--gradient-checkpointing", "--micro-batch-size", "3"] if world == 4 else []
            output = ["--model", folders[MODELS.get(name, "qwen3")], "--output-dir", base / f"{name}-{world}"]
            flags_of_run = [*inputs, *flags, *extra, *output]
            case = {"processes": world, "script": script, "flags": flags_of_run, "seed_per_prompt": True}
            chains.append([case])
    data = shutil.copytree(folders["data"], base / "data")
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text().splitlines()[0])
    for world in (1, 2):
        flags = [*SMALL, "--model", folders["qwen3"], "--dataset", data, "--steps", "1"]
        flags += ["--prompts-per-step", str(world), "--output-dir", base / f"same-{world}"]
        chains.append([{"processes": world, "script": "grpo_dynw", "flags": flags}])
    for weighting, script in RESUMED.items():
        case, folder = {"processes": 2, "script": script}, base / f"{weighting}-resumed"
        flags = [*inputs, "--model", folders["qwen3"], "--weighting", weighting, "--steps", "3"]
        flags += ["--checkpoint-every", "1"]
        chains.append([{**case, "flags": [*flags, "--output-dir", base / f"{weighting}-whole"]}])
        killed = {**case, "flags": [*flags, "--output-dir", folder], "kill_before": ["policy_loss", 11]}
        chains.append([killed, {**case, "flags": ["--resume", folder]}])
    run_chains(chains)
    return base


def metrics_of(folder):
    return without_times(read_lines(folder / "metrics.jsonl"))


def largest_difference(one, other):
    """Returns the largest difference between the weights of two runs."""
    pair = weights_of(one), weights_of(other)
    for weights in pair:
        # c_attn.bias joins the biases of GPT-2's queries, keys and values. Leave out that of the keys: it
        # does not change the softmax, so its gradient is a rounding error, which AdamW makes large.
        for name in [name for name in weights if name.endswith("c_attn.bias")]:
            weights[name] = torch.cat([weights[name].chunk(3)[i] for i in (0, 2)])
    return max(changes(*pair).values())


@pytest.mark.parametrize("name, world", [*((name, 2) for name in CASES), ("gradient", 4)])
def test_several_processes_give_the_results_of_one(runs, name, world):
    one, other = runs / f"{name}-1", runs / f"{name}-{world}"
    for a, b in zip(metrics_of(one), metrics_of(other), strict=True):
        assert b == pytest.approx(a, abs=1e-5, rel=1e-5)
    last = metrics_of(one)[-1]
    assert last["grad_norm"] > 0.01
    assert (last["weights/accuracy"] != 1 / 3) == (name != "hypervolume")
    assert largest_difference(one, other) < 1e-5
    assert (one / "completions.jsonl").read_text() == (other / "completions.jsonl").read_text()


def test_every_parameter_that_is_compared_has_changed(runs, folders):
    """The runs take two steps of at most 1e-4. The comparison tolerates 1e-5, which is a tenth of a step."""
    for name in CASES:
        initial = load_file(folders[MODELS.get(name, "qwen3")] / "model.safetensors")
        assert min(changes(initial, weights_of(runs / f"{name}-2")).values()) > 5e-5


@pytest.mark.parametrize("weighting", RESUMED)
def test_killed_and_resumed_processes_give_the_results_of_uninterrupted_ones(runs, folders, weighting):
    whole, resumed = runs / f"{weighting}-whole", runs / f"{weighting}-resumed"
    assert metrics_of(whole) == metrics_of(resumed)
    assert largest_difference(whole, resumed) == 0
    for folder in (whole, resumed):
        assert compare_saved_model(folder, folders["qwen3"]) == POLICY_IS_SAVED


def test_each_process_samples_its_own_responses(runs):
    """All prompts are equal. The first of two processes samples what one process samples, the second not."""
    one, two = [metrics_of(runs / f"same-{world}")[1] for world in (1, 2)]
    assert one["grad_norm"] != pytest.approx(two["grad_norm"], rel=1e-3)
    assert one["completions/mean_length"] != two["completions/mean_length"]


def test_a_run_of_two_processes_cannot_be_resumed_by_one(runs, main, capsys):
    folder = runs / "gradient-whole"
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(grpo_dynw, "--resume", folder, "--steps", "9")
    assert stopped.value.code == 2 and "--resume" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


# The options of torchrun on each machine
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
        command += [ROOT / "rloo_dynw.py", *SMALL, "--checkpoint-every", "2"]
        command += ["--model", folders["qwen3"], "--dataset", folders["data"], *flags]
        (folder / str(i)).mkdir(parents=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=folder / str(i), **pipes))
    return processes


@pytest.fixture(scope="module")
def launched(folders, tmp_path_factory):
    """The results of torchrun: {name in MACHINES: [(folder, exit code, stdout, stderr) of each machine]}."""
    base, results = tmp_path_factory.mktemp("torchrun"), {}
    started = {name: start_torchrun(folders, base / name, name) for name in MACHINES}
    for name, processes in started.items():
        outputs = [process.communicate(timeout=600) for process in processes]
        # gloo sometimes fails at exit (pytorch/pytorch#179291).
        if any("terminate called without an active exception" in err for _, err in outputs):
            shutil.rmtree(base / name)
            processes = start_torchrun(folders, base / name, name)
            outputs = [process.communicate(timeout=600) for process in processes]
        results[name] = [
            (base / name / str(i), process.returncode, *output)
            for i, (process, output) in enumerate(zip(processes, outputs))
        ]
    return results


@pytest.mark.parametrize("machines", MACHINES)
def test_torchrun(launched, folders, machines):
    """Even one process shards its parameters. Of two machines, the first writes all files."""
    (folder, code, out, err), *others = launched[machines]
    assert code == 0, err
    assert out.count("after step 2") == 1
    [run] = (folder / "runs").iterdir()
    assert [line["step"] for line in metrics_of(run)] == [0, 1, 2]
    assert {path.name for path in run.iterdir()} >= {"curves.png", "fronts.png", "model"}
    assert compare_saved_model(run, folders["qwen3"]) == POLICY_IS_SAVED
    assert len(others) == (machines == "two machines")
    for folder, code, _, err in others:
        assert code == 0, err
        assert list(folder.iterdir()) == []
        [expected] = (launched["two processes"][0][0] / "runs").iterdir()
        assert metrics_of(run) == metrics_of(expected) and largest_difference(run, expected) == 0


def test_wrong_input_ends_all_processes_without_a_traceback(folders, tmp_path):
    [process] = start_torchrun(folders, tmp_path, "two processes", "--model", "no/such-model")
    err = process.communicate(timeout=600)[1]
    lines = [line for line in err.splitlines() if "error: --model" in line]
    assert process.returncode != 0 and len(lines) == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
