"""
Times steps of grpo_dynw.py with fixed weights and of TRL's GRPOTrainer, without vLLM, on the same machine.

    pip install -r benchmarks/requirements.txt
    python benchmarks/trl_speed.py                                the embedded model, on the CPU
    python benchmarks/trl_speed.py --device cuda --shape 0.6B     a random model in the shape of Qwen3-0.6B
    python benchmarks/trl_speed.py --shape toy                    a tiny random model, only to test this file

All have the same model, problems, rewards, group size, limit, KL term and number of responses in a step: 128
of at most 96 tokens, or with --shape 64 of at most 256 tokens, of which a random model uses nearly all. With
a learning rate of 1e-9, the policy and so the lengths of its responses stay the same.

On CUDA, grpo_dynw.py runs without and with --cuda-graph. It trains float32 weights under autocast to
bfloat16, and generates with a copy in bfloat16. TRL runs with float32 weights under autocast, and with
bfloat16 weights.

Each side runs in its own process, which is stopped at its time limit. For TRL, the time of a step is the time
between the ends of two steps. For grpo_dynw.py, it is the sum of the times of the phases in its metrics. The
table has medians. Its rows are printed as soon as they are measured.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch
import transformers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import grpo_dynw  # noqa: E402
import rewards  # noqa: E402
from compare import read_metrics  # noqa: E402

OBJECTIVES = ["accuracy", "conciseness", "clarity"]
GROUP = 8
SHAPES = {  # hidden size, intermediate size, layers, heads, key and value heads, head size, vocabulary
    "toy": (64, 128, 2, 2, 1, 32, 512),
    "0.6B": (1024, 3072, 28, 16, 8, 128, 151936),
    "1.7B": (2048, 6144, 28, 16, 8, 128, 151936),
}
PHASES = ["rollout", "reward", "probe", "update"]
TITLES = ["", "mean length", "seconds a step", "responses a second", "peak GB"]


def sides(args):
    """The sides to time: {name: (function, its options)}."""
    if args.device == "cpu":
        sizes = [args.responses, args.micro_batch_size]
        trl = {f"TRL, micro-batches of {size}": (time_trl, {"micro_batch": size}) for size in sizes}
        return trl | {"grpo_dynw.py": (time_grpo, {})}
    return {
        "TRL, float32 weights": (time_trl, {"micro_batch": args.micro_batch_size}),
        "TRL, bfloat16 weights": (time_trl, {"micro_batch": args.micro_batch_size, "dtype": "bfloat16"}),
        "grpo_dynw.py": (time_grpo, {}),
        "grpo_dynw.py --cuda-graph": (time_grpo, {"flags": ["--cuda-graph"]}),
    }


# ---------- TRL ----------


class StepTimer(transformers.TrainerCallback):
    """Records when each step ends, and the mean lengths that TRL logs."""

    def __init__(self):
        self.ends, self.lengths = [], []

    def on_step_end(self, *_, **__):
        self.ends.append(grpo_dynw.clock())

    def on_log(self, _, __, ___, logs, **____):
        if "completions/mean_length" in logs:
            self.lengths.append(logs["completions/mean_length"])


def make_reward(name):
    """Returns an objective of rewards.py as a reward function of TRL."""

    def reward(completions, completion_ids, answer, **_):
        texts, lengths = [turns[0]["content"] for turns in completions], [len(ids) for ids in completion_ids]
        problems, mean_length = [{"answer": text} for text in answer], sum(lengths) / len(lengths)
        return [value for (value,) in rewards.score([name], texts, problems, lengths, mean_length)]

    reward.__name__ = name
    return reward


def time_trl(args, folder, micro_batch, dtype="float32"):
    """Trains with TRL. Returns the seconds between the ends of steps, and the mean length of each step."""
    import datasets
    import trl

    data = datasets.load_dataset(str(ROOT / "tiny/data"), split="train").map(
        lambda row: {"prompt": [{"role": "user", "content": row["problem"]}]}, remove_columns=["problem"]
    )
    config = trl.GRPOConfig(
        output_dir=str(folder),
        max_steps=args.steps + 1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=args.responses // micro_batch,
        num_generations=GROUP,
        max_completion_length=args.limit,
        beta=0.001,
        learning_rate=1e-9,
        reward_weights=[1 / 3] * 3,
        model_init_kwargs={"dtype": dtype},
        use_cpu=args.device == "cpu",
        bf16=args.device != "cpu",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    functions, timer = [make_reward(name) for name in OBJECTIVES], StepTimer()
    trl.GRPOTrainer(args.model, functions, config, train_dataset=data, callbacks=[timer]).train()
    return [end - began for began, end in zip(timer.ends, timer.ends[1:])], timer.lengths


# ---------- grpo_dynw.py ----------


def time_grpo(args, folder, flags=()):
    """Trains with grpo_dynw.py. Returns seconds and mean length of each step except the first."""
    command = ["grpo_dynw.py", "--model", args.model, "--device", args.device, "--output-dir", folder]
    command += ["--steps", args.steps + 1, "--learning-rate", "1e-9", "--eval-every", "1000", *flags]
    command += ["--prompts-per-step", args.responses // GROUP, "--num-generations", GROUP]
    command += ["--max-new-tokens", args.limit, "--micro-batch-size", args.micro_batch_size]
    evaluate = grpo_dynw.evaluate

    def evaluate_briefly(*inputs):  # Evaluations are not measured.
        *others, arguments = inputs
        return evaluate(*others, argparse.Namespace(**{**vars(arguments), "max_new_tokens": 8}))

    with (
        patch.object(sys, "argv", list(map(str, command))),
        patch.object(grpo_dynw, "evaluate", evaluate_briefly),
        patch("compare.summary", str),  # Draw no pictures.
    ):
        grpo_dynw.main()
    metrics = read_metrics(folder)[2:]  # without the initial evaluation and the first step
    times = [sum(line[f"time/{phase}"] for phase in PHASES) for line in metrics]
    return times, [line["completions/mean_length"] for line in metrics]


# ---------- Each side in its own process ----------


def make_model(shape, folder):
    """Writes a random model of this shape, and the embedded tokenizer, to `folder`."""
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocabulary = SHAPES[shape]
    config = transformers.Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(ROOT / "tiny/model").save_pretrained(folder)


def run_side(name, args):
    """Times a side in this process, and writes its row of the table to args.result."""
    function, options = sides(args)[name]
    with tempfile.TemporaryDirectory() as scratch:
        times, lengths = function(args, Path(scratch) / "run", **options)
    peak, median = "-", statistics.median(times)
    if args.device != "cpu":
        peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"
    row = [name, f"{statistics.mean(lengths):.1f}", f"{median:.2f}", f"{args.responses / median:.1f}", peak]
    Path(args.result).write_text(json.dumps(row))


def start_side(name, args, result):
    """Times a side in a new process. Returns its row of the table, with the reason if it has no result."""
    command = [sys.executable, __file__, "--side", name, "--result", str(result)]
    for flag in ("device", "model", "responses", "limit", "micro_batch_size", "steps"):
        command += [f"--{flag.replace('_', '-')}", str(getattr(args, flag))]
    result.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=sys.stderr, start_new_session=True) as process:
        try:
            process.wait(args.time_limit)
            reason = f"failed with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {args.time_limit} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
    return json.loads(result.read_text()) if result.exists() else [name, reason, "-", "-", "-"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    parser.add_argument("--shape", choices=SHAPES, help="of a random model (default: the embedded model)")
    parser.add_argument("--steps", type=int, help="number of steps to time (default: 9, with --shape 3)")
    parser.add_argument("--time-limit", type=int, default=150, help="seconds for each side (default: 150)")
    parser.add_argument("--micro-batch-size", type=int, help="(default: 32, with --shape 16)")
    # The parent process passes these to the process of a side.
    for flag, kind in {"side": str, "result": str, "model": str, "responses": int, "limit": int}.items():
        parser.add_argument(f"--{flag}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return run_side(args.side, args)

    is_cuda = args.device == "cuda"
    if is_cuda and not torch.cuda.is_available():
        parser.error("--device: this machine has no GPU")
    args.responses, args.limit, steps, size = (64, 256, 3, 16) if args.shape else (128, 96, 9, 32)
    args.steps, args.micro_batch_size = args.steps or steps, args.micro_batch_size or size
    with tempfile.TemporaryDirectory() as scratch:
        args.model = str(ROOT / "tiny/model")
        if args.shape:
            args.model = f"{scratch}/model"
            make_model(args.shape, args.model)
        name = torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads"
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        print(f"{name}, {versions}, {args.responses} responses of at most {args.limit} tokens\n")
        print("| " + " | ".join(TITLES) + " |\n|" + " --- |" * len(TITLES), flush=True)
        for side in sides(args):
            print("| " + " | ".join(start_side(side, args, Path(scratch) / "row.json")) + " |", flush=True)


if __name__ == "__main__":
    main()
