"""Tests of how rewards.py registers objectives and reads data, in the forms that people have."""

import datetime
import functools
import gzip
import json
import shutil
from decimal import Decimal

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import rewards
from rewards import accuracy, read_answer, read_problems, read_question

ROW = {"problem": "What is 1+1?", "answer": "2"}


def read(tokenizer, path, split="train", **options):
    return read_problems(str(path), [split], tokenizer, 640, **options)[split]


def write_splits(folder, rows, test=None):
    folder.mkdir(parents=True, exist_ok=True)
    for split, split_rows in (("train", rows), ("test", test or [ROW])):
        lines = "".join(json.dumps(row) + "\n" for row in split_rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def write_parquet(folder, values, column="answer"):
    folder.mkdir()
    table = pyarrow.table({"problem": ["What is 1+1?"] * len(values), column: values})
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder


# ------------------------------------------------------------------------------------------------------------
# Ground truths


# {ground truth: the answer in it}
GROUND_TRUTHS = {
    "<answer> 7 </answer>": "7",
    "<think>Maybe <answer>3</answer>?</think> <answer>\n7\n</answer> Done.": "7",
    "<think>3 + 4\n= 7</think>\n\n7": "7",
    r"<answer>$\boxed{7}$</answer>": "7",
    "3 and 4\n#### 7": "7",
    "$7$": "7",
    "$$\n7\n$$": "7",
    r"\( 7 \)": "7",
    r"\[7.\]": "7",
    r"\(\frac{a}{(b)}\)": r"\frac{a}{(b)}",
    r"\begin{pmatrix}7\end{pmatrix}": r"\begin{pmatrix}7\end{pmatrix}",
    "**$7$.**": "7",
    r"\textbf{7}": "7",
    r"\text{B}": "B",
    r"\mathbf{\frac{1}{7}}": r"\frac{1}{7}",
    "7.": "7",
    "7.5.": "7.5",
    '["7"]': "7",
    "['7']": "7",
    "[7]": "7",
    '[ "$7$" ]': "7",
    '["(1,2)"]': "(1,2)",
    "[1,7]": "[1,7]",
    "(-1, 7]": "(-1, 7]",
    r"\(a\) or \(b\)": r"\(a\) or \(b\)",
    "$7$ or $8$": "$7$ or $8$",
    "7,000": "7000",
    r"$\$7{,}000$": r"\$7000",
    r"\begin{equation*} 5 \end{equation*}": "5",
    "-1/2": "-1/2",
    r"$\boxed {5}$": "5",
    r"\frac{-1}{2}": r"\frac{-1}{2}",
    "5%": "5%",
    "1.234.567": "1234567",
    "12,34,567": "1234567",
    "2,125 m": "2125 m",
    r"2,000\pi": r"2000\pi",
    "2024-03-01": "2024-03-01",
    "10:30": "10:30",
    "2/7": "2/7",
    ".7": "0.7",
    r"\{7\}": r"\{7\}",
    "<answer> **$(['7'])$.** </answer>": "(['7'])",
}


@pytest.mark.parametrize("truth, answer", GROUND_TRUTHS.items())
def test_a_ground_truth_is_unwrapped_and_a_box_with_it_as_written_is_correct(truth, answer):
    assert read_answer({"answer": truth}) == read_answer({"solution": [truth]}) == answer
    for boxed in (truth, answer):
        assert accuracy(rf"So it is $\boxed{{{boxed}}}$.", answer) == 1.0
    assert accuracy(rf"\boxed {{{answer}}}", answer) == 1.0
    assert accuracy(r"\boxed{9}", answer) == 0.0


def test_many_nested_wrappers_take_little_time():
    assert rewards.unwrap(r"\(" * 4000 + "7" + r"\)" * 4000) != ""


FLOAT32 = pyarrow.float32()


@pytest.mark.parametrize(
    "values, answers",
    [
        (np.array([0.1, 16.7, 2.0, 1e-6], np.float32), ["0.1", "16.7", "2", "0.000001"]),
        ([1e-5, 0.1 + 0.2, 1.0009765625, 3.0], ["0.00001", "0.30000000000000004", "1.0009765625", "3"]),
        ([2**53 + 1, 2**62], ["9007199254740993", "4611686018427387904"]),
        ([Decimal("2.50"), Decimal("0.0000001")], ["2.5", "0.0000001"]),
        ([datetime.date(2024, 3, 1)], ["2024-03-01"]),
        (
            [datetime.datetime(2024, 3, 1), datetime.datetime(2024, 3, 1, 10)],
            ["2024-03-01", "2024-03-01 10:00:00"],
        ),
        ([["7"], ["8"]], ["7", "8"]),
        (pyarrow.array([[0.1], [16.7]], pyarrow.list_(FLOAT32)), ["0.1", "16.7"]),
        (pyarrow.array([{"ground_truth": 16.7}], pyarrow.struct([("ground_truth", FLOAT32)])), ["16.7"]),
    ],
    ids=str,
)
def test_numbers_and_dates_in_parquet_keep_their_digits(tokenizer, tmp_path, values, answers):
    column = "reward_model" if isinstance(values, pyarrow.StructArray) else "answer"
    problems = read(tokenizer, write_parquet(tmp_path / "data", values, column))
    assert [problem["answer"] for problem in problems] == answers


@pytest.mark.parametrize("text", ["0.00001", "1e-7", "007", "12345678901234567890", "3.14159265358979"])
def test_numbers_in_json_and_csv_keep_their_digits(tokenizer, tmp_path, text):
    number = {"007": "7", "12345678901234567890": '"12345678901234567890"'}.get(text, text)  # for JSON
    (tmp_path / "one.jsonl").write_text(f'{{"problem": "1+1?", "answer": {number}, "level": 0.5}}\n' * 5)
    (tmp_path / "one.csv").write_text("problem,answer,level\n" + f"1+1?,{text},0.5\n" * 5)
    for name in ("one.jsonl", "one.csv"):
        problem = read(tokenizer, tmp_path / name)[0]
        assert problem["answer"] == {"1e-7": "0.0000001", "007": "7"}.get(text, text)
        assert problem["level"] == 0.5


def test_words_and_empty_fields_of_csv_files(tokenizer, tmp_path):
    text = "problem,answer,solution,level\n" + "1+1?,None,,\n1+2?,,3.14159265358979323846,4\n" * 5
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text(text)
    problems = read(tokenizer, tmp_path)[:2]
    assert [problem["answer"] for problem in problems] == ["None", "3.14159265358979323846"]
    assert [problem["level"] for problem in problems] == [None, 4]


@pytest.mark.parametrize(
    "values", [np.array([1.5, 2**24 + 2], np.float32), [1.5, 2.0**53], [1.5, np.inf]], ids=str
)
def test_a_float_that_cannot_hold_all_digits_is_refused(tokenizer, tmp_path, values):
    with pytest.raises(ValueError, match="^row 2 .split train.: the answer .* write it as text"):
        read(tokenizer, write_parquet(tmp_path / "data", values))


def test_texts_that_look_like_dates_stay_text(tokenizer, tmp_path):
    rows = [{"problem": "Which day?", "answer": f"2024-03-0{i}", "due": f"2024-04-0{i}"} for i in range(1, 6)]
    problems = read(tokenizer, write_splits(tmp_path / "data", rows))
    assert [problem["answer"] for problem in problems] == [row["answer"] for row in rows]
    assert problems[0]["due"] == "2024-04-01"
    nested = [{"problem": "Which day?", "reward_model": {"ground_truth": "2024-03-01"}}]
    assert read(tokenizer, write_splits(tmp_path / "nested", nested))[0]["answer"] == "2024-03-01"


UNLIKELY = ["It depends on the value of x.", "}2", "{2", "3\n4"]
USUAL = [
    "4",
    r"\frac{1}{2}",
    "x+1",
    r"5\text{ cm}",
    r"\text{Monday}",
    "$7",
    r"\sin x + \cos y",
    r"x \in [-2,7]",
]
USUAL += [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "New York City"]


@pytest.mark.parametrize("answer", UNLIKELY)
def test_answers_that_a_box_can_hardly_match_cause_one_warning(capsys, answer):
    rewards.check_answers(dict(enumerate([*USUAL, answer, *USUAL], 1)), "test")
    [line] = capsys.readouterr().out.splitlines()
    count = "1 of 21 answers cannot be earned in a box, or hardly ever"
    assert line == f"test: warning: {count}, such as that of row 11, {answer!r}"


def test_the_warning_is_about_accuracy(tokenizer, tmp_path, capsys):
    folder = write_splits(tmp_path / "data", [{"problem": "1+1?", "answer": "}2"}])
    for names, count in ((["accuracy"], 1), (["clarity"], 0)):
        read(tokenizer, folder, objectives=names)
        assert capsys.readouterr().out.count("cannot be earned") == count


# ------------------------------------------------------------------------------------------------------------
# Questions

USER = {"role": "user", "content": "1+1?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}


def test_each_row_uses_a_column_that_has_a_value(tokenizer, tmp_path):
    rows = [{"problem": None, "question": "1+1?"}, {"problem": "2+2?", "question": ""}, {"prompt": [USER]}]
    folder = write_splits(tmp_path / "data", [{**row, "answer": "2"} for row in rows])
    texts = [problem["prompt"] for problem in read(tokenizer, folder)]
    assert all(text in prompt for text, prompt in zip(["1+1?", "2+2?", "1+1?"], texts, strict=True))


@pytest.mark.parametrize(
    "row, column",
    [
        ({"problem": "1+1?", "prompt": [{"role": "system", "content": "Be brief."}, USER]}, "prompt"),
        ({"problem": "What is 1+1? Answer in a box.", "prompt": "1+1?"}, "problem"),
    ],
)
def test_of_several_columns_the_one_with_the_most_text_is_read_and_named(
    tokenizer, tmp_path, capsys, row, column
):
    [problem] = read(tokenizer, write_splits(tmp_path / "data", [{**row, "answer": "2"}]))
    chat, options = read_question({"prompt": row[column]}), {"tokenize": False, "add_generation_prompt": True}
    assert problem["prompt"] == tokenizer.apply_chat_template(chat, **options)
    assert capsys.readouterr().out.count(f"train: column {column} has the most text") == 1


@pytest.mark.parametrize(
    "messages, contents",
    [
        ([{"role": "user", "content": [{"type": "text", "text": "1+", "image": None}, "1?"]}], ["1+1?"]),
        ([{"role": "system", "content": ""}, USER], ["", "1+1?"]),
        ([{"role": "system", "content": None}, USER], ["", "1+1?"]),
        ([{"role": "system", "content": [{"type": "text", "text": ""}]}, USER], ["", "1+1?"]),
        ([USER, CALL, {"role": "tool", "content": ""}, USER], ["1+1?", "", "", "1+1?"]),
        ([USER, {"role": "assistant", "content": "2", "tool_calls": None}, USER], ["1+1?", "2", "1+1?"]),
    ],
)
def test_contents_may_be_parts_or_empty_where_that_has_a_meaning(messages, contents):
    chat = read_question({"prompt": messages})
    assert [message["content"] for message in chat] == contents
    calls = [[message.get("tool_calls") for message in list_] for list_ in (chat, messages)]
    assert calls[0] == calls[1] and not any(None in message.values() for message in chat)


@pytest.mark.parametrize(
    "messages, error",
    [
        ([USER, {"role": "assistant", "content": "2"}], "message 2 of column prompt needs a role"),
        ([{"content": "1+1?"}], "message 1 of column prompt needs a role"),
        ([USER, {"role": "assistant", "content": " "}, USER], "message 2 .* needs text"),
        ([{"role": "user", "content": ""}], "message 1 .* needs text"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "message 1 .* needs text"),
        ([{"role": "user", "content": 12}], "message 1 .* needs text"),
        (["1+1?"], "one of the columns .* needs text or chat messages"),
        (12, "one of the columns .* needs text or chat messages"),
    ],
)
def test_a_refusal_names_the_row_the_message_and_the_fault(tokenizer, tmp_path, messages, error):
    folder = write_splits(
        tmp_path / "data", [{"prompt": "1+1?", "answer": "2"}, {"prompt": messages, "answer": "2"}]
    )
    with pytest.raises(ValueError, match=f"^row 2 .split train.: {error}"):
        read(tokenizer, folder)


# ------------------------------------------------------------------------------------------------------------
# Objectives, and rows without an answer


def near(length, target, **_):
    return max(0.0, 1 - abs(length - target) / target)


class Grader:
    def __call__(self, response, answer, **_):
        return float(answer in response)

    def grade(self, response, **columns):
        return float(columns["answer"] in response)


@functools.wraps(near)
def wrapped(*args, **kwargs):
    return near(*args, **kwargs)


@pytest.fixture
def objectives(monkeypatch):
    """A copy of OBJECTIVES that a test may change."""
    monkeypatch.setattr(rewards, "OBJECTIVES", dict(rewards.OBJECTIVES))
    return rewards.OBJECTIVES


@pytest.mark.parametrize(
    "function, name, needs_answer",
    [
        (near, "near", False),
        (functools.partial(functools.partial(near), target=10), "near", False),
        (functools.partial(Grader(), answer="2"), "Grader", False),
        (functools.partial(Grader(), response="2"), "Grader", True),
        (Grader(), "Grader", True),
        (Grader().grade, "grade", False),  # **columns alone does not say what it reads.
        (wrapped, "near", False),
        (rewards.accuracy, "accuracy", True),
        (rewards.clarity, "clarity", False),
        (lambda response, answer=None, **_: 1.0, "<lambda>", False),
        (lambda response, *, answer, **_: 1.0, "<lambda>", True),
    ],
)
def test_any_callable_has_a_name_and_may_need_an_answer(objectives, function, name, needs_answer):
    assert rewards.objective(function) is function and objectives[name] is function
    assert rewards.objective(function, name="other") is function and objectives["other"] is function
    assert rewards.needs_answer(function) == needs_answer


def test_a_name_that_is_taken_is_refused(objectives):
    rewards.objective(near)
    with pytest.raises(ValueError, match="objective near exists; choose a name"):
        rewards.objective(lambda response, **_: 1.0, name="near")
    with pytest.raises(ValueError, match="objective clarity exists"):
        rewards.objective(near, name="clarity")
    assert objectives["near"] is near and objectives["clarity"] is rewards.clarity


def test_accuracy_can_be_replaced(objectives):
    @rewards.objective
    def accuracy(response, answer, **_):
        return float(response.rpartition("####")[2].strip() == answer)

    assert rewards.score(["accuracy"], ["#### 2"], [ROW], [1], 1.0) == [[1.0]]


def test_rows_need_an_answer_only_if_an_objective_needs_it(objectives, tokenizer, tmp_path):
    objectives["polite"] = lambda **columns: float("please" in columns["response"])
    folder = write_splits(tmp_path / "data", [ROW, {"problem": "Write a line."}], [{"problem": "Write."}])
    assert [p["answer"] for p in read(tokenizer, folder, objectives=["clarity", "polite"])] == ["2", None]
    with pytest.raises(
        ValueError, match="^row 2 .split train.: one of the columns answer, .* needs a single"
    ):
        read(tokenizer, folder, objectives=["accuracy", "polite"])


# ------------------------------------------------------------------------------------------------------------
# Files

ROWS = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "problem,answer\n" + "".join(f"{row['problem']},{row['answer']}\n" for row in ROWS)
FILES = {
    "plain.jsonl": LINES.encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(),
    "without-end.json": LINES.rstrip().encode(),
    "blank-lines.jsonl": LINES.replace("\n", "\n\n").encode(),
    "list.json": json.dumps(ROWS, indent=2).encode(),
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "mark.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
    "quoted.csv": CSV.replace("What is", '"What\nis').replace("?", '?"').encode(),
    "tabs.tsv": CSV.replace(",", "\t").encode(),
    "dots {a} #1.v1.jsonl": LINES.encode(),
}


def load(path):
    """The splits of a dataset, as lists of rows."""
    return {split: list(rows) for split, rows in rewards.load_files(str(path)).items()}


@pytest.mark.parametrize("name", FILES)
def test_single_files_and_folders_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    for path in (tmp_path / name, tmp_path):
        [rows] = load(path).values()
        assert [{key: value.replace("\n", " ") for key, value in row.items()} for row in rows] == ROWS


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_folders_of_several_files_a_split_are_read(tmp_path, kind):
    for split in ("train", "test-00000-of-00002", "test-00001-of-00002"):
        getattr(datasets.Dataset.from_list(ROWS), f"to_{kind}")(tmp_path / f"{split}.{kind}")
    assert load(tmp_path) == {"train": ROWS, "test": ROWS * 2}


@pytest.mark.parametrize("name", ["a[b]", "a*b", "what?"])
def test_names_with_wildcards_are_literal(tmp_path, name):
    """As patterns, they would match the folder ab, too, or only this folder."""
    write_splits(tmp_path / "data" / name, ROWS)
    write_splits(tmp_path / "data" / "ab", ROWS[:1])
    write_splits(tmp_path / "data" / "axb", ROWS[:1])
    assert load(tmp_path / "data" / name)["train"] == ROWS
    assert load(tmp_path / "data" / name / "train.jsonl")["train"] == ROWS
    write_splits(tmp_path / "files", ROWS[:1])
    (tmp_path / "files" / f"train-{name}.jsonl").write_text(LINES)
    (tmp_path / "files" / "train-ab.jsonl").write_text(LINES.replace("What", "How much"))
    problems = [row["problem"] for row in load(tmp_path / "files")["train"]]
    assert len(problems) == 13 and all(row["problem"] in problems for row in ROWS)


def test_a_box_with_true_is_correct_as_json_and_as_python_write_it(tokenizer, tmp_path):
    folder = write_splits(tmp_path / "data", [{"problem": "1 < 2?", "answer": True}] * 2)
    answer = rewards.read_problems(str(folder), ["train"], tokenizer, 64)["train"][0]["answer"]
    assert [accuracy(rf"\boxed{{{box}}}", answer) for box in ("true", "True", "false")] == [1.0, 1.0, 0.0]


TIMES = ["2024-03-04T10:30:00Z", "2024-03-04T10:30:00", "2024-03-04 00:00:00", "2024-03-04"]
TIMES += ["2024-03-04T10:30", "2024-03-04T23:30:00+02:00", "2024-03-04 10:30:00.5", "10:30"]


@pytest.mark.parametrize("time", TIMES)
def test_a_box_with_a_time_as_it_is_written_is_correct(tokenizer, tmp_path, time):
    """The JSON reader turns such text into a time, which is printed in another way."""
    folder = write_splits(tmp_path / "data", [{"problem": "When?", "answer": time}] * 2)
    answer = rewards.read_problems(str(folder), ["train"], tokenizer, 64)["train"][0]["answer"]
    assert accuracy(rf"\boxed{{{time}}}", answer) == 1.0
    assert accuracy(r"\boxed{2024-03-05T10:30:00Z}", answer) == 0.0


def test_a_file_in_the_current_folder_is_read(tmp_path, monkeypatch):
    write_splits(tmp_path / "f[1]", ROWS)
    for folder in (tmp_path / "f[1]", write_splits(tmp_path / "plain", ROWS)):
        monkeypatch.chdir(folder)
        assert load("train.jsonl")["train"] == load("./train.jsonl")["train"] == load(".")["train"] == ROWS


def test_what_save_to_disk_wrote_is_read(tmp_path):
    one = datasets.Dataset.from_list(ROWS)
    one.select([2, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one.take(2)).save_to_disk(tmp_path / "two[1]")
    assert load(tmp_path / "one") == {"train": [ROWS[2], ROWS[0]]}
    assert load(tmp_path / "two[1]") == {"train": ROWS, "test": ROWS[:2]}


FRENCH = '{"problem": "Combien co\u00fbte 1+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    "name, content, error",
    [
        ("a.jsonl", FRENCH.encode("latin-1"), "not in UTF-8; try: iconv"),
        ("a.csv", "problem,answer\nCo\u00fbt?,2\n".encode("latin-1"), "not in UTF-8"),
        ("a.json", FRENCH.encode("utf-16"), "not in UTF-8"),
        ("a.jsonl", b'{"problem": "1+1?"}\n{"problem": \n', "line 2 of .* is not JSON: Expecting value"),
        ("a.jsonl", b"", "a.jsonl is empty|a file is empty"),
        ("a.csv", b"problem,answer\n1+1?,2\n1+2?,3,4\n", "Expected 2 fields in line 3"),
        ("a.csv", b"problem,answer\nf(1,2)?,3\nf(2,2)?,4\n", "put quotes around text with commas"),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.xyz", b"Hello", "must end with one of .csv, .tsv|supported"),
    ],
)
def test_an_error_names_the_dataset_and_its_fault(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=error) as raised:
            rewards.load_splits(str(path))
        assert str(raised.value).startswith(f"{path} cannot be read: ")


def test_rows_may_differ_in_columns_and_types(tokenizer, tmp_path):
    rows = [{**ROW, "level": 1}, {**ROW, "answer": 2, "level": "hard"}, {**ROW, "answer": 2.5, "tags": ["a"]}]
    problems = read(tokenizer, write_splits(tmp_path / "data", rows))
    assert [p["answer"] for p in problems] == ["2", "2", "2.5"]
    assert [p.get("level") for p in problems] == [1, "hard", None]


# ------------------------------------------------------------------------------------------------------------
# Evaluation sets


@pytest.mark.parametrize(
    "most, places", [(1, [0]), (3, [0, 3, 6]), (9, range(9)), (10, range(10)), (99, range(10))]
)
def test_evaluations_use_at_most_so_many_evenly_spaced_problems(tokenizer, tmp_path, capsys, most, places):
    rows = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(10)]
    write_splits(tmp_path, rows, rows)
    shutil.copy(tmp_path / "test.jsonl", tmp_path / "validation.jsonl")
    options = {"max_eval_problems": most}
    problems = read_problems(str(tmp_path), ["train", "validation", "test"], tokenizer, 640, **options)
    assert len(problems["train"]) == 10
    for split in ("validation", "test"):
        assert [p["problem"] for p in problems[split]] == [rows[i]["problem"] for i in places]
    out = capsys.readouterr().out
    line = f"test: {most} of 10 problems are used, evenly spaced (--max-eval-problems)"
    assert (line in out) == (most < 10) and "train: " not in out


# ------------------------------------------------------------------------------------------------------------
# The end of a turn


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "\n<|im_end|>", "  <|im_end|> and more"])
@pytest.mark.parametrize("special", [True, False])
def test_the_end_of_a_turn_is_an_added_token_special_or_not(tokenizer, tmp_path, end, special):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    settings = json.loads(path.read_text())
    for token in settings["added_tokens"]:
        token["special"] = special
    path.write_text(json.dumps(settings))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|endoftext|>"}))
    changed = type(tokenizer).from_pretrained(tmp_path)
    assert changed.added_tokens_decoder[2].special == special
    changed.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    assert rewards.turn_end(changed) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    changed.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\nWhat{% endfor %}"
    assert rewards.turn_end(changed) is None


