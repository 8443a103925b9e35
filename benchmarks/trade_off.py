"""
Where the embedded model starts, and where six fixed weightings of the rewards take it: is there a trade-off to weigh?

    python benchmarks/trade_off.py

Trains 18 models, six with each of three seeds, two at a time: about 40 minutes on two cores. A run that has finished is
not repeated.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import aligned, read_run  # noqa: E402
from hypervolume import hypervolume, pareto_front  # noqa: E402

LIMIT = 96
WEIGHTINGS = {
    "accuracy only": "1 0 0",
    "conciseness only": "0 1 0",
    "clarity only": "0 0 1",
    "balanced": "0.3333333 0.3333333 0.3333334",
    "accuracy first": "0.5 0.25 0.25",
    "accuracy last": "0.25 0.375 0.375",
}


def start():
    """Of the embedded model on the test split, sampled (4 responses to each problem) and greedy: rows of a table."""
    model, tokenizer, _ = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["test"], tokenizer, 64)["test"]
    prompts = [p["prompt_ids"] for p in problems]
    torch.manual_seed(0)
    for name, G, sample in (("sampled", 4, True), ("greedy", 1, False)):
        batch = grpo_dynw.rollout(model, tokenizer, prompts, G, LIMIT, 4 * len(prompts), sample)
        lengths, asked = batch["lengths"].double(), [p for p in problems for _ in range(G)]
        scores = rewards.score(["accuracy", "clarity"], batch["texts"], asked, lengths.tolist(), 0)
        accuracy, clarity = np.mean(scores, 0)
        cells = accuracy, lengths.mean(), clarity, batch["cut_off"].double().mean()
        yield [name, *(f"{x:.1f}" if x > 1 else f"{x:.3f}" for x in map(float, cells))]


def train(name, seed, folder):
    """Runs grpo_dynw.py with fixed weights, on one core, unless it has been run to its end."""
    if (folder / "model").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, ROOT / "grpo_dynw.py", "--seed", str(seed), "--output-dir", folder, "--weights"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + WEIGHTINGS[name].split(), capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)


def spread(values, digits):
    """The mean over seeds and how far the seeds are from it at most, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.abs(values - np.mean(values)).max():.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=Path("runs/trade-off"), help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each weighting")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    print(aligned([["initial model", "accuracy", "length", "clarity", "cut off"], *start()]), "\n", flush=True)

    cases = [(name, seed) for seed, name in product(range(1, args.seeds + 1), WEIGHTINGS)]
    folders = {case: args.output / f"{case[0].replace(' ', '-')}-{case[1]}" for case in cases}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(lambda case: train(*case, folders[case]), cases), total=len(cases)))
    runs = {name: [read_run(folders[case]) for case in cases if case[0] == name] for name in WEIGHTINGS}
    last = {name: np.array([run["points"][-1] for run in same]) for name, same in runs.items()}  # (seeds, K)
    means = np.array([points.mean(0) for points in last.values()])

    rows = [["weights fixed at", "accuracy", "length", "clarity", "hypervolume", "shares of the best"]]
    for (name, points), mean in zip(last.items(), means):
        volumes = np.array([hypervolume(run["points"], [0, 0, 0]) for run in runs[name]])
        shares = " ".join(f"{share:.0%}" for share in mean / means.max(0))
        length = spread(LIMIT * (1 - points[:, 1]), 1)
        rows.append([name, spread(points[:, 0], 3), length, spread(points[:, 2], 3), spread(volumes, 3), shares])
    print("\n" + aligned(rows))
    names = [name for name, is_on_front in zip(WEIGHTINGS, pareto_front(means)) if is_on_front]
    print(f"\nnone of these last points dominates another: {', '.join(names)}")

    for run in runs["conciseness only"]:
        way = run["points"][:, :2]
        way = way[pareto_front(way)]
        steps = ", ".join(f"({accuracy:.3f}, {LIMIT * (1 - p):.1f})" for accuracy, p in way)
        accuracy, conciseness = np.ptp(way, axis=0)
        print(
            f"\nconciseness only passes through {len(way)} points (accuracy, length), none of which dominates another:"
        )
        print(f"{steps}\nthey span {accuracy:.3f} in accuracy and {conciseness:.0%} of the limit in length")
    for run in runs["balanced"]:
        then = run["points"][: 1 + 2 * (len(run["points"]) - 1) // 3]
        volumes = [f"{hypervolume(points, [0, 0, 0]):.3f}" for points in (then, run["points"])]
        print(f"\nhypervolume of balanced after two thirds of the run, and after all of it: {', '.join(volumes)}")


if __name__ == "__main__":
    main()
