"""What the README quotes is there."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SCRIPTS
from test_sync import flags_in

README = (ROOT / "README.md").read_text()


def test_the_lines_of_code_beside_the_equations_are_those_of_the_code():
    method = README.split("## The method")[1].split("\n## ")[0]
    quotes = [
        re.split(r"\s{3,}", line.strip())[-1] for line in method.splitlines() if line.startswith("    ")
    ]
    code = (ROOT / "grpo_dynw.py").read_text() + (ROOT / "hypervolume.py").read_text()
    assert len(quotes) == 7
    assert [quote for quote in quotes if quote not in code] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_that_is_named_exists(name):
    known = flags_in((ROOT / f"{name}.py").read_text())
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", README)}
    assert len(flags) > 15
    of_torchrun = {"standalone", "nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port"}
    of_others = {"kl_coefficient", "baseline", "help", "check", "index_url"}
    assert flags - known <= of_torchrun | of_others


def test_files_and_pictures_that_are_linked_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 6 and [link for link in links if not (ROOT / link).exists()] == []


def test_the_papers_runs_are_accepted(tmp_path, monkeypatch):
    """As benchmarks/paper.sh prints them, by the script's own check of arguments, with 8 processes."""
    done = subprocess.run(["bash", ROOT / "benchmarks/paper.sh"], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15 and len({line[0] for line in lines}) == 15
    monkeypatch.chdir(tmp_path)
    for _, torchrun, standalone, flag, processes, name, *flags in lines:
        assert (torchrun, standalone, flag, processes) == (
            "torchrun",
            "--standalone",
            "--nproc-per-node",
            "8",
        )
        script = importlib.import_module(name.removesuffix(".py"))
        monkeypatch.setattr(script, "WORLD", 8)
        monkeypatch.setattr(sys, "argv", [name, *flags])
        args, checkpoint = script.parse_args()
        assert checkpoint is None
        assert (
            args.gradient_checkpointing
            and args.learning_rate == 1e-6
            and args.weights == [0.334, 0.333, 0.333]
        )
        if args.weighting == "gradient":
            layers = torch.nn.ModuleList(
                torch.nn.Linear(1, 1, bias=False) for _ in range(30 if "deepseek" in args.model else 36)
            )
            monkeypatch.setattr(script, "decoder_layers", {"model": layers}.get)
            probed, _ = script.probed_layers("model", *args.probe_layers)
            assert [list(layers).index(layer) for layer in probed] == list(range(10, 26))
    done = subprocess.run(["bash", ROOT / "benchmarks/paper.sh", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "nothing" in done.stderr
