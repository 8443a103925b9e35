"""
Makes the embedded model and data, tiny/model and tiny/data, from a seed: about 20 minutes on one thread.

    OMP_NUM_THREADS=1 python tiny/make_tiny.py

The data are sums and differences of five integers. The model is a Qwen3 of about 0.8M parameters. It starts
like the large models of the paper: it can do the task, it is wordy, and its responses are often cut off at
the limit before they give an answer.

It is trained on demonstrations in three stages. The first teaches the skill, with one term in each line. The
second teaches shortcuts, with several terms in a line, of which the model is less sure. The third teaches the
manner: most demonstrations are wordy. The problem decides how long and how clear a demonstration is, because
greedy decoding, which gives the most probable response, must give responses as mixed as sampled ones.
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
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLITS = {"train": 4000, "validation": 100, "test": 200}
TERMS = 5  # The same number in every problem, so that all problems need about as many tokens.
BOUND = 40  # the largest term
SIGNS = [1, -1]  # sums and differences
LIMIT = 96  # The scripts' default limit. Longer demonstrations are cut off 8 tokens after it.

# The share of each style of demonstrations, in the first two stages and in the third.
STYLES = {"bare": 0.05, "plain": 0.50, "steps": 0.45}
MANNER = {"bare": 0.04, "dense": 0.19, "plain": 0.04, "steps": 0.15, "wordy": 0.58}

# How many terms a line takes in: the probability of each further term if the term is near 0, the probability
# if it is near BOUND, and the maximum. One term a line makes long responses that the model gets right. All
# terms in one line make short responses that it mostly gets wrong. The first two stages draw from SKILL and
# SHORTCUTS, by the shares here. In the third stage, the style decides.
SKILL = {(0, 0, 4): 0.45, (0.4, 0.4, 4): 0.35, (0.8, 0.8, 4): 0.20}
SHORTCUTS = {(0, 0, 1): 0.20, (0.85, 0.85, 2): 0.55, (0.6, 0.6, 4): 0.25}
TOGETHER = {
    "bare": (0, 0, 1),
    "dense": (1, 0, 4),
    "plain": (0.5, 0.5, 4),
    "steps": (0.5, 0.1, 2),
    "wordy": (0, 0, 1),
}

# The probability that a wordy response says First and Then, if the first number is below 18, and otherwise.
ORDINALS, ORDINALS_BELOW = {True: 0.95, False: 0.08}, 18
# The probability that it repeats the calculation once more, if the last number is below 22, and otherwise.
RECHECKS, RECHECKS_BELOW = {True: 0.15, False: 0.75}, 22
OPENING, RECHECK = "Okay, let me see.\n", "Wait, let me check that.\n"
FIRST_THEN = ["First ", *["Then "] * 9]


def make_problem(rng: random.Random) -> list[int]:
    """Returns the terms of a problem. Those to subtract are negative. No partial sum is negative."""
    while True:
        terms = [rng.randint(2, BOUND)]
        terms += [rng.choice(SIGNS) * rng.randint(2, BOUND) for _ in range(TERMS - 1)]
        if all(sum(terms[: i + 1]) >= 0 for i in range(TERMS)):
            return terms


def question(terms: list[int]) -> str:
    return f"What is {terms[0]}" + "".join(f"{term:+d}" for term in terms[1:]) + "?"


def work(terms: list[int], rng: random.Random, together: tuple) -> list[str]:
    """Returns lines of calculation. Each adds a term to the total, or several: see TOGETHER."""
    near_0, near_40, maximum = together
    lines, total, rest = [], terms[0], terms[1:]
    while rest:
        count = 1
        while count < min(maximum, len(rest)):
            probability = near_0 + (near_40 - near_0) * abs(rest[count]) / BOUND
            if rng.random() >= probability:
                break
            count += 1
        line = str(total) + "".join(f"{term:+d}" for term in rest[:count])
        total, rest = total + sum(rest[:count]), rest[count:]
        lines.append(f"${line}={total}$\n")
    return lines


def demonstration(terms: list[int], style: str, together: tuple, rng: random.Random) -> str:
    """Returns a response in a style. Its answer is right, but a long response is cut off before it."""
    answer = rf"\boxed{{{sum(terms)}}}"
    if style == "bare":
        return answer
    lines = work(terms, rng, together)
    if style == "steps":
        lines = [f"Step {i}: {line}" for i, line in enumerate(lines, 1)]
    if style != "wordy":
        return "".join(lines) + answer
    if rng.random() < ORDINALS[terms[0] < ORDINALS_BELOW]:
        lines = [word + line for word, line in zip(FIRST_THEN, lines)]
    text = OPENING + "".join(lines)
    for _ in range(2):  # Further repetitions would be beyond the limit.
        if rng.random() >= RECHECKS[abs(terms[-1]) < RECHECKS_BELOW]:
            break
        text += RECHECK + "".join(work(terms, rng, together))
    return text + answer


def choice(shares: dict, rng: random.Random):
    """Draws a key of `shares`, with the values as probabilities."""
    return rng.choices(list(shares), shares.values())[0]


def skill(terms: list[int], rng: random.Random) -> str:
    """Returns a demonstration for the first stage: it is short, and mostly has one term in a line."""
    return demonstration(terms, choice(STYLES, rng), choice(SKILL, rng), rng)


def shortcuts(terms: list[int], rng: random.Random) -> str:
    """Returns a demonstration for the second stage: it is short, and mostly has several terms in a line."""
    return demonstration(terms, choice(STYLES, rng), choice(SHORTCUTS, rng), rng)


def manner(terms: list[int], rng: random.Random) -> str:
    """Returns a demonstration for the third stage: it is mostly wordy."""
    style = choice(MANNER, rng)
    return demonstration(terms, style, TOGETHER[style], rng)


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE, in which each digit is a token, on questions and demonstrations."""
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
    # Like a chat model, this model has sampling settings, which the scripts must replace.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def make_batch(problems, demonstrate, tokenizer, rng):
    """Returns right-padded token ids (B, T), and labels (B, T): -100 outside of response and end token."""
    rows = []
    for terms in problems:
        message = [{"role": "user", "content": question(terms)}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(prompt)["input_ids"]
        response = tokenizer(demonstrate(terms, rng) + tokenizer.eos_token)["input_ids"][: LIMIT + 8]
        rows.append((prompt, response))

    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.tensor(prompt + response)
        labels[i, len(prompt) : end] = torch.tensor(response)
    return ids, labels


def train(model, tokenizer, held_out, demonstrate, updates, batch_size, learning_rate, rng):
    """Trains the model with AdamW on demonstrations of new problems that are not in `held_out`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)

    def schedule(t):
        """Returns the factor of the learning rate: 50 updates of warm-up, and a cosine down to 0.02."""
        return min(1, (t + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t / updates)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    bar = tqdm(range(updates), desc=demonstrate.__name__)
    for _ in bar:
        problems = []
        while len(problems) < batch_size:
            terms = make_problem(rng)
            if tuple(terms) not in held_out:
                problems.append(terms)

        ids, labels = make_batch(problems, demonstrate, tokenizer, rng)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def write_data(folder: Path, rng: random.Random) -> set[tuple]:
    """Writes three splits of distinct problems. Returns the problems of validation and test."""
    problems = {}  # A dictionary is a set that keeps its order.
    while len(problems) < sum(SPLITS.values()):
        problems.setdefault(tuple(make_problem(rng)))
    problems = list(problems)

    folder.mkdir(parents=True, exist_ok=True)
    held_out = set()
    for split, size in SPLITS.items():
        part, problems = problems[:size], problems[size:]
        lines = [json.dumps({"problem": question(terms), "answer": str(sum(terms))}) + "\n" for terms in part]
        (folder / f"{split}.jsonl").write_text("".join(lines))
        if split != "train":
            held_out |= set(part)
    return held_out


def main():
    parser = argparse.ArgumentParser(description="Make the embedded model and data.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder in which to write model/ and data/")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--skill-updates", type=int, default=1600, help="updates in the first stage")
    parser.add_argument("--shortcut-updates", type=int, default=600, help="updates in the second stage")
    parser.add_argument("--manner-updates", type=int, default=500, help="updates in the third stage")
    args = parser.parse_args()

    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    held_out = write_data(args.output / "data", rng)
    tokenizer = make_tokenizer(rng)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")

    stages = [  # demonstrations, updates, batch size, learning rate
        (skill, args.skill_updates, 48, 3e-3),
        (shortcuts, args.shortcut_updates, 48, 2e-3),
        (manner, args.manner_updates, 24, 1e-3),
    ]
    for number, stage in enumerate(stages, 1):
        train(model, tokenizer, held_out, *stage, random.Random(args.seed + number))

    model.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
