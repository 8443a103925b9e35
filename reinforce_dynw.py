# --- algorithm: docstring ---
"""
REINFORCE++ on K objectives with fixed or dynamic weights, after Lu et al., "Learning to Optimize
Multi-Objective Alignment Through Dynamic Reward Weighting", arXiv:2509.11452.

    python reinforce_dynw.py --weighting gradient

The policy maximizes w . r_vec, the weighted sum of a response's K rewards. --weighting is one of:

    fixed        w is constant: the baseline.
    hypervolume  w is constant. Before step 1 and after each step, p is the mean validation performance. Its
                 gain delta_hv = HV(buffer + p) - HV(buffer) sets the meta reward r_pareto, which multiplies
                 the advantages of the next step (Alg. 1). In step 1, r_pareto is 1.
    gradient     w_k <- w_k exp(lr I_k / mu) / Z before each step's policy updates. The influence
                 I_k = <g_k, sum_j g_j> compares the objectives' policy gradients g_k (Alg. 2).
    nash         w_k = w0_k / p_k / Z before each step's policy updates. w0 are the initial weights, and p is
                 the mean performance of the step's responses. Ours, not the paper's.

Z normalizes w. A performance is a mean reward, except that of conciseness: 1 - length / limit.

Shapes: K objectives, G responses to a problem, N responses of this process in a step, B in a micro-batch,
P prompt tokens (left-padded), R response tokens (right-padded), T = P + R.

Only the regions `# --- algorithm: ... ---` differ from the other scripts.
"""
# --- end ---

import argparse
import json
import math
import os
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter as clock
from time import strftime

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

import rewards
from hypervolume import contribution, hypervolume

# --- algorithm: name ---
ALGORITHM, MIN_GENERATIONS = "reinforce", 1
# --- end ---
TINY = Path(__file__).parent / "tiny"  # the embedded model and data
SHARDED = "WORLD_SIZE" in os.environ  # under torchrun
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def make_parser():
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS)

    def flag(name, default, help, choices=None, **options):
        options = {"type": str if default is None else type(default), "choices": choices, **options}
        parser.add_argument(f"--{name}", default=default, help=f"{help} (default: {default})", **options)

    objectives = ["accuracy", "conciseness", "clarity"]
    flag("weighting", "fixed", "rule for w", ["fixed", "hypervolume", "gradient", "nash"])
    flag("objectives", objectives, "names in rewards.py", rewards.OBJECTIVES, nargs="+", type=str)
    flag("weights", None, "initial w; None: equal", nargs="+", type=float)
    flag("mu", 0.0, "w's step is lr / mu; 0: 10 x initial lr")
    flag("influence-scale", "unit", "scale or clip g_k to norm 1", ["unit", "clip"])
    flag("probe-layers", [0.25, 0.75], "part of the depth for g_k", nargs=2, type=float)
    flag("meta-reward-on", "advantage", "what r_pareto multiplies", ["advantage", "reward"])
    flag("hv-scale", 100.0, "factor on delta_hv in Eq. (1)")
    flag("hv-reference", "worst", "worst: 0, initial: first p", ["worst", "initial"])
    flag("model", str(TINY / "model"), "folder, or name on the Hub")
    flag("dataset", str(TINY / "data"), "folder, file, name on the Hub, math-500, math-algebra")
    flag("prompt-suffix", None, "text after each problem; None: the paper's on its data")
    flag("max-prompt-tokens", 64, "leave out longer prompts")
    flag("max-new-tokens", 96, "cut off longer responses")
    devices = ["cuda", "cpu"][1 - torch.cuda.is_available() :]
    flag("device", devices[0], "cpu, cuda", devices)
    flag("seed", 1, "of all random numbers")
    flag("steps", 60, "training steps")
    flag("prompts-per-step", 16, "problems in a step")
    flag("num-generations", 8, "responses to a problem")
    flag("updates-per-step", 1, "policy updates; they divide the problems")
    flag("micro-batch-size", 32, "responses in a backward pass")
    flag("rollout-batch-size", 128, "responses generated at once")
    parser.add_argument("--compile", action="store_true", help="compile the decoding, on CUDA")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    flag("learning-rate", 2e-5, "of AdamW")
    flag("lr-power", 0.0, "decay of lr: (share of steps left)^this")
    # --- algorithm: args ---
    flag("kl-coefficient", 0.001, "factor on KL(policy || model)")
    flag("baseline", "whiten", "whiten is REINFORCE++", ["whiten", "mean", "none"])
    # --- end ---
    flag("clip", 0.2, "clip PPO's ratio to 1 +- this")
    flag("clip-dual", 3.0, "for A < 0, limit a token's loss to this times |A|")
    flag("eval-every", 5, "steps between evaluations")
    flag("max-eval-problems", None, "test and validation problems; None: all", type=int)
    flag("checkpoint-every", 0, "steps between checkpoints; 0: none")
    flag("save-every", 0, "steps between models; 0: the last")
    flag("output-dir", None, "None: a new one in runs")
    flag("resume", None, "folder of a run to continue; flags override its own")
    flag("report-to", "none", "also log to a tracker", ["none", "tensorboard", "wandb"])
    return parser


