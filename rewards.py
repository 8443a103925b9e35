r"""
Rewards of one response to a math problem: accuracy, conciseness and clarity, the three objectives of "Learning to
Optimize Multi-Objective Alignment Through Dynamic Reward Weighting" (arXiv:2509.11452). Each is 0.0 or 1.0.

An objective of your own is one function:

    @objective
    def politeness(response, **_):
        return float("please" in response.lower())

It can then be named wherever the three can. It gets the keywords `response` (the decoded text), `answer` (the ground
truth), `length` (the number of sampled tokens) and `mean_length` (their running mean), takes those it needs and leaves
the rest to `**_`. The three raise nothing, whatever a model samples, and take time linear in its length.

Here, too: `read_problems`, what is asked and what is true.
"""
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets

OBJECTIVES: dict[str, Callable[..., float]] = {}
# The paper's datasets by short names: where the Hub has them, and what the paper asks for at the end of each problem.
PAPER = {"math-500": "HuggingFaceH4/MATH-500", "math-algebra": "DigitalLearningGmbH/MATH-lighteval:algebra"}
PAPER_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."
FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def objective(function: Callable[..., float]) -> Callable[..., float]:
    """Registers `function` in OBJECTIVES under its own name and returns it unchanged."""
    OBJECTIVES[function.__name__] = function
    return function


def score(objectives: Sequence[str], responses: Sequence[str], answers: Sequence[str], lengths: Sequence[int],
          mean_length: float) -> list[list[float]]:
    """
    The rewards of N responses in K objectives, N lists of K. objectives: names in OBJECTIVES, in the order wanted.

    responses, answers and lengths hold N items each (an answer for each response, not for each prompt); mean_length is
    that of `conciseness`. KeyError for an objective that is not registered, ValueError for unequal numbers of items
    or an objective that returns anything but a finite number.
    """
    functions = [OBJECTIVES[name] for name in objectives]
    rows = [
        [f(response=response, answer=answer, length=length, mean_length=mean_length) for f in functions]
        for response, answer, length in zip(responses, answers, lengths, strict=True)
    ]
    for row in rows:
        for name, value in zip(objectives, row):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"the objective {name} returned {value!r}, not a finite number")
    return rows


def question_and_answer(row: dict) -> tuple[list[dict[str, str]], str]:
    """
    The chat messages that ask a dataset's `row`, and the true answer.

    Asked is its column problem, question or prompt (text or messages). True is its column answer (of which, as in
    GSM8K, what follows ####), else reward_model.ground_truth (verl), else solution (the last box in it, if there is
    one). ValueError if one of the two is missing, empty or of another type.
    """
    question = next((row[name] for name in ("problem", "question", "prompt") if name in row), None)
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    if not (isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages)
            and all(isinstance(m.get("content"), str) and m["content"].strip() for m in messages)
            and all(isinstance(m.get("role"), str) for m in messages) and messages[-1]["role"] == "user"):
        raise ValueError("it needs text, or chat messages up to one of the user, in column problem, question or prompt")
    if "answer" in row:
        answer = row["answer"].split("####")[-1].strip() if isinstance(row["answer"], str) else row["answer"]
    elif isinstance(row.get("reward_model"), dict):
        answer = row["reward_model"].get("ground_truth")
    else:
        boxed = last_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
        answer = row.get("solution") if boxed is None else boxed
    if not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise ValueError("it needs an answer in column answer, reward_model.ground_truth or solution")
    # A single decimal in a column makes floats of all its integers.
    return messages, str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)


def load_splits(dataset):
    """
    The splits of a folder, a jsonl or parquet file, or a name on the Hub (NAME:CONFIGURATION for one of several), or in
    PAPER: datasets by name.

    Splits that it lacks are made as in the paper. A single one, such as a file, is shuffled and divided into 60% train,
    20% test and 20% validation; with train and test alone, the first half of test becomes validation. ValueError for
    what cannot be read.
    """
    path = Path(dataset)
    if path.is_file() and path.suffix not in FILES:
        raise ValueError(f"a file must be one of {', '.join(FILES)}")
    try:
        if path.is_file():
            splits = datasets.load_dataset(FILES[path.suffix], data_files=str(path))
        else:
            name = [dataset] if path.is_dir() else PAPER.get(dataset, dataset).split(":", 1)
            splits = datasets.load_dataset(*name)
    except Exception as error:  # whatever the libraries that read its files raise
        reason = str(error.__cause__ or error) or repr(error)
        raise ValueError(f"no folder, file or name on the Hub that can be read: {reason}") from error
    if len(splits) == 1 and len(rows := next(iter(splits.values()))) >= 5:
        train, rest = rows.train_test_split(0.4, seed=42).values()
        test, validation = rest.train_test_split(0.5, seed=42).values()
        print(f"of one split: {len(train)} train, {len(test)} test, {len(validation)} validation problems are made")
        return {"train": train, "test": test, "validation": validation}
    if splits.keys() == {"train", "test"} and (half := len(splits["test"]) // 2):
        print(f"no split validation: it is the first {half} of the {len(splits['test'])} test problems")
        test = splits["test"]
        return {"train": splits["train"], "test": test.skip(half), "validation": test.take(half)}
    return splits


def read_problems(dataset, splits, tokenizer, max_prompt_tokens, suffix="", enable_thinking=False):
    """
    The problems of each of `splits`: lists of dictionaries prompt (text), prompt_ids (token ids), answer (text).

    dataset: as for `load_splits`. suffix: put after each problem. enable_thinking: told to the chat template, which may
    ignore it. Prompts over the limit are left out, with a line that counts them. ValueError for a dataset, split or row
    that cannot be used, and for a split of which no prompt is within the limit.
    """
    data = load_splits(dataset)
    problems = {}
    for split in splits:
        if split not in data or len(data[split]) == 0:
            raise ValueError(f"split {split} is missing or empty (of a single split, it takes 5 rows to make three)")
        problems[split] = []
        for number, row in enumerate(data[split], 1):
            try:
                messages, answer = question_and_answer(row)
            except ValueError as error:
                raise ValueError(f"row {number} of split {split}: {error}, not {str(row)[:80]}") from None
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + suffix}]
            text = "".join(message["content"] + "\n" for message in messages)
            if tokenizer.chat_template:
                text = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False, enable_thinking=enable_thinking)
            ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
            if len(ids) <= max_prompt_tokens:
                problems[split].append({"prompt": text, "prompt_ids": ids, "answer": answer})
        left_out = len(data[split]) - len(problems[split])
        if not problems[split]:
            raise ValueError(f"no prompt of split {split} is within {max_prompt_tokens} tokens")
        if left_out:
            print(f"{split}: left out {left_out} of {len(data[split])} prompts, over {max_prompt_tokens} tokens")
    return problems


