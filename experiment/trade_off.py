"""
Shows whether the objectives conflict: the embedded model before and after training with six fixed weightings.

    python experiment/trade_off.py

Trains 18 models, one for each of six weightings and three seeds, two at a time, in about 40 minutes on two
cores. A run that is complete is not repeated.
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
    "accuracy-focused": "0.5 0.25 0.25",
    "efficiency-focused": "0.25 0.375 0.375",
}


def initial_table():
    """The initial model on the test split, sampled (4 responses to each problem) and greedy, as a table."""
    model, tokenizer, _ = grpo_dynw.load_model(str(ROOT / "tiny/model"), "cpu")
    problems = rewards.read_problems(str(ROOT / "tiny/data"), ["test"], tokenizer, 64)["test"]
    prompts = [problem["prompt_ids"] for problem in problems]
    rows = [["initial model", "accuracy", "length", "clarity", "cut off"]]
    torch.manual_seed(0)
    for name, G, sample in (("sampled", 4, True), ("greedy", 1, False)):
        batch = grpo_dynw.rollout(model, tokenizer, prompts, G, LIMIT, 4 * len(prompts), sample)
        lengths = batch["lengths"].double()
        repeated = [problem for problem in problems for _ in range(G)]
        scores = rewards.score(["accuracy", "clarity"], batch["texts"], repeated, lengths.tolist(), 0)
        accuracy, clarity = np.mean(scores, 0)
        cut_off = batch["cut_off"].double().mean()
        rows.append([name, f"{accuracy:.3f}", f"{lengths.mean():.1f}", f"{clarity:.3f}", f"{cut_off:.3f}"])
    return aligned(rows)


def train(name, seed, folder):
    """Runs grpo_dynw.py with fixed weights on one core, unless `folder` has a complete run."""
    if (folder / "model").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, ROOT / "grpo_dynw.py", "--seed", str(seed), "--output-dir", folder]
    command += ["--weights", *WEIGHTINGS[name].split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        sys.exit(process.stderr)


def spread(values, digits):
    """The mean over seeds ± the largest distance of a seed from it, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.abs(values - np.mean(values)).max():.{digits}f}"


def final_table(runs):
    """A table of the last evaluations, and which weightings are not dominated. runs: {name: list of runs}."""
    points = {
        name: np.array([run["points"][-1] for run in seeds]) for name, seeds in runs.items()
    }  # (seeds, K)
    means = np.array([seeds.mean(0) for seeds in points.values()])
    rows = [["fixed weights", "accuracy", "length", "clarity", "hypervolume", "shares of the best"]]
    for (name, seeds), mean in zip(points.items(), means):
        volumes = np.array([hypervolume(run["points"], [0, 0, 0]) for run in runs[name]])
        lengths = np.array([run["lengths"][-1] for run in runs[name]])
        shares = " ".join(f"{share:.0%}" for share in mean / means.max(0))
        cells = [spread(seeds[:, 0], 3), spread(lengths, 1), spread(seeds[:, 2], 3), spread(volumes, 3)]
        rows.append([name, *cells, shares])
    names = [name for name, is_on_front in zip(runs, pareto_front(means)) if is_on_front]
    return f"{aligned(rows)}\n\nNo other last point dominates those of: {', '.join(names)}"


def path_text(run):
    """The points of a run that are Pareto-optimal in accuracy and conciseness, as text."""
    is_on_front = pareto_front(run["points"][:, :2])
    points, lengths = run["points"][is_on_front], run["lengths"][is_on_front]
    pairs = ", ".join(f"({accuracy:.3f}, {length:.1f})" for accuracy, length in zip(points[:, 0], lengths))
    accuracy, conciseness, _ = np.ptp(points, axis=0)
    return (
        f"Conciseness only: {len(points)} points (accuracy, length) do not dominate one another:\n{pairs}\n"
        f"They span {accuracy:.3f} in accuracy and {conciseness:.0%} of the limit in length."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=Path("runs/trade-off"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each weighting")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args = parser.parse_args()
    print(initial_table(), "\n", flush=True)

    cases = [(name, seed) for seed, name in product(range(1, args.seeds + 1), WEIGHTINGS)]
    folders = {case: args.output / f"{case[0].replace(' ', '-')}-{case[1]}" for case in cases}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(lambda case: train(*case, folders[case]), cases), total=len(cases)))
    runs = {name: [read_run(folders[case]) for case in cases if case[0] == name] for name in WEIGHTINGS}

    print("\n" + final_table(runs))
    for run in runs["conciseness only"]:
        print("\n" + path_text(run))
    for run in runs["balanced"]:
        first_part = run["points"][: 1 + 2 * (len(run["points"]) - 1) // 3]
        volumes = [f"{hypervolume(points, [0, 0, 0]):.3f}" for points in (first_part, run["points"])]
        print(f"\nBalanced: hypervolume after two thirds of the run, and at its end: {', '.join(volumes)}")


if __name__ == "__main__":
    main()
