"""Both ways to generate give the responses that the model defines, greedy and sampled, in many families."""

import pytest
import torch
import transformers
from conftest import shared
from test_algorithm import arguments
from torch import nn

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
SIZES |= dict(max_position_embeddings=256, tie_word_embeddings=False)
PYTHIA = transformers.GPTNeoXConfig(**SIZES)  # Attention and MLP are parallel.
SIZES |= dict(num_key_value_heads=2)
HEADS, WINDOW = {**SIZES, "head_dim": 8}, {"sliding_window": 8}
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8)
LINEAR |= dict(linear_value_head_dim=8, layer_types=["linear_attention"] * 3 + ["full_attention"])
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
MAMBA = dict(mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1)
MODELS = {
    "Qwen3": transformers.Qwen3Config(**HEADS),
    "Qwen2.5": transformers.Qwen2Config(**SIZES),
    "Llama": transformers.LlamaConfig(**SIZES),
    "DeepSeek-LLM": transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "Pythia": PYTHIA,
    "Mistral, window": transformers.MistralConfig(**SIZES, **WINDOW),
    "Gemma": transformers.GemmaConfig(**HEADS),
    "Gemma 2, window": transformers.Gemma2Config(**HEADS, **WINDOW),
    "Gemma 3, window": transformers.Gemma3TextConfig(**HEADS, **WINDOW),
    "GPT-2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=256),
    "Qwen3.5, linear attention": transformers.Qwen3_5TextConfig(**HEADS, **LINEAR),
    "LFM2, convolutions": transformers.Lfm2Config(**SIZES, **CONVOLUTIONS),
    "Falcon-H1, state space": transformers.FalconH1Config(**HEADS, **MAMBA),
}
PROMPT_LENGTHS = [1, 3, 5, 8, 11, 12]


