r"""
The paper (Lu et al., arXiv:2509.11452) rewards accuracy (the last `\boxed{...}` is right), conciseness (fewer
tokens than the mean response) and clarity (a box, and steps such as "1." and "2."). To add an objective,
write a function in this file and name it in --objectives:

    @objective
    def politeness(response, **_):
        return float("please" in response.lower())

Its keywords are response (text), answer (the ground truth), length (in sampled tokens), mean_length, prompt,
step and the other columns of the row.

A dataset is a file or folder of csv, json or parquet (train.jsonl, test.jsonl), what `save_to_disk` wrote,
or a name on the Hub. Questions are text or chat messages in column prompt, problem or question. Answers are
text or integers in column answer, reward_model.ground_truth (verl) or solution: what follows the last ####
(GSM8K), and of that the last box.
"""

import glob
import inspect
import math
import re
import tempfile
import warnings
from pathlib import Path

import datasets
import jinja2
import torch
from pandas.errors import ParserWarning

OBJECTIVES = {}
# Evaluations, hypervolume and Nash weighting use the performance: the reward, or a function here. Conciseness
# has one, because its reward cannot compare models: the mean length changes during training. It must
# be affine in reward and length, because it also gets means.
PERFORMANCE = {"conciseness": lambda reward, length, limit: 1 - length / limit}

PAPER_DATASETS = {"math-500": "HuggingFaceH4/MATH-500"}
PAPER_DATASETS["math-algebra"] = "DigitalLearningGmbH/MATH-lighteval:algebra"
PAPER_SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."
READERS = {".json": {"path": "json"}, ".jsonl": {"path": "json"}, ".parquet": {"path": "parquet"}}
# These options keep 007 and None.
READERS[".csv"] = {"path": "csv", "na_filter": False, "index_col": False, "converters": {"answer": str}}


def objective(function):
    """Registers an objective under the name of its function, in place of an earlier one. Returns it."""
    OBJECTIVES[function.__name__] = function
    return function


def score(objectives, responses, problems, lengths, mean_length, step=0, split="train"):
    """
    Returns N lists of K rewards (finite floats), for N responses and the names of K objectives.

    problems: N dictionaries, as from `read_problems`. lengths, mean_length: in tokens.
    """
    rewards = []
    for response, problem, length in zip(responses, problems, lengths, strict=True):
        arguments = problem | dict(response=response, length=length, mean_length=mean_length, step=step)
        rewards.append([])
        for name in objectives:
            try:
                reward = float(OBJECTIVES[name](**arguments))
                if not math.isfinite(reward):
                    raise ValueError(f"the reward {reward} is not finite")
            except Exception as error:
                error.add_note(f"objective {name}, {split} step {step}: {problem.get('prompt')!r:.160}")
                raise
            rewards[-1].append(reward)
    needs_box = (split, step) == ("eval", 0) and {"accuracy", "clarity"} & {*objectives}
    if needs_box and "boxed" not in str(responses):
        print(r"No response has a \boxed{}, which accuracy and clarity need: see --prompt-suffix")
    return rewards


def performance(objectives, rewards, length, limit):
    """Returns K performances from K rewards and a length, of a response or means. limit: max new tokens."""
    functions = [PERFORMANCE.get(name, lambda reward, *_: reward) for name in objectives]
    return [float(f(reward, length, limit)) for f, reward in zip(functions, rewards, strict=True)]


@objective
def accuracy(response, answer, **_):
    r"""Returns 1.0 if the last `\boxed{...}` equals `answer`, both normalised, else 0.0."""
    boxed = last_boxed(response)
    return 0.0 if boxed is None else float(normalise(boxed) == normalise(answer))


@objective
def conciseness(length, mean_length, **_):
    """Returns 1.0 if `length` is below `mean_length` (in training, of all rollouts so far), else 0.0."""
    return float(length < mean_length)


# Enumerators are "1.", "a)", "(ii)", "Step 3:" and bullets and, as in the paper's code, " = 13. So" and f(x).
ENUMERATOR = r"(?im)(^|[\s(])(step)?(\d+|[a-z]|[ivxlcdm]+)[-.:)]|(^|\s)[-*•]\s+"
ORDINAL = r"(?i)\b(first|second|third|(four|fif|six|seven|eigh|nin|ten)th|next|then)\b"


@objective
def clarity(response, **_):
    r"""Returns 1.0 if there are a filled `\boxed{...}` and two enumerators or two ordinals, else 0.0."""
    filled = re.search(r"\\boxed\{\s*[^\s}]", response)
    if filled is None or "}" not in response[filled.end() :]:
        return 0.0
    return float(any(len(re.findall(sign, response)) >= 2 for sign in (ENUMERATOR, ORDINAL)))


