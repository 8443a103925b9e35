"""Several processes, with gloo on the CPU: they do together what one does alone."""

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL, all_files, run_chains, weights_of, without_times
from safetensors.torch import load_file

from compare import read_metrics

FLAGS = ["--prompts-per-step", "8", "--learning-rate", "1e-4"]
# (script, flags), each of which is run by 1 and 2 processes, those of GRPO by 4, too
TOGETHER = {
    "hypervolume": ("grpo_dynw", ["--weighting", "hypervolume"]),
    "gradient": ("grpo_dynw", ["--weighting", "gradient", "--mu", "1e-5", "--updates-per-step", "2"]),
    "nash": ("grpo_dynw", ["--weighting", "nash", "--updates-per-step", "2"]),
    "whitened": ("reinforce_dynw", ["--weighting", "gradient", "--mu", "1e-5"]),
    "gpt2": ("rloo_dynw", ["--weighting", "gradient", "--mu", "1e-5"]),
}
MODELS = {"gpt2": "gpt2"}  # all others: qwen3
RESUMED = {"hypervolume": "reinforce_dynw", "gradient": "grpo_dynw"}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """Folders of runs by name and number of processes, and of runs that were resumed, all made in one go."""
    base = tmp_path_factory.mktemp("processes")
    inputs = [*SMALL, *FLAGS, "--dataset", folders["data"]]
    chains = []
    for name, (script, flags) in TOGETHER.items():
        for world in (1, 2, 4) if script == "grpo_dynw" else (1, 2):
            # Recomputed activations and other micro-batches change nothing, either.
            extra = ["--gradient-checkpointing", "--micro-batch-size", "3"] if world == 4 else []
            output = ["--model", folders[MODELS.get(name, "qwen3")], "--output-dir", base / f"{name}-{world}"]
            case = {"processes": world, "script": script, "by_prompt": True}
            chains.append([{**case, "flags": [*inputs, *flags, *extra, *output]}])
    for weighting, script in RESUMED.items():
        case, folder = {"processes": 2, "script": script}, base / f"{weighting}-parts"
        flags = [*inputs, "--model", folders["qwen3"], "--weighting", weighting, "--steps", "3"]
        flags += ["--checkpoint-every", "1"]
        chains.append([{**case, "flags": [*flags, "--output-dir", base / f"{weighting}-whole"]}])
        killed = {**case, "flags": [*flags, "--output-dir", folder], "killed_in": ["policy_loss", 11], "exit_code": -9}
        chains.append([killed, {**case, "flags": ["--resume", folder]}])
    run_chains(chains)
    return base


def largest_difference(one, other):
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith("c_attn.bias"):  # GPT-2's for queries, keys and values. A softmax does not see that of keys:
            for weights in (a, b):  # its gradient is rounding, of which AdamW makes whole steps
                weights[name] = torch.cat([weights[name].chunk(3)[i] for i in (0, 2)])
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    "name, world", [(n, w) for n in TOGETHER for w in (2, 4) if w == 2 or "grpo" in TOGETHER[n][0]]
)
def test_processes_together_do_what_one_does_alone(runs, name, world):
    alone, together = read_metrics(runs / f"{name}-1"), read_metrics(runs / f"{name}-{world}")
    for a, b in zip(without_times(alone), without_times(together), strict=True):
        assert a.keys() == b.keys()
        different = {key: (a[key], b[key]) for key in a if b[key] != pytest.approx(a[key], abs=1e-5, rel=1e-5)}
        assert not different
    assert any(line["grad_norm"] > 0.01 for line in alone[1:])
    assert alone[-1]["weights/accuracy"] != 1 / 3 or "gradient" not in str(TOGETHER[name])
    assert largest_difference(runs / f"{name}-1", runs / f"{name}-{world}") < 1e-5
    completions = [(runs / f"{name}-{n}/completions.jsonl").read_text() for n in (1, world)]
    assert completions[0] == completions[1]


def test_what_is_compared_has_moved(runs, folders):
    """Two steps of at most 1e-4: differences below 1e-5 are a tenth of a step."""
    for name in TOGETHER:
        before = load_file(folders[MODELS.get(name, "qwen3")] / "model.safetensors")
        after = weights_of(runs / f"{name}-2")
        assert min((before[key] - after[key]).abs().max().item() for key in before) > 5e-5


@pytest.mark.parametrize("weighting", RESUMED)
def test_processes_that_are_killed_and_resumed_end_as_those_that_are_not(runs, weighting):
    whole, parts = runs / f"{weighting}-whole", runs / f"{weighting}-parts"
    assert without_times(read_metrics(whole)) == without_times(read_metrics(parts))
    assert largest_difference(whole, parts) == 0


def test_a_checkpoint_of_several_processes_is_whole(runs, folders):
    checkpoint = torch.load(runs / "gradient-whole/checkpoint.pt", weights_only=True)
    shapes = {name: tensor.shape for name, tensor in load_file(folders["qwen3"] / "model.safetensors").items()}
    assert {name: checkpoint["policy"][name].shape for name in shapes} == shapes
    assert all(checkpoint["optimizer"]["state"][name]["exp_avg"].shape == shapes[name] for name in shapes)
    assert len(checkpoint["rng"]) == 2 and not torch.equal(*checkpoint["rng"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_torchrun(folders, tmp_path, processes):
    """As in the README, from another folder; and bad input ends all processes. One process is sharded, too."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    line += [ROOT / "rloo_dynw.py", *SMALL, "--steps", "1", "--model", folders["qwen3"], "--dataset", folders["data"]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    if "terminate called without an active exception" in done.stderr:  # gloo, at exit: pytorch/pytorch#179291
        shutil.rmtree(tmp_path / "runs")
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after step 1") == 1
    [folder] = (tmp_path / "runs").iterdir()
    assert [line["step"] for line in read_metrics(folder)] == [0, 1]
    assert {path.name for path in folder.iterdir()} >= {"curves.png", "fronts.png", "model"}
    if processes == "1":
        return
    done = subprocess.run([*line, "--clip-low=-1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "error: --clip-low" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == [folder]


def test_a_run_of_two_processes_is_not_resumed_by_one(runs, main, capsys):
    import grpo_dynw

    folder = runs / "gradient-whole"
    before = all_files(folder)
    with pytest.raises(SystemExit):
        main(grpo_dynw, "--resume", folder, "--steps", "9")
    assert "2 processes" in capsys.readouterr().err
    assert before == all_files(folder)
