"""Tests of rewards.py. Expected values follow from the rules by hand, or are outputs of the paper's code."""

import json
import random
import time
import traceback
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import datasets
import numpy
import pytest
import torch
from conftest import ROOT
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import rewards
from rewards import accuracy, clarity, conciseness, objective, performance, read_answer, read_question, score

# The file is outside the repository, because its cases quote problems of MATH.
ORACLE = Path(__file__).resolve().parents[2] / "shared/oracles/rewards.json"


# ------------------------------------------------------------------------------------------------------------
# Outputs of the paper's code


@pytest.mark.skipif(not ORACLE.exists(), reason="the outputs of the paper's code are missing")
def test_rewards_equal_those_of_the_papers_code():
    cases = json.loads(ORACLE.read_text(encoding="utf-8"))
    assert len(cases["accuracy"]) > 0 and len(cases["clarity"]) > 0
    wrong = [c for c in cases["accuracy"] if accuracy(c["response"], c["ground_truth"]) != c["accuracy"]]
    wrong += [c for c in cases["clarity"] if clarity(c["response"]) != c["clarity"]]
    assert wrong == []


# ------------------------------------------------------------------------------------------------------------
# Accuracy


@pytest.mark.parametrize(
    "response, answer, expected",
    [
        (r"so it is \boxed{7}.", "7", 1.0),
        (r"so it is \boxed{8}.", "7", 0.0),
        ("so it is 7.", "7", 0.0),  # no box
        ("", "", 0.0),
        (r"\boxed{3} or rather \boxed{7}", "7", 1.0),  # the last box counts
        (r"\boxed{7} or rather \boxed{3}", "7", 0.0),
        (r"\boxed{\frac{1}{\sqrt{2}}} ends }", r"\frac{1}{\sqrt{2}}", 1.0),  # nested braces
        (r"\boxed{7", "7", 0.0),
        (r"\boxed{7} and \boxed{7", "7", 0.0),  # the last box is not closed
        (r"\boxed{}", "7", 0.0),
        (r"\boxed{{7}", "7", 0.0),
        (r"$\boxed 7$ apples", "7", 1.0),
        (r"\boxed 7", "7", 1.0),
        (r"\boxed 3$ or rather \boxed{7}", "7", 1.0),
        (r"\boxed7", "7", 0.0),  # neither a brace nor a space
        (r"\boxed", "", 0.0),
        (r"\fbox{7}", "7", 0.0),  # as in the evaluation of MATH
    ],
)
def test_accuracy_uses_the_last_box(response, answer, expected):
    assert accuracy(response, answer) == expected


