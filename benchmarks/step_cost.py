"""
Times the steps of grpo_dynw.py, and the probe of gradient-based weighting.

    python benchmarks/step_cost.py                               the embedded model
    python benchmarks/step_cost.py --shape 50M                   a random model of 50M parameters
    python benchmarks/step_cost.py --old FOLDER                  compared with FOLDER/grpo_dynw.py
    python benchmarks/step_cost.py --device cuda --shape 0.6B    a random model in the shape of Qwen3-0.6B
    python benchmarks/step_cost.py --shape toy --rounds 1        the smallest setting

The first table compares the probe with K separate passes over the same weights. "difference" is that of their
Gram matrices, relative to the norm.

The second table has the phases of whole steps, from the metrics of the script: the median and the quartiles
over all steps except the first of each run. Each run is a new process. A round has one run of each kind, and
the rounds alternate, because the speed of a machine changes within minutes. With --old, the ratio of the new
to the old step time is computed within each round. The table has the median and the range over the rounds.
The learning rate is 1e-9, so that the lengths of the responses stay the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter as clock

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402

GROUP = 8  # responses to a problem
PHASES = ["rollout", "probe", "update"]
KINDS = [("fixed", 1), ("gradient", 1), ("fixed", 2), ("gradient", 2)]  # weighting, updates per step
SIZES = {  # problems per step, limit of a response in tokens, micro-batch
    "embedded": (16, 96, 32),
    "toy": (2, 8, 8),
    "50M": (2, 48, 16),
    "0.6B": (8, 256, 16),
    "1.7B": (8, 256, 16),
}
SHAPES = {  # hidden size, intermediate size, layers, heads, heads of keys and values, head size, vocabulary
    "toy": (64, 128, 2, 2, 1, 32, 512),
    "50M": (512, 1536, 16, 8, 4, 64, 512),
    "0.6B": (1024, 3072, 28, 16, 8, 128, 151936),
    "1.7B": (2048, 6144, 28, 16, 8, 128, 151936),
}
NAMES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
NAMES += ["num_key_value_heads", "head_dim", "vocab_size"]


def make_model(shape, folder):
    """Returns the folder of a model: the embedded one, or a random Qwen3 that is written to `folder`."""
    embedded = ROOT / "tiny/model"
    if shape == "embedded":
        return embedded
    sizes, tokens = dict(zip(NAMES, SHAPES[shape])), {"eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**sizes, **tokens, tie_word_embeddings=True, max_position_embeddings=4096)
    ).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(embedded).save_pretrained(folder)
    return folder


def flags_of(shape, model, device):
    """The flags of grpo_dynw.py for a step of this shape."""
    num_problems, limit, size = SIZES[shape]
    flags = ["--model", model, "--device", device, "--prompts-per-step", num_problems]
    flags += ["--num-generations", GROUP, "--max-new-tokens", limit, "--micro-batch-size", size]
    return list(map(str, flags))


def markdown(rows):
    """Returns rows of text cells, the first with titles, as a table."""
    title, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([title, "|" + " --- |" * len(rows[0]), *others])


def machine(device):
    """Returns the versions and the machine as text."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {name}"


# ---------- The probe ----------


def separate_passes(model, weights, micros, A_k, num_tokens):
    """The inner products (K, K) of the gradients of `weights`, from K forward and backward passes."""
    gradients = []
    for A in A_k:  # (N,)
        parts = []
        for micro in micros:
            logprobs = grpo_dynw.token_logprobs(model, micro)  # (B, R)
            objective = (A[micro["rows"], None] * logprobs * micro["mask"]).sum() / num_tokens
            parts.append(torch.cat([g.flatten() for g in torch.autograd.grad(objective, weights)]))
        gradients.append(sum(parts))
    gradients = torch.stack(gradients).double()  # A sum over millions of products in float32 is not exact.
    return gradients @ gradients.T


def time_in_turn(calls, repeats):
    """The median seconds and the result of each function. The first call of each does not count."""
    times = [[] for _ in calls]
    for _ in range(repeats + 1):
        results = []
        for call, seconds in zip(calls, times):
            start = clock()
            results.append(torch.tensor(call().tolist()))  # A GPU has finished when the numbers are read.
            seconds.append(clock() - start)
    return [np.median(seconds[1:]) for seconds in times], results


