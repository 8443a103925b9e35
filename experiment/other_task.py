"""
Makes a second model and dataset for the experiment, by the recipe of tiny/make_tiny.py with other settings.

    python experiment/other_task.py --output runs/other        about 8 minutes on two cores

The problems are sums and differences of four integers up to 60, instead of five integers up to 40. The
demonstrations follow another mixture of styles: fewer contain enumerators (Step 1, First), more go over the
calculation a second time, and more are plain. No setting of the training scripts was tuned on this task.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny"))
import make_tiny  # noqa: E402


def make_problem(rng: random.Random) -> list[int]:
    """Four terms, negative if subtracted. All partial sums are 0 or more."""
    while True:
        terms = [rng.randint(2, 60)] + [rng.choice([1, 1, -1]) * rng.randint(2, 60) for _ in range(3)]
        if all(sum(terms[: i + 1]) >= 0 for i in range(4)):
            return terms


make_tiny.make_problem = make_problem
make_tiny.MANNER = {"bare": 0.05, "dense": 0.16, "plain": 0.24, "steps": 0.07, "wordy": 0.48}
make_tiny.ORDINALS = {True: 0.70, False: 0.05}
make_tiny.RECHECKS = {True: 0.45, False: 0.90}

if __name__ == "__main__":
    make_tiny.main()
