"""Tests of how rewards.py registers objectives and reads data, in the forms that people have."""

import datetime
import functools
import gzip
import json
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


def answers_of(tokenizer, path):
    return [problem["answer"] for problem in read(tokenizer, path)]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_splits(folder, rows, test=None):
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "test.jsonl", test or [ROW])
    return folder


def write_parquet(folder, values):
    folder.mkdir()
    table = pyarrow.table({"problem": ["What is 1+1?"] * len(values), "answer": values})
    for split in ("train", "test"):
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder


# ------------------------------------------------------------------------------------------------------------
# Ground truths


# {ground truth: the answer in it}
GROUND_TRUTHS = {
    "<answer> 7 </answer>": "7",
    "<Answer>7</Answer>": "7",
    "<think>Maybe <answer>3</answer>?</think> <answer>\n7\n</answer> Done.": "7",
    "<think>3 + 4\n= 7</think>\n\n7": "7",
    r"<answer>$\boxed{7}$</answer>": "7",
    "3 and 4\n#### 7": "7",
    "$7$": "7",
    "$$\n7\n$$": "7",
    r"\( 7 \)": "7",
    r"\[7.\]": "7",
    r"\(\frac{a}{(b)}\)": r"\frac{a}{(b)}",
    r"\begin{equation*}7\end{equation*}": "7",
    r"\begin{pmatrix}7\end{pmatrix}": r"\begin{pmatrix}7\end{pmatrix}",
    "**7**": "7",
    "**$7$.**": "7",
    "<b>7</b>": "7",
    "`7`": "7",
    r"\textbf{7}": "7",
    r"\mathbf{\frac{1}{7}}": r"\frac{1}{7}",
    "7.": "7",
    "7.5.": "7.5",
    "$7$.": "7",
    "Answer: 7": "7",
    "**Answer:** 7.": "7",
    "**Final Answer**: **7**": "7",
    "The answer is $7$.": "7",
    '["7"]': "7",
    "['7']": "7",
    "[7]": "7",
    '[ "$7$" ]': "7",
    '["(1,2)"]': "(1,2)",
    '["\\\\frac{1}{7}"]': r"\\frac{1}{7}",  # MATH takes two backslashes as one.
    '"7"': "7",
    "[1,7]": "[1,7]",
    "(1,2)": "(1,2)",
    "(-1, 7]": "(-1, 7]",
    r"\(a\) or \(b\)": r"\(a\) or \(b\)",
    "$7$ or $8$": "$7$ or $8$",
    "7,000": "7000",
    r"7,\!000": "7000",
    r"$\$7{,}000$": r"\$7{,}000",
    "2024-03-01": "2024-03-01",
    "10:30": "10:30",
    "2/7": "2/7",
    ".7": "0.7",
    r"\{7\}": r"\{7\}",
}


@pytest.mark.parametrize("truth, answer", GROUND_TRUTHS.items())
def test_a_ground_truth_is_unwrapped_and_a_box_with_it_as_written_is_correct(truth, answer):
    assert read_answer({"answer": truth}) == read_answer({"solution": [truth]}) == answer
    for boxed in (truth, answer):
        assert accuracy(rf"So it is $\boxed{{{boxed}}}$.", answer) == 1.0
    assert accuracy(r"\boxed{9}", answer) == 0.0


def test_many_nested_wrappers_take_little_time():
    assert rewards.unwrap(r"\(" * 4000 + "7" + r"\)" * 4000) != ""
    assert rewards.unwrap("<answer> **`$(['7'])$`.** </answer>") == "(['7'])"
    assert rewards.unwrap("<answer> **`$['7']$`.** </answer>") == "7"


