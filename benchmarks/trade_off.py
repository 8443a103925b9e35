"""
Where the embedded model starts, and where six fixed weightings of the rewards take it: is there a trade-off to weigh?

    python benchmarks/trade_off.py

Trains six models, about 15 minutes on two cores. A run whose folder exists is not repeated.
"""
import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from hypervolume import aligned, read_metrics  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
WEIGHTINGS = {
    "accuracy only": "1 0 0", "conciseness only": "0 1 0", "clarity only": "0 0 1",
    "balanced": "0.3333333 0.3333333 0.3333334", "accuracy first": "0.5 0.25 0.25", "accuracy last": "0.25 0.375 0.375",
}


def start(limit):
    """Of the embedded model on the test split, sampled (4 responses to each problem) and greedy: rows of a table."""
    model, tokenizer, _ = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["test"], tokenizer, 64)["test"]
    torch.manual_seed(0)
    for sample, repeats in ((True, 4), (False, 1)):
        chosen = problems * repeats
        batch = grpo_dynw.rollout(model, [p["prompt_ids"] for p in chosen], limit, sample, batch_size=len(chosen))
        texts, lengths, cut_off = grpo_dynw.read_responses(batch, tokenizer, model.generation_config.eos_token_id)
        scores = rewards.score(["accuracy", "clarity"], texts, [p["answer"] for p in chosen], lengths, 0)
        accuracy, clarity = np.mean(scores, 0)
        yield ["sampled" if sample else "greedy", f"{accuracy:.3f}", f"{np.mean(lengths):.1f}", f"{clarity:.3f}",
               f"{np.mean(cut_off):.3f}"]


def train(name, folder, threads):
    """Runs grpo_dynw.py with fixed weights, unless `folder` is there."""
    if not folder.exists():
        command = [sys.executable, ROOT / "grpo_dynw.py", "--output-dir", folder, "--weights"]
        command += WEIGHTINGS[name].split()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=Path("runs/trade-off"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()

    print(aligned([["initial model", "accuracy", "length", "clarity", "cut off"], *start(limit=96)]), "\n")

    folders = {name: args.output / name.replace(" ", "-") for name in WEIGHTINGS}
    with ThreadPoolExecutor(args.jobs) as pool:
        threads = max(1, os.cpu_count() // args.jobs)
        list(tqdm(pool.map(lambda name: train(name, folders[name], threads), WEIGHTINGS), total=len(WEIGHTINGS)))
    last = {name: read_metrics(folder)[-1] for name, folder in folders.items()}
    points = {name: [m[f"eval/{objective}"] for objective in OBJECTIVES] for name, m in last.items()}
    best = np.max(list(points.values()), axis=0)
    rows = [["weights fixed at", "accuracy", "length", "clarity", "of the best: accuracy", "conciseness", "clarity"]]
    for name, (accuracy, _, clarity) in points.items():
        shares = np.array(points[name]) / best
        rows.append([name, f"{accuracy:.3f}", f"{last[name]['eval/mean_length']:.1f}", f"{clarity:.3f}",
                     *(f"{share:.0%}" for share in shares)])
    print(aligned(rows))


if __name__ == "__main__":
    main()
