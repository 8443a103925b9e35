"""Rollouts, log-probabilities, advantages, losses and Gram matrices, checked against independent sources."""

import contextlib
import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_model, shared, spy
from torch import nn
from transformers import GenerationConfig, Qwen3Config
from transformers.pytorch_utils import Conv1D

import rewards

# Inputs and outputs of the functions in the repository of the paper's authors, at commit 238fe65.
ORACLE = json.loads((Path(__file__).parent / "data" / "numeric.json").read_text())
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [4, 5], [30, 31, 32, 33], [3, 4, 5, 6]]


def rollouts(script, kind, tokenizer, G=1, limit=40, ends=(2, 7, *range(40, 80))):
    """
    Returns a random model and its rollout of G sampled responses to each of PROMPTS.

    It has several end tokens, of which the first is also the pad token.
    """
    model = random_model(kind, tokenizer).eval()
    return model, rollouts_of(script, model, tokenizer, G, limit, ends)


def rollouts_of(script, model, tokenizer, G=1, limit=40, ends=(2, 7, *range(40, 80))):
    """Returns the rollout of `model`. See `rollouts`."""
    model.generation_config = GenerationConfig(eos_token_id=list(ends), pad_token_id=ends[0])
    torch.manual_seed(1)
    return script.rollout(model, tokenizer, PROMPTS, G, limit, 4 * G)


def advantage_args(size, baseline="whiten"):
    """Returns the command-line arguments that `advantage` reads, for groups of `size` responses."""
    return SimpleNamespace(num_generations=size, baseline=baseline)


