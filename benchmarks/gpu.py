"""
Checks and times the project on a GPU. Needs no network.

    python benchmarks/gpu.py                       all parts, one after the other
    python benchmarks/gpu.py --parts 1 2           only some parts
    python benchmarks/gpu.py --device cpu --toy    toy sizes, to test this file

1. The first step of each script with each weighting, compared with the CPU on the same responses.
2. Ways to generate: their speed, and whether a CUDA graph gives the greedy tokens of the loop without it.
3. Steps of random models in the shapes of Qwen3-0.6B, 1.7B and 4B, with the largest micro-batch that fits:
   time and memory.
4. The README's command, to its end.
5. A run under torchrun with one process (NCCL and FSDP2), compared with a run without torchrun; and a resumed
   run, compared with a run that was not stopped.

Each part is a process of its own, which is killed after 150 s. Rows are printed as soon as they are measured.
The last cell of a row with a check is "yes", "NO" or "nothing happened": the rewards of the step were equal,
or its gradient was zero, so that the check shows nothing. The exit code is 1 if a check does not say yes, or
if a part raises an exception or is killed.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]


def check_packages():
    """Exits with code 2 and one line if packages are missing. Only prints a warning if packages are old."""
    required = dict(re.findall(r"(\w+)>=([\d.]+)", (ROOT / "requirements.txt").read_text()))
    of_datasets = ["dill", "multiprocess", "pandas", "pyarrow", "xxhash"]  # which datasets imports
    missing = [name for name in [*required, *of_datasets] if importlib.util.find_spec(name) is None]
    old = []
    for name, minimum in required.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if list(map(int, re.findall(r"\d+", version)[:2])) < list(map(int, minimum.split("."))):
                old.append(f"{name} {version} is older than {minimum}")
    if missing:
        print("gpu.py: error: missing packages:", "; ".join([" ".join(missing), *old]), file=sys.stderr)
        sys.exit(2)
    if old:
        print("gpu.py: warning:", "; ".join(old), file=sys.stderr)


check_packages()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

import compare  # noqa: E402
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402

TIME_LIMIT, TIME_LIMIT_OF_COMPILING = 150, 60  # seconds: of a part, and of one way in part 2
PARTS = [1, 2, 3, 4, 5]
ALGORITHMS, WEIGHTINGS = ["grpo", "rloo", "reinforce"], ["fixed", "hypervolume", "gradient", "nash"]
SIZES = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
]
SHAPES = {
    "0.6B": (1024, 3072, 28, 16, 8),
    "1.7B": (2048, 6144, 28, 16, 8),
    "4B": (2560, 9728, 36, 32, 8),
    "toy": (64, 128, 2, 2, 1),
}
TOY_FLAGS = ["--prompts-per-step", "4", "--num-generations", "4", "--max-new-tokens", "48"]
MICRO_BATCHES = [64, 32, 16, 8, 4, 2, 1]
# The largest differences that bfloat16, with 8 significant bits, may make in a step on the same responses.
TOLERANCES = {"rewards": 1e-9, "loss": 3e-3, "grad_norm, relative": 0.05, "influence": 0.05, "weights": 5e-3}


# ---------- Runs of the scripts, and their differences ----------


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


def replay_rollouts(script, batches):
    """
    Changes `script` so that rollout n of its training is batch n of the list `batches`. If the list is too
    short, the script generates the batch and adds it to the list. Returns the script.
    """
    rollout, calls = script.rollout, itertools.count()

    def replay(model, tokenizer, prompts, G, limit, batch_size, sample=True, graph=False):
        inputs = model, tokenizer, prompts, G, limit, batch_size, sample, graph
        if not sample:  # an evaluation
            return rollout(*inputs)
        n = next(calls)
        if n == len(batches):
            batches.append(rollout(*inputs))
        return {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[n].items()}

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


def verdict(is_right, *steps):
    """The last cell of a row. Nothing happens in a step with equal rewards or with a gradient of zero."""
    for step in steps:
        shares = [share for name, share in step.items() if name.endswith("/frac_zero_std")]
        if min(shares) == 1.0 or step["grad_norm"] == 0.0:
            return "nothing happened"
        is_right = is_right and step["grad_norm"] is not None and math.isfinite(step["grad_norm"])
    return "yes" if is_right else "NO"


def difference_cells(differences, tolerances, *steps):
    """The differences, and the verdict about `steps`. Both dictionaries have the same keys."""
    is_right = all(differences[name] <= tolerance for name, tolerance in tolerances.items())
    return [*(f"{differences[name]:.1e}" for name in tolerances), verdict(is_right, *steps)]


# ---------- The parts ----------


def compare_with_cpu(device, data, flags, scratch):
    """Rows: the differences between step 1 on the device and on the CPU. flags: toy sizes."""
    yield ["script", "weighting", *TOLERANCES, "passed"]
    yield ["tolerance", "", *TOLERANCES.values(), ""]
    for algorithm, weighting in itertools.product(ALGORITHMS, WEIGHTINGS):
        batches, steps = [], []
        for place in (device, "cpu"):
            script = replay_rollouts(load_script(algorithm), batches)
            folder = scratch / f"{algorithm}-{weighting}-{len(steps)}"
            options = ["--weighting", weighting, "--dataset", data, "--steps", "1", "--device", place, *flags]
            steps.append(train(script, folder, *options)[1])
        yield [algorithm, weighting, *difference_cells(compare_steps(*steps), TOLERANCES, *steps)]


def random_models(shape, device, folder):
    """
    Returns a context in which loading a model from `folder` creates a random one of this shape on the device.
    Writes the config and the embedded tokenizer to `folder`.
    """
    is_toy = shape == "toy"
    config = transformers.Qwen3Config(
        **dict(zip(SIZES, SHAPES[shape])),
        head_dim=32 if is_toy else 128,
        vocab_size=512 if is_toy else 151936,
        initializer_range=0.3 if is_toy else 0.05,  # With 0.02, greedy responses would repeat one token.
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/model").save_pretrained(folder)
    config.save_pretrained(folder)

    def from_pretrained(name, dtype=torch.float32, output_loading_info=False):
        torch.manual_seed(0)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        return (model, {"missing_keys": []}) if output_loading_info else model

    return patch.object(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)


def free_memory(device):
    """Frees the memory of earlier runs on the device and resets the record of the peak."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def load_with_prompts(name, device, is_toy, scratch):
    """A model ("embedded" or a shape), ids and attention (B, P) of its prompts, and the limit in tokens."""
    free_memory(device)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32  # as the scripts generate
    folder = ROOT / "tiny/model" if name == "embedded" else scratch / name
    with contextlib.nullcontext() if name == "embedded" else random_models(name, device, folder):
        model, tokenizer, _ = grpo_dynw.load_model(str(folder), device, dtype)
    count, limit = (8, 40) if is_toy else (128, 96) if name == "embedded" else (64, 256)
    with contextlib.redirect_stdout(io.StringIO()):
        problems = rewards.read_problems(str(scratch / "data"), ["train"], tokenizer, 64)["train"]
    prompts = [torch.tensor(problem["prompt_ids"], device=device) for problem in problems[:count]]
    ids = pad_sequence(prompts, True, model.generation_config.pad_token_id, "left")
    attention = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, "left")
    return model, ids, attention, limit


