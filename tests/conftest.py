"""What the tests of the scripts share: tiny random models, a small dataset, and a run of a script in this process."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # a name that is not a folder must fail here, not on the network: before imports
)

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import compare  # noqa: E402
import rewards  # noqa: E402

SCRIPTS = ["grpo_dynw", "rloo_dynw", "reinforce_dynw"]
SMALL = ["--steps", "2", "--prompts-per-step", "4", "--num-generations", "4", "--micro-batch-size", "5"]
SMALL += ["--max-new-tokens", "12", "--eval-every", "1", "--learning-rate", "1e-3"]


@pytest.fixture(params=SCRIPTS)
def script(request):
    """One of the scripts, as a module."""
    return importlib.import_module(request.param)


# For tests of what the scripts share to the byte, as test_sync.py sees to: one of them is enough.
shared = pytest.mark.parametrize("script", ["grpo_dynw"], indirect=True)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tiny/model")


def random_model(kind, tokenizer):
    """A model of 4 layers with random weights, large enough that its distributions are far from uniform."""
    torch.manual_seed(0)
    shared = {"vocab_size": len(tokenizer), "bos_token_id": None}
    shared |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if kind == "gpt2":  # learned positions, biases, Conv1D, dropout
        sizes = dict(n_embd=32, n_layer=4, n_head=4, n_positions=128, initializer_range=0.3)
        return GPT2LMHeadModel(GPT2Config(**sizes, **shared))
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, head_dim=8)
    sizes |= dict(
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2
    )
    if kind == "mistral":  # which sees no further back than 16 tokens
        return MistralForCausalLM(MistralConfig(**sizes, **shared, sliding_window=16))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **shared))


@pytest.fixture(scope="session")
def folders(tokenizer, tmp_path_factory):
    """Folders of a random Qwen3 ("qwen3"), a random GPT-2 ("gpt2") and a dataset ("data")."""
    base = tmp_path_factory.mktemp("inputs")
    for kind in ("qwen3", "gpt2"):
        model = random_model(kind, tokenizer)
        # As chat models do, they come with several end tokens and sampling settings of their own.
        own = dict(do_sample=True, temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=1.5)
        model.generation_config.update(**own, eos_token_id=[2, *range(40, 80)])
        model.save_pretrained(base / kind)
        tokenizer.save_pretrained(base / kind)
    (base / "data").mkdir()
    for split, size in {"train": 10, "validation": 6, "test": 6}.items():
        lines = (ROOT / "tiny/data" / f"{split}.jsonl").read_text().splitlines(keepends=True)[:size]
        (base / "data" / f"{split}.jsonl").write_text("".join(lines))
    return {name: base / name for name in ("qwen3", "gpt2", "data")}


@pytest.fixture
def main(monkeypatch):
    """main(script, *flags): runs the script's main() with these flags on its command line."""

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, flags)])
        script.main()

    return call


@pytest.fixture
def run_script(folders, main, tmp_path, monkeypatch):
    """
    run_script(script, *flags, name="run", model="qwen3"): runs it, returns the lines of its metrics and its folder.

    What random models say is never right: here, accuracy and clarity are of another kind, which they meet by chance.
    """
    monkeypatch.setattr(rewards, "OBJECTIVES", dict(rewards.OBJECTIVES))
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 2)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: float(len(set(response)) > 8)
    monkeypatch.setattr(compare, "summary", compare.before_and_after)  # pictures take longer than the run

    def call(script, *flags, name="run", model="qwen3"):
        folder = tmp_path / name
        main(
            script,
            *SMALL,
            "--model",
            folders[model],
            "--dataset",
            folders["data"],
            "--output-dir",
            folder,
            *flags,
        )
        return compare.read_metrics(folder), folder

    return call


@pytest.fixture
def run(run_script, script):
    """run(*flags, name="run", model="qwen3"): as run_script, of the script at hand."""
    return partial(run_script, script)


@pytest.fixture
def sgd(monkeypatch):
    """Plain gradient steps of size 1 in place of AdamW, which would hide a gradient's scale."""

    def make(parameters, **_):
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=1.0))
        return optimizer

    monkeypatch.setattr(torch.optim, "AdamW", make)


def without_times(metrics):
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in metrics]


def weights_of(folder):
    return load_file(folder / "model/model.safetensors")


def read_lines(path):
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def all_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spy(monkeypatch, module, name):
    """Records the arguments and results of calls to module.name."""
    calls, function = [], getattr(module, name)

    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, wrapped)
    return calls


def run_chains(chains):
    """Runs processes.py. Returns what each case of each chain printed."""
    line, given = [sys.executable, ROOT / "tests/processes.py"], json.dumps(chains, default=str)
    done = subprocess.run(line, input=given, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout)
