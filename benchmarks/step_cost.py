"""
Measures what gradient-based weighting costs, on the embedded model and on a random Qwen3 of 50M parameters.

    python benchmarks/step_cost.py

Prints four tables: the influences with and without norms and biases; the probe compared with K separate
passes over the same layers; the passes of a step and the memory of their graphs; and a step with --weighting
gradient compared with one with --weighting fixed, from the metrics of the script. Times are medians.
All runs share one process, except those for peak memory, which have a process each. Takes about ten minutes
on two cores.
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
from unittest.mock import patch

import torch
import transformers
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned, read_metrics  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
SIZES = {"embedded": (16, 96), "50M": (2, 48)}  # model: prompts in a step, limit
GROUP, MICRO_BATCH = 8, 32  # as by default
PHASES = ["rollout", "reward", "probe", "update"]


# ---------- Models and batches ----------


def make_data(folder):
    """Writes the embedded data with small validation and test splits, as evaluations are not measured."""
    folder.mkdir()
    for split, size in (("train", 1000), ("validation", 8), ("test", 8)):
        lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:size]))


def make_50m(folder):
    """Writes a random Qwen3 of 50M parameters with the embedded tokenizer."""
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


def sample_step(name, folder):
    """Returns a model, the problems of a step (one for each response), and the rollouts."""
    num_prompts, limit = SIZES[name]
    model, tokenizer, _ = grpo_dynw.load_model(str(folder), "cpu")
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"][:num_prompts]
    torch.manual_seed(0)
    prompts = [problem["prompt_ids"] for problem in problems]
    batch = grpo_dynw.rollout(model, tokenizer, prompts, GROUP, limit, batch_size=128)
    return model, [problem for problem in problems for _ in range(GROUP)], batch


# ---------- The probe ----------


def separate_passes(model, weights, batch, micros, advantages, num_tokens):
    """The Gram matrix (K, K) of the gradients of `weights`, from K forward and backward passes."""
    gradients = []
    for A in advantages:
        parts = []
        for rows in micros:
            micro = grpo_dynw.micro_batch(batch, rows)
            logprobs = grpo_dynw.token_logprobs(model, micro)
            loss = -(A[rows, None] * logprobs * micro["mask"]).sum() / num_tokens
            parts.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        gradients.append(sum(parts))
    gradients = torch.stack(gradients)
    return gradients @ gradients.T


def median_seconds(repeats, *functions):
    """The median time of each function. They are called in turn, and their first calls do not count."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds[1:]) for seconds in times]


def probe_cost(name, folder, repeats):
    """Rows of a table: the probe compared with separate passes, for 3 and for 8 objectives."""
    model, problems, batch = sample_step(name, folder)
    micros, num_tokens = batch["lengths"].argsort(stable=True).split(MICRO_BATCH), batch["lengths"].sum()
    probed = grpo_dynw.probed_layers(model, 0.25, 0.75)
    weights = [linear.weight for linear in probed[1]]
    for K in (3, 8):
        A = torch.randn(K, len(problems), generator=torch.Generator().manual_seed(K))
        gram, _ = grpo_dynw.gram_matrix(model, probed, batch, micros, A, num_tokens)
        exact = separate_passes(model.double(), weights, batch, micros, A.double(), num_tokens)
        model.float()
        probe, separate = median_seconds(
            repeats,
            partial(grpo_dynw.gram_matrix, model, probed, batch, micros, A, num_tokens),
            partial(separate_passes, model, weights, batch, micros, A, num_tokens),
        )
        error = ((gram - exact).norm() / exact.norm()).item()
        yield [name, str(K), f"{separate:.2f} s", f"{probe:.2f} s", f"{probe / separate:.2f}", f"{error:.0e}"]


def influence_rows():
    """Rows of a table: influences in a step of the embedded model, over linear maps and over all weights."""
    model, problems, batch = sample_step("embedded", ROOT / "tiny/model")
    lengths = batch["lengths"]
    mean_length = lengths.double().mean().item()
    scores = rewards.score(OBJECTIVES, batch["texts"], problems, lengths.tolist(), mean_length)
    r_vec = torch.tensor(scores, dtype=torch.float64).T
    A = grpo_dynw.advantage(r_vec, lengths, argparse.Namespace(num_generations=GROUP)).float()
    micros = lengths.argsort(stable=True).split(MICRO_BATCH)
    layers, linears = grpo_dynw.probed_layers(model, 0.25, 0.75)
    probed = {"linear maps": [linear.weight for linear in linears], "all weights": list(layers.parameters())}
    for name, weights in probed.items():
        gram = separate_passes(model, weights, batch, micros, A, lengths.sum()).double()
        influence = grpo_dynw.influences(gram, torch.ones(len(gram)), "unit")
        yield [name, str(sum(w.numel() for w in weights)), *(f"{value:.6f}" for value in influence.tolist())]


# ---------- The passes of a step ----------


