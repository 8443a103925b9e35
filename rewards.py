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

import contextlib
import math
import re
from pathlib import Path

import datasets
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


def objective(function):
    """Registers `function` in OBJECTIVES under its name and returns it unchanged."""
    OBJECTIVES[function.__name__] = function
    return function


def score(objectives, responses, problems, lengths, mean_length, step=0, split="train"):
    """
    Returns the rewards of N responses in K objectives, named as in OBJECTIVES: N lists of K numbers.

    problems: N dictionaries, as from `read_problems`. lengths, mean_length: in tokens. split: for errors.
    An exception of an objective gets a note that names the objective, the split, the step and the prompt.
    ValueError if an objective returns something that is not a finite number.
    """
    functions = [OBJECTIVES[name] for name in objectives]
    rewards = []
    for response, problem, length in zip(responses, problems, lengths, strict=True):
        arguments = {"response": response, "length": length, "mean_length": mean_length, "step": step}
        row = []
        for name, function in zip(objectives, functions):
            try:
                value = function(**{**problem, **arguments})
            except Exception as error:
                error.add_note(describe_call(name, problem, split, step))
                raise

            with contextlib.suppress(AttributeError, ValueError, RuntimeError):
                value = value.item()  # NumPy and torch scalars become Python numbers.
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                call = describe_call(name, problem, split, step)
                raise ValueError(f"an objective must return a finite number, not {value!r:.80}\n{call}")
            row.append(value)
        rewards.append(row)
    return rewards


def describe_call(name, problem, split, step):
    """Returns two lines for an error: the objective, split and step, and the beginning of the prompt."""
    prompt = str(problem.get("prompt", ""))
    prompt = prompt[:160] + "..." if len(prompt) > 160 else prompt
    return f"objective {name}, split {split}, step {step}\nthe prompt begins with {prompt!r}"


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
def accuracy(response, answer, **_):
    r"""
    Returns 1.0 if the last `\boxed{...}` in `response` equals `answer`, else 0.0.

    Both are normalised as in the evaluation of MATH (Hendrycks et al., arXiv:2103.03874) and compared as
    strings. Normalising unifies notation but computes nothing, so 2/4 is not 1/2. A response without a box is
    wrong, and so is one whose last box is not closed.
    """
    boxed = last_boxed(response)
    return float(boxed is not None and normalise(boxed) == normalise(answer))


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


def normalise(text):
    r"""
    Returns an answer in uniform notation: the steps of `strip_string` in the evaluation of MATH, in order.

    Where a step fails (two units, a bare `\frac`), MATH compares the strings as they are. Here, that step is
    skipped.
    """
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
    text = r"\frac{1}{2}" if text == "0.5" else text
    # A pattern recognises integers, because int(), which MATH uses, raises an error for thousands of digits.
    return re.sub(r"^(-?\d+)/(-?\d+)\Z", r"\\frac{\1}{\2}", text)


