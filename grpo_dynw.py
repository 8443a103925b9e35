# --- algorithm: docstring ---
"""
GRPO on K objectives with fixed or dynamic weights, after "Learning to Optimize Multi-Objective
Alignment Through Dynamic Reward Weighting" (Lu et al., arXiv:2509.11452).

    python grpo_dynw.py --weighting gradient

Each response has K rewards, r_vec. The policy maximizes their weighted sum w . r_vec. --weighting is one of:

    fixed        w is constant. This is the baseline.
    hypervolume  w is constant. The hypervolume that a step gains on the validation split sets the meta reward
                 r_pareto, which multiplies the next step's advantages (Alg. 1).
    gradient     w_k <- w_k exp(lr I_k / mu) / Z before each step's policy updates. The influence
                 I_k = <g_k, sum_j g_j> compares the objectives' policy gradients g_k (Alg. 2).
    nash         w_k = w0_k / p_k / Z, where w0 are the initial weights and p is the mean performance of the
                 step's responses. This weighting is ours, not the paper's.

Z normalizes the weights. A reward scores one response. A performance is what an evaluation reports. It is the
mean reward, unless rewards.PERFORMANCE defines another one.

Shapes: K objectives, G responses to a problem, N responses of this process in a step, B in a micro-batch,
P prompt tokens (padded on the left), R response tokens (padded on the right), T = P + R.

Lines between `# --- algorithm: ... ---` and `# --- end ---` are GRPO. The scripts share the others.
"""
# --- end ---

import argparse
import json
import math
import os
import random
import sys
import warnings
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, sleep, strftime

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Shard
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

import rewards
from hypervolume import contribution, hypervolume

TINY = Path(__file__).parent / "tiny"  # the embedded model and data
ALGORITHM = Path(__file__).stem.removesuffix("_dynw")
SHARDED = "LOCAL_RANK" in os.environ  # Under torchrun, parameters are sharded, even with one process.
RANK, WORLD = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")) if SHARDED else (0, 1)
ORIGIN = f"{ALGORITHM}_dynw.py with {WORLD} processes"  # --resume refuses other checkpoints.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # A checkpoint holds whole tensors.
# The flags that --resume may change. A dataset may have moved.
MAY_CHANGE = {"steps", "eval_every", "checkpoint_every", "report_to", "dataset", "device", "micro_batch_size"}
MAY_CHANGE |= {"cuda_graph", "gradient_checkpointing"}


# ---------- Arguments ----------


def add_flag(parser, name, default, help, choices=None, **options):
    if default is not None:
        options = {"type": type(default), **options}
        help += f" (default: {default})".replace("%", "%%")
    parser.add_argument(f"--{name}", default=default, help=help, choices=choices, **options)


def make_parser():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False)
    parser.error, flag = fail, partial(add_flag, parser)
    weightings = ["fixed", "hypervolume", "gradient", "nash"]
    flag("weighting", "fixed", "rule for w; hypervolume answers the validation split each step", weightings)
    flag("objectives", ["accuracy", "conciseness", "clarity"], "names in rewards.py", nargs="+", type=str)
    flag("weights", None, "initial weights, which sum to 1 (default: equal)", nargs="+", type=float)
    flag("mu", None, "step size of the weights is lr / mu (default of mu: 10 learning rates)", type=float)
    flag("influence-scale", "unit", "scale each gradient to norm 1, or clip its norm to 1", ["unit", "clip"])
    flag("probe-layers", [0.25, 0.75], "layers in Eq. (3), as fractions of the depth", nargs=2, type=float)
    flag("meta-reward-on", "advantage", "what r_pareto multiplies", ["advantage", "reward"])
    flag("hv-scale", 100.0, "factor on delta_hv in Eq. (1)")
    flag("hv-reference", "worst", "reference point: 0, or the initial model", ["worst", "initial"])
    flag("normalize", "sum", "normalize the weighted sum of rewards, or each reward", ["sum", "each"])
    flag("model", str(TINY / "model"), "a folder, or a name on the Hub")
    flag("dataset", str(TINY / "data"), "a folder, a file, a name on the Hub, math-500 or math-algebra")
    flag("prompt-suffix", None, "text after each problem (default: none; for the paper's data, the paper's)")
    parser.add_argument("--enable-thinking", action="store_true", help="passed to the chat template")
    flag("max-prompt-tokens", 64, "leave out problems with longer prompts")
    flag("max-new-tokens", 96, "cut off responses at this length")
    flag("device", "cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1 ...")
    flag("seed", 1, "seed of the sampling and of the order of problems")
    flag("steps", 60, "training steps")
    flag("prompts-per-step", 16, "problems in a step")
    flag("num-generations", 8, "responses to a problem")
    flag("updates-per-step", 1, "policy updates, each on its share of the problems")
    flag("micro-batch-size", 32, "responses in a backward pass; does not change results")
    flag("rollout-batch-size", 128, "responses generated at once, at least those to one problem")
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    parser.add_argument("--cuda-graph", **switch, help="faster rollouts; not tried on a GPU yet")
    parser.add_argument("--gradient-checkpointing", **switch, help="less memory, more time")
    flag("learning-rate", 2e-5, "learning rate of AdamW")
    flag("lr-schedule", "constant", "polynomial decays to 0", ["constant", "polynomial"])
    flag("weight-decay", 0.01, "weight decay of AdamW")
    flag("max-grad-norm", 1.0, "clip the gradient's norm")
    # --- algorithm: args ---
    flag("kl-coefficient", 0.001, "factor on the KL divergence from the initial model")
    # --- end ---
    flag("clip-low", 0.2, "clip the ratio below 1 - this")
    flag("clip-high", 0.2, "clip the ratio above 1 + this")
    flag("clip-dual", 3.0, "for A < 0, limit a token's loss to this times |A|")
    flag("eval-every", 5, "steps between evaluations")
    flag("max-eval-problems", None, "how many test and validation problems to use (default: all)", type=int)
    flag("checkpoint-every", 0, "steps between checkpoints, 0 for none")
    flag("output-dir", None, "folder of the run (default: a new one in runs)")
    flag("resume", None, "continue the run in this folder from its checkpoint")
    flag("report-to", "none", "also send metrics to a tracker", ["none", "tensorboard", "wandb"])
    return parser


