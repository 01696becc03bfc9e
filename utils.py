"""What every part of a run needs: devices, seeds, run folders, and checkpoint files that are whole and safe.

checkpoint = load_checkpoint("ckpt/ram_6_8x8_1/best.pt")  # refuses whatever would run code
"""

import io
import json
import os
import platform
import random
import shutil
import sys
import zipfile
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from config import Config, InputError, params_json

CHECKPOINT_KEYS = {
    "epoch", "model_state", "optim_state", "scheduler_state", "best_valid_acc", "epochs_since_best", "random_states",
    "model_args", "data", "config", "surroundings",
}  # fmt: skip


def pick_device(use_gpu: bool) -> torch.device:
    """CUDA, else Apple's MPS, else the CPU."""
    if use_gpu and torch.cuda.is_available():
        return torch.device("cuda")
    if use_gpu and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def seed_everything(seed: int):
    """Seeds the global generators, which draw the initial weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Stream(IntEnum):
    """What random numbers are for; each use draws from streams of its own."""

    SPLIT = 0  # which images are for validation, or for the test
    ORDER = 1  # the order of the training images in an epoch
    ROLLOUT = 2  # first locations and the policy's noise in a training step
    EVALUATION = 3  # first locations in validation and test
    CANVAS = 4  # places and clutter of a batch of canvases


def make_generator(
    stream: Stream, seed: int, epoch: int = 0, step: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose numbers depend on these alone, whatever else has been drawn: a run may begin at any step."""
    state = np.random.SeedSequence((stream, seed, epoch, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


class AverageMeter:
    """A weighted mean of tensors, accumulated on their device: only `mean` waits for it."""

    def __init__(self):
        self.total: Tensor | float = 0.0
        self.weight = 0

    def update(self, values: Tensor, weight: int):
        self.total = self.total + values.detach() * weight
        self.weight += weight

    def mean(self) -> list[float]:
        return (self.total / self.weight).tolist()


def random_states() -> list[Tensor]:
    """The states of torch's global generators: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def restore_random_states(states: list[Tensor]):
    """Sets what `random_states` told; the GPUs' only where there are as many."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])


def prepare_dirs(config: Config):
    """Makes the folder of a training and keeps its settings there.

    Raises:
        InputError: it holds another run, and neither resume nor overwrite is set; or it cannot be written.
    """
    if (config.run_dir / "last.pt").exists() and not (config.resume or config.overwrite):
        raise InputError(
            f"{config.run_dir} holds a run already: --resume=True goes on with it, --run_name=NAME trains beside it, "
            f"--overwrite=True throws it away"
        )
    try:
        if config.overwrite and not config.resume:
            for folder in (config.run_dir, config.run_logs, config.run_plots):
                shutil.rmtree(folder, ignore_errors=True)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(config.run_dir / "params.json", params_json(config).encode())
    except OSError as error:
        raise InputError(f"cannot write to {config.run_dir} ({error.strerror}): choose another --ckpt_dir=") from error


class NullWriter:
    """Stands in for TensorBoard's writer where nothing is logged."""

    def add_scalar(self, *args):
        pass

    def close(self):
        pass


def make_writer(config: Config, epoch: int):
    """TensorBoard's writer, which drops what an earlier process logged after this epoch; or one that writes nothing."""
    if not config.use_tensorboard:
        return NullWriter()
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    return SummaryWriter(str(config.run_logs), purge_step=epoch + 1)


def write_whole(path: Path, content: bytes):
    """Writes a file that is either the old one or the new one, whole, whenever the process or the machine dies."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(checkpoint: dict, *paths: Path):
    """Writes the same checkpoint to each path, in this order."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    for path in paths:
        write_whole(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint onto the CPU, without running anything in it.

    Raises:
        InputError: there is none, or the file is not one of ours, whole.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: train first, or name the run with --run_name= and --ckpt_dir=")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no set of errors for bytes that are not a checkpoint
        raise InputError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): restore it, use the run's other "
            f"checkpoint (best.pt, last.pt), or train anew"
        ) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= CHECKPOINT_KEYS:
        raise InputError(f"{path} is not a checkpoint of this project: it lacks the keys {sorted(CHECKPOINT_KEYS)}")
    return checkpoint


def load_weights(model: nn.Module, checkpoint: dict, path: str | Path):
    """Gives a model the checkpoint's weights.

    Raises:
        InputError: they are of other sizes.
    """
    try:
        model.load_state_dict(checkpoint["model_state"])
    except RuntimeError as error:
        raise InputError(f"{path} holds another model: {' '.join(str(error).split())}") from error


class Glimpses(NamedTuple):
    """Where a model looked in N images, as plot_glimpses.py draws it."""

    images: np.ndarray  # (N, C, H, W), from 0 to 1
    labels: np.ndarray  # (N,)
    predictions: np.ndarray  # (N,)
    locations: np.ndarray  # (N, T, 2)
    classes: np.ndarray  # (num_classes,), their names
    patch_size: int
    num_patches: int
    glimpse_scale: int

    @classmethod
    def of(cls, rollout, images: Tensor, labels: Tensor, classes: list[str], config: Config) -> "Glimpses":
        """From a `model.Rollout` of images (N, C, H, W) whose values run from 0 to 1."""
        predictions = rollout.log_probs.argmax(dim=-1)
        arrays = (tensor.numpy(force=True) for tensor in (images, labels, predictions, rollout.locations))
        return cls(*arrays, np.array(classes), config.patch_size, config.num_patches, config.glimpse_scale)


def save_glimpses(path: Path, glimpses: Glimpses):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **glimpses._asdict())


def load_glimpses(path: Path) -> Glimpses:
    """Reads what `save_glimpses` wrote, without pickle.

    Raises:
        InputError: the file is missing, or is none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Glimpses(**{name: arrays[name] for name in Glimpses._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} does not hold saved glimpses ({error}): train with --plot_freq=1") from error


def surroundings() -> dict:
    """What a recorded result depends on beside its settings: the command, versions and machine."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in names if line.startswith("model name")), platform.processor())
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "machine": f"{platform.system()} {platform.machine()}, {processor}, {torch.get_num_threads()} threads",
    }


def read_metrics(path: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_metrics(path: Path, metrics: dict):
    """Adds an epoch's line to metrics.jsonl; lines from that epoch on, left by a run that was cut off, go first."""
    kept = [line for line in read_metrics(path) if line["epoch"] < metrics["epoch"]]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in [*kept, metrics]).encode())
