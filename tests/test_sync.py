"""
The scripts are one text but for marked regions, in which the algorithms differ. Nothing here rewrites a script: a
change to one is made to all by hand. After a wanted change of a difference, the golden diffs are written anew by

    cd tests && python -c "import test_sync; test_sync.write_golden_diffs()"
"""

import ast
import builtins
import difflib
import itertools

import pytest
from conftest import ROOT, SCRIPTS

LABELS = ["docstring", "args", "advantage", "kl"]
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


@pytest.mark.parametrize(
    "text",
    [
        "# --- algorithm: magic ---\n# --- end ---\n",
        "# --- algorithm: kl ---\n",
        "# --- end ---\n",
        "# --- algorithm: kl ---\n# --- algorithm: kl ---\n# --- end ---\n",
    ],
)
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


def diff(one, other):
    lines = [TEXTS[name].splitlines(keepends=True) for name in (one, other)]
    return "".join(difflib.unified_diff(*lines, f"{one}.py", f"{other}.py", n=1))


def golden(one, other):
    return GOLDEN / f"{one.removesuffix('_dynw')}-{other.removesuffix('_dynw')}.diff"


def write_golden_diffs():
    GOLDEN.mkdir(exist_ok=True)
    for pair in PAIRS:
        golden(*pair).write_text(diff(*pair))


@pytest.mark.parametrize("one, other", PAIRS)
def test_the_differences_are_those_that_are_known(one, other):
    assert diff(one, other) == golden(one, other).read_text()


def flags_in(text):
    """The names of the flags that a script's text gives its parser, with underscores."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args]
    names = [call.args[0].value for call in calls if ast.unparse(call.func) == "flag"]
    names += [call.args[0].value for call in calls if ast.unparse(call.func) == "parser.add_argument"
              and isinstance(call.args[0], ast.Constant)]  # fmt: skip
    return {name.removeprefix("--").replace("-", "_") for name in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_is_read(name):
    attributes = [node for node in ast.walk(ast.parse(TEXTS[name])) if isinstance(node, ast.Attribute)]
    read = {
        node.attr
        for node in attributes
        if ast.unparse(node.value) == "args" and isinstance(node.ctx, ast.Load)
    }
    flags = flags_in(TEXTS[name])
    assert len(flags) > 30 and flags - read == set()
    assert flags_in('flag("a-b", 1)\nparser.add_argument("--c")\nparser.add_argument(f"--{name}")') == {
        "a_b",
        "c",
    }


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


SETTINGS = {"TINY", "ALGORITHM", "RANK", "WORLD", "SHARDED", "WHOLE", "MAY_CHANGE"}  # constants of a process
CONSTANTS = {
    **dict.fromkeys(SCRIPTS, SETTINGS),
    "compare": {"COLOURS", "MARKERS", "STYLE", "ON_TEST"},
    "rewards": {
        "OBJECTIVES",
        "PERFORMANCE",
        "PAPER_DATASETS",
        "PAPER_SUFFIX",
        "ENUMERATOR",
        "ORDINAL",
        "FILLED_BOX",
    },
    "hypervolume": set(),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_no_function_reads_a_variable_of_the_module(name):
    """Beside functions, classes and imports, a module has constants: of those, only ones that never change are read."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    targets = [t for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
               for t in getattr(node, "targets", [getattr(node, "target", None)])]  # fmt: skip
    variables = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    assert variables >= CONSTANTS[name]
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        assert not free_names(function) & (variables - CONSTANTS[name]), function.name
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Global, ast.Nonlocal))]
    probe = ast.parse("LIMIT = 3\ndef f(x):\n    return x + LIMIT\n")
    assert free_names(probe.body[1]) == {"LIMIT"}