def read_problems(dataset, splits, tokenizer, max_prompt_tokens, suffix=None, enable_thinking=False):
    """
    Returns the problems of each of `splits`, by name: lists of dictionaries with prompt (text), prompt_ids
    (token ids), answer (text) and all other columns. Prompts over `max_prompt_tokens` tokens are left out.

    suffix: text after each problem (None: the paper's on the paper's datasets, none on others).
    enable_thinking: passed to the chat template. ValueError if a split or a row cannot be used.
    """
    is_paper = dataset in PAPER_DATASETS
    if suffix is None:
        suffix = PAPER_SUFFIX if is_paper else ""
    data, problems = load_splits(dataset), {}

    for split in splits:
        if split not in data or len(data[split]) == 0:
            raise ValueError(f"split {split} is missing or empty (a single split needs 5 rows to be divided)")
        chats, answers = read_rows(data[split], split, suffix)
        if not is_paper:  # The paper's evaluation, that of MATH, compares numbers as they are written.
            answers = [bare_number(answer) for answer in answers]
        check_answers(answers, split)

        prompts, token_ids = tokenize(chats, tokenizer, enable_thinking)
        problems[split] = [
            {**row, "prompt": prompt, "prompt_ids": ids, "answer": answer}
            for row, prompt, ids, answer in zip(data[split], prompts, token_ids, answers)
            if len(ids) <= max_prompt_tokens
        ]
        if not problems[split]:
            raise ValueError(f"all prompts of split {split} are over {max_prompt_tokens} tokens")
        if left_out := len(prompts) - len(problems[split]):
            print(f"{split}: left out {left_out} of {len(prompts)} prompts, over {max_prompt_tokens} tokens")

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
    Returns the splits of a dataset, by name. The dataset is a folder, a json(l) or parquet file, a name on
    the Hub (NAME or NAME:CONFIGURATION), or a name in PAPER_DATASETS.

    Missing splits are made as in the paper: a single split is shuffled and divided into 60% train, 20% test
    and 20% validation; with train and test alone, the first half of test becomes validation.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # The exception below has the message.
    try:
        splits = load_files(dataset)
    except Exception as error:  # Each file type has a reader with exceptions of its own.
        cause = error.__cause__ or error
        raise ValueError(f"{dataset} cannot be read: {str(cause) or repr(cause)}") from None

    if len(splits) == 1 and len(rows := next(iter(splits.values()))) >= 5:
        train, rest = rows.train_test_split(0.4, seed=42).values()
        test, validation = rest.train_test_split(0.5, seed=42).values()
        sizes = f"{len(train)} train, {len(test)} test, {len(validation)} validation problems"
        print(f"the dataset has one split, which is divided into {sizes}")
        return {"train": train, "test": test, "validation": validation}
    if splits.keys() == {"train", "test"} and (half := len(splits["test"]) // 2):
        print(f"no validation split: it takes the first {half} of the {len(splits['test'])} test problems")
        return {**splits, "validation": splits["test"].take(half), "test": splits["test"].skip(half)}
    return splits


def load_files(dataset):
    """Returns the splits that a dataset has, by name."""
    if Path(dataset).is_file():
        file_type = "parquet" if dataset.endswith(".parquet") else "json"
        return datasets.load_dataset(file_type, data_files=dataset)
    source = [dataset] if Path(dataset).is_dir() else PAPER_DATASETS.get(dataset, dataset).split(":", 1)
    try:
        return datasets.load_dataset(*source)
    except datasets.exceptions.DatasetGenerationError:  # The columns of the splits differ.
        builder, splits = datasets.load_dataset_builder(*source), {}
        for split, files in (builder.config.data_files or {}).items():
            splits[str(split)] = datasets.load_dataset(builder.name, data_files={split: files})[split]
        return splits


def read_rows(rows, split, suffix):
    """Returns the questions (chats, with `suffix` at the end) and the answers. ValueError names the row."""
    chats, answers = [], []
    for number, row in enumerate(rows, 1):
        try:
            chat, answer = read_question(row), read_answer(row)
        except ValueError as error:
            raise ValueError(f"row {number} of split {split}: {error}: {str(row)[:80]}") from None
        chats.append([*chat[:-1], {**chat[-1], "content": chat[-1]["content"] + suffix}])
        answers.append(answer)
    return chats, answers


def read_question(row):
    """Returns a row's first of problem, question and prompt, as chat messages. ValueError if not text."""
    question = next((row[name] for name in ("problem", "question", "prompt") if name in row), None)
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    is_chat = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    contents = [message.get("content") for message in messages] if is_chat else []
    is_text = contents and all(isinstance(content, str) and content.strip() for content in contents)
    if not is_text or messages[-1].get("role") != "user":
        raise ValueError("column problem, question or prompt needs text, or messages, the last from a user")
    return messages


def read_answer(row):
    """Returns a row's first of answer, reward_model.ground_truth (verl) and solution. ValueError if none."""
    verl = row["reward_model"].get("ground_truth") if isinstance(row.get("reward_model"), dict) else None
    values = (row.get("answer"), verl, row.get("solution"))
    value = next((value for value in values if value is not None), None)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # A single decimal in a column turns all its integers into floats.

    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    answer = clean_answer(str(value)) if is_number or isinstance(value, str) else ""
    if not answer.strip():
        raise ValueError(f"column answer, reward_model.ground_truth or solution needs a value, not {value!r}")
    return answer


def clean_answer(text):
    """Returns the answer in a solution: the last box after ####, or the text there, without $ around it."""
    text = text.rpartition("####")[2]
    boxed = last_boxed(text)
    text = text.strip() if boxed is None else boxed
    return text[1:-1] if re.fullmatch(r"\$[^$]+\$", text) else text


def bare_number(text):
    """Returns a number without thousands commas and leading zeros: 2125 for 2,125. Keeps any other text."""
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    return re.sub(r"^(-?)0+(?=\d+\Z)", r"\1", text)


def check_answers(answers, split):
    """Prints how many answers earn no accuracy even if a box repeats them. ValueError if all are such."""
    unreachable = [answer for answer in answers if not accuracy(rf"\boxed{{{answer}}}", answer)]
    if len(unreachable) == len(answers):
        raise ValueError(f"no answer of split {split} earns accuracy in a box; the first is {answers[0]!r}")
    if unreachable:
        count = f"{len(unreachable)} of {len(answers)} answers"
        print(f"{split}: {count} do not earn accuracy even in a box; the first is {unreachable[0]!r}")


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
    Returns the id of the special token that ends a turn in the chat template, or None.

    This token must end responses, too, but the generation settings of a base model do not list it.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "XYZ"}]
    rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("XYZ")[2]
    first = next(iter(tokenizer(rest, add_special_tokens=False)["input_ids"]), None)
    token = tokenizer.added_tokens_decoder.get(first)
    return first if token is not None and token.special else None