def parse_args():
    """The arguments, and the checkpoint of --resume."""
    parser, checkpoint = make_parser(), None
    args = parser.parse_args()
    if args.resume:
        with input_errors("--resume"):
            checkpoint = torch.load(f"{args.resume}/checkpoint.pt", "cpu", mmap=True)
        parser.set_defaults(**checkpoint["args"] | {"output_dir": args.resume})
        args = parser.parse_args()
        if checkpoint["origin"] != [ALGORITHM, WORLD, args.objectives]:
            parser.error(f"--resume: the run has {checkpoint['origin']} (algorithm, processes, objectives)")

    K, folder = len({*args.objectives}), f"runs/{ALGORITHM}-{args.weighting}-%Y%m%d-%H%M%S-{os.getpid()}"
    args.weights = w0 = args.weights or [1 / K] * K
    args.output_dir = args.output_dir or strftime(folder)
    if not len(args.objectives) == len(w0) == K or min(*w0, args.mu) < 0 or not abs(sum(w0) - 1) < 1e-6:
        parser.error("--objectives, --weights, --mu: give different names, no number < 0, weights of sum 1")
    if args.weighting == "gradient" and args.influence_scale == "unit" and np.count_nonzero(w0) < 3:
        parser.error("--influence-scale: two objectives need clip, as unit makes I_1 = I_2")
    if args.num_generations < MIN_GENERATIONS:
        parser.error(f"--num-generations: give at least {MIN_GENERATIONS}")
    for name, value in vars(args).items():
        if name.endswith(("per_step", "batch_size", "new_tokens", "eval_every")) and value < 1:
            parser.error(f"--{name.replace('_', '-')}: give at least 1")
    if args.prompts_per_step % (args.updates_per_step * WORLD):
        parser.error("--prompts-per-step: give a multiple of --updates-per-step x processes")
    if os.path.exists(args.output_dir) and args.output_dir != args.resume:
        parser.error(f"--output-dir: {args.output_dir} exists; see --resume")
    return args, checkpoint


