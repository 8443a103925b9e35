"""
What gradient-based weighting costs, on the embedded model and on a random Qwen3 of 50M parameters.

    python benchmarks/step_cost.py

Three tables: what leaving out norms and biases changes; the probe against K separate passes over the same layers; and a
step with --weighting gradient against one with --weighting fixed, as the script itself times it. Times are medians, all
in one process but for peak memory, for which each run has one of its own. About ten minutes on two cores.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned, read_metrics  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
SIZES = {"embedded": ["--prompts-per-step", "16"], "50M": ["--prompts-per-step", "2", "--max-new-tokens", "48"]}


def make_data(folder):
    """The embedded data with a test split of 8 problems: its evaluation is not what is measured."""
    folder.mkdir()
    for split, size in (("train", 1000), ("validation", 8), ("test", 8)):
        lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:size]))


def make_50m(folder):
    """A random Qwen3 of 50M parameters with the embedded tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def separate_passes(model, weights, batch, micros, advantages, num_tokens):
    """The Gram matrix (K, K) over `weights` the plain way: forward and backward passes for each objective."""
    gradients = []
    for A in advantages:
        total = None
        for rows in micros:
            micro = grpo_dynw.micro_batch(batch, rows)
            logprobs = grpo_dynw.token_logprobs(model, micro)
            loss = -(A[rows, None] * logprobs * micro["mask"]).sum() / num_tokens
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
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
    flags = dict(zip(SIZES[name][::2], map(int, SIZES[name][1::2])))
    prompts = [p["prompt_ids"] for p in problems[: flags["--prompts-per-step"]]]
    batch = grpo_dynw.rollout(model, tokenizer, prompts, 8, flags.get("--max-new-tokens", 96), batch_size=128)
    num_tokens = batch["lengths"].sum()
    micros = batch["lengths"].argsort(stable=True).split(32)
    probed = grpo_dynw.probed_maps(model, 0.25, 0.75)
    weights = [linear.weight for linear in probed[1]]
    for K in (3, 8):
        A = torch.randn(K, len(batch["texts"]), generator=torch.Generator().manual_seed(K))
        gram, _ = grpo_dynw.gram_matrix(model, probed, batch, micros, A, num_tokens)
        model.double()
        exact = separate_passes(model, weights, batch, micros, A.double(), num_tokens)
        model.float()
        probe, separate = seconds(
            repeats,
            partial(grpo_dynw.gram_matrix, model, probed, batch, micros, A, num_tokens),
            partial(separate_passes, model, weights, batch, micros, A, num_tokens),
        )
        error = ((gram - exact).norm() / exact.norm()).item()
        yield [name, str(K), f"{separate:.2f} s", f"{probe:.2f} s", f"{probe / separate:.2f}", f"{error:.0e}"]


def left_out():
    """Rows of a table: influences on a step of the embedded model, over linear maps and over all weights."""
    model, tokenizer, _ = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
    torch.manual_seed(0)
    batch = grpo_dynw.rollout(model, tokenizer, [p["prompt_ids"] for p in problems[:16]], 8, 96, batch_size=128)
    lengths, asked = batch["lengths"], [p for p in problems[:16] for _ in range(8)]
    r_vec = rewards.score(OBJECTIVES, batch["texts"], asked, lengths.tolist(), lengths.double().mean().item())
    A = grpo_dynw.advantage(torch.tensor(r_vec, dtype=torch.float64).T, lengths, argparse.Namespace(num_generations=8))
    micros = lengths.argsort(stable=True).split(32)
    layers, linears = grpo_dynw.probed_maps(model, 0.25, 0.75)
    for name, weights in (
        ("linear maps", [linear.weight for linear in linears]),
        ("all weights", list(layers.parameters())),
    ):
        gram = separate_passes(model, weights, batch, micros, A.float(), lengths.sum()).double()
        length = gram.diagonal().sqrt()
        I = (gram / length / length[:, None]).sum(1)
        yield [name, str(sum(w.numel() for w in weights)), *(f"{value:.6f}" for value in I.tolist())]


