"""
Runs a study of studies.py, and writes the evaluations of its runs into a CSV.

    python experiment/run_study.py eight-tasks     240 runs, two at a time, 1.5 minutes each on one core

A run that is in the CSV is not repeated, and an interrupted run continues from its last checkpoint. So the
same command continues an interrupted study. Missing tasks are made first, in runs/tasks.
`python experiment/report.py` draws the tables and pictures.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from studies import EVAL_EVERY, FOLDER, OBJECTIVES, STUDIES, cases, key_columns, key_of
from tqdm import tqdm

# Tasks and runs


def run_script(command, title):
    """Runs a Python script on one core. If it fails, this command ends with the last words of the script."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    if process.returncode:
        sys.exit(f"{title}: {process.stderr.strip()[-300:]}")


def make_task(task, folder):
    """Makes the model and the data of a task, unless `folder` has them."""
    last_file = folder / ("model/tokenizer.json" if task == "other" else "task.json")
    if task == "embedded" or last_file.exists():
        return
    script = ["other_task.py"] if task == "other" else ["make_task.py", "--seed", task]
    shutil.rmtree(folder, ignore_errors=True)  # An interrupted command may have left a part of a task.
    run_script([FOLDER / script[0], *script[1:], "--output", folder], f"task {task}")


def run_flags(study, case, folder):
    """Returns the flags of a run, except for its output folder. folder: that of the task."""
    K = study["tasks"][case["task"]]
    flags = [*study["flags"].split(), *study["weightings"](K)[case["weighting"]].split()]
    flags += ["--objectives", *OBJECTIVES[:K], f"--seed={case['seed']}", f"--steps={study['steps']}"]
    flags += [f"--eval-every={EVAL_EVERY}", f"--checkpoint-every={EVAL_EVERY}"]
    if case["task"] == "embedded":
        return flags
    limit = 96 if case["task"] == "other" else json.loads((folder / "task.json").read_text())["limit"]
    return [*flags, f"--model={folder}/model", f"--dataset={folder}/data", f"--max-new-tokens={limit}"]


def train(algorithm, flags, folder):
    """Trains in `folder`, from its checkpoint if it has one. The checkpoint contains the flags."""
    if (folder / "checkpoint.pt").exists():
        flags = ["--resume", folder]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        flags = [*flags, "--output-dir", folder]
    run_script([FOLDER / "train.py", f"{algorithm}_dynw", *flags], folder)


def read_metrics(folder):
    """Returns the lines of `folder`/metrics.jsonl as dictionaries."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def evaluations(folder):
    """
    Yields the evaluations of a run as dictionaries {column: number}.

    The sampled performance and r_pareto are means over the steps since the previous evaluation. The initial
    model, step 0, has neither, and no weights. Seconds count from the start of the run.
    """
    args = json.loads((folder / "args.json").read_text())
    names, limit = args["objectives"], args["max_new_tokens"]
    steps, seconds = [], 0.0
    for metrics in read_metrics(folder):
        seconds += sum(value for name, value in metrics.items() if name.startswith("time/"))
        if metrics["step"]:
            sampled = {f"sampled_{name}": metrics[f"rewards/{name}/mean"] for name in names}
            if "conciseness" in names:  # Its reward compares lengths with their mean so far.
                sampled["sampled_conciseness"] = 1 - metrics["completions/mean_length"] / limit
            steps.append(sampled | {"r_pareto": metrics["r_pareto"]})

        if f"eval/performance/{names[0]}" in metrics:
            row = {name: metrics[f"eval/performance/{name}"] for name in names}
            row["length"] = metrics["eval/completions/mean_length"]
            if steps:
                row |= {f"w_{name}": metrics[f"weights/{name}"] for name in names}
                row |= {name: fmean(step[name] for step in steps) for name in steps[0]}
            row = {name: round(value, 6) for name, value in row.items()}
            yield row | {"step": metrics["step"], "seconds": round(seconds)}
            steps = []


def run(study, case, folder):
    """Trains a run of a study. Returns its evaluations and its folder. folder: that of all tasks and runs."""
    flags = run_flags(study, case, folder / "tasks" / case["task"])
    # A checkpoint must not continue a run with other flags, so the name of the folder depends on the flags.
    checksum = zlib.crc32(" ".join(flags).encode())
    folder = folder / "studies" / f"{case['task']}-{case['algorithm']}-{checksum:08x}"
    train(case["algorithm"], flags, folder)
    return list(evaluations(folder)), folder


# The CSV


def read_rows(study):
    """Returns the rows of the CSV as dictionaries. ValueError if it has other columns."""
    with open(study["results"], newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != study["columns"]:
            raise ValueError("has other columns than this study writes")
        return list(reader)


def write_rows(study, rows):
    """Writes dictionaries into the CSV. An interruption leaves the old file."""
    temporary = study["results"].with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, study["columns"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, study["results"])


def missing_cases(study):
    """Returns the runs of the study that are not in its CSV, or have fewer steps there."""
    rows = [row for row in read_rows(study) if int(row["step"]) >= study["steps"]]
    finished = {key_of(study, row) for row in rows}
    return [case for case in cases(study) if key_of(study, case) not in finished]


def record(study, case, new_rows):
    """Writes the evaluations of a run into the CSV. They replace those of a shorter run of the same case."""
    key = key_of(study, case)
    other_rows = [row for row in read_rows(study) if key_of(study, row) != key]
    write_rows(study, other_rows + [dict(zip(key_columns(study), key)) | row for row in new_rows])


# The command


def run_all(study, missing, folder, jobs):
    """Makes the tasks of the missing cases, then runs the cases, and records each in the CSV."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            tasks = {case["task"] for case in missing}
            made = [pool.submit(make_task, task, folder / "tasks" / task) for task in sorted(tasks)]
            for task in tqdm(made, desc="tasks"):
                task.result()

            runs = [pool.submit(run, study, case, folder) for case in missing]
            for case, finished in zip(missing, tqdm(runs, desc="runs")):
                rows, run_folder = finished.result()
                record(study, case, rows)
                shutil.rmtree(run_folder)
        except BaseException:  # Ctrl-C, too: do not start the runs that are waiting.
            pool.shutdown(cancel_futures=True)
            raise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    args = parser.parse_args()
    study = STUDIES[args.study]
    try:
        if not study["results"].exists():
            write_rows(study, [])
        missing = missing_cases(study)
    except (OSError, ValueError) as error:
        parser.error(f"{study['results']}: {error}")
    if args.jobs < 1:
        parser.error("--jobs: must be 1 or more")

    run_all(study, missing, FOLDER.parent / "runs", args.jobs)
    print(f"{len(missing)} runs. The results are in {study['results']}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command continues the study.")
