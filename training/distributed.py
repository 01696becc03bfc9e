"""Several processes that train one model together: gloo between CPUs, NCCL between GPUs, one GPU for each process.

    torchrun --nproc_per_node=2 main.py

A step takes a batch of every process's --batch_size together. Each process draws the random numbers of the whole batch
and takes its shard of images and numbers, so that a run equals, but for rounding, one process with so large a batch.
A process that is by itself gets `ALONE`, which does nothing and costs nothing.
"""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from config import Config, config_of
from training.cli import InputError

if TYPE_CHECKING:  # torch takes a second to import, which --help need not wait for
    import torch
    from torch import Tensor, nn

T = TypeVar("T", bound=tuple)
SET_BY_TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
PATIENCE = timedelta(minutes=30)  # with a process that is alive and silent; a dead one is noticed at once


class Shard(NamedTuple):
    """What one process takes of a batch."""

    part: slice  # of the batch, never empty: every process takes part in every step
    images: int  # of them to be counted: 0 if the batch has fewer images than there are processes
    weight: float  # of this shard's mean, so that the mean over the processes is that over the batch


class World:
    """All processes of a training, seen from one of them; this one is by itself."""

    rank = 0
    local_rank = 0  # among those on this machine
    size = 1
    is_main = True  # the one that writes and prints
    hide_bars = None  # tqdm's `disable`; None hides them if there is no terminal

    def shard(self, count: int) -> Shard:
        """This process's shard of a batch of so many images."""
        begin, end = (count * rank // self.size for rank in (self.rank, self.rank + 1))
        part = slice(begin, end) if begin < end else slice(0, 1)
        return Shard(part, end - begin, (end - begin) * self.size / count)

    def parallel(self, module: "nn.Module") -> "nn.Module":
        """The module, whose backward pass averages the gradients over the processes."""
        return module

    def mean(self, values: T, weight: float) -> T:
        """The mean over the processes of a NamedTuple of tensors, each times its process's weight."""
        return values

    def sum(self, values: "Tensor") -> "Tensor":
        """The sum over the processes."""
        return values

    def largest(self, number: int | None) -> int | None:
        """The largest number that any process gives; None if none gives one."""
        return number

    def barrier(self):
        """Waits until all processes are here."""

    def main_first(self) -> AbstractContextManager:
        """The others wait for the main process, which may download what all need, or find what is wrong for all."""
        return contextlib.nullcontext()

    def main_only(self, context: AbstractContextManager) -> AbstractContextManager:
        return context

    def print_reason(self, text: str):
        """Prints why this process ends, unless another has printed a reason."""
        with contextlib.suppress(OSError):  # nobody reads it any more
            print(text, file=sys.stderr, flush=True)


ALONE = World()


class Team(World):
    """One of the processes that torchrun has started."""

    def __init__(self):
        import torch
        import torch.distributed as dist

        self.local_rank = int(os.environ["LOCAL_RANK"])
        store, self.rank, self.size = next(dist.rendezvous("env://", timeout=PATIENCE))
        self.is_main = self.rank == 0
        self.hide_bars = None if self.is_main else True
        self.reasons = dist.PrefixStore("reasons", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore("training", store),
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )

    def parallel(self, module):
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has no other name in older versions
            return DistributedDataParallel(
                module,
                device_ids=[self.local_rank] if next(module.parameters()).is_cuda else None,
                broadcast_buffers=False,  # the std changes alike in all
            )

    def mean(self, values, weight):
        import torch

        return type(values)(*self.sum(torch.stack(values).detach() * (weight / self.size)))

    def sum(self, values):
        import torch.distributed as dist

        dist.all_reduce(values)
        return values

    def largest(self, number):
        import torch
        import torch.distributed as dist

        largest = torch.tensor(number or 0)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item() or None

    def barrier(self):
        self.largest(None)

    @contextlib.contextmanager
    def main_first(self):
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def main_only(self, context):
        return context if self.is_main else contextlib.nullcontext()

    def print_reason(self, text):
        with contextlib.suppress(RuntimeError, OSError):  # the store is gone, with one that has printed a reason
            if self.reasons.add("processes", 1) == 1:
                print(text, file=sys.stderr, end="\n" if text else "", flush=True)
                self.reasons.set("printed", "")
            else:  # torchrun kills all once the first has ended: not before it has printed
                self.reasons.wait(["printed"], timedelta(seconds=10))


@contextlib.contextmanager
def join() -> Iterator[World]:
    """Joins the other processes if torchrun has started this one, and leaves them at the end.

    When a process fails, its connections close. The others notice at their next step and end without a word.
    """
    if not SET_BY_TORCHRUN.issubset(os.environ) or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    import torch.distributed as dist

    team = Team()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if team.is_main else nowhere):
            yield team
    except SystemExit:  # after --help or a wrong flag, about which all is printed
        team.print_reason("")
        raise
    except Exception:
        team.print_reason(traceback.format_exc())
    finally:
        dist.destroy_process_group()


def pick_device(use_gpu: bool, world: World = ALONE) -> "torch.device":
    """CUDA, a GPU for each process; else, for a process by itself, Apple's MPS; else the CPU.

    Raises:
        InputError: there are more processes than GPUs.
    """
    import torch

    if use_gpu and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if world.local_rank >= count:
            raise InputError(f"this machine has {count} GPUs: --nproc_per_node={count}, or --use_gpu=False")
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda")
    if use_gpu and torch.backends.mps.is_available() and world.size == 1:
        return torch.device("mps")
    return torch.device("cpu")


def keep_batch(config: Config, checkpoint: dict, size: int) -> Config:
    """The settings to resume a run with so many processes: as many images a step as before.

    Raises:
        InputError: the processes cannot share them equally.
    """
    before = config_of(checkpoint["config"], config.checkpoint_path).data.batch_size * checkpoint["processes"]
    if before % size:
        raise InputError(
            f"the run in {config.run_dir} takes {before} images a step, which {size} processes cannot share equally: "
            f"choose another --nproc_per_node="
        )
    return config.replace(batch_size=before // size)
