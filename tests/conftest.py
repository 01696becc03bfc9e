"""What the tests share: where real data may lie, and a small run of the real thing on the bundled digits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config, get_config
from glimpses import Glimpses
from main import main
from modules import Retina

ROOT = Path(__file__).parents[1]
SHARED_DATA = Path(os.environ.get("RAM_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
SIZES = {"patch_size": 4, "num_patches": 2, "glimpse_scale": 2, "num_channels": 1, "loc_hidden": 8, "glimpse_hidden": 8,
         "hidden_size": 12, "std": 0.1, "num_classes": 3, "locator_hidden": 6, "num_glimpses": 4,
         "scan_radius": 0.3}  # fmt: skip

# What the tests compute is too small to share between cores; the commands they start inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


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


@pytest.fixture
def mnist_dir() -> Path:
    """The real MNIST, where the machine has it (RAM_DATA_DIR names its folder)."""
    if not (SHARED_DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file():
        pytest.skip(f"no MNIST in {SHARED_DATA}; RAM_DATA_DIR names another folder")
    return SHARED_DATA


@pytest.fixture
def flags(tmp_path) -> list[str]:
    """Flags of a training of a second or two that leaves everything below tmp_path."""
    folders = [f"--{name}={tmp_path / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    small = ["--task=digits", "--hidden_size=32", "--num_glimpses=3"]
    return [*small, "--plot_freq=1", "--use_gpu=False", *folders]


@pytest.fixture
def run(flags):
    """Calls the real command with these flags and more, and gives the Config it ran with."""

    def call(*more: str) -> Config:
        config = get_config([*flags, *more])
        main(config)
        return config

    return call


@pytest.fixture(scope="session")
def fork_server():
    server = ForkServer()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def server(fork_server, tmp_path) -> ForkServer:
    fork_server.log = tmp_path / "log"
    return fork_server


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def made(images: np.ndarray, locations: np.ndarray, patch_size=5, num_patches=2, scale=2, **fields) -> Glimpses:
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


@pytest.fixture
def glimpses() -> Glimpses:
    random = np.random.default_rng(0)
    images = random.random((3, 1, 20, 32), dtype=np.float32)
    return made(images, random.uniform(-1, 1, (3, 4, 2)).astype(np.float32))