def greedy(model, prompt, count):
    """Returns the greedy continuation of `prompt` by `count` tokens, computed without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


# Rollouts


@shared
@pytest.mark.parametrize("pad", [8, 9, 0])
def test_responses_end_at_the_first_end_token(script, monkeypatch, pad):
    """
    Two responses to each of three problems, four at a time. Tokens after an end token do not count. In the
    first batch, all responses end before the limit, so that its last tokens are pad tokens.
    """
    batches = [[5, 9, 5], [8, 5, 9], [5, 5, 8], [9, 9, 9]], [[5, 5, 5, 5, 5], [5, 5, 5, 5, 9]]
    batches = iter([torch.tensor([row + [pad] * (5 - len(row)) for row in batch]) for batch in batches])
    monkeypatch.setattr(script, "respond", lambda *_: next(batches))
    settings = GenerationConfig(eos_token_id=[9, 8], pad_token_id=pad)
    model = SimpleNamespace(device="cpu", generation_config=settings)
    tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: [row.tolist() for row in rows])
    batch = script.rollout(model, tokenizer, [[1, 2], [3], [4, 5, 6]], 2, 5, 4)
    expected = [[5, 9], [8], [5, 5, 8], [9], [5, 5, 5, 5, 5], [5, 5, 5, 5, 9]]
    assert batch["texts"] == [[5], [], [5, 5], [], [5, 5, 5, 5, 5], [5, 5, 5, 5]]  # without end tokens
    assert batch["lengths"].tolist() == [len(row) for row in expected]
    assert batch["cut_off"].tolist() == [False, False, False, False, True, False]
    assert batch["mask"].tolist() == [[i < len(row) for i in range(5)] for row in expected]
    lengths = [prompt_length + len(row) for prompt_length, row in zip([2, 2, 1, 1, 3, 3], expected)]
    assert batch["attention"].sum(1).tolist() == lengths


@shared
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_masks_include_the_end_token_even_if_it_is_the_pad_token(script, kind, tokenizer):
    model, batch = rollouts(script, kind, tokenizer, G=2)
    P, lengths = max(map(len, PROMPTS)), batch["lengths"].tolist()
    assert len(set(lengths)) > 2  # Otherwise, the test would show little.
    for i, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(2)):
        assert batch["ids"][i, P - len(prompt) : P].tolist() == prompt
        response = batch["ids"][i, P : P + lengths[i]].tolist()
        ends = [token in model.generation_config.eos_token_id for token in response]
        assert not any(ends[:-1])
        assert batch["cut_off"][i] == (not ends[-1]) and (ends[-1] or lengths[i] == 40)
        assert batch["mask"][i].sum() == lengths[i]
        expected = [0] * (P - len(prompt)) + [1] * (len(prompt) + lengths[i])
        assert batch["attention"][i].tolist() == expected + [0] * (batch["ids"].shape[1] - len(expected))
        text = response[:-1] if ends[-1] else response
        assert batch["texts"][i] == tokenizer.decode(text, skip_special_tokens=True)
    responses = [tuple(row) for row in batch["ids"][:, P:].tolist()]
    assert any(one != other for one, other in zip(responses[::2], responses[1::2]))


@shared
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_responses_are_sampled_from_the_distribution_that_is_scored(script, kind, folders):
    """
    The settings that come with the models must be replaced: top-k would leave two tokens of 300, and the
    repetition penalty would make the tokens of the prompt rare.
    """
    model, tokenizer, settings = script.load_model(str(folders[kind]), "cpu")
    assert settings.top_k == 2
    torch.manual_seed(0)
    prompt = list(range(3, 33))
    samples = script.rollout(model, tokenizer, [prompt] * 5, 1000, 1, 1000)["ids"][:, -1]
    counts = torch.bincount(samples, minlength=len(tokenizer)).double()
    with torch.no_grad():
        expected = 5000 * model(torch.tensor([prompt])).logits[0, -1].double().softmax(0)
    common = expected >= 5
    assert common.sum() > 10
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    degrees = common.sum().item()
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


@shared
@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "mistral"])
def test_greedy_responses_are_the_most_probable_tokens(script, kind, tokenizer):
    """Responses of a batch, some of which end early, are those of each prompt alone without a cache."""
    model = random_model(kind, tokenizer).eval()
    with torch.no_grad():
        paths = [greedy(model, prompt, 40) for prompt in PROMPTS[:4]]
    # Choose an end token that half of the responses reach within 16 tokens.
    tokens = sorted({token for path in paths for token in path})
    end = min(tokens, key=lambda token: abs(2 - sum(token in path[:16] for path in paths)))
    model.generation_config = GenerationConfig(eos_token_id=[end], pad_token_id=end, do_sample=True)
    batch = script.rollout(model, tokenizer, PROMPTS[:4], 1, 40, 4, sample=False)
    assert len(batch["lengths"].unique()) > 1
    for path, row, mask in zip(paths, batch["ids"][:, -batch["mask"].shape[1] :], batch["mask"]):
        assert row[mask].tolist() == (path[: path.index(end) + 1] if end in path else path)


@shared
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_log_probabilities_in_a_batch_are_those_of_each_sequence_alone(script, kind, tokenizer):
    """
    Padding, positions and micro-batches do not affect them. Wrong positions would not show in Qwen3, whose
    rotary embeddings are relative, but in GPT-2, whose positions are learned.
    """
    model, batch = rollouts(script, kind, tokenizer)
    model = model.double()
    all_logprobs = script.token_logprobs(model, batch)
    for i, prompt in enumerate(PROMPTS):
        n = int(batch["lengths"][i])
        response = batch["ids"][i, max(map(len, PROMPTS)) :][:n]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response.tolist()])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log(torch.softmax(logits, -1))[torch.arange(n), response]
        torch.testing.assert_close(all_logprobs[i, :n].double(), expected, rtol=0, atol=1e-5)
    for size in (1, 4, 6):
        for rows in torch.tensor([5, 1, 2, 0, 3]).split(size):
            micro = script.micro_batch(batch, rows)
            logprobs, mask = script.token_logprobs(model, micro), micro["mask"]
            expected = all_logprobs[rows][:, : mask.shape[1]]
            torch.testing.assert_close(logprobs[mask], expected[mask], rtol=0, atol=1e-5)


@shared
@pytest.mark.parametrize("rows", [[5, 1, 2, 0], [3], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_a_micro_batch_holds_its_rows_without_the_padding_that_all_of_them_share(script, tokenizer, rows):
    _, batch = rollouts(script, "qwen3", tokenizer)
    micro = script.micro_batch(batch, torch.tensor(rows))
    assert micro["attention"][:, 0].any() and micro["mask"][:, -1].any()
    R = micro["mask"].shape[1]
    for i, row in enumerate(rows):
        length, end = int(batch["lengths"][row]), max(map(len, PROMPTS)) + int(batch["lengths"][row])
        expected = batch["ids"][row, end - length - len(PROMPTS[row]) : end].tolist()
        assert micro["ids"][i][micro["attention"][i].bool()].tolist() == expected
        assert micro["mask"][i].tolist() == [i < length for i in range(R)]
        assert micro["ids"][i, -R:][micro["mask"][i]].tolist() == expected[-length:]


def test_every_epoch_contains_all_problems_in_a_new_order():
    problems = list(range(7))
    sequence = [p for step in range(1, 15) for p in rewards.problems_of_step(problems, step, 3, seed=1)]
    epochs = [sequence[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == problems for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert rewards.problems_of_step(problems, 5, 3, seed=1) == sequence[12:15]
    assert rewards.problems_of_step(problems, 2, 21, seed=1) == sequence[21:42]
    assert rewards.problems_of_step(problems, 1, 7, seed=2) != epochs[0]


def test_a_step_computes_the_order_of_an_epoch_once(monkeypatch):
    """With 100,000 problems, computing it for each of the 64 problems of a step would take seconds."""
    permutations = spy(monkeypatch, torch, "randperm")
    problems = range(100_000)
    # Step 1563 contains problems of the first and of the second epoch.
    for step, epochs in {1: 1, 2: 1, 1562: 1, 1563: 2, 1564: 1}.items():
        permutations.clear()
        chosen = rewards.problems_of_step(problems, step, 64, seed=1)
        assert len(chosen) == 64 and len(permutations) == epochs


# Advantages and losses


# Of a group of one response, the authors return the reward itself. The scripts refuse such groups.
@pytest.mark.parametrize("case", [case for case in ORACLE["advantages"] if case["group_size"] > 1])
def test_advantages_are_those_of_the_authors(script, case):
    names = {"grpo_dynw": "grpo", "rloo_dynw": "rloo", "reinforce_dynw": "reinforce_plus_plus"}
    reward, lengths = torch.tensor(case["rewards"]), torch.tensor(case["lengths"])
    A = script.advantage(reward, lengths, advantage_args(case["group_size"]))
    torch.testing.assert_close(A, torch.tensor(case[names[script.__name__]]), rtol=0, atol=2e-5)


def test_equal_rewards_give_no_advantage(script):
    """The mean of six equal rewards has a rounding error. Dividing it by 1e-6 must not make it noticeable."""
    reward = torch.full((6,), 1 / 3, dtype=torch.float64) + torch.full((6,), 1 / 5, dtype=torch.float64)
    assert script.advantage(reward, torch.arange(1, 7), advantage_args(6)).abs().max() < 1e-6


@pytest.mark.parametrize("baseline", ["whiten", "mean", "none"])
def test_advantages_of_several_objectives_at_once_are_those_of_each_alone(script, baseline):
    generator, args = torch.Generator().manual_seed(0), advantage_args(4, baseline)
    scales = torch.tensor([[1.0], [10.0], [0.1]]).double()
    r_vec = scales * torch.rand(3, 12, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 20, (12,), generator=generator)
    A_k = script.advantage(r_vec, lengths, args)
    assert A_k.shape == (3, 12)
    for A, reward in zip(A_k, r_vec):
        torch.testing.assert_close(A, script.advantage(reward, lengths, args), rtol=1e-12, atol=1e-12)


def test_reinforce_with_the_baselines_mean_and_none():
    """With lengths of 1 and 3 tokens, the mean over tokens of the rewards 4 and 8 is 7."""
    reward, lengths = torch.tensor([4.0, 8.0]), torch.tensor([1, 3])
    advantage = importlib.import_module("reinforce_dynw").advantage
    assert advantage(reward, lengths, advantage_args(2, "mean")).tolist() == [-3, 1]
    assert advantage(reward, lengths, advantage_args(2, "none")).tolist() == [4, 8]


def test_doubling_the_reward_doubles_only_the_advantage_of_rloo(script):
    """GRPO and REINFORCE++ divide by the standard deviation, which is doubled as well."""
    reward = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = script.advantage(reward, torch.arange(1, 13), advantage_args(4))
    A_doubled = script.advantage(2 * reward, torch.arange(1, 13), advantage_args(4))
    expected = 2 * A if script.__name__ == "rloo_dynw" else A
    torch.testing.assert_close(A_doubled, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
@pytest.mark.parametrize("case", ORACLE["kl"])
def test_the_kl_penalty_is_that_of_the_authors(script, case):
    name = {"grpo_dynw": "low_var_kl", "reinforce_dynw": "mse"}[script.__name__]
    penalty = script.kl_penalty(torch.tensor(case["logprob"]), torch.tensor(case["ref_logprob"]))
    torch.testing.assert_close(penalty, torch.tensor(case[name]), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_gradient_of_the_kl_penalty(script):
    """
    Let d = reference - logprob. By logprob, k3 = exp(d) - d - 1 has the derivative 1 - exp(d), and
    k2 = d^2 / 2 has the derivative -d.
    """
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -0.7, -0.5], dtype=torch.float64)
    script.kl_penalty(logprobs, reference).sum().backward()
    d = reference - logprobs
    expected = {"grpo_dynw": 1 - d.exp(), "reinforce_dynw": -d}[script.__name__]
    torch.testing.assert_close(logprobs.grad, expected.detach())


@shared
@pytest.mark.parametrize("case", ORACLE["policy_loss"])
def test_the_policy_loss_is_that_of_the_authors(script, case):
    old, new = torch.tensor(case["old_logprob"]), torch.tensor(case["logprob"])
    mask = torch.arange(old.shape[1]) < torch.tensor(case["lengths"])[:, None]
    advantages = torch.tensor(case["advantage"])
    loss, clipped = script.policy_loss(new, old, advantages, 0.2, 0.2, 3.0)
    assert loss[mask].mean() == pytest.approx(case["loss_clip_02_dual_3"], abs=2e-6)
    assert clipped[mask].float().mean() == pytest.approx(case["clip_fraction"], abs=1e-6)
    loss, _ = script.policy_loss(new, old, advantages, 1e9, 1e9, 1e9)
    assert loss[mask].mean() == pytest.approx(case["loss_clip_off"], abs=2e-6)


@shared
def test_the_gradient_of_the_policy_loss_at_ratio_one_is_minus_the_advantage(script):
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -0.1]], requires_grad=True)
    loss, clipped = script.policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -0.5]), 0.2, 0.2, 3.0)
    loss.sum().backward()
    assert logprobs.grad.tolist() == [[-2.0, -2.0], [0.5, 0.5]] and not clipped.any()


# Gradient-based weighting


class OneLayer(nn.Module):
    """Logits W x of one-hot tokens x, with W = 0. The gradient of log p(y | x) by W is (e_y - 1/V) e_x^T."""

    def __init__(self, V):
        super().__init__()
        self.V, self.layers = V, nn.ModuleList([nn.Linear(V, V, bias=False)])
        nn.init.zeros_(self.layers[0].weight)

    def forward(self, input_ids, logits_to_keep, **_):
        logits = self.layers[0](nn.functional.one_hot(input_ids, self.V).float())
        return type("Output", (), {"logits": logits[:, -logits_to_keep:]})


@shared
def test_the_gram_matrix_has_a_closed_form(script):
    """
    The prompts are the tokens x = 0 and 1, the responses y = 2 and 0. With 2 response tokens in total,
    objective k has the gradient g_k = sum_i A_ki (e_yi - 1/3) e_xi^T / 2. The terms of the two responses have
    different x, so they are orthogonal. Without A_ki, each has the squared norm (2/3) / 4.
    """
    model = OneLayer(3)
    batch = {"ids": torch.tensor([[0, 2], [1, 0]]), "attention": torch.ones(2, 2, dtype=torch.long)}
    batch |= {"mask": torch.ones(2, 1, dtype=torch.bool), "lengths": torch.ones(2, dtype=torch.long)}
    A, micros = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), [torch.tensor([1]), torch.tensor([0])]
    probed = model.layers, list(model.layers)
    gram, old = script.gram_matrix(model, probed, batch, micros, A, torch.tensor(2))
    expected = A @ A.T * (2 / 3) / 4
    torch.testing.assert_close(gram, expected.double(), rtol=1e-6, atol=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert old.tolist() == [[pytest.approx(-math.log(3))]] * 2 and not old.requires_grad


def separate_passes(script, model, layers, batch, A):
    """
    Returns the gradients (K, P) by the P weights of the linear maps in `layers`. A: advantages (K, N).

    Each objective has its own forward and backward pass.
    """
    weights = [m.weight for m in layers.modules() if isinstance(m, (nn.Linear, Conv1D))]
    mask = batch["mask"]
    gradients = []
    for advantages in A:
        logprobs = script.token_logprobs(model, batch)
        loss = -(advantages[:, None] * logprobs * mask).sum() / mask.sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(gradients)


@shared
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("K", [2, 3, 8])
@pytest.mark.parametrize("size", [2, 6])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_the_gram_matrix_equals_that_of_separate_passes(
    script, kind, K, size, dtype, tolerance, tokenizer, monkeypatch
):
    # The scripts convert log-probabilities to float32.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.to(dtype))
    model, batch = rollouts(script, kind, tokenizer)
    reward = torch.rand(K, len(PROMPTS), generator=torch.Generator().manual_seed(K))
    A = script.advantage(reward, batch["lengths"], advantage_args(3)).double()
    layers = (model.model.layers if kind == "qwen3" else model.transformer.h)[1:3]
    expected = separate_passes(script, model.double(), layers, batch, A)
    expected = expected @ expected.T
    model = model.to(dtype)
    micros = torch.tensor([3, 0, 5, 1, 4, 2]).split(size)
    probed = script.probed_layers(model, 0.25, 0.75)
    gram, old = script.gram_matrix(model, probed, batch, micros, A.to(dtype), batch["lengths"].sum())
    assert (gram - expected).norm() / expected.norm() <= tolerance
    with torch.no_grad():
        all_logprobs = script.token_logprobs(model, batch)
    torch.testing.assert_close(old[batch["mask"]], all_logprobs[batch["mask"]])
    assert not old.requires_grad and all(p.requires_grad and p.grad is None for p in model.parameters())


def model_of(layers):
    """Returns a model with these decoder layers."""
    model = nn.Module()
    model.config, model.layers = Qwen3Config(num_hidden_layers=len(layers)), nn.ModuleList(layers)
    model.get_decoder = lambda: model
    return model


@shared
@pytest.mark.parametrize(
    "count, expected",
    [(1, [0]), (2, [0]), (3, [0, 1]), (4, [1, 2]), (6, [1, 2, 3]), (36, list(range(9, 27)))],
)
def test_the_middle_half_of_the_decoder_layers_is_probed(script, count, expected):
    model = model_of([nn.Linear(1, 1, bias=False) for _ in range(count)])
    layers, linears = script.probed_layers(model, 0.25, 0.75)
    assert [list(model.layers).index(layer) for layer in layers] == expected
    assert [list(model.layers).index(linear) for linear in linears] == expected


@shared
def test_models_with_most_weights_outside_of_linear_maps_are_refused(script, capsys):
    model = model_of([nn.ModuleList([nn.Linear(4, 4), nn.Embedding(100, 4)])])
    with pytest.raises(SystemExit):
        script.probed_layers(model, 0, 1)
    assert "linear maps" in capsys.readouterr().err


# Large vocabularies and other devices


class FixedLogits(nn.Module):
    """A model with the same logits for every input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, **_):
        return SimpleNamespace(logits=self.logits)


