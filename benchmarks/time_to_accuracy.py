"""Wall seconds from `python main.py` to a validation error, with imports, compilation and all.

    python -m benchmarks.time_to_accuracy --data_dir=./data

Runs the real command once a seed, in turn, and reads its lines as they come.
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

from training.checkpoint import write_whole
from training.cli import InputError, run_command
from training.run_folder import environment

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class TimeToAccuracy:
    """Seconds until the validation error is at most so much."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    seeds: tuple[int, ...] = (1, 2, 3)
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


def main(args: TimeToAccuracy):
    runs = [time_run([f"--data_dir={args.data_dir}", f"--random_seed={seed}", *shlex.split(args.flags)], args.errors)
            for seed in args.seeds]  # fmt: skip
    print("\n| until | median, s | each, s |\n| --- | --- | --- |")
    for error in args.errors:
        times = [run["seconds_to"][error] for run in runs]
        median = f"{statistics.median(times):.1f}" if None not in times else "not reached"
        print(f"| {error} % | {median} | {', '.join('-' if t is None else f'{t:.1f}' for t in times)} |")
    for name in ("first_epoch", "epoch", "whole"):
        times = [run[name] for run in runs]
        print(f"| {name.replace('_', ' ')} | {statistics.median(times):.2f} | {', '.join(f'{t:.2f}' for t in times)} |")
    if args.out:
        record = {"environment": environment(), "flags": args.flags, "seeds": args.seeds, "runs": runs}
        write_whole(Path(args.out), json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    run_command(main, TimeToAccuracy, prog="benchmarks.time_to_accuracy")
