"""What the README quotes is there."""
import dataclasses
import importlib
import re

import pytest
from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text()


def test_the_lines_of_code_beside_the_equations_are_those_of_the_code():
    method = README.split("## The method")[1].split("\n## ")[0]
    quotes = [re.split(r"\s{3,}", line.strip())[-1] for line in method.splitlines() if line.startswith("    ")]
    code = (ROOT / "grpo_dynw.py").read_text() + (ROOT / "hypervolume.py").read_text()
    assert len(quotes) == 6
    assert [quote for quote in quotes if quote not in code] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_that_is_named_exists(name):
    fields = {field.name for field in dataclasses.fields(importlib.import_module(name).Args)}
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)", README)}
    assert len(flags) > 20
    assert flags - fields <= {"kl_coefficient", "baseline", "help"}


def test_files_and_pictures_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 6 and [link for link in links if not (ROOT / link).exists()] == []
