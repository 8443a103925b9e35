r"""
Makes the embedded default, tiny/model and tiny/data, from a seed: about 20 minutes on one thread.

    OMP_NUM_THREADS=1 python tiny/make_tiny.py

The data are sums and differences of five integers. The model is a Qwen3 of about 0.8 M parameters that starts where the
large models of the paper start: able, wordy, often cut off at the token limit before it gives an answer. It is trained
in three stages, on demonstrations written here: the skill, one term a line; shortcuts, several terms a line, of which
it is less sure; and then the manner, on a mixture in which most are long-winded. How long and how clear one is depends
on the problem, since the most probable response (which greedy decoding gives) must be as mixed as the sampled ones.
"""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = {"train": 4000, "validation": 100, "test": 200}
TERMS = 5  # in every problem, so that all need about as many tokens
LIMIT = 96  # tokens that a response may have by default; longer demonstrations are cut there, as rollouts are
STYLES = {"bare": 0.05, "plain": 0.50, "steps": 0.45}  # style: share, in the first two stages
MANNER = {"bare": 0.04, "dense": 0.19, "plain": 0.04, "steps": 0.15, "wordy": 0.58}  # in the last
# What a line takes in: how often one term more, for numbers near 0 and for those near 40, and how many at most. One at
# a time is long and right, all at once is short and mostly wrong.
SKILL = {(0, 0, 4): 0.45, (0.4, 0.4, 4): 0.35, (0.8, 0.8, 4): 0.20}  # share, in the first stage
SHORTCUTS = {(0, 0, 1): 0.20, (0.85, 0.85, 2): 0.55, (0.6, 0.6, 4): 0.25}  # in the second
TOGETHER = {"bare": (0, 0, 1), "dense": (1, 0, 4), "plain": (0.5, 0.5, 4), "steps": (0.5, 0.1, 2), "wordy": (0, 0, 1)}
ORDINALS = {True: 0.95, False: 0.08}  # first number below 18: how often a wordy response says First, Then
RECHECKS = {True: 0.15, False: 0.75}  # last number below 22: how often it goes over it all once more
OPENING, RECHECK = "Okay, let me see.\n", "Wait, let me check that.\n"
FIRST_THEN = ["First ", "Then ", "Then ", "Then "]


def make_problem(rng: random.Random) -> list[int]:
    """Terms, negative where subtracted. No partial sum is negative."""
    while True:
        terms = [rng.randint(2, 40)] + [rng.choice([1, -1]) * rng.randint(2, 40) for _ in range(TERMS - 1)]
        if all(sum(terms[: i + 1]) >= 0 for i in range(TERMS)):
            return terms


def question(terms: list[int]) -> str:
    return f"What is {terms[0]}" + "".join(f"{term:+d}" for term in terms[1:]) + "?"


def work(terms: list[int], rng: random.Random, together: tuple) -> list[str]:
    """Lines that each add a term to the total, or several: see TOGETHER."""
    near_0, near_40, most = together
    lines, total, rest = [], terms[0], terms[1:]
    while rest:
        taken = 1
        while taken < min(most, len(rest)) and rng.random() < near_0 + (near_40 - near_0) * abs(rest[taken]) / 40:
            taken += 1
        line = str(total) + "".join(f"{term:+d}" for term in rest[:taken])
        total, rest = total + sum(rest[:taken]), rest[taken:]
        lines.append(f"${line}={total}$\n")
    return lines


def demonstration(terms: list[int], style: str, together: tuple, rng: random.Random) -> str:
    """A response in one of the styles. All are right; those that ramble on reach the limit before they answer."""
    answer = rf"\boxed{{{sum(terms)}}}"
    if style == "bare":
        return answer
    lines = work(terms, rng, together)
    if style == "steps":
        lines = [f"Step {i}: {line}" for i, line in enumerate(lines, 1)]
    if style != "wordy":
        return "".join(lines) + answer
    if rng.random() < ORDINALS[terms[0] < 18]:
        lines = [word + line for word, line in zip(FIRST_THEN, lines)]
    text = OPENING + "".join(lines)
    for _ in range(2):  # two more are beyond the limit anyway
        if rng.random() >= RECHECKS[abs(terms[-1]) < 22]:
            break
        text += RECHECK + "".join(work(terms, rng, together))
    return text + answer


