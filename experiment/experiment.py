"""
Runs the training scripts with all weightings and writes the results to experiment/results.csv.

    python experiment/experiment.py                      main study: 6 weightings, 3 algorithms, 5 seeds
    python experiment/experiment.py --study ablations    or --study learning-rate, --study control
    python experiment/experiment.py --task mine --model FOLDER --dataset FOLDER --learning-rate 1e-6

Each run starts one of the training scripts on one core. Two runs proceed at a time. A run that is already in
the CSV is not repeated. A run that was interrupted, or that now has more steps, continues from its last
checkpoint, which is written every 10 steps. `python experiment/report.py` draws tables and pictures from the
runs that the CSV has so far. 30 runs take about 70 minutes on two otherwise idle cores. Flags that --help
does not list are passed on to the training scripts.

The learning rate was chosen first, on balanced weights alone: --study learning-rate, seed 0, by the final
hypervolume. Weightings are compared on seeds 4 to 8. Seeds 1 to 3 are for the ablations and for developing
--weighting nash.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Lock

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from compare import read_metrics  # noqa: E402

EVAL_EVERY = 10
OBJECTIVES = ["accuracy", "conciseness", "clarity"]
KEYS = ["task", "algorithm", "variant", "seed"]  # They identify a run.
WEIGHTS = [f"w_{name}" for name in OBJECTIVES]
COLUMNS = [*KEYS, "step", *OBJECTIVES, "length", *WEIGHTS, "r_pareto", "seconds"]
ALGORITHMS = ["grpo", "rloo", "reinforce"]
MAIN = {
    "accuracy-focused": "--weights 0.5 0.25 0.25",
    "balanced": "",
    "efficiency-focused": "--weights 0.25 0.375 0.375",
    "hypervolume": "--weighting hypervolume",
    "gradient": "--weighting gradient",
    "nash": "--weighting nash",
}
ABLATIONS = {
    **{name: MAIN[name] for name in ("balanced", "hypervolume", "gradient")},
    "hypervolume, r_pareto on the reward": "--weighting hypervolume --meta-reward-on reward",
    "hypervolume, scale 1": "--weighting hypervolume --hv-scale 1",
    "hypervolume, scale 2048": "--weighting hypervolume --hv-scale 2048",
    "hypervolume, from the initial model": "--weighting hypervolume --hv-reference initial",
    "gradient, clipped": "--weighting gradient --influence-scale clip",
    "gradient, mu / 10": "--weighting gradient --mu 2e-5",
    "gradient, mu x 10": "--weighting gradient --mu 2e-3",
    "gradient, all layers": "--weighting gradient --probe-layers 0 1",
    "gradient, last layer": "--weighting gradient --probe-layers 0.75 1",
    "balanced, each normalised": "--normalize each",
    "gradient, each normalised": "--weighting gradient --normalize each",
    "balanced, polynomial": "--lr-schedule polynomial",
    "hypervolume, polynomial": "--weighting hypervolume --lr-schedule polynomial",
    "gradient, polynomial": "--weighting gradient --lr-schedule polynomial",
    **{f"{name}, learning rate 4e-5": f"{flags} --learning-rate 4e-5" for name, flags in MAIN.items()},
}
LEARNING_RATES = {f"balanced, learning rate {lr}": f"--learning-rate {lr}" for lr in ("1e-5", "2e-5", "4e-5")}
# The control was added after the runs of the main study had been seen.
CONTROL = {"clarity-focused": "--weights 0.25 0.25 0.5"}
STUDIES = {  # name: algorithms, flags of each variant, seeds, steps
    "main": (ALGORITHMS, MAIN, [4, 5, 6, 7, 8], 120),
    "learning-rate": (ALGORITHMS, LEARNING_RATES, [0], 120),
    "ablations": (["grpo"], ABLATIONS, [1, 2, 3], 60),
    "control": (["grpo"], CONTROL, [4, 5, 6, 7, 8], 120),
}
# The experiment sets these flags itself, so they cannot be passed on to the training scripts.
RESERVED = {"--seed", "--output-dir", "--resume", "--objectives", "--eval-every", "--checkpoint-every"}
# These replacements make a variant's name the name of a folder.
FOLDER_CHARACTERS = str.maketrans({" ": "_", "/": "_", ",": None})


def train(algorithm, flags, seed, steps, folder):
    """
    Runs a training script on one core, from the checkpoint in `folder` if there is one.

    `flags` is a list. It is not used when a run continues, because a checkpoint contains its flags.
    """
    command = [sys.executable, ROOT / f"{algorithm}_dynw.py"]
    if (folder / "checkpoint.pt").exists():
        command += ["--resume", folder]
        # A resumed run with a polynomial schedule refuses --steps, so the flag is given only if it changes.
        if json.loads((folder / "args.json").read_text())["steps"] != steps:
            command += ["--steps", str(steps)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--output-dir", folder, "--seed", str(seed), "--steps", str(steps), *flags]
        command += ["--eval-every", str(EVAL_EVERY), "--checkpoint-every", str(EVAL_EVERY)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        sys.exit(f"{folder}: {process.stderr.strip()[-300:]}")


def evaluations(folder):
    """
    Yields a list for each evaluation of a run: the columns of the CSV from "step" on.

    r_pareto is averaged over the steps since the previous evaluation. Seconds count from the start of a run.
    """
    meta_rewards, seconds = [], 0.0
    for metrics in read_metrics(folder):
        seconds += sum(value for name, value in metrics.items() if name.startswith("time/"))
        meta_rewards.append(metrics.get("r_pareto", 1.0))
        if f"eval/performance/{OBJECTIVES[0]}" in metrics:
            performance = [round(metrics[f"eval/performance/{name}"], 6) for name in OBJECTIVES]
            length = round(metrics["eval/completions/mean_length"], 4)
            # The initial model, step 0, has no weights yet.
            weights = [round(metrics[f"weights/{name}"], 4) if metrics["step"] else "" for name in OBJECTIVES]
            r_pareto = round(float(np.mean(meta_rewards)), 4)
            yield [metrics["step"], *performance, length, *weights, r_pareto, round(seconds)]
            meta_rewards = []


def record(path, case, rows):
    """Writes the rows of a run into the CSV. They replace the rows of a shorter run of the same case."""
    with open(path, newline="") as file:
        other_rows = [row for row in csv.reader(file) if row[: len(case)] != list(map(str, case))]
    new_rows = [[*case, *row] for row in rows]
    with open(path.with_suffix(".tmp"), "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(other_rows + new_rows)
    os.replace(path.with_suffix(".tmp"), path)


def parse_args():
    """The checked arguments, with the study's defaults, and a list of flags for the training scripts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--study", default="main", choices=STUDIES, help="set of runs (default: main)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, help="(default: those of the study)")
    parser.add_argument("--variants", nargs="+", help="variants of the study (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: those of the study)")
    parser.add_argument("--steps", type=int, help="steps of each run (default: those of the study)")
    parser.add_argument("--task", default="embedded", help="name of the model and data in the CSV")
    parser.add_argument("--model", help="folder or name on the Hub (default: the embedded model)")
    parser.add_argument("--dataset", help="folder or name on the Hub (default: the embedded data)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/experiment", help="folder for the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "experiment/results.csv", help="the CSV")
    args, script_flags = parser.parse_known_args()

    algorithms, variants, seeds, steps = STUDIES[args.study]
    args.algorithms, args.seeds = args.algorithms or algorithms, sorted({*(args.seeds or seeds)})
    args.steps = steps if args.steps is None else args.steps
    if unknown := {*(args.variants or [])} - variants.keys():
        parser.error(f"--variants: no {'; '.join(unknown)} in this study. It has {'; '.join(variants)}")
    args.variants = {name: variants[name] for name in args.variants or variants}

    if args.jobs < 1 or args.steps < 1:
        parser.error("--jobs, --steps: must be 1 or more")
    if ((args.model or args.dataset or script_flags) and args.task == "embedded") or "/" in args.task:
        parser.error("--task: a name without a / is required for runs with another model, data or flags")
    variant_flags = {word for flags in variants.values() for word in flags.split() if word.startswith("--")}
    reserved = RESERVED | variant_flags
    if conflicts := reserved & {word.split("=")[0] for word in script_flags}:
        parser.error(f"{', '.join(conflicts)}: the experiment sets this flag itself")
    script_flags += [f"--{name}={value}" for name in ("model", "dataset") if (value := getattr(args, name))]

    if args.results.exists() and not args.results.read_text().startswith(",".join(COLUMNS) + "\n"):
        parser.error(f"--results: {args.results} has other columns than this experiment writes")
    # Runs of a task may differ only in algorithm, variant and seed, so its flags are stored beside the runs.
    flags_file, flags = args.runs / f"{args.task}.txt", " ".join(script_flags)
    if flags_file.exists() and (stored := flags_file.read_text()) != flags:
        parser.error(f"--task: {args.task} has the flags '{stored}'. Other flags need another task name")
    args.runs.mkdir(parents=True, exist_ok=True)
    flags_file.write_text(flags)
    return args, script_flags


def missing_cases(args):
    """The cases (task, algorithm, variant, seed) that are not in the CSV or too short, sorted by seed."""
    with open(args.results, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) >= args.steps]
    finished = {tuple(row[key] for key in KEYS) for row in rows}
    cases = [(args.task, *case) for case in product(args.algorithms, args.variants, args.seeds)]
    return sorted((case for case in cases if tuple(map(str, case)) not in finished), key=lambda case: case[3])


def main():
    args, script_flags = parse_args()
    if not args.results.exists():
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(",".join(COLUMNS) + "\n")
    cases, lock, start = missing_cases(args), Lock(), time.perf_counter()

    def run(case):
        _, algorithm, variant, seed = case
        folder = args.runs / "-".join(map(str, case)).translate(FOLDER_CHARACTERS)
        train(algorithm, [*args.variants[variant].split(), *script_flags], seed, args.steps, folder)
        with lock:
            record(args.results, case, evaluations(folder))

    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(run, cases), total=len(cases), desc=args.study))
    hours = (time.perf_counter() - start) / 3600
    print(f"{len(cases)} runs in {hours:.1f} hours. The results are in {args.results}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command continues the runs.")
