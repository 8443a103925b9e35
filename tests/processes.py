"""
Runs scripts in several processes, like torchrun, but imports the libraries only once. This is no test.

    python tests/processes.py < chains.json

chains.json is a list of chains, two of which run at a time. A chain is a list of cases, which run one after
the other. A case is a dictionary with the keys processes (their number), script (its name), flags (a list)
and, optionally:

    seed_per_prompt: If true, the responses to each prompt are sampled with a seed computed from the prompt.
        So they do not depend on how the prompts are distributed over the processes.
    kill_before: [function, n, text]. The processes kill themselves before the n-th call of this function of
        the script. With a text, which is optional, only calls with the text in an argument count.
    copy: [folder, copy]. The folder is copied before the case runs.
    exit_code: The exit code that the processes must have (default: 0).

It prints a JSON list per chain, with the output of each case (stdout and stderr together).
"""

import functools
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor

import conftest  # It adds the folder of the scripts to the path.
import torch
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

import compare
import rewards


def concatenate(parts, pad_id):
    """Joins the results of several calls of rollout, padded to the longest prompt and response."""
    R = max(part["mask"].shape[1] for part in parts)
    P = max(part["ids"].shape[1] - part["mask"].shape[1] for part in parts)
    batch = {"texts": sum((part["texts"] for part in parts), [])}
    for name, value in {"ids": pad_id, "attention": 0, "mask": 0, "lengths": None, "cut_off": None}.items():
        tensors = []
        for part in parts:
            pad_right = R - part["mask"].shape[1]
            pad_left = 0 if name == "mask" else P + R - pad_right - part["ids"].shape[1]
            padding = pad_left, pad_right
            tensors.append(part[name] if value is None else pad(part[name], padding, value=value))
        batch[name] = torch.cat(tensors)
    return batch


def with_seed_per_prompt(rollout):
    """Returns `rollout`, changed so that each prompt's responses are sampled with a seed computed from it."""

    def wrapped(model, tokenizer, prompts, G, limit, batch_size, sample=True, graph=False):
        if not sample:
            return rollout(model, tokenizer, prompts, G, limit, batch_size, sample, graph)
        parts = []
        for prompt in prompts:
            torch.manual_seed(zlib.crc32(str(prompt).encode()))
            parts.append(rollout(model, tokenizer, [prompt], G, limit, batch_size, sample, graph))
        return concatenate(parts, model.generation_config.pad_token_id)

    return wrapped


def kill_before(script, name, n, text=""):
    """
    Changes a function of the script, such as evaluate or os.replace: its n-th call kills the process.

    Only calls with `text` in an argument count.
    """
    *modules, name = name.split(".")
    owner, calls = functools.reduce(getattr, modules, script), []
    function = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if not text or any(text in str(arg) for arg in args):
            calls.append(name)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(rank, port, output, case):
    """Runs the script as process `rank`. output: the file descriptor for stdout and stderr."""
    for stream in (1, 2):
        os.dup2(output, stream)
    if case["processes"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case["processes"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    sys.argv = [f"{case['script']}.py", *case["flags"]]
    # The module reads the environment variables when it is loaded.
    script = importlib.reload(importlib.import_module(case["script"]))
    rewards.OBJECTIVES.update(conftest.CHANCE_REWARDS)
    compare.summary = compare.before_and_after  # Drawing the pictures would take longer than the run.
    if case.get("seed_per_prompt"):
        script.rollout = with_seed_per_prompt(script.rollout)
    if "kill_before" in case:
        kill_before(script, *case["kill_before"])
    script.main()


def run_chain(chain):
    """Runs the cases of a chain. Returns the output of each. RuntimeError for an unexpected exit code."""
    context, outputs = multiprocessing.get_context("fork"), []
    for case in chain:
        if "copy" in case:
            shutil.copytree(*case["copy"])
        port = free_port()
        with tempfile.TemporaryFile() as output:
            arguments = [(rank, port, output.fileno(), case) for rank in range(case["processes"])]
            processes = [context.Process(target=run, args=args, daemon=True) for args in arguments]
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout=120)
            output.seek(0)
            outputs.append(output.read().decode())
        exit_codes = [process.exitcode for process in processes]
        if any(code != case.get("exit_code", 0) for code in exit_codes):
            raise RuntimeError(f"{case}: {exit_codes} {outputs[-1][-3000:]}")
    return outputs


def main():
    # Loading the first model imports modules, which the forked processes then share.
    AutoModelForCausalLM.from_pretrained(conftest.ROOT / "tiny/model")
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        print(json.dumps(list(pool.map(run_chain, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
