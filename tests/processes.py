"""
Runs a script in several processes, as torchrun does, case after case without importing anything anew. No test itself.

    python tests/processes.py < chains.json

chains.json: a list of chains, of which two run at a time. A chain is a list of cases, one after the other, and a case a
dictionary: processes, script and flags, and if need be

    by_prompt: the responses to a prompt are drawn from a seed that is made of it: they are the same, however prompts
        are spread over processes
    killed_in: [function, n, text]: before the n-th call of this name in the script, of those with the text in an
        argument if one is given, the processes kill themselves
    copy: [folder, copy]: the folder is copied first
    exit_code: what the processes end with (default: 0)

It prints what they print, on stdout and stderr: a list for each chain, of a text for each case.
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

import conftest  # of which the path to the scripts, and their imports
import torch
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

import compare
import rewards


def joined(parts, pad_id):
    """Rollouts of several calls as one, padded to their longest prompt and response."""
    R = max(part["mask"].shape[1] for part in parts)
    P = max(part["ids"].shape[1] - part["mask"].shape[1] for part in parts)
    batch = {"texts": sum((part["texts"] for part in parts), [])}
    for name, value in {"ids": pad_id, "attention": 0, "mask": 0, "lengths": None, "cut_off": None}.items():
        tensors = []
        for part in parts:
            right = R - part["mask"].shape[1]
            left = 0 if name == "mask" else P + R - right - part["ids"].shape[1]
            tensors.append(part[name] if value is None else pad(part[name], (left, right), value=value))
        batch[name] = torch.cat(tensors)
    return batch


def by_prompt(rollout):
    """`rollout`, but each group of sampled responses is drawn from a seed that is made of its prompt."""

    def wrapped(model, tokenizer, prompts, G, limit, batch_size, sample=True):
        if not sample:
            return rollout(model, tokenizer, prompts, G, limit, batch_size, sample)
        parts = []
        for prompt in prompts:
            torch.manual_seed(zlib.crc32(str(prompt).encode()))
            parts.append(rollout(model, tokenizer, [prompt], G, limit, batch_size))
        return joined(parts, model.generation_config.pad_token_id)

    return wrapped


def kill_in(script, name, n, text=""):
    """Of the function of this name (such as os.replace), the n-th call with `text` in an argument kills the process."""
    *modules, name = name.split(".")
    owner, calls = functools.reduce(getattr, modules, script), []
    function = getattr(owner, name)

    def wrapped(*args, **kwargs):
        calls.extend([1] if not text or any(text in str(arg) for arg in args) else [])
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def run(rank, port, said, case):
    """The script, as process `rank` of all."""
    for stream in (1, 2):
        os.dup2(said, stream)
    if case["processes"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case["processes"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    sys.argv = [f"{case['script']}.py", *case["flags"]]
    script = importlib.reload(importlib.import_module(case["script"]))  # it reads the environment
    # What random models say is never right: here, accuracy and clarity are of another kind, which they meet by chance.
    rewards.OBJECTIVES["accuracy"] = lambda response, **_: float(len(response) % 2)
    rewards.OBJECTIVES["clarity"] = lambda response, **_: float(len(set(response)) > 8)
    compare.summary = compare.before_and_after  # pictures take longer than the run
    if case.get("by_prompt"):
        script.rollout = by_prompt(script.rollout)
    if "killed_in" in case:
        kill_in(script, *case["killed_in"])
    script.main()


def run_chain(chain):
    context, texts = multiprocessing.get_context("fork"), []
    for case in chain:
        if "copy" in case:
            shutil.copytree(*case["copy"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryFile() as said:
            arguments = [(rank, port, said.fileno(), case) for rank in range(case["processes"])]
            started = [context.Process(target=run, args=each, daemon=True) for each in arguments]
            for process in started:
                process.start()
            for process in started:
                process.join(timeout=120)
            said.seek(0)
            texts.append(said.read().decode())
        if any(process.exitcode != case.get("exit_code", 0) for process in started):
            raise RuntimeError(f"{case}: {[process.exitcode for process in started]} {texts[-1][-3000:]}")
    return texts


def main():
    AutoModelForCausalLM.from_pretrained(conftest.ROOT / "tiny/model")  # what the first one takes longer for
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        print(json.dumps(list(pool.map(run_chain, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
