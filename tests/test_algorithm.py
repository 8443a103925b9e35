"""Rollouts, log-probabilities, advantages, losses and Gram matrices agree with independent sources."""

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
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

import rewards

# Inputs and outputs of the functions in the repository of the paper's authors, at commit 238fe65.
ORACLE = json.loads((Path(__file__).parent / "data" / "numeric.json").read_text())
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [4, 5], [30, 31, 32, 33], [3, 4, 5, 6]]


def arguments(**changes):
    """Returns the command-line arguments that the functions of the scripts read."""
    values = dict(model="", device="cpu", gradient_checkpointing=False, compile=False, rollout_batch_size=4)
    values |= dict(max_new_tokens=40, max_prompt_tokens=9, num_generations=1, baseline="whiten")
    return SimpleNamespace(**values | dict(clip=0.2, clip_dual=3.0) | changes)


def rollouts(script, model, tokenizer, G=1, **changes):
    """
    Returns a batch of G sampled responses of `model` to each of PROMPTS. There are several end tokens. The
    first is also the pad token.
    """
    ends = [2, 7, *range(40, 80)]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=2)
    problems = [{"prompt_ids": prompt} for prompt in PROMPTS for _ in range(G)]
    torch.manual_seed(1)
    return script.rollout(model, tokenizer, problems, arguments(**changes))


@pytest.fixture(params=["qwen3", "gpt2"])
def model(request, tokenizer):
    """A random Qwen3 or GPT-2."""
    return random_model(request.param, tokenizer).eval()


# Rollouts


@shared
@pytest.mark.parametrize("pad", [8, 9, 0])
def test_responses_end_at_the_first_end_token(script, monkeypatch, pad):
    """
    Four responses at a time. Tokens after an end token do not count. The first four end before the limit, and
    `generate` may leave out the columns that they do not need.
    """
    batches = iter([[[5, 9, 5], [8, pad, pad], [5, 5, 8], [9, 9, 9]], [[5, 5, 5, 5, 5], [5, 5, 5, 5, 9]]])

    def respond(model, ids, *_):
        return torch.cat([ids, torch.tensor(next(batches))], 1)

    monkeypatch.setattr(script, "respond", respond)
    settings = GenerationConfig(eos_token_id=[9, 8], pad_token_id=pad)
    model = SimpleNamespace(device="cpu", generation_config=settings)
    tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: [row.tolist() for row in rows])
    problems = [{"prompt_ids": ids} for ids in ([1, 2], [1, 2], [3], [3], [4, 5, 6], [4, 5, 6])]
    batch = script.rollout(model, tokenizer, problems, arguments(max_new_tokens=5))
    expected = [[5, 9], [8], [5, 5, 8], [9], [5, 5, 5, 5, 5], [5, 5, 5, 5, 9]]
    assert batch["texts"] == [[5], [], [5, 5], [], [5, 5, 5, 5, 5], [5, 5, 5, 5]]  # without end tokens
    assert batch["lengths"].tolist() == [len(row) for row in expected]
    assert batch["cut_off"].tolist() == [False, False, False, False, True, False]
    assert batch["mask"].tolist() == [[i < len(row) for i in range(5)] for row in expected]
    lengths = [P + len(row) for P, row in zip([2, 2, 1, 1, 3, 3], expected)]
    assert batch["attention"].sum(1).tolist() == lengths


@shared
@pytest.mark.parametrize("compiled", [False, True])
def test_masks_include_the_end_token_even_if_it_is_the_pad_token(script, model, tokenizer, compiled):
    batch = rollouts(script, model, tokenizer, G=2, compile=compiled)
    lengths, P = batch["lengths"].tolist(), batch["ids"].shape[1] - batch["mask"].shape[1]
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


def logprobs_alone(model, batch):
    """Returns the log-probabilities of each response, computed without padding: a list of tensors."""
    P, results = batch["ids"].shape[1] - batch["mask"].shape[1], []
    for prompt, ids, n in zip(PROMPTS, batch["ids"], batch["lengths"]):
        sequence = ids[P - len(prompt) : P + n]
        with torch.no_grad():
            logits = model(sequence[None]).logits[0, len(prompt) - 1 : -1]
        results.append(torch.log(torch.softmax(logits, -1))[torch.arange(n), sequence[len(prompt) :]])
    return results


