"""
All that is to be tried on a GPU, in one command without a network: does it run, is it right, how fast is it?

    python benchmarks/gpu.py                       prints the tables for benchmarks/README.md, in ten minutes at most
    python benchmarks/gpu.py --parts 1             part by part
    python benchmarks/gpu.py --device cpu --toy    the same at toy sizes: shows that this file runs, no more

1. Each script with each weighting on the embedded model: step 1 against the CPU, from the same responses; 10 steps.
2. Steps of random models of the shapes of Qwen3-0.6B, 1.7B and 4B: seconds by phase, memory, gradient over fixed.
3. Ways to generate: tokens a second, and whether greedy responses are those of plain `generate`.
4. A run that is resumed against one that was not stopped.
5. torchrun with one process: NCCL and FSDP2 against neither, with two updates a step and recomputed activations.

Each part has a process and a share of the ten minutes of its own, and prints each row as it is made, so that none takes
another with it. Exit code 1 if something is not as it should be, which its row then ends with (part 3 only counts).
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import rollout_speed  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import compare  # noqa: E402
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402

SCRIPTS, WEIGHTINGS = ["grpo", "rloo", "reinforce"], ["fixed", "hypervolume", "gradient", "ascent"]
SHAPES = {  # hidden and intermediate size, layers, heads, of keys and values
    "0.6B": (1024, 3072, 28, 16, 8),
    "1.7B": (2048, 6144, 28, 16, 8),
    "4B": (2560, 9728, 36, 32, 8),
}
TOY = {"toy": (64, 128, 2, 2, 1)}
TOY_FLAGS = ["--prompts-per-step", "2", "--num-generations", "4", "--max-new-tokens", "24"]
# What bfloat16, with 8 bits, may change in a step from the same responses.
ALLOWED = {"rewards": 1e-9, "loss": 3e-3, "grad_norm, relative": 0.05, "influence": 0.05, "weights": 5e-3}
SECONDS = {1: 210, 2: 150, 3: 140, 4: 40, 5: 60}  # of each part, after which it is stopped


def line(cells):
    """Cells as a row of a table in Markdown."""
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"


def fresh(name):
    """A script as a new module, whose parser has no flags yet."""
    spec = importlib.util.spec_from_file_location(f"{name}_dynw", ROOT / f"{name}_dynw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(script, folder, *flags):
    """A run of a script in this process. Returns its metrics. RuntimeError with its last line if it fails."""
    where = [] if "--resume" in flags else ["--output-dir", folder]
    sys.argv = [f"{script.ALGORITHM}_dynw.py", *map(str, [*flags, *where])]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            with patch.object(compare, "summary", str):  # no pictures
                script.main()
        except SystemExit as error:
            raise RuntimeError(said.getvalue().strip().splitlines()[-1]) from error
    return compare.read_metrics(folder)


def first_step(script, kept):
    """`script`, whose first rollouts are those in the list `kept` or, where that is empty, are put there."""
    rollout, calls = script.rollout, itertools.count()

    def replayed(model, *given, **options):
        is_first = options.get("sample", True) and next(calls) == 0
        if is_first and kept:
            return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in kept[0].items()}
        batch = rollout(model, *given, **options)
        kept.extend([batch] if is_first else [])
        return batch

    script.rollout = replayed
    return script


def apart(one, other, keys):
    """The largest difference of two steps in these metrics; infinite where one is null, that is, not finite."""
    pairs = [(one[key], other[key]) for key in keys]
    return max((math.inf if None in pair else abs(pair[0] - pair[1]) for pair in pairs), default=0.0)


def differences(one, other):
    """By how much two steps differ, at most in any objective: see ALLOWED."""
    found = {"loss": apart(one, other, ["loss"])}
    found["grad_norm, relative"] = apart(one, other, ["grad_norm"]) / max(other["grad_norm"] or 0.0, 1e-9)
    for kind in ("rewards", "influence", "weights"):
        found[kind] = apart(one, other, [key for key in one if key.startswith(f"{kind}/")])
    return found


def against_the_cpu(device, data, flags, scratch):
    """Part 1. Rows: what differs in step 1, and the hypervolume before and after 10 steps."""
    yield ["script", "weighting", *ALLOWED, "hypervolume after 0 and 10 steps", "as it should be"]
    yield ["allowed", "", *ALLOWED.values(), "any" if flags else "more", ""]
    for name, weighting in [("grpo", "gradient")] if flags else itertools.product(SCRIPTS, WEIGHTINGS):
        kept, given = [], ["--weighting", weighting, "--dataset", data, "--eval-every", "10", *flags]
        where = scratch / f"{name}-{weighting}"
        cpu = train(first_step(fresh(name), kept), f"{where}-cpu", *given, "--steps", "1", "--device", "cpu")
        there = train(first_step(fresh(name), kept), where, *given, "--steps", "10", "--device", device)
        found = differences(there[1], cpu[1])
        volumes = [there[i]["eval/hypervolume"] for i in (0, 10)]
        is_right = all(found[what] <= most for what, most in ALLOWED.items()) and (flags or volumes[0] < volumes[1])
        cells = [f"{found[what]:.1e}" for what in ALLOWED]
        yield [name, weighting, *cells, "{:.3f} {:.3f}".format(*volumes), "yes" if is_right else "NO"]


def made_here(shape, device, folder):
    """A context in which models are random ones of this shape, made on the device, and are not written to the disk."""
    hidden, intermediate, layers, heads, kv = shape
    config = transformers.Qwen3Config(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=128 if hidden > 64 else 32, tie_word_embeddings=True,
        max_position_embeddings=4096, vocab_size=151936 if hidden > 64 else 512,
    )  # fmt: skip
    transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/model").save_pretrained(folder)
    config.save_pretrained(folder)

    def from_pretrained(name, dtype=torch.float32, output_loading_info=False):
        torch.manual_seed(0)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        return (model, {"missing_keys": []}) if output_loading_info else model

    stack = contextlib.ExitStack()
    stack.enter_context(patch.object(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained))
    stack.enter_context(patch.object(transformers.PreTrainedModel, "save_pretrained", lambda *_: None))
    return stack


def free(device):
    """Lets go of what a run has left on the device, and begins to count its memory anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def steps(device, data, shapes, flags, scratch):
    """
    Part 2. Rows: seconds by phase of a step, the step and its probe and update over those of fixed weights, responses a
    second, memory a parameter.
    """
    phases = ["rollout", "probe", "update"]
    yield ["shape", "script", "weighting", *phases, "step", "of fixed", "probe + update, of fixed",
           "responses a second", "peak GB", "bytes a parameter"]  # fmt: skip
    for name, shape in shapes.items():
        fixed = [math.nan] * len(phases)
        for weighting in ("fixed", "gradient"):
            free(device)
            script = fresh("rloo" if name == "4B" else "grpo")  # without the reference model, it may fit
            given = ["--weighting", weighting, "--dataset", data, "--model", scratch / name, "--device", device]
            given += ["--eval-every", "10", "--steps", "3", "--micro-batch-size", "8", *flags]
            given += ["--gradient-checkpointing"] * (name == "4B")
            evaluate = script.evaluate  # which is not what is measured
            script.evaluate = lambda *first, evaluate=evaluate: evaluate(*first[:3], 8, *first[4:])
            cells = [name, script.ALGORITHM, weighting]
            with made_here(shape, device, scratch / name):
                try:
                    last = train(script, scratch / f"{name}-{weighting}", *given)[-1]
                except RuntimeError as error:  # that it does not fit is a result
                    if "out of memory" not in str(error):
                        raise
                    yield [*cells, *["-"] * 8, "out of memory"]
                    continue
            times = [last[f"time/{phase}"] for phase in phases]
            if weighting == "fixed":
                fixed = times
            args = json.loads((scratch / f"{name}-{weighting}/args.json").read_text())
            responses = args["prompts_per_step"] * args["num_generations"]
            with torch.device("meta"), made_here(shape, "meta", scratch / name):
                model = transformers.AutoModelForCausalLM.from_pretrained(name)
            peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else math.nan
            numbers = [*times, sum(times), sum(times) / sum(fixed), sum(times[1:]) / sum(fixed[1:])]
            numbers += [responses / sum(times), peak / 1e9, peak / sum(p.numel() for p in model.parameters())]
            yield [*cells, *(f"{number:.2f}" for number in numbers)]


