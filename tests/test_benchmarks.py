"""benchmarks/smollm2.py and trl_speed.py, without a download, a long run or TRL."""

import json
import re
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
from conftest import ROOT, read_lines

import compare
import rewards


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


# ---------- smollm2.py ----------


@pytest.fixture
def smollm2():
    import smollm2

    return smollm2


def test_word_problems_differ_and_solutions_earn_accuracy_and_clarity(smollm2, tmp_path):
    smollm2.make_data(tmp_path / "data", 16)
    rows = {split: read_lines(tmp_path / f"data/{split}.jsonl") for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 800, "validation": 16, "test": 16}
    questions = [row["prompt"][-1]["content"] for part in rows.values() for row in part]
    assert len(set(questions)) == len(questions)

    for row in rows["test"]:
        numbers = [int(word) for word in row["prompt"][-1]["content"].split() if word.isdigit()]
        assert int(row["answer"]) == numbers[0] + numbers[1] - numbers[2] > 0
        # The example that the prompt begins with.
        example, answer = row["prompt"][1]["content"], {"answer": "7"}
        assert rewards.score(["accuracy", "clarity"], [example], [answer], [1], 1) == [[1.0, 1.0]]


def test_the_command_skips_finished_runs_and_resumes_interrupted_ones(smollm2, tmp_path, monkeypatch):
    for folder in ("data", "model", "fixed/model", "hypervolume", "gradient"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "fixed/model/generation_config.json").touch()  # finished
    (tmp_path / "hypervolume/checkpoint.pt").touch()  # interrupted
    (tmp_path / "gradient/metrics.jsonl").touch()  # interrupted before the first checkpoint
    commands = []

    def run(command):
        commands.append(command[1:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(smollm2.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--output", str(tmp_path), "--steps", "2"])
    with pytest.raises(SystemExit) as exit:
        smollm2.main()
    assert exit.value.code == 0
    hypervolume, gradient, picture = commands
    assert hypervolume[1:] == ["--resume", str(tmp_path / "hypervolume"), "--steps", "2"]
    assert gradient[1:3] == ["--weighting", "gradient"] and gradient[-2:] == ["--steps", "2"]
    assert not (tmp_path / "gradient").exists()  # grpo_dynw.py refuses a folder that exists.
    assert picture[1:] == [
        *(str(tmp_path / weighting) for weighting in ("fixed", "hypervolume", "gradient")),
        *("--output", str(tmp_path / "fronts.png")),
    ]


def test_a_failed_run_ends_the_command_with_its_exit_code(smollm2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm2.subprocess, "run", lambda command: SimpleNamespace(returncode=3))
    assert smollm2.train(tmp_path, []) == 3
    assert capsys.readouterr().err.splitlines()[-1].endswith("the run with --weighting fixed has failed")


def test_a_flag_that_the_command_sets_itself_is_refused(smollm2, tmp_path, monkeypatch, capsys):
    flags = ["--output", str(tmp_path), "--steps", "2", "--weighting=nash"]
    monkeypatch.setattr(sys, "argv", ["smollm2.py", *flags])
    with pytest.raises(SystemExit) as exit:
        smollm2.main()
    assert exit.value.code == 2 and not any(tmp_path.iterdir())
    assert "--weighting: cannot be passed on" in capsys.readouterr().err


def test_the_default_flags_are_flags_of_the_script(smollm2, tmp_path, monkeypatch):
    import grpo_dynw

    for weighting in smollm2.WEIGHTINGS:
        monkeypatch.setattr(sys, "argv", smollm2.run_command(tmp_path, weighting, ["--steps", "7"])[1:])
        args, _ = grpo_dynw.parse_args()
        assert (args.weighting, args.steps, args.learning_rate) == (weighting, 7, 1e-5)


# ---------- trl_speed.py ----------


@pytest.fixture
def trl_speed():
    import trl_speed

    return trl_speed


@pytest.fixture
def args(trl_speed, tmp_path):
    """The arguments of a small measurement, with a random model."""
    trl_speed.make_model("toy", tmp_path / "model")
    sizes = dict(responses=16, limit=8, micro_batch_size=8, steps=2, time_limit=60)
    return Namespace(device="cpu", model=str(tmp_path / "model"), result=str(tmp_path / "row.json"), **sizes)


def test_our_side_is_timed(trl_speed, args, tmp_path, monkeypatch):
    times, lengths = trl_speed.time_grpo(args, tmp_path / "run")
    assert len(times) == len(lengths) == 2 and min(times) > 0
    metrics = compare.read_metrics(tmp_path / "run")
    assert times[1] == sum(metrics[3][f"time/{phase}"] for phase in ("rollout", "reward", "probe", "update"))

    monkeypatch.setattr(trl_speed, "time_grpo", lambda *_: ([4.0, 2.0, 8.0], [5.0, 7.0]))
    trl_speed.run_side("grpo_dynw.py", args)
    row = json.loads((tmp_path / "row.json").read_text())
    assert row == ["grpo_dynw.py", "6.0", "4.00", "4.0", "-"]


def test_a_side_that_fails_or_is_too_slow_has_a_row_with_the_reason(trl_speed, args, tmp_path):
    args.time_limit = 0.01
    row = trl_speed.start_side("grpo_dynw.py", args, tmp_path / "row.json")
    assert row == ["grpo_dynw.py", "stopped after 0.01 s", "-", "-", "-"]
    args.time_limit, args.model = 60, str(tmp_path / "missing")
    row = trl_speed.start_side("grpo_dynw.py", args, tmp_path / "row.json")
    assert row == ["grpo_dynw.py", "failed with exit code 2", "-", "-", "-"]


def test_on_cuda_both_precisions_of_trl_and_both_ways_to_decode_are_timed(trl_speed, args):
    args.device = "cuda"
    options = {name: side[1] for name, side in trl_speed.sides(args).items()}
    assert options["grpo_dynw.py"] == {}
    assert options["grpo_dynw.py --cuda-graph"] == {"flags": ["--cuda-graph"]}
    assert [option.get("dtype") for option in options.values()][:2] == [None, "bfloat16"]


# ---------- activations.py ----------


@pytest.fixture
def activations():
    import activations

    return activations


def test_each_unit_of_the_mlp_saves_four_bfloat16_numbers_a_token(activations):
    """The outputs of gate, activation function and up, and the input of down."""
    narrow, wide = (activations.bytes_per_token((64, size, 2, 2, 1)) for size in (128, 192))
    assert wide - narrow == 64 * 4 * 2


def test_tensors_that_share_memory_count_once(activations):
    """The figure for 0.6B in benchmarks/README.md. It is 91 kB if they count twice."""
    assert activations.bytes_per_token(activations.SHAPES["0.6B"]) == pytest.approx(87e3, abs=1e3)


def test_memory_of_a_response_and_the_micro_batch_that_fits(activations):
    shape, tokens = (64, 128, 4, 2, 1), activations.PROMPT + 10
    logits = 11 * activations.VOCABULARY * 6
    assert activations.response_bytes(shape, 100, 10) == (4 * 100 * tokens, logits)
    assert activations.response_bytes(shape, 100, 10, True) == ((4 * 4 * 64 + 100) * tokens, logits)
    sizes = {9e9: 8, 8e9: 8, 7.9e9: 4, 1e9: 1, 0.9e9: 0}
    for room, size in sizes.items():
        assert activations.largest_micro_batch((activations.MEMORY - room) / 24, 1e9) == size


# ---------- reference_dtype.py ----------


def test_the_kl_estimate_at_step_1_is_0_only_with_a_float32_reference(run_script, monkeypatch, capsys):
    import reference_dtype

    import grpo_dynw

    _, folder = run_script(grpo_dynw)
    monkeypatch.setattr(sys, "argv", ["reference_dtype.py", str(folder)])
    capsys.readouterr()
    reference_dtype.main()
    # Columns are separated by two spaces or more.
    first, last = (re.split(" {2,}", line)[1:] for line in capsys.readouterr().out.splitlines()[-2:])
    policies, _, float32, bfloat16, maximum, autocast, gradient = zip(first, last)
    assert policies == ("step 1", "after step 2") and float32[0] == "0" and gradient[0] == "-"
    assert 0 < float(bfloat16[0]) < float(maximum[0]) and float(float32[1]) > 0
    assert min(map(float, autocast)) > 0 and 0 < float(gradient[1].rstrip("%")) < 100
