"""
All that is to be tried on a GPU, in one command without a network: does it run, is it right, how fast is it?

    python benchmarks/gpu.py                       prints the tables for benchmarks/README.md
    python benchmarks/gpu.py --parts 1             meant for ten minutes in all; or part by part
    python benchmarks/gpu.py --device cpu --toy    the same at toy sizes: shows that this file runs, no more

1. Each script with each weighting on the embedded model: step 1 against the CPU, from the same responses; 10 steps.
2. Steps of random models of the shapes of Qwen3-0.6B, 1.7B and 4B: seconds by phase, memory, gradient over fixed.
3. Ways to generate: tokens a second, and whether greedy responses are those of plain `generate`.
4. A run that is resumed against one that was not stopped.
5. torchrun with one process: NCCL and FSDP2 against neither, with two updates a step and recomputed activations.

Exit code 1 if something is not as it should be, which its row then ends with.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import rollout_speed  # noqa: E402

import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import read_metrics  # noqa: E402

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


def table(rows):
    """Rows of cells, the first of them titles, as Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


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
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            script.main()
        except SystemExit as error:
            raise RuntimeError(said.getvalue().strip().splitlines()[-1]) from error
    return read_metrics(folder)


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


def differences(one, other):
    """By how much two steps differ, largest first of several objectives: see ALLOWED."""
    found = {"loss": abs(one["loss"] - other["loss"])}
    found["grad_norm, relative"] = abs(one["grad_norm"] - other["grad_norm"]) / max(other["grad_norm"], 1e-9)
    for kind in ("rewards", "influence", "weights"):
        keys = [key for key in one if key.startswith(f"{kind}/")]
        found[kind] = max((abs(one[key] - other[key]) for key in keys), default=0.0)
    return found


def against_the_cpu(device, data, flags, scratch):
    """Part 1. Rows: what differs in step 1, and the hypervolume before and after 10 steps."""
    rows = [["script", "weighting", *ALLOWED, "hypervolume after 0 and 10 steps", "as it should be"]]
    rows.append(["allowed", "", *ALLOWED.values(), "more", ""])
    for name, weighting in [("grpo", "gradient")] if flags else itertools.product(SCRIPTS, WEIGHTINGS):
        kept, given = [], ["--weighting", weighting, "--dataset", data, "--eval-every", "10", *flags]
        where = scratch / f"{name}-{weighting}"
        cpu = train(first_step(fresh(name), kept), f"{where}-cpu", *given, "--steps", "1", "--device", "cpu")
        there = train(first_step(fresh(name), kept), where, *given, "--steps", "10", "--device", device)
        found = differences(there[1], cpu[1])
        volumes = [there[i]["eval/hypervolume"] for i in (0, 10)]
        is_right = all(found[what] <= most for what, most in ALLOWED.items()) and (flags or volumes[0] < volumes[1])
        cells = [f"{found[what]:.1e}" for what in ALLOWED]
        rows.append([name, weighting, *cells, "{:.3f} {:.3f}".format(*volumes), "yes" if is_right else "NO"])
    return rows


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
    """Part 2. Rows: seconds by phase of a step, over those of fixed weights, responses a second, memory a parameter."""
    phases, rows = ["rollout", "probe", "update"], [["shape", "script", "weighting"]]
    rows[0] += [*phases, "step", "of fixed", "responses a second", "peak GB", "bytes a parameter"]
    for name, shape in shapes.items():
        script = "rloo" if name == "4B" else "grpo"  # without the reference model, it may fit
        fixed = float("nan")
        for weighting in ("fixed", "gradient"):
            free(device)
            given = ["--weighting", weighting, "--dataset", data, "--model", scratch / name, "--device", device]
            given += ["--eval-every", "10", "--steps", "3", "--micro-batch-size", "8", *flags]
            rows.append([name, script, weighting])
            with made_here(shape, device, scratch / name):
                try:
                    last = train(fresh(script), scratch / f"{name}-{weighting}", *given)[-1]
                except RuntimeError as error:  # that it does not fit is a result
                    if "out of memory" not in str(error):
                        raise
                    rows[-1] += [*["-"] * 7, "out of memory"]
                    continue
            times = [last[f"time/{phase}"] for phase in phases]
            fixed = sum(times) if weighting == "fixed" else fixed
            args = json.loads((scratch / f"{name}-{weighting}/args.json").read_text())
            responses = args["prompts_per_step"] * args["num_generations"]
            with torch.device("meta"), made_here(shape, "meta", scratch / name):
                model = transformers.AutoModelForCausalLM.from_pretrained(name)
            peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else float("nan")
            numbers = [*times, sum(times), sum(times) / fixed, responses / sum(times), peak / 1e9]
            numbers.append(peak / sum(p.numel() for p in model.parameters()))
            rows[-1] += [f"{number:.2f}" for number in numbers]
    return rows