@shared
def test_log_probabilities_over_a_large_vocabulary_are_computed_in_chunks_and_exact(script, monkeypatch):
    """The logits are in bfloat16, as under autocast. A log-softmax in bfloat16 would have an error of 1%."""
    V, R = 151936, 600
    calls = spy(monkeypatch, script, "chosen_logprobs")
    torch.manual_seed(0)
    model = FixedLogits(torch.randn(1, R + 1, V).bfloat16())
    ids = torch.randint(V, (1, R + 3))
    batch = {"ids": ids, "attention": torch.ones_like(ids), "mask": torch.ones(1, R, dtype=torch.bool)}
    logprobs = script.token_logprobs(model, batch)
    chunks = [logits.numel() for (logits, _), _ in calls]
    assert len(chunks) == 2 and max(chunks) <= 2**26 and sum(chunks) == (R + 1) * V
    for i in (0, 440, 441, R - 1):  # The first chunk ends at 440.
        expected = model.logits[0, i].double().log_softmax(0)[ids[0, 3 + i]].item()
        assert logprobs[0, i].item() == pytest.approx(expected, abs=2e-5)
    logprobs[0, 441].backward()
    gradient = model.logits.grad[0]
    softmax = model.logits[0, 441].detach().double().softmax(0)
    expected = nn.functional.one_hot(ids[0, 3 + 441], V) - softmax
    torch.testing.assert_close(gradient[441].double(), expected, rtol=1e-2, atol=1e-9)
    assert not gradient[:441].any() and not gradient[442:].any()


