r"""
Rewards of one response to a math problem: accuracy, conciseness and clarity, the three objectives of "Learning to
Optimize Multi-Objective Alignment Through Dynamic Reward Weighting" (arXiv:2509.11452). Each is 0.0 or 1.0, takes time
linear in the response and raises nothing. An objective of your own is one function, to be named where the three are:

    @objective
    def politeness(response, **_):
        return float("please" in response.lower())

It gets the keywords `response` (the decoded text), `answer` (the ground truth), `length` (in sampled tokens),
`mean_length` (their running mean), `prompt`, `step`, and all other columns of the problem's row, and returns a number.
Here, too, is what the problems are: `read_problems`.
"""

import math
import re
from pathlib import Path

import datasets

OBJECTIVES = {}
# The paper's datasets by short names: where the Hub has them, and what the paper asks for at the end of each problem.
PAPER = {"math-500": "HuggingFaceH4/MATH-500", "math-algebra": "DigitalLearningGmbH/MATH-lighteval:algebra"}
PAPER_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."


def objective(function):
    """Registers `function` in OBJECTIVES under its own name and returns it unchanged."""
    OBJECTIVES[function.__name__] = function
    return function


class RewardError(Exception):
    """An objective raised something, or returned what is no finite number."""


def score(objectives, responses, problems, lengths, mean_length, step=0):
    """The rewards of N responses to N problems, dictionaries, in K objectives, named as in OBJECTIVES: N lists of K."""
    functions, table = [(name, OBJECTIVES[name]) for name in objectives], []
    for number, (response, problem, length) in enumerate(zip(responses, problems, lengths, strict=True), 1):
        given = {"response": response, "length": length, "mean_length": mean_length, "step": step}
        table.append([])
        for name, function in functions:
            try:
                value = function(**{**problem, **given})
                value = value.item() if hasattr(value, "item") else value  # of numpy or torch
            except Exception as error:
                raise RewardError(f"objective {name}, response {number} of step {step}: {error!r}") from error
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise RewardError(f"objective {name}, response {number} of step {step}: {value!r} is no finite number")
            table[-1].append(value)
    return table


def question_and_answer(row):
    """
    The chat messages that ask a dataset's `row`, and the true answer. ValueError if one of them is not there.

    Asked is its column problem, question or prompt (text or messages). True is its column answer, else
    reward_model.ground_truth (verl), else solution: of a whole solution what follows ####, or its last box.
    """
    question = next((row[name] for name in ("problem", "question", "prompt") if name in row), None)
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    contents = [isinstance(m, dict) and m.get("content") for m in messages] if isinstance(messages, list) else []
    is_text = contents and all(isinstance(content, str) and content.strip() for content in contents)
    if not is_text or messages[-1].get("role") != "user":
        raise ValueError("it needs text, or chat messages up to one of the user, in column problem, question or prompt")
    verl = row["reward_model"].get("ground_truth") if isinstance(row.get("reward_model"), dict) else None
    gold = next((gold for gold in (row.get("answer"), verl, row.get("solution")) if gold is not None), None)
    gold = gold[0] if isinstance(gold, list) and len(gold) == 1 else gold
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)  # A single decimal in a column makes floats of all its integers.
    is_number = isinstance(gold, (int, float)) and math.isfinite(gold)
    text = str(gold).rpartition("####")[2] if is_number or isinstance(gold, str) else ""
    boxed = last_boxed(text)
    text = text.strip() if boxed is None else boxed
    text = text[1:-1] if re.fullmatch(r"\$[^$]+\$", text) else text
    if not text.strip():
        raise ValueError(f"an answer is needed in column answer, reward_model.ground_truth or solution, not {gold!r}")
    return messages, text


def bare_number(text):
    """A number without thousands commas and leading zeros: 2,125 is 2125 and 033 is 33. Other text as it is."""
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?)0+(?=\d+\Z)", r"\1", text)


def beginning(tokenizer):
    """The special tokens that a tokenizer puts before a text: those that it puts after it would end the prompt."""
    with_special, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return with_special[: with_special.index(plain[0])]