def parse_args():
    """Returns the arguments and, with --resume, the checkpoint. The defaults are then those of its run."""
    parser = make_parser()
    args = parser.parse_args()
    if args.resume is None:
        return check_args(args), None
    with input_errors("--resume"):
        checkpoint = torch.load(f"{args.resume}/checkpoint.pt", "cpu", mmap=True, weights_only=True)
        origin = checkpoint.get("origin", "another program or version")
    if origin != ORIGIN:
        fail(f"--resume: the checkpoint is of {origin}, not of {ORIGIN}")

    old_args, step = {**checkpoint["args"], "output_dir": args.resume}, checkpoint["state"]["step"]
    parser.set_defaults(**old_args)
    args = check_args(parser.parse_args())
    changed = {name for name, value in vars(args).items() if value != old_args.get(name, value)}
    if "model" in changed:
        fail(f"--model: must stay the same; if its folder has moved, link it to {old_args['model']}")
    if changed := changed - MAY_CHANGE - {"resume"}:
        fail(f"--resume: cannot change --{', --'.join(sorted(changed)).replace('_', '-')}")
    if args.steps < step or (args.steps != old_args["steps"] and args.lr_schedule != "constant"):
        fail(f"--steps: must be at least {step}, and cannot change with a polynomial schedule")
    return args, checkpoint


def check_args(args):
    """Fills in the defaults that depend on other arguments, and checks all arguments."""
    K = len(args.objectives)
    args.weights = args.weights or [1 / K] * K
    folder = strftime(f"runs/{ALGORITHM}-{args.weighting}-%Y%m%d-%H%M%S-{os.getpid()}")
    args.output_dir = args.output_dir or folder
    if os.path.isdir(args.model):  # --resume may be called in another folder.
        args.model = os.path.abspath(args.model)

    positive = {"mu", "max_new_tokens", "prompts_per_step", "updates_per_step", "eval_every"}
    positive |= {"micro_batch_size", "rollout_batch_size", "max_eval_problems"}
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not 0 <= value < 2**32 or name in positive and value == 0:
            fail(f"--{name.replace('_', '-')}: {value} is out of range")
    args.mu = (10 * args.learning_rate or 1.0) if args.mu is None else args.mu
    if K < 2 or len(rewards.OBJECTIVES.keys() & args.objectives) < K:
        fail(f"--objectives: give two or more of {', '.join(rewards.OBJECTIVES)}, each once")
    if len(args.weights) != K or not min(args.weights) >= 0 or not abs(sum(args.weights) - 1) < 1e-6:
        fail(f"--weights: give {K} numbers of 0 or more that sum to 1")
    if args.weighting == "gradient" and args.influence_scale == "unit" and np.count_nonzero(args.weights) < 3:
        fail("--influence-scale unit: gives two objectives equal influences; use clip and a smaller --mu")
    if not 0 <= args.probe_layers[0] < args.probe_layers[1] <= 1:
        fail("--probe-layers: give two increasing fractions between 0 and 1")
    if args.cuda_graph and not args.device.startswith("cuda"):
        fail("--cuda-graph: needs --device cuda")
    if args.num_generations < 2:
        fail("--num-generations: must be at least 2, because responses to a problem are compared")
    if args.clip_dual <= 1:
        fail("--clip-dual: must be above 1")
    if args.prompts_per_step % (args.updates_per_step * WORLD):
        fail("--prompts-per-step: must be a multiple of --updates-per-step times the number of processes")
    if os.path.exists(args.output_dir) and args.resume is None:
        fail(f"--output-dir: {args.output_dir} exists; give another folder, or --resume {args.output_dir}")
    return args


def fail(message):
    """Prints one line about the user's input, once per machine, and exits with code 2."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        tqdm.write(f"{ALGORITHM}_dynw.py: error: {message}", file=sys.stderr)
    else:  # The first process needs time to print, because torchrun stops all processes when one exits.
        sleep(3)
    sys.exit(2)


@contextmanager
def input_errors(flag, kinds=Exception):
    """Turns an exception of a library that reads or writes the user's files into one line about `flag`."""
    try:
        yield
    except kinds as error:
        fail(f"{flag}: {' '.join(str(error.__cause__ or error).split()) or repr(error)}")


# ---------- Processes: each has a share of the problems and of every parameter ----------


def start_process(args):
    """Joins the other processes, sets the seed, and returns the device of this process."""
    device, is_cuda = args.device, args.device.startswith("cuda")
    if SHARDED:
        if is_cuda and torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
            fail(f"--device: this machine has only {torch.cuda.device_count()} GPUs")
        device = f"cuda:{os.environ['LOCAL_RANK']}" if is_cuda else device
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
        sys.stdout = sys.stdout if RANK == 0 else open(os.devnull, "w")  # noqa: SIM115
    with input_errors("--device"):
        torch.empty(0, device=device).tolist()
    if is_cuda:
        torch.cuda.set_device(torch.device(device).index or 0)
        # cuDNN's attention is slow for changing shapes, and can give NaN gradients (pytorch/pytorch#196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(args.seed * WORLD + RANK)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return device