def probe_rows(shape, model, device, repeats):
    """The rows of the first table."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # as grpo_dynw.py does
    args = grpo_dynw.make_parser().parse_args(flags_of(shape, model, device))
    model, tokenizer = grpo_dynw.load_model(args)
    data = rewards.read_problems(args.dataset, ["train"], tokenizer, args.max_prompt_tokens)
    problems = [problem for problem in data["train"][: args.prompts_per_step] for _ in range(GROUP)]
    transformers.set_seed(0)
    batch = grpo_dynw.rollout(model, tokenizer, problems, args)
    [micros] = grpo_dynw.split_updates(batch, 1, args.micro_batch_size)
    num_tokens, layers = batch["lengths"].sum(), grpo_dynw.decoder_layers(model)
    first, end = [int(fraction * len(layers)) for fraction in args.probe_layers]
    weights = [m.weight for m in layers[first:end].modules() if isinstance(m, torch.nn.Linear)]

    rows = [["model", "K", "separate passes", "probe", "ratio", "difference"]]
    for K in (3, 8):
        A_k = torch.randn(K, len(problems)).to(device)
        calls = [
            partial(separate_passes, model, weights, micros, A_k, num_tokens),
            partial(grpo_dynw.gram_matrix, model, micros, A_k, num_tokens, args.probe_layers),
        ]
        (separate, probe), (expected, gram) = time_in_turn(calls, repeats)
        difference = ((gram - expected).norm() / expected.norm()).item()
        times = [f"{separate:.2f} s", f"{probe:.2f} s", f"{probe / separate:.2f}"]
        rows.append([shape, str(K), *times, f"{difference:.0e}"])
    return rows


# ---------- Whole steps ----------


def run_steps(folder, flags, steps):
    """Runs folder/grpo_dynw.py in a new process. Returns the metrics of `steps` steps after the first."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, f"{folder}/grpo_dynw.py", *flags, "--steps", str(steps + 1)]
        command += ["--output-dir", f"{scratch}/run", "--learning-rate", "1e-9"]
        command += ["--eval-every", "1000", "--max-eval-problems", "8"]  # Evaluations are not measured.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = Path(scratch, "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[2:]]  # The first line is the initial evaluation.


def time_runs(folders, flags, rounds, steps):
    """Returns {(kind, folder): a list of runs}. A run is an array (steps, phases and their sum, length)."""
    runs = {(kind, folder): [] for kind in KINDS for folder in folders}
    keys = [f"time/{phase}" for phase in PHASES]
    for n in range(rounds):
        for (weighting, updates), folder in list(runs)[:: -1 if n % 2 else 1]:
            kind = ["--weighting", weighting, "--updates-per-step", str(updates), "--seed", str(n + 1)]
            metrics = run_steps(folder, [*flags, *kind], steps)
            seconds = np.array([[line[key] for key in keys] for line in metrics])
            lengths = np.array([[line["completions/mean_length"]] for line in metrics])
            run = np.concatenate([seconds, seconds.sum(1, keepdims=True), lengths], 1)
            runs[(weighting, updates), folder].append(run)
    return runs


def step_rows(runs):
    """The rows of the second table, from the result of `time_runs`."""
    rows = [["weighting", "updates", "script", *PHASES, "sum", "mean length"]]
    folders = list(dict.fromkeys(folder for _, folder in runs))
    for kind in KINDS:
        for folder in folders:
            values = np.concatenate(runs[kind, folder])  # (rounds * steps, 5)
            low, median, high = np.quantile(values[:, :-1], [0.25, 0.5, 0.75], axis=0)
            cells = [f"{m:.2f} ({a:.2f} to {b:.2f}) s" for a, m, b in zip(low, median, high)]
            label = [kind[0], str(kind[1]), "this" if folder == ROOT else str(folder)]
            rows.append([*label, *cells, f"{values[:, -1].mean():.1f}"])
        if len(folders) > 1:
            new, old = ([np.median(run[:, 3]) for run in runs[kind, folder]] for folder in folders)
            ratios = np.array(new) / np.array(old)
            ratio = f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"
            rows.append([kind[0], str(kind[1]), "ratio", *[""] * len(PHASES), ratio, ""])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="embedded", choices=SIZES, help="of the model")
    parser.add_argument("--old", type=Path, help="folder of another grpo_dynw.py")
    parser.add_argument("--rounds", type=int, default=6, help="runs of each kind (default: 6)")
    parser.add_argument("--steps", type=int, default=6, help="steps that count in a run (default: 6)")
    args = parser.parse_args()
    print(machine(args.device))
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(args.shape, scratch)
        print("\n" + markdown(probe_rows(args.shape, model, args.device, args.steps)), flush=True)
        folders, flags = [ROOT, args.old] if args.old else [ROOT], flags_of(args.shape, model, args.device)
        print("\n" + markdown(step_rows(time_runs(folders, flags, args.rounds, args.steps))))


if __name__ == "__main__":
    main()
