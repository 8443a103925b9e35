"""Shows that r_pareto on the reward has no effect in GRPO and REINFORCE++."""

from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize("r_pareto", [0.5, 2.0])
def test_r_pareto_on_the_reward_cancels_in_grpo_and_reinforce(script, r_pareto):
    """Both divide by a standard deviation of the rewards, which r_pareto multiplies, too. RLOO does not."""
    torch.manual_seed(0)
    reward, lengths = torch.rand(128, dtype=torch.float64), torch.randint(1, 100, (128,))
    args = SimpleNamespace(num_generations=16, baseline="whiten")
    A = script.advantage(reward, lengths, args)
    A_of_product = script.advantage(r_pareto * reward, lengths, args)
    expected = r_pareto * A if script.ALGORITHM == "rloo" else A
    torch.testing.assert_close(A_of_product, expected, rtol=1e-4, atol=0)
