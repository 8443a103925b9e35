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
problem's row, and returns a number. Its performance is its reward, unless PERFORMANCE has a function for it.
"""

import ast
import contextlib
import functools
import glob
import inspect
import json
import math
import os
import re
import traceback
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import torch
from jinja2 import TemplateError

OBJECTIVES = {}
# The performance of an objective is what evaluations report, and what the hypervolume and Nash weighting use.
# By default, it is the reward. A function of (reward, length, limit) here replaces the default. The function
# gets the reward and length of one response, or their means over several. It must be affine in both, so that
# the performance of the means is the mean performance. Conciseness has a function because its reward depends
# on a mean length that moves, so it cannot compare models.
PERFORMANCE = {"conciseness": lambda reward, length, limit: 1 - length / limit}
# The paper's datasets: short names, names on the Hub, and the text that follows each problem.
PAPER_DATASETS = {
    "math-500": "HuggingFaceH4/MATH-500",
    "math-algebra": "DigitalLearningGmbH/MATH-lighteval:algebra",
}
PAPER_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."
QUESTION_COLUMNS = ["problem", "question", "prompt"]
FILE_TYPES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
FILE_TYPES |= dict.fromkeys([".json", ".jsonl", ".ndjson"], "json")
ANSWER_COLUMNS = ["answer", "reward_model.ground_truth", "solution"]  # verl has a column reward_model.
SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation", "dev": "validation"}


def objective(function, name=None):
    """
    Registers `function`, any callable, in OBJECTIVES and returns it unchanged.

    name: by default, that of the function, or of the class of an instance. An `accuracy` of one's own
    replaces that of this file. ValueError if another name is taken.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    name = name or getattr(inner, "__name__", type(inner).__name__)
    if OBJECTIVES.get(name, function) != function and name != "accuracy":
        raise ValueError(f"objective {name} exists; choose a name, as in objective(function, name='mine')")
    OBJECTIVES[name] = function
    return function


def needs_answer(function):
    """
    Whether each row needs an answer: the objective has a parameter `answer` without a default. A function of
    `**kwargs` alone does not say what it reads, so rows may have no answer, and kwargs["answer"] may be None.
    """
    parameter = inspect.signature(function).parameters.get("answer")
    return parameter is not None and parameter.default is parameter.empty


def score(objectives, responses, problems, lengths, mean_length, step=0, split="train"):
    """
    Returns the rewards of N responses in K objectives, named as in OBJECTIVES: N lists of K floats.

    problems: N dictionaries, as from `read_problems`. lengths, mean_length: in tokens. split: for errors.
    A reward is what float() converts to a finite number (else ValueError or the exception of float()). An
    exception gets a note that names the objective, the split, the step and the prompt.
    """
    rewards = []
    for response, problem, length in zip(responses, problems, lengths, strict=True):
        arguments = {"response": response, "length": length, "mean_length": mean_length, "step": step}
        rewards.append([])
        for name in objectives:
            try:
                preset = getattr(OBJECTIVES[name], "keywords", {})  # those of a functools.partial
                value = OBJECTIVES[name](**{**problem, **arguments, **preset})
                rewards[-1].append(float(value))
                if not math.isfinite(rewards[-1][-1]):
                    raise ValueError(f"a reward must be a finite number, not {value}")
            except Exception as error:
                place, prompt = f"split {split}, step {step}", str(problem.get("prompt"))[:160]
                error.add_note(f"objective {name}, {place}\nthe prompt begins with {prompt!r}")
                raise
    return rewards


def performance(objectives, rewards, length, limit):
    """
    Returns the performance in K objectives: K floats. rewards (K numbers) and length (in tokens) are those of
    one response, or means over several. limit: max new tokens.
    """
    functions = [PERFORMANCE.get(name, lambda reward, *_: reward) for name in objectives]
    return [float(f(reward, length, limit)) for f, reward in zip(functions, rewards, strict=True)]


@objective
def accuracy(response, answer, as_in_paper=False, **_):
    r"""
    Returns 1.0 if the last `\boxed{...}` in `response` equals `answer` after both are normalised, else 0.0.

    Normalising unifies notation but computes nothing, so 2/4 is not 1/2. `\boxed 5` counts as a box. A
    response without a box is wrong, and so is one whose last box is not closed. as_in_paper: compare as the
    paper does, see `normalise`.
    """
    if not as_in_paper:
        response = response.replace(r"\boxed {", r"\boxed{")
    boxed = last_boxed(response)
    return float(boxed is not None and normalise(boxed, as_in_paper) == normalise(answer, as_in_paper))