def last_boxed(text, default=None):
    r"""Returns the content of the last `\boxed{...}` or `\boxed 5$`; `default` if it is open or missing."""
    _, box, rest = text.rpartition(r"\boxed")
    if box and rest.startswith(" "):
        return rest[1:].split("$")[0]
    depth = 0
    for brace in re.finditer(r"[{}]", rest if box and rest.startswith("{") else ""):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return rest[1 : brace.start()]
    return default


# The replacements of `strip_string` in the evaluation of MATH (Hendrycks et al., arXiv:2103.03874)
MATH = {"\n": "", r"\!": "", "\\\\": "\\", "tfrac": "frac", "dfrac": "frac", r"\left": "", r"\right": ""}
MATH |= {r"^{\circ}": "", r"^\circ": "", r"\$": ""}


def normalise(text):
    r"""
    Returns an answer in uniform notation, by the steps of MATH and some of ours. Nothing is computed: 2/4 is
    not 1/2. A step that cannot be taken (two units, a bare `\frac`) is skipped.
    """
    for old, new in MATH.items():
        text = text.replace(old, new)
    text = re.sub(r"\\[()[\],]|\$", "", text.replace("{,}", ","))  # ours: \(5\), \[5\], $5$, 1\,234, 1{,}234
    text = text.split(r"\text{ ")[0] if text.count(r"\text{ ") == 1 else text  # 5\text{ cm}
    text = text.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = re.sub(r"^\.", "0.", text)
    text = re.sub(r"^[^=]{0,2}=([^=]*)\Z", r"\1", text)  # k = 5

    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text.replace(" ", ""))  # \frac1{72}
    text = re.sub(r"\\frac([^{])(.)", r"\\frac{\1}{\2}", text)  # \frac12
    text = r"\frac{1}{2}" if text == "0.5" else text
    text = re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)
    if re.fullmatch(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")  # ours: 1,234 (GSM8K)
    return re.sub(r"^(-?)0+(?=\d)", r"\1", text)  # ours: 033 (AIME)


# Signs of answers that are hardly ever boxed: control characters (of a bare "\frac" in JSON), quotes, bold,
# tags, "Answer: 7", [7], 5 cm, sentences, 7.0, 1e-05 and 7).
ODD = r'(?i)[\0-\x1f°−"`*]|(?<!\\)%|</|[a-z]: |^\[[^,]*$|\d [a-z]{2}|( [a-z]{2,}){3}|\.0*$|\de\W|^[^([]*[)\]]'


def read_problems(
    dataset,
    splits,
    tokenizer,
    max_prompt_tokens,
    suffix=None,
    max_eval_problems=None,
    objectives=("accuracy",),
):
    """
    Returns the problems of `splits`, by name: lists of dictionaries with prompt (text), prompt_ids (tokens),
    answer (text) and the other columns. Leaves out longer prompts. ValueError if the data do not fit.

    suffix: text after each question (None: the paper's for its data). Test and validation use at most
    `max_eval_problems`, evenly spaced. Answers may be missing if no objective has a parameter `answer`.
    """
    if suffix is None:
        suffix = PAPER_SUFFIX if dataset in PAPER_DATASETS else ""
    functions = [OBJECTIVES[name] for name in objectives]
    needs_answer = any("answer" in inspect.signature(f).parameters for f in functions)
    data = load_splits(dataset)
    problems = {}
    for split in splits:
        if not data.get(split):
            raise ValueError(f"{dataset} has no rows in split {split}; its splits: {', '.join(data)}")
        rows = []
        for number, row in data[split]:
            try:
                chat, answer = read_row(row, suffix, needs_answer)
                prompt, ids = tokenize(chat, tokenizer)
            except (ValueError, jinja2.TemplateError) as error:
                raise ValueError(f"row {number} ({split}): {error}: {row!s:.200}") from None
            rows.append(row | {"prompt": prompt, "prompt_ids": ids, "answer": answer})

        answers = [row["answer"] for row in rows if accuracy in functions]
        odd = [x for x in answers if re.search(ODD, x) or last_boxed(rf"\boxed{{{x}}}") != x]
        if odd:
            print(f"{split}: perhaps {len(odd)} answers cannot be earned, such as {odd[0]!r:.100}")
        kept = [row for row in rows if len(row["prompt_ids"]) <= max_prompt_tokens]
        count = f"{split}: {len(kept)} of {len(rows)} prompts fit --max-prompt-tokens {max_prompt_tokens}"
        if 2 * len(kept) < len(rows):
            raise ValueError(f"{count}; the longest has {max(len(row['prompt_ids']) for row in rows)}")
        n = len(kept) if split == "train" else min(max_eval_problems or len(kept), len(kept))
        problems[split] = [kept[i * len(kept) // n] for i in range(n)]
        print(f"{count}; {n} are used; the first is {kept[0]['prompt']!r}")
    return problems


def load_splits(dataset):
    """
    Returns the rows of each split, by name: lists of (number in the data, row). As in the paper, a single
    split is divided 60:20:20, and a missing validation split is the first half of test.
    """
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    splits = {}
    try:
        for split, table in load_tables(dataset):
            rows = splits.setdefault(re.sub(r"^(val|valid|dev)$", "validation", split), [])
            with warnings.catch_warnings(action="error", category=ParserWarning):  # unquoted commas
                rows += enumerate(table.with_format(None), 1)
            if isinstance((table.features or {}).get("answer"), datasets.ClassLabel):
                raise ValueError("write answers as text")
    except Exception as error:  # Each reader has its own exceptions.
        reason = f"cannot be read as UTF-8 csv (quoted), json, parquet: {error.__cause__ or error!r:.400}"
        raise ValueError(f"{dataset} {reason}") from None

    if len(splits) == 1:
        [rows] = splits.values()
        indices = datasets.Dataset.from_dict({"i": range(len(rows))})
        train, rest = indices.train_test_split(0.4, seed=42).values()
        test, validation = rest.train_test_split(0.5, seed=42).values()
        parts = {"train": train, "test": test, "validation": validation}
        splits = {split: [rows[i] for i in part["i"]] for split, part in parts.items()}
    if "test" in splits and "validation" not in splits:
        rows, half = splits["test"], len(splits["test"]) // 2
        splits |= {"validation": rows[:half], "test": rows[half:]}
    return splits


def load_tables(dataset):
    """Returns pairs (split, table of the library). Files in a folder are named like train.jsonl."""
    path = Path(dataset).absolute()
    if not path.exists():
        return datasets.load_dataset(*PAPER_DATASETS.get(dataset, dataset).split(":")).items()
    if any(path.rglob("state.json")):
        data = datasets.load_from_disk(path)
        return data.items() if isinstance(data, dict) else [("train", data)]

    tables = []
    with tempfile.TemporaryDirectory() as cache:  # The library's own cache may not be writable.
        for file in [path] if path.is_file() else sorted(path.glob("*")):
            split = re.match("train|test|val|dev|", file.name.lower())[0]
            if split or path.is_file():
                options = {**READERS[file.suffix], "split": "train", "streaming": True, "cache_dir": cache}
                table = datasets.load_dataset(data_files=glob.escape(str(file)), **options)
                tables.append((split, table))
    return tables


def read_row(row, suffix, needs_answer):
    """Returns the question of a row, as chat messages, and its answer. ValueError if one cannot be used."""
    question = next((row[name] for name in ("prompt", "problem", "question") if row.get(name)), "")
    chat = question if isinstance(question, list) else [{"role": "user", "content": question}]
    is_chat = all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in chat)
    is_question = is_chat and chat[-1].get("role") == "user" and chat[-1]["content"].strip()
    if not is_question or chat[-1]["content"].startswith("[{"):  # a chat as text
        raise ValueError("prompt, problem or question needs text or messages (content: text; last: user)")
    chat[-1]["content"] += suffix

    model = row.get("reward_model")
    verl = model.get("ground_truth") if isinstance(model, dict) else None
    value = next((x for x in (row.get("answer"), verl, row.get("solution")) if x not in (None, "")), None)
    text = str(value).rpartition("####")[2] if type(value) in (str, int) else ""
    answer = last_boxed(text, text).lstrip(" ").rstrip()  # Keep "\n": it may be left of "\nu".
    if not answer and (needs_answer or value is not None):
        raise ValueError(f"answer, ground_truth or solution needs text or an integer, not {value!r:.50}")
    return chat, answer or None


def tokenize(chat, tokenizer):
    """Returns a prompt as text and as token ids. Without a chat template, each message is a line."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return text, tokenizer(text, add_special_tokens=False)["input_ids"]
    text = "".join(turn["content"] + "\n" for turn in chat)
    ids = tokenizer(text)["input_ids"]
    return text, ids[:-1] if ids[-1] in tokenizer.all_special_ids else ids  # It would end the prompt.


def problems_of_step(problems, step, size, seed):
    """Returns the `size` problems of a step (1, 2, ...). Each epoch has all problems in a new order."""
    n, places, orders = len(problems), range((step - 1) * size, step * size), {}
    for epoch in {place // n for place in places}:
        orders[epoch] = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return [problems[orders[place // n][place % n]] for place in places]


def turn_end(tokenizer):
    """Returns the id of the added token, special or not, that ends a turn in the chat template, or None."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "XYZ"}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("XYZ")[2].lstrip()
    [first] = tokenizer(rest, add_special_tokens=False)["input_ids"][:1] or [None]
    return first if first in tokenizer.added_tokens_decoder else None