@contextmanager
def input_errors(flag):
    """Turns an input error into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        make_parser().error(f"{flag}: {' '.join(str(error).split())}")


def summed(x):
    """Sums over processes, in place."""
    if SHARDED:
        dist.all_reduce(x)
    return x


def load_model(args, is_actor=False):
    """A causal language model and its tokenizer."""
    if args.model.count("/") > 1 and not os.path.exists(f"{args.model}/config.json"):
        raise ValueError(f"{args.model} has no config.json; a run has its model in model/")
    dtype = torch.bfloat16 if is_actor and args.device == "cuda" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    end_ids = np.ravel(model.generation_config.eos_token_id).tolist()  # from one token, a list or None
    end_ids = sorted({*end_ids, tokenizer.eos_token_id, rewards.turn_end(tokenizer)} - {None})
    # Drop the model's sampling options. Padding is masked, so any token can pad.
    model.generation_config = transformers.GenerationConfig(eos_token_id=end_ids, pad_token_id=end_ids[0])
    layers = decoder_layers(model)
    for layer in layers if args.gradient_checkpointing else ():
        layer.forward = partial(recompute, layer.forward, use_reentrant=False)
    if SHARDED and not is_actor:
        mesh = dist.init_device_mesh(args.device, (WORLD,))
        for module in [*layers, model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model.to(args.device).eval(), tokenizer


def decoder_layers(model):
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h  # as in GPT-2


def copy_weights(policy, actor):
    for source, target in zip(policy.parameters(), actor.parameters()):
        target.data.copy_(source.data.full_tensor() if SHARDED else source.data)


def save_model(policy, tokenizer, folder):
    """Saves the policy, not the actor: bfloat16 would round small updates away."""
    weights, _ = get_state_dict(policy, [], options=WHOLE)
    weights = {name: w for name, w in weights.items() if name not in policy.all_tied_weights_keys}
    if RANK == 0:
        policy.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def draw(logits):
    """Samples tokens (B,) from logits (B, V). On a CPU, torch.multinomial is slower."""
    cdf = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, torch.rand_like(cdf[:, :1]) * cdf[:, -1:], right=True).squeeze(1)


@torch.no_grad()
def respond(model, ids, attention, args, sample):
    """Appends up to max_new_tokens tokens to prompts (B, P). Those after an end token do not count."""
    P, limit = ids.shape[1], args.max_new_tokens
    if args.compile:  # The static cache makes generate() compile. Its default of top_k is 50.
        options = {"do_sample": sample, "top_k": 0 if sample else None, "cache_implementation": "static"}
        return model.generate(ids, attention_mask=attention, max_new_tokens=limit, **options)

    ids, attention = nn.functional.pad(ids, (0, limit)), nn.functional.pad(attention, (0, limit), value=1)
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # (B, P + limit)
    cache = transformers.StaticCache(config=model.config, max_cache_len=P + limit)
    rows, start = torch.arange(len(ids), device=ids.device), 0
    end_ids = ids.new_tensor(model.generation_config.eos_token_id)
    for t in range(P, P + limit):
        inputs = {"input_ids": ids[rows, start:t], "position_ids": positions[rows, start:t], "cache": cache}
        output = model(**inputs, attention_mask=attention[rows, :t], use_cache=True, logits_to_keep=1)
        logits, start = output.logits[:, -1].float(), t  # (B, V)
        ids[rows, t] = draw(logits) if sample else logits.argmax(-1)
        if (t - P) % 16 == 15:  # Drop finished rows, but rarely: this copies the cache.
            unfinished = (~torch.isin(ids[rows, P : t + 1], end_ids).any(1)).nonzero().squeeze(1)
            if len(unfinished) == 0:
                break
            rows = rows[unfinished]
            cache.reorder_cache(unfinished)
    return ids


def rollout(model, tokenizer, problems, args, sample=True):
    """A response to each problem: texts (N), ids and attention (N, T), mask (N, R), lengths, cut_off (N,)."""
    prompts, size = [problem["prompt_ids"] for problem in problems], args.rollout_batch_size
    P = args.max_prompt_tokens if args.compile else max(map(len, prompts))  # Other shapes compile again.
    ids = torch.tensor([[-1] * (P - len(prompt)) + prompt for prompt in prompts], device=model.device)
    attention, ids, responses = (ids >= 0).long(), ids.clamp(min=0), []  # (N, P)
    for part in zip(ids.split(size), attention.split(size)):
        responses.extend(respond(model, *part, args, sample)[:, P:])
    responses = nn.utils.rnn.pad_sequence(responses, batch_first=True)  # (N, R)

    # The first end token ends a response. Do not look for pad tokens: they may be end tokens.
    is_end = torch.isin(responses, ids.new_tensor(model.generation_config.eos_token_id))
    mask = is_end.cumsum(1) - is_end.long() == 0  # up to and including the first end token
    tokens = [row[m] for row, m in zip(responses, mask & ~is_end)]  # An end token need not be special.
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ids, attention = torch.cat([ids, responses], 1), torch.cat([attention, mask.long()], 1)  # (N, T)
    batch = {"texts": texts, "ids": ids, "attention": attention, "mask": mask}
    return {**batch, "lengths": mask.sum(1), "cut_off": ~is_end.any(1)}


def split_updates(batch, num_updates, size):
    """The micro-batches of each update: up to `size` responses of similar length."""
    lengths, updates = batch["lengths"], []
    for rows in torch.arange(len(lengths), device=lengths.device).chunk(num_updates):
        parts = rows[lengths[rows].argsort(stable=True)].split(size)
        updates.append([micro_batch(batch, part) for part in parts])
    return updates


def micro_batch(batch, rows):
    """The `rows` of a batch, without columns that are padding in all of them."""
    attention, R = batch["attention"][rows], batch["lengths"][rows].max()
    columns = slice(attention.argmax(1).min(), batch["ids"].shape[1] - batch["mask"].shape[1] + R)
    ids, mask = batch["ids"][rows, columns], batch["mask"][rows, :R]
    return {"rows": rows, "ids": ids, "attention": attention[:, columns], "mask": mask}


def token_logprobs(model, micro):
    """Log-probabilities (B, R) of the response tokens, at temperature 1."""
    ids, attention, R = micro["ids"], micro["attention"], micro["mask"].shape[1]
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # (B, T)
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "use_cache": False}
    # A cache of bfloat16 weights would outlive FSDP's weights.
    with torch.autocast(ids.device.type, torch.bfloat16, ids.is_cuda, cache_enabled=False):
        logits = model(**inputs, logits_to_keep=R + 1).logits  # (B, R + 1, V)
    tokens = nn.functional.pad(ids[:, -R:], (0, 1))  # Add a dummy: slicing logits would copy them.

    def chosen_logprobs(logits, tokens):  # (M, V), (M,) -> (M,)
        return logits.gather(-1, tokens[:, None]).squeeze(-1).float() - logits.float().logsumexp(-1)

    # Take 256 MB of float32 logits at a time, recomputed in the backward pass.
    size = max(1, 2**26 // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(size), tokens.flatten().split(size))
    logprobs = [recompute(chosen_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(logprobs).view(-1, R + 1)[:, :-1]


# --- algorithm: advantage ---
def advantage(reward, lengths, args):
    """REINFORCE++: the reward, whitened over all tokens of the step. (..., N)"""
    if args.baseline == "none":
        return reward
    n = summed(lengths.sum())  # tokens
    centred = reward - summed((lengths * reward).sum(-1, keepdim=True)) / n
    if args.baseline == "mean":
        return centred
    variance = summed((lengths * centred**2).sum(-1, keepdim=True)) / (n - 1)
    return centred * (variance + 1e-8).rsqrt()


def kl_penalty(logprobs, reference_logprobs):
    """The k2 estimate (B, R) of KL(policy || reference): half the squared log-ratio."""
    return 0.5 * (logprobs - reference_logprobs) ** 2


# --- end ---
def policy_loss(logprobs, old_logprobs, A, args):
    """PPO's loss with a dual clip (arXiv:1912.09729), and where its ratio is clipped: (B, R). A: (B,)"""
    A = A[:, None]
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
    unclipped, clipped = -A * ratio, -A * ratio.clamp(1 - args.clip, 1 + args.clip)
    loss = torch.maximum(unclipped, clipped)
    return torch.where(A < 0, torch.minimum(loss, -A * args.clip_dual), loss), clipped > unclipped


