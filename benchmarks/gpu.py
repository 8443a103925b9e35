"""
Checks and times the project on a GPU. Needs no network, and ten minutes at most.

    python benchmarks/gpu.py                       prints the tables for benchmarks/README.md
    python benchmarks/gpu.py --parts 1             runs only some parts
    python benchmarks/gpu.py --device cpu --toy    toy sizes, only to test this file

1. Each script with each weighting on the embedded model: 10 steps, of which the first is compared with the
   CPU on the same responses.
2. Steps of random models in the shapes of Qwen3-0.6B, 1.7B and 4B: the time of each phase, the memory, and
   the ratio of gradient-based weighting to fixed weights.
3. Ways to generate: tokens a second, and whether greedy responses equal those of `generate`.
4. A resumed run compared with a run that was not stopped.
5. A run under torchrun with one process (NCCL and FSDP2), two updates a step and gradient checkpointing,
   compared with a run without torchrun.

Each part runs in its own process and has its own time limit, so that a part that fails does not stop the
others. Rows are printed as soon as they are measured. A row with a check ends with yes or NO. The exit code
is 1 if a check fails, a part raises an exception, or a part reaches its time limit. Parts 2 and 3 have no
checks.
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

ALGORITHMS, WEIGHTINGS = ["grpo", "rloo", "reinforce"], ["fixed", "hypervolume", "gradient", "nash"]
SHAPES = {  # hidden size, intermediate size, layers, attention heads, key and value heads
    "0.6B": (1024, 3072, 28, 16, 8),
    "1.7B": (2048, 6144, 28, 16, 8),
    "4B": (2560, 9728, 36, 32, 8),
}
TOY_SHAPES = {"toy": (64, 128, 2, 2, 1)}
TOY_FLAGS = ["--prompts-per-step", "2", "--num-generations", "4", "--max-new-tokens", "24"]
PHASES = ["rollout", "reward", "probe", "update"]
# The largest differences that bfloat16, with 8 significant bits, may make in a step on the same responses.
TOLERANCES = {"rewards": 1e-9, "loss": 3e-3, "grad_norm, relative": 0.05, "influence": 0.05, "weights": 5e-3}
TIME_LIMITS = {1: 210, 2: 150, 3: 140, 4: 40, 5: 60}  # seconds for each part


# ---------- Runs of the scripts, and their differences ----------


def markdown_row(cells):
    """Cells as a row of a table in Markdown."""
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"


def load_script(algorithm):
    """A training script as a new module, so that changes to it do not affect later runs."""
    path = ROOT / f"{algorithm}_dynw.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def train(script, folder, *flags):
    """Runs a script in this process and returns its metrics. If it exits, RuntimeError with its last line."""
    output = [] if "--resume" in flags else ["--output-dir", folder]
    sys.argv = [f"{script.ALGORITHM}_dynw.py", *map(str, [*flags, *output])]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            with patch.object(compare, "summary", str):  # Draw no pictures.
                script.main()
        except SystemExit as error:
            raise RuntimeError(errors.getvalue().strip().splitlines()[-1]) from error
    return compare.read_metrics(folder)


def replay_first_rollout(script, batches):
    """
    Changes `script` so that its first rollout of training is the batch in the list `batches`. If the list is
    empty, the script generates the batch and adds it to the list. Returns the script.
    """
    rollout, calls = script.rollout, itertools.count()

    def replay(model, *args, **options):
        is_first = options.get("sample", True) and next(calls) == 0
        if is_first and batches:
            return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[0].items()}
        batch = rollout(model, *args, **options)
        batches.extend([batch] if is_first else [])
        return batch

    script.rollout = replay
    return script


def largest_difference(a, b, names):
    """The largest difference of two steps in these metrics. Infinite if one is null, that is, not finite."""
    pairs = [(a[name], b[name]) for name in names]
    return max((math.inf if None in pair else abs(pair[0] - pair[1]) for pair in pairs), default=0.0)


def compare_steps(a, b):
    """The differences of two steps under the names in TOLERANCES. Each is the largest over all objectives."""
    differences = {"loss": largest_difference(a, b, ["loss"])}
    norm = max(b["grad_norm"] or 0.0, 1e-9)
    differences["grad_norm, relative"] = largest_difference(a, b, ["grad_norm"]) / norm
    for kind in ("rewards", "influence", "weights"):
        differences[kind] = largest_difference(a, b, [name for name in a if name.startswith(f"{kind}/")])
    return differences


def within(numbers, tolerances):
    """Whether each number is at most its tolerance. Both are dictionaries with the same keys."""
    return all(numbers[name] <= tolerance for name, tolerance in tolerances.items())


# ---------- Part 1 ----------


def compare_with_cpu(device, data, flags, scratch):
    """Part 1. Rows: the differences in step 1, and the hypervolume at steps 0 and 10. flags: toy sizes."""
    yield ["script", "weighting", *TOLERANCES, "hypervolume at steps 0 and 10", "passed"]
    yield ["tolerance", "", *TOLERANCES.values(), "any" if flags else "must grow", ""]
    algorithms = ["grpo"] if flags else ALGORITHMS
    for algorithm, weighting in itertools.product(algorithms, WEIGHTINGS):
        batches, folder = [], scratch / f"{algorithm}-{weighting}"
        options = ["--weighting", weighting, "--dataset", data, "--eval-every", "10", *flags]
        script = replay_first_rollout(load_script(algorithm), batches)
        expected = train(script, f"{folder}-cpu", *options, "--steps", "1", "--device", "cpu")
        script = replay_first_rollout(load_script(algorithm), batches)
        metrics = train(script, folder, *options, "--steps", "10", "--device", device)

        differences = compare_steps(metrics[1], expected[1])
        start, end = metrics[0]["eval/hypervolume"], metrics[10]["eval/hypervolume"]
        is_right = within(differences, TOLERANCES) and (bool(flags) or start < end)
        cells = [f"{differences[name]:.1e}" for name in TOLERANCES]
        yield [algorithm, weighting, *cells, f"{start:.3f} {end:.3f}", "yes" if is_right else "NO"]


# ---------- Parts 2 and 3 ----------


def random_models(shape, device, folder):
    """
    Returns a context in which loading a model creates a random one of this shape on the device, and saving a
    model does nothing. Writes the config and the embedded tokenizer to `folder`.
    """
    hidden, intermediate, layers, heads, kv_heads = shape
    is_toy = hidden <= 64
    config = transformers.Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32 if is_toy else 128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        vocab_size=512 if is_toy else 151936,
    )
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


def free_memory(device):
    """Frees the memory of earlier runs on the device and resets the record of the peak."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def with_short_evaluations(script):
    """Cuts off evaluations of `script` at 8 tokens, because they are not measured. Returns the script."""
    evaluate = script.evaluate

    def evaluate_briefly(*inputs):
        *others, args = inputs
        return evaluate(*others, argparse.Namespace(**{**vars(args), "max_new_tokens": 8}))

    script.evaluate = evaluate_briefly
    return script


