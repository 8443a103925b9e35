"""
Does dynamic weighting win? The runs that answer it, and their results in benchmarks/results.csv.

    python benchmarks/experiment.py                          the main experiment: 6 weightings, 3 algorithms, 5 seeds
    python benchmarks/experiment.py --study ablations        also: learning-rate, ascent, control
    python benchmarks/experiment.py --task mine --model FOLDER --dataset FOLDER --learning-rate 1e-6

Each run is one of the scripts as anyone would call it, on one core, two at a time. A run that is in the CSV is not
repeated; one that was stopped, or is to be longer, goes on from its last checkpoint, one each 10 steps; and
`python benchmarks/report.py` draws tables and figures from the CSV alone, however far it has come. 30 runs take some 70
minutes on two cores with nothing beside them. Flags that are not listed by --help go to the scripts.

What was chosen before: the learning rate, on balanced weights alone (--study learning-rate, seed 0, by the hypervolume
at the end). Variants are judged on seeds 4 to 8; seeds 1 to 3 are for ablations and the choice of --weighting ascent.
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
NAMES = ["accuracy", "conciseness", "clarity"]
FIELDS = ["task", "algorithm", "variant", "seed", "step", *NAMES, "length", *(f"w_{name}" for name in NAMES)]
FIELDS += ["r_pareto", "seconds"]
ALGORITHMS = ["grpo", "rloo", "reinforce"]
MAIN = {
    "accuracy-focused": "--weights 0.5 0.25 0.25",
    "balanced": "",
    "efficiency-focused": "--weights 0.25 0.375 0.375",
    "hypervolume": "--weighting hypervolume",
    "gradient": "--weighting gradient",
    "ascent": "--weighting ascent",
}
# What no flag does is done before the script runs. Plain SGD puts the decay of weights in the gradient, where it would
# be longer than all else, so there is none; its learning rate makes updates as long as AdamW's first.
CHANGED = """
import runpy, sys
{change}
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CHANGES = {  # what a variant's name ends in: what is done
    "SGD": "import torch; torch.optim.AdamW = torch.optim.SGD",
    "rewarded by p": "import rewards; rewards.OBJECTIVES['conciseness'] = lambda length, **_: 1 - length / 96",
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
    "gradient, least weight 0.05": "--weighting gradient --min-weight 0.05",
    "gradient, least weight 0.15": "--weighting gradient --min-weight 0.15",
    "gradient, all layers": "--weighting gradient --probe-layers 0 1",
    "gradient, last layer": "--weighting gradient --probe-layers 0.75 1",
    "balanced, each normalised": "--normalize each",
    "gradient, each normalised": "--weighting gradient --normalize each",
    "balanced, polynomial": "--lr-schedule polynomial",
    "hypervolume, polynomial": "--weighting hypervolume --lr-schedule polynomial",
    "gradient, polynomial": "--weighting gradient --lr-schedule polynomial",
    "balanced, SGD": "--learning-rate 0.1 --weight-decay 0",
    "hypervolume, SGD": "--weighting hypervolume --learning-rate 0.1 --weight-decay 0",
    **{f"{name}, learning rate 4e-5": f"{flags} --learning-rate 4e-5" for name, flags in MAIN.items()},
}
ASCENT = {
    **{name: MAIN[name] for name in ("balanced", "efficiency-focused", "ascent")},
    "balanced, rewarded by p": "",
    "ascent, rewarded by p": "--weighting ascent",
}
TUNING = {f"balanced, learning rate {lr}": f"--learning-rate {lr}" for lr in ("1e-5", "2e-5", "4e-5")}
STUDIES = {  # name: algorithms, flags of each variant, seeds, steps
    "main": (ALGORITHMS, MAIN, [4, 5, 6, 7, 8], 120),
    "learning-rate": (ALGORITHMS, TUNING, [0], 120),
    "ablations": (["grpo"], ABLATIONS, [1, 2, 3], 60),
    "ascent": (["grpo"], ASCENT, [1, 2, 3], 120),
    "control": (["grpo"], {"clarity-focused": "--weights 0.25 0.25 0.5"}, [4, 5, 6, 7, 8], 120),
}
OWN = {"--seed", "--output-dir", "--resume", "--objectives", "--eval-every", "--checkpoint-every"}
IN_FOLDER = str.maketrans({" ": "_", "/": "_", ",": None})  # what a folder's name has in place of a variant's


