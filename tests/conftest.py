"""Fixtures: where real data may lie, and a small run of the real thing on the bundled digits."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

# What the tests compute is too small to share between cores; the commands they start inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

from helpers import SHARED_DATA, ForkServer, make_glimpses, noise, put  # noqa: E402

from config import Config, get_config  # noqa: E402
from main import main  # noqa: E402
from viz.record import Glimpses  # noqa: E402


def pytest_runtest_setup(item):
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU, and there is none")


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


@pytest.fixture
def glimpses() -> Glimpses:
    random = np.random.default_rng(0)
    images = random.random((3, 1, 20, 32), dtype=np.float32)
    return make_glimpses(images, random.uniform(-1, 1, (3, 4, 2)).astype(np.float32))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-page")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(request, browser, address):
    """Opens the page at the module's `address` as another visitor, waits for the module's READY, a selector, and
    returns the page with the addresses that it asks for."""
    with contextlib.ExitStack() as stack:

        def open_page(**options):
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
            stack.callback(context.close)
            page = context.new_page()
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            page.wait_for_selector(request.module.READY)
            return page, asked

        yield open_page


@pytest.fixture(params=["journal", "postgresql"])
def storage(request, tmp_path):
    if request.param == "journal":
        yield str(tmp_path / "journal.log")
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("pg_ctl") or "").parent]
    if not (found[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    prefix = []
    if os.getuid() == 0:  # as which the server does not run
        shutil.chown(folder, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def server(program: str, *arguments: str):
        subprocess.run([*prefix, found[-1] / program, "-D", folder / "data", *arguments], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    try:
        server("initdb", "--auth=trust", "--username=ram", "--no-sync")
        options = f"-F -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        server("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql+psycopg://ram@127.0.0.1:{port}/postgres"
        server("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def plain(tmp_path) -> Path:
    """20 training and 4 test images of noise in each of two classes, 9 x 6 pixels."""
    for half, count in (("train", 20), ("test", 4)):
        for name in "ab":
            for i in range(count):
                put(tmp_path / half / name / f"{i}.png", noise(6, 9))
    return tmp_path