@torch.no_grad()
def generate(model, ids, attention, limit, sample, **settings):
    """As grpo_dynw.respond, with the model's own `generate`, to which `settings` are passed."""
    settings |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    settings |= {"max_new_tokens": limit, "do_sample": sample}
    return model.generate(ids, attention_mask=attention, **settings)[:, ids.shape[1] :]


def responses_of(way, model, ids, attention, limit, sample):
    """Lists of tokens, up to and including the first end token."""
    rows = way(model, ids, attention, limit, sample).tolist()
    end_ids = model.generation_config.eos_token_id
    ends = [next((i for i, token in enumerate(row) if token in end_ids), len(row)) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends)]


def time_way(way, model, ids, attention, limit, warm_up):
    """Seconds, milliseconds a token and tokens a second, after a first call with the limit `warm_up`."""
    responses_of(way, model, ids, attention, warm_up, True)
    start = grpo_dynw.clock()
    lengths = list(map(len, responses_of(way, model, ids, attention, limit, True)))
    seconds = grpo_dynw.clock() - start
    return [f"{seconds:.2f}", f"{1000 * seconds / max(lengths):.1f}", f"{sum(lengths) / seconds:.0f}"]


def time_ways(device, is_toy, scratch):
    """Rows: the speed of each way. The way that compiles is last and has a time limit of its own."""
    yield ["model", "way", "seconds", "ms a token", "tokens a second", "greedy as our loop", "passed"]
    graph = partial(grpo_dynw.respond, graph=device.startswith("cuda"))
    ways = {"our loop": grpo_dynw.respond, "generate": generate, "our loop, CUDA graph": graph}
    shapes, start = ["toy"] if is_toy else ["0.6B", "1.7B"], time.monotonic()
    for name in ["embedded", *shapes]:
        model, ids, attention, limit = load_with_prompts(name, device, is_toy, scratch)
        greedy = {}
        for way, call in ways.items():
            try:
                cells = time_way(call, model, ids, attention, limit, 8)
                # The embedded model's responses end. After they leave, the graph is captured again.
                length = limit if name == "embedded" else 40
                greedy[way] = responses_of(call, model, ids, attention, length, False)
            except Exception as error:  # The other ways are still timed.
                # If a capture fails, the first exception is the context of the last one.
                error = error.__context__ or error
                yield [name, way, "-", "-", "-", f"{type(error).__name__}: {error}", "NO"]
                continue
            equal = sum(a == b for a, b in zip(greedy[way], greedy.get("our loop", [])))
            is_right = equal == len(ids) and len(set(map(tuple, greedy[way]))) > 1
            # In bfloat16, `generate` may choose another of two tokens that are about equally likely.
            passed = "" if call is not graph else "yes" if is_right else "NO"
            yield [name, way, *cells, f"{equal} of {len(ids)}", passed]
        del model
    for name in shapes:
        seconds = min(TIME_LIMIT_OF_COMPILING, TIME_LIMIT - 15 - (time.monotonic() - start))
        command = [sys.executable, __file__, "--device", device, "--compile", name, *["--toy"] * is_toy]
        code, output = run_limited(command, seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = (output or "").strip().splitlines() or [""]
        cells = ["-"] * 3 if code != 0 else json.loads([line for line in lines if line[:1] == "["][-1])
        note = f"not done in {seconds:.0f} s" if code is None else lines[-1] if code else ""
        yield [name, "generate, static cache, compiled", *cells, note, ""]


def largest_step(algorithm, batches, sizes, device, folder, *options):
    """The first of the micro-batch `sizes` that fits, and the metrics of step 2. None, None if none fits."""

    def stop(metrics, actor, tokenizer, data, state, tracker, args):
        if state["step"] == 2:
            raise StopIteration(metrics)

    for size in sizes:
        free_memory(device)
        script = replay_rollouts(load_script(algorithm), batches)
        script.finish_step = stop  # Evaluating and saving are not measured.
        try:
            train(script, f"{folder}-{size}", "--micro-batch-size", size, *options)
        except StopIteration as stopped:
            return size, stopped.value
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
    return None, None


def time_steps(device, data, is_toy, use_graph, scratch):
    """
    Rows: seconds of each phase of a run's second step, and the peak of its memory.

    All runs of a shape have the same rollouts, which only the first run generates. They need less memory than
    the updates. Rewards are random, because a random model earns none.
    """

    def random_rewards(names, responses, *_):
        return torch.rand(len(responses), len(names)).tolist()

    is_cuda, flags = device.startswith("cuda"), ["--prompts-per-step", "8", "--max-new-tokens", "256"]
    flags = ["--dataset", data, "--device", device, "--steps", "2", *(TOY_FLAGS if is_toy else flags)]
    yield ["shape", "script", "weighting", "micro-batch", "rollout", "probe", "update", "peak GB",
           "bytes a parameter", "passed"]  # fmt: skip
    for name in ["toy"] if is_toy else ["0.6B", "1.7B", "4B"]:
        # RLOO needs less memory, because it has no reference model.
        algorithm, batches, sizes, rollout_time = "rloo" if name == "4B" else "grpo", [], MICRO_BATCHES, 0.0
        with random_models(name, "meta", scratch / name):
            num_parameters = transformers.AutoModelForCausalLM.from_pretrained(name).num_parameters()
        for weighting in ("fixed", "gradient"):
            options = [*flags, "--model", scratch / name, "--weighting", weighting]
            options += ["--cuda-graph"] * use_graph + ["--gradient-checkpointing"] * (name == "4B")
            folder = scratch / f"{name}-{weighting}"
            with random_models(name, device, scratch / name), patch.object(rewards, "score", random_rewards):
                size, step = largest_step(algorithm, batches, sizes, device, folder, *options)
            if step is None:
                yield [name, algorithm, weighting, *["-"] * 6, "out of memory"]
                continue
            sizes = MICRO_BATCHES[MICRO_BATCHES.index(size) :]  # Gradient-based weighting needs more memory.
            rollout_time = max(rollout_time, step["time/rollout"])
            peak = torch.cuda.max_memory_allocated() if is_cuda else math.nan
            numbers = [
                rollout_time,
                step["time/probe"],
                step["time/update"],
                peak / 1e9,
                peak / num_parameters,
            ]
            yield [name, algorithm, weighting, size, *(f"{x:.2f}" for x in numbers), verdict(True, step)]


def run_readme_command(device, flags, scratch):
    """Rows: the evaluated steps of the README's command. flags: toy sizes, without which it must improve."""
    path, log, columns = scratch / "run/metrics.jsonl", scratch / "log", ["eval/hypervolume", "grad_norm"]
    columns += ["time/rollout", "time/probe", "time/update"]
    yield ["step", *columns, "passed"]
    command = [sys.executable, ROOT / "grpo_dynw.py", "--weighting", "gradient", "--device", device]
    with open(log, "w") as file:
        command = list(map(str, [*command, "--output-dir", path.parent, *flags]))
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    is_running, num_lines, hypervolumes = True, 0, []
    while is_running:
        time.sleep(0.5)
        is_running = process.poll() is None  # Ask before reading, so that no line is missed.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # only complete lines
        for step in map(json.loads, lines[num_lines:]):
            if "eval/hypervolume" in step:
                hypervolumes.append(step["eval/hypervolume"])
                cells = ["" if step.get(name) is None else f"{step[name]:.3g}" for name in columns]
                yield [step["step"], *cells, verdict(True, step) if step["step"] else ""]
        num_lines = len(lines)
    is_right = process.returncode == 0 and (flags or hypervolumes[-1] > hypervolumes[0])
    yield ["end", log.read_text().strip().splitlines()[-1], *[""] * 4, "yes" if is_right else "NO"]


def comparison(differences, tolerances, *steps):
    """Rows: titles, tolerances and differences."""
    yield ["", *tolerances, "passed"]
    yield ["tolerance", *tolerances.values(), ""]
    yield ["difference", *difference_cells(differences, tolerances, *steps)]


def compare_sharded(device, data, flags, scratch):
    """Rows: the differences in step 1 between a run under torchrun and one without."""
    options = ["--weighting", "gradient", "--dataset", data, "--device", device.split(":")[0], "--steps", "1"]
    options += ["--updates-per-step", "2", "--gradient-checkpointing", *flags]
    plain = train(load_script("grpo"), scratch / "plain", *options)[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "1", ROOT / "grpo_dynw.py", *options, "--output-dir", scratch / "sharded"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    # Gloo may abort as a finished run exits (pytorch/pytorch#179291).
    if result.returncode and "Metrics, completions" not in result.stdout:
        raise RuntimeError(result.stderr[-3000:])
    sharded = compare.read_metrics(scratch / "sharded")[1]
    yield from comparison(compare_steps(sharded, plain), TOLERANCES, sharded, plain)


def compare_resumed(device, data, flags, scratch):
    """
    Rows: the differences between a run of 4 steps and one that was stopped after 2 and resumed.

    Step 3, the first after the checkpoint, must have the same responses. AdamW's moments are compared at the
    end.
    """

    def read_moments(name):
        states = torch.load(scratch / name / "checkpoint.pt", weights_only=True)["optimizer"][
            "state"
        ].values()
        return torch.cat([state[key].flatten() for state in states for key in ("exp_avg", "exp_avg_sq")])

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
    a, b = read_moments("resumed"), read_moments("whole")
    differences["moments after step 4, relative"] = ((a - b).norm() / b.norm()).item()
    yield from comparison(differences, tolerances, resumed[3], whole[3])


# ---------- Processes ----------


def tables_of(part, device, is_toy, use_graph, scratch):
    """The tables of a part: generators of rows, the first with titles. `scratch` has a dataset."""
    data, flags = scratch / "data", TOY_FLAGS if is_toy else []
    if part == 1:
        return [compare_with_cpu(device, data, flags, scratch)]
    if part == 2:
        return [time_ways(device, is_toy, scratch)]
    if part == 3:
        return [time_steps(device, data, is_toy, use_graph, scratch)]
    if part == 4:
        toy_flags = [*flags, "--dataset", data, "--steps", "2", "--eval-every", "1"]
        return [run_readme_command(device, toy_flags if is_toy else [], scratch)]
    return [compare_sharded(device, data, flags, scratch), compare_resumed(device, data, flags, scratch)]


def write_data(folder):
    """Writes a part of the embedded dataset to `folder`. With few problems, evaluations are short."""
    folder.mkdir()
    for split, size in {"train": 256, "validation": 8, "test": 8}.items():
        lines = (ROOT / f"tiny/data/{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:size]))


def run_part(part, device, is_toy, use_graph, scratch):
    """Prints the tables of a part, row by row. Returns whether all checks passed."""
    is_right = True

    def print_row(cells):
        print("| " + " | ".join(" ".join(str(x).split()).replace("|", "/") for x in cells) + " |", flush=True)

    for rows in tables_of(part, device, is_toy, use_graph, scratch):
        print(f"\nPart {part}:\n", flush=True)
        try:
            for i, row in enumerate(rows):
                print_row(row)
                if i == 0:
                    print_row(["---"] * len(row))
                is_right &= row[-1] not in ("NO", "nothing happened")
        except (Exception, SystemExit) as error:  # The other tables are still printed.
            error = error.__context__ or error
            print_row([f"failed: {type(error).__name__}: {error}", "NO"])
            is_right = False
    return is_right


def kill_marked(mark):
    """Kills the processes with the variable `mark` in their environment. Returns whether there were any."""
    found = False
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # The process has ended, or is another user's.
            if mark.encode() in path.read_bytes():
                found = True
                os.kill(int(path.parent.name), signal.SIGKILL)
    return found


def run_limited(command, seconds, **options):
    """
    Runs a command. Returns its exit code and output, or (None, None) if it was killed after these seconds.

    When it ends, all processes that it started are killed. They need not be in its process group: those of
    torchrun are not. A variable in their environment marks them. options: of subprocess.Popen.
    """
    mark = f"GPU_PY_{uuid.uuid4().hex}"
    process = subprocess.Popen(command, env={**os.environ, mark: "1"}, text=True, **options)
    try:
        output, _ = process.communicate(timeout=max(0.0, seconds))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, None
    finally:
        process.kill()
        process.wait()
        while kill_marked(mark):
            time.sleep(0.1)


def start_part(part, device, is_toy, use_graph):
    """Runs a part in a new process and prints how long it took. Returns whether all checks passed."""
    command, start = [sys.executable, __file__, "--device", device, "--run", str(part)], time.monotonic()
    code, _ = run_limited([*command, *["--toy"] * is_toy, *["--graph"] * use_graph], TIME_LIMIT)
    seconds = time.monotonic() - start
    print(f"\nPart {part} {'was stopped after' if code is None else 'took'} {seconds:.0f} s", flush=True)
    return code == 0


def run_process(args, scratch):
    """Runs a part (--run), or times the way that compiles with a model of this shape (--compile)."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # as in the scripts
    if ":" in args.device:
        torch.cuda.set_device(args.device)
    write_data(scratch / "data")
    if args.run:
        return not run_part(args.run, args.device, args.toy, args.graph, scratch)
    # On CUDA, transformers compiles by itself if the cache is static.
    way = partial(generate, cache_implementation="static")
    inputs = load_with_prompts(args.compile, args.device, args.toy, scratch)
    print(json.dumps(time_way(way, *inputs, warm_up=inputs[-1])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 ... or cpu (default: cuda)")
    parser.add_argument("--toy", action="store_true", help="use toy sizes")
    parser.add_argument("--parts", nargs="+", type=int, choices=PARTS, default=PARTS, help="(default: all)")
    # See run_process.
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--graph", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run or args.compile:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(run_process(args, Path(folder)))

    is_cuda = args.device.startswith("cuda")
    if not is_cuda and args.device != "cpu":
        parser.error("--device: give cuda, cuda:1 ... or cpu")
    if is_cuda and not torch.cuda.is_available():
        parser.error("--device: this machine has no GPU")
    name = torch.cuda.get_device_name(args.device) if is_cuda else "CPU"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    passed = []
    for part in sorted(set(args.parts)):
        passed.append(start_part(part, args.device, args.toy, is_cuda))
        # A failed capture can break all later work of its process.
        if part == 3 and is_cuda and not passed[-1]:
            start_part(part, args.device, args.toy, use_graph=False)
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
