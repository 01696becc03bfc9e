"""What every part of a run needs: number formats, memory, random numbers, meters, signals. Imports none of our files.

generator = make_generator(Stream.ROLLOUT, seed=1, epoch=3, step=20)
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import platform
import random
import signal
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


def describe_device(device: torch.device) -> str:
    """The name of a CUDA GPU, else "mps" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def matmul_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of a training step's matrix products; see `TrainingConfig.precision`."""
    wanted = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.bfloat16 if wanted else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers in hardware, twice as fast as float32 or more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory():
    """Has glibc keep the memory that a step frees, for the next one. Does nothing where there is another C library.

    By default it returns large blocks to the system, which hands them out again as new pages, each cleared at its first
    touch: thousands of page faults a step. The process keeps what it needed most at any time; see man 3 mallopt.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def seed_everything(seed: int):
    """Seeds the global generators, which draw the initial weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Stream(IntEnum):
    """What random numbers are for; each use draws from a stream of its own."""

    SPLIT = 0  # which images are for validation, or for the test
    ORDER = 1  # the order of the training images in an epoch
    ROLLOUT = 2  # first locations and the policy's noise in a training step
    EVALUATION = 3  # first locations in validation and test
    CANVAS = 4  # places and clutter of a batch of canvases, or the first frames of a batch of games


def make_generator(
    stream: Stream, seed: int, epoch: int = 0, step: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A generator whose numbers depend on these alone, whatever else was drawn: a run may resume at any step."""
    return torch.Generator(device).manual_seed(generator_seed(stream, seed, epoch, step))


def generator_seed(stream: Stream, seed: int, epoch: int = 0, step: int = 0) -> int:
    state = np.random.SeedSequence((stream, seed, epoch, step)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


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

    def state_dict(self) -> dict:
        return {"total": self.total, "weight": self.weight}

    def load_state_dict(self, state: dict, size: int, device: torch.device):
        """Raises ValueError unless the state is that of a meter of `size` values."""
        self.total, self.weight = state["total"], state["weight"]
        if isinstance(self.total, Tensor) and self.total.shape == (size,) and isinstance(self.weight, int):
            self.total = self.total.to(device)
        elif (self.total, self.weight) != (0.0, 0):
            raise ValueError("its meter is damaged")


class Interrupted(KeyboardInterrupt):
    """A signal asked a training to stop, and it has saved itself."""

    def __init__(self, signal_number: int, saved: str):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}, {saved}; --resume=True continues from there")
        self.exit_code = 128 + signal_number  # as shells report it


STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def handle_stop_signals(handler: Callable) -> dict:
    """Sets the handler of the signals that ask to stop, but for those that are ignored; returns the handlers before.

    Only the main thread receives signals: elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


def restore_handlers(handlers: dict):
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def interrupting_signals(saved: str) -> Iterator[None]:
    """A signal that asks to stop raises Interrupted within, as Ctrl-C raises KeyboardInterrupt."""

    def interrupt(number: int, frame):
        raise Interrupted(number, saved)

    before = handle_stop_signals(interrupt)
    try:
        yield
    finally:
        restore_handlers(before)


class StopSignal:
    """Records the first signal that asks to stop, for a loop to read; a second one acts as it would without this.

    SIGINT (Ctrl-C), SIGTERM, and SIGHUP (a closed terminal), each unless the process was started to ignore it, as
    nohup does with SIGHUP. Elsewhere than in the main thread, where Python receives no signals, it records nothing.

    Args:
        echoes: ignore a second one: torchrun passes on to its processes what they have received already.
    """

    def __init__(self, echoes: bool = False):
        self.echoes = echoes
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self.before = handle_stop_signals(self._record)
        return self

    def _record(self, number: int, frame):
        self.received = number
        if not self.echoes:
            self._restore()

    def _restore(self):
        restore_handlers(self.before)

    def __exit__(self, *error):
        if not (self.echoes and self.received):
            self._restore()


@contextlib.contextmanager
def spared_signals() -> Iterator[None]:
    """Processes that are started within do not receive what asks to stop: the one that starts them ends them.

    Ctrl-C goes to all processes of a terminal, and queues signal all of a job. A worker that died of it would take the
    batch with it that is to be saved.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    atexit.unregister(kill_daemons)
    atexit.register(kill_daemons)  # before Python asks them to end, with a signal, too, and then waits
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_daemons():
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def ignore_stop_signals(worker: int):
    """For a worker to call, which another process than this one may have started (a fork server)."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_states() -> list[Tensor]:
    """The states of torch's global generators: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def restore_random_states(states: list[Tensor]):
    """Sets what `random_states` returned; the GPUs' only if there are as many."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