@objective
def conciseness(length, mean_length, **_):
    """
    Returns 1.0 if a response is shorter than `mean_length`, else 0.0. In training, `mean_length` is the mean
    over all rollouts so far, those of the current step included.
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
    Returns 1.0 if `response` has steps and a `\boxed{...}` that is not blank, right or wrong, else 0.0. Steps
    are two or more enumerators, or two or more ordinals. Repeated ones count. Source: the paper's code.
    """
    box = FILLED_BOX.search(response)
    if box is None or "}" not in response[box.end() :]:
        return 0.0
    return float(len(ENUMERATOR.findall(response)) >= 2 or len(ORDINAL.findall(response)) >= 2)


def last_boxed(text, default=None):
    r"""Returns the content of the last `\boxed{...}` or `\boxed 5$`; `default` if it is open or missing."""
    _, command, rest = text.rpartition(r"\boxed")
    if command and rest.startswith(" "):
        return rest[1:].split("$")[0]
    if command and rest.startswith("{"):
        depth = 0
        for brace in re.finditer(r"[{}]", rest):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                return rest[1 : brace.start()]
    return default


# What people write around an answer. The group that matches is the text inside.
WRAPPERS = [
    r"\$\$?((?:\\.|[^$\\])+)\$\$?",  # $...$, $$...$$
    r"\\[(\[]((?:(?!\\[][()]).)+)\\[)\]]",  # \(...\), \[...\]
    r"\\begin\{(?:equation|align|gather|displaymath|math)\*?\}(.+)\\end\{\w+\*?\}",
    r"\\(?:text|mbox|fbox|boldsymbol|(?:text|math)(?:bf|it|rm|sf|tt))\{((?:[^{}]|\{[^{}]*\})*)\}",
    r"\\displaystyle\s(.+)",
    r"\*\*([^*]+)\*\*|`([^`]+)`",  # bold and code in Markdown
    r"""\[([^][,"']*)\]|\[\s*"([^"]*)"\s*\]|\[\s*'([^']*)'\s*\]""",  # a list of one
    r'"([^"]*)"',
]
WRAPPER = re.compile("|".join(WRAPPERS), re.DOTALL)
# A separator is a comma, an apostrophe, an underscore, a space, or LaTeX for one of them, as in 2{,}125.
# Groups of two digits are Indian notation. With points, there must be two groups: 1.234 is a decimal.
SEPARATOR = r"(?:,|['’_~\s]|\{,\}|,?\\[!,;: ])"
GROUPS = rf"(?:{SEPARATOR}\d{{3}})+|(?:,\d\d)+,\d{{3}}|(?:\.\d{{3}}){{2,}}"
GROUPED = re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{GROUPS})(?!\d|,\d)")
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
# Text after a number and a space is a unit, as in 5\,\text{cm}, if it is no symbol or function, as in
# 3+2\,\mathrm{i}. It changes the number if it has one of NO_UNIT, as in 5\text{ or }6.
SPACE, NO_WORD = r"(?:\s|~|\\[,;:! ])", r"(?:[deijxyzA-E]|sin|cos|tan|log|ln|exp)\}"
UNIT = re.compile(
    rf"(?<=[\d}}i])(?:{SPACE}+\\(?:text|mathrm)\{{(?!{NO_WORD})|\\(?:text|mathrm)\{{(?={SPACE})){SPACE}*"
)
NO_UNIT = re.compile(r"(?i)(?<![\^{_])(?<!\{-)\d|\b(?:and|or)\b|illion|thousand|hundred|\b[ap]\.?m\b")


def unwrap(text):
    """
    Returns the answer in a ground truth or a box: the text in the last answer tags, after the last </think>
    or ####, or in the last box. A list of one in JSON, what WRAPPER matches around the answer, and a final
    period are removed.
    """
    tag = "answer" if "</answer>" in text.lower() else "solution"
    text = ([text] + re.split(f"(?i)</{tag}>", text))[-2]
    text = re.split(r"(?i)<(?:answer|solution)>|</think>|####", text)[-1]
    with contextlib.suppress(ValueError, RecursionError):
        items = json.loads(text, parse_float=str, parse_int=str) if text.lstrip().startswith("[") else []
        # LaTeX with single backslashes, as in "\frac", would lose them and get control characters.
        is_text = len(items) == 1 and isinstance(items[0], str) and not re.search(r"[\x00-\x1f]", items[0])
        text = items[0] if is_text else text
    text = last_boxed(text.replace(r"\boxed {", r"\boxed{"), default=text)
    for _ in range(8):  # Wrappers may be nested. A limit keeps the time linear in the text.
        text = re.sub(r"(?<!\.)\.\Z", "", text.strip()).strip()
        match = WRAPPER.fullmatch(text)
        if match is None:
            break
        text = match[match.lastindex]
    return text


