"""
Runs a training script with one more objective, directness, for tasks with four objectives.

    python experiment/train.py grpo_dynw --objectives accuracy conciseness clarity directness

experiment/run_study.py starts all of its runs with this script.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewards  # noqa: E402


@rewards.objective
def directness(response, **_):
    """Returns 1.0 if a response neither announces its calculation nor doubts it, else 0.0."""
    return float("Okay" not in response and "Wait" not in response)


if __name__ == "__main__":
    importlib.import_module(sys.argv.pop(1)).main()
