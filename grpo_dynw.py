# --- algorithm: docstring ---
"""
GRPO on several objectives, with fixed or dynamic weights of their rewards: the method of "Learning to Optimize
Multi-Objective Alignment Through Dynamic Reward Weighting" (arXiv:2509.11452).

    --weighting fixed        r = w . r_vec with constant weights w, the baseline
    --weighting hypervolume  w constant; what a step gains in validated hypervolume scales the next step (Alg. 1)
    --weighting gradient     w follows what each objective's policy gradient has in common with the others' (Alg. 2)
    --weighting ascent       w_k in proportion to 1 / p_k, so that what lags counts more; ours, not the paper's

    python grpo_dynw.py --weighting gradient

GRPO itself is between `# --- algorithm: ... ---` and `# --- end ---`. All the rest is the same in the three scripts.
"""
# --- end ---

import argparse
import importlib
import inspect
import json
import logging
import math
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter, strftime

import datasets
import numpy as np
import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Shard
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

import rewards
from hypervolume import contribution, hypervolume

TINY = Path(__file__).parent / "tiny"  # the embedded model and data
ALGORITHM = Path(__file__).stem.removesuffix("_dynw")
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun's
SHARDED = "LOCAL_RANK" in os.environ  # as under torchrun, be it with one process
PARSER = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False)
fail = PARSER.error  # the answer to bad input: one line, exit code 2
FREE = {"resume", "steps", "eval_every", "checkpoint_every", "report_to", "model", "dataset", "micro_batch_size"}


def parse_args():
    def flag(name, default, help, **options):
        if default is not None:
            options = {"type": type(default), **options}
            help += f" (default: {default})".replace("%", "%%")
        PARSER.add_argument(f"--{name}", default=default, help=help, **options)

    flag("weighting", "fixed", "how objectives are weighed", choices=["fixed", "hypervolume", "gradient", "ascent"])
    flag("objectives", ["accuracy", "conciseness", "clarity"], "K names in rewards.py", nargs="+", type=str)
    flag("weights", None, "K initial weights (default: all equal)", nargs="+", type=float)
    flag("mu", None, "smaller moves weights faster (default: 10 learning rates)", type=float)
    flag("min-weight", 0.0, "gradient weighting lets no weight fall below this")
    flag("influence-scale", "unit", "length of each gradient: 1, or at most 1", choices=["unit", "clip"])
    flag("probe-layers", [0.25, 0.75], "part of the depth that Eq. (3) sees", nargs=2, type=float)
    flag("meta-reward-on", "advantage", "what r_pareto scales", choices=["advantage", "reward"])
    flag("hv-scale", 100.0, "factor on the gain in hypervolume")
    flag("hv-reference", "worst", "corner of the hypervolume", choices=["worst", "initial"])
    flag("normalize", "sum", "the weighted sum of rewards, or each of them", choices=["sum", "each"])
    flag("model", str(TINY / "model"), "a folder, or a name on the Hub")
    flag("dataset", str(TINY / "data"), "or a file, or math-500, math-algebra")
    flag("prompt-suffix", None, "put after each problem (default: none, or the paper's)")
    PARSER.add_argument("--enable-thinking", action="store_true", help="told to the chat template")
    flag("max-prompt-tokens", 64, "longer problems are left out")
    flag("max-new-tokens", 96, "responses are cut off here")
    flag("device", "cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1 ...")
    flag("seed", 1, "of sampling and of the order of problems")
    flag("steps", 60, "of training")
    flag("prompts-per-step", 16, "problems a step")
    flag("num-generations", 8, "responses to each problem")
    flag("updates-per-step", 1, "each on its share of the problems")
    flag("micro-batch-size", 32, "responses back-propagated at once; changes no result")
    flag("rollout-batch-size", 128, "responses generated at once, all to a problem together")
    PARSER.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    flag("learning-rate", 2e-5, "of AdamW")
    flag("lr-schedule", "constant", "polynomial: to 0", choices=["constant", "polynomial"])
    flag("weight-decay", 0.01, "of AdamW")
    flag("max-grad-norm", 1.0, "longer gradients are scaled down")
    # --- algorithm: args ---
    flag("kl-coefficient", 0.001, "of the KL divergence from the initial model")
    # --- end ---
    flag("clip-low", 0.2, "the ratio is clipped below 1 - this")
    flag("clip-high", 0.2, "the ratio is clipped above 1 + this")
    flag("clip-dual", 3.0, "bound of the ratio where A < 0")
    flag("eval-every", 5, "steps between evaluations")
    flag("checkpoint-every", 0, "steps between checkpoints, 0 for none")
    flag("output-dir", None, "the run's folder (default: runs/...)")
    flag("resume", None, "folder of a run with a checkpoint")
    flag("report-to", "none", "where else metrics go", choices=["none", "tensorboard", "wandb"])
    return PARSER.parse_args()