def choice(shares: dict, rng: random.Random):
    return rng.choices(list(shares), shares.values())[0]


def skill(terms: list[int], rng: random.Random) -> str:
    """A demonstration for the first stage: short, most with one term a line."""
    return demonstration(terms, choice(STYLES, rng), choice(SKILL, rng), rng)


def shortcuts(terms: list[int], rng: random.Random) -> str:
    """A demonstration for the second stage: short, most with several terms a line."""
    return demonstration(terms, choice(STYLES, rng), choice(SHORTCUTS, rng), rng)


def manner(terms: list[int], rng: random.Random) -> str:
    """A demonstration for the third stage: most of them wordy."""
    style = choice(MANNER, rng)
    return demonstration(terms, style, TOGETHER[style], rng)


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits apart, trained on questions and demonstrations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = []
    for terms in [make_problem(rng) for _ in range(2000)]:
        demonstrations = [demonstration(terms, style, (0.3, 0.3, 4), rng) for style in MANNER]
        texts += [question(terms) + "\nuser\nassistant\n" + text for text in demonstrations]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # As a chat model does, it comes with sampling settings of its own.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def batch_of(problems, demonstrate, tokenizer, rng):
    """Token ids (B, T), right-padded, and labels (B, T): -100 but for the response and its end token."""
    rows = []
    for terms in problems:
        message = [{"role": "user", "content": question(terms)}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(prompt)["input_ids"]
        response = tokenizer(demonstrate(terms, rng) + tokenizer.eos_token)["input_ids"][: LIMIT + 8]
        rows.append((prompt, response))
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p) + len(r)] = torch.tensor(p + r)
        labels[i, len(p) : len(p) + len(r)] = torch.tensor(r)
    return ids, labels


def train(model, tokenizer, held_out, demonstrate, updates, batch_size, learning_rate, rng):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t / updates)))
    )
    model.train()
    bar = tqdm(range(updates), desc=demonstrate.__name__)
    for _ in bar:
        problems = []
        while len(problems) < batch_size:
            terms = make_problem(rng)
            if tuple(terms) not in held_out:
                problems.append(terms)
        ids, labels = batch_of(problems, demonstrate, tokenizer, rng)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser(description="Make the embedded model and data.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write model/ and data/ to")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")
    parser.add_argument("--skill-updates", type=int, default=1600, help="optimiser steps of the first stage")
    parser.add_argument("--shortcut-updates", type=int, default=600, help="optimiser steps of the second stage")
    parser.add_argument("--manner-updates", type=int, default=500, help="optimiser steps of the third stage")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)

    problems = {}
    while len(problems) < sum(SPLITS.values()):
        problems.setdefault(tuple(make_problem(rng)))
    problems = list(problems)
    (args.output / "data").mkdir(parents=True, exist_ok=True)
    for split, size in SPLITS.items():
        part, problems = problems[:size], problems[size:]
        lines = [json.dumps({"problem": question(terms), "answer": str(sum(terms))}) + "\n" for terms in part]
        (args.output / "data" / f"{split}.jsonl").write_text("".join(lines))
        if split == "validation":
            held_out = set(part)
        elif split == "test":
            held_out |= set(part)

    tokenizer = make_tokenizer(rng)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, held_out, skill, args.skill_updates, 48, 3e-3, random.Random(args.seed + 1))
    train(model, tokenizer, held_out, shortcuts, args.shortcut_updates, 48, 2e-3, random.Random(args.seed + 2))
    train(model, tokenizer, held_out, manner, args.manner_updates, 24, 1e-3, random.Random(args.seed + 3))
    model.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