def seed_objectives(seed, step):
    """Seeds the random numbers that objectives may use, so that --resume draws the same numbers."""
    random.seed(f"{seed} {step} {RANK}")
    np.random.seed([seed, step, RANK])


def summed(x):
    """The sum of a tensor over all processes, in place."""
    if SHARDED:
        dist.all_reduce(x)
    return x


def gathered(items):
    """The lists of all processes as one."""
    lists = [items] * WORLD
    if SHARDED:
        dist.all_gather_object(lists, items)
    return sum(lists, [])


def clock():
    """Seconds, after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


# ---------- Model ----------


def load_model(name, device, dtype=torch.float32, sharded=SHARDED):
    """
    Returns a causal language model, its tokenizer, and the generation settings that it came with.

    The model samples from its own distribution: these settings are replaced, and dropout is off.
    """
    auto = transformers.AutoModelForCausalLM
    if os.path.exists(f"{name}/adapter_config.json") and not os.path.exists(f"{name}/config.json"):
        fail(f"--model: {name} is an adapter; merge the adapter into its base model first")
    with input_errors("--model"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model, info = auto.from_pretrained(name, dtype=dtype, output_loading_info=True)
        turn_end = rewards.turn_end(tokenizer)
    settings = model.generation_config  # Its eos_token_id is one token, a list or None.
    end_ids = sorted({*np.ravel(settings.eos_token_id).tolist(), tokenizer.eos_token_id, turn_end} - {None})
    if info["missing_keys"] or not end_ids:
        fail(f"--model: lacks {', '.join(sorted(info['missing_keys'])) or 'an end token'}")
    if not all(p.isfinite().all() for p in model.parameters()):
        fail("--model: some of its weights are not finite")

    # Padding is masked, so any token serves as the pad token.
    model.generation_config = transformers.GenerationConfig(eos_token_id=end_ids, pad_token_id=end_ids[0])
    if sharded:  # FSDP2
        mesh = DeviceMesh.from_group(dist.group.WORLD, device.split(":")[0])
        for module in [*decoder_layers(model), model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model.to(device).eval(), tokenizer, settings


def decoder_layers(model):
    """The layers of the text decoder. A model for images may have towers with as many layers."""
    count = model.config.get_text_config().num_hidden_layers
    modules = model.get_decoder().modules()
    return next(m for m in modules if isinstance(m, nn.ModuleList) and len(m) == count)


def read_data(args, tokenizer, model):
    """Reads the splits that the run needs, and checks that the model can process their tokens."""
    splits = ["train", "test"] + ["validation"] * (args.weighting == "hypervolume")
    options = args.max_prompt_tokens, args.prompt_suffix, args.enable_thinking, args.max_eval_problems
    with input_errors("--dataset", ValueError):
        data = rewards.read_problems(args.dataset, splits, tokenizer, *options, args.objectives)
    if min(map(len, data.values())) < WORLD:
        fail("--dataset: a split has fewer problems than there are processes")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
    if args.max_prompt_tokens + args.max_new_tokens > positions:
        fail(f"--model: has {positions} positions, fewer than --max-prompt-tokens + --max-new-tokens")
    size = model.get_input_embeddings().num_embeddings
    if max(id for problems in data.values() for p in problems for id in p["prompt_ids"]) >= size:
        fail(f"--model: the tokenizer makes tokens beyond the {size} embeddings of the model")
    return data


def copy_weights(policy, actor):
    if actor is not policy:
        for source, target in zip(policy.parameters(), actor.parameters(), strict=True):
            target.data.copy_(source.data.full_tensor() if SHARDED else source.data)


# ---------- Rollouts ----------


def draw(logits):
    """Samples a token (B, 1) from each row of logits (B, V), at temperature 1."""
    # torch.multinomial would wait for the GPU. Sums over a large vocabulary need float64.
    cdf = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, torch.rand_like(cdf[:, :1]) * cdf[:, -1:], right=True)


def capture(step):
    """Records `step` as a CUDA graph, without running it. Returns a function that runs the graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL has threads that use CUDA, too.
        step()
    return graph.replay