def settle(args):
    """Completes and checks the arguments. Returns the checkpoint to go on from, or None."""
    saved = None
    if args.resume is not None:
        saved = torch.load(Path(args.resume, "checkpoint.pt"), map_location="cpu", mmap=True, weights_only=True)
        given = {word[2:].split("=")[0].replace("-", "_") for word in sys.argv if word.startswith("--")}
        vars(args).update({name: value for name, value in saved["args"].items() if name not in given})
        if (saved["algorithm"], saved["processes"]) != (ALGORITHM, WORLD):
            fail(f"--resume: a run of {saved['algorithm']} in {saved['processes']} processes")
        if given - FREE or ("steps" in given and args.lr_schedule != "constant"):
            fail(f"--resume: all but {', '.join(sorted(FREE))} stays as it was")
        if args.steps < saved["step"]:
            fail(f"--steps: the run has already made {saved['step']}")
    K, known = len(args.objectives), rewards.OBJECTIVES.keys()
    if K < 2 or len(set(args.objectives)) < K or not known >= set(args.objectives):
        fail(f"--objectives: give two or more of {', '.join(known)}")
    default = strftime(f"runs/{ALGORITHM}-{args.weighting}-%Y%m%d-%H%M%S-{os.getpid()}")
    args.output_dir = args.resume or args.output_dir or default
    if os.path.exists(args.output_dir) and not saved:
        fail(f"--output-dir: {args.output_dir} exists")
    args.weights = args.weights or [1 / K] * K
    if not (len(args.weights) == K and min(args.weights) >= 0 and abs(sum(args.weights) - 1) < 1e-6):
        fail(f"--weights: give {K} numbers of 0 or more that sum to 1")
    if args.weighting == "gradient" and args.influence_scale == "unit" and np.count_nonzero(args.weights) < 3:
        fail("--influence-scale unit: of two objectives both influences are 1 + cos; give clip and a smaller --mu")
    if not 0 <= args.probe_layers[0] < args.probe_layers[1] <= 1:
        fail("--probe-layers: two shares, in order")
    least = {"num_generations": 2, "clip_dual": 1.001, "mu": 1e-99, "eval_every": 1, "updates_per_step": 1}
    least |= dict.fromkeys(["max_new_tokens", "prompts_per_step", "micro_batch_size", "rollout_batch_size"], 1)
    most = {"min_weight": 1 / K}
    for name, value in vars(args).items():
        if type(value) in (int, float) and not least.get(name, 0) <= value <= most.get(name, 2**32):
            fail(f"--{name.replace('_', '-')}: {value} is out of range")
    args.mu = (10 * args.learning_rate or 1.0) if args.mu is None else args.mu
    if args.prompts_per_step % (args.updates_per_step * WORLD):
        fail("--prompts-per-step: must be a multiple of --updates-per-step times the processes")
    return saved