@shared
def test_log_probabilities_in_a_batch_are_those_of_each_sequence_alone(script, model, tokenizer):
    """
    Padding, positions and micro-batches do not affect them. Wrong positions would not show in Qwen3, whose
    rotary embeddings are relative, but in GPT-2, whose positions are learned.
    """
    batch, model = rollouts(script, model, tokenizer), model.double()
    expected = logprobs_alone(model, batch)
    for size in (1, 4, 6):
        for rows in torch.tensor([5, 1, 2, 0, 3, 4]).split(size):
            micro = script.micro_batch(batch, rows)
            logprobs = script.token_logprobs(model, micro).double()
            assert torch.equal(micro["rows"], rows)
            for row, values, mask in zip(rows, logprobs, micro["mask"]):
                torch.testing.assert_close(values[mask], expected[row], rtol=0, atol=1e-5)


@shared
@pytest.mark.parametrize("rows", [[5, 1, 2, 0], [3], [1, 4], [0, 1, 2, 3, 4, 5]])
def test_a_micro_batch_holds_its_rows_without_the_padding_that_all_of_them_share(script, tokenizer, rows):
    batch = rollouts(script, random_model("qwen3", tokenizer).eval(), tokenizer)
    micro = script.micro_batch(batch, torch.tensor(rows))
    assert micro["attention"][:, 0].any() and micro["mask"][:, -1].any()
    R = micro["mask"].shape[1]
    for i, row in enumerate(rows):
        length, end = int(batch["lengths"][row]), max(map(len, PROMPTS)) + int(batch["lengths"][row])
        expected = batch["ids"][row, end - length - len(PROMPTS[row]) : end].tolist()
        assert micro["ids"][i][micro["attention"][i].bool()].tolist() == expected
        assert micro["mask"][i].tolist() == [i < length for i in range(R)]
        assert micro["ids"][i, -R:][micro["mask"][i]].tolist() == expected[-length:]


@shared
def test_each_update_has_its_share_of_the_rows_in_micro_batches_of_similar_length(script):
    lengths = torch.tensor([5, 1, 3, 3, 2, 9, 4, 8, 7, 6])
    mask = torch.arange(9) < lengths[:, None]
    batch = {"lengths": lengths, "mask": mask, "ids": torch.ones(10, 9), "attention": mask.long()}
    rows = [[micro["rows"].tolist() for micro in update] for update in script.split_updates(batch, 2, 2)]
    assert rows == [[[1, 4], [2, 3], [0]], [[6, 9], [8, 7], [5]]]


def test_every_epoch_contains_all_problems_in_a_new_order():
    problems = list(range(7))
    sequence = [p for step in range(1, 15) for p in rewards.problems_of_step(problems, step, 3, seed=1)]
    epochs = [sequence[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == problems for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert rewards.problems_of_step(problems, 5, 3, seed=1) == sequence[12:15]
    assert rewards.problems_of_step(problems, 2, 21, seed=1) == sequence[21:42]
    assert rewards.problems_of_step(problems, 1, 7, seed=2) != epochs[0]


# Advantages and losses


# The authors' GRPO and RLOO return the reward of a group of one response. The scripts refuse such groups.
@pytest.mark.parametrize("case", [case for case in ORACLE["advantages"] if case["group_size"] > 1])
def test_advantages_are_those_of_the_authors(script, case):
    names = {"grpo_dynw": "grpo", "rloo_dynw": "rloo", "reinforce_dynw": "reinforce_plus_plus"}
    reward, lengths = torch.tensor(case["rewards"]), torch.tensor(case["lengths"])
    A = script.advantage(reward, lengths, arguments(num_generations=case["group_size"]))
    torch.testing.assert_close(A, torch.tensor(case[names[script.__name__]]), rtol=0, atol=2e-5)


def test_equal_rewards_give_no_advantage(script):
    """The mean of six equal rewards has a rounding error. Dividing it by 1e-6 must not make it noticeable."""
    reward = torch.full((6,), 1 / 3, dtype=torch.float64) + torch.full((6,), 1 / 5, dtype=torch.float64)
    assert script.advantage(reward, torch.arange(1, 7), arguments(num_generations=6)).abs().max() < 1e-6


@pytest.mark.parametrize("baseline", ["whiten", "mean", "none"])
def test_advantages_of_several_objectives_at_once_are_those_of_each_alone(script, baseline):
    generator, args = torch.Generator().manual_seed(0), arguments(num_generations=4, baseline=baseline)
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
    assert advantage(reward, lengths, arguments(baseline="mean")).tolist() == [-3, 1]
    assert advantage(reward, lengths, arguments(baseline="none")).tolist() == [4, 8]


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
    loss, clipped = script.policy_loss(new, old, advantages, arguments())
    assert loss[mask].mean() == pytest.approx(case["loss_clip_02_dual_3"], abs=2e-6)
    assert clipped[mask].float().mean() == pytest.approx(case["clip_fraction"], abs=1e-6)
    loss, _ = script.policy_loss(new, old, advantages, arguments(clip=1e9, clip_dual=1e9))
    assert loss[mask].mean() == pytest.approx(case["loss_clip_off"], abs=2e-6)


@shared
def test_the_gradient_of_the_policy_loss_at_ratio_one_is_minus_the_advantage(script):
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -0.1]], requires_grad=True)
    loss, clipped = script.policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -0.5]), arguments())
    loss.sum().backward()
    assert logprobs.grad.tolist() == [[-2.0, -2.0], [0.5, 0.5]] and not clipped.any()