@torch.no_grad()
def respond(model, ids, attention, limit, sample, graph=False):
    """
    Responses (B, limit) to prompts (B, P), sampled from the model's own distribution, or greedy. The tokens
    after an end token are arbitrary. graph: replay the decoding step as a CUDA graph, which needs no Python.
    """
    P, config = ids.shape[1], model.generation_config
    size = math.ceil((P + limit) / 8) * 8  # A multiple of 8 makes attention on CUDA faster.
    end_ids = torch.tensor(config.eos_token_id, device=ids.device)
    cache = transformers.StaticCache(config=model.config, max_cache_len=size)
    # A graph cannot replay the Python branches of a sliding layer. In a full layer, the mask has the window.
    sliding, full = transformers.cache_utils.StaticSlidingWindowLayer, transformers.cache_utils.StaticLayer
    cache.layers = [full(size) if type(layer) is sliding else layer for layer in cache.layers]

    def next_tokens(ids, attention, positions):
        inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "cache": cache}
        logits = model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()  # (B, V)
        return draw(logits) if sample else logits.argmax(-1, keepdim=True)  # (B, 1)

    def step():  # A graph reads and writes the same tensors each time, so the step changes them in place.
        tokens.copy_(next_tokens(tokens, attention, positions))
        positions.add_(1)

    tokens = next_tokens(ids, attention, (attention.cumsum(1) - 1).clamp(min=0))
    positions = attention.sum(1, keepdim=True)  # (B, 1), of these tokens
    attention = nn.functional.pad(attention, (0, size - P), value=1)  # The causal mask hides later tokens.
    responses = ids.new_full((len(ids), limit), config.pad_token_id)
    rows = torch.arange(len(ids), device=ids.device)  # Row i of the batch continues response rows[i].
    replay, share = None, 0.5 if graph else 0.75  # Capturing a graph again takes as long as some 20 steps.
    for t in range(limit):
        responses[rows, t] = tokens.squeeze(1)
        if t == limit - 1:
            break
        if t % 16 == 15:  # Look for end tokens only now and then, because the GPU waits meanwhile.
            is_finished = torch.isin(responses[rows, : t + 1], end_ids).any(1)
            unfinished = (~is_finished).nonzero().squeeze(1)
            if len(unfinished) == 0:
                break
            if len(unfinished) <= share * len(rows):  # Finished rows leave the batch and the cache.
                cache.reorder_cache(unfinished)
                rows, tokens, positions = rows[unfinished], tokens[unfinished], positions[unfinished]
                attention, replay = attention[unfinished], None
        if replay:
            replay()
        else:
            step()  # A graph must be captured after a step that has loaded all kernels.
            replay = capture(step) if graph else step
    return responses


def rollout(model, tokenizer, prompts, G, limit, batch_size, sample=True, graph=False):
    """
    G responses to each prompt, a list of token ids. Returns texts (N), ids and attention (N, T), mask (N, R)
    of the response tokens, lengths (N,) and cut_off (N,), by name.
    """
    config, size = model.generation_config, max(1, batch_size // G) * G
    prompts = [torch.tensor(prompt, device=model.device) for prompt in prompts for _ in range(G)]
    ids = pad_sequence(prompts, True, config.pad_token_id, "left")  # (N, P)
    attention = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, "left")
    parts = zip(ids.split(size), attention.split(size))
    responses = torch.cat([respond(model, *part, limit, sample, graph) for part in parts])

    # The first end token ends a response. Pad tokens cannot show the end: they may be end tokens.
    is_end = torch.isin(responses, torch.tensor(config.eos_token_id, device=responses.device))
    mask = is_end.cumsum(1) - is_end.long() == 0  # up to and including the first end token
    tokens = [row[m] for row, m in zip(responses, mask & ~is_end)]  # An end token need not be special.
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    lengths, cut_off = mask.sum(1), ~is_end.any(1)
    responses, mask = responses[:, : lengths.max()], mask[:, : lengths.max()]  # (N, R)
    ids, attention = torch.cat([ids, responses], 1), torch.cat([attention, mask.long()], 1)  # (N, T)
    batch = {"texts": texts, "ids": ids, "attention": attention, "mask": mask}
    return {**batch, "lengths": lengths, "cut_off": cut_off}


# ---------- Log-probabilities ----------


def micro_batch(batch, rows):
    """The `rows` of a batch, without columns that are padding in all of them."""
    first, R = batch["attention"][rows].argmax(1).min(), batch["lengths"][rows].max()
    columns = slice(first, batch["ids"].shape[1] - batch["mask"].shape[1] + R)
    ids, attention = batch["ids"][rows, columns], batch["attention"][rows, columns]
    return {"ids": ids, "attention": attention, "mask": batch["mask"][rows, :R]}


def chosen_logprobs(logits, tokens):
    """Log-probabilities (M,) of tokens (M,) under logits (M, V), in float32."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1).float() - logits.float().logsumexp(-1)


def token_logprobs(model, batch):
    """Log-probabilities (B, R) of the response tokens, at temperature 1."""
    ids, attention, R = batch["ids"], batch["attention"], batch["mask"].shape[1]
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # (B, T)
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "use_cache": False}
    # Autocast must not cache bfloat16 weights: they would stay in memory when FSDP frees the weights.
    with torch.autocast(ids.device.type, torch.bfloat16, ids.is_cuda, cache_enabled=False):
        logits = model(**inputs, logits_to_keep=R + 1).logits  # (B, R + 1, V), of the next tokens
    tokens = nn.functional.pad(ids[:, -R:], (0, 1))  # (B, R + 1). Removing the last logits would copy them.
    # Float32 logits may not fit in memory. Take 256 MB at a time, and recompute them in the backward pass.
    size = max(1, 2**26 // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(size), tokens.flatten().split(size))
    logprobs = [recompute(chosen_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(logprobs).view(-1, R + 1)[:, :-1]


@torch.no_grad()
def old_token_logprobs(model, batch, micros):
    """Log-probabilities (N, R) of the response tokens. micros: the rows of each micro-batch."""
    old_logprobs = torch.zeros(batch["mask"].shape, device=batch["ids"].device)
    for rows in micros:
        logprobs = token_logprobs(model, micro_batch(batch, rows))  # (B, R)
        old_logprobs[rows, : logprobs.shape[1]] = logprobs
    return old_logprobs


def split_updates(lengths, num_updates, size):
    """The rows of each update, in micro-batches of `size` responses of similar length."""
    updates = torch.arange(len(lengths), device=lengths.device).chunk(num_updates)
    return [rows[lengths[rows].argsort(stable=True)].split(size) for rows in updates]


# ---------- Advantage and loss ----------


# --- algorithm: advantage ---
def advantage(reward, lengths, args):
    """GRPO: (reward - group mean) / (group standard deviation + 1e-6), with Bessel's correction. (..., N)"""
    groups = reward.unflatten(-1, (-1, args.num_generations))  # (..., problems, G)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-6)).flatten(-2)


