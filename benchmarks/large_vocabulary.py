"""
What log-probabilities over a large vocabulary take, in memory and time, with and without a float32 copy of the logits.

    python benchmarks/large_vocabulary.py

One response of 2048 tokens and a vocabulary of 151936, as of Qwen3, with logits in bfloat16 as under autocast. Each way
runs in a process of its own: forwards and backwards, from the logits to their gradient. Half a minute on two cores.
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


def whole(logits, batch):
    """The plain way: all logits in float32."""
    chosen = logits[:, :-1].float().gather(-1, batch["ids"][:, -TOKENS:, None]).squeeze(-1)
    return chosen - logits[:, :-1].float().logsumexp(-1)


def in_chunks(logits, batch):
    """That of the scripts."""
    return grpo_dynw.token_logprobs(lambda **_: SimpleNamespace(logits=logits), batch)


def peak():
    """MB that this process has held at its peak (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def measure(way):
    """MB above those of the logits, and seconds."""
    torch.manual_seed(0)
    logits = torch.empty(1, TOKENS + 1, VOCABULARY, dtype=torch.bfloat16).normal_().requires_grad_()
    ids = torch.randint(VOCABULARY, (1, TOKENS + 1))
    batch = {"ids": ids, "attention": torch.ones_like(ids), "mask": torch.ones(1, TOKENS).bool()}
    before, started = peak(), time.perf_counter()
    way(logits, batch).sum().backward()
    print(peak() - before, time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--way", choices=["whole", "in_chunks"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        measure(globals()[args.way])
        return
    size = (TOKENS + 1) * VOCABULARY * 2 / 2**20
    print(f"torch {torch.__version__}; logits of {size:.0f} MB, their gradient as much again\n")
    rows = [["log-probabilities", "memory above the logits", "of which beyond the gradient", "time"]]
    for way in ("whole", "in_chunks"):
        command = [sys.executable, __file__, "--way", way]
        memory, seconds = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        rows.append([way.replace("_", " "), f"{memory:.0f} MB", f"{memory - size:.0f} MB", f"{seconds:.1f} s"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