def meta_reward(delta_hv, scale):
    """The meta reward r_pareto, in [0.5, 2], for a gain of delta_hv in hypervolume."""
    return 0.5 + 1.5 * math.tanh(scale * delta_hv)  # Eq. (1), arXiv:2509.11452


def influences(gram, weights, influence_scale):
    """The influences I_k = <g_k, sum_j g_j>, (K,), from the inner products (K, K) of the gradients. "unit"
    scales each g_k to norm 1, "clip" only longer ones. The sum skips objectives with zero weight."""
    norms = gram.diagonal().sqrt().clamp(min=1.0 if influence_scale == "clip" else 0.0)
    # Drop numerically zero gradients: at norm 1, they would be noise.
    factors = torch.where(norms > 1e-6 * norms.max(), 1 / norms, 0.0)
    return (gram * factors[:, None] * (factors * (weights > 0))).sum(1)  # I_k of Eq. (3), arXiv:2509.11452


def update_weights(weights, influence, lr, mu):
    """The next weights, w_k exp(lr I_k / mu) / Z. weights, influence: (K,) -> (K,)"""
    return torch.softmax(weights.log() + lr * influence / mu, 0)  # w_k of Eq. (3), arXiv:2509.11452


def nash_weights(initial, performance):
    """The weights w0_k / p_k / Z, (K,): the direction of the gradient of sum_k w0_k log p_k."""
    weights = initial / performance.clamp(min=0.02)  # A performance of 0 must not take all the weight.
    return weights / weights.sum()