def rollouts(device, shape, name, count, limit, calls, scratch):
    """Part 3. Rows: the ways of rollout_speed.py, and the share of greedy responses that are those of `generate`."""
    free(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with made_here(shape, device, scratch / name) if shape else contextlib.nullcontext(), torch.no_grad():
        where = str(scratch / name if shape else ROOT / "tiny/model")
        model, tokenizer, _ = grpo_dynw.load_model(where, device, dtype)
        if shape:  # a random model, whose responses are to end now and then
            model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 128))
        with contextlib.redirect_stdout(io.StringIO()):
            problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
        prompts = [p["prompt_ids"] for p in problems[:count]]
        expected = rollout_speed.plain(model, prompts, limit, sample=False)
        yield ["model", *rollout_speed.table(model, [], 0, 0, [])[0], "greedy as generate"]
        for way in rollout_speed.WAYS:
            if way == "generate, static cache, compiled":  # on CUDA transformers compiles for a static cache by itself
                continue
            [row] = rollout_speed.table(model, prompts, limit, calls, [way])[1:]
            if row[1] == "-":
                yield [name, *row, ""]
                continue
            said = rollout_speed.WAYS[way](model, prompts, limit, False)
            yield [name, *row, f"{sum(a == list(b) for a, b in zip(expected, said))} of {count}"]