def load_model(name, device, dtype=torch.float32, sharded=SHARDED):
    """
    A causal language model, its tokenizer, and the sampling settings it came with. These are set aside, and dropout is
    off, so that what samples is what is scored. Its generation_config.eos_token_id is a list of all ids that end.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if sharded:  # FSDP2
        mesh = DeviceMesh.from_group(dist.group.WORLD, device.split(":")[0])
        for module in [*decoder_layers(model), model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    model = model.to(device).eval()
    settings, own = model.generation_config, model.generation_config.eos_token_id
    end_ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, rewards.turn_end(tokenizer)}
    end_ids, rows = sorted(end_ids - {None}), model.get_input_embeddings().num_embeddings
    if loaded["missing_keys"] or not end_ids:
        fail(f"--model lacks {', '.join(sorted(loaded['missing_keys'])) or 'a token that ends a response'}")
    pad_id = tokenizer.pad_token_id  # any id will do, since pads are masked, but for one that the embedding lacks
    pad_id = end_ids[0] if pad_id is None or pad_id >= rows else pad_id
    model.generation_config = transformers.GenerationConfig(eos_token_id=end_ids, pad_token_id=pad_id)
    return model, tokenizer, settings


def decoder_layers(model):
    """The list of the model's decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def clock():
    """Seconds, once the GPU has done what it was told: it is told ahead of time."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def problems_of_step(problems, step, size, seed):
    """The `size` problems of `step` (from 1). Every epoch goes through all of them, in an order of its own."""
    n, places, orders = len(problems), range((step - 1) * size, step * size), {}
    for epoch in {place // n for place in places}:
        orders[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return [problems[orders[place // n][place % n]] for place in places]


# Several processes: each has a share of the problems and of every parameter.
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


# Rollouts: N of T tokens, P of the prompt, padded on the left, and R of the response, padded on the right.
@torch.no_grad()
def respond(model, ids, attention, limit, sample):
    """
    Responses (B, R) of at most `limit` tokens to prompts (B, P), sampled from the model's own distribution or greedy.

    In up to six segments, after each of which rows that have ended leave the batch and its cache, since lengths differ.
    """
    going, P, size = torch.arange(len(ids), device=ids.device), ids.shape[1], max(16, math.ceil(limit / 6))
    ends = torch.tensor(model.generation_config.eos_token_id, device=ids.device)
    found = ids.new_full((len(ids), limit), model.generation_config.pad_token_id)
    cache = transformers.DynamicCache(config=model.config)
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    key = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # older transformers
    options |= {"do_sample": sample, key: cache}
    for start in range(0, limit, size):
        ids = model.generate(ids, attention_mask=attention, max_new_tokens=min(size, limit - start), **options)
        new = ids[:, P + start :]
        found[going, start : start + new.shape[1]] = new
        left = ~torch.isin(new, ends).any(1)
        if not left.any() or start + size >= limit:
            break
        going, ids, attention = going[left], ids[left], nn.functional.pad(attention, (0, size), value=1)[left]
        cache.batch_select_indices(left)
    return found


def rollout(model, tokenizer, prompts, G, limit, batch_size, sample=True):
    """
    G responses to each prompt (a list of token ids): texts (N), and tensors ids and attention (N, T), mask of the
    responses (N, R), lengths and cut_off (N,).
    """
    settings, size = model.generation_config, max(1, batch_size // G) * G
    prompts = [torch.tensor(p, device=model.device) for p in prompts for _ in range(G)]
    ids = pad_sequence(prompts, True, settings.pad_token_id, "left")  # (N, P)
    attention = pad_sequence([torch.ones_like(p) for p in prompts], True, 0, "left")
    parts = zip(ids.split(size), attention.split(size))
    new = torch.cat([respond(model, *part, limit, sample) for part in parts])
    # From the ids: a mask from pads would drop the end where both are one token.
    is_end = torch.isin(new, torch.tensor(settings.eos_token_id, device=new.device))
    mask = is_end.cumsum(1) - is_end.long() == 0  # up to and including the first end
    texts = tokenizer.batch_decode([row[m] for row, m in zip(new, mask)], skip_special_tokens=True)
    lengths, cut_off = mask.sum(1), ~is_end.any(1)
    new, mask = new[:, : lengths.max()], mask[:, : lengths.max()]
    ids, attention = torch.cat([ids, new], 1), torch.cat([attention, mask.long()], 1)
    return {"texts": texts, "ids": ids, "attention": attention, "mask": mask, "lengths": lengths, "cut_off": cut_off}


def micro_batch(batch, rows):
    """The `rows` of a batch, without the padding that all of them share."""
    first, R = batch["attention"][rows].argmax(1).min(), batch["lengths"][rows].max()
    part = slice(first, batch["ids"].shape[1] - batch["mask"].shape[1] + R)
    ids, attention = batch["ids"][rows, part], batch["attention"][rows, part]
    return {"ids": ids, "attention": attention, "mask": batch["mask"][rows, :R]}


def chosen_logprobs(logits, tokens):
    """Log-probabilities (M,) of tokens (M,) under logits (M, V), in float32."""
    return logits.gather(-1, tokens[:, None]).squeeze(-1).float() - logits.float().logsumexp(-1)


def token_logprobs(model, batch):
    """Log-probabilities (N, R) of the sampled tokens, at temperature 1."""
    ids, attention, R = batch["ids"], batch["attention"], batch["mask"].shape[1]
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # (N, T)
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "use_cache": False}
    # Its cache would keep a bfloat16 copy of weights that sharding has let go.
    with torch.autocast(ids.device.type, torch.bfloat16, ids.is_cuda, cache_enabled=False):
        logits = model(**inputs, logits_to_keep=R + 1).logits  # (N, R + 1, V), of the next tokens
    tokens = nn.functional.pad(ids[:, -R:], (0, 1))  # (N, R + 1)
    # In float32, all logits may not fit: 256 MB at a time, made again on the way back.
    size = max(1, 2**26 // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(size), tokens.flatten().split(size))
    logprobs = [checkpoint(chosen_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(logprobs).view(-1, R + 1)[:, :-1]


# --- algorithm: advantage ---
def advantage(reward, lengths, args):
    """GRPO: how many (unbiased) standard deviations a response is above its group's mean. (..., N) -> (..., N)."""
    groups = reward.unflatten(-1, (-1, args.num_generations))  # (..., prompts, G)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred / (groups.std(-1, keepdim=True) + 1e-6)).flatten(-2)