# ------------------------------------------------------------------------------------------------------------
# Further forms of files, columns and answers
# ------------------------------------------------------------------------------------------------------------


DIGITS = ["3.14159265358979323846", "1.23456789012", "0.00000000012345", "16.2", "100.0"]


@pytest.mark.parametrize("digits", DIGITS)
@pytest.mark.parametrize("other", ["2.5", '"x"'])
def test_json_keeps_the_digits_that_are_written(tokenizer, tmp_path, digits, other):
    """The reader of the library rounds numbers of arrays, and of columns of numbers and text."""
    row = '{"problem": "q?", "answer": %s, "score": %s, "reward_model": {"ground_truth": 1.50, "x": 0.5}}'
    rows = [row % (digits, digits), row % (other, other)]
    (tmp_path / "a.json").write_text(f"[{', '.join(rows)}]")
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    for name in ("a.json", "a.jsonl"):
        [split] = rewards.load_files(str(tmp_path / name)).values()
        [first, _] = rewards.read_rows(list(enumerate(split, 1)), {}, "train", "", True, False)
        assert first["answer"] == rewards.bare_number(digits)
        assert first["score"] == float(digits)  # Only answers become text.
        assert first["reward_model"] == {"ground_truth": "1.50", "x": 0.5}


@pytest.mark.parametrize(
    "text", ['{"problem": "1?"}{"problem": "2?"}', '{\n"problem":\n"1?"}\n{"problem": "2?"}']
)
def test_rows_of_json_need_no_lines_of_their_own(tmp_path, text):
    (tmp_path / "a.ndjson").write_text(text)
    assert load(tmp_path / "a.ndjson") == {"train": [{"problem": "1?"}, {"problem": "2?"}]}