def passes(repeats):
    """
    Rows of a table, for micro-batches of 32 and of 128: seconds of a step's forward, backward and reference passes, and
    the MB that the graph of one micro-batch holds at most, and those of all together.
    """
    model, tokenizer, _ = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")
    reference = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")[0].requires_grad_(False)
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
    torch.manual_seed(0)
    batch = grpo_dynw.rollout(model, tokenizer, [p["prompt_ids"] for p in problems[:16]], 8, 96, batch_size=128)
    for size in (32, 128):
        times, held = [], []

        def keep(tensor, held=held):
            held[-1][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for _ in range(repeats + 1):
            held.clear()
            times.append([0.0, 0.0, 0.0])
            for rows in batch["lengths"].argsort(stable=True).split(size):
                micro, marks = grpo_dynw.micro_batch(batch, rows), [time.perf_counter()]
                held.append({})
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    logprobs = grpo_dynw.token_logprobs(model, micro)
                marks.append(time.perf_counter())
                (logprobs * micro["mask"]).sum().backward()
                marks.append(time.perf_counter())
                grpo_dynw.token_logprobs(reference, micro)
                marks.append(time.perf_counter())
                times[-1] = [t + b - a for t, a, b in zip(times[-1], marks, marks[1:])]
        weights = sum(p.numel() * p.element_size() for p in model.parameters())  # which a graph holds, too
        sizes = [sum(tensors.values()) - weights for tensors in held]
        seconds = [f"{statistics.median(t):.2f} s" for t in zip(*times[1:])]
        yield [str(size), *seconds, f"{max(sizes) / 1e6:.0f} MB", f"{sum(sizes) / 1e6:.0f} MB"]


def step(name, folder, weighting, updates, steps, output):
    """
    Runs the script for `steps` steps, with data made beside `output`. Returns its metrics.

    A learning rate of 1e-9 keeps responses, and so the work, the same from step to step and for both weightings.
    """
    data = output.with_name(f"{output.name}-data")
    make_data(data)
    grpo_dynw.PARSER = argparse.ArgumentParser()
    sys.argv = [
        "grpo_dynw.py",
        "--weighting",
        weighting,
        "--model",
        str(folder),
        "--dataset",
        str(data),
        "--steps",
        str(steps),
        *SIZES[name],
        "--updates-per-step",
        updates,
        "--learning-rate",
        "1e-9",
        "--eval-every",
        "1000",
        "--output-dir",
        str(output),
    ]
    grpo_dynw.main()
    return read_metrics(output)[1:]


def peak_memory(name, folder, weighting, updates):
    """MB that a process running two steps holds at its peak (Linux)."""
    command = [sys.executable, __file__, "--peak", name, str(folder), weighting, updates]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]) / 1024


def step_cost(name, folder, updates, repeats, scratch):
    """
    Rows of a table: fixed, gradient and their ratio, with so many updates a step.

    Three runs of each in turn, whose first steps do not count: on a machine that gets slower or faster, times that are
    minutes apart have no ratio.
    """
    metrics = {"fixed": [], "gradient": []}
    for turn in range(3):
        for weighting, mine in metrics.items():
            output = scratch / f"{name}-{weighting}-{updates}-{turn}"
            mine += step(name, folder, weighting, updates, 1 + math.ceil(repeats / 3), output)[1:]
    medians, rows = [], []
    for weighting, mine in metrics.items():
        phases = {phase: [m[f"time/{phase}"] for m in mine] for phase in ("rollout", "probe", "update")}
        update = statistics.median(map(sum, zip(phases["probe"], phases["update"])))
        whole = statistics.median(map(sum, zip(*phases.values())))
        medians.append([update, whole, peak_memory(name, folder, weighting, updates)])
        *times, memory = medians[-1]
        rows.append([name, updates, weighting, *(f"{t:.2f} s" for t in times), f"{memory:.0f} MB"])
    return [*rows, [name, updates, "ratio", *(f"{b / a:.2f}" for a, b in zip(*medians))]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=9, help="timings of which the median is taken")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if args.peak:
            step(*args.peak, 2, scratch / "run")
            print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
            return
        make_50m(scratch / "50m")
        folders = {"embedded": ROOT / "tiny/model", "50M": scratch / "50m"}
        torch_version, threads = torch.__version__, torch.get_num_threads()
        print(f"torch {torch_version}, transformers {transformers.__version__}, {threads} threads, float32\n")
        print(aligned([["probed", "weights", *(f"influence of {name}" for name in OBJECTIVES)], *left_out()]), "\n")
        rows = [["model", "K", "separate passes", "probe", "ratio", "error of the probe"]]
        for name, folder in folders.items():
            rows += probe_cost(name, folder, args.repeats)
        print(aligned(rows), "\n", flush=True)
        rows = [["micro-batch", "forward", "backward", "reference", "a graph", "all graphs"], *passes(args.repeats)]
        print(aligned(rows), "\n", flush=True)
        rows = [["model", "updates a step", "weighting", "probe + update", "whole step", "peak memory"]]
        for name, folder in folders.items():
            for updates in ("1", "2"):
                rows += step_cost(name, folder, updates, args.repeats, scratch)
        print(aligned(rows))


if __name__ == "__main__":
    main()