def test_advantages_loss_and_gram_matrix_stay_on_their_device(script, tokenizer, monkeypatch):
    """PyTorch's meta device computes only shapes, and refuses tensors of other devices."""
    # The meta device does not support autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    meta = torch.device("meta")
    model = random_model("qwen3", tokenizer).to(meta)
    model.set_attn_implementation("eager")  # The other implementations read the values of the mask.
    # micro_batch reads lengths, but tensors on the meta device have no values.
    monkeypatch.setattr(script, "micro_batch", lambda batch, rows: {k: x[rows] for k, x in batch.items()})
    mask = torch.ones(6, 12, dtype=torch.bool, device=meta)
    batch = {"ids": torch.zeros(6, 20, dtype=torch.long, device=meta), "mask": mask}
    batch["attention"] = batch["ids"]
    micros = torch.arange(6, device=meta).split(3)
    lengths, r_vec = mask.sum(1), torch.rand(3, 6, dtype=torch.float64, device=meta)
    A = script.advantage(r_vec, lengths, advantage_args(3)).float()
    probed = script.probed_layers(model, 0.25, 0.75)
    gram, old = script.gram_matrix(model, probed, batch, micros, A, lengths.sum())
    logprobs = script.token_logprobs(model, script.micro_batch(batch, micros[0]))
    loss, is_clipped = script.policy_loss(logprobs, old[micros[0]], A[0][micros[0]], 0.2, 0.2, 3.0)
    if hasattr(script, "kl_penalty"):
        loss = loss + script.kl_penalty(logprobs, logprobs.detach())
    (loss * mask[:3]).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert all(x.device == meta for x in (gram, old, loss, is_clipped, *(p.grad for p in model.parameters())))
    with pytest.raises(RuntimeError):
        script.policy_loss(logprobs, logprobs.detach(), torch.ones(3), 0.2, 0.2, 3.0).sum()