@pytest.mark.parametrize("text", ['{"problem": "q\\ud800"}', "5", "null", "[1, 2]"])
def test_json_without_rows_of_text_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="surrogates not allowed|needs an object, in braces, for each row"):
        rewards.load_splits(str(tmp_path / "a.json"))


def test_a_json_row_without_a_column_has_none_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "1?"}\n\n{"problem": "2?", "level": 3}\n')
    assert load(tmp_path / "a.jsonl") == {
        "train": [{"problem": "1?", "level": None}, {"problem": "2?", "level": 3}]
    }


def test_a_table_with_the_index_of_pandas_is_read(tmp_path):
    frame = datasets.Dataset.from_list(ROWS).to_pandas()
    frame[frame["answer"] != ROWS[0]["answer"]].to_parquet(tmp_path / "train.parquet")
    assert [row["problem"] for row in load(tmp_path)["train"]] == [row["problem"] for row in ROWS[1:]]


@pytest.mark.parametrize("name", ["one.jsonl", "one.csv", "one.parquet"])
def test_an_error_has_the_number_of_the_row_in_a_file_that_is_divided(tokenizer, tmp_path, name):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(20)]
    rows[13]["answer"] = None
    getattr(datasets.Dataset.from_list(rows), f"to_{name[4:].replace('jsonl', 'json')}")(tmp_path / name)
    with pytest.raises(ValueError, match="^row 14 .split "):
        read_problems(str(tmp_path / name), ["train", "test", "validation"], tokenizer, 64)


