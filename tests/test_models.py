"""Each family of models is trained rightly: ratio 1, every parameter changes, padding does not matter."""

import copy
import functools
import json

import pytest
import torch
import transformers
from conftest import read_lines, spy, weights_of
from safetensors.torch import load_file
from test_algorithm import arguments, logprobs_alone, rollouts, separate_passes
from test_rollouts import HEADS, MODELS

import grpo_dynw as script

UNLIKE_QWEN = ["Pythia", "Qwen3.5, linear attention", "LFM2, convolutions", "Falcon-H1, state space"]


@pytest.fixture(scope="module")
def family(tokenizer, tmp_path_factory):
    """family(name): the folder of a random model. GPT-2 has no chat template, like other base models."""

    @functools.cache
    def make(name):
        torch.manual_seed(0)
        config, folder = copy.deepcopy(MODELS[name]), tmp_path_factory.mktemp("model")
        config.update({"vocab_size": len(tokenizer), "initializer_range": 0.2, "bos_token_id": None})
        config.update({"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if name == "GPT-2":
            (folder / "chat_template.jinja").unlink()
        return folder

    return make


# The scripts share the code that depends on the family, so one of them is enough.
@pytest.mark.parametrize("name", MODELS)
def test_one_update_changes_every_parameter(run_script, monkeypatch, family, name):
    """Without weight decay, which changes them, too."""
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, weight_decay=0.0))
    losses, folder = spy(monkeypatch, script, "policy_loss"), family(name)
    flags = ["--steps", "1", "--weighting", "gradient", "--model", folder]
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


@pytest.mark.parametrize("name", UNLIKE_QWEN)
def test_padding_and_parallel_branches_do_not_matter(family, tokenizer, name):
    """
    The states of hybrid models must not contain padding. The probe must reach all linear maps, also where
    the first of them is parallel to others. test_algorithm.py has the test for Qwen3 and GPT-2.
    """
    model, _ = script.load_model(arguments(model=str(family(name))))
    batch = rollouts(script, model, tokenizer)
    with torch.no_grad():
        logprobs = script.token_logprobs(model, batch)
    for values, mask, expected in zip(logprobs, batch["mask"], logprobs_alone(model, batch)):
        torch.testing.assert_close(values[mask], expected, rtol=0, atol=1e-4)

    reward = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    A = script.advantage(reward, batch["lengths"], arguments(num_generations=3))
    expected = separate_passes(script, script.decoder_layers(model)[1:3], model, batch, A)
    micros = [script.micro_batch(batch, rows) for rows in torch.tensor([3, 0, 5, 1, 4, 2]).split(4)]
    gram = script.gram_matrix(model, micros, A, batch["lengths"].sum(), [0.25, 0.75])
    assert (gram - expected).norm() / expected.norm() < 1e-3


def test_the_decoder_layers_are_those_of_the_text_decoder():
    """The tower for images has as many layers, and comes first."""
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
    vision |= dict(image_size=28, patch_size=14)
    config = transformers.Gemma3Config(text_config=HEADS, vision_config=vision)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert script.decoder_layers(model) is model.model.language_model.layers


@pytest.mark.parametrize("ends, expected", [(None, [2]), (7, [2, 7]), ([9, 7], [2, 7, 9])])
def test_responses_end_with_the_end_tokens_of_model_and_tokenizer(
    family, tmp_path, tokenizer, ends, expected
):
    """Settings that would change the sampled distribution are left out, also in the saved model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(family("Qwen3"))
    model.generation_config.update(eos_token_id=ends, do_sample=True, temperature=0.5, top_k=5)
    model.save_pretrained(tmp_path / "initial")
    tokenizer.save_pretrained(tmp_path / "initial")
    model, tokenizer = script.load_model(arguments(model=str(tmp_path / "initial")))
    script.save_model(model, tokenizer, tmp_path / "saved")
    settings = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert settings["eos_token_id"] == model.generation_config.eos_token_id == expected
    assert not {"do_sample", "temperature", "top_k"} & settings.keys()


def test_without_a_chat_template_prompts_are_plain_text(run_script, family):
    _, output = run_script(script, "--steps", "1", "--model", family("GPT-2"))
    prompt = read_lines(output / "completions.jsonl")[0]["prompt"]
    assert prompt.startswith("What is") and prompt.endswith("?\n")


@pytest.mark.parametrize("name", ["Qwen3", "GPT-2"])
def test_gradient_checkpointing_does_not_change_the_results(run_script, family, name):
    """GPT-2 has dropout, which the gradient checkpointing of transformers would switch on."""
    results = []
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
    MLP = transformers.models.qwen3.modeling_qwen3.Qwen3MLP
    forward, calls, counts = MLP.forward, [], []
    monkeypatch.setattr(MLP, "forward", lambda self, x: (calls.append(x.requires_grad), forward(self, x))[1])
    for checkpointing in ([], ["--gradient-checkpointing"]):
        calls.clear()
        flags = ["--steps", "1", "--micro-batch-size", "16", "--model", family("Qwen3"), *checkpointing]
        run_script(script, *flags, name=f"run{len(checkpointing)}")
        counts.append(sum(calls))
    assert counts == [4, 8]