@pytest.mark.parametrize(
    "values, answers",
    [
        (np.array([0.1, 16.7, 2.0, 1e-6], np.float32), ["0.1", "16.7", "2", "0.000001"]),
        (np.array([0.1, 2.5], np.float16), ["0.1", "2.5"]),
        ([1e-5, 0.1 + 0.2, 1.0009765625, 3.0], ["0.00001", "0.30000000000000004", "1.0009765625", "3"]),
        ([2**53 + 1, 2**62], ["9007199254740993", "4611686018427387904"]),
        ([Decimal("2.50"), Decimal("0.07")], ["2.50", "0.07"]),
        ([Decimal("0.0000001"), Decimal("0.0000002")], ["0.0000001", "0.0000002"]),
        ([datetime.date(2024, 3, 1)], ["2024-03-01"]),
        (
            [datetime.datetime(2024, 3, 1), datetime.datetime(2024, 3, 1, 10, 30)],
            ["2024-03-01", "2024-03-01 10:30:00"],
        ),
        ([["7"], ["8"]], ["7", "8"]),
        (pyarrow.array([[0.1], [16.7]], pyarrow.list_(pyarrow.float32())), ["0.1", "16.7"]),
    ],
    ids=str,
)
def test_numbers_and_dates_in_parquet_keep_their_digits(tokenizer, tmp_path, values, answers):
    assert answers_of(tokenizer, write_parquet(tmp_path / "data", values)) == answers


def test_a_nested_ground_truth_keeps_its_digits(tokenizer, tmp_path):
    kind = pyarrow.struct([("ground_truth", pyarrow.float32()), ("style", pyarrow.string())])
    truths = pyarrow.array([{"ground_truth": 16.7, "style": "rule"}] * 6, kind)
    table = pyarrow.table({"prompt": ["1+1?"] * 6, "reward_model": truths})
    pyarrow.parquet.write_table(table, tmp_path / "one.parquet")
    assert answers_of(tokenizer, tmp_path / "one.parquet") == ["16.7"] * 3


@pytest.mark.parametrize(
    "text", ["0.00001", "2.50", "1e-7", "12345678901234567890", "3.14159265358979323846"]
)
def test_numbers_in_json_and_csv_keep_their_digits(tokenizer, tmp_path, text):
    (tmp_path / "one.jsonl").write_text(f'{{"problem": "1+1?", "answer": {text}, "level": 0.5}}\n' * 5)
    (tmp_path / "one.csv").write_text("problem,answer,level\n" + f"1+1?,{text},0.5\n" * 5)
    for name in ("one.jsonl", "one.csv"):
        problem = read(tokenizer, tmp_path / name)[0]
        assert problem["answer"] == ("0.0000001" if text == "1e-7" else text) and problem["level"] == 0.5


@pytest.mark.parametrize(
    "kind, value", [(np.float32, 2**24 + 2), (np.float64, 2.0**53), (np.float16, np.inf)]
)
def test_a_float_that_cannot_hold_all_digits_is_refused(tokenizer, tmp_path, kind, value):
    folder = write_parquet(tmp_path / "data", np.array([1.5, value], kind))
    with pytest.raises(ValueError, match="^row 2 of split train: the answer .* write it as text"):
        read(tokenizer, folder)


def test_texts_that_look_like_dates_stay_text(tokenizer, tmp_path):
    rows = [{"problem": "Which day?", "answer": f"2024-03-0{i}", "due": f"2024-04-0{i}"} for i in range(1, 6)]
    problems = read(tokenizer, write_splits(tmp_path / "data", rows))
    assert [problem["answer"] for problem in problems] == [row["answer"] for row in rows]
    assert problems[0]["due"] == "2024-04-01"


@pytest.mark.parametrize(
    "answers, row",
    [
        (["4", "It is five.", "6"], 2),
        (["4", "6", "see solution"], 3),
        (["5 apples", "4", "6"], 1),
        (["4", "}2"], 2),
        (["red", "green", "It depends on the value of x."], 3),
        (["4", '["5", "6"]'], 2),
        (["4", "6", "7", "<b>5"], 4),
    ],
)
def test_answers_that_a_box_is_unlikely_to_match_cause_one_warning(capsys, answers, row):
    rewards.check_answers(answers, "test")
    [line] = capsys.readouterr().out.splitlines()
    count = f"1 of {len(answers)} answers cannot be earned in a box, or hardly ever"
    assert line == f"test: warning: {count}, such as that of row {row}, {answers[row - 1]!r}"


