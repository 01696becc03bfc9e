"""A run's folder: locked while it trains, its files written whole, its checkpoints opened without running anything.

checkpoint = load_checkpoint("ckpt/ram_6_8x8_1/best.pt")
"""

import contextlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from config import Config, InputError, params_json
from utils import describe_device, multiplies_in

FORMAT = 2  # of checkpoints; a newer one is refused
CHECKPOINT_KEYS = {
    "format": int,
    "epoch": int,  # epochs done
    "step": int,  # steps done of the epoch under way
    "meter": dict,  # training metrics of those steps
    "seconds": float,  # that they took
    "model_state": dict,  # what is tested: the average of the weights over the steps
    "trained_state": dict,  # the weights themselves, which training goes on with
    "optim_state": dict,
    "scheduler_state": dict,
    "best_valid_acc": float,
    "epochs_since_best": int,
    "random_states": list,
    "model_args": dict,
    "data": dict,
    "config": dict,
    "processes": int,  # that took a batch of config.batch_size each
}


@contextlib.contextmanager
def open_run(config: Config, device: torch.device, epoch: int, step: int) -> Iterator[None]:
    """Makes the folder of a training, keeps its settings and surroundings there, and locks it until the training ends.

    The operating system holds the lock: it does not outlive the process, however that dies.

    Args:
        epoch, step: done by the checkpoint that is resumed, which was read before.
    Raises:
        InputError: another process trains there, or has trained on; it holds another run, and neither resume nor
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
    try:
        if (config.run_dir / "last.pt").exists() and not (config.resume or config.overwrite):
            raise InputError(
                f"{config.run_dir} holds a run already: --resume=True goes on with it, --run_name=NAME trains beside "
                f"it, --overwrite=True throws it away"
            )
        if config.resume:
            check_latest(config.checkpoint_path, epoch, step)
        elif config.overwrite:
            for name in ("last.pt", "best.pt", "metrics.jsonl", "test.json"):
                (config.run_dir / name).unlink(missing_ok=True)
            for folder in (config.run_logs, config.run_plots):
                shutil.rmtree(folder, ignore_errors=True)
        if not config.resume:
            precision = str(multiplies_in(config.precision, device)).removeprefix("torch.")
            around = {**surroundings(), "device": describe_device(device), "precision": precision}
            write_whole(config.run_dir / "environment.json", (json.dumps(around, indent=2) + "\n").encode())
        write_whole(config.params_path, params_json(config).encode())
        yield
    finally:
        lock.release()


def write_whole(path: Path, content: bytes):
    """Writes a file that is either the old one or the new one, whole, whenever the process or the machine dies.

    Raises:
        InputError: the disk is full, or cannot be written; the old file stands.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name != "nt":  # the new name, too, must outlast a power cut; Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): mend that, then go on with --resume=True; "
            f"what was saved before stands"
        ) from error


def save_checkpoint(checkpoint: dict, *paths: Path):
    """Writes the same checkpoint to each path, in this order."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    for path in paths:
        write_whole(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint onto the CPU, without running anything in it.

    Raises:
        InputError: there is none, or the file is not one of ours, whole.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint: name a file in it")
    if not path.exists():
        begun = path.name == "best.pt" and path.with_name("last.pt").exists()
        latest = "--best=False tests last.pt, which its first epoch has left; " if begun else ""
        raise InputError(
            f"no checkpoint at {path}: {latest}train first, or name the run with --run_name= and --ckpt_dir="
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch reads a flipped bit as readily as any other
                raise ValueError("checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no set of errors for bytes that are not a checkpoint
        raise InputError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): restore it, use the run's other "
            f"checkpoint (best.pt, last.pt), or train anew"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("format"), int):
        raise InputError(f"{path} is not a checkpoint of this project: it names no format")
    if checkpoint["format"] > FORMAT:
        raise InputError(
            f"{path} has format {checkpoint['format']}, and this version reads up to {FORMAT}: use the newer version"
        )
    # As it was before there could be more processes or an average, and before seconds were counted.
    checkpoint.setdefault("processes", 1)
    checkpoint.setdefault("seconds", 0.0)
    checkpoint.setdefault("trained_state", checkpoint.get("model_state"))
    for key, kind in CHECKPOINT_KEYS.items():
        if not isinstance(checkpoint.get(key), kind):
            raise InputError(f"{path} is not a whole checkpoint: its {key} is not of type {kind.__name__}")
    return checkpoint


def check_latest(path: Path, epoch: int, step: int):
    """Raises InputError if the checkpoint at path is no longer the one of this epoch and step."""
    latest = load_checkpoint(path)
    if (latest["epoch"], latest["step"]) != (epoch, step):
        raise InputError(f"another process has trained on from {path} meanwhile: call again, to go on from there")


def surroundings() -> dict:
    """What a recorded result depends on beside its settings: the command, versions and machine."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in names if line.startswith("model name")), platform.processor())
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or not a checkout
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "commit": commit,
        "machine": f"{platform.system()} {platform.machine()}, {processor}, {torch.get_num_threads()} threads",
    }


def read_environment(run_dir: Path) -> dict:
    """The surroundings that a run was begun in; empty where they are not to be had."""
    try:
        return json.loads((run_dir / "environment.json").read_text())
    except (OSError, ValueError):
        return {}


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl.

    Raises:
        InputError: they are no epochs.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for line in lines:  # a sum fails where one of them is missing or no number
            sum([line["epoch"], line["seconds"], line["lr"], line["train"]["acc"], line["valid"]["acc"]])
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it or remove it") from error


def record_test(config: Config, test: dict, best_valid_acc: float):
    """Writes test.json: what tests found, with all that it depends on. Where it cannot be written, says so.

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
                "config": asdict(config),
                "trained_with": read_environment(config.run_dir),
            }
            write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    except (InputError, OSError) as error:  # a finished model may well lie where nobody can write
        print(f"[!] {error}")


def append_metrics(path: Path, metrics: dict):
    """Adds an epoch's line to metrics.jsonl; lines from that epoch on, left by a run that was cut off, go first."""
    kept = [line for line in read_metrics(path) if line["epoch"] < metrics["epoch"]]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in [*kept, metrics]).encode())
