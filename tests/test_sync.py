"""Protects the scripts from drifting apart outside of their marked regions, and all files from growing."""

import ast
import itertools

import pytest
from conftest import ROOT, SCRIPTS

LABELS = ["docstring", "name", "args", "advantage", "reference", "kl"]
LIMITS = {  # lines and bytes
    **{f"{name}.py": (600, 32_000) for name in SCRIPTS},
    "rewards.py": (300, 15_000),
    "hypervolume.py": (110, 5_000),
    "compare.py": (200, 9_000),
}


def split(name):
    """
    Returns the lines of a script outside of the regions, and {label: lines} of its regions.

    AssertionError for a region without an end, an end without a region, nested regions or an unknown label.
    """
    outside, regions, label = [], {}, None
    for line in (ROOT / f"{name}.py").read_text().splitlines(keepends=True):
        words = line.strip()
        if words.startswith("# --- algorithm: "):
            assert label is None, f"{words} is inside of {label}"
            label = words.removeprefix("# --- algorithm: ").removesuffix(" ---")
            assert label in LABELS and label not in regions
            regions[label] = []
        elif words == "# --- end ---":
            assert label is not None, "an end without a region"
            label = None
        else:
            (outside if label is None else regions[label]).append(line)
    assert label is None, f"{label} has no end"
    return outside, regions


@pytest.mark.parametrize("one, other", [*itertools.combinations(SCRIPTS, 2)])
def test_scripts_are_the_same_outside_of_the_regions(one, other):
    for a, b in itertools.zip_longest(split(one)[0], split(other)[0]):
        assert a == b


@pytest.mark.parametrize("name", SCRIPTS)
def test_regions_are_short(name):
    _, regions = split(name)
    assert {"docstring", "name", "advantage"} <= regions.keys()
    assert max(map(len, regions.values())) <= 25 and sum(map(len, regions.values())) <= 60


@pytest.mark.parametrize("file", LIMITS)
def test_files_and_functions_are_short(file):
    text = (ROOT / file).read_text()
    lines, size = LIMITS[file]
    assert len(text.splitlines()) <= lines and len(text.encode()) <= size
    assert [line for line in text.splitlines() if len(line) > 110] == []
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    sizes = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    limits = {"main": 150} if file.removesuffix(".py") in SCRIPTS else {}
    assert {name: size for name, size in sizes.items() if size > limits.get(name, 50)} == {}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_no_other_script(name):
    text = (ROOT / f"{name}.py").read_text()
    assert [script for script in SCRIPTS if script in text] == [name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_read(name):
    nodes = list(ast.walk(ast.parse((ROOT / f"{name}.py").read_text())))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    calls = [call.args[0] for call in calls if ast.unparse(call.func) in ("flag", "parser.add_argument")]
    names = [argument.value for argument in calls if isinstance(argument, ast.Constant)]
    flags = {name.removeprefix("--").replace("-", "_") for name in names}
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    read = {node.attr for node in attributes if ast.unparse(node.value) == "args"}
    assert len(flags) > 30 and flags - read == set()