@pytest.mark.parametrize(
    "answers",
    [
        ["4", "-3.5", "1,000", r"\frac{1}{2}", "x+1", "(1,2)", r"5\text{ cm}", "yes", r"\text{Monday}", "$7"],
        [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\sin x + \cos y", "4", "4 m", r"x \in [-2,7]"],
        ["red", "dark green", "New York City", "Carbon dioxide"],
    ],
)
def test_usual_answers_cause_no_warning(capsys, answers):
    rewards.check_answers(answers, "test")
    assert capsys.readouterr().out == ""


def test_only_the_accuracy_of_this_file_causes_the_warning(tokenizer, tmp_path, capsys, monkeypatch):
    folder = write_splits(tmp_path / "data", [{"problem": "1+1?", "answer": "}2"}])
    read(tokenizer, folder)
    assert "cannot be earned" in capsys.readouterr().out
    monkeypatch.setitem(rewards.OBJECTIVES, "accuracy", lambda response, answer, **_: 1.0)
    read(tokenizer, folder)
    assert "cannot be earned" not in capsys.readouterr().out


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
        ({"question": "1+1?", "prompt": [USER]}, "prompt"),
        ({"problem": "What is 1+1? Answer in a box.", "prompt": "1+1?"}, "problem"),
    ],
)
def test_of_several_columns_the_one_with_the_most_text_is_used_and_named(
    tokenizer, tmp_path, capsys, row, column
):
    [problem] = read(tokenizer, write_splits(tmp_path / "data", [{**row, "answer": "2"}]))
    expected = read_question({"prompt": row[column]})
    assert problem["prompt"] == tokenizer.apply_chat_template(
        expected, tokenize=False, add_generation_prompt=True
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "the questions are in" in line]
    assert len(lines) == 1 and lines[0].startswith(f"train: the questions are in column {column},")


@pytest.mark.parametrize(
    "messages, contents",
    [
        (
            [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
            ["1+1?"],
        ),
        ([{"role": "user", "content": ["1+", "1?"]}], ["1+1?"]),
        ([{"role": "user", "content": [{"type": "text", "text": "1+1?", "image": None}]}], ["1+1?"]),
        ([{"role": "system", "content": ""}, USER], ["", "1+1?"]),
        ([{"role": "system", "content": None}, USER], ["", "1+1?"]),
        ([{"role": "system", "content": [{"type": "text", "text": ""}]}, USER], ["", "1+1?"]),
        ([USER, CALL, {"role": "tool", "content": "2"}, USER], ["1+1?", "", "2", "1+1?"]),
        ([USER, {**CALL, "content": ""}, {"role": "tool", "content": ""}, USER], ["1+1?", "", "", "1+1?"]),
        ([USER, {"role": "assistant", "content": "2", "tool_calls": None}, USER], ["1+1?", "2", "1+1?"]),
    ],
)
def test_contents_may_be_parts_or_empty_where_that_has_a_meaning(messages, contents):
    chat = read_question({"prompt": messages})
    assert [message["content"] for message in chat] == contents
    assert [message.get("tool_calls") for message in chat] == [
        message.get("tool_calls") for message in messages
    ]
    assert not any(value is None for message in chat for value in message.values())


@pytest.mark.parametrize(
    "messages, error",
    [
        (
            [USER, {"role": "assistant", "content": "2"}],
            "message 2 .* has role 'assistant': .* last one must be user",
        ),
        ([{"content": "1+1?"}], "message 1 .* has role None"),
        ([USER, {"role": "assistant", "content": " "}, USER], "message 2 .* has no content"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}],
            "message 2 .* has no content",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}],
            "message 1 .* that is not text",
        ),
        ([{"role": "user", "content": 12}], "message 1 .* that is not text"),
        ([{"role": "user", "content": {"text": "1+1?"}}, 3], "column prompt needs text or chat messages"),
        (["1+1?"], "column prompt needs text or chat messages"),
        (12, "column prompt needs text or chat messages"),
    ],
)
def test_a_refusal_names_the_row_the_message_and_the_fault(messages, error):
    with pytest.raises(ValueError, match=f"^row 2 of split test: {error}"):
        rewards.read_rows([{"prompt": [USER]}, {"prompt": messages}], "test", "", False, False)


# ------------------------------------------------------------------------------------------------------------
# Objectives, and rows without an answer


def near(length, target, **_):
    return max(0.0, 1 - abs(length - target) / target)


class Grader:
    def __call__(self, response, answer, **_):
        return float(answer in response)

    def grade(self, response, **columns):
        return float(columns["answer"] in response)


