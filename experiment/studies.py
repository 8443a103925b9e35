"""
Defines the studies: their tasks, weightings, seeds, steps and CSV files. run_study.py runs them.

Weightings are flags of the training scripts, by name.
"""

from itertools import product
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OBJECTIVES = ["accuracy", "conciseness", "clarity", "directness"]
EVAL_EVERY = 10  # steps


# Weightings


def weightings(K):
    """Returns the weightings of PLAN.md for K objectives: 2K + 1 fixed ones and three dynamic ones."""
    flags = {"balanced": ""}
    for factor, pattern in (2, "{}-focused"), (2 / 3, "less {}"):
        for name in OBJECTIVES[:K]:
            weights = [factor if other == name else 1 for other in OBJECTIVES[:K]]
            shares = [f"{weight / sum(weights):.9f}" for weight in weights]
            flags[pattern.format(name)] = f"--weights {' '.join(shares)}"
    flags |= {name: f"--weighting {name}" for name in ("hypervolume", "gradient", "nash")}
    if K == 2:  # With two objectives, gradients of norm 1 would have equal influences.
        flags["gradient"] += " --influence-scale clip --mu 6e-6"
    return flags


EARLIER = {
    "accuracy-focused": "--weights 0.5 0.25 0.25",
    "balanced": "",
    "efficiency-focused": "--weights 0.25 0.375 0.375",
    "hypervolume": "--weighting hypervolume",
    "gradient": "--weighting gradient",
    "nash": "--weighting nash",
}
CONTROL = {"clarity-focused": "--weights 0.25 0.25 0.5"}  # It was added after the other runs had been seen.


# Studies


def columns(keys, objectives, prefixes):
    """Returns the columns of a CSV. The keys identify a run. The other columns describe an evaluation."""
    names = [*keys, "step", *objectives, "length"]
    names += [f"{prefix}_{name}" for prefix in prefixes for name in objectives]
    return [*names, "r_pareto", "seconds"]


# tasks: the number of objectives of each task. A task whose name is a number is a seed of make_task.py.
# weightings: a function of the number of objectives. flags: those of all runs of the study.
EIGHT_TASKS = {
    "results": FOLDER / "eight_tasks.csv",
    "columns": columns(["task", "weighting", "seed"], OBJECTIVES, ["sampled", "w"]),
    "tasks": {"embedded": 3, "other": 3, "1": 3, "2": 3, "3": 3, "4": 3, "8": 2, "9": 4},
    "algorithms": ["grpo"],
    "weightings": weightings,
    "seeds": [1, 2, 3],
    "steps": 60,
    "flags": "--learning-rate 6e-5 --prompts-per-step 8",
}
TWELVE_TASKS = EIGHT_TASKS | {  # of PLAN-2.md
    "results": FOLDER / "twelve_tasks.csv",
    "tasks": dict.fromkeys(["10", "11", "12", "13", "16", "17", "19", "20", "22", "23", "24", "26"], 3),
    "weightings": lambda K: {name: weightings(K)[name] for name in ("balanced", "nash", "gradient")},
    "seeds": [1, 2],
}
ALGORITHMS = {
    "results": FOLDER / "results.csv",  # It calls a weighting a variant.
    "columns": columns(["task", "algorithm", "variant", "seed"], OBJECTIVES[:3], ["w"]),
    "tasks": {"embedded": 3},
    "algorithms": ["grpo", "rloo", "reinforce"],
    "weightings": lambda K: EARLIER,
    "seeds": [4, 5, 6, 7, 8],
    "steps": 120,
    "flags": "",
}
ON_GRPO = ALGORITHMS | {"algorithms": ["grpo"]}
STUDIES = {
    "eight-tasks": EIGHT_TASKS,
    "twelve-tasks": TWELVE_TASKS,
    "algorithms": ALGORITHMS,
    "control": ON_GRPO | {"weightings": lambda K: CONTROL},
    "other-task": ON_GRPO | {"tasks": {"other": 3}, "weightings": lambda K: EARLIER | CONTROL, "steps": 180},
}


def key_columns(study):
    """Returns the columns of the CSV that identify a run."""
    return study["columns"][: study["columns"].index("step")]


def cases(study):
    """Returns the runs of a study, sorted by seed: dictionaries with task, algorithm, weighting and seed."""
    grid = product(study["seeds"], study["tasks"].items(), study["algorithms"])
    return [
        # results.csv calls a weighting a variant.
        {"task": task, "algorithm": algorithm, "weighting": name, "variant": name, "seed": seed}
        for seed, (task, K), algorithm in grid
        for name in study["weightings"](K)
    ]


def key_of(study, case):
    """Returns the cells that identify a run in the CSV, as a tuple of texts."""
    return tuple(str(case[name]) for name in key_columns(study))
