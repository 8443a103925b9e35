"""
What gradient-based weighting costs, on the embedded model and on a random Qwen3 of 50M parameters.

    python benchmarks/step_cost.py

Two tables: the probe against K separate passes over the same layers; and a step with --weighting gradient against one
with --weighting fixed, as the script itself times it. Everything is a median, all in one process but for peak memory,
for which each run has one of its own. About @MINUTES@ minutes on two cores.
"""
import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
from hypervolume import aligned, read_metrics  # noqa: E402

SIZES = {"embedded": ["--prompts-per-step", "16"], "50M": ["--prompts-per-step", "4", "--max-new-tokens", "64"]}


def make_50m(folder):
    """A random Qwen3 of 50M parameters with the embedded tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=16,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def separate_passes(model, layers, micros, advantages, num_tokens):
    """The Gram matrix (K, K) the plain way: for each objective, forward and backward passes of its own."""
    weights = [m.weight for m in layers.modules() if isinstance(m, nn.Linear)]
    gradients = []
    for A in advantages:
        total = None
        for micro in micros:
            logprobs = grpo_dynw.token_logprobs(model, micro)
            loss = -(A[micro["rows"], None] * logprobs * micro["response_mask"]).sum() / num_tokens
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
            total = gradient if total is None else total + gradient
        gradients.append(total)
    gradients = torch.stack(gradients)
    return gradients @ gradients.T


def seconds(repeats, *functions):
    """The median time of each function, called in turn `repeats` times after one call that does not count."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, mine in zip(functions, times):
            started = time.perf_counter()
            function()
            mine.append(time.perf_counter() - started)
    return [statistics.median(mine[1:]) for mine in times]


def probe_cost(name, folder, repeats):
    """Rows of a table: the probe against separate passes, for 3 and 8 objectives."""
    model, tokenizer, _ = grpo_dynw.load_model(str(folder), "cpu")
    problems = grpo_dynw.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
    flags = dict(zip(SIZES[name][::2], map(int, SIZES[name][1::2])))
    prompts = [p["prompt_ids"] for p in problems[: flags["--prompts-per-step"]] for _ in range(8)]
    batch = grpo_dynw.rollout(model, prompts, flags.get("--max-new-tokens", 96), sample=True)
    micros = grpo_dynw.micro_batches(batch, torch.arange(len(prompts)), 32)
    layers = grpo_dynw.middle_layers(model, [0.25, 0.75])
    num_tokens = batch["response_mask"].sum()
    for K in (3, 8):
        A = torch.randn(K, len(prompts), generator=torch.Generator().manual_seed(K))
        one, other = (f(model, layers, micros, A, num_tokens) for f in (grpo_dynw.gram_matrix, separate_passes))
        probe, separate = seconds(
            repeats, lambda: grpo_dynw.gram_matrix(model, layers, micros, A, num_tokens),
            lambda: separate_passes(model, layers, micros, A, num_tokens))
        error = ((one - other).norm() / other.norm()).item()
        yield [name, str(K), f"{separate:.2f} s", f"{probe:.2f} s", f"{probe / separate:.2f}", f"{error:.0e}"]


def step(name, folder, weighting, steps, output):
    """Runs the script for `steps` steps. Returns its metrics."""
    sys.argv = ["grpo_dynw.py", "--weighting", weighting, "--model", str(folder), "--steps", str(steps), *SIZES[name],
                "--eval-every", "1000", "--output-dir", str(output)]
    grpo_dynw.main()
    return read_metrics(output)[1:]


def peak_memory(name, folder, weighting):
    """Bytes that a process running two steps holds at its peak."""
    command = [sys.executable, __file__, "--peak", name, str(folder), weighting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def step_cost(name, folder, repeats, scratch):
    """Rows of a table: fixed, gradient and their ratio."""
    medians, rows = [], []
    for weighting in ("fixed", "gradient"):
        metrics = step(name, folder, weighting, repeats + 1, scratch / f"{name}-{weighting}")[1:]
        phases = {phase: [m[f"time/{phase}"] for m in metrics] for phase in ("rollout", "probe", "update")}
        update = statistics.median(map(sum, zip(phases["probe"], phases["update"])))
        whole = statistics.median(map(sum, zip(*phases.values())))
        medians.append([statistics.median(phases["probe"]), update, whole, peak_memory(name, folder, weighting)])
        *times, memory = medians[-1]
        rows.append([name, weighting, *(f"{t:.2f} s" for t in times), f"{memory / 2**20:.0f} MB"])
    return [*rows, [name, "ratio", *(f"{b / a:.2f}" for a, b in zip(*medians))]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=7, help="timings of which the median is taken")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if args.peak:
            name, folder, weighting = args.peak
            step(name, folder, weighting, 2, scratch / "run")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return
        make_50m(scratch / "50m")
        folders = {"embedded": ROOT / "tiny/model", "50M": scratch / "50m"}
        torch_version, threads = torch.__version__, torch.get_num_threads()
        print(f"torch {torch_version}, transformers {transformers.__version__}, {threads} threads, float32\n")
        rows = [["model", "K", "separate passes", "probe", "ratio", "relative difference"]]
        for name, folder in folders.items():
            rows += probe_cost(name, folder, args.repeats)
        print(aligned(rows), "\n", flush=True)
        rows = [["model", "weighting", "probe", "probe + update", "whole step", "peak memory"]]
        for name, folder in folders.items():
            rows += step_cost(name, folder, args.repeats, scratch)
        print(aligned(rows))


if __name__ == "__main__":
    main()
