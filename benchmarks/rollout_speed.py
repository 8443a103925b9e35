"""
Ways to generate a step's responses, timed: which of transformers' means is the fastest for these sizes?

    python benchmarks/rollout_speed.py [MODEL DATA]

128 sampled responses of at most 96 tokens to 16 prompts, of the embedded model, or 16 responses of at most 48 tokens of
another one, such as that of benchmarks/smollm2.py. Medians of 5 calls, after one that does not count. The ways sample
other responses from the same seed, so what compares them is tokens a second.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned  # noqa: E402

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def padded(model, prompts):
    """Token ids and mask (N, P) of prompts, padded on the left."""
    P, pad = max(map(len, prompts)), model.generation_config.pad_token_id
    return (
        torch.tensor([[pad] * (P - len(p)) + p for p in prompts]),
        torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts]),
    )


def count(responses, model):
    """The number of sampled tokens in responses (N, R)."""
    is_end = torch.isin(responses, torch.tensor(model.generation_config.eos_token_id))
    return int((is_end.cumsum(1) - is_end.long() == 0).sum())


def plain(model, prompts, limit, **settings):
    """`generate` as the scripts call it, or with other settings."""
    ids, mask = padded(model, prompts)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **SAMPLING, **settings)
    return count(out[:, ids.shape[1] :], model)


def in_segments(model, prompts, limit, length=16):
    """`generate` in segments, after each of which rows that have ended leave the batch and its cache."""
    ids, mask = padded(model, prompts)
    cache, tokens = DynamicCache(config=model.config), 0
    for done in range(0, limit, length):
        width = ids.shape[1]
        ids = model.generate(
            ids, attention_mask=mask, max_new_tokens=min(length, limit - done), cache=cache, **SAMPLING
        )
        new = ids[:, width:]
        tokens += count(new, model)
        going = ~torch.isin(new, torch.tensor(model.generation_config.eos_token_id)).any(1)
        if not going.any():
            break
        rows = going.nonzero().squeeze(1)
        ids, mask = ids[rows], torch.cat([mask[rows], torch.ones_like(new[rows])], 1)
        cache.batch_select_indices(rows)
    return tokens


def continuous(model, prompts, limit):
    """transformers' continuous batching."""
    settings = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        **SAMPLING,
    )
    # It sizes its cache by the memory of a GPU, and on a CPU takes all there is, unless it is told.
    sizes = ContinuousBatchingConfig(num_blocks=2 * len(prompts), max_batch_tokens=4096)
    out = model.generate_batch(
        prompts, generation_config=settings, continuous_batching_config=sizes, progress_bar=False
    )
    assert len(out) == len(prompts)
    return sum(len(result.generated_tokens) for result in out.values())


def compiled(model, prompts, limit):
    """`generate` with a static cache and a forward pass that is compiled. The last of the ways: the model stays so."""
    model.forward = torch.compile(model.forward)
    return plain(model, prompts, limit, cache_implementation="static")


WAYS = {
    "generate": plain,
    "generate, static cache": lambda *args: plain(*args, cache_implementation="static"),
    "generate in segments of 16": in_segments,
    "generate_batch": continuous,
    "generate, static cache, compiled": compiled,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("model", nargs="?", default=str(ROOT / "tiny/model"))
    parser.add_argument("data", nargs="?", default=str(ROOT / "tiny/data"))
    args = parser.parse_args()
    is_tiny = Path(args.model) == ROOT / "tiny/model"
    model, tokenizer, _ = grpo_dynw.load_model(args.model, "cpu")
    problems = rewards.read_problems(args.data, ["train"], tokenizer, 512)["train"]
    prompts = [p["prompt_ids"] for p in problems[: 16 if is_tiny else 2] for _ in range(8)]
    limit = 96 if is_tiny else 48
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads\n")
    rows = [["way", "seconds", "tokens", "tokens a second"]]
    for name, way in WAYS.items():
        times, tokens = [], []
        try:
            for seed in range(6):
                torch.manual_seed(seed)
                started = time.perf_counter()
                tokens.append(way(model, prompts, limit))
                times.append(time.perf_counter() - started)
        except Exception as error:  # that a way does not work here is a result
            rows.append([name, "-", "-", f"{type(error).__name__}: {error}"[:80]])
            continue
        rates = [n / t for n, t in zip(tokens, times)]
        medians = [statistics.median(values[1:]) for values in (times, tokens, rates)]
        rows.append([name, f"{medians[0]:.2f}", f"{medians[1]:.0f}", f"{medians[2]:.0f}"])
    print("\n" + aligned(rows))


if __name__ == "__main__":
    main()
