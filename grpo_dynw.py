# --- algorithm: docstring ---
"""
GRPO on several objectives at once, with fixed or dynamic weights of their rewards.

The method of "Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting" (arXiv:2509.11452), in
one file. What makes it more than GRPO on one reward is how the rewards are weighed:

    --weighting fixed        r = w . r_vec with constant weights w, the baseline
    --weighting hypervolume  w constant; what a step gains in validated hypervolume scales the next step (Alg. 1)
    --weighting gradient     w follows what each objective's policy gradient has in common with the others' (Alg. 2)

    python grpo_dynw.py --weighting gradient

trains the embedded model on the embedded arithmetic in minutes on a CPU; --model and --dataset take your own, and

    torchrun --standalone --nproc-per-node 8 grpo_dynw.py ...

spreads policy, optimiser and rollouts over 8 processes, each with a GPU of its own. Everything that a run finds out is
in its folder, runs/..., and `python hypervolume.py runs/A runs/B` compares runs.

GRPO itself is between the lines `# --- algorithm: ... ---` and `# --- end ---`. The other scripts share all the rest.
"""
# --- end ---
import dataclasses
import importlib.util
import json
import logging
import math
import os
import sys
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, HfArgumentParser
from transformers.hf_argparser import HfArg
from transformers.pytorch_utils import Conv1D

import rewards
from hypervolume import (
    ParetoBuffer, before_and_after, fail, hypervolume, meta_reward, plot_curves, plot_fronts, read_run,
    read_settings, start_log, versions, write_whole,
)

TINY = Path(__file__).parent / "tiny"  # the embedded model and data


@dataclass
class Args:
    weighting: Literal["fixed", "hypervolume", "gradient"] = HfArg(default="fixed", help="how objectives are weighed")
    objectives: list[str] = HfArg(
        default_factory=lambda: ["accuracy", "conciseness", "clarity"], help="K >= 2 names that rewards.py registers")
    weights: list[float] = HfArg(default_factory=list, help="K initial weights, sum 1 (default: all equal)")
    mu: float | None = HfArg(default=None, help="smaller moves weights faster, Eq. (3) (default: 10 learning rates)")
    probe_layers: list[float] = HfArg(default_factory=lambda: [0.25, 0.75], help="decoder layers of Eq. (3): from, to")
    meta_reward_on: Literal["advantage", "reward"] = HfArg(default="advantage", help="what r_pareto of Eq. (1) scales")
    hv_reference: Literal["worst", "initial"] = HfArg(default="worst", help="hypervolume above: worst corner, or start")

    model: str = HfArg(default=str(TINY / "model"), help="a causal language model: a folder, or a name on the Hub")
    dataset: str = HfArg(default=str(TINY / "data"), help="folder, file, Hub name, or math-500, math-algebra (paper's)")
    prompt_suffix: str | None = HfArg(default=None, help="put after each problem (default: none, or the paper's)")
    enable_thinking: bool = HfArg(default=False, help="tells the chat template, as of Qwen3, to let the model think")
    max_prompt_tokens: int = HfArg(default=64, help="problems with longer prompts are left out")
    max_new_tokens: int = HfArg(default=96, help="a response is cut off here")
    device: str = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 ...")
    seed: int = HfArg(default=1, help="of sampling and of the order of problems")

    steps: int = HfArg(default=60, help="training steps: rollouts, weighting, update")
    prompts_per_step: int = HfArg(default=16, help="problems a step")
    num_generations: int = HfArg(default=8, help="responses sampled for each problem")
    updates_per_step: int = HfArg(default=1, help="optimiser updates a step, each on its share of the problems")
    micro_batch_size: int = HfArg(default=32, help="responses that are back-propagated at once; no effect on results")
    rollout_batch_size: int = HfArg(default=128, help="responses that are generated at once")
    gradient_checkpointing: bool = HfArg(default=False, help="less memory for a third more time of the update")
    learning_rate: float = HfArg(default=2e-4, help="of AdamW")
    lr_schedule: Literal["constant", "polynomial"] = HfArg(default="constant", help="polynomial: to 0, power 1.03")
    weight_decay: float = HfArg(default=0.01, help="of AdamW")
    max_grad_norm: float = HfArg(default=1.0, help="the gradient is scaled down to this norm")
    # --- algorithm: args ---
    kl_coefficient: float = HfArg(default=0.001, help="weight of the KL divergence from the initial model in the loss")
    # --- end ---
    clip_low: float = HfArg(default=0.2, help="the probability ratio is clipped below 1 - this")
    clip_high: float = HfArg(default=0.2, help="the probability ratio is clipped above 1 + this")
    clip_dual: float = HfArg(default=3.0, help="where the advantage is negative, the ratio is bounded by this")

    eval_every: int = HfArg(default=20, help="steps between evaluations on the test split")
    checkpoint_every: int = HfArg(default=0, help="steps between checkpoints (0: none)")
    output_dir: str | None = HfArg(default=None, help="folder of the run (default: runs/ALGORITHM-WEIGHTING-TIME)")
    resume: str | None = HfArg(default=None, help="folder of a run with a checkpoint, to be continued")
    report_to: Literal["none", "tensorboard", "wandb"] = HfArg(default="none", help="where else metrics go")


