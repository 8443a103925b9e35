"""
The decoding loop of the rollouts, on random models of many families.

Greedy responses are compared with those of `generate`, sampled ones with the model's distribution. A tape
takes the place of a CUDA graph: it records the operations of a decoding step and repeats them on the same
tensors, without the Python code around them. What depends on Python code goes wrong on a tape, too.
"""

import math
from functools import partial

import pytest
import torch
import transformers
from conftest import shared
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=256)
HEADS = {**SIZES, "head_dim": 8}
WINDOW = {"sliding_window": 8}
HALF = {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}
LINEAR = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8
)
LINEAR |= dict(layer_types=["linear_attention"] * 3 + ["full_attention"])
MAMBA = dict(mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1)
MODELS = {
    "Qwen3": transformers.Qwen3Config(**HEADS),
    "Qwen2.5": transformers.Qwen2Config(**SIZES),
    "Qwen2.5, window": transformers.Qwen2Config(**SIZES, **HALF),
    "Llama": transformers.LlamaConfig(**SIZES),
    "DeepSeek-LLM": transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "Mistral": transformers.MistralConfig(**SIZES, sliding_window=None),
    "Mistral, window": transformers.MistralConfig(**SIZES, **WINDOW),
    "Gemma": transformers.GemmaConfig(**HEADS),
    "Gemma 2, window": transformers.Gemma2Config(**HEADS, **WINDOW),
    "Gemma 3, window": transformers.Gemma3TextConfig(**HEADS, **WINDOW),
    "GPT-2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=256),
    "Qwen3.5, linear attention": transformers.Qwen3_5TextConfig(**HEADS, **LINEAR),
    "LFM2, convolutions": transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2),
    "Falcon-H1, state space": transformers.FalconH1Config(**HEADS, **MAMBA),
}
PROMPT_LENGTHS = [1, 3, 5, 8, 11, 12]


def make_model(name):
    """Returns a random model of a family. Its weights are so large that the next token is clear."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()
    for weights in model.parameters():
        weights.data.mul_(4 if weights.ndim > 1 else 1)
    model.generation_config = GenerationConfig(eos_token_id=[1], pad_token_id=1)
    return model


def make_prompts():
    """Returns ids and attention (6, 12) of prompts of PROMPT_LENGTHS, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 64, (len(PROMPT_LENGTHS), 12), generator=generator)
    attention = torch.stack([torch.arange(12) >= 12 - length for length in PROMPT_LENGTHS]).long()
    return ids * attention + (1 - attention), attention


def up_to_end(responses, end_ids):
    """Returns the responses as lists of tokens, up to and including the first end token."""
    rows = []
    for row in responses.tolist():
        ends = [i for i, token in enumerate(row) if token in end_ids]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


def generated(model, ids, attention, limit):
    """Returns the greedy responses of transformers' `generate`, up to their end tokens."""
    output = model.generate(ids, attention_mask=attention, max_new_tokens=limit, do_sample=False)
    return up_to_end(output[:, ids.shape[1] :], model.generation_config.eos_token_id)


def choose_end(paths):
    """Returns a token at which the responses of `paths` end at different times, some of them early."""
    tokens = {token for path in paths for token in path}
    places = {token: [path.index(token) // 16 if token in path else 9 for path in paths] for token in tokens}
    return max(places, key=lambda token: (len(set(places[token])), -sum(places[token]), token))


class Tape(TorchDispatchMode):
    """Records operations. Tensors that they change in place are restored: a capture runs nothing."""

    def __init__(self):
        super().__init__()
        self.calls, self.originals = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for argument, tensor in zip(function._schema.arguments, args):
            if argument.alias_info and argument.alias_info.is_write and id(tensor) not in self.originals:
                self.originals[id(tensor)] = tensor, tensor.clone()
        output = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, output))
        return output

    def restore(self):
        for tensor, original in reversed(self.originals.values()):
            tensor.copy_(original)

    def replay(self):
        for function, args, kwargs, outputs in self.calls:
            if function.is_view:
                continue
            results = tree_leaves(function(*args, **kwargs))
            for tensor, result in zip(tree_leaves(outputs), results):
                if torch.is_tensor(tensor) and tensor.data_ptr() != result.data_ptr():
                    tensor.copy_(result)


def tape_capture(captures, step):
    """Takes the place of `capture` in the scripts. Counts the captures."""
    tape = Tape()
    with tape:
        step()
    tape.restore()
    captures.append(tape)
    return tape.replay


