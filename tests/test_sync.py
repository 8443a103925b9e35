"""
The scripts are the same outside of marked regions, in which the algorithms differ. A change to one script
must be made in all of them by hand. After an intended change of a region, write the golden diffs again:

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
    """
    Returns the lines of `text` outside of the regions, and (label, lines) of each region.

    ValueError for a region without an end, an end without a region, nested regions or an unknown label.
    """
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
    """Returns the first lines, outside of the regions, in which two scripts differ: a pair, or None."""
    for a, b in itertools.zip_longest(split(one)[0], split(other)[0]):
        if a != b:
            return a, b
    return None


@pytest.mark.parametrize("one, other", PAIRS)
def test_scripts_are_the_same_outside_of_the_regions(one, other):
    assert first_difference(TEXTS[one], TEXTS[other]) is None


def test_changes_outside_of_the_regions_are_differences_and_changes_inside_are_not():
    text = TEXTS["grpo_dynw"]
    lines = text.splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if line.strip() == "# --- end ---"]
    for i in (ends[0] + 1, ends[-1] + 1, len(lines)):
        assert first_difference(text, "".join([*lines[:i], "x = 1\n", *lines[i:]])) is not None
    assert first_difference(text, text.replace("main()", "main( )")) is not None
    assert first_difference(text, text[:-1]) is not None
    for i in ends:
        assert first_difference(text, "".join([*lines[:i], "x = 1\n", *lines[i:]])) is None


@pytest.mark.parametrize(
    "text",
    [
        "# --- algorithm: magic ---\n# --- end ---\n",
        "# --- algorithm: kl ---\n",
        "# --- end ---\n",
        "# --- algorithm: kl ---\n# --- algorithm: kl ---\n# --- end ---\n",
    ],
)
def test_broken_regions_are_errors(text):
    with pytest.raises(ValueError):
        split(text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_regions_are_short(name):
    _, regions = split(TEXTS[name])
    for label in LABELS:
        assert sum(len(lines) for region_label, lines in regions if region_label == label) <= 25
    assert sum(len(lines) for _, lines in regions) <= 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_functions_and_lines_are_short(name):
    functions = [node for node in ast.walk(ast.parse(TEXTS[name])) if isinstance(node, ast.FunctionDef)]
    sizes = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert sizes.pop("main") <= 150
    assert {function: size for function, size in sizes.items() if size > 60} == {}
    assert [line for line in TEXTS[name].splitlines() if len(line) > 110] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_no_other_script(name):
    assert f"{name}.py" in TEXTS[name]
    assert [other for other in SCRIPTS if other != name and other in TEXTS[name]] == []


def diff(one, other):
    """Returns the unified diff of two scripts as text."""
    lines = [TEXTS[name].splitlines(keepends=True) for name in (one, other)]
    return "".join(difflib.unified_diff(*lines, f"{one}.py", f"{other}.py", n=1))


def golden(one, other):
    """Returns the path of the golden diff of two scripts."""
    return GOLDEN / f"{one.removesuffix('_dynw')}-{other.removesuffix('_dynw')}.diff"


def write_golden_diffs():
    GOLDEN.mkdir(exist_ok=True)
    for pair in PAIRS:
        golden(*pair).write_text(diff(*pair))


@pytest.mark.parametrize("one, other", PAIRS)
def test_the_differences_are_those_of_the_golden_diffs(one, other):
    assert diff(one, other) == golden(one, other).read_text()


def flags_in(text):
    """Returns the names of the flags that a script defines, with underscores."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args]
    calls = [call for call in calls if ast.unparse(call.func) in ("flag", "parser.add_argument")]
    names = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    return {name.removeprefix("--").replace("-", "_") for name in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_is_read(name):
    attributes = [node for node in ast.walk(ast.parse(TEXTS[name])) if isinstance(node, ast.Attribute)]
    attributes = [node for node in attributes if ast.unparse(node.value) == "args"]
    arguments = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    flags = flags_in(TEXTS[name])
    assert len(flags) > 30 and flags - arguments == set()


def test_flags_are_read_from_the_text_of_a_script():
    text = 'flag("a-b", 1)\nparser.add_argument("--c")\nparser.add_argument(f"--{name}")'
    assert flags_in(text) == {"a_b", "c"}


def free_names(function):
    """Returns the names that `function` reads and that are no parameters, local variables or builtins."""
    bound, loaded = set(dir(builtins)), set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ExceptHandler)):
            bound.add(node.name)
    return loaded - bound


# The variables of each module that do not change during a run. Functions may read them.
CONSTANTS = dict.fromkeys(
    SCRIPTS, {"TINY", "ALGORITHM", "RANK", "WORLD", "SHARDED", "WHOLE", "ORIGIN", "MAY_CHANGE"}
)
CONSTANTS["compare"] = {"COLOURS", "MARKERS", "STYLE", "ON_TEST"}
CONSTANTS["rewards"] = {"OBJECTIVES", "PERFORMANCE", "PAPER_DATASETS", "PAPER_SUFFIX"}
CONSTANTS["rewards"] |= {"ENUMERATOR", "ORDINAL", "FILLED_BOX", "WRAPPER", "NUMBER"}
CONSTANTS["rewards"] |= {
    "GROUPED",
    "NO_UNIT",
    "UNIT",
    "QUESTION_COLUMNS",
    "ANSWER_COLUMNS",
    "FILE_TYPES",
    "SPLIT_NAMES",
}
CONSTANTS["hypervolume"] = set()


@pytest.mark.parametrize("name", CONSTANTS)
def test_functions_read_only_the_constants_of_their_module(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, (ast.AnnAssign, ast.AugAssign))]
    variables = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    assert variables >= CONSTANTS[name]
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        assert not free_names(function) & (variables - CONSTANTS[name]), function.name
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Global, ast.Nonlocal))]


def test_free_names_of_a_function():
    module = ast.parse("LIMIT = 3\ndef f(x):\n    return x + LIMIT\n")
    assert free_names(module.body[1]) == {"LIMIT"}