def parse_args():
    """Args from the command line and, under --resume, from the run; checked, with what was left open filled in."""
    parser = HfArgumentParser(Args, allow_abbrev=False)
    parser.error = fail
    args = Args(**vars(parser.parse_args()))
    world = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if args.resume:
        try:
            saved = read_settings(args.resume, Path(__file__).name)
        except ValueError as error:
            fail(f"--resume: {error}")
        if saved.get("processes") != world:
            fail(f"--resume: the run has {saved.get('processes')} processes and cannot go on with {world}")
        saved = {field.name: saved.get(field.name) for field in dataclasses.fields(Args)}
        parser.set_defaults(**saved)
        args = Args(**vars(parser.parse_args()))
        free = {"resume", "eval_every", "checkpoint_every", "report_to", "model", "dataset", "micro_batch_size",
                "gradient_checkpointing", *(["steps"] if args.lr_schedule == "constant" else [])}
        for name in saved.keys() - free:
            if getattr(args, name) != saved[name]:
                fail(f"--resume continues a run as it was: {name} was {saved[name]} and cannot change")
        args.output_dir = args.resume
    K = len(args.objectives)
    args.weights = args.weights or [1 / K] * K
    args.mu = args.mu if args.mu is not None else 10 * args.learning_rate
    if args.prompt_suffix is None:
        args.prompt_suffix = rewards.PAPER_SUFFIX if args.dataset in rewards.PAPER else ""
    # Files by their full path, so that a run can be resumed from anywhere.
    args.model, args.dataset = (os.path.abspath(p) if os.path.exists(p) else p for p in (args.model, args.dataset))
    name = f"{Path(sys.argv[0]).stem.removesuffix('_dynw')}-{args.weighting}-{time.strftime('%Y%m%d-%H%M%S')}"
    args.output_dir = args.output_dir or f"runs/{name}"
    check_args(args, world)
    return args


def check_args(args, world):
    """Refuses what cannot work, in `world` processes, before anything is loaded or written."""
    K, known = len(args.objectives), rewards.OBJECTIVES
    positive = ["steps", "prompts_per_step", "updates_per_step", "micro_batch_size", "rollout_batch_size",
                "max_prompt_tokens", "max_new_tokens", "eval_every", "learning_rate", "mu", "max_grad_norm"]
    not_negative = ["weight_decay", "clip_low", "clip_high", "checkpoint_every", "seed", "kl_coefficient"]
    numbers = {name: value for name, value in vars(args).items() if isinstance(value, (int, float))}
    for is_wrong, message in [
        (set(args.objectives) - set(known), f"--objectives: known are {', '.join(known)}, not {args.objectives}"),
        (K < 2 or len(set(args.objectives)) < K, "--objectives: give two or more different ones"),
        (len(args.weights) != K, f"--weights: {len(args.weights)} given for {K} objectives"),
        (not all(w >= 0 for w in args.weights), f"--weights: must be 0 or above, not {args.weights}"),
        (not abs(sum(args.weights) - 1) < 1e-6, f"--weights: must sum to 1, not {sum(args.weights):.6g}"),
        (len(args.probe_layers) != 2 or not 0 <= args.probe_layers[0] < args.probe_layers[-1] <= 1,
         f"--probe-layers: give two fractions in order, such as 0.25 0.75, not {args.probe_layers}"),
        (not args.clip_dual > 1, "--clip-dual: must be above 1, or it cuts gradients off at ratio 1"),
        (args.num_generations < 2, "--num-generations: an advantage compares at least 2 responses to a problem"),
        *((not 0 < numbers[name] < math.inf, f"--{name.replace('_', '-')}: must be above 0") for name in positive),
        *((not 0 <= numbers.get(name, 0) < 2**32, f"--{name.replace('_', '-')}: must be 0 or above, below 2^32")
          for name in not_negative),
        (args.device.split(":")[0] not in ("cpu", "cuda"), f"--device: cpu, cuda or cuda:1, not {args.device}"),
        (args.device == "cuda" and int(os.environ.get("LOCAL_RANK", 0)) >= torch.cuda.device_count(),
         f"--device: PyTorch sees {torch.cuda.device_count()} CUDA devices here, and each process needs one"),
        (":" in args.device and world > 1, f"--device: processes share no device: cpu or cuda, not {args.device}"),
        (args.prompts_per_step % max(args.updates_per_step * world, 1),
         "--prompts-per-step: must be a multiple of --updates-per-step times the number of processes"),
        (args.report_to != "none" and not importlib.util.find_spec(args.report_to),
         f"--report-to: the package {args.report_to} is not installed"),
        (os.path.exists(args.output_dir) and not args.resume,
         f"--output-dir: {args.output_dir} exists already; take another, or --resume it if it has a checkpoint"),
    ]:
        if is_wrong:
            fail(message)


