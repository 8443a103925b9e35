"""Protects what the objectives reward: the verdicts of the paper's code, and the rules of rewards.py."""

import json
import time
from pathlib import Path

import numpy
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards import accuracy, clarity, conciseness, objective, performance, score

OWN_CASES = Path(__file__).parent / "data/rewards.json"
# This file is outside the repository, because its cases quote problems of MATH.
ORACLE = ROOT.parent / "shared/oracles/rewards.json"


@pytest.fixture
def objectives(monkeypatch):
    """A copy of OBJECTIVES that a test may change."""
    monkeypatch.setattr(rewards, "OBJECTIVES", dict(rewards.OBJECTIVES))
    return rewards.OBJECTIVES


# Verdicts of the paper's code. The field "ours" marks the cases in which rewards.py differs by design.


@pytest.mark.parametrize("path", [OWN_CASES, ORACLE], ids=["own", "oracle"])
def test_rewards_are_those_of_the_papers_code(path):
    if not path.exists():
        pytest.skip("the outputs of the paper's code are missing")
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert len(cases["accuracy"]) >= 100 and len(cases["clarity"]) >= 40
    for name, function in (("accuracy", accuracy), ("clarity", clarity)):
        assert {case[name] for case in cases[name]} == {0.0, 1.0}
        for case in cases[name]:
            arguments = {"response": case["response"], "answer": case.get("ground_truth")}
            assert function(**arguments) == case.get("ours", case[name]), case
            assert case.get("ours") != case[name], case


def test_accuracy_normalises_both_sides():
    for case in json.loads(OWN_CASES.read_text(encoding="utf-8"))["accuracy"]:
        box, answer = rewards.last_boxed(case["response"]), case["ground_truth"]
        if box:
            assert accuracy(rf"\boxed{{{answer}}}", box) == case.get("ours", case["accuracy"]), case


def test_conciseness_requires_a_length_below_the_mean():
    assert [conciseness(9, 10.0), conciseness(10, 10.0), conciseness(10, 10.01)] == [1.0, 0.0, 1.0]


ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth next then"


@pytest.mark.parametrize("word", ORDINALS.split())
def test_clarity_counts_ordinals_as_whole_words(word):
    texts = [f"{word} and {word.upper()}", word, f"{word}ly, {word}ly", f"un{word}, un{word}"]
    assert [clarity(text + r" \boxed{7}") for text in texts] == [1.0, 0.0, 0.0, 0.0]


FRAGMENTS = [*"{}[]()$%^_=/\\-+*.:,;!0127akx \t\r\n\0", "\ud800", "é", "٣", "²", "•", "\u2028", "9" * 5000]
FRAGMENTS += [r"\boxed", r"\boxed{", r"\boxed ", r"\fbox{", r"\frac", r"\dfrac", r"\sqrt", r"\sqrt{", "(ii)"]
FRAGMENTS += [r"\text{ ", r"\left", r"^{\circ}", r"\$", r"\%", r"\!", "\\\\", " .", "{.", "k=", "1/2"]
HOSTILE = st.lists(st.one_of(st.characters(), st.sampled_from(FRAGMENTS)), max_size=12).map("".join)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(response=HOSTILE, answer=HOSTILE)
def test_no_text_raises_an_exception_and_an_answer_equals_itself(response, answer):
    for text in (response, rf"\boxed{{{response}}}", rf"\boxed {response}"):
        rows = score(["accuracy", "conciseness", "clarity"], [text], [{"answer": answer}], [3], 2.5)
        assert set(rows[0]) <= {0.0, 1.0}
    box = rewards.last_boxed(rf"\boxed{{{answer}}}")
    assert box != answer or accuracy(rf"\boxed{{{answer}}}", answer) == 1.0
    assert box == answer or "{" in answer or "}" in answer or "boxed" in answer


def test_time_grows_linearly_with_the_text():
    """Of a text that is 100 times as long, a quadratic function would need 10,000 times the CPU time."""

    def seconds(text):
        started = time.process_time()
        score(["accuracy", "clarity"], [text, rf"\boxed{{{text}}}"], [{"answer": text}] * 2, [3] * 2, 2.5)
        return time.process_time() - started

    for unit in [r"\boxed{ ", "1/", r"\frac", "- ", "step ", "1.", "ivx", " \n", "{", "1,234", "first"]:
        times = [min(seconds((unit * size)[:size]) for _ in range(3)) for size in (3_000, 300_000)]
        assert times[1] < 1500 * times[0], unit


