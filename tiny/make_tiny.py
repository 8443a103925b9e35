r"""
Makes the embedded default, tiny/model and tiny/data, from a seed: about seven minutes on two cores.

    python tiny/make_tiny.py

The data are sums and differences of three to five integers. The model is a Qwen3 of about 0.8 M parameters that starts
where the large models of the paper start: able, wordy, often cut off at the token limit before it gives an answer. It
is trained in two stages, on demonstrations written here: first the skill, on short ones, then the manner, on a mixture
in which most are long-winded. How long and how clear one is depends on the problem, since the most probable response
(which greedy decoding gives) must be as mixed as the sampled ones.
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
OPERATIONS = {2: 0.34, 3: 0.30, 4: 0.36}  # number of operations: share of the problems
LIMIT = 96  # tokens that a response may have by default; longer demonstrations are cut there, as rollouts are
# Of the manner stage: style: share. The most probable style has more than half, so that greedy decoding takes it.
STYLES = {"bare": 0.12, "plain": 0.09, "steps": 0.13, "wordy": 0.66}
ORDINALS = {2: 0.80, 3: 0.35, 4: 0.10}  # operations: how often a wordy response says First, Then
RECHECKS = {2: 0.45, 3: 0.35, 4: 0.75}  # operations: how often a wordy response goes over it all once more, again


def make_problem(rng: random.Random) -> list[int]:
    """Terms, negative where subtracted. No partial sum is negative."""
    operations = rng.choices(list(OPERATIONS), OPERATIONS.values())[0]
    while True:
        terms = [rng.randint(10, 60)] + [rng.choice([1, -1]) * rng.randint(10, 60) for _ in range(operations)]
        if all(sum(terms[: i + 1]) >= 0 for i in range(len(terms))):
            return terms


def question(terms: list[int]) -> str:
    return f"What is {terms[0]}" + "".join(f"{term:+d}" for term in terms[1:]) + "?"


def work(terms: list[int], rng: random.Random, split: float) -> list[str]:
    """One line for each operation, in one go or (in a share `split` of them) tens before ones."""
    lines, total = [], terms[0]
    for term in terms[1:]:
        parts = [term]
        if rng.random() < split:
            tens = int(term / 10) * 10
            parts = [part for part in (tens, term - tens) if part]
        equations = []
        for part in parts:
            equations.append(f"${total}{part:+d}={total + part}$")
            total += part
        lines.append(", ".join(equations) + "\n")
    return lines


def demonstration(terms: list[int], style: str, rng: random.Random) -> str:
    """A response in one of STYLES. All are right; those that ramble on reach the limit before they answer."""
    answer = rf"\boxed{{{sum(terms)}}}"
    if style == "bare":
        return answer
    if style == "plain":
        return "".join(work(terms, rng, split=0.2)) + answer
    if style == "steps":
        return "".join(f"Step {i}: {line}" for i, line in enumerate(work(terms, rng, split=0.6), 1)) + answer
    operations = len(terms) - 1
    lines = work(terms, rng, split=0.67)
    if rng.random() < ORDINALS[operations]:
        lines = [("Then " if i else "First ") + line for i, line in enumerate(lines)]
    text = "Okay, let me see.\n" + "".join(lines)
    for _ in range(3):  # three more are beyond the limit anyway
        if rng.random() >= RECHECKS[operations]:
            break
        text += "Wait, let me check that.\n" + "".join(work(terms, rng, split=0.2))
    return text + answer


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
    problems = [make_problem(rng) for _ in range(2000)]
    texts = [question(p) + "\nuser\nassistant\n" + demonstration(p, s, rng) for p in problems for s in STYLES]
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


def batch_of(problems, styles, tokenizer, rng):
    """Token ids (B, T), right-padded, and labels (B, T): -100 but for the response and its end token."""
    rows = []
    for terms in problems:
        style = rng.choices(list(styles), styles.values())[0]
        message = [{"role": "user", "content": question(terms)}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(prompt)["input_ids"]
        response = tokenizer(demonstration(terms, style, rng) + tokenizer.eos_token)["input_ids"][: LIMIT + 8]
        rows.append((prompt, response))
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (p, r) in enumerate(rows):
        ids[i, : len(p) + len(r)] = torch.tensor(p + r)
        labels[i, len(p) : len(p) + len(r)] = torch.tensor(r)
    return ids, labels


def train(model, tokenizer, held_out, styles, updates, batch_size, learning_rate, rng, name):
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t / updates)))
    )
    model.train()
    bar = tqdm(range(updates), desc=name)
    for _ in bar:
        problems = []
        while len(problems) < batch_size:
            terms = make_problem(rng)
            if tuple(terms) not in held_out:
                problems.append(terms)
        ids, labels = batch_of(problems, styles, tokenizer, rng)
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
    parser.add_argument("--manner-updates", type=int, default=500, help="optimiser steps of the second stage")
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
    short = {"bare": 0.2, "plain": 0.4, "steps": 0.4}
    train(model, tokenizer, held_out, short, args.skill_updates, 40, 3e-3, rng, "skill")
    train(model, tokenizer, held_out, STYLES, args.manner_updates, 24, 1e-3, rng, "manner")
    model.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
