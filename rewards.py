r"""
The objectives, which score responses, and how the problems are read from a dataset.

Accuracy, conciseness and clarity are the objectives of "Learning to Optimize Multi-Objective Alignment
Through Dynamic Reward Weighting" (arXiv:2509.11452). Each gives a response a reward of 0.0 or 1.0, takes
time linear in the response and raises no exception. To add an objective, write one function in this file
and name it in --objectives:

    @objective
    def politeness(response, **_):
        return float("please" in response.lower())

It gets the keywords `response` (the decoded text), `answer` (the ground truth), `length` (in sampled tokens),
`mean_length` (which conciseness compares the length with), `prompt`, `step` and all other columns of the
problem's row, and returns a number. Its performance is its reward, unless PERFORMANCE has a function for it:

    # For an objective brevity: the share of the limit that a response leaves unused.
    PERFORMANCE["brevity"] = lambda reward, length, limit: 1 - length / limit
"""

import functools
import glob
import inspect
import io
import json
import math
import re
from decimal import Decimal
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pandas
import pyarrow.parquet
import torch
from jinja2 import TemplateError

OBJECTIVES = {}
# The performance of an objective is what evaluations report, and what the hypervolume and Nash weighting use.
# By default, it is the reward. A function of (reward, length, limit) here replaces the default. The function
# gets the reward and length of one response, or their means over several. It must be linear in both (plus a
# constant), so that the performance of the means is the mean performance. Conciseness has a function because
# its reward depends on a mean length that moves, so it cannot compare models.
PERFORMANCE = {"conciseness": lambda reward, length, limit: 1 - length / limit}
# The paper's datasets: short names, names on the Hub, and the text that follows each problem.
PAPER_DATASETS = {
    "math-500": "HuggingFaceH4/MATH-500",
    "math-algebra": "DigitalLearningGmbH/MATH-lighteval:algebra",
}
PAPER_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."
QUESTION_COLUMNS = ["problem", "question", "prompt"]
ANSWER_COLUMNS = ["answer", "reward_model", "solution"]  # verl has {"ground_truth": ...} in reward_model.
FILE_TYPES = {"csv": "csv", "tsv": "csv", "parquet": "parquet", "json": "json", "jsonl": "json"}


def objective(function, name=None):
    """
    Registers `function`, any callable, in OBJECTIVES and returns it unchanged.

    name: by default, that of the function, of the function in a partial, or of the class of an instance.
    ValueError if the name is taken. The accuracy of this file is the only objective that can be replaced.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    name = name or getattr(inner, "__name__", type(inner).__name__)
    if not callable(function) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name}: an objective is a callable with a name; use objective(function, name=...)")
    if OBJECTIVES.get(name, function) is not function and OBJECTIVES[name] is not MATH_ACCURACY:
        raise ValueError(f"objective {name} exists: use another name, as in objective(function, name=...)")
    OBJECTIVES[name] = function
    return function


def needs_answer(function):
    """
    Whether an objective needs the ground truth: it has a parameter `answer` without a default, or it reads
    the word "answer" from its keywords, as in kwargs["answer"].
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # Some functions written in C do not tell their parameters.
        return True
    if "answer" in parameters:
        return parameters["answer"].default is inspect.Parameter.empty
    inner = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return "answer" in getattr(code, "co_consts", ())


def score(objectives, responses, problems, lengths, mean_length, step=0, split="train"):
    """
    Returns the rewards of N responses in K objectives, named as in OBJECTIVES: N lists of K floats.

    problems: N dictionaries, as from `read_problems`. lengths, mean_length: in tokens. split: for errors.
    An exception of an objective gets a note that names the objective, the split, the step and the prompt.
    ValueError if an objective returns something that float() does not convert to a finite number.
    """
    functions = [OBJECTIVES[name] for name in objectives]
    rewards = []
    for response, problem, length in zip(responses, problems, lengths, strict=True):
        arguments = {"response": response, "length": length, "mean_length": mean_length, "step": step}
        row = []
        for name, function in zip(objectives, functions):
            prompt = str(problem.get("prompt", ""))
            prompt = prompt[:160] + "..." if len(prompt) > 160 else prompt
            call = f"objective {name}, split {split}, step {step}\nthe prompt begins with {prompt!r}"
            try:
                value = function(**{**problem, **arguments})
            except Exception as error:
                error.add_note(call)
                raise
            try:
                row.append(float(value))
            except Exception:
                row.append(math.nan)
            if not math.isfinite(row[-1]):
                raise ValueError(f"a reward must be a finite number, not {value!r:.80}: {call}")
        rewards.append(row)
    return rewards


