"""
The expected gradient of each algorithm, compared with the gradient of the expected reward.

The policy has only 9 responses: two tokens from a vocabulary of three. So the expectations are exact sums
over all samples, and a bias cannot be confused with noise.
"""

from argparse import Namespace
from itertools import product

import pytest
import torch

RESPONSES = torch.tensor(list(product(range(3), repeat=2)))  # (9, 2)
REWARD = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.0, 0.0, 0.9, 0.3, 0.0], dtype=torch.float64)
G, CLIP = 3, {"clip": 0.2, "clip_dual": 3.0}


def logits():
    """Returns 12 parameters: logits (3,) of the first token, and (3, 3) of the second token after each."""
    torch.manual_seed(0)
    return torch.randn(12, dtype=torch.float64).requires_grad_()


def token_logprobs(theta):
    """Returns the log-probabilities (9, 2) of the tokens of all responses."""
    first, second = theta[:3].log_softmax(0), theta[3:].view(3, 3).log_softmax(1)
    return torch.stack([first[RESPONSES[:, 0]], second[RESPONSES[:, 0], RESPONSES[:, 1]]], 1)


def true_gradient(theta):
    """Returns the gradient (12,) of the expected reward, sum_s p(s) r(s) grad log p(s)."""
    return torch.autograd.grad((token_logprobs(theta).sum(1).exp() * REWARD).sum(), theta)[0]


def expected_gradient(script, args, theta):
    """
    Returns minus the expected gradient (12,) of the loss, over all batches of one group of G responses.

    The loss is the sum over the two tokens and the mean over the responses.
    """
    total = torch.zeros_like(theta)
    for group in product(range(9), repeat=G):
        logprobs = token_logprobs(theta)[list(group)]  # (G, 2)
        A = script.advantage(REWARD[list(group)], torch.full((G,), 2), args)
        loss, _ = script.policy_loss(logprobs, logprobs.detach(), A, args)
        weight = logprobs.detach().sum().exp() / G
        total -= torch.autograd.grad(weight * loss.sum(), theta)[0]
    return total


@pytest.mark.parametrize(
    "script, baseline, factor",
    [("rloo_dynw", None, 1), ("reinforce_dynw", "none", 1), ("reinforce_dynw", "mean", 1 - 1 / G)],
    indirect=["script"],
)
def test_rloo_and_reinforce_are_unbiased(script, baseline, factor):
    """
    The baseline "mean" includes the response itself. It shrinks the gradient by a factor of 1 - 1 / N and
    keeps its direction.
    """
    theta = logits()
    expected = expected_gradient(script, Namespace(num_generations=G, baseline=baseline, **CLIP), theta)
    assert torch.allclose(expected, factor * true_gradient(theta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_dividing_by_the_standard_deviation_changes_the_direction_of_the_gradient(script):
    """GRPO and REINFORCE++ are biased: the cosine of the expected and the true gradient is 0.962 here."""
    theta = logits()
    expected = expected_gradient(script, Namespace(num_generations=G, baseline="whiten", **CLIP), theta)
    assert torch.cosine_similarity(expected, true_gradient(theta), 0).item() == pytest.approx(0.962, abs=5e-4)


def policy_and_reference():
    """Returns the logits (4,) of a policy and the log-probabilities (4,) of a reference model."""
    torch.manual_seed(1)
    theta, reference = torch.randn(2, 4, dtype=torch.float64)
    return theta.requires_grad_(), reference.log_softmax(0)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_expectation_of_the_kl_penalty(script):
    """The expectation of k3 is KL(policy || reference). Half the squared log-ratio is only close to it."""
    theta, q = policy_and_reference()
    p = theta.log_softmax(0).detach()
    expectation, kl = (p.exp() * script.kl_penalty(p, q)).sum(), (p.exp() * (p - q)).sum()
    assert (expectation == pytest.approx(kl.item(), rel=1e-12)) == (script.__name__ == "grpo_dynw")


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_expected_gradient_of_the_kl_penalty_in_the_loss(script):
    """
    The loss differentiates the penalty, not the probability of the sample. In expectation, this gives the
    gradient of KL(reference || policy) for k3. For half the squared log-ratio, it gives the intended gradient
    of KL(policy || reference).
    """
    theta, q = policy_and_reference()
    logprobs = theta.log_softmax(0)
    weight = logprobs.detach().exp()
    penalty = (weight * script.kl_penalty(logprobs, q)).sum()
    policy_reference_kl = (logprobs.exp() * (logprobs - q)).sum()
    reference_policy_kl = (q.exp() * (q - logprobs)).sum()
    gradient = torch.autograd.grad(penalty, theta, retain_graph=True)[0]
    forward = torch.autograd.grad(policy_reference_kl, theta, retain_graph=True)[0]
    reverse = torch.autograd.grad(reference_policy_kl, theta)[0]
    assert torch.allclose(gradient, reverse if script.__name__ == "grpo_dynw" else forward, rtol=1e-9)
    assert not torch.allclose(forward, reverse, rtol=1e-2)