def gram_matrix(model, micros, A_k, num_tokens, probe_layers):
    """
    The inner products (K, K) of the policy gradients g_k, over the linear maps between two fractions of the
    depth. A_k: advantages (K, N). Also stores old_logprobs in the micro-batches.

    Before the first update, the ratio in the policy loss is 1, so its gradient is -A grad log p. The KL term
    is left out. One backward pass from the log-likelihoods serves all objectives, because responses do not
    mix in the network: delta_i (T, out), the gradient at a linear map's output, is that of response i alone.
    With the map's input x_i (T, in), g_k = sum_i A_ki delta_i^T x_i. The sign cancels.
    """
    layers, probe = decoder_layers(model), {}
    first, end = [int(fraction * len(layers)) for fraction in sorted(probe_layers)]
    modules = layers[first : max(first + 1, end)].modules()
    linears = [m for m in modules if isinstance(m, (nn.Linear, transformers.pytorch_utils.Conv1D))]
    gradients = dict.fromkeys(linears, 0)

    def watch(linear, inputs, output):
        A, x = probe["A"], inputs[0].detach()  # (K, B), (B, T, in)

        def add_gradients(delta):  # (B, T, out)
            g = A @ (delta.transpose(1, 2) @ x.to(delta.dtype)).flatten(1).to(A.dtype)  # (K, out * in)
            gradients[linear] += summed(g).tensor_split(WORLD, 1)[RANK]  # Each process keeps some columns.

        output.register_hook(add_gradients)

    hooks = [linear.register_forward_hook(watch) for linear in linears]
    hooks += [layers[first].register_forward_pre_hook(lambda _, x: probe.update(start=x[0]))]
    for micro in micros:
        probe["A"] = A_k[:, micro["rows"]]
        logprobs = token_logprobs(model, micro)  # (B, R)
        loglikelihood = (logprobs * micro["mask"]).sum() / num_tokens
        loglikelihood.backward(inputs=probe["start"])  # not below these layers
        micro["old_logprobs"] = logprobs.detach()
    for hook in hooks:
        hook.remove()
    return summed(sum((g @ g.T).double() for g in gradients.values()))


