"""
Measures memory and time of log-probabilities over a large vocabulary, with the logits whole or in chunks.

    python benchmarks/large_vocabulary.py

There is one response of 2048 tokens. The vocabulary has 151936 tokens, as in Qwen3. The logits are in
bfloat16, as under autocast. Each way runs a forward and a backward pass, from the logits to their gradient,
in a process of its own. Takes half a minute on two cores.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
from compare import aligned  # noqa: E402

TOKENS, VOCABULARY = 2048, 151936


def whole_logprobs(logits, batch):
    """Log-probabilities (1, TOKENS) from all logits (1, TOKENS + 1, VOCABULARY) in float32."""
    chosen = logits[:, :-1].float().gather(-1, batch["ids"][:, -TOKENS:, None]).squeeze(-1)
    return chosen - logits[:, :-1].float().logsumexp(-1)


def chunked_logprobs(logits, batch):
    """The same from the function of the training scripts."""
    return grpo_dynw.token_logprobs(lambda **_: SimpleNamespace(logits=logits), batch)


WAYS = {"whole": whole_logprobs, "in chunks": chunked_logprobs}


def peak_memory():
    """The peak memory of this process in MB (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(way):
    """Returns the peak memory in MB in addition to the logits, and the seconds of both passes."""
    torch.manual_seed(0)
    logits = torch.empty(1, TOKENS + 1, VOCABULARY, dtype=torch.bfloat16).normal_().requires_grad_()
    ids = torch.randint(VOCABULARY, (1, TOKENS + 1))
    batch = {"ids": ids, "attention": torch.ones_like(ids), "mask": torch.ones(1, TOKENS).bool()}
    memory, began = peak_memory(), time.perf_counter()
    WAYS[way](logits, batch).sum().backward()
    return peak_memory() - memory, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # Measure this way, in this process.
    args = parser.parse_args()
    if args.way:
        print(*measure(args.way))
        return

    size = (TOKENS + 1) * VOCABULARY * 2 / 2**20
    print(f"torch {torch.__version__}; logits of {size:.0f} MB, and a gradient of the same size\n")
    rows = [["log-probabilities", "memory above the logits", "of which beyond the gradient", "time"]]
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        memory, seconds = map(float, result.stdout.split())
        rows.append([way, f"{memory:.0f} MB", f"{memory - size:.0f} MB", f"{seconds:.1f} s"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