def bare_number(text):
    r"""
    Returns `text` without thousands separators (2125 for 2{,}125), and a number in plain digits (33 for 033,
    2.5 for 2.50). In brackets, as in (1,234), a comma may separate numbers, so it stays.
    """
    if not re.search(r"[(\[]|\\\{", text):
        text = GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    if not NUMBER.fullmatch(text):
        return text
    number = format(Decimal(text), "f")
    return number.rstrip("0").rstrip(".") if "." in number else number


def normalise(text, as_in_paper=False):
    r"""
    Returns an answer in uniform notation: the steps of `strip_string` in the evaluation of MATH (Hendrycks et
    al., arXiv:2103.03874), in order. Where a step fails (two units, a bare `\frac`), MATH compares the
    strings as they are. Here, that step is skipped.

    as_in_paper: take only these steps. By default, `unwrap` and `bare_number` are applied. Units, spaces of
    LaTeX, and the signs $, % and ° at the ends are removed. Dashes, True and False, and the sign of a
    fraction get one notation.
    """
    if not as_in_paper:
        text = bare_number(unwrap(text)).replace("−", "-").replace("–", "-")
        text = text.lower() if text in ("True", "False") else text  # JSON has true, Python prints True.
        text = text if text.startswith(r"\text") else re.sub(UNIT, r"\\text{ ", text, count=1)
        text = re.sub(r"(?i)\b([ap])\.?m\b\.?", lambda match: match[1].lower() + "m", text)
        text = re.sub(r"(?:\s|~|(?<!\\)\\[,;: ])+", " ", text).strip()
        text = re.sub(r"\A\\?\$|(\\?[$%]|°)\Z", "", text)
    for part, replacement in [("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac")]:
        text = text.replace(part, replacement)
    for part in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$"):
        text = text.replace(part, "")
    if text.count(r"\text{ ") == 1:  # With a space it is a unit (5\text{ cm}), else an answer (\text{Navin}).
        value, unit = text.split(r"\text{ ")
        text = value if as_in_paper or not NO_UNIT.search(unit) else text
    for part, replacement in [(r"\%", ""), (" .", " 0."), ("{.", "{0.")]:
        text = text.replace(part, replacement)
    text = "0" + text if text.startswith(".") else text

    left_side, *right_sides = text.split("=")
    if len(right_sides) == 1 and len(left_side) <= 2:  # "k=" and "k =" name the unknown.
        text = right_sides[0] if as_in_paper or not re.search(r"[\d<>!-]", left_side) else text
    text = text if as_in_paper else bare_number(text.strip())

    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    # Between digits, a space that is no separator has a meaning: 2 1/2 is not 21/2.
    spaces = " +" if as_in_paper or r"\frac" in text else r"(?<!\d) +| +(?!\d)|(?<=\.\d{3}) "
    text = re.sub(spaces, "", text)
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)  # \frac1{72}
    text = re.sub(r"\\frac([^{])(.)", r"\\frac{\1}{\2}", text)  # \frac12
    text = r"\frac{1}{2}" if text == "0.5" else text
    # A pattern recognises integers, because int(), which MATH uses, raises an error for thousands of digits.
    text = re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)
    # One notation for -1/2. A sum, as in (-1+x)/2, keeps its sign.
    minus = r"\A\\frac\{-((?:[^{}+-]|\{[^{}]*\})*)\}"
    return text if as_in_paper else re.sub(minus, r"-\\frac{\1}", text)


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
    any_needs_answer = any(needs_answer(OBJECTIVES[name]) for name in objectives)
    data, problems = load_splits(dataset), {}

    for split in splits:
        if not data.get(split, [[]])[0]:
            message = f"split {split} is missing or empty; {dataset} has {', '.join(data) or 'no split'}"
            raise ValueError(f"{message} (a single split needs 5 rows to be divided)")
        rows = read_rows(*data[split], split, suffix, any_needs_answer, is_paper)
        if "accuracy" in objectives and any_needs_answer:
            check_answers({number: row["answer"] for (number, _), row in zip(data[split][0], rows)}, split)
        texts = tokenize([row["prompt"] for row in rows], tokenizer, enable_thinking)
        rows = [{**row, "prompt": prompt, "prompt_ids": ids} for row, prompt, ids in zip(rows, *texts)]
        count, rows = len(rows), [row for row in rows if len(row["prompt_ids"]) <= max_prompt_tokens]
        if not rows:
            raise ValueError(f"all prompts of split {split} are over --max-prompt-tokens {max_prompt_tokens}")
        if left_out := count - len(rows):
            print(f"{split}: left out {left_out} of {count} prompts, over {max_prompt_tokens} tokens")

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
    Returns the splits of a dataset, by name: pairs of numbered rows, [(number, row), ...], and the types of
    their columns. The dataset is a folder, a file (json, jsonl, csv, tsv, parquet), a name on the Hub (NAME
    or NAME:CONFIGURATION), or one of PAPER_DATASETS.

    Missing splits are made as in the paper: a single split is shuffled and divided into 60% train, 20% test
    and 20% validation; with train and test alone, the first half of test becomes validation. A validation
    split without a test split is used as test.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # The exception below has the message.
    try:
        splits = {}
        for name, rows in load_files(dataset).items():
            rows = rows.with_format(None) if isinstance(rows, datasets.Dataset) else rows
            splits[name] = list(enumerate(rows, 1)), getattr(rows, "features", {})
    except Exception as error:  # Each file type has a reader with exceptions of its own.
        message = str(error.__cause__ or error) or f"{type(error).__name__}, perhaps because a file is empty"
        if re.search("UnicodeDecodeError|Invalid UTF-?8", "".join(traceback.format_exception(error))):
            message = "the text is not in UTF-8; try: iconv -f UTF-16 -t UTF-8 (or -f WINDOWS-1252)"
        raise ValueError(f"{dataset} cannot be read: {message}") from None

    if len(splits) == 1 and len((only := next(iter(splits.values())))[0]) >= 5:
        rows, features = only
        index = datasets.Dataset.from_dict({"row": range(len(rows))})
        train, rest = index.train_test_split(0.4, seed=42).values()
        test, validation = rest.train_test_split(0.5, seed=42).values()
        parts = {"train": train, "test": test, "validation": validation}
        splits = {name: ([rows[i] for i in part["row"]], features) for name, part in parts.items()}
        sizes = ", ".join(f"{len(rows)} {name}" for name, (rows, _) in splits.items())
        print(f"the dataset has one split, which is divided into {sizes} problems")
    for name in list(splits):  # such as Train, test_sft, val or dev
        splits.setdefault(split_name(name), splits[name])
    if "test" not in splits and "validation" in splits:
        print("no test split: the validation split is used as test")
        splits["test"] = splits.pop("validation")
    if "test" in splits and "validation" not in splits and (half := len(splits["test"][0]) // 2):
        rows, features = splits["test"]
        print(f"no validation split: it takes the first {half} of the {len(rows)} test problems")
        splits |= {"validation": (rows[:half], features), "test": (rows[half:], features)}
    return splits


def split_name(name):
    """Returns train, test or validation for the name of a split or file that begins like it, else `name`."""
    return next((split for start, split in SPLIT_NAMES.items() if name.lower().startswith(start)), name)


def load_files(dataset):
    """Returns the splits that a dataset has, by name: a list of rows, or a Dataset of the library."""
    path = Path(os.path.abspath(dataset))  # The library cannot read a file in the folder ".".
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        splits = datasets.load_from_disk(str(path))
        return splits if isinstance(splits, dict) else {"train": splits}
    if not path.exists():
        if dataset.startswith((".", "/", "~")) or path.suffix in FILE_TYPES:
            raise ValueError("there is no such file or folder")
        source = PAPER_DATASETS.get(dataset, dataset).split(":", 1)
        try:
            return datasets.load_dataset(*source)
        except datasets.exceptions.DatasetGenerationError:  # The columns of the splits differ.
            builder = datasets.load_dataset_builder(*source)
            return read_files(builder.name, builder.config.data_files)

    kind = FILE_TYPES.get(path.suffix.lower())
    if path.is_file() and kind:
        return read_files(kind, {"train": [str(path)]})
    if path.is_file() and path.suffix not in (".gz", ".bz2", ".xz", ".zip", ".zst"):
        raise ValueError(f"its name must end with one of {', '.join(FILE_TYPES)}")
    if path.is_dir() and glob.has_magic(str(path)):  # The library reads a literal name only with a file type.
        kinds = [FILE_TYPES[file.suffix] for file in path.rglob("*") if file.suffix in FILE_TYPES]
        builder = datasets.load_dataset_builder((kinds or ["json"])[0], data_dir=glob.escape(str(path)))
    elif path.is_dir():
        builder = datasets.load_dataset_builder(str(path))
    else:
        builder = datasets.load_dataset_builder(str(path.parent), data_files=path.name)
    splits = builder.config.data_files
    if len(splits) == 1:  # The library takes Train.jsonl and Test.jsonl for one split.
        [files] = splits.values()
        names = [split_name(Path(file).stem) for file in files]
        if {"train", "test"} <= {*names}:
            splits = {name: [file for file, other in zip(files, names) if other == name] for name in names}
    return read_files(builder.name, splits)


def read_files(kind, splits):
    """Returns the rows of splits {name: files}, read one by one, because their columns may differ."""
    result = {}
    for split, files in splits.items():
        if kind == "json" and all(os.path.isfile(x) and Path(x).suffix.lower() in FILE_TYPES for x in files):
            result[str(split)] = sum(map(read_json, files), [])
            continue
        options = {}
        if kind == "csv":  # Keep answers such as 007 and None as they are written.
            options = {"sep": "\t" if ".tsv" in Path(files[0]).name.lower() else ","}
            options |= {"keep_default_na": False, "na_values": [""]}
            options["converters"] = dict.fromkeys(QUESTION_COLUMNS + ANSWER_COLUMNS, str)
        files = [glob.escape(file) for file in files]
        result[str(split)] = rows = datasets.load_dataset(kind, data_files=files, split="train", **options)
        if kind == "csv" and any(";" in name for name in rows.column_names):
            raise ValueError("separate the columns with commas, not with semicolons")
        if kind == "csv" and "__index_level_0__" in rows.column_names:
            raise ValueError("the rows have more fields than the header; put quotes around text with commas")
    return result


def read_json(file):
    """
    Returns the rows of a JSON or JSON Lines file. Decimal numbers in the answer columns become text, with the
    digits that were written. The library's reader rounds them, and it changes dates.
    """
    text = Path(file).read_text("utf-8-sig")
    rows, written, end = [], [], 0
    try:
        while start := re.compile(r"\S").search(text, end):
            rows.append(json.JSONDecoder().raw_decode(text, start.start())[0])
            value, end = json.JSONDecoder(parse_float=str).raw_decode(text, start.start())
            written.append(value)
    except json.JSONDecodeError as error:
        line = text.count("\n", 0, start.start()) + 1
        raise ValueError(f"line {line} of {file} is not JSON: {error.msg}") from None
    if not rows:
        raise ValueError(f"{file} is empty")
    if "\\ud" in text:
        json.dumps(rows, ensure_ascii=False).encode()  # ValueError for half a surrogate pair
    rows, written = (x[0] if len(x) == 1 and isinstance(x[0], list) else x for x in (rows, written))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} needs an object, in braces, for each row")
    names = dict.fromkeys(name for row in rows for name in row)  # A row without a column has None there.
    for row, exact in zip(rows, written):
        row |= {name: exact[name] for name in set(ANSWER_COLUMNS) & row.keys()}
        if isinstance(row.get("reward_model"), dict):
            row["reward_model"]["ground_truth"] = exact["reward_model"].get("ground_truth")
    return [{**names, **row} for row in rows]


