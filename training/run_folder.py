"""A run's folder: locked while it trains, with its settings, metrics and records.

with open_run(config, device, epoch=0, step=0):
    trainer.train()
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from config import Config, params_json
from training.checkpoint import TEMPORARY, load_checkpoint, write_whole
from training.cli import InputError, say
from utils import describe_device, matmul_dtype

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None
    import msvcrt

OWNER = ".run"  # in a run's plots and logs: the way from there to the run's folder
PLOTS, LOG = (".npz", ".png", ".gif", ".mp4", ".html"), "events.out.tfevents"  # what a run leaves there


@contextlib.contextmanager
def open_run(config: Config, device: torch.device, epoch: int, step: int) -> Iterator[None]:
    """Makes the folders of a training, writes its settings and environment, and locks it until the training ends.

    Args:
        epoch, step: of the checkpoint that is resumed, which was read before.
    Raises:
        InputError: another process trains there, or has trained since; it holds another run, and neither resume nor
            overwrite is set; its metrics are damaged; or a folder cannot be written, or holds the plots or logs of
            another run.
    """
    call = config.call
    check_folder(config.run_dir, "ckpt_dir")
    with locked(config.run_dir / "lock", wait=False):
        reject_used(config)
        if call.resume:
            check_latest(config.checkpoint_path, epoch, step)
            read_metrics(config.run_dir / "metrics.jsonl")  # a damaged one would stop the first epoch at its end
        owners = {folder: owner_of(folder) for folder in (config.run_logs, config.run_plots)}
        for stale in config.run_dir.glob(f"*{TEMPORARY}"):  # of a process that was killed
            if not stale.name.startswith("test.json"):  # which a test may be writing: it has a lock of its own
                stale.unlink()
        claim(config.run_plots, "plot_dir", config.run_dir)
        if config.machine.use_tensorboard or config.machine.wandb:
            claim(config.run_logs, "logs_dir", config.run_dir)
        if call.overwrite and not call.resume:
            for name in ("last.pt", "best.pt", "metrics.jsonl", "test.json"):
                (config.run_dir / name).unlink(missing_ok=True)
            for folder, owner in owners.items():
                if owner == config.run_dir.resolve():
                    empty(folder)
        if not call.resume:
            if owners[config.run_plots] == config.run_dir.resolve():  # of a run of this name that was deleted
                for stale in config.run_plots.glob("glimpses_*.npz"):
                    stale.unlink()
            precision = str(matmul_dtype(config.training.precision, device)).removeprefix("torch.")
            found = {**environment(), "device": describe_device(device), "precision": precision}
            write_whole(config.run_dir / "environment.json", (json.dumps(found, indent=2) + "\n").encode())
        write_whole(config.params_path, params_json(config).encode())
        yield


def reject_used(config: Config):
    """Raises InputError if a run to begin would mix with what its folder holds, and is not to delete that."""
    call, tested = config.call, (config.run_dir / "test.json").exists()
    if (config.holds_run or tested) and not (call.resume or call.overwrite):
        held = "a run already: --resume=True continues it, " if config.holds_run else "test.json of a run: "
        raise InputError(
            f"{config.run_dir} holds {held}--run_name=NAME trains another, --overwrite=True deletes what is there"
        )


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Locks a file, which names the process that holds it.

    The operating system holds the lock: it does not outlive the process, however that dies.

    Raises:
        InputError: another process holds it, and this one is not to wait; or the file system has no locks.
    """
    with open(path, "a+") as file:  # which stays: a lock on a deleted file keeps nobody out
        while not try_lock(file):
            if not wait:
                file.seek(0)
                holder = file.read().strip()
                raise InputError(
                    f"another process trains in {path.parent}{holder and f' ({holder})'}: wait, or choose another "
                    f"--run_name="
                )
            time.sleep(0.05)
        file.truncate(0)
        print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
        try:
            yield
        finally:
            file.truncate(0)


def try_lock(file: TextIO) -> bool:
    """Locks a file until it is closed; returns whether that worked, or another process holds it.

    Raises:
        InputError: the file system has no locks.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # Windows, whose locked bytes nobody can read: one far behind the file's end
            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise InputError(
            f"the file system of {file.name} has no locks ({error.strerror}), so that two processes could train in one "
            f"folder: choose a --ckpt_dir= on another"
        ) from error
    return True


def check_folder(folder: Path, flag: str):
    """Makes a folder if it is missing, and raises InputError, which names its flag, if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose another --{flag}=") from error