def rollouts(device, shape, name, count, limit, calls, scratch):
    """Part 3. Rows: the ways of rollout_speed.py, and the share of greedy responses that are those of `generate`."""
    free(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with made_here(shape, device, scratch / name) if shape else contextlib.nullcontext(), torch.no_grad():
        where = str(scratch / name if shape else ROOT / "tiny/model")
        model, tokenizer, _ = grpo_dynw.load_model(where, device, dtype)
        if shape:  # a random model, whose responses are to end now and then
            model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 128))
        problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
        prompts = [p["prompt_ids"] for p in problems[:count]]
        expected = rollout_speed.plain(model, prompts, limit, sample=False)
        rows = [["model", *rollout_speed.table(model, [], 0, 0, [])[0], "greedy as generate"]]
        for way in rollout_speed.WAYS:
            if way == "generate, static cache, compiled":  # on CUDA transformers compiles for a static cache by itself
                continue
            [row] = rollout_speed.table(model, prompts, limit, calls, [way])[1:]
            try:
                said = rollout_speed.WAYS[way](model, prompts, limit, False)
                row.append(f"{sum(a == list(b) for a, b in zip(expected, said))} of {count}")
            except Exception as error:
                row.append(type(error).__name__)
            rows.append([name, *row])
    return rows


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
    lengths = abs(parts[3]["completions/mean_length"] - whole[3]["completions/mean_length"])
    found = differences(parts[3], whole[3])
    a, b = (moments(scratch / name / "checkpoint.pt") for name in ("parts", "whole"))
    numbers = [lengths, found["rewards"], found["weights"], ((a - b).norm() / b.norm()).item()]
    allowed = [0.2, 0.02, 5e-3, 0.02]  # a response or two may be others, since kernels do not add in one order
    is_right = all(number <= most for number, most in zip(numbers, allowed))
    rows = [["mean length", "rewards", "weights", "moments after step 4, relative", "as it should be"], [*allowed, ""]]
    return [*rows, [*(f"{number:.1e}" for number in numbers), "yes" if is_right else "NO"]]


def sharded(device, data, flags, scratch):
    """Part 5. Rows: step 1 under torchrun with one process against a run without."""
    given = ["--weighting", "gradient", "--dataset", data, "--device", device.split(":")[0], "--steps", "2", *flags]
    given += ["--updates-per-step", "2", "--gradient-checkpointing"]
    alone = train(fresh("grpo"), scratch / "alone", *given)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    line += [ROOT / "grpo_dynw.py", *given, "--output-dir", scratch / "sharded"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = differences(read_metrics(scratch / "sharded")[1], alone[1])
    is_right = all(found[what] <= most for what, most in ALLOWED.items())
    rows = [[*ALLOWED, "as it should be"], [*ALLOWED.values(), ""]]
    return [*rows, [*(f"{found[what]:.1e}" for what in ALLOWED), "yes" if is_right else "NO"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try this file")
    parser.add_argument("--toy", action="store_true", help="toy sizes")
    parser.add_argument("--parts", nargs="+", type=int, choices=range(1, 6), default=range(1, 6), help="(default: all)")
    args = parser.parse_args()
    device, toy = args.device, TOY_FLAGS if args.toy else []
    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device: there is no GPU here")
    what = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    print(f"{what}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    started, failed = time.perf_counter(), False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        data, few = scratch / "data", {"train": 4000, "validation": 50, "test": 100}
        data.mkdir()
        for split, most in few.items():  # fewer to evaluate on
            lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
            (data / f"{split}.jsonl").write_text("".join(lines[: 8 if toy else most]))
        large = toy or ["--prompts-per-step", "8", "--max-new-tokens", "256"]
        parts = [
            (1, against_the_cpu, device, data, toy),
            (2, steps, device, data, TOY if toy else SHAPES, large),
            (3, rollouts, device, None, "embedded", *((4, 20, 2) if toy else (128, 96, 4))),
            (
                3,
                rollouts,
                device,
                (TOY if toy else SHAPES)["toy" if toy else "0.6B"],
                "random",
                *((4, 20, 2) if toy else (64, 256, 3)),
            ),
            (4, resumed, device, data, toy),
            (5, sharded, device, data, toy),
        ]
        for number, part, *given in (part for part in parts if part[0] in args.parts):
            try:
                rows = part(*given, scratch)
            except Exception as error:  # the other parts are to run all the same
                rows = [["it failed", ""], [f"{type(error).__name__}: {error}", "NO"]]
            failed |= any(row[-1] == "NO" for row in rows)
            print(f"\n{number}. After {time.perf_counter() - started:.0f} s:\n\n{table(rows)}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