SPLITS = {  # the splits that people have, and those that are made of them
    ("train", "dev"): {"train": 1, "validation": 1, "test": 1},
    ("train", "valid"): {"train": 1, "validation": 1, "test": 1},
    ("train", "val", "test"): {"train": 1, "validation": 2, "test": 2},
    ("Train", "Test"): {"train": 1, "validation": 1, "test": 1},
    ("train_sft", "test_sft"): {"train": 1, "validation": 1, "test": 1},
}


@pytest.mark.parametrize("names", SPLITS)
def test_names_of_splits(tmp_path, names):
    rows = {name: [{"problem": name, "answer": "1"}] * (1 + (name.lower()[:5] != "train")) for name in names}
    data = {name: datasets.Dataset.from_list(split_rows) for name, split_rows in rows.items()}
    datasets.DatasetDict(data).save_to_disk(tmp_path / "saved")
    folders = [tmp_path / "saved"]
    if names[0] != "train_sft":  # The library does not know this name of a file.
        (tmp_path / "files").mkdir()
        for name, split in data.items():
            split.to_parquet(tmp_path / f"files/{name}.parquet")
        folders += [tmp_path / "files"]
    for folder in folders:
        splits = {name: rows for name, (rows, _) in rewards.load_splits(str(folder)).items()}
        assert {name: len(splits[name]) for name in ("train", "validation", "test")} == SPLITS[names]
        assert {row["problem"] for _, row in splits["train"]} == {names[0]}