def kl_penalty(logprobs, reference_logprobs):
    """k3, an estimate (N, R) of KL(policy || reference) that is never negative."""
    difference = (reference_logprobs - logprobs).clamp(-20, 20)
    return (difference.exp() - difference - 1).clamp(max=10)


# --- end ---
def policy_loss(logprobs, old, A, clip_low, clip_high, clip_dual):
    """PPO's clipped surrogate (N, R), dual-clipped (arXiv:1912.09729), and where it is clipped. A: (N,)."""
    A = A[:, None]
    ratio = (logprobs - old).clamp(-20, 20).exp()
    unclipped, clipped = -A * ratio, -A * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    return torch.where(A < 0, torch.minimum(loss, -A * clip_dual), loss), clipped > unclipped


def probed_maps(model, start, end):
    """The decoder layers between two shares of the depth, and their linear maps, which are what Eq. (3) sees."""
    layers = decoder_layers(model)
    first = int(start * len(layers))
    layers = layers[first : max(first + 1, int(end * len(layers)))]
    linears = [m for m in layers.modules() if isinstance(m, (nn.Linear, transformers.pytorch_utils.Conv1D))]
    share = sum(m.weight.numel() for m in linears) / sum(p.numel() for p in layers.parameters())
    if share < 0.8:  # as with fused experts
        fail(f"--weighting gradient: linear maps are only {share:.0%} of the probed weights")
    return layers, linears


def gram_matrix(model, probed, batch, micros, A_k, num_tokens):
    """
    Inner products (K, K) of the K objectives' policy gradients over the `probed` maps, and the log-probabilities (N, R)
    found on the way. A_k: (K, N). micros: the rows of each micro-batch.

    Sequences do not mix in the network, and a backward pass is linear in what it is given. So one, from the sum of the
    log-likelihoods, serves all objectives: if it brings delta_i (T, out) to the output of a linear map with the input
    x_i (T, in), the map's gradients are, but for the sign, g_k = sum_i A_ki delta_i^T x_i.
    """
    (layers, linears), gradients = probed, {}
    mesh = DeviceMesh.from_group(dist.group.WORLD, A_k.device.type) if SHARDED else None
    old = A_k.new_zeros(batch["mask"].shape)

    def watch(A, linear, inputs, output):  # A: (K, B)
        def receive(delta):
            delta = delta.reshape(A.shape[1], -1, delta.shape[-1])  # (B, T, out)
            x = inputs[0].detach().to(delta.dtype).reshape(A.shape[1], -1, inputs[0].shape[-1])  # (B, T, in)
            g = A @ (delta.transpose(1, 2) @ x).flatten(1).to(A.dtype)  # (K, out * in)
            if SHARDED:  # each process keeps its columns of the sum
                g = DTensor.from_local(g, mesh, [Partial()]).redistribute(mesh, [Shard(1)]).to_local()
            gradients[linear] = gradients.get(linear, 0) + g

        output.register_hook(receive)

    # Nothing below the lowest probed layer is back-propagated.
    entry = layers[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].requires_grad_(), *inputs[1:]))
    model.requires_grad_(False)
    for rows in micros:
        hooks = [linear.register_forward_hook(partial(watch, A_k[:, rows])) for linear in linears]
        micro = micro_batch(batch, rows)
        logprobs = token_logprobs(model, micro)  # (B, R)
        ((logprobs * micro["mask"]).sum() / num_tokens).backward()
        old[rows, : logprobs.shape[1]] = logprobs.detach()
        for hook in hooks:
            hook.remove()
    entry.remove()
    model.requires_grad_(True)
    return summed(sum((g @ g.T).double() for g in gradients.values())), old