def evaluate(model, tokenizer, problems, prefix, step, metrics, args):
    """The mean performance p (K floats) of greedy responses, also added to metrics."""
    names, n, samples = args.objectives, len(problems), []
    problems = problems[n * RANK // WORLD : n * (RANK + 1) // WORLD]
    batch = rollout(model, tokenizer, problems, args, sample=False)
    texts, lengths, cut_off = batch["texts"], batch["lengths"].tolist(), batch["cut_off"].tolist()
    mean_length = summed(batch["lengths"].sum()).item() / n
    scores = rewards.score(names, texts, problems, lengths, mean_length, step, prefix)
    for i, problem in enumerate(problems):
        sample = {"prompt": problem["prompt"], "response": texts[i], "answer": problem["answer"]}
        performance = rewards.performance(names, scores[i], lengths[i], args.max_new_tokens)
        sample |= {"length": lengths[i], "cut_off": cut_off[i], "performance": dict(zip(names, performance))}
        samples.append(sample)

    shares = [samples] * WORLD
    if SHARDED:
        dist.all_gather_object(shares, samples)
    samples = sum(shares, [])
    if RANK == 0 and prefix == "eval":
        text = "".join(json.dumps(sample) + "\n" for sample in samples)
        Path(args.output_dir, "completions.jsonl").write_text(text)
    p = [sum(sample["performance"][name] for sample in samples) / n for name in names]
    metrics |= {f"{prefix}/performance/{name}": mean for name, mean in zip(names, p)}
    metrics[f"{prefix}/completions/mean_length"] = mean_length
    metrics[f"{prefix}/completions/clipped_ratio"] = summed(batch["cut_off"].sum()).item() / n
    return p


def open_log(args, step):
    """Creates the run's folder, drops metrics from `step` on, and returns the log function."""
    path, lines, writer, run = Path(args.output_dir, "metrics.jsonl"), [], None, None
    if args.resume:
        lines = Path(args.resume, path.name).read_text().splitlines(keepends=True)[:step]
    path.parent.mkdir(parents=True, exist_ok=bool(args.resume))
    path.write_text("".join(lines))
    path.with_name("args.json").write_text(json.dumps({"algorithm": ALGORITHM, **vars(args)}, indent=2))
    if args.report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(path.parent, purge_step=step, flush_secs=1)
    elif args.report_to == "wandb":
        import wandb

        run = wandb.init(id=path.parent.name, resume="allow" if args.resume else "never", config=vars(args))

    def log(metrics, step):
        line = {"step": step} | {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        with open(path, "a") as file:
            print(json.dumps(line), file=file)
        for name, x in metrics.items() if writer else ():
            writer.add_scalar(name, x, step)
        if run:
            run.log(metrics, step=step)

    return log


def save_checkpoint(policy, optimizer, state, args):
    """Writes checkpoint.pt. It replaces the last one when complete."""
    path, states = f"{args.output_dir}/checkpoint.pt", get_state_dict(policy, optimizer, options=WHOLE)
    states = dict(zip(["model_state_dict", "optim_state_dict"], states))
    checkpoint = {"args": vars(args), "state": vars(state), "states": states}
    checkpoint["origin"] = [ALGORITHM, WORLD, args.objectives]
    if RANK == 0:
        torch.save(checkpoint, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)


def main():
    args, checkpoint = parse_args()
    names, device, G, U = args.objectives, args.device, args.num_generations, args.updates_per_step
    zeros, num_responses = [0.0] * len(names), args.prompts_per_step * G
    transformers.logging.disable_progress_bar()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.backends.cuda.enable_cudnn_sdp(False)  # It can give NaN gradients (pytorch/pytorch#196678).
    if SHARDED:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")

    # The policy is trained. Its copy, the actor, generates: whole, and bfloat16 on CUDA.
    with input_errors("--model"):
        policy, tokenizer = load_model(args)
        actor, _ = load_model(args, is_actor=True)
        # --- algorithm: reference ---
        reference = load_model(args)[0].requires_grad_(False)
        # --- end ---
    with input_errors("--dataset"):
        options = args.max_prompt_tokens, args.prompt_suffix, args.max_eval_problems, names
        data = rewards.read_problems(args.dataset, ["train", "validation", "test"], tokenizer, *options)
    optimizer = torch.optim.AdamW(policy.parameters())
    w0 = torch.tensor(args.weights, dtype=torch.float64)
    state = dict(step=0, metrics={}, weights=w0, buffer=[], test_points=[], total_length=0.0)
    if checkpoint:
        state = checkpoint["state"]
        set_state_dict(policy, optimizer, **checkpoint["states"], options=WHOLE)
        copy_weights(policy, actor)
    state = argparse.Namespace(**state)
    log = open_log(args, state.step) if RANK == 0 else None
    bar = tqdm(desc=args.weighting, total=args.steps, initial=state.step, disable=RANK > 0)

    while True:
        # 1. Evaluation after `step` steps. In Alg. 1, it sets r_pareto of the next step.
        step, metrics, r_pareto, start = state.step, state.metrics, 1.0, clock()
        transformers.set_seed(hash((args.seed, step, RANK)) % 2**32)
        if args.weighting == "hypervolume":
            p = evaluate(actor, tokenizer, data["validation"], "val", step, metrics, args)
            if state.buffer:
                reference_point = state.buffer[0] if args.hv_reference == "initial" else zeros
                metrics["delta_hv"] = contribution(p, state.buffer, reference_point)
                r_pareto = meta_reward(metrics["delta_hv"], args.hv_scale)
            state.buffer.append(p)
        metrics["time/validate"] = clock() - start
        if step % args.eval_every == 0 or step >= args.steps:
            state.test_points.append(evaluate(actor, tokenizer, data["test"], "eval", step, metrics, args))
            metrics["eval/hypervolume"] = hypervolume(state.test_points, zeros)
        if RANK == 0:
            log(metrics, step)
        if step >= args.steps:
            break

        # 2. Rollouts: G responses to each problem of the next step
        step, times = step + 1, [clock()]
        problems = rewards.problems_of_step(data["train"], step, args.prompts_per_step, args.seed)
        problems = [problem for problem in problems[RANK::WORLD] for _ in range(G)]
        batch = rollout(actor, tokenizer, problems, args)
        texts, lengths = batch["texts"], batch["lengths"]  # N, (N,)
        step_tokens = summed(lengths.sum()).item()
        times.append(clock())

        # 3. Rewards, in float64: rounding must not give equal rewards a standard deviation
        mean_length = step_tokens / num_responses
        state.total_length += mean_length
        scores = rewards.score(names, texts, problems, lengths.tolist(), state.total_length / step, step)
        r_vec = torch.tensor(scores, dtype=torch.float64, device=device).T  # (K, N)
        times.append(clock())

        # 4. Weights, and the log-probabilities before the updates
        weights = (state.weights if args.weighting == "gradient" else w0).to(device)
        lr = args.learning_rate * (1 - (step - 1) / args.steps) ** args.lr_power
        metrics = {"learning_rate": lr, "r_pareto": r_pareto}
        updates = split_updates(batch, U, args.micro_batch_size)
        micros = [micro for update in updates for micro in update]
        if args.weighting == "gradient":  # Alg. 2. The rewards of each objective are normalized alone.
            A_k = advantage(r_vec, lengths, args).float()  # (K, N)
            gram = gram_matrix(policy, micros, A_k, step_tokens, args.probe_layers)
            influence = influences(gram, weights, args.influence_scale)  # (K,)
            if influence.isfinite().all():
                weights = update_weights(weights, influence, lr, args.mu or 10 * args.learning_rate)
            metrics |= {f"influence/{name}": I for name, I in zip(names, influence)}
        elif U > 1:  # If U = 1, the update's own forward pass gives them.
            with torch.no_grad():
                for micro in micros:
                    micro["old_logprobs"] = token_logprobs(policy, micro)
        if args.weighting == "nash":
            mean_rewards = summed(r_vec.sum(1)) / num_responses  # (K,)
            p = rewards.performance(names, mean_rewards, mean_length, args.max_new_tokens)
            weights = nash_weights(weights, weights.new_tensor(p))
        times.append(clock())

        # 5. Advantages, times r_pareto. In r, GRPO and REINFORCE++ would divide it out.
        r = weights @ r_vec  # (N,)
        A = r_pareto * advantage(r, lengths, args)  # (N,)
        if args.meta_reward_on == "reward":
            A = advantage(r_pareto * r, lengths, args)

        # 6. Policy updates: means over tokens. FSDP and the metrics average over processes, hence / WORLD.
        optimizer.param_groups[0]["lr"] = lr
        for update in updates:
            num_tokens = summed(sum(micro["mask"].sum() for micro in update)) / WORLD
            for micro in update:
                logprobs = token_logprobs(policy, micro)  # (B, R)
                old_logprobs = micro.get("old_logprobs", logprobs.detach())
                loss, is_clipped = policy_loss(logprobs, old_logprobs, A[micro["rows"]].float(), args)
                terms = {"loss": loss, "clip_fraction": is_clipped}
                # --- algorithm: kl ---
                terms["kl"] = kl_penalty(logprobs, token_logprobs(reference, micro))
                terms["loss"] = loss + args.kl_coefficient * terms["kl"]
                # --- end ---
                terms = {name: (x * micro["mask"]).sum() / num_tokens for name, x in terms.items()}
                terms["loss"].backward()
                metrics |= {name: metrics.get(name, 0.0) + x.item() / U for name, x in terms.items()}
            grad_norm = nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            grad_norm = grad_norm.full_tensor() if SHARDED else grad_norm
            if grad_norm.isfinite():  # Otherwise, skip this update.
                optimizer.step()
            optimizer.zero_grad()
        copy_weights(policy, actor)
        times.append(clock())

        # 7. Metrics, logged after the evaluation
        metrics |= {"reward": r.mean(), "grad_norm": grad_norm, "completions/mean_length": mean_length}
        metrics["completions/clipped_ratio"] = batch["cut_off"].double().mean()
        for name, weight, groups in zip(names, weights, r_vec.unflatten(1, (-1, G))):  # (problems, G)
            metrics |= {f"weights/{name}": weight, f"rewards/{name}/mean": groups.mean()}
            metrics[f"rewards/{name}/frac_zero_std"] = (groups == groups[:, :1]).all(1).double().mean()
        for phase, seconds in zip(["rollout", "reward", "probe", "update"], np.diff(times)):
            metrics[f"time/{phase}"] = seconds
        means = summed(torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)) / WORLD
        state.step, state.weights, state.metrics = step, weights.cpu(), dict(zip(metrics, means.tolist()))
        bar.set_postfix(reward=state.metrics["reward"])
        bar.update()
        if args.checkpoint_every and step % args.checkpoint_every == 0:
            save_checkpoint(policy, optimizer, state, args)
        if args.save_every and step % args.save_every == 0:
            save_model(policy, tokenizer, f"{args.output_dir}/model-{step}")

    bar.close()
    save_model(policy, tokenizer, f"{args.output_dir}/model")
    if RANK == 0:
        print(f"The run is in {args.output_dir}")
        with suppress(ImportError):  # without compare.py
            from compare import summary

            print(summary(args.output_dir))
    if SHARDED:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
