"""
Measures what a reference model in bfloat16 would change, under autocast to bfloat16 as on CUDA.

    python benchmarks/reference_dtype.py                the embedded model
    python benchmarks/reference_dtype.py runs/fixed     a finished run of grpo_dynw.py

A row is about one policy, which samples the responses of a step. At step 1, the policy is the reference
model, so the KL estimate must be 0. A run has a second row for its last policy. The columns are:

    float32, bfloat16    mean of the KL estimate over the tokens, with the reference model in this type
    maximum              of the KL estimate with the bfloat16 reference model
    autocast             mean of the KL estimate between the policy without autocast and the policy with it
    gradient             length of the change in the KL term's gradient with respect to the log-probabilities,
                         relative to the length of this gradient
"""

import argparse
import copy
import json
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned  # noqa: E402

TITLES = ["run", "policy", "tokens", "float32", "bfloat16", "maximum", "autocast", "gradient"]


def autocast_logprobs(model, batch):
    """Log-probabilities of all response tokens, with autocast also on a CPU."""
    autocast = torch.autocast(batch["ids"].device.type, torch.bfloat16, cache_enabled=False)
    with patch.object(torch, "autocast", lambda *_, **__: autocast):
        return grpo_dynw.token_logprobs(model, batch)[batch["mask"]]


@torch.no_grad()
def measure(policy, reference, tokenizer, problems, args):
    """Returns the cells of a policy, from the number of tokens on."""
    torch.manual_seed(args.seed)
    prompts = [problem["prompt_ids"] for problem in problems]
    batch = grpo_dynw.rollout(policy, tokenizer, prompts, args.num_generations, args.max_new_tokens, 128)
    logprobs = autocast_logprobs(policy, batch)
    plain_logprobs = grpo_dynw.token_logprobs(policy, batch)[batch["mask"]]
    autocast = grpo_dynw.kl_penalty(plain_logprobs, logprobs).mean()

    estimates, gradients = [], []
    for model in (reference, copy.deepcopy(reference).bfloat16()):
        penalty = partial(grpo_dynw.kl_penalty, reference_logprobs=autocast_logprobs(model, batch))
        estimates.append(penalty(logprobs))
        gradients.append(torch.func.vjp(penalty, logprobs)[1](torch.ones_like(logprobs))[0])
    (exact, half), (gradient, other) = estimates, gradients
    change = f"{(other - gradient).norm() / gradient.norm():.1%}" if gradient.any() else "-"
    numbers = exact.mean(), half.mean(), half.max(), autocast
    return [str(len(logprobs)), *(f"{x:.2g}" for x in numbers), change]


def rows_of(folder):
    """Returns the rows of the run in `folder`, or the row of the embedded model if it is None."""
    args = grpo_dynw.make_parser().parse_args([])
    if folder:
        vars(args).update(json.loads((folder / "args.json").read_text()))
    reference, tokenizer, _ = grpo_dynw.load_model(args.model, args.device)
    options = args.max_prompt_tokens, args.prompt_suffix, args.enable_thinking
    data = rewards.read_problems(args.dataset, ["train"], tokenizer, *options)["train"]
    problems = rewards.problems_of_step(data, 1, args.prompts_per_step, args.seed)

    policies = [("step 1", args.model)]
    if folder:
        policies.append((f"after step {args.steps}", folder / "model"))
    rows = []
    for step, name in policies:
        policy = grpo_dynw.load_model(name, args.device)[0]
        cells = measure(policy, reference, tokenizer, problems, args)
        rows.append([str(folder or "embedded model"), step, *cells])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs (default: the embedded model)")
    rows = [row for folder in parser.parse_args().runs or [None] for row in rows_of(folder)]
    print(aligned([TITLES, *rows]))


if __name__ == "__main__":
    main()