def load_model(name, device, dtype=torch.float32, sharded=False):
    """
    A causal language model, its tokenizer, and the generation settings it came with. sharded: over all processes.

    It stays in evaluation mode: rollouts, log-probabilities and update must be of one policy, so without dropout. Its
    settings (top-k, temperature ...) are set aside, or it would sample from another distribution than the one that is
    scored. The ids that end a response are kept, as a list, in `model.generation_config.eos_token_id`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, loaded = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
        model = (shard(model, device) if sharded else model.to(device)).eval()
    except Exception as error:  # whatever the libraries that read its files raise
        fail(f"--model: cannot load {name}, a folder or a name on the Hub, on {device}: {error}")
    if loaded["missing_keys"]:
        fail(f"--model: {name} lacks weights: {', '.join(sorted(loaded['missing_keys']))}")
    settings, own = model.generation_config, model.generation_config.eos_token_id
    end_ids = sorted({*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None})
    if not end_ids:
        fail(f"--model {name}: it has no token that ends a response")
    pad_id = end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end_ids, pad_token_id=pad_id)
    return model, tokenizer, settings


def decoder_layers(model):
    """The list of the model's decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def problems_of_step(problems, step, size, seed):
    """The `size` problems of `step` (from 1). Every epoch goes through all problems, in an order of its own."""
    for position in range((step - 1) * size, step * size):
        epoch, index = divmod(position, len(problems))
        order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        yield problems[order[index]]


# ---- Several processes, started by torchrun: each has a share of the problems and of every parameter (FSDP2) ---------


def process():
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(items):
    """The lists of all processes as one, in the order of the processes."""
    lists = [items] * process()[1]
    if dist.is_initialized():
        dist.all_gather_object(lists, items)
    return [item for one in lists for item in one]