def time_steps(device, data, shapes, flags, scratch):
    """Part 2. Rows: seconds of each phase of the last step, two ratios to fixed weights, and memory."""
    yield ["shape", "script", "weighting", *PHASES, "step", "step, ratio", "probe + update, ratio",
           "responses a second", "peak GB", "bytes a parameter"]  # fmt: skip
    for (name, shape), weighting in itertools.product(shapes.items(), ("fixed", "gradient")):
        if weighting == "fixed":
            fixed = [math.nan] * len(PHASES)
        free_memory(device)
        # RLOO needs less memory, because it has no reference model.
        script = with_short_evaluations(load_script("rloo" if name == "4B" else "grpo"))
        folder, cells = scratch / f"{name}-{weighting}", [name, script.ALGORITHM, weighting]
        options = ["--weighting", weighting, "--dataset", data, "--model", scratch / name, "--device", device]
        options += ["--eval-every", "10", "--steps", "3", "--micro-batch-size", "8", *flags]
        options += ["--gradient-checkpointing"] * (name == "4B")
        with random_models(shape, device, scratch / name):
            try:
                metrics = train(script, folder, *options)[-1]
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                yield [*cells, *["-"] * 9, "out of memory"]
                continue

        times = [metrics[f"time/{phase}"] for phase in PHASES]
        fixed = times if weighting == "fixed" else fixed
        args = json.loads((folder / "args.json").read_text())
        rate = args["prompts_per_step"] * args["num_generations"] / sum(times)
        numbers = [*times, sum(times), sum(times) / sum(fixed), sum(times[2:]) / sum(fixed[2:]), rate]
        peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else math.nan
        numbers += [peak / 1e9, peak / num_parameters(shape, scratch / name)]
        yield [*cells, *(f"{number:.2f}" for number in numbers)]