def test_an_error_names_the_splits_that_a_dataset_has(tokenizer, tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(a=data, b=data).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="split train is missing or empty; .*saved has a, b"):
        read_problems(str(tmp_path / "saved"), ["train"], tokenizer, 64)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_the_format_of_a_saved_dataset_does_not_matter(tokenizer, tmp_path, kind):
    prompts = [[{"role": "user", "content": f"{i}+1?"}] for i in range(5)]
    data = datasets.Dataset.from_dict({"prompt": prompts, "answer": list(range(1, 6))})
    datasets.DatasetDict(train=data.with_format(kind), test=data).save_to_disk(tmp_path / "saved")
    problems = read(tokenizer, tmp_path / "saved")
    assert [problem["answer"] for problem in problems] == ["1", "2", "3", "4", "5"]


def test_a_link_has_the_type_of_its_own_name(tmp_path):
    """The cache of the Hub has links like this."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0a1b").write_text(LINES)
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "blobs/0a1b")
    assert load(tmp_path / "train.jsonl")["train"] == ROWS


@pytest.mark.parametrize("name", ["a.JSONL", "a.CSV", "a.TSV", "a.Json", "a.xlsx"])
def test_the_case_of_a_file_type_does_not_matter(tmp_path, name):
    text = {"a.CSV": "problem,answer\n1+1?,2\n", "a.TSV": "problem\tanswer\n1+1?\t2\n"}
    (tmp_path / name).write_text(text.get(name, '{"problem": "1+1?", "answer": "2"}'))
    if name == "a.xlsx":
        with pytest.raises(ValueError, match="its name must end with one of .csv, .tsv, .parquet, .json, .j"):
            rewards.load_splits(str(tmp_path / name))
    else:
        assert load(tmp_path / name)["train"] == [{"problem": "1+1?", "answer": "2"}]


@pytest.mark.parametrize("name", ["nosuch.jsonl", "./nosuch", "/nosuch", "../a/b"])
def test_a_path_that_does_not_exist_is_not_searched_on_the_hub(name):
    with pytest.raises(ValueError, match="cannot be read: there is no such file or folder"):
        rewards.load_splits(name)


@pytest.mark.parametrize("text", ["problem;answer\n1+1?;2\n", "problem;answer\n1,1?;2\n1,2?;3\n"])
def test_semicolons_in_a_csv_file_are_named(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match="separate the columns with commas, not with semicolons"):
        rewards.load_splits(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_the_encoding_of_a_json_array_is_reported(tmp_path, encoding):
    (tmp_path / "a.json").write_text(f"[{FRENCH}]", encoding=encoding)
    with pytest.raises(ValueError, match="the text is not in UTF-8; try: iconv"):
        rewards.load_splits(str(tmp_path / "a.json"))


CHAT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "What's 1+1?"}]


@pytest.mark.parametrize("text", [str(CHAT), json.dumps(CHAT), str(np.array(CHAT, dtype=object))])
def test_a_chat_may_be_text_as_in_csv_files(text):
    assert read_question({"prompt": text}) == CHAT


@pytest.mark.parametrize(
    "text", ["[{x | x > 2}] is a set?", '{"role": 1}', "[1, 2]", '[{"a": 1}]', "{" * 9999]
)
def test_a_question_that_only_looks_like_a_chat_is_text(text):
    assert read_question({"prompt": text}) == [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"reward_model": "{'ground_truth': '7', 'style': 'rule'}"},
        {"reward_model": '{"ground_truth": 7}'},
        {"reward_model.ground_truth": "7", "reward_model.style": "rule"},
        {"answer": b"7"},
    ],
)
def test_forms_of_an_answer(row):
    assert read_answer(row, is_needed=True) == "7"


def test_types_of_columns_decide_how_an_answer_is_read(tokenizer, tmp_path):
    values = {"half": np.float16(16.2), "single": np.float32(16.2), "label": 2}
    answers = {"half": "16.2", "single": "16.2", "label": "C"}
    types = {"half": "float16", "single": "float32"}
    features = {name: datasets.Value(kind) for name, kind in types.items()}
    features["label"] = datasets.ClassLabel(names=["A", "B", "C"])
    for name, value in values.items():
        columns = datasets.Features({"answer": features[name]})
        assert (
            read_answer({"answer": value.item() if name != "label" else 2}, features=columns) == answers[name]
        )


def test_an_answer_that_no_objective_needs_may_be_anything():
    assert read_answer({"answer": 2.0**60}, is_needed=False)
    with pytest.raises(ValueError, match="may have lost digits"):
        read_answer({"answer": 2.0**60}, is_needed=True)
    with pytest.raises(ValueError, match="needs a single value"):
        read_answer({"answer": ["1", "2"]}, is_needed=True)
    assert read_answer({"answer": ["1", "2"]}) is None


FORMS = {  # a ground truth and boxes that are correct
    r'["\\(3\\)"]': ["3", r"\(3\)"],
    r'["50\\%"]': ["50", r"50\%"],
    r'["10,\\!000"]': ["10000", "10,000"],
    r'["\\text{A}"]': ["A", r"\text{A}"],
    r'["5\u00b0"]': ["5", "5°"],
    "<Answer>5</Answer>": ["5"],
    "I add.\n<SOLUTION>\n5\n</SOLUTION>": ["5"],
    r"\mathrm{A}": ["A", r"\text{A}"],
    r"\textit{blue}": ["blue"],
    r"\mbox{blue}": ["blue"],
    r"\fbox{5}": ["5"],
    r"\displaystyle \frac{1}{2}": [r"\frac{1}{2}", "1/2"],
    "`5`": ["5"],
    '"5"': ["5"],
    "–5": ["-5", "−5"],
    "0.333...": ["0.333..."],
    "2 1/2": ["2 1/2", "2 1/2."],
    r"5\text{ cm}^2": ["5"],
    "5": [
        r"5\text{ cm}",
        r"5\,\text{cm}",
        r"5~\text{cm}",
        r"5\mathrm{~cm}",
        r"5 \text{cm}",
        r"5\text{ gram}",
    ],
    "6": [
        r"6\text{ m s}^{-1}",
        r"6\text{ CO}_2",
        r"6\text{ m}^3\text{/s}",
        r"6\text{ rpm}",
        r"6\,\mathrm{m}",
    ],
    r"6\sqrt{2}": [r"6\sqrt{2}\,\text{m}", r"6\sqrt2\text{ m}"],
    r"16\pi": [r"16\pi\,\text{cm}^2", r"16\pi\text{ cm}^2"],
    r"9\text{ a.m.}": [r"9\text{ AM}", r"9\text{ am}"],
    r'["\frac{1}{2}"]': [r"\frac{1}{2}", "1/2"],
    r'["\text{A}"]': ["A"],
    "<solution>I add. <answer>5</answer></solution>": ["5"],
    "<answer>5</answer>\n<solution>because 2+3=5</solution>": ["5"],
    r"0.123\,456": ["0.123456"],
    r"\frac{-1}{2}": [r"-\frac{1}{2}", "-1/2", r"-\frac12"],
    r"\frac{-1+\sqrt5}{2}": [r"\frac{-1+\sqrt{5}}{2}"],
    "2  1/2": ["2 1/2", r"2\ 1/2", "2\n1/2"],
    r"5\text{ or }7": [r"5\text{ or }7"],
}


@pytest.mark.parametrize("truth", FORMS)
def test_a_ground_truth_in_another_form_can_be_earned(truth):
    answer = read_answer({"answer": truth})
    for box in [*FORMS[truth], truth]:
        assert accuracy(rf"\boxed{{{box}}}", answer) == 1.0, box


WRONG = [
    ("5", r"5\text{ or }7"),
    (r"5\text{ or }7", "5"),
    ("5", r"5\text{ million}"),
    ("21/2", "2 1/2"),
    ("1 2 3", "123"),
    ("12", "1 2"),
    ("5", "7=5"),
    ("0.333...", "0.333"),
    (r"\frac{-1+\sqrt5}{2}", r"-\frac{1+\sqrt5}{2}"),
    ("x>=5", "x<=5"),
    ("-x=5", "5"),
    (r"2\ 1/2", "21/2"),
    (r"9:00\text{ a.m.}", r"9:00\text{ p.m.}"),
    (r"12\text{AM}", r"12\text{PM}"),
    ("3+2", r"3+2\mathrm{i}"),
    ("3+2", r"3+2\,\mathrm{i}"),
    ("2", r"2\,\mathrm{e}^{3}"),
    (r"3\text{A}", r"3\text{B}"),
    (r"2\mathrm{sin}(x)", r"2\mathrm{cos}(x)"),
]


@pytest.mark.parametrize("truth, box", WRONG)
def test_another_answer_is_wrong(truth, box):
    assert accuracy(rf"\boxed{{{box}}}", read_answer({"answer": truth})) == 0.0
    assert accuracy(rf"\boxed{{{truth}}}", read_answer({"answer": box})) == 0.0


@pytest.mark.parametrize("answer", ["Answer: 3", "The answer is: 3", "<final>5</final>", "\x08oxed{7}"])
def test_more_answers_that_a_box_can_hardly_match(capsys, answer):
    rewards.check_answers({4: "1", 9: answer}, "test")
    assert "such as that of row 9" in capsys.readouterr().out


def test_arguments_of_a_partial_precede_the_columns(objectives):
    def near(target, answer, **_):
        return float(target == answer)

    rewards.objective(functools.partial(near, target=10), "close")
    [[reward]] = rewards.score(["close"], ["x"], [{"target": 3, "answer": 10}], [1], 1.0)
    assert reward == 1.0


def test_a_method_may_be_registered_twice(objectives):
    class Judge:
        def polite(self, response, **_):
            return 1.0

    judge = Judge()
    rewards.objective(judge.polite)
    rewards.objective(judge.polite)
    with pytest.raises(ValueError, match="objective polite exists"):
        rewards.objective(Judge().polite)


def test_a_column_that_is_the_same_in_all_rows_is_no_question(tokenizer, tmp_path):
    rows = [
        {"prompt": "Answer the following question about numbers.", "problem": f"{i}+1?"} for i in range(30)
    ]
    for row in rows:
        row["answer"] = "1"
    problems = read(tokenizer, write_splits(tmp_path / "data", rows))
    assert "3+1?" in problems[3]["prompt"]
