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


def segments(model, prompts, limit, sample=True):
    """As the scripts do it: `generate` in up to six segments, after each of which rows that have ended leave."""
    batch = grpo_dynw.rollout(model, Silent, prompts, 1, limit, len(prompts), sample)
    return [ids[mask].tolist() for ids, mask in zip(batch["ids"][:, -batch["mask"].shape[1] :], batch["mask"])]


class Silent:
    """In a tokenizer's place, where texts are not wanted."""

    @staticmethod
    def batch_decode(rows, **_):
        return [""] * len(rows)


def plain(model, prompts, limit, sample=True, **settings):
    """`generate` once, with the library's settings or others."""
    prompts = [torch.tensor(p, device=model.device) for p in prompts]
    ids = pad_sequence(prompts, True, model.generation_config.pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(p) for p in prompts], True, 0, "left")
    settings |= SAMPLING if sample else {"do_sample": False}
    new = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **settings)[:, ids.shape[1] :]
    return [up_to_the_end(row, model) for row in new.tolist()]


def up_to_the_end(row, model):
    """Of sampled tokens, those up to and including the first that ends a response."""
    ends = [i for i, token in enumerate(row) if token in model.generation_config.eos_token_id]
    return row[: ends[0] + 1] if ends else row


def continuous(model, prompts, limit, sample=True):
    """transformers' continuous batching."""
    settings = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        **(SAMPLING if sample else {"do_sample": False}),
    )
    # Left to itself, its cache takes all memory that it finds.
    sizes = ContinuousBatchingConfig(num_blocks=2 * len(prompts), max_batch_tokens=4096)
    out = model.generate_batch(
        prompts, generation_config=settings, continuous_batching_config=sizes, progress_bar=False
    )
    if len(out) < len(prompts) or any(answer.error for answer in out.values()):
        raise RuntimeError(next((answer.error for answer in out.values() if answer.error), "some prompts unanswered"))
    return [out[name].generated_tokens for name in sorted(out, key=lambda name: int(name.rpartition("_")[2]))]


def compiled(model, prompts, limit, sample=True):
    """`generate` with a static cache and a forward pass that is compiled. The last of the ways: the model stays so."""
    model.forward = torch.compile(model.forward)
    return plain(model, prompts, limit, sample, cache_implementation="static")


WAYS = {
    "generate in segments": segments,
    "generate": plain,
    "generate, static cache": lambda *args: plain(*args, cache_implementation="static"),
    "generate_batch": continuous,
    "generate, static cache, compiled": compiled,
}


def table(model, prompts, limit, calls, ways=tuple(WAYS)):
    """Rows: of each way the median seconds, tokens and tokens a second of all calls but the first."""
    rows = [["way", "seconds", "tokens", "tokens a second"]]
    for name in ways:
        times, tokens = [], []
        try:
            for seed in range(calls):
                torch.manual_seed(seed)
                started = grpo_dynw.clock()
                tokens.append(sum(map(len, WAYS[name](model, prompts, limit))))
                times.append(grpo_dynw.clock() - started)
        except Exception as error:  # that a way does not work here is a result
            rows.append([name, "-", "-", f"{type(error).__name__}: {error}"[:80]])
            continue
        rates = [n / t for n, t in zip(tokens, times)]
        medians = [statistics.median(values[1:]) for values in (times, tokens, rates)]
        rows.append([name, f"{medians[0]:.2f}", f"{medians[1]:.0f}", f"{medians[2]:.0f}"])
    return rows


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
    print("\n" + aligned(table(model, prompts, limit, 6)))


if __name__ == "__main__":
    main()