def read_rows(numbered_rows, features, split, suffix, needs_answers, is_paper):
    """Returns the rows of a split, with prompts (chats with `suffix` at the end) and answers."""
    # Of several columns, prefer the one with the most text: a conversation rather than a bare question. Text
    # that is the same in several rows counts once.
    texts = {name: {str(row.get(name) or "") for _, row in numbered_rows} for name in QUESTION_COLUMNS}
    sizes = {name: sum(map(len, values)) for name, values in texts.items()}
    columns, problems = sorted(QUESTION_COLUMNS, key=sizes.get, reverse=True), []
    if sizes[columns[1]]:
        print(f"{split}: column {columns[0]} has the most text and is read where it has a value")
    for number, row in numbered_rows:
        try:
            chat, answer = read_question(row, columns), read_answer(row, is_paper, features, needs_answers)
        except ValueError as error:
            raise ValueError(f"row {number} (split {split}): {error}: {str(row)[:80]}") from None
        chat[-1]["content"] += suffix
        # Readers turn text like 2024-03-01 into a date. Objectives get text.
        dates = {key: str(v).removesuffix(" 00:00:00") for key, v in row.items() if hasattr(v, "isoformat")}
        problems.append({**row, **dates, "prompt": chat, "answer": answer, "as_in_paper": is_paper})
    return problems


