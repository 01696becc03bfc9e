"""Wall seconds from `python main.py` to a validation error, with imports, compilation and all.

    python -m benchmarks.time_to_accuracy --data_dir=./data

Runs the real command once a seed and reads its lines as they come. Before each it times the plain way, see
throughput.py, in the original project's batches of 128.
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.throughput import new_trainer, plain_steps, seconds_per_step
from config import get_config
from training.checkpoint import write_whole
from training.cli import InputError, run_command
from training.run_folder import environment

ROOT = Path(__file__).parents[1]
ORIGINAL_EPOCHS = 160  # in which the original project reaches its 1.21 % on test


@dataclass(frozen=True)
class TimeToAccuracy:
    """Seconds until the validation error is at most so much."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """One run for each."""
    errors: tuple[float, ...] = (1.29, 1.12)
    """Validation errors to reach, in %."""
    flags: str = ""
    """More flags of main.py, as --flags="--epochs=10 --optimizer=adam"."""
    out: str = ""
    """Write the times as JSON to this file."""


def time_run(flags: list[str], errors: tuple[float, ...]) -> dict:
    """Runs main.py; the seconds to each error, None if it was not reached, of an epoch, and of the whole.

    Raises:
        InputError: it failed; it has printed why.
    """
    reached: dict[float, float | None] = dict.fromkeys(errors)
    with tempfile.TemporaryDirectory() as folder:
        folders = [f"--{name}={folder}/{name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
        call = [sys.executable, "-u", ROOT / "main.py", *folders, "--run_name=timed", *flags]
        began = time.perf_counter()
        with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                passed = time.perf_counter() - began
                print(f"{passed:6.1f} s  {line}", end="", flush=True)
                if found := re.search(r"val err: ([\d.]+)", line):
                    for error in errors:
                        if reached[error] is None and float(found[1]) <= error:
                            reached[error] = passed
        whole = time.perf_counter() - began
        if process.returncode:
            raise InputError("the training failed; see above")
        lines = (Path(folder) / "ckpt_dir" / "timed" / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return {"seconds_to": reached, "epoch": statistics.median(seconds), "first_epoch": seconds[0], "whole": whole}


def plain_epoch(flags: list[str]) -> float:
    """Seconds that the plain way takes to train an epoch on the CPU, without validation."""
    config = get_config(flags).replace(batch_size=128, compile="False", precision="float32")
    trainer = new_trainer(config, torch.device("cpu"))
    steps = plain_steps(trainer, 128, num_workers=0)
    seconds_per_step(steps, 10)  # warm up
    return seconds_per_step(steps, 40) * trainer.steps_per_epoch


def main(args: TimeToAccuracy):
    runs, plain = [], []
    for seed in args.seeds:
        flags = [f"--data_dir={args.data_dir}", f"--random_seed={seed}", *shlex.split(args.flags)]
        plain.append(plain_epoch(flags))
        runs.append(time_run(flags, args.errors))
    print("\n| until | median, s | each, s |\n| --- | --- | --- |")
    for error in args.errors:
        times = [run["seconds_to"][error] for run in runs]
        median = f"{statistics.median(times):.1f}" if None not in times else "not reached"
        print(f"| {error} % | {median} | {', '.join('-' if t is None else f'{t:.1f}' for t in times)} |")
    for name in ("first_epoch", "epoch", "whole"):
        times = [run[name] for run in runs]
        print(f"| {name.replace('_', ' ')} | {statistics.median(times):.2f} | {', '.join(f'{t:.2f}' for t in times)} |")
    pace = statistics.median(plain)
    print(f"| epoch of the plain way, on the CPU | {pace:.2f} | {', '.join(f'{t:.2f}' for t in plain)} |")
    print(f"| {ORIGINAL_EPOCHS} of them | {ORIGINAL_EPOCHS * pace:.0f} | |")
    ratio = statistics.median(slow / run["epoch"] for slow, run in zip(plain, runs, strict=True))
    print(f"\nAn epoch, with its validation, is {ratio:.1f} times as fast as the plain way's without.")
    if args.out:
        record = {"environment": environment(), "flags": args.flags, "seeds": args.seeds, "runs": runs, "plain": plain}
        write_whole(Path(args.out), json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    run_command(main, TimeToAccuracy, prog="benchmarks.time_to_accuracy")