def performance(objectives, rewards, length, limit):
    """
    Returns the performance in K objectives: K floats.

    rewards (K numbers), length (in tokens): of one response, or means over several. limit: max new tokens.
    """
    values = []
    for name, reward in zip(objectives, rewards, strict=True):
        values.append(float(PERFORMANCE[name](reward, length, limit) if name in PERFORMANCE else reward))
    return values


@objective
def accuracy(response, answer, as_in_paper=False, **_):
    r"""
    Returns 1.0 if the last `\boxed{...}` in `response` equals `answer` after both are normalised, else 0.0.

    Normalising unifies notation but computes nothing, so 2/4 is not 1/2. A response without a box is wrong,
    and so is one whose last box is not closed. as_in_paper: compare as the paper does, see `normalise`.
    """
    boxed = last_boxed(response)
    return float(boxed is not None and normalise(boxed, as_in_paper) == normalise(answer, as_in_paper))


MATH_ACCURACY = accuracy


@objective
def conciseness(length, mean_length, **_):
    """
    Returns 1.0 if a response is shorter than `mean_length`, else 0.0.

    In training, `mean_length` is the mean over all rollouts so far, those of the current step included.
    """
    return float(length < mean_length)


# An enumerator is "1.", "a)", "(ii)", "Step 3:" or a bullet. The patterns are as loose as in the paper's
# code, so that rewards can be compared with the paper's. Therefore these also count as enumerators: a number
# at the end of a sentence (" = 13. So"), a decimal (" 12.5"), f(x), (2-x) and a minus between spaces. A box
# that was cut off counts as closed if there is a closing brace inside it.
ENUMERATOR = re.compile(r"(?im)(?:^|[\s(])(?:step)?(?:\d+|[a-z]|[ivxlcdm]+)[-.:)]|(?:^|\s)[-*•]\s+")
ORDINAL = re.compile(r"(?i)\b(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|next|then)\b")
FILLED_BOX = re.compile(r"\\boxed\{\s*[^\s}]")


@objective
def clarity(response, **_):
    r"""
    Returns 1.0 if `response` has steps and a box, right or wrong, else 0.0. Source: the paper's code.

    The `\boxed{...}` must not be blank. Steps are two or more enumerators, or two or more ordinals. Repeated
    ones count.
    """
    box = FILLED_BOX.search(response)
    if box is None or "}" not in response[box.end() :]:
        return 0.0
    return float(len(ENUMERATOR.findall(response)) >= 2 or len(ORDINAL.findall(response)) >= 2)


def last_boxed(text):
    r"""Returns the content of the last `\boxed{...}` or `\boxed 5$`. None if the box is open or missing."""
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


