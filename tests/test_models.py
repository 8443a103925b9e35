"""Model families, each as a tiny random model: one update, with ratio 1, that changes every parameter."""

import importlib
import json
import shutil

import pytest
import torch
import transformers
from conftest import SCRIPTS, read_lines, spy, weights_of
from safetensors.torch import load_file

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=128)
FAMILIES = {
    "Qwen3": (transformers.Qwen3Config, {**SIZES, "tie_word_embeddings": False}),
    "Qwen2.5": (transformers.Qwen2Config, {k: v for k, v in SIZES.items() if k != "head_dim"}),
    "Llama": (transformers.LlamaConfig, SIZES),
    # The architecture of DeepSeek-LLM 7B: Llama, with as many key as query heads.
    "DeepSeek-LLM": (transformers.LlamaConfig, {**SIZES, "num_key_value_heads": 4}),
    "Mistral": (transformers.MistralConfig, {**SIZES, "sliding_window": 16}),
    "Gemma": (transformers.GemmaConfig, SIZES),
    "Gemma2": (transformers.Gemma2Config, {**SIZES, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "GPT-2": (transformers.GPT2Config, dict(n_embd=32, n_layer=4, n_head=4, n_positions=128)),
}


@pytest.fixture(scope="module")
def family(tokenizer, tmp_path_factory):
    """family(name): the folder of a random model. Base models, such as GPT-2, have no chat template."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            kind, sizes = FAMILIES[name]
            ends = {
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None,
            }
            config = kind(vocab_size=len(tokenizer), initializer_range=0.2, **sizes, **ends)
            made[name] = tmp_path_factory.mktemp("model")
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
            if name == "GPT-2":
                (made[name] / "chat_template.jinja").unlink()
        return made[name]

    return make


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_one_update_changes_every_parameter(run_script, monkeypatch, family, name, script):
    script, folder = importlib.import_module(script), family(name)
    losses = spy(monkeypatch, script, "policy_loss")
    flags = ["--steps", "1", "--weighting", "gradient", "--weight-decay", "0", "--model", folder]
    metrics, output = run_script(script, *flags)
    assert max((new - old).abs().max() for (new, old, *_), _ in losses) < 1e-5
    assert metrics[1]["clip_fraction"] == 0 and metrics[1]["grad_norm"] > 0
    before, after = load_file(folder / "model.safetensors"), weights_of(output)
    assert before.keys() == after.keys()
    # That of keys shifts all scores of a query alike, which a softmax does not see.
    idle = {key for key in before if key.endswith("k_proj.bias")}
    assert [key for key in before if torch.equal(before[key], after[key]) and key not in idle] == []
    assert any(metrics[1][f"influence/{k}"] != 0 for k in ("accuracy", "conciseness", "clarity"))
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, output / "model")]
    assert configs[0]["architectures"] == configs[1]["architectures"]


def test_without_a_chat_template_prompts_are_plain_text(run_script, family):
    _, output = run_script(importlib.import_module("grpo_dynw"), "--steps", "1", "--model", family("GPT-2"))
    first = read_lines(output / "completions.jsonl")[0]
    assert first["prompt"].startswith("What is") and first["prompt"].endswith("?\n")


@pytest.mark.parametrize("name", ["Qwen3", "GPT-2"])
def test_recomputed_activations_change_nothing(run_script, family, name):
    """GPT-2 has dropout, which the models' own way of recomputing would switch on."""
    script, results = importlib.import_module("grpo_dynw"), []
    for extra in ([], ["--gradient-checkpointing"]):
        flags = ["--weighting", "gradient", "--model", family(name), *extra]
        metrics, output = run_script(script, *flags, name=f"run{len(extra)}")
        results.append((metrics, weights_of(output)))
    (plain, a), (recomputed, b) = results
    for key in ("loss", "grad_norm", "influence/accuracy", "completions/mean_length"):
        assert recomputed[2][key] == pytest.approx(plain[2][key], rel=1e-5, abs=1e-7)
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-5


def test_activations_are_recomputed(run_script, family, monkeypatch):
    """Each decoder layer runs once more for each micro-batch of the update and of the probe."""
    script, MLP, calls = importlib.import_module("grpo_dynw"), transformers.models.qwen3.modeling_qwen3.Qwen3MLP, []
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x: (calls.append(x.requires_grad), forward(self, x))[1])
    counts = []
    for extra in ([], ["--gradient-checkpointing"]):
        calls.clear()
        flags = ["--steps", "1", "--micro-batch-size", "16", "--model", family("Qwen3"), *extra]
        run_script(script, *flags, name=f"run{len(extra)}")
        counts.append(sum(calls))
    assert counts == [4, 8]


def test_a_models_own_settings_are_saved_though_they_leave_out_that_they_sample(run_script, family, tmp_path):
    """Older transformers refuse a temperature without do_sample, and would save no weights, either."""
    model = shutil.copytree(family("Qwen3"), tmp_path / "own")
    settings = json.loads((model / "generation_config.json").read_text())
    settings.pop("do_sample", None)
    (model / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.7, "top_p": 0.8}))
    _, folder = run_script(importlib.import_module("grpo_dynw"), "--model", model, "--steps", "0")
    saved = json.loads((folder / "model/generation_config.json").read_text())
    assert saved["temperature"] == 0.7 and (folder / "model/model.safetensors").exists()