def make_model(name, scale=8):
    """Returns a random model of a family. A large scale of its weights makes its responses varied."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()
    for weights in model.parameters():
        weights.data.mul_(scale if weights.ndim > 1 else 1)
    return model


def make_prompts():
    """Returns ids and attention (6, 12) of prompts of PROMPT_LENGTHS, padded on the left."""
    ids = torch.randint(2, 64, (6, 12), generator=torch.Generator().manual_seed(1))
    attention = torch.stack([torch.arange(12) >= 12 - length for length in PROMPT_LENGTHS]).long()
    return ids * attention, attention


def up_to_end(responses, ends):
    """Returns the responses (lists of tokens) up to and including the first end token."""
    lengths = [min(row.index(end) + 1 if end in row else len(row) for end in ends) for row in responses]
    return [row[:length] for row, length in zip(responses, lengths)]


def generated(model, ids, attention, limit):
    """Returns the greedy responses of `generate` with a cache that grows: lists of tokens."""
    output = model.generate(ids, attention_mask=attention, max_new_tokens=limit, do_sample=False)
    return output[:, ids.shape[1] :].tolist()


@shared
@pytest.mark.parametrize("name", MODELS)
def test_greedy_responses_are_those_of_generate(script, name):
    """They end at different times, so that rows leave. A call without cache and padding confirms them."""
    model, (ids, attention) = make_model(name), make_prompts()
    model.generation_config = transformers.GenerationConfig()
    paths = generated(model, ids, attention, 40)
    for prompt, length, path in zip(ids, PROMPT_LENGTHS, paths):
        sequence = torch.cat([prompt[12 - length :], torch.tensor(path)])
        assert model(sequence[None]).logits[0, length - 1 : -1].argmax(-1).tolist() == path

    ends = [paths[0][23], paths[1][3]]
    expected = up_to_end(paths, ends)
    assert len({(len(row) - 1) // 16 for row in expected}) > 1
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    for compiled in (False, True):
        output = script.respond(model, ids, attention, arguments(compile=compiled), False)
        assert torch.equal(output[:, :12], ids)
        assert up_to_end(output[:, 12:].tolist(), ends) == expected


@shared
@pytest.mark.parametrize("limit", [1, 15, 16, 17, 33])
def test_responses_have_at_most_the_limit(script, limit):
    model, (ids, attention) = make_model("Qwen3"), make_prompts()
    model.generation_config = transformers.GenerationConfig(eos_token_id=[99], pad_token_id=0)
    expected = generated(model, ids, attention, limit)
    for compiled in (False, True):
        args = arguments(max_new_tokens=limit, compile=compiled)
        assert script.respond(model, ids, attention, args, False)[:, 12:].tolist() == expected


class Countdown(nn.Module):
    """
    A model whose next token is the last token minus 1. `sizes` has the batch size of each call. If a prompt
    ends with the token n, the first n % 3 of its three tokens must be padding.
    """

    def __init__(self):
        super().__init__()
        self.config, self.sizes = MODELS["Qwen3"], []
        self.generation_config = transformers.GenerationConfig(eos_token_id=[0], pad_token_id=0)

    def forward(self, input_ids, attention_mask, position_ids, **_):
        self.sizes.append(len(input_ids))
        T = attention_mask.shape[1]
        padding = (input_ids[:, -1:] + T - 3) % 64 % 3
        assert torch.equal(attention_mask, (torch.arange(T) >= padding).long())
        positions = (torch.arange(T) - padding).clamp(min=0)
        assert torch.equal(position_ids, positions[:, T - input_ids.shape[1] :])
        logits = nn.functional.one_hot((input_ids - 1) % 64, 64).float()
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


@shared
@pytest.mark.parametrize(
    "lengths, sizes",
    [
        ([3, 40, 20, 5], [4] * 16 + [2] * 16 + [1] * 16),
        ([41, 3, 40, 40, 42], [5] * 16 + [4] * 32),
        ([3, 5, 15, 16], [4] * 16),  # All have ended after 16 tokens.
        ([17, 60, 3, 61], [4] * 16 + [3] * 16 + [2] * 18),  # The limit is 50 tokens.
    ],
)
def test_finished_rows_leave_the_batch(script, lengths, sizes):
    """A prompt that ends with token n has a response of n tokens. The last of them is the end token, 0."""
    model, n = Countdown(), torch.tensor(lengths)[:, None]
    attention = (torch.arange(3) >= n % 3).long()
    ids = nn.functional.pad(n, (2, 0))  # An end token in a prompt, as in a chat, ends no response.
    responses = script.respond(model, ids, attention, arguments(max_new_tokens=50), False)[:, 3:]
    assert up_to_end(responses.tolist(), [0]) == [list(range(length - 1, -1, -1))[:50] for length in lengths]
    assert model.sizes == sizes


@shared
def test_tokens_are_drawn_with_the_probabilities_of_their_logits(script):
    """The second of five tokens is impossible. The frequencies are within five standard deviations."""
    logits, n = torch.tensor([2.0, -torch.inf, 0.0, 1.0, -3.0]), 300_000
    torch.manual_seed(0)
    frequencies = script.draw(logits.expand(n, -1)).bincount(minlength=5) / n
    p = logits.double().exp() / logits.double().exp().sum()
    assert ((frequencies - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


@shared
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["Qwen3", "GPT-2", "Mistral, window"])
def test_sampled_tokens_follow_the_distribution_that_is_scored(script, tokenizer, tmp_path, name, compiled):
    """
    Neither the model's settings nor the library's top_k of 50 may change the distribution.

    Let F be the total probability of the tokens that are less probable than the sampled one, which has the
    probability p. Then F + p rand() is uniform in [0, 1], which a chi-square test with 20 bins checks.
    """
    model, n = make_model(name, scale=6), 1500
    model.generation_config.update(do_sample=True, temperature=0.3, top_k=2, repetition_penalty=1.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = script.load_model(arguments(model=str(tmp_path)))
    model.generation_config.eos_token_id = [99]  # No response ends.

    ids, attention = (x[2].expand(n, -1) for x in make_prompts())
    torch.manual_seed(3)
    args = arguments(max_new_tokens=4, compile=compiled)
    sequences = script.respond(model, ids, attention, args, True)[:, 12 - PROMPT_LENGTHS[2] :]
    with torch.no_grad():
        probabilities = model(sequences).logits[:, -5:-1].double().softmax(-1)  # (n, 4, V)
    p = probabilities.gather(-1, sequences[:, -4:, None])  # (n, 4, 1)
    F = (probabilities * (probabilities < p)).sum(-1)
    points = F + torch.rand(n, 4) * p.squeeze(-1)
    counts = torch.stack([torch.histc(column, 20, 0, 1) for column in points.T])  # (4, 20)
    statistic = ((counts - n / 20).square() / (n / 20)).sum().item()
    assert 30 < statistic < 140  # The mean is 76 and the standard deviation 12, as 4 x 19 counts are free.
