"""
Runs scripts in several processes, like torchrun, but imports the libraries only once. This is no test.

    python tests/processes.py < chains.json

chains.json is a list of chains, two of which run at a time. A chain is a list of cases, which run one after
the other. A case is a dictionary with the keys processes (their number), script (its name), flags (a list)
and, optionally:

    seed_per_prompt: If true, the responses to each prompt are sampled with a seed computed from the prompt.
        So they do not depend on how the prompts are distributed over the processes.
    kill_before: [function, n]. Each process kills itself before its n-th call of this function of the script.
"""

import functools
import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor

import conftest  # It adds the folder of the scripts to the path.
import torch
from transformers import AutoModelForCausalLM

import compare
import rewards


def run_chains(chains):
    """Runs this file with `chains`. AssertionError if a case ends otherwise than it should."""
    text = json.dumps(chains, default=str)
    result = subprocess.run([sys.executable, __file__], input=text, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr[-5000:]


def with_seed_per_prompt(respond):
    """Returns `respond`, changed so that each prompt's responses are sampled with a seed computed from it."""

    def wrapped(model, ids, attention, args, sample):
        responses = []
        for group in torch.arange(len(ids)).split(args.num_generations):
            prompt = ids[group[0]][attention[group[0]].bool()].tolist()
            torch.manual_seed(zlib.crc32(str(prompt).encode()))
            responses.append(respond(model, ids[group], attention[group], args, sample))
        return torch.cat(responses)

    return wrapped


def kill_before(script, name, n):
    """Changes a function of the script, such as evaluate or os.replace: its n-th call kills the process."""
    *modules, name = name.split(".")
    owner, calls = functools.reduce(getattr, modules, script), []
    function = getattr(owner, name)

    def wrapped(*args, **kwargs):
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
    compare.summary = compare.before_and_after  # Pictures take longer than the run.
    if case.get("seed_per_prompt"):
        script.respond = with_seed_per_prompt(script.respond)
    if "kill_before" in case:
        kill_before(script, *case["kill_before"])
    script.main()


def run_chain(chain):
    """Runs the cases of a chain. RuntimeError for an unexpected exit code."""
    context = multiprocessing.get_context("fork")
    for case in chain:
        port = free_port()
        with tempfile.TemporaryFile() as output:
            arguments = [(rank, port, output.fileno(), case) for rank in range(case["processes"])]
            processes = [context.Process(target=run, args=args, daemon=True) for args in arguments]
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout=600)
            output.seek(0)
            text = output.read().decode()
        exit_codes = {process.exitcode for process in processes}
        if exit_codes != {-signal.SIGKILL if "kill_before" in case else 0}:
            raise RuntimeError(f"{case}: {exit_codes} {text[-3000:]}")


def main():
    # Loading the first model imports modules, which the forked processes then share.
    AutoModelForCausalLM.from_pretrained(conftest.ROOT / "tiny/model")
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        list(pool.map(run_chain, json.load(sys.stdin)))


if __name__ == "__main__":
    main()