class WaitsForHost(TorchDispatchMode):
    """Records the operations that bring a value to the host. A CUDA graph cannot contain them."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.names += [name] if name in self.NAMES else []
        return function(*args, **(kwargs or {}))


@shared
@pytest.mark.parametrize("name", MODELS)
def test_greedy_responses_are_those_of_generate(script, monkeypatch, name):
    """Eagerly and on the tape, for responses that end at different times, so that rows leave the batch."""
    model, (ids, attention), captures = make_model(name), make_prompts(), []
    end = choose_end(generated(model, ids, attention, 40))
    model.generation_config = GenerationConfig(eos_token_id=[end, 1], pad_token_id=end)
    expected = generated(model, ids, attention, 40)
    assert len({len(row) for row in expected}) > 1
    assert up_to_end(script.respond(model, ids, attention, 40, False), [end, 1]) == expected
    monkeypatch.setattr(script, "capture", partial(tape_capture, captures))
    assert up_to_end(script.respond(model, ids, attention, 40, False, graph=True), [end, 1]) == expected
    assert captures


@shared
@pytest.mark.parametrize("limit", [1, 2, 15, 16, 17, 32, 33])
def test_responses_have_at_most_the_limit(script, monkeypatch, limit):
    model, (ids, attention), captures = make_model("Qwen3"), make_prompts(), []
    expected = generated(model, ids, attention, limit)
    monkeypatch.setattr(script, "capture", partial(tape_capture, captures))
    for graph in (False, True):
        responses = script.respond(model, ids, attention, limit, False, graph)
        assert responses.shape == (6, limit) and up_to_end(responses, [1]) == expected


class Countdown(nn.Module):
    """A model whose next token is the last token minus 1. `sizes` has the batch size of each call."""

    def __init__(self):
        super().__init__()
        self.config, self.sizes = MODELS["Qwen3"], []
        self.generation_config = GenerationConfig(eos_token_id=[0], pad_token_id=0)

    def forward(self, input_ids, attention_mask, position_ids, **_):
        self.sizes.append(len(input_ids))
        # Positions count the tokens of each row that are not padding.
        seen = attention_mask.cumsum(1)[:, -1:] if input_ids.shape[1] > 1 else position_ids + 1
        assert (position_ids[:, -1:] == seen - 1).all()
        logits = nn.functional.one_hot((input_ids - 1) % 64, 64).float()
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


@shared
@pytest.mark.parametrize(
    "lengths, sizes, num_captures",
    [
        ([3, 40, 20, 5], [4] * 16 + [2] * 16 + [1] * 16, 3),  # Half of the rows leave, twice.
        ([3, 40, 40, 40, 40], [5] * 48, 1),  # One of five rows is too few to leave.
        ([3, 40, 40, 40], [4] * 16 + [3] * 32, 1),  # With a graph, one of four is too few, too.
        ([3, 5, 15, 16], [4] * 16, 1),  # All have ended after 16 tokens.
        ([3, 60, 3, 60], [4] * 16 + [2] * 34, 2),  # The limit is 50 tokens, and the last token needs no step.
    ],
)
def test_finished_rows_leave_the_batch(script, monkeypatch, lengths, sizes, num_captures):
    """A prompt that ends with token n has a response of n tokens. The last of them is the end token, 0."""
    model, attention, captures = Countdown(), torch.tensor([[0, 1, 1]] * len(lengths)), []
    ids = torch.tensor([[0, 9, length] for length in lengths])
    expected = [list(range(length - 1, -1, -1))[:50] for length in lengths]
    assert up_to_end(script.respond(model, ids, attention, 50, False), [0]) == expected
    assert model.sizes == sizes
    # The graph is captured once for each size of the batch.
    monkeypatch.setattr(script, "capture", partial(tape_capture, captures))
    assert up_to_end(script.respond(model, ids, attention, 50, False, graph=True), [0]) == expected
    assert len(captures) == num_captures


def chi_square(counts, expected):
    """Returns the statistic, its degrees of freedom and its standard deviation, over the common tokens."""
    common = expected >= 5
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    return statistic, common.sum().item()


@shared
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", ["Qwen3", "Mistral, window", "Qwen3.5, linear attention"])
def test_sampled_tokens_follow_the_distribution_of_the_model(script, monkeypatch, name, graph):
    """
    Compares the tokens after each common prefix with the probabilities of a call without cache and padding.

    The first token comes from the prompt's call, the second from an eager step, and the others from the tape.
    """
    model = make_model(name)
    for weights in model.parameters():
        weights.data.mul_(0.6 if weights.ndim > 1 else 1)
    model.generation_config = GenerationConfig(eos_token_id=[99], pad_token_id=0)
    monkeypatch.setattr(script, "capture", partial(tape_capture, []))
    (ids, attention), n = make_prompts(), 1500
    ids, attention = ids[2:3].expand(n, -1), attention[2:3].expand(n, -1)
    torch.manual_seed(3)
    responses = script.respond(model, ids, attention, 4, True, graph)
    total, degrees = 0.0, 0
    for t in range(4):
        # The prefixes start with the last token of the prompt, which is the same in all of them.
        prefixes = torch.cat([ids[:, -1:], responses[:, :t]], 1)
        prefixes, groups, sizes = prefixes.unique(dim=0, return_inverse=True, return_counts=True)
        for group in sizes.argsort(descending=True)[:10].tolist():
            sequence = torch.cat([ids[0, attention[0].bool()], prefixes[group, 1:]])
            with torch.no_grad():
                probabilities = model(sequence[None]).logits[0, -1].double().softmax(0)
            counts = torch.bincount(responses[groups == group, t], minlength=64)
            statistic, cells = chi_square(counts, probabilities * sizes[group])
            total, degrees = total + statistic, degrees + cells
    assert degrees > 40
    assert degrees - 5 * math.sqrt(2 * degrees) < total < degrees + 5 * math.sqrt(2 * degrees)


@shared
def test_a_draw_inverts_the_cumulative_distribution(script, monkeypatch):
    """Tokens with probability 0 are never drawn, not even by the smallest and the largest random number."""
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, math.log(3), -math.inf]])
    for number, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-53, 3)]:
        monkeypatch.setattr(torch, "rand_like", lambda x, number=number: torch.full_like(x, number))
        assert script.draw(logits).tolist() == [[token]]


@shared
@pytest.mark.parametrize("name", MODELS)
def test_a_decoding_step_does_not_wait_for_the_host(script, monkeypatch, name):
    model, (ids, attention), mode, steps = make_model(name), make_prompts(), WaitsForHost(), []

    def watch(step):
        def watched():
            steps.append(step)
            with mode:
                step()

        return watched

    monkeypatch.setattr(script, "capture", watch)
    script.respond(model, ids, attention, 6, True, graph=True)
    assert mode.names == [] and len(steps) == 4
