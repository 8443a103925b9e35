"""The README's code lines, flags and links, and the paper's commands, are those of the scripts."""

import importlib
import re
import subprocess
import sys

from conftest import ROOT

import grpo_dynw

README = (ROOT / "README.md").read_text()


def test_the_code_beside_the_equations_is_that_of_the_scripts():
    method = README.split("## The method")[1].split("\n## ")[0]
    lines = [line.strip() for line in method.splitlines() if line.startswith("    ")]
    quotes = [re.split(r"\s{3,}", line)[-1] for line in lines]
    code = "".join((ROOT / f"{name}_dynw.py").read_text() for name in ("grpo", "rloo"))
    assert len(quotes) == 7
    assert [quote for quote in quotes if quote not in code] == []


def test_flags_and_links_exist():
    flags = set(re.findall(r"--([a-z][a-z-]+)", README))
    known = {name.replace("_", "-") for name in vars(grpo_dynw.make_parser().parse_args([]))}
    assert flags - known == {"help", "index-url", "standalone", "nproc-per-node", "check", "baseline"}
    links = re.findall(r"\]\(([^)#:]+)[)#]", README)
    assert len(links) > 3 and [link for link in links if not (ROOT / link).exists()] == []


def test_the_papers_commands_are_accepted(tmp_path, monkeypatch):
    lines = subprocess.run(["bash", ROOT / "benchmarks/paper.sh"], capture_output=True, text=True, check=True)
    commands = [line.split() for line in lines.stdout.splitlines()]
    assert len(commands) == 15
    monkeypatch.chdir(tmp_path)
    for _, torchrun, _, _, _, name, *flags in commands:
        script = importlib.import_module(name.removesuffix(".py"))
        monkeypatch.setattr(script, "WORLD", 8)
        monkeypatch.setattr(sys, "argv", [name, *flags])
        args, _ = script.parse_args()
        assert torchrun == "torchrun" and args.learning_rate == 1e-6 and args.num_generations == 8