class Reader:
    def __call__(self, **columns):
        return float(columns["answer"] in columns["response"])


def make_near(target):
    def near_target(length, **_):
        return near(length, target)

    return near_target


@functools.wraps(near)
def wrapped(*args, **kwargs):
    return near(*args, **kwargs)


@pytest.fixture
def objectives(monkeypatch):
    """A copy of OBJECTIVES that a test may change."""
    monkeypatch.setattr(rewards, "OBJECTIVES", dict(rewards.OBJECTIVES))
    return rewards.OBJECTIVES


@pytest.mark.parametrize(
    "function, name",
    [
        (near, "near"),
        (functools.partial(near, target=10), "near"),
        (functools.partial(functools.partial(near), target=10), "near"),
        (functools.partial(Grader(), answer="2"), "Grader"),
        (Grader(), "Grader"),
        (Grader().grade, "grade"),
        (make_near(10), "near_target"),
        (wrapped, "near"),
    ],
)
def test_any_callable_is_registered_under_its_name(objectives, function, name):
    assert rewards.objective(function) is function and objectives[name] is function
    assert rewards.objective(function, name="other") is function and objectives["other"] is function


def test_a_lambda_and_a_value_need_a_name_and_a_call(objectives):
    for function in (lambda **_: 1.0, 0.5, "near"):
        with pytest.raises(ValueError, match="use objective\\(function, name=...\\)"):
            rewards.objective(function)
    rewards.objective(lambda **_: 1.0, name="always")
    assert rewards.score(["always"], ["a"], [{}], [1], 1.0) == [[1.0]]


def test_a_registered_objective_is_not_replaced(objectives):
    rewards.objective(functools.partial(near, target=10))
    with pytest.raises(ValueError, match="^objective near exists: use another name"):
        rewards.objective(functools.partial(near, target=20))
    rewards.objective(functools.partial(near, target=20), name="near_20")
    for name in ("clarity", "conciseness"):
        with pytest.raises(ValueError, match=f"objective {name} exists"):
            rewards.objective(near, name=name)
    rewards.objective(objectives["clarity"])  # the same function again


def test_accuracy_can_be_replaced_once(objectives):
    @rewards.objective
    def accuracy(response, answer, **_):
        return float(response.rpartition("####")[2].strip() == answer)

    assert rewards.score(["accuracy"], ["#### 2"], [ROW], [1], 1.0) == [[1.0]]
    with pytest.raises(ValueError, match="objective accuracy exists"):
        rewards.objective(near, name="accuracy")


def keywords_only(**columns):
    return float(columns["answer"] in columns["response"])


def keywords_without_answer(**columns):
    return float("please" in columns["response"])


@pytest.mark.parametrize(
    "function, expected",
    [
        (rewards.accuracy, True),
        (rewards.conciseness, False),
        (rewards.clarity, False),
        (Grader(), True),
        (Grader().grade, True),
        (functools.partial(Grader(), answer="2"), False),
        (functools.partial(keywords_only), True),
        (Reader(), True),
        (keywords_only, True),
        (keywords_without_answer, False),
        (lambda response, answer=None, **_: 1.0, False),
        (lambda response, *, answer, **_: 1.0, True),
        (make_near(10), False),
        (wrapped, False),
        (max, True),
    ],
)
def test_whether_an_objective_needs_an_answer(function, expected):
    assert rewards.needs_answer(function) == expected


