"""
Shows that the objectives conflict: trains the embedded model with six fixed weightings and three seeds.

    python experiment/trade_off.py       18 runs, two at a time, in about 40 minutes on two cores

Prints a table of the last evaluations. A cell has the mean over seeds ± the largest distance from it. A run
that is complete is not repeated.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from report import markdown_table
from run_study import read_metrics, train
from studies import FOLDER

KEYS = ["performance/accuracy", "completions/mean_length", "performance/clarity", "hypervolume"]
SEEDS = [1, 2, 3]
WEIGHTINGS = {
    "accuracy only": "1 0 0",
    "conciseness only": "0 1 0",
    "clarity only": "0 0 1",
    "balanced": "0.3333333 0.3333333 0.3333334",
    "accuracy-focused": "0.5 0.25 0.25",
    "efficiency-focused": "0.25 0.375 0.375",
}


def last_evaluation(case):
    """Trains a case (weighting, seed), unless it is complete. Returns the numbers of its last evaluation."""
    weighting, seed = case
    folder = FOLDER.parent / "runs/trade-off" / f"{weighting}-{seed}".replace(" ", "-")
    if not (folder / "model").exists():
        train("grpo", ["--seed", str(seed), "--weights", *WEIGHTINGS[weighting].split()], folder)
    metrics = read_metrics(folder)[-1]
    return [metrics[f"eval/{key}"] for key in KEYS]


def main():
    with ThreadPoolExecutor(2) as pool:
        values = list(pool.map(last_evaluation, product(WEIGHTINGS, SEEDS)))
    values = np.reshape(values, (len(WEIGHTINGS), len(SEEDS), len(KEYS)))
    rows = [["fixed weights", "accuracy", "length", "clarity", "hypervolume"]]
    for name, seeds in zip(WEIGHTINGS, values):
        mean = seeds.mean(0)
        cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, np.abs(seeds - mean).max(0))]
        rows.append([name, *cells])
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