def parsed(value):
    """Returns the list or dictionary that a text is in JSON or Python, as in csv files, else `value`."""
    if isinstance(value, str) and re.match(r"\s*(\[\s*)?\{", value):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(value.replace("}\n {", "}, {"))  # NumPy prints no commas.
    return value


def read_question(row, columns=QUESTION_COLUMNS):
    """Returns the first of `columns` with a value, as chat messages with text. ValueError if not possible."""
    name = next((name for name in columns if str(row.get(name) or "").strip()), None)
    messages = row.get(name)
    chat = parsed(messages)
    if isinstance(chat, list) and all(isinstance(message, dict) and "role" in message for message in chat):
        messages = chat
    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"one of the columns {', '.join(QUESTION_COLUMNS)} needs text or chat messages")
    chat = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content") or ""
        parts = content if isinstance(content, list) else [content]
        texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
        may_be_empty = role not in ("user", "assistant") or message.get("tool_calls")
        if not isinstance(role, str) or number == len(messages) and role != "user":
            raise ValueError(f"message {number} of column {name} needs a role, and that of the last is user")
        if not all(isinstance(text, str) for text in texts) or not (may_be_empty or "".join(texts).strip()):
            raise ValueError(f"message {number} of column {name} needs text, and no images or other parts")
        # The library adds all keys to all messages, with the value None.
        filled = {key: value for key, value in message.items() if value is not None}
        chat.append({**filled, "content": "".join(texts)})
    return chat


