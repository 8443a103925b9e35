"""
The scripts are one text but for marked regions, in which the algorithms differ. Nothing here rewrites a script: a
change to one is made to all by hand. After a wanted change of a difference, the golden diffs are written anew by

    cd tests && python -c "import test_sync; test_sync.write_golden_diffs()"
"""
import ast
import builtins
import dataclasses
import difflib
import importlib
import itertools
import typing

import pytest
from conftest import ROOT, SCRIPTS

LABELS = ["docstring", "args", "advantage", "kl", "loss"]
TEXTS = {name: (ROOT / f"{name}.py").read_text() for name in SCRIPTS}
PAIRS = list(itertools.combinations(SCRIPTS, 2))
GOLDEN = ROOT / "tests/golden"


def split(text):
    """The lines of `text` outside of the regions, and a list of (label, lines) of the regions. ValueError if broken."""
    outside, regions, label = [], [], None
    for line in text.splitlines(keepends=True):
        words = line.strip()
        if words.startswith("# --- algorithm: ") and words.endswith(" ---"):
            if label is not None:
                raise ValueError(f"region {words} inside of {label}")
            label = words.removeprefix("# --- algorithm: ").removesuffix(" ---")
            if label not in LABELS:
                raise ValueError(f"unknown label {label}")
            regions.append((label, []))
        elif words == "# --- end ---":
            if label is None:
                raise ValueError("an end without a region")
            label = None
        elif label is None:
            outside.append(line)
        else:
            regions[-1][1].append(line)
    if label is not None:
        raise ValueError(f"region {label} has no end")
    return outside, regions


def first_difference(one, other):
    """The first line outside of the regions that two scripts do not share, or None."""
    for a, b in itertools.zip_longest(split(one)[0], split(other)[0]):
        if a != b:
            return a, b
    return None


@pytest.mark.parametrize("one, other", PAIRS)
def test_scripts_are_the_same_outside_of_the_regions(one, other):
    assert first_difference(TEXTS[one], TEXTS[other]) is None


def test_a_change_outside_of_a_region_is_found_and_one_inside_is_not():
    text = TEXTS["grpo_dynw"]
    lines = text.splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if line.strip() == "# --- end ---"]
    for at in (ends[0] + 1, ends[-1] + 1, len(lines)):
        assert first_difference(text, "".join([*lines[:at], "x = 1\n", *lines[at:]])) is not None
    assert first_difference(text, text.replace("main()", "main( )")) is not None
    assert first_difference(text, text[:-1]) is not None
    for at in ends:
        assert first_difference(text, "".join([*lines[:at], "x = 1\n", *lines[at:]])) is None


@pytest.mark.parametrize("text", [
    "# --- algorithm: magic ---\n# --- end ---\n", "# --- algorithm: kl ---\n", "# --- end ---\n",
    "# --- algorithm: kl ---\n# --- algorithm: kl ---\n# --- end ---\n",
])
def test_broken_regions_are_found(text):
    with pytest.raises(ValueError):
        split(text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_regions_stay_short(name):
    _, regions = split(TEXTS[name])
    for label in LABELS:
        assert sum(len(lines) for found, lines in regions if found == label) <= 25
    assert sum(len(lines) for _, lines in regions) <= 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_no_other(name):
    assert f"{name}.py" in TEXTS[name]
    assert [other for other in SCRIPTS if other != name and other in TEXTS[name]] == []


@pytest.mark.parametrize("one, other", PAIRS)
def test_shared_arguments_agree(one, other):
    def fields(name):
        module = importlib.import_module(name)
        hints = typing.get_type_hints(module.Args)
        return {f.name: (hints[f.name], f.default, f.default_factory() if callable(f.default_factory) else None,
                         f.metadata["help"]) for f in dataclasses.fields(module.Args)}

    a, b = fields(one), fields(other)
    assert len(a.keys() & b.keys()) >= 25
    assert {name: a[name] for name in a.keys() & b.keys()} == {name: b[name] for name in a.keys() & b.keys()}


def diff(one, other):
    lines = [TEXTS[name].splitlines(keepends=True) for name in (one, other)]
    return "".join(difflib.unified_diff(*lines, f"{one}.py", f"{other}.py", n=1))


def golden(one, other):
    return GOLDEN / f"{one.removesuffix('_dynw')}-{other.removesuffix('_dynw')}.diff"


def write_golden_diffs():
    """Writes them, and shows the first in the README."""
    GOLDEN.mkdir(exist_ok=True)
    for pair in PAIRS:
        golden(*pair).write_text(diff(*pair))
    readme = (ROOT / "README.md").read_text()
    before, shown = readme.split("```diff\n")
    shown = diff(*PAIRS[0]) + shown[shown.index("```\n") :]
    (ROOT / "README.md").write_text(f"{before}```diff\n{shown}")


@pytest.mark.parametrize("one, other", PAIRS)
def test_the_differences_are_those_that_are_known(one, other):
    assert diff(one, other) == golden(one, other).read_text()


def test_the_readme_shows_the_difference_between_grpo_and_rloo():
    shown = golden("grpo_dynw", "rloo_dynw").read_text()
    assert f"```diff\n{shown}```\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_is_read(name):
    tree = ast.parse(TEXTS[name])
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "args" and isinstance(node.ctx, ast.Load)}
    fields = {field.name for field in dataclasses.fields(importlib.import_module(name).Args)}
    assert fields - read == set()


def free_names(function):
    """Names that `function` reads but neither gets nor makes nor finds among the builtins."""
    made, read = set(dir(builtins)), set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ExceptHandler)):
            made.add(node.name)
    return read - made


@pytest.mark.parametrize("name", [*SCRIPTS, "hypervolume", "rewards"])
def test_no_function_reads_a_variable_of_the_module(name):
    """Beside functions, classes and imports, a module has constants: of those, only ones that never change are read."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    variables = {target.id for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))
                 for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                 if isinstance(target, ast.Name)}
    constants = {"hypervolume": {"COLOURS", "MARKERS"},
                 "rewards": {"OBJECTIVES", "PAPER", "PAPER_SUFFIX", "FILES", "ENUMERATOR", "ORDINAL",
                             "FILLED_BOX"}}.get(name, set())
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        assert not free_names(function) & (variables - constants), function.name
    probe = ast.parse("LIMIT = 3\ndef f(x):\n    return x + LIMIT\n")
    assert free_names(probe.body[1]) == {"LIMIT"}
