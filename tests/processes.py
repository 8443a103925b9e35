"""
Runs a script in several processes, as torchrun does, case after case without importing anything anew. No test itself.

    python tests/processes.py < cases.json

cases.json: a list of [number of processes, script, is_by_prompt, flags]. With is_by_prompt, the responses to a prompt
are drawn from a seed that is made of it: they are the same, however the prompts are spread over processes.
"""
import importlib
import json
import multiprocessing
import os
import socket
import sys
import zlib

import conftest  # noqa: F401, of which the path to the scripts
import torch

import rewards


def joined(parts, pad_id):
    """Rollouts of several calls as one batch, padded to their longest prompt and response."""
    P, R = (max(widths) for widths in zip(*((p["ids"].shape[1] - p["response_mask"].shape[1],
                                             p["response_mask"].shape[1]) for p in parts)))
    batch = {"ids": [], "attention_mask": [], "response_mask": []}
    for part in parts:
        r = part["response_mask"].shape[1]
        left = P - part["ids"].shape[1] + r
        batch["ids"].append(torch.nn.functional.pad(part["ids"], (left, R - r), value=pad_id))
        batch["attention_mask"].append(torch.nn.functional.pad(part["attention_mask"], (left, R - r)))
        batch["response_mask"].append(torch.nn.functional.pad(part["response_mask"], (0, R - r)))
    return {name: torch.cat(tensors) for name, tensors in batch.items()}


def by_prompt(rollout, num_generations):
    """`rollout`, but each group of sampled responses is drawn from a seed that is made of its prompt."""
    def wrapped(model, prompts, max_new_tokens, sample, batch_size):
        if not sample:
            return rollout(model, prompts, max_new_tokens, sample, batch_size)
        parts = []
        for i in range(0, len(prompts), num_generations):
            torch.manual_seed(zlib.crc32(str(prompts[i]).encode()))
            parts.append(rollout(model, prompts[i : i + num_generations], max_new_tokens, sample, batch_size))
        return joined(parts, model.generation_config.pad_token_id)

    return wrapped


def run(rank, world, port, name, is_by_prompt, flags):
    """The script, as process `rank` of `world`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    script = importlib.import_module(name)
    # What random models say is never right: here, accuracy and clarity are of another kind, which they meet by chance.
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 2)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: float(len(set(response)) > 8)
    script.plot_curves = script.plot_fronts = lambda *_: None
    sys.argv = [f"{name}.py", *flags]
    if is_by_prompt:
        script.rollout = by_prompt(script.rollout, 4)
    script.main()


def main():
    for name in conftest.SCRIPTS:
        importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    for world, name, is_by_prompt, flags in json.load(sys.stdin):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [context.Process(target=run, args=(rank, world, port, name, is_by_prompt, flags),
                                   daemon=True)
                   for rank in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=120)
        if any(process.exitcode != 0 for process in started):
            sys.exit(f"failed: {world} processes, {name} {flags}")


if __name__ == "__main__":
    main()