def moments(checkpoint):
    """AdamW's moments in a checkpoint, as one vector."""
    states = torch.load(checkpoint, weights_only=True)["optimizer"]["state"].values()
    return torch.cat([state[name].flatten() for state in states for name in ("exp_avg", "exp_avg_sq")])


def resumed(device, data, flags, scratch):
    """
    Part 4. Rows: how far a run that was stopped after 2 of 4 steps is from one that was not. Its first step must have
    the same responses, and its last the same moments of the optimiser.
    """
    given = ["--weighting", "gradient", "--dataset", data, "--device", device, "--checkpoint-every", "2", *flags]
    whole = train(fresh("grpo"), scratch / "whole", *given, "--steps", "4")
    train(fresh("grpo"), scratch / "parts", *given, "--steps", "2")
    parts = train(fresh("grpo"), scratch / "parts", "--resume", scratch / "parts", "--steps", "4")
    kinds = ["completions/mean_length", "rewards/", "weights/"]
    keys = [[key for key in whole[3] if key.startswith(kind) and "frac" not in key] for kind in kinds]
    a, b = (moments(scratch / name / "checkpoint.pt") for name in ("parts", "whole"))
    numbers = [*(apart(parts[3], whole[3], of_kind) for of_kind in keys), ((a - b).norm() / b.norm()).item()]
    allowed = [1.0, 0.03, 5e-3, 0.3]  # a response or two may be others, since kernels do not add in one order
    is_right = all(number <= most for number, most in zip(numbers, allowed))
    yield ["", "mean length", "rewards", "weights", "moments after step 4, relative", "as it should be"]
    yield ["allowed", *allowed, ""]
    yield ["found", *(f"{number:.1e}" for number in numbers), "yes" if is_right else "NO"]