@objective
def accuracy(response: str, answer: str, **_) -> float:
    r"""
    1.0 if the last `\boxed{...}` in `response` equals `answer`, else 0.0. Raises nothing.

    Both are normalised as in the evaluation of MATH (Hendrycks et al., arXiv:2103.03874) and compared as strings: that
    evens out notation but computes nothing, so 2/4 is not 1/2. Wrong, too, are no box and a last box left open.
    """
    boxed = last_boxed(response)
    return float(boxed is not None and normalise(boxed) == normalise(answer))


@objective
def conciseness(length: int, mean_length: float, **_) -> float:
    """
    1.0 if a response is shorter than average, else 0.0 (so at exactly the average). Raises nothing. Source: the paper.

    length: the tokens sampled for it, the end token included. Never tokenise the decoded text again to get it: that can
    give another number than the model sampled. mean_length: the mean length of all training rollouts so far, those of
    the current batch included.
    """
    return float(length < mean_length)


# An enumerator is "1.", "a)", "(ii)", "Step 3:" or a bullet. These are the patterns of the paper's code, and as loose,
# or rewards would not compare with the paper's: a sentence that ends in a number (" = 13. So"), a decimal (" 12.5"),
# f(x), (2-x) and a spaced minus count as enumerators too, and a brace inside a box that was cut off closes it.
ENUMERATOR = re.compile(
    r"(?:^|[\s(]) (?:step)? (?:\d+|[a-z]|[ivxlcdm]+) [-.:)]  |  (?:^|\s) [-*•] \s+",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
ORDINAL = re.compile(
    r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b", re.IGNORECASE
)
FILLED_BOX = re.compile(r"\\boxed\{\s*[^\s}]")


@objective
def clarity(response: str, **_) -> float:
    r"""
    1.0 if `response` goes step by step to a boxed answer, else 0.0. Raises nothing. Source: the paper's code.

    It takes a `\boxed{...}` that is not blank, be it right or wrong, and two enumerators ("1.", "a)", "(ii)",
    "Step 3:", bullets) or two ordinal words (first to tenth, next, then; the same one twice will do).
    """
    box = FILLED_BOX.search(response)
    if box is None or "}" not in response[box.end():]:
        return 0.0
    return float(len(ENUMERATOR.findall(response)) >= 2 or len(ORDINAL.findall(response)) >= 2)


def last_boxed(text: str) -> str | None:
    r"""
    What the last `\boxed{...}` holds, or for `\boxed 5$` what stands before the `$`. None without a box or its end.

    `\fbox` is no box: the evaluation of MATH looks for it, but then fails to unwrap it.
    """
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


def normalise(text: str) -> str:
    r"""
    Evens out the notation of an answer: the steps of `strip_string` in the evaluation of MATH, in its order.

    Where that fails (two units, a bare `\frac`) and the strings are compared as they are, this skips the step.
    """
    for old, new in [
        ("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\left", ""), (r"\right", ""),
        (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", ""),
    ]:
        text = text.replace(old, new)
    if text.count(r"\text{ ") == 1:  # with the space it is a unit, 5\text{ cm}; without, an answer, \text{Navin}
        text = text.split(r"\text{ ")[0]
    for old, new in [(r"\%", ""), (" .", " 0."), ("{.", "{0.")]:
        text = text.replace(old, new)
    if text.startswith("."):
        text = "0" + text
    left, *right = text.split("=")
    if len(right) == 1 and len(left) <= 2:  # "k=", "k =": the name of what was asked for
        text = right[0]
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)  # \frac1{72}
    text = re.sub(r"\\frac([^{])(.)", r"\\frac{\1}{\2}", text)  # \frac12
    if text == "0.5":
        text = r"\frac{1}{2}"
    # No int() here: it raises on thousands of digits.
    return re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)
