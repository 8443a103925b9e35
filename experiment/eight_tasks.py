"""
Runs all weightings on eight tasks, as PLAN.md says, and writes the results to experiment/eight_tasks.csv.

    python experiment/eight_tasks.py             makes missing tasks, then starts 240 runs, two at a time

A run takes about 1.5 minutes on one core. A run that is in the CSV is not repeated, so the same command
continues an interrupted study. The tasks are in runs/tasks: six are made by make_task.py from a seed, one by
other_task.py, and one is the embedded task. `python experiment/report.py` draws the tables.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "experiment")]
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import read_metrics  # noqa: E402
from experiment import record  # noqa: E402

STEPS, EVAL_EVERY, SEEDS = 60, 10, [1, 2, 3]
FLAGS = f"--learning-rate 6e-5 --prompts-per-step 8 --steps {STEPS} --eval-every {EVAL_EVERY}".split()
OBJECTIVES = ["accuracy", "conciseness", "clarity", "directness"]
# The number of objectives of each task. A number is a seed of make_task.py, which drops 5, 6 and 7.
TASKS = {"embedded": 3, "other": 3, "1": 3, "2": 3, "3": 3, "4": 3, "8": 2, "9": 4}
COLUMNS = ["task", "weighting", "seed", "step", *OBJECTIVES, "length"]
COLUMNS += [f"{prefix}_{name}" for prefix in ("sampled", "w") for name in OBJECTIVES]
COLUMNS += ["r_pareto", "seconds"]


def directness(response, **_):
    """Returns 1.0 if a response neither announces its calculation nor doubts it, else 0.0."""
    return float("Okay" not in response and "Wait" not in response)


def weightings(K):
    """The flags of each weighting, by name: 2K + 1 fixed ones and three dynamic ones."""
    flags = {"balanced": ""}
    for factor, pattern in (2, "{}-focused"), (2 / 3, "less {}"):
        for k, name in enumerate(OBJECTIVES[:K]):
            weights = np.where(np.arange(K) == k, factor, 1)
            flags[pattern.format(name)] = "--weights " + " ".join(f"{w:.9f}" for w in weights / weights.sum())
    flags |= {name: f"--weighting {name}" for name in ("hypervolume", "gradient", "nash")}
    if K == 2:  # With two objectives, gradients of norm 1 would have equal influences.
        flags["gradient"] += " --influence-scale clip --mu 6e-6"
    return flags


def make_task(name, folder):
    """Makes the model and the data of a task, if they do not exist. RuntimeError if the task is dropped."""
    last_file = folder / ("model/tokenizer.json" if name == "other" else "task.json")
    if name != "embedded" and not last_file.exists():
        script = ["other_task.py"] if name == "other" else ["make_task.py", "--seed", name]
        command = [sys.executable, ROOT / "experiment" / script[0], *script[1:], "--output", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted command left
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        if process.returncode:
            raise RuntimeError(f"task {name}: {process.stderr.strip()[-300:]}")


def task_flags(name, folder):
    """The flags of the training script for a task."""
    flags = ["--objectives", *OBJECTIVES[: TASKS[name]]]
    if name == "embedded":
        return flags
    limit = json.loads((folder / "task.json").read_text())["limit"] if name != "other" else 96
    return [*flags, f"--model={folder}/model", f"--dataset={folder}/data", f"--max-new-tokens={limit}"]


def train(flags, folder):
    """Runs grpo_dynw.py in this process, and returns the rows of the CSV. The folder is removed."""
    rewards.objective(directness)
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    sys.argv, output = ["grpo_dynw.py", *FLAGS, *flags, f"--output-dir={folder}"], io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            grpo_dynw.main()
    except SystemExit:
        raise RuntimeError(output.getvalue()[-300:]) from None
    rows = list(evaluations(folder))
    shutil.rmtree(folder)
    return rows


def evaluations(folder):
    """
    Yields a list for each evaluation of a run: the columns of the CSV from "step" on.

    The sampled performance and r_pareto are means over the steps since the previous evaluation. Seconds count
    from the start of a run.
    """
    args = json.loads((folder / "args.json").read_text())
    names, limit = args["objectives"], args["max_new_tokens"]
    sampled, meta_rewards, seconds = [], [], 0.0
    for metrics in read_metrics(folder):
        seconds += sum(value for name, value in metrics.items() if name.startswith("time/"))
        if metrics["step"]:
            means = [metrics[f"rewards/{name}/mean"] for name in names]
            sampled.append(rewards.performance(names, means, metrics["completions/mean_length"], limit))
            meta_rewards.append(metrics["r_pareto"])
        if metrics["step"] % EVAL_EVERY == 0:
            row = {name: metrics[f"eval/performance/{name}"] for name in names}
            row |= {"step": metrics["step"], "length": metrics["eval/completions/mean_length"]}
            if sampled:  # The initial model, step 0, has no rollouts and weights yet.
                row |= dict(zip([f"sampled_{name}" for name in names], np.mean(sampled, 0).tolist()))
                row |= {f"w_{name}": metrics[f"weights/{name}"] for name in names}
                row["r_pareto"] = float(np.mean(meta_rewards))
            row = {name: round(value, 6) for name, value in row.items()} | {"seconds": round(seconds)}
            yield [row.get(name, "") for name in COLUMNS[3:]]
            sampled, meta_rewards = [], []


def missing_cases(path, tasks, seeds):
    """The cases (task, weighting, seed) that are not in the CSV, sorted by seed."""
    with open(path, newline="") as file:
        finished = {tuple(row.values())[:3] for row in csv.DictReader(file) if int(row["step"]) == STEPS}
    cases = [(task, name, seed) for seed in seeds for task in tasks for name in weightings(TASKS[task])]
    return [case for case in cases if tuple(map(str, case)) not in finished]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS], help="(default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="(default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder for tasks and runs")
    path = ROOT / "experiment/eight_tasks.csv"
    parser.add_argument("--results", type=Path, default=path, help="the CSV")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error("--jobs: must be 1 or more")
    try:
        if not args.results.exists():
            args.results.write_text(",".join(COLUMNS) + "\n")
        elif not args.results.read_text().startswith(",".join(COLUMNS) + "\n"):
            parser.error(f"--results: {args.results} has other columns than this study writes")
        cases = missing_cases(args.results, args.tasks, args.seeds)
    except (OSError, ValueError) as error:
        parser.error(f"--results: {args.results}: {error}")

    os.environ["OMP_NUM_THREADS"] = "1"  # The processes inherit it.
    folders = {task: args.runs.resolve() / "tasks" / task for task in args.tasks}
    with ThreadPoolExecutor(args.jobs) as pool:
        made = pool.map(make_task, folders, folders.values())
        list(tqdm(made, desc="tasks", total=len(folders)))

    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        runs = []
        for task, name, seed in cases:
            flags = weightings(TASKS[task])[name].split() + task_flags(task, folders[task])
            folder = args.runs.resolve() / "eight" / f"{task}-{name}-{seed}".replace(" ", "-")
            runs.append(pool.submit(train, [*flags, "--seed", str(seed)], folder))
        try:
            for case, run in zip(cases, tqdm(runs, desc="runs")):
                record(args.results, case, run.result())
        except BaseException:  # Ctrl-C, too: do not wait for all runs that have not begun.
            pool.shutdown(cancel_futures=True)
            raise
    print(f"{len(cases)} runs. The results are in {args.results}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command continues the study.")