def sharded(device, data, flags, scratch):
    """Part 5. Rows: step 1 under torchrun with one process against a run without."""
    given = ["--weighting", "gradient", "--dataset", data, "--device", device.split(":")[0], "--steps", "2", *flags]
    given += ["--updates-per-step", "2", "--gradient-checkpointing"]
    alone = train(fresh("grpo"), scratch / "alone", *given)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "1", ROOT / "grpo_dynw.py", *given, "--output-dir", scratch / "sharded"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode and "Metrics, completions" not in done.stdout:  # gloo may abort at exit (pytorch/pytorch#179291)
        raise RuntimeError(done.stderr[-3000:])
    found = differences(compare.read_metrics(scratch / "sharded")[1], alone[1])
    is_right = all(found[what] <= most for what, most in ALLOWED.items())
    yield ["", *ALLOWED, "as it should be"]
    yield ["allowed", *ALLOWED.values(), ""]
    yield ["found", *(f"{found[what]:.1e}" for what in ALLOWED), "yes" if is_right else "NO"]


def parts(number, device, toy, scratch):
    """The tables of a part: generators of rows, of which the first are titles."""
    flags, data, few = TOY_FLAGS if toy else [], scratch / "data", {"train": 4000, "validation": 50, "test": 100}
    data.mkdir()
    for split, most in few.items():  # fewer to evaluate on
        lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(lines[: 8 if toy else most]))
    if number == 2:
        large = flags or ["--prompts-per-step", "8", "--max-new-tokens", "256"]
        return [steps(device, data, TOY if toy else SHAPES, large, scratch)]
    if number == 3:
        shape = TOY["toy"] if toy else SHAPES["0.6B"]
        return [
            rollouts(device, None, "embedded", *((4, 20, 2) if toy else (128, 96, 4)), scratch),
            rollouts(device, shape, "random", *((4, 20, 2) if toy else (64, 128, 3)), scratch),
        ]
    return [{1: against_the_cpu, 4: resumed, 5: sharded}[number](device, data, flags, scratch)]


def run_part(number, device, toy):
    """Prints the tables of a part, row by row. Whether all is as it should be."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # as the scripts do
    is_right, started = True, time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for rows in parts(number, device, toy, Path(scratch)):
            print(f"\nPart {number}:\n", flush=True)
            try:
                for i, row in enumerate(rows):
                    print(line(row) + ("\n|" + " --- |" * len(row)) * (i == 0), flush=True)
                    is_right &= row[-1] != "NO"
            except (Exception, SystemExit) as error:  # the other parts are to run all the same
                print(line([f"it failed: {type(error).__name__}: {error}", "NO"]), flush=True)
                is_right = False
    print(f"\nIn {time.perf_counter() - started:.0f} s", flush=True)
    return is_right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try this file")
    parser.add_argument("--toy", action="store_true", help="toy sizes")
    parser.add_argument("--parts", nargs="+", type=int, choices=SECONDS, default=list(SECONDS), help="(default: all)")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # one part, in this process
    args = parser.parse_args()
    if args.run:
        sys.exit(not run_part(args.run, args.device, args.toy))
    is_cuda = args.device.startswith("cuda")
    if not is_cuda and args.device != "cpu":
        parser.error("--device: cuda, cuda:1 ... or cpu")
    if is_cuda and not torch.cuda.is_available():
        parser.error("--device: there is no GPU here")
    what = torch.cuda.get_device_name(args.device) if is_cuda else "CPU"
    print(f"{what}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    failed = False
    for number in sorted(set(args.parts)):
        command = [sys.executable, __file__, "--device", args.device, "--run", str(number), *["--toy"] * args.toy]
        with subprocess.Popen(command, start_new_session=True) as part:
            try:
                failed |= part.wait(SECONDS[number]) != 0
            except subprocess.TimeoutExpired:
                print(f"\nPart {number} was stopped after {SECONDS[number]} s", flush=True)
                failed = True
            finally:
                if part.poll() is None:
                    os.killpg(part.pid, signal.SIGKILL)  # with what it has started
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
