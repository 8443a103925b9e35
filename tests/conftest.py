"""Protects the tests from the network and from GPUs. It has their fixtures: tiny models, data and runs."""

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

# Set before the imports read it. The name of a model that is not a folder must fail without the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# With several threads in each, the workers of pytest-xdist would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hides GPUs, because the tests expect the exact results of the CPU. test_cuda.py shows the GPUs to a process
# of its own. That process and the workers of pytest-xdist inherit both variables and must not set them again.
if "SAVED_VISIBLE_DEVICES" not in os.environ:
    os.environ["SAVED_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
import transformers
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import compare  # noqa: E402
import rewards  # noqa: E402

SCRIPTS = ["grpo_dynw", "rloo_dynw", "reinforce_dynw"]
SMALL = ["--steps", "2", "--prompts-per-step", "4", "--num-generations", "4", "--micro-batch-size", "5"]
SMALL += ["--max-new-tokens", "12", "--eval-every", "1", "--learning-rate", "1e-3"]
# Random models never give a correct answer. Random text gets each of these rewards by chance.
CHANCE_REWARDS = {
    "accuracy": lambda response, answer, **_: float(len(response) % 2),
    "clarity": lambda response, **_: float(len(set(response)) > 8),
}


@pytest.fixture(params=SCRIPTS)
def script(request):
    """Each script in turn, as a module."""
    return importlib.import_module(request.param)


# For tests of code that all scripts share, as test_sync.py checks. One script is enough.
shared = pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)


@pytest.fixture(scope="session")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/model")


def random_model(kind, tokenizer):
    """Returns a model of 4 layers. Its random weights are so large that its outputs are far from uniform."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, head_dim=8)
    sizes |= dict(num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True)
    sizes |= dict(initializer_range=0.3 if kind == "gpt2" else 0.2, vocab_size=len(tokenizer))
    sizes |= dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes))


@pytest.fixture(scope="session")
def folders(tokenizer, tmp_path_factory):
    """The folders of a random Qwen3 ("qwen3"), a random GPT-2 ("gpt2") and a dataset ("data")."""
    base = tmp_path_factory.mktemp("inputs")
    for kind in ("qwen3", "gpt2"):
        model = random_model(kind, tokenizer)
        # Like chat models, they come with several end tokens and with sampling settings.
        sampling = dict(do_sample=True, temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=1.5)
        model.generation_config.update(**sampling, eos_token_id=[2, *range(40, 80)])
        model.save_pretrained(base / kind)
        tokenizer.save_pretrained(base / kind)
    (base / "data").mkdir()
    for split, size in {"train": 10, "validation": 6, "test": 6}.items():
        lines = (ROOT / "tiny/data" / f"{split}.jsonl").read_text().splitlines(keepends=True)[:size]
        (base / "data" / f"{split}.jsonl").write_text("".join(lines))
    return {name: base / name for name in ("qwen3", "gpt2", "data")}


@pytest.fixture
def main(monkeypatch):
    """main(script, *flags): runs main() of the script with these command-line flags."""

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        script.main()

    return call


@pytest.fixture
def run_script(folders, main, tmp_path, monkeypatch):
    """
    run_script(script, *flags, name="run"): runs the script, by default with small inputs and a random Qwen3.

    It returns the lines of metrics.jsonl as dictionaries, and the folder.
    """
    monkeypatch.setattr(rewards, "OBJECTIVES", {**rewards.OBJECTIVES, **CHANCE_REWARDS})
    monkeypatch.setattr(compare, "summary", compare.before_and_after)  # Pictures take longer than the run.

    def call(script, *flags, name="run"):
        folder = tmp_path / name
        inputs = ["--model", folders["qwen3"], "--dataset", folders["data"], "--output-dir", folder]
        main(script, *SMALL, *inputs, *flags)
        return compare.read_metrics(folder), folder

    return call


@pytest.fixture
def run(run_script, script):
    """run(*flags, name="run"): run_script with the script of the fixture `script`."""
    return partial(run_script, script)


def without_times(metrics):
    """Returns the lines of `metrics` without the durations, which differ between equal runs."""
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in metrics]


def weights_of(folder, model="model"):
    """Returns the weights of a model that a run has saved: {name: tensor}."""
    return load_file(folder / model / "model.safetensors")


def changes(one, other):
    """Returns the largest change of each tensor between two models: {name: number}."""
    assert one.keys() == other.keys()
    return {name: (one[name] - other[name]).abs().max().item() for name in one}


def compare_saved_model(folder, initial, model="model"):
    """Compares a model that a run has saved with the policy of its checkpoint and the initial model."""
    saved = weights_of(folder, model)
    policy = torch.load(folder / "checkpoint.pt", weights_only=True)["states"]["model_state_dict"]
    moves = changes(load_file(Path(initial) / "model.safetensors"), saved)
    return {
        "dtypes": sorted({str(weight.dtype) for weight in saved.values()}),
        "unlike the checkpoint": [name for name in saved if not torch.equal(saved[name], policy[name])],
        # A step of AdamW moves a weight by up to the learning rate, and weight decay moves it by 1% of that.
        "unchanged": [name for name, move in moves.items() if move < 5e-5],
    }


# The policy is float32. Its copy that generates is bfloat16 on CUDA and has lost the small changes.
POLICY_IS_SAVED = {"dtypes": ["torch.float32"], "unlike the checkpoint": [], "unchanged": []}


def read_lines(path):
    """Returns the objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def spy(monkeypatch, module, name):
    """Replaces module.name by a wrapper. Returns a list to which each call adds (arguments, result)."""
    calls, function = [], getattr(module, name)

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, wrapped)
    return calls