def test_rows_need_an_answer_only_if_an_objective_needs_it(objectives, tokenizer, tmp_path):
    objectives["polite"] = keywords_without_answer
    objectives["right"] = keywords_only
    folder = write_splits(tmp_path / "data", [ROW, {"problem": "Write a line."}], [{"problem": "Write."}])
    for names in (["conciseness", "polite"], ["clarity", "conciseness"]):
        assert [p["answer"] for p in read(tokenizer, folder, objectives=names)] == ["2", None]
    for names in (["conciseness", "right"], ["accuracy", "polite"]):
        with pytest.raises(ValueError, match="^row 2 of split train: column answer, .* needs one value"):
            read(tokenizer, folder, objectives=names)


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
    "plain.csv": CSV.encode(),
    "excel.csv": b"\xef\xbb\xbf" + CSV.replace(",", ";").replace("\n", "\r\n").encode(),
    "quoted.csv": CSV.replace("What is", '"What\nis').replace("?", '?"').encode(),
    "tabs.tsv": CSV.replace(",", "\t").encode(),
    "a[b]*?{c}.jsonl": LINES.encode(),
    "a[b]*?{c}.csv": CSV.encode(),
    "dots.v1.jsonl": LINES.encode(),
    "UPPER.CSV": CSV.encode(),
    "csv.parquet.json": LINES.encode(),
    "no-ending": LINES.encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_single_files_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    [rows] = rewards.load_files(str(tmp_path / name)).values()
    assert [{key: value.replace("\n", " ") for key, value in row.items()} for row in rows] == ROWS


@pytest.mark.parametrize("name", ["plain", "a[b]", "a*b", "what?", "{a}", "[0-9]", "a b#c"])
@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_the_name_of_a_folder_is_literal(tmp_path, name, end):
    for folder, rows in ((name, ROWS), ("a", ROWS[:1]), ("aab", ROWS[:1]), ("whats", ROWS[:1])):
        (tmp_path / folder).mkdir()
        for split in ("train", "test-00000-of-00002", "test-00001-of-00002"):
            path = tmp_path / folder / f"{split}.{end}"
            {"jsonl": datasets.Dataset.to_json, "csv": datasets.Dataset.to_csv}.get(
                end, datasets.Dataset.to_parquet
            )(datasets.Dataset.from_list(rows), path)
    assert rewards.load_files(str(tmp_path / name)) == {"train": ROWS, "test": ROWS * 2}


def test_what_save_to_disk_wrote_is_read(tmp_path):
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    one.select([2, 0]).save_to_disk(tmp_path / "selected")
    datasets.DatasetDict(train=one, test=one.take(2)).save_to_disk(tmp_path / "two[1]")
    assert rewards.load_files(str(tmp_path / "one")) == {"train": ROWS}
    assert rewards.load_files(str(tmp_path / "selected")) == {"train": [ROWS[2], ROWS[0]]}
    assert rewards.load_files(str(tmp_path / "two[1]")) == {"train": ROWS, "test": ROWS[:2]}
    assert {name: len(rows) for name, rows in rewards.load_splits(str(tmp_path / "one")).items()} == {
        "train": 3,
        "test": 1,
        "validation": 2,
    }


FRENCH = '{"problem": "Combien co\u00fbte 1\u20ac+1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    "name, content, error",
    [
        (
            "a.jsonl",
            FRENCH.encode("cp1252"),
            "a.jsonl is not in UTF-8; if it is text, try: iconv -f WINDOWS-1252",
        ),
        ("a.csv", "problem,answer\nCo\u00fbt?,2\n".encode("latin-1"), "a.csv is not in UTF-8"),
        ("a.json", FRENCH.encode("utf-16"), "a.json is not in UTF-8; if it is text, try: iconv -f UTF-16"),
        ("a.jsonl", b'{"problem": "1+1?"}\n{"problem": \n', "a.jsonl is not a valid json file: .* line 2"),
        ("a.jsonl", b"1\n2\n", "a.jsonl is not a valid json file"),
        ("a.txt", b"Hello", "a.txt is not a valid json file"),
        ("a.csv", b"problem,answer\n1+1?,2\n1+2?,3,4\n", "a.csv is not a valid csv file: .* line 3"),
        ("a.csv", b"problem,answer\nf(1,2)?,3\nf(2,2)?,4\n", "a.csv is not .* put quotes around commas"),
        ("a.csv", b"", "a.csv is not a valid csv file"),
        ("a.parquet", b"PAR1", "a.parquet is not a valid parquet file"),
    ],
)
def test_an_error_names_the_file_and_its_fault(tmp_path, name, content, error):
    for folder in ("file", "folder"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / (name if folder == "file" else f"train-{name}")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=error) as raised:
            rewards.load_splits(str(path if folder == "file" else path.parent))
        assert str(raised.value).count("\n") <= 1


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
    for split in ("train", "validation", "test"):
        write_lines(tmp_path / f"{split}.jsonl", rows)
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