def read_answer(row, is_paper=False, features=None, is_needed=False):
    """
    Returns the first of ANSWER_COLUMNS with a value, as text, or None. ValueError if the answer is needed and
    there is none, or if it is a float that may have lost digits. features: the types of the columns, from
    which the precision of a float is known (None: float64).
    """
    reward_model, column = parsed(row.get("reward_model")), "reward_model.ground_truth"
    verl = reward_model.get("ground_truth") if isinstance(reward_model, dict) else row.get(column)
    values = dict(zip(ANSWER_COLUMNS, [row.get("answer"), verl, row.get("solution")]))
    values = {name: v[0] if isinstance(v, list) and len(v) == 1 else v for name, v in values.items()}
    names = [name for name, v in values.items() if v is not None and v == v and str(v).strip(" .[]")]
    value = values[names[0]] if names else ""
    feature = features.flatten().get(names[0]) if features and names else None
    if isinstance(feature, datasets.ClassLabel):
        value = feature.int2str(value)
    if isinstance(value, float):
        kind = re.search("float(16|32)", str(feature))
        value = getattr(np, kind[0])(value) if kind else np.float64(value)
        if is_needed and not abs(value) < 2 / np.finfo(value).eps:  # Above, not every integer is a float.
            raise ValueError(f"the answer {value} may have lost digits as a float; write it as text")
        value = np.format_float_positional(value, trim="-")
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = text.removesuffix(" 00:00:00") if hasattr(value, "isoformat") else text  # a date in a parquet file
    text = last_boxed(text, default=text) if is_paper else bare_number(unwrap(text))
    if is_needed and (not text or isinstance(value, (list, dict))):
        raise ValueError(f"one of the columns {', '.join(ANSWER_COLUMNS)} needs a single value")
    return None if isinstance(value, (list, dict)) else text or None


def check_answers(answers, split):
    """Warns of answers {row number: answer} that a box can hardly match, such as sentences or open braces."""
    unlikely = []
    for number, answer in answers.items():
        words = re.findall(r"(?<![\\\w])[^\W\d_]{2,}", answer)  # Commands of LaTeX do not count.
        is_odd = re.search(r"[\x00-\x1f]|</?[A-Za-z_]+>|[a-z]: ", answer)
        if is_odd or len(words) > 4 or last_boxed(rf"\boxed{{{answer}}}") != answer:
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
    Returns the id of the added token, special or not, that ends a turn in the chat template, or None. The
    generation settings of a base model do not list it. A word like "Human" is no added token.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "XYZ"}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("XYZ")[2].lstrip()
    first = next(iter(tokenizer(rest, add_special_tokens=False)["input_ids"]), None)
    return first if first in tokenizer.added_tokens_decoder else None