def summed(x):
    """The sum of a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def scattered(x):
    """The sum of a matrix (K, M) over all processes, of which each gets its own columns: (K, about M / processes)."""
    if not dist.is_initialized():
        return x
    columns = nn.functional.pad(x, (0, -x.shape[1] % process()[1])).unflatten(1, (process()[1], -1))
    columns = columns.transpose(0, 1).contiguous()  # (processes, K, M / processes)
    mine = torch.empty_like(columns[0])
    dist.reduce_scatter_single(mine.view(-1), columns.view(-1))
    return mine


def shard(model, device):
    """Spreads the parameters of each decoder layer, and of the rest, over all processes, to be gathered when needed."""
    mesh = init_device_mesh(device.split(":")[0], (process()[1],))
    for module in [*decoder_layers(model), model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model


@torch.no_grad()
def copy_weights(policy, actor):
    """Brings `actor`, which generates, up to date: whole in every process, and in its own precision."""
    if actor is not policy:
        for source, target in zip(policy.parameters(), actor.parameters(), strict=True):
            target.copy_(source.full_tensor() if isinstance(source, DTensor) else source)


# ---- Rollouts: N of T tokens, P of the prompt, padded on the left, then R of the response, padded on the right -------


def up_to_first_end(responses, end_ids):
    """True for each sampled token up to and including the first that ends the response. responses: (N, R)."""
    is_end = torch.isin(responses, torch.tensor(end_ids, device=responses.device))
    return is_end.cumsum(1) - is_end.long() == 0


@torch.no_grad()
def rollout(model, prompts, max_new_tokens, sample, batch_size):
    """
    One response to each of N prompts (lists of token ids), sampled from the model's own distribution, or greedy.

    Returns a dictionary of tensors: ids (N, T), attention_mask (N, T), response_mask (N, R).
    """
    pad_id, P = model.generation_config.pad_token_id, max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (P - len(p)) + p for p in prompts], device=model.device)  # (N, P)
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts], device=model.device)  # (N, P)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    parts = [
        model.generate(i, attention_mask=m, max_new_tokens=max_new_tokens, do_sample=sample, **settings)
        for i, m in zip(ids.split(batch_size), mask.split(batch_size))
    ]
    T = max(part.shape[1] for part in parts)
    ids = torch.cat([nn.functional.pad(part, (0, T - part.shape[1]), value=pad_id) for part in parts])  # (N, T)
    # From the ids, not from pads: where pad and end are one token, the end belongs to the response, the rest does not.
    response_mask = up_to_first_end(ids[:, P:], model.generation_config.eos_token_id)
    return {"ids": ids, "attention_mask": torch.cat([mask, response_mask.long()], 1), "response_mask": response_mask}


def read_responses(batch, tokenizer, end_ids):
    """What N responses say, their lengths in sampled tokens (the end token included), and which were cut off: lists."""
    lengths = batch["response_mask"].sum(1).tolist()
    responses = [ids[:n] for ids, n in zip(batch["ids"][:, -batch["response_mask"].shape[1] :].tolist(), lengths)]
    cut_off = [ids[-1] not in end_ids for ids in responses]
    return tokenizer.batch_decode(responses, skip_special_tokens=True), lengths, cut_off


def micro_batches(batch, rows, size):
    """The `rows` of `batch` in parts of `size`, alike lengths together, each cut to its longest prompt and response."""
    lengths = batch["response_mask"].sum(1)
    P = batch["ids"].shape[1] - batch["response_mask"].shape[1]
    parts = []
    for part in rows[lengths[rows].argsort(stable=True)].split(size):
        first, longest = int(batch["attention_mask"][part].argmax(1).min()), int(lengths[part].max())
        part_of = {name: batch[name][part, first : P + longest] for name in ("ids", "attention_mask")}
        parts.append({"rows": part, **part_of, "response_mask": batch["response_mask"][part, :longest]})
    return parts


def chosen_logprobs(logits, tokens):
    """Log-probabilities (M,) of `tokens` (M,) under `logits` (M, V), in float32."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1).float() - logits.float().logsumexp(-1)