# Gradient-based weighting


class Linears(nn.Module):
    """
    Logits sum_l s_l W_l x of one-hot tokens x, with scales s_l and W_l = 0. All V tokens are equally likely,
    and the gradient of log p(y | x) by W_l is s_l (e_y - 1/V) e_x^T.
    """

    def __init__(self, V, scales):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(V), freeze=False)
        self.scales, self.layers = scales, nn.ModuleList(nn.Linear(V, V, bias=False) for _ in scales)
        for layer in self.layers:
            nn.init.zeros_(layer.weight)

    def get_decoder(self):
        return self

    def forward(self, input_ids, logits_to_keep, **_):
        x = self.embedding(input_ids)
        logits = sum(scale * layer(x) for scale, layer in zip(self.scales, self.layers))
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def one_token_responses():
    """Returns the responses y = 2 and 0 to the prompts x = 0 and 1, each as a micro-batch."""
    rows = [(1, [1, 0]), (0, [0, 2])]
    ones = {"attention": torch.ones(1, 2, dtype=torch.long), "mask": torch.ones(1, 1, dtype=torch.bool)}
    return [{"rows": torch.tensor([row]), "ids": torch.tensor([ids]), **ones} for row, ids in rows]


@shared
def test_the_gram_matrix_has_a_closed_form(script):
    """
    Over the 2 response tokens, objective k has the gradient g_k = sum_i A_ki (e_yi - 1/3) e_xi^T / 2. The
    terms of the two responses are orthogonal, as they have different x. Without A_ki, each has the squared
    norm (2/3) / 4.
    """
    model, micros = Linears(3, [1.0]), one_token_responses()
    A = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    gram = script.gram_matrix(model, micros, A, 2, [0, 1])
    torch.testing.assert_close(gram, (A @ A.T * (2 / 3) / 4).double(), rtol=1e-6, atol=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for micro in micros:
        assert micro["old_logprobs"].tolist() == [[pytest.approx(-math.log(3))]]
        assert not micro["old_logprobs"].requires_grad


@shared
@pytest.mark.parametrize(
    "count, fractions, probed",
    [(1, [0.25, 0.75], [0]), (2, [0.25, 0.75], [0]), (3, [0.25, 0.75], [0, 1]), (4, [0.25, 0.75], [1, 2])]
    + [(36, [0.25, 0.75], range(9, 27)), (8, [0, 1], range(8)), (8, [0.5, 0.5], [4])],
)
def test_the_decoder_layers_between_the_fractions_of_the_depth_are_probed(script, count, fractions, probed):
    """Layer l has the scale l + 1, so that its share of the Gram matrix is (l + 1)^2."""
    model, A = Linears(3, range(1, count + 1)), torch.ones(1, 2)
    gram = script.gram_matrix(model, one_token_responses(), A, 2, fractions)
    assert gram.item() == pytest.approx(sum((i + 1) ** 2 for i in probed) / 3, rel=1e-5)


def separate_passes(script, layers, model, batch, A):
    """
    Returns the Gram matrix (K, K) of the gradients by the weights of the linear maps in `layers`, with a
    forward and a backward pass for each objective. A: advantages (K, N).
    """
    weights = [m.weight for m in layers.modules() if isinstance(m, (nn.Linear, Conv1D))]
    gradients = []
    for advantages in A:
        logprobs = script.token_logprobs(model, batch)
        loss = -(advantages[:, None] * logprobs * batch["mask"]).sum() / batch["mask"].sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    gradients = torch.stack(gradients)
    return (gradients @ gradients.T).double()


@shared
@pytest.mark.parametrize("K, size", [(2, 6), (3, 4), (8, 1)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_the_gram_matrix_equals_that_of_separate_passes(
    script, model, K, size, dtype, tolerance, tokenizer, monkeypatch
):
    # The scripts convert log-probabilities to float32.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.to(dtype))
    batch = rollouts(script, model, tokenizer)
    reward = torch.rand(K, len(PROMPTS), generator=torch.Generator().manual_seed(K))
    A = script.advantage(reward, batch["lengths"], arguments(num_generations=3)).double()
    layers = script.decoder_layers(model)[1:3]
    expected = separate_passes(script, layers, model.double(), batch, A)
    model = model.to(dtype)
    micros = [script.micro_batch(batch, rows) for rows in torch.tensor([3, 0, 5, 1, 4, 2]).split(size)]
    gram = script.gram_matrix(model, micros, A.to(dtype), batch["lengths"].sum(), [0.25, 0.75])
    assert (gram - expected).norm() / expected.norm() <= tolerance
    for micro in micros:
        with torch.no_grad():
            logprobs = script.token_logprobs(model, micro)
        torch.testing.assert_close(micro["old_logprobs"][micro["mask"]], logprobs[micro["mask"]])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# Large vocabularies and other devices


@shared
def test_log_probabilities_over_a_large_vocabulary_are_computed_in_chunks_and_exact(script, monkeypatch):
    """The logits are in bfloat16, as under autocast. A log-softmax in bfloat16 would have an error of 1%."""
    V, R = 151936, 600
    calls = spy(monkeypatch, script, "recompute")
    torch.manual_seed(0)
    logits = torch.randn(1, R + 1, V).bfloat16().requires_grad_()
    ids = torch.randint(V, (1, R + 3))
    micro = {"ids": ids, "attention": torch.ones_like(ids), "mask": torch.ones(1, R, dtype=torch.bool)}
    logprobs = script.token_logprobs(lambda **_: SimpleNamespace(logits=logits), micro)
    chunks = [chunk.numel() for (_, chunk, _), _ in calls]
    assert len(chunks) == 2 and max(chunks) <= 2**26 and sum(chunks) == (R + 1) * V
    for i in (0, 440, 441, R - 1):  # The first chunk ends at 440.
        expected = logits[0, i].double().log_softmax(0)[ids[0, 3 + i]].item()
        assert logprobs[0, i].item() == pytest.approx(expected, abs=2e-5)
    logprobs[0, 441].backward()
    softmax = logits[0, 441].detach().double().softmax(0)
    expected = nn.functional.one_hot(ids[0, 3 + 441], V) - softmax
    torch.testing.assert_close(logits.grad[0, 441].double(), expected, rtol=1e-2, atol=1e-9)
    assert not logits.grad[0, :441].any() and not logits.grad[0, 442:].any()


def test_advantages_loss_and_gram_matrix_stay_on_their_device(script, tokenizer, monkeypatch):
    """PyTorch's meta device computes only shapes, and refuses tensors of other devices."""
    # The meta device does not support autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    meta = torch.device("meta")
    model = random_model("qwen3", tokenizer).to(meta)
    model.set_attn_implementation("eager")  # The other implementations read the values of the mask.
    mask = torch.ones(6, 12, dtype=torch.bool, device=meta)
    micro = {"ids": torch.zeros(6, 20, dtype=torch.long, device=meta), "mask": mask}
    micro |= {"attention": micro["ids"], "rows": torch.arange(6, device=meta)}
    lengths, r_vec = mask.sum(1), torch.rand(3, 6, dtype=torch.float64, device=meta)
    A = script.advantage(r_vec, lengths, arguments(num_generations=3)).float()
    gram = script.gram_matrix(model, [micro], A, lengths.sum(), [0.25, 0.75])
    weights = script.update_weights(gram[0], script.influences(gram, gram[0], "unit"), 1e-3, 1e-2)
    logprobs = script.token_logprobs(model, micro)
    loss, is_clipped = script.policy_loss(logprobs, micro["old_logprobs"], A[0], arguments())
    if hasattr(script, "kl_penalty"):
        loss = loss + script.kl_penalty(logprobs, logprobs.detach())
    (loss * mask).sum().backward()
    results = [gram, weights, loss, is_clipped, *(p.grad for p in model.parameters())]
    assert all(x.device == meta for x in results)
    with pytest.raises(RuntimeError):
        script.policy_loss(logprobs, logprobs.detach(), torch.ones(6), arguments()).sum()