# What people write around an answer. Each alternative has one group: the text inside.
WRAPPER = re.compile(
    r"""\$\$?((?:\\.|[^$\\])+)\$\$? | \\\(((?:(?!\\[()]).)+)\\\) | \\\[((?:(?!\\[][]).)+)\\\]
    | \\begin\{(?:equation|align|gather|displaymath|math)\*?\}(.+)\\end\{[a-z]+\*?\}
    | \\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|boldsymbol|bm|mbox)\{((?:[^{}]|\{[^{}]*\})*)\}
    | \*+([^*]+)\*+ | `+([^`]+)`+ | <(?:b|strong)>(.+)</(?:b|strong)>                 # bold, code
    | "([^"]*)" | \[\s*"([^"]*)"\s*\] | \[\s*'([^']*)'\s*\] | \[([^][,"']*)\]         # a list of one
    | \**(?:the\ )?(?:final\ |correct\ )?answer\**\s*(?:is\b|[:=])\**\s*:?(.+)        # "Answer: 5"
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)


def unwrap(text):
    """
    Returns the answer in a ground truth: the text in the last answer tags, after the last </think> or ####,
    or in the last box. What WRAPPER matches around it and a final period are removed.
    """
    text = re.split(r"(?i)</(?:\w*answer|solution)>", text)[-2:][0]
    text = re.split(r"(?i)<(?:\w*answer|solution)>|</think>|####", text)[-1]
    boxed = last_boxed(text)
    text = text if boxed is None else boxed
    for _ in range(8):  # Wrappers may be nested. A limit keeps the time linear in the text.
        text = text.strip().rstrip(". \n")
        match = WRAPPER.fullmatch(text)
        if match is None:
            break
        text = match[match.lastindex]
    return text


def without_separators(text):
    r"""Returns `text` without thousands separators, as in 2,125 or 2{,}125. In (1,234), a comma is none."""
    text = re.sub(r"(?<=\d)(?:\{,\}|,\s*\\!\s*|\s*\\[!,;: ]\s*|[\s~_'’])(?=\d{3}(?!\d))", "", text)
    if re.search(r"[(\[]|\\\{", text):
        return text
    # Groups of two digits are Indian notation. Two points or more are German, for example.
    number = r"(?<![\d,.])[1-9]\d{0,2}(?:(?:,\d{3}|,\d\d(?=,\d))+(?!\d|,\d)|(?:\.\d{3}){2,}(?![\d.]))"
    return re.sub(number, lambda match: re.sub("[,.]", "", match[0]), text)


def bare_number(text):
    """Returns a number without separators, leading zeros and exponent: 2125, 33, 0.001. Keeps other text."""
    number = without_separators(text)
    return format(Decimal(number), "f") if NUMBER.fullmatch(number) else text


def normalise(text, as_in_paper=False):
    r"""
    Returns an answer in uniform notation: the steps of `strip_string` in the evaluation of MATH (Hendrycks et
    al., arXiv:2103.03874), in order. Where a step fails (two units, a bare `\frac`), MATH compares the
    strings as they are. Here, that step is skipped.

    as_in_paper: take only these steps. Otherwise, wrappers, thousands separators, leading and trailing zeros
    of numbers, spaces of LaTeX and the signs $, % and ° are removed, too.
    """
    if not as_in_paper:
        text = unwrap(text)
        for sign, replacement in {"−": "-", "–": "-", "π": r"\pi", "∞": r"\infty"}.items():
            text = text.replace(sign, replacement)
        text = re.sub(r"\\?[$%]|°", "", text)
        text = re.sub(r"(?<!\\)\\[,;: ]|~", " ", without_separators(text))

    for part, replacement in [("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")]:
        text = text.replace(part, replacement)
    for part in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$"):
        text = text.replace(part, "")
    if text.count(r"\text{ ") == 1:  # With a space it is a unit (5\text{ cm}), else an answer (\text{Navin}).
        text = text.split(r"\text{ ")[0]
    for part, replacement in [(r"\%", ""), (" .", " 0."), ("{.", "{0.")]:
        text = text.replace(part, replacement)
    text = "0" + text if text.startswith(".") else text

    left_side, *right_sides = text.split("=")
    if len(right_sides) == 1 and len(left_side) <= 2:  # "k=" and "k =" name the unknown.
        text = right_sides[0]

    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = text.replace(" ", "")
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)  # \frac1{72}
    text = re.sub(r"\\frac([^{])(.)", r"\\frac{\1}{\2}", text)  # \frac12
    if not as_in_paper:
        text = "".join(text.split())
        number = format(Decimal(text), "f") if NUMBER.fullmatch(text) else ""
        text = number.rstrip("0").rstrip(".") if "." in number else number or text
    text = r"\frac{1}{2}" if text == "0.5" else text
    # A pattern recognises integers, because int(), which MATH uses, raises an error for thousands of digits.
    return re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)


def read_problems(
    dataset,
    splits,
    tokenizer,
    max_prompt_tokens,
    suffix=None,
    enable_thinking=False,
    max_eval_problems=None,
    objectives=("accuracy",),
):
    """
    Returns the problems of each of `splits`, by name: lists of dictionaries with prompt (text), prompt_ids
    (token ids), answer (text) and all other columns. Prompts over `max_prompt_tokens` tokens are left out.

    suffix: text after each problem (None: the paper's on the paper's datasets, none on others).
    enable_thinking: passed to the chat template. max_eval_problems: how many problems of the splits test and
    validation are used at most (None: all). They are evenly spaced, and so the same in each run. objectives:
    names. If none of them needs an answer, a row may have none, and then its answer is None. ValueError if a
    split or a row cannot be used.
    """
    is_paper = dataset in PAPER_DATASETS
    if suffix is None:
        suffix = PAPER_SUFFIX if is_paper else ""
    functions = [OBJECTIVES[name] for name in objectives]
    data, problems = load_splits(dataset), {}

    for split in splits:
        if not data.get(split):
            raise ValueError(f"split {split} is missing or empty (a single split needs 5 rows to be divided)")
        rows = read_rows(data[split], split, suffix, any(map(needs_answer, functions)), is_paper)
        if MATH_ACCURACY in functions:
            check_answers([row["answer"] for row in rows], split)
        prompts, token_ids = tokenize([row["prompt"] for row in rows], tokenizer, enable_thinking)
        rows = [
            {**row, "prompt": prompt, "prompt_ids": ids}
            for row, prompt, ids in zip(rows, prompts, token_ids)
            if len(ids) <= max_prompt_tokens
        ]
        if not rows:
            raise ValueError(f"all prompts of split {split} are over {max_prompt_tokens} tokens")
        if left_out := len(prompts) - len(rows):
            print(f"{split}: left out {left_out} of {len(prompts)} prompts, over {max_prompt_tokens} tokens")

        n = len(rows) if split == "train" else min(max_eval_problems or len(rows), len(rows))
        if n < len(rows):
            print(f"{split}: {n} of {len(rows)} problems are used, evenly spaced (--max-eval-problems)")
        problems[split] = [rows[i * len(rows) // n] for i in range(n)]

    first = next(iter(problems.values()))[0]
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in problems.items())
    print(f"{counts} problems; the first is {first['prompt']!r}, and its answer is {first['answer']!r}")
    return problems


def problems_of_step(problems, step, size, seed):
    """Returns the `size` problems of a step (1, 2, ...). Each epoch has all problems in a new order."""
    n, places, orders = len(problems), range((step - 1) * size, step * size), {}
    for epoch in {place // n for place in places}:
        orders[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return [problems[orders[place // n][place % n]] for place in places]


def load_splits(dataset):
    """
    Returns the splits of a dataset, by name, as lists of rows (dictionaries). The dataset is a folder, a file
    (json, jsonl, csv, parquet), a name on the Hub (NAME or NAME:CONFIGURATION), or one of PAPER_DATASETS.

    Missing splits are made as in the paper: a single split is shuffled and divided into 60% train, 20% test
    and 20% validation; with train and test alone, the first half of test becomes validation.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # The exception below has the message.
    try:
        splits = load_files(dataset)
    except Exception as error:  # Each file type has a reader with exceptions of its own.
        cause = error.__cause__ or error
        kinds = "a folder, a file (json, jsonl, csv, parquet) or a name on the Hub"
        raise ValueError(f"{dataset} cannot be read as {kinds}: {str(cause) or repr(cause)}") from None

    if len(splits) == 1 and len(rows := next(iter(splits.values()))) >= 5:
        # Shuffle like train_test_split(seed=42) of the library datasets, which the paper's code calls twice.
        rest, train = np.split(np.random.default_rng(42).permutation(len(rows)), [math.ceil(0.4 * len(rows))])
        validation, test = np.split(np.random.default_rng(42).permutation(rest), [math.ceil(0.5 * len(rest))])
        sizes = f"{len(train)} train, {len(test)} test, {len(validation)} validation problems"
        print(f"the dataset has one split, which is divided into {sizes}")
        places = {"train": train, "test": test, "validation": validation}
        return {split: [rows[i] for i in places[split]] for split in places}
    if splits.keys() == {"train", "test"} and (half := len(splits["test"]) // 2):
        print(f"no validation split: it takes the first {half} of the {len(splits['test'])} test problems")
        return {**splits, "validation": splits["test"][:half], "test": splits["test"][half:]}
    return splits


def load_files(dataset):
    """Returns the splits that a dataset has, by name, as lists of rows. A path has no wildcards."""
    path = Path(dataset)
    if path.is_file():
        return {"train": read_file(dataset)}
    if path.is_dir() and not any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        source = [dataset]
        if glob.has_magic(dataset):  # The library takes an escaped name only after a file type.
            types = {FILE_TYPES.get(file.suffix[1:]) for file in path.rglob("*")} - {None}
            source = [min(types, default="json"), None, glob.escape(dataset)]
        files = datasets.load_dataset_builder(*source).config.data_files
        return {str(split): sum(map(read_file, files[split]), []) for split in files}

    source = PAPER_DATASETS.get(dataset, dataset).split(":", 1)
    try:
        splits = datasets.load_from_disk(dataset) if path.is_dir() else datasets.load_dataset(*source)
        splits = splits if isinstance(splits, dict) else {"train": splits}
    except datasets.exceptions.DatasetGenerationError:  # The columns of the splits differ.
        builder, splits = datasets.load_dataset_builder(*source), {}
        for split, files in (builder.config.data_files or {}).items():
            splits[split] = datasets.load_dataset(builder.name, data_files={split: files})[split]
    return {str(split): table_rows(rows.with_format("arrow")[:]) for split, rows in splits.items()}


def read_file(path):
    """Returns the rows of a json, jsonl, csv or parquet file. Answers keep the digits that were written."""
    raw = fsspec.filesystem("file").open(path, compression="infer").read()
    ends = [end[1:] for end in reversed(Path(path.lower()).suffixes)]
    file_type = next((FILE_TYPES[end] for end in ends if end in FILE_TYPES), "json")
    try:
        if file_type == "parquet":
            return table_rows(pyarrow.parquet.read_table(pyarrow.BufferReader(raw)))
        text = raw.decode("utf-8-sig")
        if file_type == "csv":
            separator = max(",;\t", key=text.partition("\n")[0].count)
            as_text = {name: str for name in QUESTION_COLUMNS + ANSWER_COLUMNS}
            table = pandas.read_csv(io.StringIO(text), sep=separator, converters=as_text)
            if not isinstance(table.index, pandas.RangeIndex):  # pandas takes the first fields as names.
                raise ValueError("the rows have more fields than the header: put quotes around commas")
            return table.astype(object).where(table.notna(), None).to_dict("records")
        if not text.lstrip().startswith("["):  # Lines of JSON become a list.
            text = "[" + ",\n".join(filter(str.strip, text.split("\n"))) + "]"
        rows, exact_rows = json.loads(text), json.loads(text, parse_float=str)
        for row, exact in zip(rows, exact_rows):
            row |= {name: exact[name] for name in ANSWER_COLUMNS if name in exact}
        return rows
    except UnicodeDecodeError:
        encoding = "UTF-16" if b"\0" in raw else "WINDOWS-1252"
        raise ValueError(
            f"{path} is not in UTF-8; if it is text, try: iconv -f {encoding} -t UTF-8"
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid {file_type} file: {error}") from None


def table_rows(table):
    """Returns the rows of an Arrow table. A float in a column of answers keeps the column's precision."""

    def with_precision(value, kind):
        if isinstance(value, list):
            return [with_precision(item, kind.value_type) for item in value]
        if isinstance(value, dict):
            return {name: with_precision(item, kind.field(name).type) for name, item in value.items()}
        return getattr(np, f"float{kind.bit_width}")(value) if isinstance(value, float) else value

    rows, names = table.to_pylist(), set(ANSWER_COLUMNS) & set(table.column_names)
    for row in rows:
        row |= {name: with_precision(row[name], table.schema.field(name).type) for name in names}
    return rows


def read_rows(rows, split, suffix, needs_answers, is_paper):
    """Returns `rows` with prompts (chats with `suffix` at the end) and answers. ValueError names the row."""
    # Of several columns, read the one with the most text: a conversation rather than a bare question.
    sizes = {name: sum(len(str(row.get(name) or "")) for row in rows) for name in QUESTION_COLUMNS}
    columns, problems = sorted(QUESTION_COLUMNS, key=sizes.get, reverse=True), []
    if any(row.get(columns[0]) and row.get(columns[1]) for row in rows):
        print(f"{split}: the questions are in column {columns[0]}, which has more text than {columns[1]}")
    for number, row in enumerate(rows, 1):
        try:
            chat, answer = read_question(row, columns), read_answer(row, is_paper)
            if answer is None and needs_answers:
                raise ValueError("column answer, reward_model.ground_truth or solution needs one value")
        except ValueError as error:
            raise ValueError(f"row {number} of split {split}: {error}: {str(row)[:80]}") from None
        chat[-1]["content"] += suffix
        problems.append({**row, "prompt": chat, "answer": answer, "as_in_paper": is_paper})
    return problems


def read_question(row, columns=QUESTION_COLUMNS):
    """Returns the first of `columns` with a value, as chat messages with text. ValueError if not possible."""
    name = next((name for name in columns if str(row.get(name) or "").strip()), None)
    if name is None:
        raise ValueError(f"one of the columns {', '.join(QUESTION_COLUMNS)} needs a value")
    messages = [{"role": "user", "content": row[name]}] if isinstance(row[name], str) else row[name]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"column {name} needs text or chat messages")
    chat = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content") or ""
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        fault = None
        if not isinstance(role, str) or number == len(messages) and role != "user":
            fault = f"has role {role!r}: each message needs a role, and the last one must be user"
        elif not all(isinstance(text, str) for text in texts):
            fault = "has content that is not text: leave out images and other parts"
        elif role in ("user", "assistant") and not message.get("tool_calls") and not "".join(texts).strip():
            fault = "has no content: write some, or leave out the message"
        if fault:
            raise ValueError(f"message {number} of column {name} {fault}")
        # Arrow adds all keys to all messages, with the value None.
        filled = {key: value for key, value in message.items() if value is not None}
        chat.append({**filled, "content": "".join(texts)})
    return chat


def read_answer(row, is_paper=False):
    """
    Returns the ground truth in a row's first of answer, reward_model.ground_truth (verl) and solution that
    has a value, or None. It is text with the digits that were written. ValueError if they are lost.
    """
    verl = row["reward_model"].get("ground_truth") if isinstance(row.get("reward_model"), dict) else None
    values = [row.get("answer"), verl, row.get("solution")]
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    values = [value for value in values if value is not None and value == value and str(value).strip(" []")]
    if not values or isinstance(value := values[0], (list, dict)):
        return None
    if isinstance(value, (float, np.floating)):
        if not abs(value) < 2 / np.finfo(value).eps:  # Above, not every integer is a float.
            raise ValueError(f"the answer {value} may have lost digits as a float: write it as text")
        value = np.format_float_positional(value, trim="-")
    text = str(value).removesuffix(" 00:00:00")  # Some loaders turn a date into a time.
    if is_paper:
        boxed = last_boxed(text)
        return text if boxed is None else boxed
    return bare_number(unwrap(text)).strip() or None


def check_answers(answers, split):
    """Warns of answers that a box is unlikely to match: broken or long text, or text among numbers."""
    # Commands, environments and units of LaTeX do not count as words.
    no_words = re.compile(r"\\(?:text|mbox)\{ .*|\\(?:begin|end)\{\w+\*?\}|\\[a-zA-Z]+")
    texts = [no_words.sub(" ", answer) for answer in answers]
    words = [len(re.findall(r"[^\W\d_]{2,}", text)) for text in texts]
    max_words = 1 if words.count(0) > len(words) / 2 else 4
    unlikely = []
    for number, (answer, text, count) in enumerate(zip(answers, texts, words), 1):
        is_broken = last_boxed(rf"\boxed{{{answer}}}") != answer or re.search(r"\n|<\w|://|\",", answer)
        if is_broken or count > max_words or (count == max_words == 1 and re.search(r"\d", text)):  # 5 apples
            unlikely.append(f"row {number}, {answer!r:.100}")
    if unlikely:
        count = f"{len(unlikely)} of {len(answers)} answers cannot be earned in a box, or hardly ever"
        print(f"{split}: warning: {count}, such as that of {unlikely[0]}")


def tokenize(chats, tokenizer, enable_thinking):
    """Returns prompts as texts and as token ids. Without a chat template, each message is a line of text."""
    if tokenizer.chat_template:
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": enable_thinking}
        try:
            prompts, start = tokenizer.apply_chat_template(chats, **options), []
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the problems: {error}") from None
    else:
        prompts = ["".join(message["content"] + "\n" for message in chat) for chat in chats]
        # A tokenizer's special tokens before a text belong to a prompt. Those after a text would end it.
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        with_special = tokenizer("a")["input_ids"]
        start = with_special[: with_special.index(plain[0])]
    return prompts, [start + ids for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]


def turn_end(tokenizer):
    """
    Returns the id of the added token that ends a turn in the chat template, or None.

    This token must end responses, too, but the generation settings of a base model do not list it. It need
    not be declared special. A word of the vocabulary that follows a turn, like "Human", does not count.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "XYZ"}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("XYZ")[2].lstrip()
    first = next(iter(tokenizer(rest, add_special_tokens=False)["input_ids"]), None)
    return first if first in tokenizer.added_tokens_decoder else None
