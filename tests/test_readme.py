"""What the README quotes is there."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SCRIPTS
from test_sync import flags_in

import grpo_dynw

README = (ROOT / "README.md").read_text()


def test_the_lines_of_code_beside_the_equations_are_those_of_the_code():
    method = README.split("## The method")[1].split("\n## ")[0]
    quotes = [re.split(r"\s{3,}", line.strip())[-1] for line in method.splitlines() if line.startswith("    ")]
    code = (ROOT / "grpo_dynw.py").read_text() + (ROOT / "hypervolume.py").read_text()
    assert len(quotes) == 6
    assert [quote for quote in quotes if quote not in code] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_that_is_named_exists(name):
    known = flags_in((ROOT / f"{name}.py").read_text())
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", README)}
    assert len(flags) > 15
    assert flags - known <= {"kl_coefficient", "baseline", "help"} | {"standalone", "nproc_per_node", "check"}


def test_files_and_pictures_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 6 and [link for link in links if not (ROOT / link).exists()] == []


def test_the_commands_for_the_papers_settings_are_accepted(tmp_path, monkeypatch):
    """As bash expands them, by the script's own check of arguments, with 8 processes."""
    block = README.split("## The paper's settings")[1].split("```sh\n")[1].split("```")[0]
    done = subprocess.run(
        ["bash", "-euc", 'torchrun() { echo "$@"; }\n' + block], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    for standalone, flag, processes, script, *flags in lines:
        assert (standalone, flag, processes) == ("--standalone", "--nproc-per-node", "8")
        monkeypatch.setattr(sys, "argv", [script, *flags])
        args = importlib.import_module(script.removesuffix(".py")).parse_args()
        assert args.gradient_checkpointing and args.learning_rate == 1e-6 and args.weights == [0.334, 0.333, 0.333]
        assert args.prompt_suffix.startswith(" Let's think step by step")
        layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(30 if "deepseek" in args.model else 36))
        if args.weighting == "gradient":
            monkeypatch.setattr(grpo_dynw, "decoder_layers", lambda model: layers)
            probed = grpo_dynw.middle_layers(None, args.probe_layers)
            assert [list(layers).index(layer) for layer in probed] == list(range(10, 26))
