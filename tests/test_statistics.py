"""
Whose gradients are they? Expectations over all that can be sampled, from a policy of which all 9 responses can be
listed: two tokens, each one of three. So they are exact, and a bias is told from noise.
"""

from argparse import Namespace
from itertools import product

import pytest
import torch

RESPONSES = torch.tensor(list(product(range(3), repeat=2)))  # (9, 2)
REWARD = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.0, 0.0, 0.9, 0.3, 0.0], dtype=torch.float64)
G = 3


def logits():
    """Of the first token (3,), and of the second after each first one (3, 3): 12 parameters."""
    torch.manual_seed(0)
    return torch.randn(12, dtype=torch.float64).requires_grad_()


def token_logprobs(theta):
    """Log-probabilities (9, 2) of the tokens of all responses."""
    first, second = theta[:3].log_softmax(0), theta[3:].view(3, 3).log_softmax(1)
    return torch.stack([first[RESPONSES[:, 0]], second[RESPONSES[:, 0], RESPONSES[:, 1]]], 1)


def true_gradient(theta):
    """Of the expected reward: sum_s p(s) r(s) grad log p(s)."""
    return torch.autograd.grad((token_logprobs(theta).sum(1).exp() * REWARD).sum(), theta)[0]


def expected_gradient(script, args, theta):
    """Of minus the loss, summed over the two tokens and averaged over responses, in all batches of one group of G."""
    total = torch.zeros_like(theta)
    for group in product(range(9), repeat=G):
        logprobs = token_logprobs(theta)[list(group)]  # (G, 2)
        A = script.advantage(REWARD[list(group)], torch.full((G,), 2), args)
        loss, _ = script.policy_loss(logprobs, logprobs.detach(), A, 0.2, 0.2, 3.0)
        weight = logprobs.detach().sum().exp() / G
        total -= torch.autograd.grad(weight * loss.sum(), theta)[0]
    return total


@pytest.mark.parametrize(
    "script, baseline, factor",
    [("rloo_dynw", None, 1), ("reinforce_dynw", "none", 1), ("reinforce_dynw", "mean", 1 - 1 / G)],
    indirect=["script"],
)
def test_rloo_and_reinforce_are_unbiased(script, baseline, factor):
    """The mean of a batch counts a response itself: it shortens the gradient by 1 / N and turns it nowhere."""
    theta = logits()
    expected = expected_gradient(script, Namespace(num_generations=G, baseline=baseline), theta)
    assert torch.allclose(expected, factor * true_gradient(theta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_a_division_by_the_standard_deviation_turns_the_gradient(script):
    """The bias of GRPO and REINFORCE++: even in expectation they go another way, here with a cosine of 0.962."""
    theta = logits()
    expected = expected_gradient(script, Namespace(num_generations=G, baseline="whiten"), theta)
    assert torch.cosine_similarity(expected, true_gradient(theta), 0).item() == pytest.approx(0.962, abs=5e-4)


def policies():
    torch.manual_seed(1)
    theta, reference = torch.randn(2, 4, dtype=torch.float64)
    return theta.requires_grad_(), reference.log_softmax(0)


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_expectation_of_the_kl_penalty(script):
    """Of k3, it is KL(policy || reference). Of half the squared log-ratio, it is not, but near."""
    theta, q = policies()
    p = theta.log_softmax(0).detach()
    mean, true = (p.exp() * script.kl_penalty(p, q)).sum(), (p.exp() * (p - q)).sum()
    assert (mean == pytest.approx(true.item(), rel=1e-12)) == (script.__name__ == "grpo_dynw")


@pytest.mark.parametrize("script", ["grpo_dynw", "reinforce_dynw"], indirect=True)
def test_the_gradient_of_the_kl_penalty_as_a_term_of_the_loss(script):
    """Of k3, in expectation, it is that of KL(reference || policy); of half the squared log-ratio, the one meant."""
    theta, q = policies()
    logprobs = theta.log_softmax(0)
    weight = logprobs.detach().exp()
    found = torch.autograd.grad((weight * script.kl_penalty(logprobs, q)).sum(), theta, retain_graph=True)[0]
    meant = torch.autograd.grad((logprobs.exp() * (logprobs - q)).sum(), theta, retain_graph=True)[0]
    reverse = torch.autograd.grad((q.exp() * (q - logprobs)).sum(), theta)[0]
    assert torch.allclose(found, reverse if script.__name__ == "grpo_dynw" else meant, rtol=1e-9)
    assert not torch.allclose(meant, reverse, rtol=1e-2)