def evaluate(model, tokenizer, names, limit, batch_size, problems, prefix, step):
    """
    Greedy responses to `problems`: metrics, the point p (K floats) of their mean performance, and a dictionary each.
    That is the reward, but for conciseness 1 - length / limit: a running mean does not compare models.
    """
    own = problems[len(problems) * RANK // WORLD : len(problems) * (RANK + 1) // WORLD]
    batch = rollout(model, tokenizer, [p["prompt_ids"] for p in own], 1, limit, batch_size, sample=False)
    lengths, mean_length = batch["lengths"].tolist(), summed(batch["lengths"].sum()).item() / len(problems)
    scores = rewards.score(names, batch["texts"], own, lengths, mean_length, step)
    samples = []
    for p, text, length, cut_off, score in zip(own, batch["texts"], lengths, batch["cut_off"].tolist(), scores):
        said = {"prompt": p["prompt"], "response": text, "answer": p["answer"], "length": length, "cut_off": cut_off}
        samples.append({**said, "performance": dict(zip(names, score))})
        if "conciseness" in names:
            samples[-1]["performance"]["conciseness"] = 1 - length / limit
    samples = gathered(samples)
    point = [float(np.mean([s["performance"][name] for s in samples])) for name in names]
    metrics = {f"{prefix}/performance/{name}": value for name, value in zip(names, point)}
    metrics[f"{prefix}/completions/mean_length"] = float(np.mean([s["length"] for s in samples]))
    metrics[f"{prefix}/completions/clipped_ratio"] = float(np.mean([s["cut_off"] for s in samples]))
    return metrics, point, samples


def main():
    args = parse_args()
    device, is_cuda = args.device, args.device.startswith("cuda")
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable()  # what goes wrong is said below
    what = args.resume
    try:
        saved, what = settle(args), args.device
        if SHARDED:
            device = f"cuda:{os.environ['LOCAL_RANK']}" if is_cuda else device
            dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
            sys.stdout = sys.stdout if RANK == 0 else open(os.devnull, "w")  # noqa: SIM115
        torch.empty(0, device=device).tolist()  # it must be there, and hold values, as "meta" does not
        if is_cuda:
            torch.cuda.set_device(torch.device(device).index or 0)
            # cuDNN's attention plans anew for each shape, and can give NaN gradients (pytorch/pytorch#196678).
            torch.backends.cuda.enable_cudnn_sdp(False)
        torch.manual_seed(args.seed * WORLD + RANK)
        what = args.model
        policy, tokenizer, own_settings = load_model(args.model, device)
        actor = policy  # what generates: a copy, where the policy is sharded or has twice the precision
        if SHARDED or is_cuda:
            actor = load_model(args.model, device, torch.bfloat16 if is_cuda else torch.float32, sharded=False)[0]
        # --- algorithm: kl ---
        reference = load_model(args.model, device)[0].requires_grad_(False)
        # --- end ---
        longest = getattr(policy.config.get_text_config(), "max_position_embeddings", math.inf)
        if args.max_prompt_tokens + args.max_new_tokens > longest:
            fail(f"--model: has {longest} positions, less than --max-prompt-tokens + --max-new-tokens")
        probed = probed_maps(policy, *args.probe_layers) if args.weighting == "gradient" else None
        what, splits = args.dataset, ["train", "test"]
        splits += ["validation"] if args.weighting == "hypervolume" else []
        limits = args.max_prompt_tokens, args.prompt_suffix, args.enable_thinking
        problems = rewards.read_problems(args.dataset, splits, tokenizer, *limits)
        if min(map(len, problems.values())) < WORLD:
            fail("--dataset: a split has fewer problems than there are processes")
        rows = policy.get_input_embeddings().num_embeddings
        if max(id for split in problems.values() for p in split for id in p["prompt_ids"]) >= rows:
            fail(f"--model: its tokenizer makes tokens beyond the {rows} that it has")
        if not torch.stack([p.isfinite().all() for p in actor.parameters()]).all():
            fail("--model: some of its weights are not finite")
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": is_cuda}  # fused: less memory
        optimizer = torch.optim.AdamW(policy.parameters(), **options)
        # What a run carries on. buffer, tested: points on the two splits
        start, metrics, buffer, tested, total_length = 0, {}, [], [], 0
        w, r_pareto, random = torch.tensor(args.weights, dtype=torch.float64), 1.0, torch.cuda if is_cuda else torch
        if saved:
            what = args.resume
            states = {"model_state_dict": saved["policy"], "optim_state_dict": saved["optimizer"]}
            set_state_dict(policy, optimizer, **states, options=whole)
            carried = ("step", "metrics", "buffer", "tested", "total_length", "w", "r_pareto")
            start, metrics, buffer, tested, total_length, w, r_pareto = (saved[name] for name in carried)
            random.set_rng_state(saved["rng"][RANK])
        w, worst = w.to(device), [0.0] * len(args.objectives)  # no reward, full length
        what = args.report_to
        if what != "none":
            reporter = importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(what, what))
        what = folder = Path(args.output_dir)
        if RANK == 0:
            folder.mkdir(parents=True, exist_ok=bool(saved))
            config = {"algorithm": ALGORITHM, "torch": torch.__version__, **vars(args)}
            (folder / "args.json").write_text(json.dumps(config, indent=2) + "\n")
            with open(folder / "metrics.jsonl", "a+b") as file:  # less what came after the checkpoint
                file.seek(0)
                file.truncate(sum(len(file.readline()) for _ in range(start)))
            if args.report_to == "tensorboard":
                reporter = reporter.SummaryWriter(folder, purge_step=start)
            elif args.report_to == "wandb":
                reporter = reporter.init(project="dynw", config=config, dir=folder)
    except Exception as error:
        fail(f"{what}: {' '.join((str(error.__cause__ or error) or repr(error)).split())}")
    logging.disable(logging.NOTSET)
    if args.gradient_checkpointing:
        for layer in decoder_layers(policy):  # the model's own way needs training mode, so dropout
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    names, G, U = args.objectives, args.num_generations, args.updates_per_step
    evaluate_on = partial(evaluate, actor, tokenizer, names, args.max_new_tokens, args.rollout_batch_size)
    bar = tqdm(initial=start, total=args.steps, desc=args.weighting, disable=RANK > 0)
    for step in range(start, args.steps + 1):  # 1 to 3 end this step, 4 to 10 make the next
        # 1. The checkpoint, from which a run is resumed here, and the weights of what generates
        if args.checkpoint_every and step % args.checkpoint_every == 0 and step > 0:
            weights, moments = get_state_dict(policy, optimizer, options=whole)
            state = {"algorithm": ALGORITHM, "processes": WORLD, "args": vars(args), "policy": weights}
            state |= {"optimizer": moments, "rng": gathered([random.get_rng_state()]), "r_pareto": r_pareto}
            state |= dict(step=step, metrics=metrics, buffer=buffer, tested=tested, total_length=total_length, w=w)
            if RANK == 0:  # all or nothing
                try:
                    torch.save(state, folder / "checkpoint.tmp")
                except RuntimeError as error:  # what torch makes of a full disk
                    raise OSError(f"{folder / 'checkpoint.tmp'} cannot be written (a full disk?)") from error
                os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")
        if actor is not policy:
            for source, target in zip(policy.parameters(), actor.parameters(), strict=True):
                target.data.copy_(source.data.full_tensor() if SHARDED else source.data)
        # 2. Hypervolume-guided weighting, Alg. 1: what a step gained on the validation split scales the next
        started = clock()
        if args.weighting == "hypervolume":
            values, point, _ = evaluate_on(problems["validation"], "val", step)
            metrics |= values
            if step > 0:
                corner = buffer[0] if args.hv_reference == "initial" else worst
                delta_hv = contribution(point, buffer, corner)
                r_pareto = 0.5 + 1.5 * math.tanh(args.hv_scale * delta_hv)  # Eq. (1), arXiv:2509.11452
                metrics["delta_hv"] = delta_hv
            buffer = [*buffer, point]
        metrics["time/validate"] = clock() - started
        # 3. Test and log
        if step % args.eval_every == 0 or step == args.steps:
            values, point, samples = evaluate_on(problems["test"], "eval", step)
            tested = [*tested, point]
            metrics |= {**values, "eval/hypervolume": hypervolume(tested, worst)}
            if RANK == 0:
                lines = [json.dumps(sample) + "\n" for sample in samples]
                (folder / "completions.jsonl").write_text("".join(lines))
        if RANK == 0:
            with open(folder / "metrics.jsonl", "a") as file:  # JSON has no NaN
                line = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                file.write(json.dumps({"step": step, **line}) + "\n")
            if args.report_to == "tensorboard":
                for name, value in metrics.items():
                    reporter.add_scalar(name, value, step)
                reporter.flush()
            elif args.report_to == "wandb":
                reporter.log(metrics, step=step)
        if step == args.steps:
            break
        # 4. Rollouts of the next step: G responses to each problem
        times = [clock()]
        asked = problems_of_step(problems["train"], step + 1, args.prompts_per_step, args.seed)[RANK::WORLD]
        prompts = [p["prompt_ids"] for p in asked]
        batch = rollout(actor, tokenizer, prompts, G, args.max_new_tokens, args.rollout_batch_size)
        times.append(clock())
        # 5. Rewards, in float64: over a spread of 0, rounding errors would be advantages
        lengths = batch["lengths"]  # (N,)
        num_tokens = summed(lengths.sum())
        total_length += num_tokens.item()
        mean_length = total_length / ((step + 1) * args.prompts_per_step * G)
        asked = [p for p in asked for _ in range(G)]
        r_vec = rewards.score(names, batch["texts"], asked, lengths.tolist(), mean_length, step + 1)
        r_vec = torch.tensor(r_vec, dtype=torch.float64, device=device).T  # (K, N)
        if args.weighting in ("hypervolume", "ascent") and (r_vec.min() < 0 or r_vec.max() > 1):  # said once
            warnings.warn("rewards outside [0, 1], for which the worst corner, 0, is not meant", stacklevel=1)
        # 6. The rows of each update and micro-batch: responses of like length
        updates = torch.arange(len(lengths), device=device).chunk(U)
        updates = [rows[lengths[rows].argsort(stable=True)].split(args.micro_batch_size) for rows in updates]
        micros = sum(updates, ())
        # 7. Weights, and log-probabilities under the policy that sampled
        if args.weighting == "ascent":  # ours: w ~ the gradient of sum_k w0_k log p_k, p the mean performance
            p = summed(r_vec.sum(1)) / (args.prompts_per_step * G)  # (K,)
            if "conciseness" in names:  # as in evaluate()
                p[names.index("conciseness")] = 1 - num_tokens / (args.prompts_per_step * G * args.max_new_tokens)
            w = w.new_tensor(args.weights) / p.clamp(min=0.02)
            w = w / w.sum()
        lr, old = args.learning_rate, None
        if args.lr_schedule == "polynomial":
            lr *= (1 - step / args.steps) ** 1.03
        metrics = {"learning_rate": lr, "r_pareto": r_pareto}
        if args.weighting == "gradient":  # Alg. 2
            A_k = advantage(r_vec, lengths, args).float()  # (K, N), as if each objective were the only one
            gram, old = gram_matrix(policy, probed, batch, micros, A_k, num_tokens)  # <g_j, g_k>, (K, K)
            norm = gram.diagonal().sqrt().clamp(min=1.0 if args.influence_scale == "clip" else 0.0)
            # A gradient that is rounding stays 0, and an objective of weight 0 is only watched.
            scale = torch.where((norm > 1e-6 * norm.max()) & (w > 0), 1 / norm, 0.0)
            I = (gram * scale[:, None] * scale).sum(1)  # I_k = <g_k, sum_j g_j>, Eq. (3)
            if I.isfinite().all():
                w = torch.softmax(w.log() + lr * I / args.mu, 0)  # Eq. (3), arXiv:2509.11452
                for _ in names:  # to the nearest weights, in KL divergence, none of which is below the bound
                    low = (w > 0) & (w <= args.min_weight)
                    w = torch.where(low, args.min_weight, w / w[~low].sum() * (1 - args.min_weight * int(low.sum())))
            metrics |= {f"influence/{name}": value for name, value in zip(names, I.tolist())}
        elif U > 1:  # a single update starts from that policy
            old = torch.zeros(batch["mask"].shape, device=device)
            for rows in micros:
                with torch.no_grad():
                    found = token_logprobs(policy, micro_batch(batch, rows))
                old[rows, : found.shape[1]] = found
        times.append(clock())
        # 8. One advantage, with Alg. 1's factor. On the reward, a division by a spread would undo it
        r = w @ r_vec  # (N,)
        signal = r if args.normalize == "sum" else r_vec
        if args.meta_reward_on == "reward":
            A = advantage(r_pareto * signal, lengths, args)
        else:
            A = r_pareto * advantage(signal, lengths, args)
        A = (A if args.normalize == "sum" else w @ A).float()  # (N,)
        # 9. Updates. Means are over all tokens of an update, in whatever micro-batches
        optimizer.param_groups[0]["lr"] = lr
        for update in updates:
            num_tokens = summed(lengths[torch.cat(update)].sum())
            for rows in update:
                micro = micro_batch(batch, rows)
                logprobs = token_logprobs(policy, micro)  # (B, R)
                before = logprobs.detach() if old is None else old[rows, : logprobs.shape[1]]
                loss, is_clipped = policy_loss(logprobs, before, A[rows], args.clip_low, args.clip_high, args.clip_dual)
                terms = {"clip_fraction": is_clipped}
                # --- algorithm: kl ---
                terms["kl"] = kl_penalty(logprobs, token_logprobs(reference, micro))
                loss = loss + args.kl_coefficient * terms["kl"]
                # --- end ---
                terms["loss"] = loss
                # Times WORLD: processes average gradients and metrics.
                terms = {name: WORLD * (x * micro["mask"]).sum() / num_tokens for name, x in terms.items()}
                terms["loss"].backward()
                metrics |= {name: metrics.get(name, 0.0) + x.item() / U for name, x in terms.items()}
            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            grad_norm = grad_norm.full_tensor() if SHARDED else grad_norm
            if grad_norm.isfinite():  # else skipped
                optimizer.step()
            optimizer.zero_grad()
        times.append(clock())
        # 10. Numbers of the step, means over all processes
        metrics |= {"reward": r.mean().item(), "grad_norm": grad_norm.item()}
        metrics["completions/mean_length"] = lengths.double().mean().item()
        metrics["completions/clipped_ratio"] = batch["cut_off"].double().mean().item()
        for name, weight, groups in zip(names, w.tolist(), r_vec.unflatten(1, (-1, G))):
            metrics[f"weights/{name}"] = weight
            metrics[f"rewards/{name}/mean"] = groups.mean().item()
            metrics[f"rewards/{name}/frac_zero_std"] = (groups == groups[:, :1]).all(1).double().mean().item()
        for phase, began, ended in zip(("rollout", "probe", "update"), times, times[1:]):
            metrics[f"time/{phase}"] = ended - began
        values = summed(torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)) / WORLD
        metrics = dict(zip(metrics, values.tolist()))
        bar.set_postfix({n: f"{metrics[f'rewards/{n}/mean']:.2f}*{metrics[f'weights/{n}']:.2f}" for n in names})
        bar.update()

    bar.close()
    if RANK == 0:
        actor.generation_config = own_settings
        try:
            actor.save_pretrained(folder / "model")
        except ValueError:  # older transformers save no temperature without it
            own_settings.do_sample = True
            actor.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        try:
            print(importlib.import_module("compare").summary(folder))
        except ImportError:
            print("No pictures without compare.py and matplotlib")
        print(f"Metrics, completions and the model are in {folder}")
    if SHARDED:
        dist.destroy_process_group()


if __name__ == "__main__":
    said = None
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted: --resume goes on from the last checkpoint, if there is one")
    except (rewards.RewardError, OSError, SafetensorError) as error:  # an objective that fails, a disk that is full
        said = str(error)
    if said:  # here, the frames of main have gone, and its progress bar with them
        fail(f"{said}; --resume goes on from the last checkpoint, if there is one")
