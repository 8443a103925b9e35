"""Protects how data get in: what is read, refused in one line or warned of, and how splits are made."""

import datetime
import json
import math
import re

import datasets
import numpy
import pyarrow.parquet
import pytest
from conftest import ROOT
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import rewards

ROW = {"problem": "1+1?", "answer": "2"}
CHAT = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}]


def write(path, rows):
    """Writes a file of bytes, text, dictionaries (JSON lines) or an array of answers (parquet)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, pyarrow.Array):
        table = pyarrow.table({"problem": ["1+1?"] * len(rows), "answer": rows})
        return pyarrow.parquet.write_table(table, path)
    text = "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else rows
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def folder(tmp_path, rows, name=""):
    """A folder with test.jsonl and a training file, of the type at the end of `name` (default: jsonl)."""
    kind = re.search(r"\.([a-z]+)$", name) or [name, "jsonl"]
    write(tmp_path / f"data/train-0.{kind[1]}", rows)
    write(tmp_path / "data/test.jsonl", [ROW])
    return tmp_path / "data"


@pytest.fixture
def read(tokenizer):
    """read(path, split): the problems of a split."""

    def call(path, split="train", limit=64, **options):
        return rewards.read_problems(str(path), [split], tokenizer, limit, **options)[split]

    return call


def answers(problems):
    return [problem["answer"] for problem in problems]


def rows_of(count):
    return [{"problem": f"{i}+0?", "answer": i} for i in range(count)]


VERL = {"prompt": CHAT, "reward_model": {"ground_truth": "34", "style": "rule"}, "solution": "long"}
READ = {  # {name: (rows, answers)}
    "gsm8k": ([{"question": "1?", "answer": "One <<1+1=2>>\n#### 1,234\n"}], ["1,234"]),
    "math": ([{"problem": "1?", "solution": r"No $\boxed{3}$, $\boxed{\frac12}$."}], [r"\frac12"]),
    "openr1": ([{**ROW, "solution": r"It is \boxed{3}.", "reward_model": "gpt"}], ["2"]),
    "verl": ([VERL], ["34"]),
    "integers and text": ([{**ROW, "answer": x} for x in (0, "x", -7)], ["0", "x", "-7"]),
    "blank answers": ([{**ROW, "answer": x, "solution": r"\boxed{5}"} for x in (None, "")], ["5", "5"]),
    "other columns": ([ROW, {**ROW, "level": 1}, {**ROW, "level": "hard"}], ["2"] * 3),
    "array.json": (json.dumps([{**ROW, "answer": x} for x in ("007", "1.50")], indent=1), ["007", "1.50"]),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n", ["2"]),
    "numbers.csv": ("problem,answer\n1?,007\n2?,1.50\n", ["007", "1.50"]),
    "words.csv": ("problem,answer\n1?,NA\n2?,None\n", ["NA", "None"]),
    "quotes.csv": ('problem,answer\r\n"f(1,2)\nis?","1,234"\r\n', ["1,234"]),
    "integers.parquet": (pyarrow.array([7, 2**53 + 1]), ["7", "9007199254740993"]),
}


@pytest.mark.parametrize("name", READ)
def test_rows_are_read(read, tmp_path, capsys, name):
    rows, expected = READ[name]
    assert answers(read(folder(tmp_path, rows, name))) == expected
    assert "cannot be earned" not in capsys.readouterr().out


def test_the_question_comes_from_the_first_column_with_a_value(read, tmp_path, tokenizer):
    columns = [{"problem": "p?", "prompt": CHAT}, {"problem": "p?", "question": "q?"}, {"question": "q?"}]
    problems = read(folder(tmp_path, [{**row, "answer": "2"} for row in columns]), suffix=" Briefly.")
    assert problems[1]["question"] == "q?"  # Objectives get all columns.
    chats = [[{"role": "user", "content": f"{text} Briefly."}] for text in ("1+1?", "p?", "q?")]
    chats[0] = CHAT[:1] + chats[0]
    for problem, chat in zip(problems, chats, strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert problem["prompt"] == text
        assert problem["prompt_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_files_and_saved_data_are_read(read, tmp_path, monkeypatch):
    table = datasets.Dataset.from_list(rows_of(9))
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table.with_format("torch"), test=table).save_to_disk(tmp_path / "two")
    table.to_csv(tmp_path / "file.csv")
    write(tmp_path / "data [1]*/train.jsonl", rows_of(9))
    write(tmp_path / "data 1x/train.jsonl", [ROW])
    for name in ("one", "file.csv", "data [1]*", "data [1]*/train.jsonl"):
        splits = [answers(read(tmp_path / name, split)) for split in ("train", "test", "validation")]
        assert sorted(sum(splits, [])) == list("012345678")
    assert answers(read(tmp_path / "two")) == list("012345678")
    monkeypatch.chdir(tmp_path / "data [1]*")
    assert len(read(".")) == len(read("train.jsonl")) == 5
    table.to_pandas()[6:].to_parquet("test.parquet")  # with the index of pandas
    assert answers(read("test.parquet", "train", 64))[0] in "678"


def test_local_data_need_no_cache(read, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    assert len(read(ROOT / "tiny/data", "test")) == 200


def test_rows_need_an_answer_only_if_an_objective_has_a_parameter_answer(read, tmp_path, monkeypatch):
    monkeypatch.setitem(rewards.OBJECTIVES, "polite", lambda **columns: 1.0)
    path = folder(tmp_path, [ROW, {"problem": "Write a line."}])
    assert answers(read(path, objectives=["clarity", "polite"])) == ["2", None]
    with pytest.raises(ValueError, match="row 2 .*answer"):
        read(path, objectives=["polite", "accuracy"])


ANSWER, QUESTION, FILE = "^row 1 .train.: answer", "^row 1 .train.: prompt", "data cannot be read"
BAD_ANSWERS = [1e-05, True, ["7"], None, r"\boxed{ }"]
REFUSED = {str(x): ([{**ROW, "answer": x}], ANSWER) for x in BAD_ANSWERS}  # {name: (rows, message)}
BAD_QUESTIONS = [12, " ", [], str(CHAT), [{"role": "user", "content": CHAT}], [*CHAT, CHAT[0]]]
REFUSED |= {str(x): ([{"prompt": x, "answer": "2"}], QUESTION) for x in BAD_QUESTIONS}
REFUSED |= {
    "text and floats": ([ROW, {**ROW, "answer": "x"}, {**ROW, "answer": 0.5}], "^row 3 .train.: answer.*0.5"),
    "dates": ([{**ROW, "answer": f"2024-03-0{i}"} for i in (1, 2)], f"{ANSWER}.*text.*datetime"),
    "semicolons.csv": ("problem;answer\n1?;2\n", QUESTION),
    "commas.csv": ("answer,problem\n0,If 1, what?\n1,If 2, what?\n", f"{FILE}.*quoted.*header"),
    "comma in row 2.csv": ("problem,answer\n1?,3\nf(1,2)?,4\n", f"{FILE}.*line 3"),
    "utf-16": ('{"problem": "Co\u00fbt?", "answer": "2"}\n'.encode("utf-16"), f"{FILE}.*UTF-8"),
    "half a row": (b'{"problem": "1?"}\n{"problem": \n', f"{FILE}.*row 1"),
    "broken.parquet": (b"PAR1", FILE),
    "tabs.tsv": ("problem\tanswer\n1?\t2\n", f"{FILE}.*csv.*tsv"),
    "date.parquet": (pyarrow.array([datetime.date(2024, 3, 1)]), ANSWER),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(read, tmp_path, capfd, name):
    rows, pattern = REFUSED[name]
    with pytest.raises(ValueError) as raised:
        read(folder(tmp_path, rows, name))
    message = str(raised.value)
    assert re.search(pattern, message) and "\n" not in message and len(message) < 600, message
    assert capfd.readouterr().err == ""  # The library says nothing.


def test_an_error_has_the_number_of_the_row_in_a_file_that_is_divided(read, tmp_path):
    write(tmp_path / "a.jsonl", [*rows_of(13), {"problem": "1?", "answer": None}, *rows_of(6)])
    with pytest.raises(ValueError, match="^row 14 "):
        for split in ("train", "test", "validation"):
            read(tmp_path / "a.jsonl", split)


def test_class_labels_are_refused(read, tmp_path):
    features = {"problem": datasets.Value("string"), "answer": datasets.ClassLabel(names=["A", "B"])}
    columns = {"problem": ["x?"] * 6, "answer": [0, 1] * 3}
    table = datasets.Dataset.from_dict(columns, datasets.Features(features))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "a.parquet")
    for name in ("saved", "a.parquet"):
        with pytest.raises(ValueError, match=f"{name} cannot be read.*text"):
            read(tmp_path / name)


@pytest.mark.parametrize("names", ["Train.jsonl Test.jsonl", "TRAIN.csv test-1.jsonl", "data.jsonl", ""])
def test_the_split_of_a_file_is_that_of_its_name(read, tmp_path, names):
    (tmp_path / "data").mkdir()
    for name in names.split():
        rows = [{**ROW, "answer": name[:2].lower()}] * 5
        write(tmp_path / "data" / name, "problem,answer\n1?,tr\n" if name.endswith("csv") else rows)
    if " " in names:
        splits = [{*answers(read(tmp_path / "data", split))} for split in ("train", "test", "validation")]
        assert splits == [{"tr"}, {"te"}, {"te"}]
    else:
        with pytest.raises(ValueError, match="data has no rows in split train"):
            read(tmp_path / "data")


ODD = ["<answer> 7 </answer>", "**7**", "[7]", '"7"', "7.0", "5 cm", "60°", "25%", "{2", "1e-05", "−7", "2)?"]
ODD += ["Answer: 7", "It depends on the value.", "\frac{1}{2}", "\nu", "\boxed{7}"]
USUAL = ["7", r"\frac{1}{2}", r"5\text{ cm}", r"\text{Monday}", "$7$", r"\sin x + \cos y", "[1,7]", "(-2,7]"]
USUAL += [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "New York City", "2,125", r"25\%", "10:30", r"\{1, 2\}"]


@pytest.mark.parametrize("answer", ODD)
def test_answers_that_a_box_can_hardly_match_cause_one_warning(read, tmp_path, capsys, monkeypatch, answer):
    path, lines = folder(tmp_path, [{**ROW, "answer": x} for x in [*USUAL, answer]]), []
    for function in (rewards.accuracy, lambda response, answer, **_: 1.0):
        monkeypatch.setitem(rewards.OBJECTIVES, "accuracy", function)
        assert answers(read(path))[-1] == answer
        lines.append([line for line in capsys.readouterr().out.splitlines() if "cannot be earned" in line])
    [[line], nothing] = lines
    assert line.startswith("train") and "1 answer" in line and repr(answer) in line and nothing == []


@pytest.mark.parametrize("long", [0, 1, 5, 6, 10])
def test_at_most_half_of_the_prompts_may_be_too_long(read, tmp_path, capsys, long):
    rows = [{"problem": "1+" * (50 if i < long else 2) + "1?", "answer": i} for i in range(10)]
    path, count = folder(tmp_path, rows), f"^train: {10 - long} of 10 .*--max-prompt-tokens 64"
    if long <= 5:
        assert answers(read(path)) == [str(i) for i in range(long, 10)]
        assert re.search(count, capsys.readouterr().out)
    else:
        longest = max(len(problem["prompt_ids"]) for problem in read(path, limit=10**6))
        assert len(read(path, limit=longest)) == 10
        for limit in (64, longest - 1):
            with pytest.raises(ValueError, match=f"{count[:-2]}{limit}.* {longest}$"):
                read(path, limit=limit)


def permuted(count):
    """The numbers of the training, test and validation rows among `count`, from NumPy's permutations."""
    rest, train = numpy.split(numpy.random.default_rng(42).permutation(count), [math.ceil(0.4 * count)])
    order = numpy.random.default_rng(42).permutation(len(rest))
    validation, test = numpy.split(rest[order], [math.ceil(0.5 * len(rest))])
    return {"train": train, "test": test, "validation": validation}