def claim(folder: Path, flag: str, run_dir: Path):
    """Makes the folder of a run's plots or logs, and notes in it whose they are.

    Raises:
        InputError: it cannot be written, or is that of another run, of the same name in another --ckpt_dir=.
    """
    check_folder(folder, flag)
    owner = owner_of(folder)
    if owner not in (None, run_dir.resolve()) and (owner / "params.json").exists():
        raise InputError(f"{folder} is that of the run in {owner}: choose another --{flag}=, or another --run_name=")
    if owner != run_dir.resolve():
        write_whole(folder / OWNER, os.fsencode(os.path.relpath(run_dir.resolve(), folder.resolve())))


def owner_of(folder: Path) -> Path | None:
    """The folder of the run whose plots or logs these are, or checkpoints; None if that is not noted."""
    if (folder / "params.json").exists():
        return folder.resolve()
    try:
        return (folder / os.fsdecode((folder / OWNER).read_bytes())).resolve()
    except OSError:
        return None


def empty(folder: Path):
    """Deletes the plots and logs of a run in its folder, and nothing that the user put beside them."""
    for path in folder.glob("*"):
        if path.is_file() and (path.suffix in PLOTS or path.name.startswith(LOG)):
            path.unlink()


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
        asked = [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ]
        commit = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return {
        "command": without_password(
            " ".join(["python", *(script if word == sys.argv[0] else word for word in sys.orig_argv[1:])])
        ),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version_of(name) for name in ("torchvision", "numpy", "pillow", "scikit-learn")},
        },
        "commit": commit,  # with -dirty at its end if the checkout had changes
        "machine": f"{platform.system()} {platform.machine()}, {processor}, {torch.get_num_threads()} threads",
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_password(text: str) -> str:
    """The text, in which each URL's password is replaced by ***."""
    text = re.sub(r"(://[^\s/@:]*):\S*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&]password=)[^\s&]*", r"\1***", text)


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
            sum([line["epoch"], line["seconds"], line["lr"], line["train"]["acc"], *valid_accs([line])])
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): restore it or remove it") from error


def valid_accs(metrics: list[dict]) -> list[float]:
    """The validation accuracies, in %, of lines of metrics.jsonl; a run that validates nothing has none."""
    return [line["valid"]["acc"] for line in metrics if line["valid"] is not None]


def append_metrics(path: Path, metrics: dict):
    """Adds an epoch's line to metrics.jsonl; replaces lines from that epoch on, left by a run that was cut off."""
    kept = [line for line in read_metrics(path) if line["epoch"] < metrics["epoch"]]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in [*kept, metrics]).encode())


def record_test(config: Config, test: dict, best_valid_acc: float):
    """Writes test.json: what tests found, with all that it depends on. Prints why, if it cannot be written.

    Args:
        config: of the test.
        test: its metrics, and the M and epoch that they hold for; tests of the same epoch with another M are kept.
        best_valid_acc: of the run, in %; 0 if it validates nothing.
    """
    path = config.run_dir / "test.json"
    tests = {f"M={test['M']}": test}
    try:
        epochs = read_metrics(config.run_dir / "metrics.jsonl")
        with locked(config.run_dir / "test.lock"):  # one with another M may end at the same moment
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
                before = json.loads(path.read_text())["tests"].items()
                tests = {**{name: other for name, other in before if other["epoch"] == test["epoch"]}, **tests}
            record = {
                "tests": tests,
                "best_valid_acc": best_valid_acc,
                "valid_acc_per_epoch": valid_accs(epochs),
                "seconds_per_epoch": [epoch["seconds"] for epoch in epochs],
                "config": config.flat(),
                "trained_with": read_environment(config.run_dir),
            }
            text = json.dumps(record, indent=2)
            # Lists of numbers in a line; no name has the newline after their bracket.
            text = re.sub(r"\[\n[^][{}\"]*\]", lambda list_: f"[{' '.join(list_[0][1:-1].split())}]", text)
            write_whole(path, (text + "\n").encode())
    except (InputError, OSError) as error:  # a finished model may well lie in a folder that is read-only
        say(f"[!] {path} is not written ({error})")