def num_parameters(shape, folder):
    """The number of parameters of a model of this shape."""
    with random_models(shape, "meta", folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def time_rollouts(device, shape, name, count, limit, calls, scratch):
    """
    Part 3. Rows: the ways of rollout_speed.py, and how many of their greedy responses equal `generate`'s.

    shape: of a random model, or None for the embedded model. count: the number of prompts.
    """
    free_memory(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    folder = scratch / name if shape else ROOT / "tiny/model"
    context = random_models(shape, device, folder) if shape else contextlib.nullcontext()
    with context, torch.no_grad():
        model, tokenizer, _ = grpo_dynw.load_model(str(folder), device, dtype)
        if shape:  # With a single end token, responses of a random model would hardly ever end.
            model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 128))
        with contextlib.redirect_stdout(io.StringIO()):
            problems = rewards.read_problems(str(ROOT / "tiny/data"), ["train"], tokenizer, 64)["train"]
        prompts = [problem["prompt_ids"] for problem in problems[:count]]
        expected = rollout_speed.plain(model, prompts, limit, sample=False)

        yield ["model", *rollout_speed.TITLES, "greedy as generate"]
        for way, generate in rollout_speed.WAYS.items():
            if way == "generate, static cache, compiled":
                continue  # On CUDA, transformers compiles by itself if the cache is static.
            row = rollout_speed.time_way(way, model, prompts, limit, calls)
            if row[1] == "-":
                yield [name, *row, ""]
                continue
            responses = generate(model, prompts, limit, False)
            equal = sum(a == list(b) for a, b in zip(expected, responses))
            yield [name, *row, f"{equal} of {count}"]


# ---------- Parts 4 and 5 ----------


def read_moments(checkpoint):
    """The moments of AdamW in a checkpoint, as one vector."""
    states = torch.load(checkpoint, weights_only=True)["optimizer"]["state"].values()
    return torch.cat([state[name].flatten() for state in states for name in ("exp_avg", "exp_avg_sq")])


def compare_resumed(device, data, flags, scratch):
    """
    Part 4. Rows: the differences between a run of 4 steps and one that was stopped after 2 and resumed.

    Step 3, the first after the checkpoint, must have the same responses. AdamW's moments are compared at the
    end.
    """
    options = ["--weighting", "gradient", "--dataset", data, "--device", device, *flags]
    options += ["--checkpoint-every", "2"]
    whole = train(load_script("grpo"), scratch / "whole", *options, "--steps", "4")
    train(load_script("grpo"), scratch / "resumed", *options, "--steps", "2")
    resume = ["--resume", scratch / "resumed", "--steps", "4"]
    resumed = train(load_script("grpo"), scratch / "resumed", *resume)

    # One or two responses may differ, because kernels on a GPU do not always add in the same order.
    tolerances = {"mean length": 1.0, "rewards": 0.03, "weights": 5e-3, "moments after step 4, relative": 0.3}
    differences = {}
    prefixes = {"mean length": "completions/mean", "rewards": "rewards/", "weights": "weights/"}
    for title, kind in prefixes.items():
        names = [name for name in whole[3] if name.startswith(kind) and "frac" not in name]
        differences[title] = largest_difference(resumed[3], whole[3], names)
    a, b = (read_moments(scratch / name / "checkpoint.pt") for name in ("resumed", "whole"))
    differences["moments after step 4, relative"] = ((a - b).norm() / b.norm()).item()
    yield from comparison(differences, tolerances)