def turn_end(tokenizer):
    """The special token that ends a turn in the chat template, or None. A base model's settings do not know it."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "XYZ"}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("XYZ")[2]
    first = next(iter(tokenizer(rest, add_special_tokens=False)["input_ids"]), None)
    return first if first in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[first].special else None


def load_splits(dataset):
    """
    The splits of a folder, a json(l) or parquet file, a name on the Hub (NAME:CONFIGURATION) or in PAPER: by name.

    Those that are missing are made as in the paper: a single split is shuffled and divided into 60% train, 20% test and
    20% validation; with train and test alone, the first half of test becomes validation.
    """
    if Path(dataset).is_file():
        splits = datasets.load_dataset("parquet" if dataset.endswith(".parquet") else "json", data_files=dataset)
    else:
        where = [dataset] if Path(dataset).is_dir() else PAPER.get(dataset, dataset).split(":", 1)
        try:
            splits = datasets.load_dataset(*where)
        except datasets.exceptions.DatasetGenerationError:  # what its splits have in other columns differs
            builder = datasets.load_dataset_builder(*where)
            files = builder.config.data_files or {}
            splits = {str(s): datasets.load_dataset(builder.name, data_files={s: f})[s] for s, f in files.items()}
    if len(splits) == 1 and len(rows := next(iter(splits.values()))) >= 5:
        train, rest = rows.train_test_split(0.4, seed=42).values()
        test, validation = rest.train_test_split(0.5, seed=42).values()
        print(f"of one split: {len(train)} train, {len(test)} test, {len(validation)} validation problems are made")
        return {"train": train, "test": test, "validation": validation}
    if splits.keys() == {"train", "test"} and (half := len(splits["test"]) // 2):
        print(f"no split validation: it is the first {half} of the {len(splits['test'])} test problems")
        return {**splits, "validation": splits["test"].take(half), "test": splits["test"].skip(half)}
    return splits


def read_problems(dataset, splits, tokenizer, max_prompt_tokens, suffix=None, enable_thinking=False):
    """
    The problems of each of `splits`: lists of dictionaries with prompt (text), prompt_ids (token ids), answer (text)
    and all other columns.

    suffix: put after each problem (None: the paper's, for its datasets). enable_thinking: told to the chat template.
    Longer prompts are left out, and counted. ValueError for rows and splits that cannot be used.
    """
    suffix = (PAPER_SUFFIX if dataset in PAPER else "") if suffix is None else suffix
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": enable_thinking}
    data, problems, is_chat = load_splits(dataset), {}, bool(tokenizer.chat_template)
    for split in splits:
        if split not in data or len(data[split]) == 0:
            raise ValueError(f"split {split} is missing or empty (of a single split, it takes 5 rows to make three)")
        chats, answers = [], []
        for number, row in enumerate(data[split], 1):
            try:
                chat, answer = question_and_answer(row)
            except ValueError as error:
                raise ValueError(f"row {number} of split {split}: {error}: {str(row)[:80]}") from None
            chats.append([*chat[:-1], {**chat[-1], "content": chat[-1]["content"] + suffix}])
            # The paper's data are taken as its evaluation, that of MATH, takes them.
            answers.append(answer if dataset in PAPER else bare_number(answer))
        lost = [answer for answer in answers if not accuracy(rf"\boxed{{{answer}}}", answer)]
        if lost:
            print(f"{split}: {len(lost)} of {len(answers)} answers cannot be earned in a box, such as {lost[0]!r}")
        if len(lost) == len(answers):
            raise ValueError(f"no answer of split {split} can be earned in a box")
        plain = ["".join(message["content"] + "\n" for message in chat) for chat in chats]
        texts = tokenizer.apply_chat_template(chats, **options) if is_chat else plain
        begin = [] if is_chat else beginning(tokenizer)
        ids = [begin + ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        new = [{"prompt": p, "prompt_ids": i, "answer": a} for p, i, a in zip(texts, ids, answers)]
        rows = [{**row, **columns} for row, columns in zip(data[split], new)]
        problems[split] = [row for row in rows if len(row["prompt_ids"]) <= max_prompt_tokens]
        if not problems[split]:
            raise ValueError(f"no prompt of split {split} is within {max_prompt_tokens} tokens")
        if left_out := len(rows) - len(problems[split]):
            print(f"{split}: left out {left_out} of {len(rows)} prompts, over {max_prompt_tokens} tokens")
    first = next(iter(problems.values()))[0]
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in problems.items())
    print(f"{counts} problems; the first is {first['prompt']!r}, and right is {first['answer']!r}")
    return problems


@objective
def accuracy(response, answer, **_):
    r"""
    1.0 if the last `\boxed{...}` in `response` equals `answer`, else 0.0.

    Both are normalised as in the evaluation of MATH (Hendrycks et al., arXiv:2103.03874) and compared as strings: that
    evens out notation but computes nothing, so 2/4 is not 1/2. Wrong, too, are no box and a last box left open.
    """
    boxed = last_boxed(response)
    return float(boxed is not None and normalise(boxed) == normalise(answer))


@objective
def conciseness(length, mean_length, **_):
    """1.0 if a response is shorter than the mean of all training rollouts so far, its own step's included, else 0.0."""
    return float(length < mean_length)


# An enumerator is "1.", "a)", "(ii)", "Step 3:" or a bullet. These are the patterns of the paper's code, and as loose,
# or rewards would not compare with the paper's: a sentence that ends in a number (" = 13. So"), a decimal (" 12.5"),
# f(x), (2-x) and a spaced minus count as enumerators too, and a brace inside a box that was cut off closes it.
ENUMERATOR = re.compile(r"(?im)(?:^|[\s(])(?:step)?(?:\d+|[a-z]|[ivxlcdm]+)[-.:)]|(?:^|\s)[-*•]\s+")
ORDINAL = re.compile(r"(?i)\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b")
FILLED_BOX = re.compile(r"\\boxed\{\s*[^\s}]")


@objective
def clarity(response, **_):
    r"""
    1.0 if `response` goes step by step to a box, right or wrong, else 0.0: to a `\boxed{...}` that is not blank, by two
    enumerators or two ordinals (the same one twice will do). Source: the paper's code.
    """
    box = FILLED_BOX.search(response)
    if box is None or "}" not in response[box.end() :]:
        return 0.0
    return float(len(ENUMERATOR.findall(response)) >= 2 or len(ORDINAL.findall(response)) >= 2)


def last_boxed(text):
    r"""What the last `\boxed{...}` holds, or for `\boxed 5$` what stands before the `$`. None without a whole box."""
    _, command, rest = text.rpartition(r"\boxed")
    if command and rest.startswith(" "):
        return rest[1:].split("$")[0]
    if command and rest.startswith("{"):
        depth = 0
        for brace in re.finditer(r"[{}]", rest):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return rest[1 : brace.start()]
    return None


def normalise(text):
    r"""
    Evens out the notation of an answer: the steps of `strip_string` in the evaluation of MATH, in its order. Where one
    fails (two units, a bare `\frac`) and MATH compares the strings as they are, it is skipped.
    """
    for old, new in [("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")]:
        text = text.replace(old, new)
    for dropped in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$"):
        text = text.replace(dropped, "")
    if text.count(r"\text{ ") == 1:  # with the space it is a unit, 5\text{ cm}; without, an answer, \text{Navin}
        text = text.split(r"\text{ ")[0]
    for old, new in [(r"\%", ""), (" .", " 0."), ("{.", "{0.")]:
        text = text.replace(old, new)
    text = "0" + text if text.startswith(".") else text
    left, *right = text.split("=")
    if len(right) == 1 and len(left) <= 2:  # "k=", "k =": the name of what was asked for
        text = right[0]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)  # \frac1{72}
    text = re.sub(r"\\frac([^{])(.)", r"\\frac{\1}{\2}", text)  # \frac12
    text = r"\frac{1}{2}" if text == "0.5" else text
    # No int() here: it raises on thousands of digits.
    return re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)