def kl_penalty(logprobs, reference_logprobs):
    """The k3 estimate (B, R) of KL(policy || reference), which is never negative. Capped at 10."""
    difference = (reference_logprobs - logprobs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(max=10)


# --- end ---
def policy_loss(logprobs, old_logprobs, A, clip_low, clip_high, clip_dual):
    """PPO's loss with a dual clip (arXiv:1912.09729), and where its ratio is clipped: (B, R). A: (B,)"""
    A = A[:, None]
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    unclipped, clipped = -A * ratio, -A * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    return torch.where(A < 0, torch.minimum(loss, -A * clip_dual), loss), clipped > unclipped


# ---------- The equations of the weightings ----------


def meta_reward(delta_hv, scale):
    """The meta reward r_pareto, in [0.5, 2], for a gain of delta_hv in hypervolume."""
    return 0.5 + 1.5 * math.tanh(scale * delta_hv)  # Eq. (1), arXiv:2509.11452


def influences(gram, weights, influence_scale):
    """
    The influences I_k = <g_k, sum_j g_j>, (K,), from the inner products (K, K) of the gradients g_k.

    influence_scale: "unit" scales each g_k to norm 1, "clip" only if its norm is above 1. weights: (K,). The
    sum over j skips objectives with zero weight.
    """
    norms = gram.diagonal().sqrt().clamp(min=1.0 if influence_scale == "clip" else 0.0)
    # Skip numerically zero gradients: scaled to norm 1, they would be noise.
    factors = torch.where(norms > 1e-6 * norms.max(), 1 / norms, 0.0)
    return (gram * factors[:, None] * (factors * (weights > 0))).sum(1)  # Eq. (3), arXiv:2509.11452


def update_weights(weights, influence, lr, mu):
    """The next weights, w_k exp(lr I_k / mu) / Z. weights, influence: (K,) -> (K,)"""
    return torch.softmax(weights.log() + lr * influence / mu, 0)  # Eq. (3), arXiv:2509.11452


def nash_weights(initial, performance):
    """
    The weights (K,) w0_k / p_k, normalized. This is the direction of the gradient of sum_k w0_k log p_k, the
    log of the Nash social welfare (proportional fairness). initial: w0 (K,). performance: p (K,).

    The direction is exact only for objectives whose performance is their mean reward. Conciseness has another
    one: its reward compares a length with a moving mean, but its performance is 1 - length / limit.
    """
    weights = initial / performance.clamp(min=0.02)  # A performance of 0 must not take all the weight.
    return weights / weights.sum()


# ---------- The gradients in Eq. (3) ----------


def probed_layers(model, start, end):
    """The decoder layers between two fractions of the depth, and their linear maps."""
    layers = decoder_layers(model)
    first = int(start * len(layers))
    layers = layers[first : max(first + 1, int(end * len(layers)))]
    linears = [m for m in layers.modules() if isinstance(m, (nn.Linear, transformers.pytorch_utils.Conv1D))]
    share = sum(m.weight.numel() for m in linears) / sum(p.numel() for p in layers.parameters())
    if share < 0.8:  # Fused experts, for example, are not linear modules.
        fail(f"--weighting gradient: needs 80% of the probed weights in linear maps, but has {share:.0%}")
    return layers, linears


def gram_matrix(model, probed, batch, micros, A_k, num_tokens):
    """
    Returns the inner products (K, K) of the objectives' policy gradients over the `probed` linear maps, and
    log-probabilities (N, R) of the response tokens. A_k: advantages (K, N). micros: rows of each micro-batch.

    One backward pass per micro-batch, from the summed log-likelihoods, serves all K objectives. Responses do
    not mix in the network, so the gradient delta_i (T, out) at a linear map's output is that of response i
    alone. With its input x_i (T, in), g_k = sum_i A_ki delta_i^T x_i, up to a sign that all objectives share.
    """
    (layers, linears), gradients = probed, {}
    mesh = DeviceMesh.from_group(dist.group.WORLD, A_k.device.type) if SHARDED else None
    old_logprobs = A_k.new_zeros(batch["mask"].shape)

    def watch(A, linear, inputs, output):  # A: (K, B)
        def receive(delta):
            delta = delta.reshape(A.shape[1], -1, delta.shape[-1])  # (B, T, out)
            x = inputs[0].detach().to(delta.dtype).reshape(A.shape[1], -1, inputs[0].shape[-1])  # (B, T, in)
            g = A @ (delta.transpose(1, 2) @ x).flatten(1).to(A.dtype)  # (K, out * in)
            if SHARDED:  # Sum over the processes. Each process keeps a part of the columns.
                g = DTensor.from_local(g, mesh, [Partial()]).redistribute(mesh, [Shard(1)]).to_local()
            gradients[linear] = gradients.get(linear, 0) + g

        output.register_hook(receive)

    # The backward pass stops at the input of the first probed layer.
    entry = layers[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].requires_grad_(), *inputs[1:]))
    model.requires_grad_(False)
    for rows in micros:
        hooks = [linear.register_forward_hook(partial(watch, A_k[:, rows])) for linear in linears]
        micro = micro_batch(batch, rows)
        logprobs = token_logprobs(model, micro)  # (B, R)
        ((logprobs * micro["mask"]).sum() / num_tokens).backward()
        old_logprobs[rows, : logprobs.shape[1]] = logprobs.detach()
        for hook in hooks:
            hook.remove()
    entry.remove()
    model.requires_grad_(True)
    return summed(sum((g @ g.T).double() for g in gradients.values())), old_logprobs