@pytest.mark.parametrize("count", [3, 11, 500])
def test_a_single_split_is_divided_as_the_paper_divides_math_500(read, tmp_path, count):
    write(tmp_path / "a.jsonl", rows_of(count))
    for split, numbers in permuted(count).items():
        assert answers(read(tmp_path / "a.jsonl", split)) == [str(i) for i in numbers]


@pytest.mark.parametrize("other", [None, "validation", "val", "dev"])
def test_a_missing_validation_split_is_the_first_half_of_test(read, tmp_path, other):
    tables = {"train": rows_of(7), "test": rows_of(5), **({other: rows_of(9)[7:]} if other else {})}
    for split, rows in tables.items():
        write(tmp_path / f"files/{split}.jsonl", rows)
    tables = {split: datasets.Dataset.from_list(rows) for split, rows in tables.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    for name in ("files", "saved"):
        splits = [answers(read(tmp_path / name, split)) for split in ("train", "test", "validation")]
        assert splits == [list(text) for text in ("0123456", *(("01234", "78") if other else ("234", "01")))]


@pytest.mark.parametrize("most, places", [(1, "0"), (3, "036"), (9, "012345678"), (99, "0123456789")])
def test_evaluations_use_at_most_so_many_evenly_spaced_problems(read, tmp_path, most, places):
    for split in ("train", "test", "validation"):
        write(tmp_path / f"{split}.jsonl", rows_of(10))
    for split in ("test", "validation"):
        assert answers(read(tmp_path, split, max_eval_problems=most)) == list(places)
    assert len(read(tmp_path, max_eval_problems=most)) == 10


@pytest.mark.parametrize(
    "name, source",
    [
        ("math-500", ["HuggingFaceH4/MATH-500"]),
        ("math-algebra", ["DigitalLearningGmbH/MATH-lighteval", "algebra"]),
    ],
)
def test_the_papers_datasets_have_short_names_and_the_papers_suffix(read, monkeypatch, name, source):
    tables, sources = {"train": datasets.Dataset.from_list([ROW])}, []
    tables["test"] = tables["train"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *source: sources.append([*source]) or tables)
    text = r"1+1? Let's think step by step and output the final answer within \boxed{}.<|im_end|>"
    assert text in read(name, limit=99)[0]["prompt"] and "1+1?!<" in read(name, suffix="!")[0]["prompt"]
    assert sources == [source] * 2


@pytest.fixture
def changed():
    """A tokenizer that a test may change."""
    return AutoTokenizer.from_pretrained(ROOT / "tiny/model")


def first_prompt(tmp_path, tokenizer, **options):
    path = str(folder(tmp_path, [ROW]))
    return rewards.read_problems(path, ["train"], tokenizer, 64, **options)["train"][0]


def test_special_tokens_after_a_text_are_not_part_of_a_prompt(tmp_path, changed):
    changed.chat_template, ends = None, [("<|im_start|>", 1), ("<|endoftext|>", 0)]
    changed._tokenizer.post_processor = TemplateProcessing("<|im_start|> $A <|endoftext|>", None, ends)
    text = changed("1+1?\n", add_special_tokens=False)["input_ids"]
    assert changed("1+1?\n")["input_ids"] == [1, *text, 0]
    assert first_prompt(tmp_path, changed)["prompt_ids"] == [1, *text]


def test_the_error_of_a_template_names_the_row(tmp_path, changed):
    changed.chat_template = "{{ raise_exception('No sums') }}"
    with pytest.raises(ValueError, match="^row 1 .train.: No sums"):
        first_prompt(tmp_path, changed)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "\n<|im_end|>", "  <|new|> and more"])
def test_the_end_of_a_turn_is_an_added_token_special_or_not(changed, end):
    changed.add_tokens(["<|new|>"])
    changed.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    token = changed.decode(rewards.turn_end(changed))
    assert token in end and changed.added_tokens_decoder[rewards.turn_end(changed)].special == ("im" in token)
    for template in (changed.chat_template.replace(end, "\nWhat"), None):
        changed.chat_template = template
        assert rewards.turn_end(changed) is None