EQUAL = [
    ("1\n+2", "1+2"),
    (r"1\!000", "1000"),
    (r"a\\b", r"a\b"),
    (r"\tfrac{1}{3}", r"\frac{1}{3}"),
    (r"\dfrac{1}{3}", r"\frac{1}{3}"),
    (r"\left(1,2\right)", "(1,2)"),
    (r"90^{\circ}", "90"),
    (r"90^\circ", "90"),
    (r"\$5", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"25\%", "25"),
    ("3, .5", "3,0.5"),
    (r"\sqrt{.5}", r"\sqrt{0.5}"),
    (".25", "0.25"),
    ("k=4", "4"),
    ("k = 4", "4"),
    (r"\sqrt3", r"\sqrt{3}"),
    (r"2\sqrt3+\sqrt5", r"2\sqrt{3}+\sqrt{5}"),
    ("( 1, 2 )", "(1,2)"),
    (r"\frac12", r"\frac{1}{2}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"\frac12+\frac34", r"\frac{1}{2}+\frac{3}{4}"),
    (r"\frac 1 2", r"\frac{1}{2}"),
    (r"\frac\pi2", r"\frac\pi2"),
    ("0.5", r"\frac{1}{2}"),
    (".5", r"\frac{1}{2}"),
    ("3/4", r"\frac{3}{4}"),
    ("-3/4", r"\frac{-3}{4}"),
    (r"x=\dfrac34\text{ miles}", "3/4"),  # several rules at once
]
DIFFERENT = [
    ("1", "2"),
    ("2/4", "1/2"),  # nothing is computed
    ("X", "x"),
    (r"\text{cm}", ""),  # without the space it is not a unit
    (r"3\text{ m} 4\text{ cm}", "3"),  # two units are kept
    ("abc=4", "4"),  # the name has more than two characters
    ("a=b=4", "4"),  # two equals signs
    ("a=b=4", "b"),
    (r"\frac{72}1", r"\frac{72}{1}"),
    ("1/2/3", r"\frac{1}{2}/3"),
    ("1,2", "12"),
    ("12,34", "1234"),
    ("1, 234", "1234"),  # With a space, the comma separates two elements.
    ("0,125", "125"),
    ("1.5", "15"),
    ("(1,234)", "(1234)"),  # In brackets, it does without a space, too.
    (r"\{1,234\}", r"\{1234\}"),
    ("a/b", r"\frac{a}{b}"),  # integers only
    ("x+1/2", r"x+\frac{1}{2}"),
    (r"\sqrt 3", r"\sqrt{3}"),  # MATH takes the space as the radicand
]


# The evaluation of MATH, which is that of the paper, compares these as they are written.
EQUAL_BUT_NOT_IN_THE_PAPER = [
    ("1000", "1,000"),
    ("1000", "1{,}000"),
    ("1234567.5", r"1,\!234,\!567.5"),
    ("1234567", r"1\,234\,567"),
    ("1000", "1\u202f000"),
    ("1000", "1\u2009000"),
    ("1000", "1_000"),
    ("1000", "1'000"),
    ("1000", "1~000"),
    ("(1,2)", r"(1,\,2)"),
    (r"2\pi", r"2\,\pi"),
    ("2000", "$2,000"),
    ("5", "5."),
    ("7", "007"),
    ("2.5", "2.50"),
    ("3", "3.000"),
    ("0.50", r"\frac{1}{2}"),
    ("0.0025", "2.5e-3"),
    ("120000", "1.2E5"),
    ("5", "+5"),
    ("25%", "25"),
    ("60°", "60"),
    ("\u22125", "-5"),
    ("B", r"\text{B}"),
    ("B", r"\mathbf{B}"),
    (r"\frac{1}{2}", r"\textbf{\frac{1}{2}}"),
    ("7", "$7$"),
    ("7", "**7**"),
    ("7", "<answer>7</answer>"),
    ("7", "[7]"),
]


@pytest.mark.parametrize("one, other, expected", [(*p, 1.0) for p in EQUAL] + [(*p, 0.0) for p in DIFFERENT])
@pytest.mark.parametrize("as_in_paper", [False, True])
def test_accuracy_normalises_both_sides(one, other, expected, as_in_paper):
    assert accuracy(rf"\boxed{{{one}}}", other, as_in_paper=as_in_paper) == expected
    assert accuracy(rf"\boxed{{{other}}}", one, as_in_paper=as_in_paper) == expected


@pytest.mark.parametrize("one, other", EQUAL_BUT_NOT_IN_THE_PAPER)
def test_accuracy_ignores_notation_that_the_paper_does_not_ignore(one, other):
    for answer, boxed in ((one, other), (other, one)):
        assert accuracy(rf"\boxed{{{boxed}}}", answer) == 1.0
        assert accuracy(rf"\boxed{{{boxed}}}", answer, as_in_paper=True) == 0.0


# ------------------------------------------------------------------------------------------------------------
# Conciseness


def test_conciseness_requires_a_length_below_the_mean():
    assert conciseness(9, 10.0) == 1.0
    assert conciseness(10, 10.0) == 0.0
    assert conciseness(10, 10.01) == 1.0
    assert conciseness(11, 10.0) == 0.0


# ------------------------------------------------------------------------------------------------------------
# Clarity


@pytest.mark.parametrize(
    "steps, expected",
    [
        ("", 0.0),
        ("It is plain.", 0.0),
        # Enumerators: two of them, at the start or after a space, a newline or a bracket.
        ("1. add 2. divide", 1.0),
        ("1. add", 0.0),
        ("10) add\n11) divide", 1.0),
        ("1: add 2: divide", 1.0),
        ("1- add 2- divide", 1.0),
        ("1 add 2 divide", 0.0),
        ("1, add 2, divide", 0.0),
        ("a) add b) divide", 1.0),
        ("(a) add (b) divide", 1.0),
        ("[a) add [b) divide", 0.0),
        ("A. add B. divide", 1.0),
        ("ab) add cd) divide", 0.0),
        ("(ii) add (iii) divide", 1.0),
        ("XIV. add XV. divide", 1.0),
        ("Step 1: add. Step 2: divide.", 1.0),
        ("STEP1: add. step\nB) divide.", 1.0),
        ("Step 1: add.", 0.0),
        ("Step 1, add. Step 2, divide.", 0.0),
        ("=1. =2.", 0.0),  # an enumerator follows a space, a newline or a bracket
        ("- add\n- divide", 1.0),
        ("* add\n* divide", 1.0),
        ("• add\n• divide", 1.0),
        ("+ add\n+ divide", 0.0),
        ("*\n1. add", 1.0),  # each begins a line
        ("- add", 0.0),
        ("ab- cd- ef", 0.0),
        ("-add\n-divide", 0.0),
        ("1. add\n- divide", 1.0),  # a number and a bullet
        # Ordinal words: two of them, the same one twice included.
        ("first add, next divide", 1.0),
        ("First add. Then divide.", 1.0),
        ("then add, then divide", 1.0),
        ("then add", 0.0),
        ("thence add, firstly divide", 0.0),  # whole words
        ("strengthen headfirst", 0.0),
        ("finally add, lastly divide", 0.0),
        ("first add\n- divide", 0.0),  # one ordinal and one enumerator
        # The patterns also match these, as the paper's do.
        ("sum = 13. So, twice = 26. Done", 1.0),
        ("about 12.5 and 3.6", 1.0),
        ("5 - 3 - 1", 1.0),
        ("f(x) is g(x)", 1.0),
    ],
)
def test_clarity_requires_two_enumerators_or_two_ordinals(steps, expected):
    assert clarity(steps + r" gives \boxed{7}") == expected


ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth next then"


@pytest.mark.parametrize("word", ORDINALS.split())
def test_clarity_knows_the_ordinals(word):
    assert clarity(rf"{word} and {word} \boxed{{7}}") == 1.0
    assert clarity(rf"{word} \boxed{{7}}") == 0.0


@pytest.mark.parametrize(
    "box, expected",
    [
        (r"\boxed{7}", 1.0),
        ("\\boxed{ \n 7 }", 1.0),
        (r"\boxed{7} and \boxed{}", 1.0),  # one of the boxes is enough
        ("", 0.0),
        ("7", 0.0),
        (r"\boxed{}", 0.0),
        ("\\boxed{ \n\t }", 0.0),
        (r"\boxed{7", 0.0),
        (r"\boxed{\frac{1}{2}", 1.0),  # cut off, but there is a closing brace
        (r"\boxed 7$", 0.0),
        (r"\fbox{7}", 0.0),
    ],
)
def test_clarity_requires_a_box_that_is_not_blank(box, expected):
    assert clarity("1. add 2. divide " + box) == expected


# ------------------------------------------------------------------------------------------------------------
# Scores and performance


def test_score_returns_a_row_per_response_and_a_column_per_objective():
    responses = [r"1. x 2. \boxed{4}", r"\boxed{5}", "what?"]
    expected = {"accuracy": [1.0, 1.0, 0.0], "conciseness": [0.0, 1.0, 1.0], "clarity": [1.0, 0.0, 0.0]}
    for names in (["accuracy", "conciseness", "clarity"], ["clarity", "accuracy"], ["conciseness"], []):
        rows = score(names, responses, [{"answer": a} for a in "456"], [30, 10, 5], 15.0)
        assert rows == [[expected[name][i] for name in names] for i in range(3)]
        assert all(type(value) is float for row in rows for value in row)
    assert score(["accuracy"], [], [], [], 0.0) == []


def test_users_objectives_get_all_arguments_and_columns(monkeypatch):
    monkeypatch.setattr(rewards, "OBJECTIVES", dict(rewards.OBJECTIVES))

    # Without **_, any other argument would raise an exception.
    @objective
    def brevity(response, answer, length, mean_length, level, step):
        return length / mean_length + len(response) + len(answer) + 100 * level + 1000 * step

    @objective
    def politeness(response, **_):
        return float("please" in response)

    names, problem = ["politeness", "accuracy", "brevity"], {"answer": "4", "level": 2}
    assert score(names, [r"please \boxed{4}"], [problem], [5], 10.0, 3) == [[1.0, 1.0, 3217.5]]
    assert politeness(response="no") == 0.0  # the decorator returns the function unchanged


def test_everything_that_float_accepts_is_a_reward(monkeypatch):
    class Half:
        def __float__(self):
            return 0.5

    values = [
        numpy.float32(0.5),
        numpy.array(0.5),
        torch.tensor([0.5]),
        torch.tensor(0.5),
    ]
    values += [Fraction(1, 2), Decimal("0.5"), Half(), "0.5", True, 2, numpy.bool_(True), numpy.int64(2)]
    objectives = {str(i): lambda value=value, **_: value for i, value in enumerate(values)}
    monkeypatch.setattr(rewards, "OBJECTIVES", objectives)
    [row] = score(list(objectives), ["a"], [{"answer": "b"}], [1], 1.0)
    assert row == [0.5] * 8 + [1, 2, 1, 2] and all(type(value) is float for value in row)


@pytest.mark.parametrize(
    "value",
    [None, "one", 1j, float("nan"), "inf", [1.0], torch.ones(2), 10**400, Decimal("nan"), object()],
)
def test_score_refuses_a_reward_that_is_not_a_finite_number(monkeypatch, value):
    objectives = {"politeness": lambda length, **_: value if length == 3 else 1}
    monkeypatch.setattr(rewards, "OBJECTIVES", objectives)
    problems = [{"prompt": "1+1?"}, {"prompt": "2+2?"}]
    with pytest.raises((ValueError, TypeError, RuntimeError, OverflowError)) as raised:
        score(["politeness"], ["a", "a"], problems, [1, 3], 1.0, 7, "validation")
    note = "objective politeness, split validation, step 7\nthe prompt begins with '2+2?'"
    assert raised.value.__notes__ == [note] and str(raised.value)


def test_a_note_on_an_objectives_exception_names_the_objective_and_the_problem(monkeypatch):
    class MoodError(Exception):
        pass

    def politeness(response, **_):
        if response == "b":
            raise MoodError("no mood")
        return 1.0

    monkeypatch.setattr(rewards, "OBJECTIVES", {"politeness": politeness})
    problems = [{"prompt": "What is 1+1?"}, {"prompt": "What is\n" + "1+" * 200 + "1?"}]
    with pytest.raises(MoodError) as raised:
        score(["politeness"], ["a", "b"], problems, [1, 1], 1.0, split="test")
    assert type(raised.value) is MoodError and raised.value.args == ("no mood",)
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "politeness"
    [note] = raised.value.__notes__
    first, second = note.splitlines()
    assert first == "objective politeness, split test, step 0"
    assert second == "the prompt begins with " + repr("What is\n" + "1+" * 76)


def test_the_note_on_an_exception_needs_no_prompt(monkeypatch):
    monkeypatch.setattr(rewards, "OBJECTIVES", {"politeness": lambda **_: {}["mood"]})
    with pytest.raises(KeyError) as raised:
        score(["politeness"], ["a"], [{}], [1], 1.0, 3)
    assert raised.value.__notes__[0].startswith("objective politeness, split train, step 3\n")


def test_score_refuses_unknown_names_and_lists_of_different_lengths():
    with pytest.raises(KeyError, match="acuracy"):
        score(["acuracy"], ["a"], [{}], [1], 1.0)
    for responses, problems, lengths in ([["a"], [], [1]], [["a"], [{"answer": "a"}], []], [[], [{}], [1]]):
        with pytest.raises(ValueError):
            score(["accuracy"], responses, problems, lengths, 1.0)


def test_performance_is_the_reward_but_for_conciseness():
    names = ["accuracy", "conciseness", "clarity"]
    assert performance(names, [1, 0.0, 0.25], 24, 96) == [1.0, 0.75, 0.25]
    assert performance(names[::-1], [0.25, 1.0, 0.5], 96, 96) == [0.25, 0.0, 0.5]
    assert performance(["politeness"], [0.5], 24, 96) == [0.5]
    values = performance(["accuracy", "conciseness"], [True, False], 0, 96)
    assert values == [1.0, 1.0] and all(type(value) is float for value in values)
    with pytest.raises(ValueError):
        performance(names, [1.0, 1.0], 24, 96)


def test_an_objective_can_define_its_performance(monkeypatch):
    def function(reward, length, limit):
        return reward - length / limit

    monkeypatch.setitem(rewards.PERFORMANCE, "politeness", function)
    assert performance(["accuracy", "politeness"], [0.5, 0.75], 24, 96) == [0.5, 0.5]


def test_the_performance_of_means_is_the_mean_performance():
    names, lengths = list(rewards.PERFORMANCE), [10, 60, 96]
    rows = [[reward] * len(names) for reward in (1.0, 0.0, 0.5)]
    each = [performance(names, row, length, 96) for row, length in zip(rows, lengths)]
    means = performance(names, numpy.mean(rows, 0), numpy.mean(lengths), 96)
    assert means == pytest.approx(numpy.mean(each, 0).tolist())


# ------------------------------------------------------------------------------------------------------------
# Problems


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    "row, content, answer",
    [
        ({"problem": "1+1?", "answer": "2", "solution": r"\boxed{3}", "reward_model": "gpt"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": 2}, "1+1?", "2"),
        ({"question": "1+1?", "answer": "One and one.\n#### 2"}, "1+1?", "2"),  # GSM8K
        ({"prompt": MESSAGES, "solution": r"so $\boxed{3}$, no $\boxed{2}$."}, None, "2"),  # TRL
        ({"prompt": "1+1?", "solution": "2"}, "1+1?", "2"),
        ({"prompt": "1+1?", "solution": 2}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": 2.0}, "1+1?", "2"),
        ({"problem": "1/2+2?", "answer": 2.5}, "1/2+2?", "2.5"),
        ({"prompt": MESSAGES, "solution": "long", "reward_model": {"ground_truth": "2"}}, None, "2"),  # verl
        ({"prompt": MESSAGES, "reward_model": {"ground_truth": ["2"]}}, None, "2"),  # verl
        ({"problem": "1+1?", "solution": "One and one.\n#### 2"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": r"It is $\boxed{2}$."}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": "$2$"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": "$2$ or $3$"}, "1+1?", "$2$ or $3$"),
        ({"problem": "1+1?", "answer": None, "solution": "2"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": float("nan"), "solution": "2"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": " ", "solution": ["2"]}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": "None"}, "1+1?", "None"),
        ({"problem": "1+1?", "answer": "nan"}, "1+1?", "nan"),
        ({"problem": "1+1?", "answer": False}, "1+1?", "False"),
        ({"problem": "1+1?", "answer": 0}, "1+1?", "0"),
        ({"problem": "1+1?", "answer": [], "solution": 2}, "1+1?", "2"),
    ],
)
def test_question_and_answer_of_common_datasets(row, content, answer):
    messages = MESSAGES if content is None else [{"role": "user", "content": content}]
    assert (read_question(row), read_answer(row)) == (messages, answer)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"problem": "1+1?"},
        {"answer": "2"},
        {"problem": None, "answer": "2"},
        {"problem": 12, "answer": "2"},
        {"problem": " ", "answer": "2"},
        {"problem": "1+1?", "answer": None},
        {"problem": "1+1?", "answer": ["2", "3"], "solution": "2"},
        {"problem": "1+1?", "answer": []},
        {"problem": "1+1?", "answer": [None]},
        {"problem": "1+1?", "answer": float("nan")},
        {"problem": "1+1?", "answer": r"so \boxed{ }"},
        {"problem": "1+1?", "answer": ""},
        {"problem": "1+1?", "answer": " ... "},
        {"problem": "1+1?", "answer": {"value": 2}},
        {"prompt": [], "answer": "2"},
        {"prompt": "1+1?", "reward_model": {"truth": "2"}},
    ],
)
def test_rows_without_question_or_answer_are_refused(row):
    with pytest.raises(ValueError, match="^row 7 .split test.: one of the columns .* needs "):
        rewards.read_rows([(7, row or {"level": 1})], {}, "test", "", True, False)


NUMBERS = {"2,125": "2125", "-1,234,567.5": "-1234567.5", "033": "33", "-007": "-7", "000": "0", "0": "0"}
NUMBERS |= {
    "1 000": "1000",
    "-1\u202f234\u202f567": "-1234567",
    "1e-7": "0.0000001",
    "2.5E+3": "2500",
    "1{,}000": "1000",
    "+5": "5",
    "9" * 5000: "9" * 5000,
}
NUMBERS |= {"0.50": "0.5", "1'000": "1000", r"1,\!000": "1000", r"1\,000": "1000", "2_000_000": "2000000"}
texts = ["1,2", "12,34", "0,125", "(1,234)", "x033", "033\n", "1_0", "1,0000", "inf", ".", ""]
NUMBERS |= {text: text for text in texts}


@pytest.mark.parametrize("answer, expected", NUMBERS.items())
def test_a_number_is_read_without_separators_leading_zeros_and_exponent(answer, expected):
    assert rewards.bare_number(answer) == expected


def write(folder, **splits):
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def problems_in(folder, split="train"):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    return rewards.read_problems(folder, [split], tokenizer, 640)[split]


def test_numbers_are_read_without_commas_except_in_the_papers_data(tmp_path, monkeypatch):
    folder = write(
        tmp_path, train=[{"problem": "?", "answer": "2,125"}], test=[{"problem": "?", "answer": "033"}]
    )
    assert [problems_in(folder, split)[0]["answer"] for split in ("train", "test")] == ["2125", "33"]
    assert accuracy(r"\boxed{2125}", problems_in(folder)[0]["answer"]) == 1.0
    monkeypatch.setitem(rewards.PAPER_DATASETS, folder, folder)
    [problem] = problems_in(folder)
    assert problem["answer"] == "2,125"
    assert score(["accuracy"], [r"\boxed{2125}", r"\boxed{2,125}"], [problem] * 2, [1, 1], 1.0) == [[0], [1]]


def test_splits_may_differ_in_their_columns_and_types(tmp_path):
    train = [{"problem": "1+1?", "answer": 2}, {"problem": "1+2?", "answer": 3}]
    folder = write(
        tmp_path, train=train, test=[{"problem": "?", "answer": "x", "level": 4}], validation=train[:1]
    )
    assert [p["answer"] for p in problems_in(folder)] == ["2", "3"]
    [problem] = problems_in(folder, "test")
    assert (problem["answer"], problem["level"]) == ("x", 4)


def test_the_sizes_and_the_first_problem_are_printed(tmp_path, capsys):
    folder = write(
        tmp_path, train=[{"problem": "1+1?", "answer": "2"}] * 3, test=[{"problem": "?", "answer": "x"}]
    )
    prompt = problems_in(folder)[0]["prompt"]
    assert f"3 train problems; the first is {prompt!r}, and its answer is '2'" in capsys.readouterr().out


def test_special_tokens_after_a_text_are_not_part_of_a_prompt(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    tokenizer.chat_template = None
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", 1), ("<|endoftext|>", 0)]
    )
    assert tokenizer("1+1?\n")["input_ids"][-1] == 0
    folder = write(
        tmp_path, train=[{"problem": "1+1?", "answer": "2"}], test=[{"problem": "?", "answer": "x"}]
    )
    [problem] = rewards.read_problems(folder, ["train"], tokenizer, 64)["train"]
    assert problem["prompt_ids"] == [1, *tokenizer("1+1?\n", add_special_tokens=False)["input_ids"]]


DATA = Path(__file__).resolve().parents[2] / "shared/data"


@pytest.mark.skipif(not DATA.exists(), reason="the paper's data are missing")
def test_the_datasets_solutions_earn_accuracy():
    """Each solution of MATH-500 is a response to its problem. (The algebra data have no solutions.)"""
    rows = load_dataset("parquet", data_files=[str(path) for path in DATA.glob("math500-*")], split="train")
    missed = [row["unique_id"] for row in rows if not accuracy(row["solution"], read_answer(row))]
    assert len(rows) == 500 and len(missed) <= 5, missed


@pytest.mark.skipif(not DATA.exists(), reason="the paper's data are missing")
def test_all_of_the_papers_data_can_be_read():
    files = sorted(DATA.glob("*.parquet"))
    assert len(files) == 6
    for path in files:
        for row in load_dataset("parquet", data_files=str(path), split="train"):
            assert read_question(row)[-1]["role"] == "user" and read_answer(row)


def rows_of(count):
    return datasets.Dataset.from_list([{"problem": f"{i}+{i}?", "answer": str(2 * i)} for i in range(count)])


def permuted(count):
    """The numbers of the training, validation and test rows among `count`, from NumPy's permutations."""
    rest, train = numpy.split(numpy.random.default_rng(42).permutation(count), [count * 2 // 5])
    validation, test = (
        rest[half] for half in numpy.split(numpy.random.default_rng(42).permutation(len(rest)), 2)
    )
    return train, validation, test


def load_splits(path):
    """The splits of a dataset, as lists of rows without their numbers."""
    return {name: [row for _, row in rows] for name, (rows, _) in rewards.load_splits(str(path)).items()}


def test_a_single_split_is_divided_as_the_paper_divides_math_500(tmp_path):
    rows_of(500).to_json(tmp_path / "one.jsonl")
    rows_of(500).to_parquet(tmp_path / "one.parquet")
    train, validation, test = permuted(500)
    for name in ("one.jsonl", "one.parquet"):
        splits = load_splits(tmp_path / name)
        for split, expected in {"train": train, "test": test, "validation": validation}.items():
            assert [row["answer"] for row in splits[split]] == [str(2 * i) for i in expected]
            numbers = [number for number, _ in rewards.load_splits(str(tmp_path / name))[split][0]]
            assert numbers == [i + 1 for i in expected]


def test_a_missing_validation_split_is_the_first_half_of_test(tmp_path):
    rows_of(7).to_json(tmp_path / "train.jsonl")
    rows_of(5).to_json(tmp_path / "test.jsonl")
    splits = load_splits(tmp_path)
    assert {name: [row["answer"] for row in rows] for name, rows in splits.items()} == {
        "train": [str(2 * i) for i in range(7)],
        "validation": ["0", "2"],
        "test": ["4", "6", "8"],
    }


def test_three_existing_splits_are_not_changed(tmp_path):
    for name, count in (("train", 7), ("validation", 2), ("test", 5)):
        rows_of(count).to_json(tmp_path / f"{name}.jsonl")
    assert {name: len(rows) for name, rows in load_splits(tmp_path).items()} == {
        "train": 7,
        "validation": 2,
        "test": 5,
    }


@pytest.mark.parametrize("name", ["math-500", "math-algebra"])
@pytest.mark.skipif(not DATA.exists(), reason="the paper's data are missing")
def test_the_papers_datasets_by_their_short_names(name, monkeypatch):
    """The rows on the Hub, in their order, give the paper's files: the same problems, prompts and splits."""
    stem, names = {"math-500": "math500", "math-algebra": "mathlighteval"}[name], ("train", "test", "val")
    files = {
        split: load_dataset("parquet", data_files=str(DATA / f"{stem}-{split}.parquet"), split="train")
        for split in names
    }
    suffix = " Let's think step by step and output the final answer within \\boxed{}."

    def as_on_the_hub(row):
        assert row["prompt"][0]["content"].endswith(suffix)
        truth = row["reward_model"]["ground_truth"]
        return {
            "problem": row["prompt"][0]["content"].removesuffix(suffix),
            "answer": truth,
            "solution": rf"It is $\boxed{{{truth}}}$.",
            "id": row.get("unique_id", ""),
        }

    hub = {split: [as_on_the_hub(row) for row in rows] for split, rows in files.items()}
    if name == "math-500":
        train, val, test = permuted(500)
        place = {
            **dict(zip(train, hub["train"])),
            **dict(zip(test, hub["test"])),
            **dict(zip(val, hub["val"])),
        }
        hub = {"test": [place[i] for i in range(500)]}
        # These are the first rows of HuggingFaceH4/MATH-500. So the permutation is that of the paper's code.
        assert [row["id"] for row in hub["test"][:4]] == [
            "test/precalculus/807.json",
            "test/intermediate_algebra/1994.json",
            "test/algebra/2584.json",
            "test/number_theory/572.json",
        ]
        expected_source = ("HuggingFaceH4/MATH-500",)
    else:
        hub = {"train": hub["train"], "test": hub["val"] + hub["test"]}
        for row in [*hub["train"], *hub["test"]]:
            del row["answer"]  # These data have none: the answer is the box in the solution.
        expected_source = ("DigitalLearningGmbH/MATH-lighteval", "algebra")
    sources = []

    def load(*source):
        sources.append(source)
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in hub.items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    tokenizer.chat_template = None
    problems = rewards.read_problems(name, ["train", "test", "validation"], tokenizer, 10**6)
    assert sources == [expected_source]
    for split, rows in files.items():
        ours = problems["validation" if split == "val" else split]
        assert [p["prompt"] for p in ours] == [row["prompt"][0]["content"] + "\n" for row in rows]
        assert [p["answer"] for p in ours] == [row["reward_model"]["ground_truth"] for row in rows]


def test_a_folder_of_several_configurations_is_not_read_as_one(tmp_path):
    card = "configs:\n"
    for name in ("main", "socratic"):
        card += f"- config_name: {name}\n  data_files:\n"
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            rows_of(6).to_json(tmp_path / name / f"{split}.jsonl")
            card += f"  - split: {split}\n    path: {name}/{split}.jsonl\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    with pytest.raises(ValueError, match="onfig"):
        rewards.load_splits(str(tmp_path))


def test_splits_on_the_hub_that_differ_in_other_columns_are_read(tmp_path, monkeypatch):
    """A folder stands for the Hub. The library refuses to load it as one dataset."""
    for split, columns in (("train", {}), ("validation", {"level": 3}), ("test", {"level": "hard"})):
        datasets.Dataset.from_list([{"problem": "1+1?", "answer": "2", **columns}]).to_json(
            tmp_path / f"{split}.jsonl"
        )
    load, build = datasets.load_dataset, datasets.load_dataset_builder

    def local(path):
        return str(tmp_path) if path == "someone/sums" else path

    monkeypatch.setattr(datasets, "load_dataset", lambda path, **files: load(local(path), **files))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path: build(local(path)))
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        datasets.load_dataset("someone/sums")
    splits = load_splits("someone/sums")
    assert {name: rows[0].get("level") for name, rows in splits.items()} == dict(
        train=None, validation=3, test="hard"
    )


@pytest.mark.parametrize("suffix", ["", " Briefly."])
def test_a_suffix_replaces_that_of_the_paper(suffix, monkeypatch):
    splits = datasets.DatasetDict({"train": rows_of(6), "test": rows_of(6)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    tokenizer.chat_template = None
    problems = rewards.read_problems("math-500", ["train"], tokenizer, 1000, suffix)["train"]
    assert [p["prompt"] for p in problems] == [f"{i}+{i}?{suffix}\n" for i in range(6)]


def test_prompts_get_the_suffix_and_the_template_gets_enable_thinking(tmp_path):
    rows_of(6).to_json(tmp_path / "one.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/model")
    tokenizer.chat_template = "{{ messages[0].content }}|{{ 'think' if enable_thinking else 'answer' }}"
    for flags, end in (((), "?|answer"), ((" Briefly.", True), "? Briefly.|think")):
        problems = rewards.read_problems(str(tmp_path / "one.jsonl"), ["train"], tokenizer, 64, *flags)[
            "train"
        ]
        assert all(p["prompt"].endswith(end) for p in problems)
        assert (
            problems[0]["prompt_ids"]
            == tokenizer(problems[0]["prompt"], add_special_tokens=False)["input_ids"]
        )


# ------------------------------------------------------------------------------------------------------------
# Any text

FRAGMENTS = [
    *"{}[]()$%^_=/\\-+*.:,;!0127akx \t\r\n\0",
    "\ud800",
    "\udfff",
    "é",
    "٣",
    "²",
    "•",
    "\u2028",
    "9" * 5000,
    r"\boxed",
    r"\boxed{",
    r"\boxed ",
    r"\fbox{",
    r"\frac",
    r"\dfrac",
    r"\sqrt",
    r"\sqrt{",
    r"\text",
    r"\text{ ",
    r"\left",
    r"\right",
    r"^{\circ}",
    r"\$",
    r"\%",
    r"\!",
    "\\\\",
    " .",
    "{.",
    "k=",
    "1/2",
    "Step ",
    "(ii)",
    "then",
]


def test_no_text_raises_an_exception():
    rng = random.Random(0)
    for _ in range(3000):
        text, answer = ("".join(rng.choices(FRAGMENTS, k=rng.randrange(12))) for _ in range(2))
        for response in (text, rf"\boxed{{{text}}}"):
            rows = score(["accuracy", "conciseness", "clarity"], [response], [{"answer": answer}], [3], 2.5)
            assert set(rows[0]) <= {0.0, 1.0}
        assert accuracy(rf"\boxed {text}", text.split("$")[0]) in (0.0, 1.0)


PIECES = st.sampled_from([*FRAGMENTS, r"\boxed", r"\boxed{", r"\frac", r"\sqrt", r"\text{ ", "{{", "}}"])
HOSTILE = st.lists(st.one_of(st.characters(categories=["C", "L", "N", "P", "S", "Z"]), PIECES)).map("".join)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(response=HOSTILE, answer=HOSTILE)
def test_no_characters_raise_an_exception(response, answer):
    """They include surrogates, NULs and other control characters, and braces that nest or do not close."""
    for text in (response, rf"\boxed{{{response}}}"):
        rows = score(["accuracy", "conciseness", "clarity"], [text], [{"answer": answer}], [3], 2.5)
        assert set(rows[0]) <= {0.0, 1.0}
    boxed = rewards.last_boxed(response)
    assert boxed is None or boxed in response
    assert (
        accuracy(rf"\boxed{{{answer}}}", answer) == 1.0 or "{" in answer or "}" in answer or "boxed" in answer
    )


@settings(max_examples=10, deadline=None, derandomize=True)
@given(unit=st.lists(PIECES, min_size=1, max_size=3).map("".join))
def test_time_is_linear_in_a_text_of_megabytes(unit):
    """The text has 1 MB. Quadratic time would be hours; these functions take half a second."""
    text = (unit * 1_000_000)[:1_000_000]
    started = time.perf_counter()
    score(["accuracy", "clarity"], [text, rf"\boxed{{{text}}}"], [{"answer": "7"}] * 2, [3] * 2, 2.5)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "text", ["\0", "\ud800", "9" * 10000, "9" * 5000 + "/" + "8" * 5000, r"\frac", r"\sqrt", "a/"]
)
def test_an_unusual_answer_equals_itself(text):
    assert accuracy(rf"\boxed{{{text}}}", text) == 1.0


def fill(unit, before="", after=""):
    """A text of 10,000 characters: `before`, repetitions of `unit`, and `after`."""
    return before + (unit * 10000)[: 10000 - len(before) - len(after)] + after


ADVERSARIAL = [
    *(fill(unit) for unit in FRAGMENTS),
    *(
        fill(unit)
        for unit in (
            r"\boxed{x",
            r"\boxed{}",
            r"\boxed{ ",
            r"\boxed{x}",
            "{}",
            r"\frac1",
            r"\frac{",
            r"\sqrt3",
            r"\sqrt ",
            "1.1.",
            "1. ",
            "(1",
            "(1.",
            "- ",
            "-\n",
            "• ",
            " -",
            "step",
            "step ",
            "step 1",
            " step\n",
            "\n1.",
            "i",
            "iv ",
            "ivx)",
            "mmm.",
            " i",
            "1/",
            "k=k",
            r"\text{ x}",
            ".5",
            "then ",
            "thenthen",
            "second",
            "^",
            "ab ",
            "\n\n ",
        )
    ),
    *(
        fill(unit, before)
        for before in (r"\boxed{", r"\boxed ", "step", "Step ", " ", "k=", "-", "1. x ", "0.")
        for unit in " \n1ix{}(-"
    ),
    *(
        fill(unit, before, after)
        for before in (r"\boxed{", "1. 2. \\boxed{ ", "\n")
        for unit in " \n1i{"
        for after in "}!"
    ),
]


def seconds(function, *arguments):
    """The shortest time of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def test_every_text_takes_at_most_10_ms():
    for text in ADVERSARIAL:
        assert len(text) == 10000
        boxed = rf"\boxed{{{text[:-8]}}}"
        slowest = max(
            seconds(accuracy, text, "7"),
            seconds(accuracy, boxed, "7"),
            seconds(accuracy, r"\boxed{7}", text),
            seconds(clarity, text),
            seconds(clarity, boxed),
        )
        assert slowest <= 0.010, repr(text[:20])