def token_logprobs(model, batch):
    """Log-probabilities (N, R) of the sampled tokens, at temperature 1."""
    R = batch["response_mask"].shape[1]
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)  # (N, T), from the prompt's first token on
    # Without its cache, which would keep a bfloat16 copy of weights that sharding has already let go.
    with torch.autocast(batch["ids"].device.type, torch.bfloat16, batch["ids"].is_cuda, cache_enabled=False):
        logits = model(
            input_ids=batch["ids"], attention_mask=batch["attention_mask"], position_ids=positions, use_cache=False,
            logits_to_keep=R + 1,
        ).logits  # (N, R + 1, V): each position predicts the next token, the last one nothing that is known
    tokens = nn.functional.pad(batch["ids"][:, -R:], (0, 1))  # (N, R + 1)
    # A float32 copy of all logits may not fit: 256 MB of it at a time, made again on the way back.
    size = max(1, 2**26 // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(size), tokens.flatten().split(size))
    logprobs = [checkpoint(chosen_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(logprobs).view(-1, R + 1)[:, :-1]


# --- algorithm: advantage ---
def advantage(reward, lengths, args):
    """GRPO: how many (unbiased) standard deviations a response is above its group's mean. reward: (N,) -> (N,)."""
    groups = reward.view(-1, args.num_generations)  # (prompts, G)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten()


# --- end ---
# --- algorithm: kl ---
def kl_penalty(logprobs, reference_logprobs):
    """k3, an estimate of KL(policy || reference) for each token that is never negative (Schulman 2020). (N, R)."""
    difference = (reference_logprobs - logprobs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(-10, 10)


# --- end ---


def policy_loss(logprobs, old_logprobs, advantages, clip_low, clip_high, clip_dual):
    """
    PPO's clipped surrogate for each token (N, R), dual-clipped (arXiv:1912.09729), and a mask of where it is clipped.

    logprobs, old_logprobs: (N, R); advantages: (N,), one for all tokens of a response.
    """
    A = advantages[:, None]
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    unclipped, clipped = -A * ratio, -A * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    return torch.where(A < 0, torch.minimum(loss, -A * clip_dual), loss), clipped > unclipped


# ---- Gradient-based weighting, Alg. 2 --------------------------------------------------------------------------------


def middle_layers(model, probe_layers):
    """The decoder layers from the first to the second of `probe_layers`, two fractions of their number."""
    layers = decoder_layers(model)
    first = int(probe_layers[0] * len(layers))
    return layers[first : max(first + 1, int(probe_layers[1] * len(layers)))]


def linear_maps(layers):
    """The linear maps in `layers`. Refuses a model with many of its weights elsewhere, such as in fused experts."""
    linears = [m for m in layers.modules() if isinstance(m, (nn.Linear, Conv1D))]
    share = sum(m.weight.numel() for m in linears) / sum(p.numel() for p in layers.parameters())
    if share < 0.8:
        fail(f"--weighting gradient: it sees linear maps, but they hold only {share:.0%} of the probed weights")
    return linears


def gram_matrix(model, layers, micros, advantages, num_tokens):
    r"""
    Inner products (K, K) of the K objectives' policy gradients, over the weights of the linear maps in `layers`.

    The gradient of objective k is that of L_k = -sum_i A_ki l_i, with A_ki its advantage (`advantages`: (K, N)) and l_i
    the log-likelihood of response i over the step's `num_tokens`. Sequences do not mix inside the network, and a
    backward pass is linear in what it is given. So one backward pass with every advantage 1 serves all objectives: if
    it brings delta_i (T, out) to the output of a linear map whose input was x_i (T, in), the map's gradients are

        g_k = sum_i A_ki delta_i^T x_i    (the sign, the same for all, drops out of the products)

    They are kept while their layer is at work, and from one micro-batch to the next where there are several. Processes
    sum them up, each for its share of the weights. Leaves old_logprobs in each of `micros`, whose forward pass this is.
    """
    gram = torch.zeros(len(advantages), len(advantages), dtype=torch.float64, device=advantages.device)
    gradients = {}

    def watch(linear, inputs, output):
        def receive(delta):  # (B, T, out), of the micro-batch that the loop below is at
            delta = delta.reshape(A.shape[1], -1, delta.shape[-1])
            x = inputs[0].detach().to(delta.dtype).reshape(A.shape[1], -1, inputs[0].shape[-1])  # (B, T, in)
            per_response = delta.transpose(1, 2) @ x  # (B, out, in)
            g = scattered(A @ per_response.flatten(1).to(A.dtype))  # (K, out * in)
            gradients[linear] = gradients[linear] + g if linear in gradients else g
            if micro is micros[-1]:
                g = gradients.pop(linear)
                gram.add_(g @ g.T)

        output.register_hook(receive)

    hooks = [linear.register_forward_hook(watch) for linear in linear_maps(layers)]
    # Nothing below the lowest probed layer is back-propagated, and no parameter gets a gradient.
    hooks.append(layers[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].requires_grad_(), *inputs[1:])))
    model.requires_grad_(False)
    for micro in micros:
        A = advantages[:, micro["rows"]]  # (K, B)
        logprobs = token_logprobs(model, micro)
        ((logprobs * micro["response_mask"]).sum() / num_tokens).backward()
        micro["old_logprobs"] = logprobs.detach()
    model.requires_grad_(True)
    for hook in hooks:
        hook.remove()
    return summed(gram)


def influence(gram):
    """I_k = <g_k, sum_j g_j>, each gradient scaled to norm at most 1. gram: (K, K) -> (K,)."""
    scale = gram.diagonal().sqrt().clamp(min=1).reciprocal()
    return (gram * scale[:, None] * scale).sum(1)  # Eq. (3), arXiv:2509.11452


def updated_weights(weights, influence, learning_rate, mu):
    """The weights (K,) after a step of mirror ascent: w_k exp(lr I_k / mu), normalised. A weight of 0 stays 0."""
    return torch.softmax(weights.log() + learning_rate * influence / mu, 0)  # Eq. (3), arXiv:2509.11452


# ---- Evaluation, files -----------------------------------------------------------------------------------------------


def evaluate(model, tokenizer, problems, objectives, max_new_tokens, batch_size, prefix):
    """
    Greedy responses to all `problems`. Returns metrics, each name with `prefix` (the mean reward of each objective,
    mean_length, clipped_ratio), the point (K floats) they make, and a dictionary for each problem: asked, said, earned.

    Conciseness is 1 - length / limit here: what training rewards is being shorter than its running mean, which says
    nothing of two models.
    """
    rank, world = process()
    own = problems[len(problems) * rank // world : len(problems) * (rank + 1) // world]
    batch = rollout(model, [p["prompt_ids"] for p in own], max_new_tokens, sample=False, batch_size=batch_size)
    texts, lengths, cut_off = read_responses(batch, tokenizer, model.generation_config.eos_token_id)
    mean_length = float(np.mean(gathered(lengths)))
    scores = rewards.score(objectives, texts, [p["answer"] for p in own], lengths, mean_length)
    samples = []
    for p, text, length, cut, values in zip(own, texts, lengths, cut_off, scores):
        samples.append({"prompt": p["prompt"], "response": text, "answer": p["answer"], "length": length,
                        "cut_off": cut, **dict(zip(objectives, values))})
        if "conciseness" in objectives:
            samples[-1]["conciseness"] = 1 - length / max_new_tokens
    samples = gathered(samples)
    keys = {"mean_length": "length", "clipped_ratio": "cut_off", **{name: name for name in objectives}}
    metrics = {prefix + name: float(np.mean([s[key] for s in samples])) for name, key in keys.items()}
    return metrics, [metrics[prefix + name] for name in objectives], samples


def evaluate_test_split(evaluate_on, problems, evaluations, folder):
    """
    Evaluates on the test split and appends the point to `evaluations`. Writes what was said to completions.jsonl.

    Returns metrics, among them the hypervolume of all evaluations of the run so far.
    """
    metrics, point, samples = evaluate_on(problems, prefix="eval/")
    evaluations.append(point)
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    if process()[0] == 0:
        write_whole(folder / "completions.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
    return {**metrics, "eval/hypervolume": hypervolume(evaluations, [0.0] * len(point))}


def save_checkpoint(path, policy, optimizer, state):
    """Writes one plain dictionary: all that a run needs to go on as if it had never stopped."""
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in process 0, from all
    policy_state, optimizer_state = get_state_dict(policy, optimizer, options=whole)
    if process()[0] == 0:
        saved = {"policy": policy_state, "optimizer": optimizer_state, "state": state}
        write_whole(path, lambda temporary: torch.save(saved, temporary))


def load_checkpoint(path, policy, optimizer):
    """Restores policy and optimiser from `path`. Returns the run's state."""
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        set_state_dict(policy, optimizer, model_state_dict=saved["policy"], optim_state_dict=saved["optimizer"],
                       options=StateDictOptions(full_state_dict=True))
        return saved["state"]
    except Exception as error:  # whatever a file that is broken or of another program leads to
        fail(f"--resume: {path} is not a checkpoint of this run: {error!r}")


def main():
    args = parse_args()
    device, is_cuda = args.device, args.device.startswith("cuda")
    if "LOCAL_RANK" in os.environ:  # torchrun's
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
        args.output_dir = gathered([args.output_dir])[0]  # whose name, by default, has the time in it
    rank, world = process()
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # what all processes say is said once
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for library in ("datasets", "huggingface_hub"):  # what goes wrong is said once, by `fail`
        logging.getLogger(library).setLevel(logging.CRITICAL)
    torch.manual_seed(args.seed * world + rank)
    policy, tokenizer, generation_settings = load_model(args.model, device, sharded=world > 1)
    actor = policy  # what generates: the policy, or where that is sharded or needs half the precision, a copy
    if world > 1 or is_cuda:
        actor = load_model(args.model, device, torch.bfloat16 if is_cuda else torch.float32)[0]
    generator = torch.cuda.default_generators[actor.device.index] if is_cuda else torch.default_generator
    splits = ["train", "test"] + ["validation"] * (args.weighting == "hypervolume")
    try:
        problems = rewards.read_problems(
            args.dataset, splits, tokenizer, args.max_prompt_tokens, args.prompt_suffix, args.enable_thinking)
    except ValueError as error:
        fail(f"--dataset {args.dataset}: {error}")
    if world > min(map(len, problems.values())):
        fail(f"--dataset {args.dataset}: a split has fewer problems than there are processes")
    digest = zlib.crc32(json.dumps(problems).encode())
    longest = getattr(policy.config.get_text_config(), "max_position_embeddings", math.inf)
    if args.max_prompt_tokens + args.max_new_tokens > longest:
        fail(f"--max-prompt-tokens and --max-new-tokens: together more than the model's {longest} positions")
    layers = middle_layers(policy, args.probe_layers)
    if args.weighting == "gradient":
        linear_maps(layers)
    if args.gradient_checkpointing:
        for layer in decoder_layers(policy):  # not by the model's own means, which need training mode, so dropout
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    # --- algorithm: kl ---
    reference = load_model(args.model, device, sharded=world > 1)[0].requires_grad_(False)  # the initial policy
    # --- end ---
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    names, G, folder = args.objectives, args.num_generations, Path(args.output_dir)
    K, N = len(names), args.prompts_per_step * G
    n = N // world  # responses of this process, its share of every update:
    rows = torch.arange(N).view(args.updates_per_step, world, -1)[:, rank].flatten().tolist()
    own = slice(rank * n, (rank + 1) * n)  # where they are among all, gathered
    evaluate_on = partial(
        evaluate, actor, tokenizer, objectives=names, max_new_tokens=args.max_new_tokens,
        batch_size=args.rollout_batch_size)

    # All that a run carries from step to step, beside the policy and the optimiser.
    state = {
        "step": 0,
        "weights": args.weights,
        "r_pareto": 1.0,  # scales the next step's signal
        "hv_reference": [0.0] * K,  # the worst corner: no reward, every response at the limit
        "pareto_buffer": [],  # points on the validation split
        "evaluations": [],  # points on the test split
        "total_length": 0,  # of all training rollouts so far
        "total_responses": 0,
        "rng": [],  # of each process, at the last checkpoint
        "problems": digest,  # of those that the run began with
    }
    if args.resume:
        state = load_checkpoint(folder / "checkpoint.pt", policy, optimizer)
        if args.steps < state["step"]:
            fail(f"--steps: the run has already made {state['step']}")
        if state["problems"] != digest:
            fail(f"--dataset: {args.dataset} does not have the problems that the run began with")
        generator.set_state(state["rng"][rank])
        copy_weights(policy, actor)
    settings = {"script": Path(__file__).name, **dataclasses.asdict(args), "processes": world, **versions()}
    try:
        log = start_log(folder, args.report_to, settings, state["step"]) if rank == 0 else lambda metrics: None
    except (OSError, ValueError) as error:
        fail(f"--output-dir: cannot start a log in {folder}: {error}")
    if state["step"] == 0:
        metrics = {"step": 0}
        if args.weighting == "hypervolume":
            values, initial, _ = evaluate_on(problems["validation"], prefix="val/")
            metrics |= values
            state["pareto_buffer"] = [initial]
            state["hv_reference"] = initial if args.hv_reference == "initial" else state["hv_reference"]
        log(metrics | evaluate_test_split(evaluate_on, problems["test"], state["evaluations"], folder))
    buffer = ParetoBuffer(state["hv_reference"])
    buffer.points = state["pareto_buffer"]

    bar = tqdm(range(state["step"] + 1, args.steps + 1), initial=state["step"], total=args.steps, desc=args.weighting,
               disable=rank > 0)
    for step in bar:
        times = [time.perf_counter()]
        power = {"constant": 0, "polynomial": 1.03}[args.lr_schedule]
        learning_rate = args.learning_rate * (1 - (step - 1) / args.steps) ** power
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        # 1. Rollouts: G responses to each problem
        chosen = list(problems_of_step(problems["train"], step, N // G, args.seed))
        chosen = [chosen[row // G] for row in rows]
        batch = rollout(
            actor, [p["prompt_ids"] for p in chosen], args.max_new_tokens, sample=True,
            batch_size=args.rollout_batch_size)
        texts, lengths, cut_off = read_responses(batch, tokenizer, actor.generation_config.eos_token_id)
        times.append(time.perf_counter())

        # 2. Rewards of each objective, from all processes
        lengths, cut_off = gathered(lengths), gathered(cut_off)
        state["total_length"] += sum(lengths)
        state["total_responses"] += N
        mean_length = state["total_length"] / state["total_responses"]
        r_vec = gathered(rewards.score(names, texts, [p["answer"] for p in chosen], lengths[own], mean_length))
        # float64: a rounding error between equal rewards of a group, over their spread of 0, would be an advantage.
        r_vec = torch.tensor(r_vec, dtype=torch.float64, device=device).T  # (K, N)
        lengths = torch.tensor(lengths, device=device)  # (N,)

        # 3. Log-probabilities under the policy that sampled and, on the way, what the objectives' gradients share
        rows_of_updates = torch.arange(n, device=device).chunk(args.updates_per_step)
        updates = [micro_batches(batch, part, args.micro_batch_size) for part in rows_of_updates]
        micros = sum(updates, [])
        influences = {}
        if args.weighting == "gradient":
            A = torch.stack([advantage(r, lengths, args) for r in r_vec]).float()  # (K, N)
            I = influence(gram_matrix(policy, layers, micros, A[:, own], lengths.sum()))  # (K,)
            w = updated_weights(I.new_tensor(state["weights"]), I, learning_rate, args.mu)
            state["weights"] = w.tolist() if w.isfinite().all() else state["weights"]
            influences = {f"influence/{name}": value for name, value in zip(names, I.tolist())}
        elif len(updates) > 1:  # a single update starts from the policy that sampled
            for micro in micros:
                with torch.no_grad():
                    micro["old_logprobs"] = token_logprobs(policy, micro)
        times.append(time.perf_counter())

        # 4. From K rewards to one advantage
        r = r_vec.new_tensor(state["weights"]) @ r_vec  # (N,)
        # Scaling the reward, as the paper's code does, is undone where an advantage is divided by its spread.
        if args.meta_reward_on == "reward":
            A = advantage(state["r_pareto"] * r, lengths, args)
        else:
            A = state["r_pareto"] * advantage(r, lengths, args)
        A = A[own].float()

        # 5. Updates. A mean is over all tokens of an update, however many micro-batches they come in
        parts = []
        for update in updates:
            num_tokens = summed(sum(micro["response_mask"].sum() for micro in update))
            for micro in update:
                logprobs = token_logprobs(policy, micro)  # (B, R)
                old_logprobs = micro.get("old_logprobs", logprobs.detach())
                loss, is_clipped = policy_loss(
                    logprobs, old_logprobs, A[micro["rows"]], args.clip_low, args.clip_high, args.clip_dual)
                terms = {"clip_fraction": is_clipped}
                # --- algorithm: kl ---
                with torch.no_grad():
                    reference_logprobs = token_logprobs(reference, micro)
                terms["kl"] = kl_penalty(logprobs, reference_logprobs)
                loss = loss + args.kl_coefficient * terms["kl"]
                # --- end ---
                terms["loss"] = loss
                means = {name: (x * micro["response_mask"]).sum() / num_tokens for name, x in terms.items()}
                (world * means["loss"]).backward()  # gradients are averaged over the processes, and are to be summed
                parts.append({name: mean.item() for name, mean in means.items()})
            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
            if grad_norm.isfinite():
                optimizer.step()
            else:
                bar.write(f"step {step}: the gradient is not finite, its update is skipped")
            optimizer.zero_grad()
        copy_weights(policy, actor)
        parts = gathered(parts)
        times.append(time.perf_counter())

        # 6. Numbers of this step
        metrics = {
            "step": step, "reward": r.mean().item(), "grad_norm": grad_norm.item(), "meta_reward": state["r_pareto"],
            "learning_rate": learning_rate, "completions/mean_length": sum(lengths.tolist()) / N,
            "completions/clipped_ratio": sum(cut_off) / N, **influences,
            **{name: sum(part[name] for part in parts) / len(updates) for name in terms},
        }
        for k, name in enumerate(names):
            groups = r_vec[k].view(-1, G)
            metrics[f"rewards/{name}/mean"] = groups.mean().item()
            metrics[f"rewards/{name}/frac_zero_std"] = (groups == groups[:, :1]).all(1).float().mean().item()
            metrics[f"weights/{name}"] = state["weights"][k]

        # 7. What the step gained on the validation split scales the next one, Alg. 1
        if args.weighting == "hypervolume":
            values, point, _ = evaluate_on(problems["validation"], prefix="val/")
            metrics |= {**values, "delta_hv": buffer.contribution(point)}
            buffer.add(point)
            state["pareto_buffer"] = buffer.points
            state["r_pareto"] = meta_reward(metrics["delta_hv"])  # Eq. (1), arXiv:2509.11452
        times.append(time.perf_counter())

        state["step"] = step
        phases = ["time/rollout", "time/probe", "time/update", "time/validate"]
        metrics |= zip(phases, np.diff(times).tolist())
        metrics["tokens_per_second"] = sum(lengths.tolist()) / (times[-1] - times[0])
        if step % args.eval_every == 0 or step == args.steps:
            metrics |= evaluate_test_split(evaluate_on, problems["test"], state["evaluations"], folder)
        log(metrics)
        shown = [f"{k} {metrics[f'rewards/{k}/mean']:.2f} (w {metrics[f'weights/{k}']:.2f})" for k in names]
        bar.set_postfix_str(", ".join(shown))
        if args.checkpoint_every and step % args.checkpoint_every == 0:
            state["rng"] = gathered([generator.get_state()])
            save_checkpoint(folder / "checkpoint.pt", policy, optimizer, state)

    if rank == 0:
        actor.generation_config = generation_settings
        write_whole(folder / "model", lambda path: (actor.save_pretrained(path), tokenizer.save_pretrained(path)))
        plot_curves(folder)
        plot_fronts([read_run(folder)], folder / "fronts.png")
        print(before_and_after(folder))
        print(f"Metrics, completions, pictures and the model are in {folder}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: --resume goes on from the last checkpoint, if --checkpoint-every N has made one")