def test_score_returns_a_row_per_response_and_a_column_per_objective():
    responses = [r"1. x 2. \boxed{4}", r"\boxed{5}", "what?"]
    expected = {"accuracy": [1.0, 1.0, 0.0], "conciseness": [0.0, 1.0, 1.0], "clarity": [1.0, 0.0, 0.0]}
    for names in (["accuracy", "conciseness", "clarity"], ["clarity", "accuracy"], []):
        rows = score(names, responses, [{"answer": a} for a in "456"], [30, 10, 5], 15.0)
        assert rows == [[expected[name][i] for name in names] for i in range(3)]
        assert all(type(value) is float for row in rows for value in row)


def test_an_objective_gets_all_arguments_and_columns(objectives):
    # Without **_, any other argument would raise an exception.
    @objective
    def brevity(response, answer, length, mean_length, level, step):
        return length / mean_length + len(response) + len(answer) + 100 * level + 1000 * step

    problem = {"answer": "4", "level": 2, "length": -1, "response": ""}  # Arguments precede these columns.
    [row] = score(["accuracy", "brevity"], [r"\boxed{4} ."], [problem], [5], 10.0, 3)
    assert row == [1.0, 3212.5]
    assert brevity("", "", 1, 1, 0, 0) == 1  # The decorator returns the function.


HALVES = [numpy.float32(0.5), torch.tensor([0.5]), "0.5"]


@pytest.mark.parametrize("value", HALVES, ids=repr)
def test_everything_that_float_accepts_is_a_reward(objectives, value):
    objectives["mood"] = lambda **_: value
    [[reward]] = score(["mood"], ["a"], [{}], [1], 1.0)
    assert reward == 0.5 and type(reward) is float


NO_REWARDS = [None, "one", float("nan"), "inf", [1.0], torch.ones(2)]


@pytest.mark.parametrize("value", NO_REWARDS, ids=str)
def test_the_exception_for_another_reward_names_objective_step_and_problem(objectives, value):
    objectives["mood"] = lambda length, **_: value if length == 3 else 1
    problems = [{"prompt": "1+1?"}, {"prompt": "2+2" * 100}]
    with pytest.raises((ValueError, TypeError, RuntimeError, OverflowError)) as raised:
        score(["mood"], ["a", "a"], problems, [1, 3], 1.0, 7, "validation")
    with pytest.raises(ValueError, match="shorter"):
        score(["mood"], ["a", "a"], problems, [1], 1.0)
    notes = "\n".join(raised.value.__notes__)
    assert all(word in notes for word in ("mood", "validation", "step 7", "2+22+2")) and len(notes) < 300


def test_performance_is_the_reward_but_for_conciseness(monkeypatch):
    names = ["accuracy", "conciseness", "mood"]
    assert performance(names, [True, 0.0, 0.25], 24, 96) == [1.0, 0.75, 0.25]
    assert all(type(value) is float for value in performance(names, [True, False, 1], 0, 96))
    monkeypatch.setitem(rewards.PERFORMANCE, "mood", lambda reward, length, limit: reward - length / limit)
    assert performance(names, [0.5, 1.0, 0.75], 24, 96) == [0.5, 0.75, 0.5]


def test_the_performance_of_means_is_the_mean_performance():
    names, lengths = ["accuracy", *rewards.PERFORMANCE], [10, 60, 96]
    rows = [[reward] * len(names) for reward in (1.0, 0.0, 0.5)]
    each = [performance(names, row, length, 96) for row, length in zip(rows, lengths)]
    means = performance(names, numpy.mean(rows, 0), numpy.mean(lengths), 96)
    assert means == pytest.approx(numpy.mean(each, 0).tolist())


def test_each_epoch_has_all_problems_in_the_order_of_its_seed():
    steps = [rewards.problems_of_step("abcdefg", step, 3, seed=5) for step in range(1, 15)]
    seeds = [torch.Generator().manual_seed(5000 + epoch) for epoch in range(6)]
    orders = [torch.randperm(7, generator=seed).tolist() for seed in seeds]
    assert ["abcdefg"[i] for order in orders for i in order] == sum(steps, [])
    assert rewards.problems_of_step("abcdefg", 2, 21, seed=5) == sum(steps[7:14], [])
