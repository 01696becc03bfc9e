"""How long a command takes to its help, and to its first training step on the bundled digits.

python -m benchmarks.startup
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.cli import Positive, Settings, run_command
from training.run_folder import environment

ROOT = Path(__file__).parents[1]
FIRST_STEP = """
import os, sys, main, trainer
step = trainer.Trainer.train_step
trainer.Trainer.train_step = lambda *arguments: (step(*arguments), os._exit(0))
sys.exit(main.run(sys.argv[1:]) + 7)
"""


@dataclass(frozen=True)
class Startup(Settings):
    """Times the start of a command, in seconds."""

    rounds: Positive = 5
    """Rounds; each time is the median over them."""


def seconds(*call: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *call], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def main(args: Startup):
    print(environment()["machine"])
    with tempfile.TemporaryDirectory() as folder:
        train = ["-c", FIRST_STEP, "--task=digits", "--compile=False", "--overwrite=True", f"--ckpt_dir={folder}",
                 f"--plot_dir={folder}/plots"]  # fmt: skip
        calls = {"--help": ["main.py", "--help"], "import torch": ["-c", "import torch"], "first step": train}
        times = {name: [seconds(*call) for _ in range(args.rounds)] for name, call in calls.items()}
    for name, values in times.items():
        print(f"{name:12} {statistics.median(values):5.2f} s")


if __name__ == "__main__":
    run_command(main, Startup, prog="benchmarks.startup")