def compare_sharded(device, data, flags, scratch):
    """Part 5. Rows: the differences in step 1 between a run under torchrun and one without."""
    options = ["--weighting", "gradient", "--dataset", data, "--device", device.split(":")[0], "--steps", "2"]
    options += ["--updates-per-step", "2", "--gradient-checkpointing", *flags]
    plain = train(load_script("grpo"), scratch / "plain", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "1", ROOT / "grpo_dynw.py", *options, "--output-dir", scratch / "sharded"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    # Gloo may abort as a finished run exits (pytorch/pytorch#179291).
    if result.returncode and "Metrics, completions" not in result.stdout:
        raise RuntimeError(result.stderr[-3000:])
    sharded = compare.read_metrics(scratch / "sharded")
    yield from comparison(compare_steps(sharded[1], plain[1]), TOLERANCES)


def comparison(differences, tolerances):
    """Rows: titles, tolerances and differences. The last row ends with whether the check passed."""
    yield ["", *tolerances, "passed"]
    yield ["tolerance", *tolerances.values(), ""]
    cells = [f"{differences[name]:.1e}" for name in tolerances]
    yield ["difference", *cells, "yes" if within(differences, tolerances) else "NO"]


# ---------- The parts, each in its own process ----------


def tables_of(part, device, is_toy, scratch):
    """The tables of a part: generators of rows, the first with titles. Writes a dataset to `scratch`."""
    flags, data = TOY_FLAGS if is_toy else [], scratch / "data"
    data.mkdir()
    for split, size in {"train": 4000, "validation": 50, "test": 100}.items():  # to shorten evaluations
        lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(lines[: 8 if is_toy else size]))
    if part == 1:
        return [compare_with_cpu(device, data, flags, scratch)]
    if part == 2:
        flags = flags or ["--prompts-per-step", "8", "--max-new-tokens", "256"]
        return [time_steps(device, data, TOY_SHAPES if is_toy else SHAPES, flags, scratch)]
    if part == 3:
        shape = TOY_SHAPES["toy"] if is_toy else SHAPES["0.6B"]
        return [
            time_rollouts(device, None, "embedded", *((4, 20, 2) if is_toy else (128, 96, 4)), scratch),
            time_rollouts(device, shape, "random", *((4, 20, 2) if is_toy else (64, 128, 3)), scratch),
        ]
    if part == 4:
        return [compare_resumed(device, data, flags, scratch)]
    return [compare_sharded(device, data, flags, scratch)]


def run_part(part, device, is_toy):
    """Prints the tables of a part, row by row. Returns whether all checks passed."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in the scripts
    is_right, began = True, time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for rows in tables_of(part, device, is_toy, Path(scratch)):
            print(f"\nPart {part}:\n", flush=True)
            try:
                for i, row in enumerate(rows):
                    rule = "\n|" + " --- |" * len(row) if i == 0 else ""
                    print(markdown_row(row) + rule, flush=True)
                    is_right &= row[-1] != "NO"
            except (Exception, SystemExit) as error:  # The other tables are still printed.
                print(markdown_row([f"failed: {type(error).__name__}: {error}", "NO"]), flush=True)
                is_right = False
    print(f"\nTook {time.perf_counter() - began:.0f} s", flush=True)
    return is_right


def start_part(part, device, is_toy):
    """Runs a part in a new process, which is stopped at its time limit. Returns whether all checks passed."""
    command = [sys.executable, __file__, "--device", device, "--run", str(part), *["--toy"] * is_toy]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(TIME_LIMITS[part]) == 0
        except subprocess.TimeoutExpired:
            print(f"\nPart {part} was stopped after {TIME_LIMITS[part]} s", flush=True)
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ... or cpu (default: cuda)")
    parser.add_argument("--toy", action="store_true", help="use toy sizes")
    parser.add_argument(
        "--parts", nargs="+", type=int, choices=TIME_LIMITS, default=list(TIME_LIMITS), help="(default: all)"
    )
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # Run this part, in this process.
    args = parser.parse_args()
    if args.run:
        sys.exit(not run_part(args.run, args.device, args.toy))

    is_cuda = args.device.startswith("cuda")
    if not is_cuda and args.device != "cpu":
        parser.error("--device: give cuda, cuda:1 ... or cpu")
    if is_cuda and not torch.cuda.is_available():
        parser.error("--device: this machine has no GPU")
    name = torch.cuda.get_device_name(args.device) if is_cuda else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    passed = [start_part(part, args.device, args.toy) for part in sorted(set(args.parts))]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
