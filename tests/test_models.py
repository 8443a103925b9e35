"""Model families, each as a tiny random model: one update has ratio 1 and changes every parameter."""

import importlib
import json
import shutil

import pytest
import torch
import transformers
from conftest import SCRIPTS, read_lines, spy, weights_of
from safetensors.torch import load_file
from test_algorithm import PROMPTS, advantage_args, rollouts_of, separate_passes
from test_rollouts import LINEAR, MAMBA

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, head_dim=8, max_position_embeddings=128)
FAMILIES = {
    "Qwen3": (transformers.Qwen3Config, {**SIZES, "tie_word_embeddings": False}),
    "Qwen2.5": (transformers.Qwen2Config, {k: v for k, v in SIZES.items() if k != "head_dim"}),
    "Llama": (transformers.LlamaConfig, SIZES),
    # DeepSeek-LLM 7B has the architecture of Llama, with as many key heads as query heads.
    "DeepSeek-LLM": (transformers.LlamaConfig, {**SIZES, "num_key_value_heads": 4}),
    "Mistral": (transformers.MistralConfig, {**SIZES, "sliding_window": 16}),
    "Gemma": (transformers.GemmaConfig, SIZES),
    "Gemma2": (transformers.Gemma2Config, {**SIZES, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "GPT-2": (transformers.GPT2Config, dict(n_embd=32, n_layer=4, n_head=4, n_positions=128)),
    # Hybrid models, with linear attention, convolutions, and state spaces beside attention.
    "Qwen3.5": (transformers.Qwen3_5TextConfig, {**SIZES, **LINEAR}),
    "LFM2": (transformers.Lfm2Config, {**SIZES, "layer_types": ["conv", "full_attention"] * 2}),
    "Falcon-H1": (transformers.FalconH1Config, {**SIZES, **MAMBA}),
}
HYBRIDS = ["Qwen3.5", "LFM2", "Falcon-H1"]


@pytest.fixture(scope="module")
def family(tokenizer, tmp_path_factory):
    """family(name): the folder of a random model. GPT-2 has no chat template, like other base models."""
    folders = {}

    def make(name):
        if name not in folders:
            torch.manual_seed(0)
            config_class, sizes = FAMILIES[name]
            vocabulary = {"vocab_size": len(tokenizer), "bos_token_id": None}
            vocabulary |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
            config = config_class(initializer_range=0.2, **sizes, **vocabulary)
            folders[name] = tmp_path_factory.mktemp("model")
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
            tokenizer.save_pretrained(folders[name])
            if name == "GPT-2":
                (folders[name] / "chat_template.jinja").unlink()
        return folders[name]

    return make


# The scripts share the code that depends on the family, so hybrid models are trained with one of them.
RUNS = [
    (script, name) for script in SCRIPTS for name in FAMILIES if name not in HYBRIDS or script == SCRIPTS[0]
]


@pytest.mark.parametrize("script, name", RUNS)
def test_one_update_changes_every_parameter(run_script, monkeypatch, family, name, script):
    script, folder = importlib.import_module(script), family(name)
    losses = spy(monkeypatch, script, "policy_loss")
    flags = ["--steps", "1", "--weighting", "gradient", "--weight-decay", "0", "--model", folder]
    metrics, output = run_script(script, *flags)
    assert max((new - old).abs().max() for (new, old, *_), _ in losses) < 1e-5
    assert metrics[1]["clip_fraction"] == 0 and metrics[1]["grad_norm"] > 0
    initial, final = load_file(folder / "model.safetensors"), weights_of(output)
    assert initial.keys() == final.keys()
    # The bias of the keys adds the same number to all scores of a query, which does not change the softmax.
    unchanged = [name for name in initial if torch.equal(initial[name], final[name])]
    assert [name for name in unchanged if not name.endswith("k_proj.bias")] == []
    assert any(metrics[1][f"influence/{k}"] != 0 for k in ("accuracy", "conciseness", "clarity"))
    configs = [json.loads((path / "config.json").read_text()) for path in (folder, output / "model")]
    assert configs[0]["architectures"] == configs[1]["architectures"]


@pytest.mark.parametrize("name", HYBRIDS)
def test_padding_does_not_matter_in_hybrid_models(family, name):
    """Their states must not contain padding: log-probabilities and Gram matrices are those without it."""
    script = importlib.import_module("grpo_dynw")
    model, tokenizer, _ = script.load_model(str(family(name)), "cpu")
    batch = rollouts_of(script, model, tokenizer)
    with torch.no_grad():
        logprobs = script.token_logprobs(model, batch)
        for i, prompt in enumerate(PROMPTS):
            n = int(batch["lengths"][i])
            response = batch["ids"][i, max(map(len, PROMPTS)) :][:n]
            logits = model(torch.tensor([prompt + response.tolist()])).logits[0, len(prompt) - 1 : -1]
            expected = torch.log_softmax(logits, -1)[torch.arange(n), response]
            torch.testing.assert_close(logprobs[i, :n], expected, rtol=0, atol=1e-4)

    reward = torch.rand(3, len(PROMPTS), generator=torch.Generator().manual_seed(0))
    A = script.advantage(reward, batch["lengths"], advantage_args(3))
    probed = script.probed_layers(model, 0.25, 0.75)
    gradients = separate_passes(script, model, probed[0], batch, A)
    micros = torch.tensor([3, 0, 5, 1, 4, 2]).split(4)
    gram, _ = script.gram_matrix(model, probed, batch, micros, A, batch["lengths"].sum())
    expected = (gradients @ gradients.T).double()
    assert (gram - expected).norm() / expected.norm() < 1e-3


def test_the_probe_takes_the_layers_of_the_text_decoder(tokenizer):
    """The tower for images has as many layers, and comes first."""
    script = importlib.import_module("grpo_dynw")
    sizes = {**SIZES, "vocab_size": len(tokenizer)}
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    vision |= dict(image_size=28, patch_size=14)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Gemma3Config(text_config=sizes, vision_config=vision)
    )
    layers, linears = script.probed_layers(model, 0.25, 0.75)
    assert list(layers) == list(model.model.language_model.layers[1:3]) and len(linears) == 14


def test_without_a_chat_template_prompts_are_plain_text(run_script, family):
    _, output = run_script(importlib.import_module("grpo_dynw"), "--steps", "1", "--model", family("GPT-2"))
    prompt = read_lines(output / "completions.jsonl")[0]["prompt"]
    assert prompt.startswith("What is") and prompt.endswith("?\n")


@pytest.mark.parametrize("name", ["Qwen3", "GPT-2"])
def test_gradient_checkpointing_does_not_change_the_results(run_script, family, name):
    """GPT-2 has dropout, which the gradient checkpointing of transformers would switch on."""
    script, results = importlib.import_module("grpo_dynw"), []
    for checkpointing in ([], ["--gradient-checkpointing"]):
        flags = ["--weighting", "gradient", "--model", family(name), *checkpointing]
        metrics, output = run_script(script, *flags, name=f"run{len(checkpointing)}")
        results.append((metrics, weights_of(output)))
    (plain, a), (recomputed, b) = results
    for key in ("loss", "grad_norm", "influence/accuracy", "completions/mean_length"):
        assert recomputed[2][key] == pytest.approx(plain[2][key], rel=1e-5, abs=1e-7)
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-5


def test_gradient_checkpointing_recomputes_the_activations(run_script, family, monkeypatch):
    """The update is one micro-batch: each of the 4 decoder layers runs once, or twice with checkpointing."""
    script, MLP = importlib.import_module("grpo_dynw"), transformers.models.qwen3.modeling_qwen3.Qwen3MLP
    forward, calls, counts = MLP.forward, [], []
    monkeypatch.setattr(MLP, "forward", lambda self, x: (calls.append(x.requires_grad), forward(self, x))[1])
    for checkpointing in ([], ["--gradient-checkpointing"]):
        calls.clear()
        flags = ["--steps", "1", "--micro-batch-size", "16", "--model", family("Qwen3"), *checkpointing]
        run_script(script, *flags, name=f"run{len(checkpointing)}")
        counts.append(sum(calls))
    assert counts == [4, 8]


def test_generation_settings_without_do_sample_are_saved(run_script, family, tmp_path):
    """Older versions of transformers refuse to save a temperature without do_sample, and then no weights."""
    model = shutil.copytree(family("Qwen3"), tmp_path / "initial")
    settings = json.loads((model / "generation_config.json").read_text())
    settings.pop("do_sample", None)
    (model / "generation_config.json").write_text(json.dumps({**settings, "temperature": 0.7, "top_p": 0.8}))
    _, folder = run_script(importlib.import_module("grpo_dynw"), "--model", model, "--steps", "0")
    saved = json.loads((folder / "model/generation_config.json").read_text())
    assert saved["temperature"] == 0.7 and (folder / "model/model.safetensors").exists()
