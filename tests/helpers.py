"""What several tests share: names, comparisons, small inputs, and commands run as a user runs them."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from config import Config, make_config
from data_loader import get_test_loader, get_train_valid_loader
from images.batches import Loader
from images.datasets import Examples, read_examples
from modules import Retina
from trainer import Trainer
from training.run_folder import open_run
from viz.record import Glimpses
from viz.reports import open_reports

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("RAM_DATA_DIR", ROOT.parent / "shared" / "data"))
CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
SIZES = {"patch_size": 4, "num_patches": 2, "glimpse_scale": 2, "num_channels": 1, "loc_hidden": 8, "glimpse_hidden": 8,
         "hidden_size": 12, "std": 0.1, "num_classes": 3, "locator_hidden": 6, "num_glimpses": 4,
         "scan_radius": 0.3}  # fmt: skip


class ForkServer:
    """See fork_server.py."""

    log: Path  # what the commands print

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def ask(self, line: str) -> int:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *flags: str, **environment: str) -> int:
        return self.ask(json.dumps([str(self.log), environment, *flags]))

    def wait(self, pid: int) -> int:
        return self.ask(f"wait {pid}")

    def wait_for(self, text: str):
        """Until a command has printed this."""
        while text not in (self.log.read_text() if self.log.exists() else ""):
            time.sleep(0.005)


class Terminal:
    """A pseudo-terminal: commands that run on it believe that a user types there."""

    def __init__(self):
        self.user_end, self.command_end = pty.openpty()
        fcntl.ioctl(self.command_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # rows, columns
        self.name = os.ttyname(self.command_end)
        self.printed = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):
            while part := os.read(self.user_end, 65536):
                self.printed += part.decode(errors="replace")

    def start(self, *call: str, **environment: str) -> subprocess.Popen:
        """A Python command in the repository's root, in the foreground of this terminal."""

        def take_the_terminal():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            for number in (signal.SIGINT, signal.SIGHUP):  # a suite in the background would ignore them
                signal.signal(number, signal.SIG_DFL)

        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self.command_end)
        return subprocess.Popen([sys.executable, *call], **ends, cwd=ROOT, env={**os.environ, **environment},
                                start_new_session=True, preexec_fn=take_the_terminal)  # fmt: skip

    def wait_for(self, text: str, count: int = 1, seconds: float = 100):
        end = time.monotonic() + seconds
        while self.printed.count(text) < count:
            assert time.monotonic() < end, f"waited in vain for {text!r}:\n{self.printed}"
            time.sleep(0.005)

    def press_ctrl_c(self):
        """The terminal sends SIGINT to all processes in its foreground."""
        os.write(self.user_end, b"\x03")


def command(*call: str, **options) -> subprocess.CompletedProcess:
    """A Python command in the repository's root: command("main.py", "--help"), command("-m", "search")."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, *call], **options)


@contextlib.contextmanager
def serve_page(*flags: str, **options) -> Iterator[tuple[subprocess.Popen, str]]:
    """The page, served as a user serves it on a port that is free, and its address."""
    pytest.importorskip("gradio", reason="gradio is not installed: make test-page")
    call = [sys.executable, "-m", "viz.page", "--port=0", *flags]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)
    try:
        yield process, re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait()


def assert_one_line(result: subprocess.CompletedProcess, *hints: str):
    """The command failed with one line that holds these hints."""
    assert result.returncode != 0
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for hint in hints:
        assert hint in result.stderr


def loaders_of(config: Config, device: torch.device = CPU, checkpoint: dict | None = None) -> tuple[Loader, Loader]:
    """The loaders of a training."""
    accept = config.call.accept_changes
    return get_train_valid_loader(
        config.data, config.training.random_seed, device, checkpoint=checkpoint, accept_changes=accept
    )


def loader_for_test(config: Config, spec, device: torch.device = CPU) -> Loader:
    return get_test_loader(config.data, config.training.random_seed, spec, device)


def train(config: Config, checkpoint: dict | None = None) -> Trainer:
    """A training as main.py runs it, on the CPU."""
    trainer = Trainer(config, loaders_of(config, CPU, checkpoint), CPU, checkpoint)
    with open_run(config, CPU, trainer.progress.epoch, trainer.progress.step), open_reports(config, trainer) as reports:
        trainer.train(on_epoch=reports)
    return trainer


def metrics_of(config: Config) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(a, b):
    """Nested dicts, lists and tensors, equal to the last bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_same(*pair)
    else:
        assert a == b


def write_idx(path: Path, array: np.ndarray):
    """A file in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def make_glimpses(
    images: np.ndarray, locations: np.ndarray, patch_size=5, num_patches=2, scale=2, **fields
) -> Glimpses:
    """Glimpses of images (N, C, H, W) at locations (N, T, 2), with patches from the retina and three classes."""
    count, steps = locations.shape[:2]
    retina = Retina(patch_size, num_patches, scale)
    read = [retina(torch.from_numpy(images), torch.from_numpy(locations[:, t])) for t in range(steps)]
    shape = (count, steps, num_patches, images.shape[1], patch_size, patch_size)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), (count, steps))
    return Glimpses(
        images=images,
        labels=np.arange(count) % 3,
        locations=locations,
        patches=torch.stack(read, 1).view(shape).numpy(),
        probabilities=probabilities,
        classes=np.array(["zero", "one", "two"]),
        outside=np.zeros(images.shape[1], np.float32),
        glimpse_scale=scale,
    )._replace(**fields)


def seven(size=(300, 200), box=(120, 40, 180, 160), pen=12, ink=0, paper=255) -> Image.Image:
    """A 7 of straight lines, grey."""
    image = Image.new("L", size, paper)
    left, top, right, bottom = box
    corner = (right - pen // 2, top + pen // 2)
    ImageDraw.Draw(image).line([(left, top + pen // 2), corner, (left + 15, bottom)], fill=ink, width=pen)
    return image


def put(folder: Path, image: Image.Image | np.ndarray, **options):
    """Saves an image at a path, whose folders are made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(folder, **options)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def folder_config(folder: Path, **fields) -> Config:
    return make_config(**{"task": "folder", "dataset": "folder", "data_dir": str(folder), "num_workers": 0, **fields})


def read_folder(folder: Path, **fields) -> Examples:
    return read_examples(folder_config(folder, **fields).data, 1, train=True).examples
