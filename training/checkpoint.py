"""The format of a checkpoint, and files that are written whole or not at all.

    checkpoint = load_checkpoint("ckpt/ram_6_8x8_1/best.pt")
    model = model_of(checkpoint, "ckpt/ram_6_8x8_1/best.pt")

A checkpoint is a flat dict. Opening one runs nothing in it.
"""

import contextlib
import io
import os
import secrets
import shlex
import zipfile
from pathlib import Path

import torch

from model import RecurrentAttention
from training.cli import InputError

TEMPORARY = ".tmp"  # ends the names of files that are being written
FORMAT = 2  # of checkpoints; a newer one is rejected
MODEL_KEYS = {
    "format": int,
    "epoch": int,  # epochs finished
    "best_valid_acc": float,  # %
    "model_state": dict,  # what is tested: the average of the weights over the steps
    "model_args": dict,
    "data": dict,  # see `images.batches.DataSpec`
    "config": dict,  # all settings, flat
}
TRAINING_KEYS = {
    "step": int,  # steps finished of the current epoch
    "meter": dict,  # training metrics of those steps
    "seconds": float,  # that they took
    "epochs_since_best": int,
    "trained_state": dict,  # the weights themselves, from which training resumes
    "optim_state": dict,
    "scheduler_state": dict,
    "random_states": list,
    "processes": int,  # that took a batch of config.batch_size each
}


def save_checkpoint(checkpoint: dict, *paths: Path):
    """Writes the same checkpoint to each path, in this order."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    for path in paths:
        write_whole(path, buffer.getvalue())


def load_checkpoint(path: str | Path, to_resume: bool = False) -> dict:
    """Reads a checkpoint onto the CPU, without running anything in it.

    Args:
        to_resume: it must hold what training needs; a shipped model does not.
    Raises:
        InputError: there is none, or the file is not one of ours, whole.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a checkpoint: name a file in it")
    if not path.exists():
        started = path.name == "best.pt" and path.with_name("last.pt").exists()
        latest = "--best=False tests last.pt, which its first epoch has left; " if started else ""
        raise InputError(f"no checkpoint at {path}: {latest}train first, or name another run or file")
    try:
        check_archive(path)  # torch reads a flipped bit as readily as any other
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch names no set of errors for bytes that are not a checkpoint
        raise InputError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): {way_on_from(path, to_resume)}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("format"), int):
        raise InputError(f"{path} is not a checkpoint of this project: it names no format")
    if checkpoint["format"] > FORMAT:
        raise InputError(
            f"{path} has format {checkpoint['format']}, and this version reads up to {FORMAT}: use the newer version"
        )
    for key, kind in {**MODEL_KEYS, **(TRAINING_KEYS if to_resume else {})}.items():
        if not isinstance(checkpoint.get(key), kind):
            raise InputError(f"{path} is not a whole checkpoint: its {key} is not of type {kind.__name__}")
    return checkpoint


def way_on_from(damaged: Path, to_resume: bool) -> str:
    """What to do about a damaged checkpoint."""
    best = damaged.with_name("best.pt")
    if to_resume and damaged.name == "last.pt" and best.exists():
        with contextlib.suppress(InputError):
            epoch = load_checkpoint(best, to_resume=True)["epoch"]
            return f"rm {shlex.quote(str(damaged))}, and --resume=True continues from best.pt, of epoch {epoch}"
    return "restore it, use the run's other checkpoint (best.pt, last.pt), or train again"


def check_archive(path: str | Path, unpacked: int | None = None):
    """Raises ValueError, or an error of zipfile, unless a zip file is whole and holds no more than it should.

    A small file that is compressed may unpack to more than fits into memory.

    Args:
        unpacked: bytes that it may hold, compressed; None: as many as its own size, not compressed.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if unpacked is None and any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed")
        if sum(member.file_size for member in members) > (unpacked or os.path.getsize(path)):
            raise ValueError("it holds more than it should")
        if archive.testzip():
            raise ValueError("a checksum is wrong")


def model_of(checkpoint: dict, path: str | Path) -> RecurrentAttention:
    """The model of a checkpoint that was read from path, on the CPU.

    Raises:
        InputError: sizes and weights contradict each other.
    """
    try:
        return RecurrentAttention.of(checkpoint)
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} holds another model: {' '.join(str(error).split())}") from error


def write_whole(path: Path, content: bytes):
    """Writes a file that is either the old one or the new one, whole, whenever the process or the machine dies.

    Raises:
        InputError: the disk is full, or cannot be written; the old file stands.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # another process may write it, too
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
            f"cannot write {path} ({error.strerror or error}); what was saved before is still there: fix that, then "
            f"repeat the command, of a training with --resume=auto"
        ) from error