def time_passes(model, reference, batch, size):
    """
    Runs the passes of a step once, with micro-batches of `size` responses. Returns the seconds of the
    forward, backward and reference passes, and the bytes of the tensors in the graph of each micro-batch.
    """
    times, sizes = [0.0, 0.0, 0.0], []
    for rows in batch["lengths"].argsort(stable=True).split(size):
        micro, kept = grpo_dynw.micro_batch(batch, rows), {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        ends = [time.perf_counter()]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs = grpo_dynw.token_logprobs(model, micro)
        ends.append(time.perf_counter())
        (logprobs * micro["mask"]).sum().backward()
        ends.append(time.perf_counter())
        grpo_dynw.token_logprobs(reference, micro)
        ends.append(time.perf_counter())
        times = [t + end - began for t, began, end in zip(times, ends, ends[1:])]
        sizes.append(sum(kept.values()))
    return times, sizes


def pass_cost(repeats):
    """
    Rows of a table, for micro-batches of 32 and of 128 responses: the seconds of the passes, and the memory
    of the largest graph and of all graphs, in addition to the weights.
    """
    model, _, batch = sample_step("embedded", ROOT / "tiny/model")
    reference = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")[0].requires_grad_(False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())  # A graph holds the weights, too.
    for size in (32, 128):
        results = [time_passes(model, reference, batch, size) for _ in range(repeats + 1)][1:]
        seconds = [f"{statistics.median(t):.2f} s" for t in zip(*(times for times, _ in results))]
        graphs = [graph - weights for graph in results[-1][1]]
        yield [str(size), *seconds, f"{max(graphs) / 1e6:.0f} MB", f"{sum(graphs) / 1e6:.0f} MB"]


# ---------- Whole steps ----------


def run_script(name, folder, weighting, updates, steps, output):
    """
    Runs grpo_dynw.py. Returns the metrics of its steps. Writes its data next to the folder `output`.

    With a learning rate of 1e-9, the policy and so the lengths of its responses stay the same.
    """
    data, (num_prompts, limit) = output.with_name(f"{output.name}-data"), SIZES[name]
    make_data(data)
    command = ["grpo_dynw.py", "--weighting", weighting, "--model", folder, "--dataset", data]
    command += ["--prompts-per-step", num_prompts, "--max-new-tokens", limit, "--steps", steps]
    command += ["--updates-per-step", updates, "--learning-rate", 1e-9, "--eval-every", 1000]
    with patch.object(sys, "argv", [*map(str, command), "--output-dir", str(output)]):
        grpo_dynw.main()
    return read_metrics(output)[1:]


def peak_memory(name, folder, weighting, updates):
    """The peak memory in MB of a process that runs two steps (Linux)."""
    command = [sys.executable, __file__, "--peak", name, str(folder), weighting, updates]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(result.stdout.splitlines()[-1]) / 1024


def step_cost(name, folder, updates, repeats, scratch):
    """
    Rows of a table: fixed weights, gradient-based weighting and their ratio, for a number of updates a step.

    Each has three runs, in alternation, because the speed of the machine changes within minutes. The first
    step of each run does not count.
    """
    metrics, steps = {"fixed": [], "gradient": []}, 1 + math.ceil(repeats / 3)
    for turn in range(3):
        for weighting, lines in metrics.items():
            output = scratch / f"{name}-{weighting}-{updates}-{turn}"
            lines += run_script(name, folder, weighting, updates, steps, output)[1:]

    medians, rows = [], []
    for weighting, lines in metrics.items():
        times = [[line[f"time/{phase}"] for phase in PHASES] for line in lines]
        update = statistics.median(sum(seconds[2:]) for seconds in times)
        step = statistics.median(map(sum, times))
        memory = peak_memory(name, folder, weighting, updates)
        medians.append([update, step, memory])
        rows.append([name, updates, weighting, f"{update:.2f} s", f"{step:.2f} s", f"{memory:.0f} MB"])
    return [*rows, [name, updates, "ratio", *(f"{b / a:.2f}" for a, b in zip(*medians))]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=9, help="timings for each median (default: 9)")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)  # Print the peak memory of this run in kB.
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if args.peak:
            run_script(*args.peak, 2, scratch / "run")
            print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
            return

        make_50m(scratch / "50m")
        folders = {"embedded": ROOT / "tiny/model", "50M": scratch / "50m"}
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        print(f"{versions}, {torch.get_num_threads()} threads, float32\n")
        titles = ["probed", "weights", *(f"influence of {name}" for name in OBJECTIVES)]
        print(aligned([titles, *influence_rows()]), "\n", flush=True)

        rows = [["model", "K", "separate passes", "probe", "ratio", "error of the probe"]]
        for name, folder in folders.items():
            rows += probe_cost(name, folder, args.repeats)
        print(aligned(rows), "\n", flush=True)

        titles = ["micro-batch", "forward", "backward", "reference", "largest graph", "all graphs"]
        print(aligned([titles, *pass_cost(args.repeats)]), "\n", flush=True)

        rows = [["model", "updates a step", "weighting", "probe + update", "whole step", "peak memory"]]
        for name, folder in folders.items():
            for updates in ("1", "2"):
                rows += step_cost(name, folder, updates, args.repeats, scratch)
        print(aligned(rows))


if __name__ == "__main__":
    main()