def train(algorithm, flags, seed, steps, folder, more, change):
    """Runs a script on one core to its end, from its last checkpoint if it has one; with a change if one is given."""
    changed = ["-c", CHANGED.format(change=change)] if change else []
    command = [sys.executable, *changed, ROOT / f"{algorithm}_dynw.py"]
    if (folder / "checkpoint.pt").exists():
        is_longer = json.loads((folder / "args.json").read_text())["steps"] != steps
        command += ["--resume", folder, *["--steps", str(steps)] * is_longer]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--output-dir", folder, "--seed", str(seed), "--steps", str(steps), *flags.split(), *more]
        command += ["--eval-every", str(EVAL_EVERY), "--checkpoint-every", str(EVAL_EVERY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{folder}: {done.stderr.strip()[-300:]}")


def results(folder):
    """Of each evaluation of a run: step, performance, length, weights, mean r_pareto since the last, seconds so far."""
    lines, since, seconds = read_metrics(folder), [], 0.0
    for line in lines:
        seconds += sum(value for name, value in line.items() if name.startswith("time/"))
        since.append(line.get("r_pareto", 1.0))
        if f"eval/performance/{NAMES[0]}" in line:
            performance = [round(line[f"eval/performance/{name}"], 6) for name in NAMES]
            length = round(line["eval/completions/mean_length"], 4)
            weights = [round(line[f"weights/{name}"], 4) if line["step"] else "" for name in NAMES]
            yield [line["step"], *performance, length, *weights, round(float(np.mean(since)), 4), round(seconds)]
            since = []


def record(path, case, lines):
    """Puts a run's results into the CSV, in the place of those that it has of a shorter run of this case."""
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row[: len(case)] != list(map(str, case))]
    with open(path.with_suffix(".tmp"), "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*rows, *([*case, *line] for line in lines)])
    os.replace(path.with_suffix(".tmp"), path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--study", default="main", choices=STUDIES, help="which runs (default: main)")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, help="(default: the study's)")
    parser.add_argument("--variants", nargs="+", help="of the study (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(default: the study's)")
    parser.add_argument("--steps", type=int, help="of each run (default: the study's)")
    parser.add_argument("--task", default="embedded", help="what the CSV and runs call this model and data")
    parser.add_argument("--model", help="a folder or a name on the Hub (default: the embedded model)")
    parser.add_argument("--dataset", help="likewise")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/experiment", help="where the runs go")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results.csv", help="the CSV")
    args, more = parser.parse_known_args()
    algorithms, variants, seeds, steps = STUDIES[args.study]
    algorithms, seeds = args.algorithms or algorithms, args.seeds or seeds
    steps = steps if args.steps is None else args.steps
    if unknown := {*(args.variants or [])} - variants.keys():
        parser.error(f"--variants: no {'; '.join(unknown)} in this study, which has {'; '.join(variants)}")
    if args.jobs < 1 or steps < 1:
        parser.error("--jobs, --steps: 1 or more")
    if ((args.model or args.dataset or more) and args.task == "embedded") or "/" in args.task:
        parser.error("--task: with a model, data or flags of your own, give it a name, without a /")
    own = OWN | {word for flags in variants.values() for word in flags.split() if word.startswith("--")}
    if taken := own & {word.split("=")[0] for word in more}:
        parser.error(f"{', '.join(taken)}: set by the experiment itself")
    more += [f"--{name}={value}" for name in ("model", "dataset") if (value := getattr(args, name))]

    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.results.exists():
        args.results.write_text(",".join(FIELDS) + "\n")
    if not args.results.read_text().startswith(",".join(FIELDS) + "\n"):
        parser.error(f"--results: the columns of {args.results} are not those of this experiment")
    args.runs.mkdir(parents=True, exist_ok=True)
    given = args.runs / f"{args.task}.txt"
    if given.exists() and given.read_text() != " ".join(more):
        parser.error(f"--task: {args.task} was begun with '{given.read_text()}'; other flags are another task")
    given.write_text(" ".join(more))
    with open(args.results, newline="") as file:
        done = {tuple(row[name] for name in FIELDS[:4]) for row in csv.DictReader(file) if int(row["step"]) >= steps}
    cases = [(args.task, *case) for case in product(algorithms, args.variants or variants, sorted({*seeds}))]
    cases = sorted((case for case in cases if tuple(map(str, case)) not in done), key=lambda case: case[3])
    lock, started = Lock(), time.perf_counter()

    def run(case):
        task, algorithm, variant, seed = case
        folder = args.runs / "-".join(map(str, case)).translate(IN_FOLDER)
        train(algorithm, variants[variant], seed, steps, folder, more, CHANGES.get(variant.split(", ")[-1]))
        with lock:
            record(args.results, case, results(folder))

    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(run, cases), total=len(cases), desc=args.study))
    print(f"{len(cases)} runs in {(time.perf_counter() - started) / 3600:.1f} hours, results in {args.results}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on from here")
