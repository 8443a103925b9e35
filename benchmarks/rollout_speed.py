"""
Times ways to generate the responses of a step: the scripts' decoding loop, and the ways of transformers.

    python benchmarks/rollout_speed.py [MODEL DATA]

The embedded model samples 128 responses of at most 96 tokens to 16 prompts. Another model, such as that of
benchmarks/smollm2.py, samples 16 responses of at most 48 tokens to 2 prompts. Each number is the median of 5
calls, without a first call that does not count. The ways sample different responses from the same seed, so
compare their tokens a second, not their seconds.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned  # noqa: E402

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
TITLES = ["way", "seconds", "tokens", "tokens a second"]


# ---------- Ways to generate ----------
#
# Each takes a model, prompts (lists of token ids), a limit in tokens and whether to sample. It returns the
# responses as lists of token ids, up to and including the token that ends the response.


def decoding_loop(model, prompts, limit, sample=True):
    """The rollouts of the training scripts."""
    batch = grpo_dynw.rollout(model, NoTexts, prompts, 1, limit, len(prompts), sample)
    responses = batch["ids"][:, -batch["mask"].shape[1] :]
    return [ids[mask].tolist() for ids, mask in zip(responses, batch["mask"])]


class NoTexts:
    """Replaces a tokenizer, because the time of decoding is not measured."""

    @staticmethod
    def batch_decode(rows, **_):
        return [""] * len(rows)


def padded(model, prompts):
    """Prompts as ids and attention, padded on the left."""
    prompts = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    ids = pad_sequence(prompts, True, model.generation_config.pad_token_id, "left")
    return ids, pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, "left")


def plain(model, prompts, limit, sample=True, **settings):
    """One call of `generate`. `settings` are passed to it."""
    ids, attention = padded(model, prompts)
    settings |= SAMPLING if sample else {"do_sample": False}
    output = model.generate(ids, attention_mask=attention, max_new_tokens=limit, **settings)
    return [up_to_end(row, model) for row in output[:, ids.shape[1] :].tolist()]


def segments(model, prompts, limit, sample=True):
    """Up to six calls of `generate`. Between them, finished rows leave the batch and the cache."""
    ids, attention = padded(model, prompts)
    responses, rows, size = [[] for _ in prompts], torch.arange(len(prompts)), max(16, math.ceil(limit / 6))
    settings = SAMPLING if sample else {"do_sample": False}
    settings = {**settings, "cache": transformers.DynamicCache(config=model.config)}
    for start in range(0, limit, size):
        before = ids.shape[1]
        settings["max_new_tokens"] = min(size, limit - start)
        ids = model.generate(ids, attention_mask=attention, **settings)
        for row, tokens in zip(rows.tolist(), ids[:, before:].tolist()):
            responses[row] = up_to_end(responses[row] + tokens, model)
        ends = torch.tensor(model.generation_config.eos_token_id, device=ids.device)
        unfinished = ~torch.isin(ids[:, before:], ends).any(1)
        if not unfinished.any():
            break
        attention = torch.nn.functional.pad(attention, (0, ids.shape[1] - before), value=1)[unfinished]
        rows, ids = rows[unfinished.cpu()], ids[unfinished]
        settings["cache"].batch_select_indices(unfinished)
    return responses


def up_to_end(tokens, model):
    """The tokens up to and including the first that ends a response."""
    ends = [i for i, token in enumerate(tokens) if token in model.generation_config.eos_token_id]
    return tokens[: ends[0] + 1] if ends else tokens


def static(model, prompts, limit, sample=True):
    """`generate` with a static cache."""
    return plain(model, prompts, limit, sample, cache_implementation="static")


def continuous(model, prompts, limit, sample=True):
    """Continuous batching."""
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        **(SAMPLING if sample else {"do_sample": False}),
    )
    # By default, its cache takes all free memory.
    sizes = ContinuousBatchingConfig(num_blocks=2 * len(prompts), max_batch_tokens=4096)
    options = {"continuous_batching_config": sizes, "progress_bar": False}
    outputs = model.generate_batch(prompts, generation_config=config, **options)
    errors = [output.error for output in outputs.values() if output.error]
    if errors or len(outputs) < len(prompts):
        raise RuntimeError(errors[0] if errors else "some prompts have no response")
    names = sorted(outputs, key=lambda name: int(name.rpartition("_")[2]))
    return [outputs[name].generated_tokens for name in names]


def compiled(model, prompts, limit, sample=True):
    """`generate` with a static cache and a compiled forward pass. Must be last: the model stays compiled."""
    model.forward = torch.compile(model.forward)
    return static(model, prompts, limit, sample)


WAYS = {
    "decoding loop of the scripts": decoding_loop,
    "generate in segments": segments,
    "generate": plain,
    "generate, static cache": static,
    "generate_batch": continuous,
    "generate, static cache, compiled": compiled,
}


# ---------- Times ----------


def time_way(name, model, prompts, limit, calls):
    """Returns a row of the table, see TITLES: medians over all calls but the first."""
    times, tokens = [], []
    try:
        for seed in range(calls):
            torch.manual_seed(seed)
            began = grpo_dynw.clock()
            tokens.append(sum(map(len, WAYS[name](model, prompts, limit))))
            times.append(grpo_dynw.clock() - began)
    except Exception as error:  # The table shows which ways do not work on this machine.
        return [name, "-", "-", f"{type(error).__name__}: {error}"[:80]]
    rates = [n / t for n, t in zip(tokens, times)]
    seconds, count, rate = [statistics.median(values[1:]) for values in (times, tokens, rates)]
    return [name, f"{seconds:.2f}", f"{count:.0f}", f"{rate:.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("model", nargs="?", default=str(ROOT / "tiny/model"), help="folder of the model")
    parser.add_argument("data", nargs="?", default=str(ROOT / "tiny/data"), help="folder of the dataset")
    args = parser.parse_args()
    is_embedded = Path(args.model) == ROOT / "tiny/model"
    model, tokenizer, _ = grpo_dynw.load_model(args.model, "cpu")
    problems = rewards.read_problems(args.data, ["train"], tokenizer, 512)["train"]
    problems = problems[: 16 if is_embedded else 2]
    prompts = [problem["prompt_ids"] for problem in problems for _ in range(8)]
    limit, threads = 96 if is_embedded else 48, torch.get_num_threads()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {threads} threads\n")
    rows = [time_way(name, model, prompts, limit, 6) for name in WAYS]
    print("\n" + aligned([TITLES, *rows]))


if __name__ == "__main__":
    main()