# ---------- Evaluation ----------


def evaluate(model, tokenizer, data, split, step, args):
    """Greedy responses to a split: metrics, the point p (K floats) of mean performance, and all samples."""
    names, limit, n = args.objectives, args.max_new_tokens, len(data[split])
    problems = data[split][n * RANK // WORLD : n * (RANK + 1) // WORLD]
    prompts = [problem["prompt_ids"] for problem in problems]
    batch = rollout(model, tokenizer, prompts, 1, limit, args.rollout_batch_size, False, args.cuda_graph)
    mean_length, clipped_ratio = (summed(batch[key].sum()).item() / n for key in ("lengths", "cut_off"))
    lengths, cut_off = batch["lengths"].tolist(), batch["cut_off"].tolist()
    scores = rewards.score(names, batch["texts"], problems, lengths, mean_length, step, split)
    samples = []
    for i, problem in enumerate(problems):
        sample = {"prompt": problem["prompt"], "response": batch["texts"][i], "answer": problem["answer"]}
        performance = dict(zip(names, rewards.performance(names, scores[i], lengths[i], limit)))
        samples.append({**sample, "length": lengths[i], "cut_off": cut_off[i], "performance": performance})
    samples, prefix = gathered(samples), {"test": "eval", "validation": "val"}[split]
    point = [float(np.mean([s["performance"][name] for s in samples])) for name in names]
    metrics = {f"{prefix}/performance/{name}": value for name, value in zip(names, point)}
    metrics[f"{prefix}/completions/mean_length"] = mean_length
    metrics[f"{prefix}/completions/clipped_ratio"] = clipped_ratio
    return metrics, point, samples


def finish_step(metrics, actor, tokenizer, data, state, tracker, args):
    """Evaluates the model after state["step"], sets the meta reward of the next step (Alg. 1), and logs."""
    step, zeros, start = state["step"], [0.0] * len(args.objectives), clock()
    if args.weighting == "hypervolume":
        values, point, _ = evaluate(actor, tokenizer, data, "validation", step, args)
        metrics |= values
        if step > 0:
            reference_point = state["buffer"][0] if args.hv_reference == "initial" else zeros
            metrics["delta_hv"] = contribution(point, state["buffer"], reference_point)
            state["r_pareto"] = meta_reward(metrics["delta_hv"], args.hv_scale)  # Eq. (1)
        state["buffer"] = [*state["buffer"], point]
    metrics["time/validate"] = clock() - start

    is_due, samples = step % args.eval_every == 0, None
    if is_due or step == args.steps:
        values, point, samples = evaluate(actor, tokenizer, data, "test", step, args)
        tested = [*state["tested"], point]
        metrics |= {**values, "eval/hypervolume": hypervolume(tested, zeros)}
        if is_due:  # A longer run would not evaluate the last step of this run if it is not due.
            state["tested"] = tested
    if RANK == 0:
        log(metrics, step, samples, tracker, args)


# ---------- Log, checkpoints, model ----------


def open_log(args, checkpoint):
    """Creates the run's folder. On --resume, drops the metrics after the checkpoint. Returns the tracker."""
    folder, config = Path(args.output_dir), {"algorithm": ALGORITHM, "torch": torch.__version__, **vars(args)}
    step = checkpoint["state"]["step"] if checkpoint else 0
    with input_errors("--report-to"):  # Import first: if a package is missing, no folder is made.
        if args.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
        elif args.report_to == "wandb":
            import wandb

    lines = []
    with input_errors("--output-dir"):
        if checkpoint:
            lines = (folder / "metrics.jsonl").read_text().splitlines()[: step + 1]
            if len(lines) <= step:
                raise ValueError(f"metrics.jsonl lacks steps before step {step} of the checkpoint")
            if step % checkpoint["args"]["eval_every"] and step < args.steps:  # It was not due.
                metrics = json.loads(lines[-1])
                lines[-1] = json.dumps({name: x for name, x in metrics.items() if name[:5] != "eval/"})
        folder.mkdir(parents=True, exist_ok=args.resume is not None)
        (folder / "args.json").write_text(json.dumps(config, indent=2) + "\n")
        # A full disk must not destroy the metrics of a run that is resumed.
        (folder / "metrics.tmp").write_text("".join(line + "\n" for line in lines))
        os.replace(folder / "metrics.tmp", folder / "metrics.jsonl")

    with input_errors("--report-to"):
        if args.report_to == "tensorboard":
            return SummaryWriter(folder, purge_step=step + 1)
        if args.report_to == "wandb":
            # --resume continues the run of the tracker. W&B reads its other settings from the environment.
            project, run_id = os.environ.get("WANDB_PROJECT", "dynw"), getattr(args, "wandb_id", None)
            tracker = wandb.init(project=project, config=config, dir=folder, id=run_id, resume="allow")
            args.wandb_id = tracker.id  # A checkpoint holds the arguments.
            return tracker


def log(metrics, step, samples, tracker, args):
    """Appends the metrics of a step to metrics.jsonl, and sends them to the tracker."""
    # JSON has no NaN.
    line = {"step": step} | {name: x if math.isfinite(x) else None for name, x in metrics.items()}
    with input_errors("--output-dir"):
        with open(Path(args.output_dir, "metrics.jsonl"), "a") as file:
            file.write(json.dumps(line) + "\n")
        if samples:
            lines = [json.dumps(sample) + "\n" for sample in samples]
            Path(args.output_dir, "completions.jsonl").write_text("".join(lines))
    if args.report_to == "tensorboard":
        for name, x in metrics.items():
            tracker.add_scalar(name, x, step)
        tracker.flush()
    elif args.report_to == "wandb":
        tracker.log(metrics, step=step)


def save_checkpoint(policy, optimizer, state, args):
    """Writes checkpoint.pt, one dictionary. It replaces the previous one only when it is complete."""
    policy_state, optimizer_state = get_state_dict(policy, optimizer, options=WHOLE)
    generator = torch.cuda if policy.device.type == "cuda" else torch
    checkpoint = {"origin": ORIGIN, "args": vars(args), "state": state}
    checkpoint |= {"policy": policy_state, "optimizer": optimizer_state}
    checkpoint["rng"] = gathered([generator.get_rng_state()])
    path = Path(args.output_dir, "checkpoint.pt")
    if RANK == 0:
        with input_errors("--output-dir"):
            torch.save(checkpoint, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)


def load_checkpoint(checkpoint, policy, optimizer):
    """Restores policy, optimizer and random numbers, and returns the state."""
    states = {"model_state_dict": checkpoint["policy"], "optim_state_dict": checkpoint["optimizer"]}
    set_state_dict(policy, optimizer, **states, options=WHOLE)
    kind = policy.device.type
    if checkpoint["args"]["device"].startswith(kind):  # CPU and CUDA generate random numbers differently.
        (torch.cuda if kind == "cuda" else torch).set_rng_state(checkpoint["rng"][RANK])
    return checkpoint["state"]


def save_model(model, tokenizer, settings, folder):
    """Saves the model with its original settings, draws the run's pictures, and prints its results."""
    with input_errors("--output-dir"):
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        # save_pretrained refuses some of the settings that models come with.
        settings.to_json_file(folder / "model/generation_config.json")
    os.environ["MPLBACKEND"] = "agg"  # Draw to files, whatever backend the user prefers.
    try:
        from compare import summary

        print(summary(folder))
    except ImportError:
        print("No pictures, because compare.py or matplotlib is missing")
    print(f"Metrics, completions and the model are in {folder}")


# ---------- The main loop ----------


def main():
    args, checkpoint = parse_args()
    device = start_process(args)
    names, G, U = args.objectives, args.num_generations, args.updates_per_step
    num_responses = args.prompts_per_step * G  # in a step, over all processes

    # The policy is trained. The actor generates. It is a copy if the policy is sharded or on CUDA (bfloat16).
    policy, tokenizer, settings = load_model(args.model, device)
    actor, is_cuda = policy, policy.device.type == "cuda"
    if SHARDED or is_cuda:
        actor = load_model(args.model, device, torch.bfloat16 if is_cuda else torch.float32, sharded=False)[0]
    # --- algorithm: kl ---
    reference = load_model(args.model, device)[0].requires_grad_(False)
    # --- end ---
    probed = probed_layers(policy, *args.probe_layers) if args.weighting == "gradient" else None
    data = read_data(args, tokenizer, policy)
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": is_cuda}
    optimizer = torch.optim.AdamW(policy.parameters(), **options)

    # A checkpoint holds this state, the policy, the optimizer, the random numbers and the arguments.
    # buffer: points on the validation split (Alg. 1). tested: points on the test split.
    w0 = torch.tensor(args.weights, dtype=torch.float64)
    state = {"step": 0, "weights": w0, "r_pareto": 1.0, "total_tokens": 0, "buffer": [], "tested": []}
    state["checksum"] = zlib.crc32(json.dumps(data, default=str).encode())  # of the problems
    if checkpoint and checkpoint["state"].get("checksum") != state["checksum"]:
        fail("--dataset: has other problems than the run; give the same data, which may have moved")
    if checkpoint:
        state = load_checkpoint(checkpoint, policy, optimizer)
    copy_weights(policy, actor)
    tracker = open_log(args, checkpoint) if RANK == 0 else None
    if args.gradient_checkpointing:
        for layer in decoder_layers(policy):  # The method of transformers would switch dropout on.
            layer.forward = partial(recompute, layer.forward, use_reentrant=False)
    if not checkpoint:  # Step 0 is the initial model.
        seed_objectives(args.seed, 0)
        finish_step({}, actor, tokenizer, data, state, tracker, args)

    steps = range(state["step"] + 1, args.steps + 1)
    bar = tqdm(steps, args.weighting, args.steps, initial=state["step"], disable=RANK > 0)
    for step in bar:
        # 1. Rollouts: G responses to each problem of this step.
        times = [clock()]
        problems = rewards.problems_of_step(data["train"], step, args.prompts_per_step, args.seed)
        problems = problems[RANK::WORLD]  # the share of this process
        prompts = [problem["prompt_ids"] for problem in problems]
        sizes = G, args.max_new_tokens, args.rollout_batch_size
        batch = rollout(actor, tokenizer, prompts, *sizes, graph=args.cuda_graph)
        lengths = batch["lengths"]  # (N,)
        step_tokens = summed(lengths.sum())
        times.append(clock())

        # 2. Rewards, in float64: in float32, rounding could give equal rewards a nonzero std and advantages.
        seed_objectives(args.seed, step)
        state["total_tokens"] += step_tokens.item()
        mean_length = state["total_tokens"] / (step * num_responses)  # of all rollouts so far
        problems = [problem for problem in problems for _ in range(G)]
        scores = rewards.score(names, batch["texts"], problems, lengths.tolist(), mean_length, step, "train")
        r_vec = torch.tensor(scores, dtype=torch.float64, device=device).T  # (K, N)
        if args.weighting in ("hypervolume", "nash") and (r_vec.min() < 0 or r_vec.max() > 1):
            warnings.warn(f"--weighting {args.weighting} expects rewards in [0, 1]", stacklevel=1)
        times.append(clock())

        # 3. Weights, and the log-probabilities before the updates, which the probe returns, too.
        weights, old_logprobs, lr = state["weights"].to(device), None, args.learning_rate
        if args.lr_schedule == "polynomial":
            lr *= (1 - (step - 1) / args.steps) ** 1.03
        metrics = {"learning_rate": lr, "r_pareto": state["r_pareto"]}
        updates = split_updates(lengths, U, args.micro_batch_size)  # the rows of each update and micro-batch
        if args.weighting == "gradient":
            A_k = advantage(r_vec, lengths, args).float()  # (K, N)
            gram, old_logprobs = gram_matrix(policy, probed, batch, sum(updates, ()), A_k, step_tokens)
            influence = influences(gram, weights, args.influence_scale)  # (K,)
            if influence.isfinite().all():
                weights = update_weights(weights, influence, lr, args.mu)  # Eq. (3)
            metrics |= {f"influence/{name}": I for name, I in zip(names, influence)}
        elif U > 1:  # With one update, the forward pass of the update gives them.
            old_logprobs = old_token_logprobs(policy, batch, sum(updates, ()))  # (N, R)
        if args.weighting == "nash":
            mean_rewards = summed(r_vec.sum(1)) / num_responses  # (K,)
            p = rewards.performance(names, mean_rewards, step_tokens / num_responses, args.max_new_tokens)
            weights = nash_weights(w0.to(device), weights.new_tensor(p))
        state["weights"] = weights.cpu()
        times.append(clock())

        # 4. Advantages, times r_pareto. In the reward, GRPO and REINFORCE++ would normalize r_pareto away.
        r = weights @ r_vec  # (N,)
        signal = r if args.normalize == "sum" else r_vec
        if args.meta_reward_on == "reward":
            A = advantage(state["r_pareto"] * signal, lengths, args)
        else:
            A = state["r_pareto"] * advantage(signal, lengths, args)
        A = (A if args.normalize == "sum" else weights @ A).float()  # (N,)

        # 5. Policy updates. Means are over all tokens of an update, so micro-batches do not change them.
        clips = args.clip_low, args.clip_high, args.clip_dual
        optimizer.param_groups[0]["lr"] = lr
        for update in updates:
            update_tokens = summed(lengths[torch.cat(update)].sum())
            for rows in update:
                micro = micro_batch(batch, rows)
                logprobs = token_logprobs(policy, micro)  # (B, R)
                old = logprobs.detach() if old_logprobs is None else old_logprobs[rows, : logprobs.shape[1]]
                loss, is_clipped = policy_loss(logprobs, old, A[rows], *clips)  # (B, R) each
                terms = {"loss": loss, "clip_fraction": is_clipped}
                # --- algorithm: kl ---
                terms["kl"] = kl_penalty(logprobs, token_logprobs(reference, micro))
                terms["loss"] = loss + args.kl_coefficient * terms["kl"]
                # --- end ---
                # Multiply by WORLD, because gradients and metrics are averaged over the processes.
                terms = {name: WORLD * (x * micro["mask"]).sum() / update_tokens for name, x in terms.items()}
                terms["loss"].backward()
                metrics |= {name: metrics.get(name, 0.0) + x.item() / U for name, x in terms.items()}

            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            grad_norm = grad_norm.full_tensor() if SHARDED else grad_norm
            if grad_norm.isfinite():  # Otherwise, skip this update.
                optimizer.step()
            optimizer.zero_grad()
        copy_weights(policy, actor)
        times.append(clock())

        # 6. Metrics of this step: means over all processes.
        metrics |= {"reward": r.mean(), "grad_norm": grad_norm}
        metrics["completions/mean_length"] = lengths.double().mean()
        metrics["completions/clipped_ratio"] = batch["cut_off"].double().mean()
        for name, weight, groups in zip(names, weights, r_vec.unflatten(1, (-1, G))):  # (problems, G)
            metrics |= {f"weights/{name}": weight, f"rewards/{name}/mean": groups.mean()}
            metrics[f"rewards/{name}/frac_zero_std"] = (groups == groups[:, :1]).all(1).double().mean()
        phases = "time/rollout", "time/reward", "time/probe", "time/update"
        metrics |= dict(zip(phases, np.diff(times)))
        means = summed(torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)) / WORLD
        metrics = dict(zip(metrics, means.tolist()))
        progress = {k: (metrics[f"rewards/{k}/mean"], metrics[f"weights/{k}"]) for k in names}
        bar.set_postfix({k: f"{reward:.2f}*{weight:.2f}" for k, (reward, weight) in progress.items()})

        # 7. Evaluation, which sets r_pareto for the next step; log; checkpoint.
        state["step"] = step
        finish_step(metrics, actor, tokenizer, data, state, tracker, args)
        if args.checkpoint_every and step % args.checkpoint_every == 0:
            save_checkpoint(policy, optimizer, state, args)

    if RANK == 0:  # Save float32 weights, because bfloat16 rounds small updates away.
        actor.cpu().float()
    copy_weights(policy, actor)
    if RANK == 0:
        save_model(actor, tokenizer, settings, Path(args.output_dir))
    if SHARDED:
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: --resume continues from the last checkpoint, if there is one")
