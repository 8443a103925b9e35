"""
Makes a task of the experiment, a model and a dataset, from a seed, by the recipe of tiny/make_tiny.py.

    OMP_NUM_THREADS=1 python experiment/make_task.py --seed 1 --output runs/tasks/1

This takes 5 minutes on one core. The seed draws the problems, the styles of the demonstrations, and the limit
on the length of a response, until the demonstrations are as DEMONSTRATIONS requires. The model continues from
the embedded model, which knows the notation. If it is not as START requires, the task is dropped, and the
exit code is 1.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tiny")]
import make_tiny  # noqa: E402
from run_study import read_metrics  # noqa: E402

from rewards import clarity  # noqa: E402

# Bounds of the shares of demonstrations that are clear, and that are longer than the limit.
DEMONSTRATIONS = {"clarity": (0.10, 0.50), "cut_off": (0.20, 0.55)}
# Bounds of greedy responses to the test split.
START = {"accuracy": (0.20, 0.65), "clarity": (0.05, 0.50), "cut_off": (0.20, 0.60)}
LIMITS = range(64, 129, 8)
STAGES = [  # demonstrations, updates, batch size, learning rate
    (make_tiny.skill, 250, 48, 1e-3),
    (make_tiny.shortcuts, 350, 48, 1e-3),
    (make_tiny.manner, 350, 24, 1e-3),
]


def draw_settings(rng: random.Random) -> dict:
    """Draws the settings of a task, except for the limit. Their names are those of tiny/make_tiny.py."""
    settings = {"TERMS": rng.randint(3, 6), "BOUND": rng.choice([20, 30, 40, 50, 60])}
    settings["SIGNS"] = rng.choice([[1], [1, -1]])
    wordy = rng.uniform(0.40, 0.60)
    parts = {"bare": rng.uniform(0.2, 1), "dense": rng.uniform(0, 3)}
    parts |= {"plain": rng.uniform(0, 3), "steps": rng.uniform(0, 3)}
    manner = {style: (1 - wordy) * part / sum(parts.values()) for style, part in parts.items()}
    manner["wordy"] = wordy
    settings["MANNER"] = {style: round(share, 3) for style, share in manner.items()}

    # Greedy responses mostly follow the more probable of two manners, so these shares of the problems
    # determine how many greedy responses are clear, and how many are cut off.
    settings["ORDINALS_BELOW"] = round(rng.uniform(0.2, 0.8) * settings["BOUND"])
    settings["RECHECKS_BELOW"] = round(rng.uniform(0.4, 0.7) * settings["BOUND"])
    for name in ("ORDINALS", "RECHECKS"):
        rare, frequent = round(rng.uniform(0.05, 0.25), 2), round(rng.uniform(0.75, 0.95), 2)
        settings[name] = [rare, frequent] if name == "RECHECKS" else [frequent, rare]  # below, otherwise
    return settings


def apply_settings(settings: dict, limit: int):
    """Sets the constants of tiny/make_tiny.py."""
    for name in ("TERMS", "BOUND", "SIGNS", "MANNER", "ORDINALS_BELOW", "RECHECKS_BELOW"):
        setattr(make_tiny, name, settings[name])
    for name in ("ORDINALS", "RECHECKS"):
        setattr(make_tiny, name, dict(zip((True, False), settings[name])))
    make_tiny.LIMIT = limit


def demonstration_shares(limit: int, responses: list[str], lengths: list[int]) -> dict:
    """Returns the shares of demonstrations that are clear and not cut off, and that are cut off."""
    cut_off = [length > limit for length in lengths]
    clear = [clarity(response) and not cut for response, cut in zip(responses, cut_off)]
    return {"clarity": sum(clear) / len(clear), "cut_off": sum(cut_off) / len(cut_off)}


def outside(values: dict, bounds: dict) -> list[str]:
    """Returns the names of the values that are not within their bounds."""
    return [name for name, (low, high) in bounds.items() if not low <= values[name] <= high]


def draw_task(seed: int, tokenizer) -> dict:
    """Draws settings until demonstrations are as DEMONSTRATIONS requires with one of LIMITS, or several."""
    rng = random.Random(f"task {seed}")
    while True:
        settings = draw_settings(rng)
        apply_settings(settings, LIMITS[-1])
        sample = random.Random(0)
        responses = [make_tiny.manner(make_tiny.make_problem(sample), sample) for _ in range(500)]
        lengths = [len(ids) + 1 for ids in tokenizer(responses)["input_ids"]]  # with the end token
        shares = {limit: demonstration_shares(limit, responses, lengths) for limit in LIMITS}
        if limits := [limit for limit in LIMITS if not outside(shares[limit], DEMONSTRATIONS)]:
            limit = rng.choice(limits)
            return {"seed": seed, "limit": limit, **settings, "demonstrations": shares[limit]}


def start_of(folder: Path, limit: int) -> dict:
    """Returns the performance of the initial model: greedy responses to the test split."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, ROOT / "grpo_dynw.py", "--steps", "0", "--output-dir", f"{output}/run"]
        command += ["--model", folder / "model", "--dataset", folder / "data", "--max-new-tokens", str(limit)]
        subprocess.run(command, check=True, capture_output=True)
        metrics = read_metrics(f"{output}/run")[0]
    start = {name: metrics[f"eval/performance/{name}"] for name in ("accuracy", "conciseness", "clarity")}
    return {**start, "cut_off": metrics["eval/completions/clipped_ratio"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--seed", type=int, required=True, help="seed of the task")
    parser.add_argument("--output", type=Path, required=True, help="folder for model/ and data/")
    args = parser.parse_args()
    if args.output.exists():  # An interrupted run must not leave new data beside an old model.
        parser.error(f"--output: {args.output} exists")

    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    model = transformers.AutoModelForCausalLM.from_pretrained(ROOT / "tiny/model", dtype=torch.float32)
    task = draw_task(args.seed, tokenizer)
    print(json.dumps(task))
    apply_settings(task, task["limit"])
    torch.manual_seed(args.seed)
    held_out = make_tiny.write_data(args.output / "data", random.Random(args.seed))
    for number, stage in enumerate(STAGES, 1):
        make_tiny.train(model, tokenizer, held_out, *stage, random.Random(f"{args.seed} {number}"))
    model.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")

    task["start"] = start_of(args.output, task["limit"])
    print(json.dumps(task["start"]))
    if names := outside(task["start"], START):
        sys.exit(f"task {args.seed} is dropped: {', '.join(names)} of the initial model")
    (args.output / "task.json").write_text(json.dumps(task, indent=2) + "\n")


if __name__ == "__main__":
    main()
