"""A run's folder: locked while it trains, with its settings, metrics and records.

with open_run(config, device, epoch=0, step=0):
    trainer.train()
"""

import contextlib
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import Config, params_json
from training.checkpoint import load_checkpoint, write_whole
from training.cli import InputError
from utils import describe_device, matmul_dtype


@contextlib.contextmanager
def open_run(config: Config, device: torch.device, epoch: int, step: int) -> Iterator[None]:
    """Makes the folder of a training, writes its settings and environment there, and locks it until the training ends.

    The operating system holds the lock: it does not outlive the process, however that dies.

    Args:
        epoch, step: of the checkpoint that is resumed, which was read before.
    Raises:
        InputError: another process trains there, or has trained since; it holds another run, and neither resume nor
            overwrite is set; or it cannot be written.
    """
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(config.run_dir / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process trains in {config.run_dir}: wait, or choose another --run_name=") from error
    except OSError as error:
        raise InputError(f"cannot write to {config.run_dir} ({error.strerror}): choose another --ckpt_dir=") from error
    call = config.call
    try:
        held = any((config.run_dir / name).exists() for name in ("last.pt", "best.pt"))
        if held and not (call.resume or call.overwrite):
            raise InputError(
                f"{config.run_dir} holds a run already: --resume=True continues it, --run_name=NAME trains another, "
                f"--overwrite=True deletes it"
            )
        if call.resume:
            check_latest(config.checkpoint_path, epoch, step)
        elif call.overwrite:
            for name in ("last.pt", "best.pt", "metrics.jsonl", "test.json"):
                (config.run_dir / name).unlink(missing_ok=True)
            for folder in (config.run_logs, config.run_plots):
                shutil.rmtree(folder, ignore_errors=True)
        if not call.resume:
            precision = str(matmul_dtype(config.training.precision, device)).removeprefix("torch.")
            found = {**environment(), "device": describe_device(device), "precision": precision}
            write_whole(config.run_dir / "environment.json", (json.dumps(found, indent=2) + "\n").encode())
        write_whole(config.params_path, params_json(config).encode())
        yield
    finally:
        lock.release()


def check_latest(path: Path, epoch: int, step: int):
    """Raises InputError if the checkpoint at path is no longer the one of this epoch and step."""
    latest = load_checkpoint(path, to_resume=True)
    if (latest["epoch"], latest["step"]) != (epoch, step):
        raise InputError(f"another process has trained on from {path} meanwhile: start again, to resume from there")


def environment() -> dict:
    """What a recorded result depends on besides its settings: the command, versions and machine."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in names if line.startswith("model name")), platform.processor())
    commit, script = None, Path(sys.argv[0]).name
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or not a checkout
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return {
        "command": " ".join(["python", *(script if word == sys.argv[0] else word for word in sys.orig_argv[1:])]),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "commit": commit,
        "machine": f"{platform.system()} {platform.machine()}, {processor}, {torch.get_num_threads()} threads",
    }


def read_environment(run_dir: Path) -> dict:
    """The environment that a run was begun in; empty if the file is missing or damaged."""
    try:
        return json.loads((run_dir / "environment.json").read_text())
    except (OSError, ValueError):
        return {}


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, one for each epoch.

    Raises:
        InputError: they are not.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for line in lines:  # a sum fails if one of them is missing or no number
            sum([line["epoch"], line["seconds"], line["lr"], line["train"]["acc"], line["valid"]["acc"]])
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it or remove it") from error


def append_metrics(path: Path, metrics: dict):
    """Adds an epoch's line to metrics.jsonl; replaces lines from that epoch on, left by a run that was cut off."""
    kept = [line for line in read_metrics(path) if line["epoch"] < metrics["epoch"]]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in [*kept, metrics]).encode())


def record_test(config: Config, test: dict, best_valid_acc: float):
    """Writes test.json: what tests found, with all that it depends on. Prints why, if it cannot be written.

    Args:
        config: of the test.
        test: its metrics, and the M and epoch that they hold for; tests of the same epoch with another M are kept.
        best_valid_acc: of the run, in %.
    """
    path = config.run_dir / "test.json"
    tests = {f"M={test['M']}": test}
    try:
        epochs = read_metrics(config.run_dir / "metrics.jsonl")
        with FileLock(config.run_dir / "test.lock"):  # one with another M may end at the same moment
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                before = json.loads(path.read_text())["tests"].items()
                tests = {**{name: other for name, other in before if other["epoch"] == test["epoch"]}, **tests}
            record = {
                "tests": tests,
                "best_valid_acc": best_valid_acc,
                "valid_acc_per_epoch": [epoch["valid"]["acc"] for epoch in epochs],
                "seconds_per_epoch": [epoch["seconds"] for epoch in epochs],
                "config": config.flat(),
                "trained_with": read_environment(config.run_dir),
            }
            text = json.dumps(record, indent=2)
            text = re.sub(r"\[[^][{}\"]*\]", lambda list_: f"[{' '.join(list_[0][1:-1].split())}]", text)  # in a line
            write_whole(path, (text + "\n").encode())
    except (InputError, OSError) as error:  # a finished model may well lie in a folder that is read-only
        print(f"[!] {error}")
