"""What a training step cannot be faster than, by this machine's own measured rates.

floors = cpu_floors(trainer)  # or gpu_floors(trainer)
max(floors, key=lambda floor: floor.seconds)  # the one that binds
"""

import statistics
import timeit
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from trainer import Trainer

LAUNCHES = 500  # of a graph that measures what one costs


class Floor(NamedTuple):
    """An amount of work over a rate."""

    name: str
    amount: float
    rate: float  # a second

    @property
    def seconds(self) -> float:
        return self.amount / self.rate


def multiply_adds(step: Callable[[], object]) -> float:
    """Of a training step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


def cpu_floors(trainer: Trainer, step: Callable[[], object]) -> list[Floor]:
    """The multiply-adds, over the float32 peak of the best of the core's own products, forward and backward."""
    batch, hidden = trainer.config.data.batch_size, trainer.config.model.hidden_size
    states, weights, gradients = torch.randn(batch, hidden), torch.randn(hidden, hidden), torch.randn(batch, hidden)
    products = lambda: states @ weights.T, lambda: gradients @ weights, lambda: gradients.T @ states
    fastest = min(min(timeit.repeat(product, number=50, repeat=20)) / 50 for product in products)
    return [Floor("multiply-adds", multiply_adds(step), batch * hidden * hidden / fastest)]


def gpu_floors(trainer: Trainer, step: Callable[[], object]) -> list[Floor]:
    """The multiply-adds over the bfloat16 peak, the bytes over the memory's bandwidth, the launches over their rate.

    Args:
        trainer: whose step it is.
        step: takes it, uncompiled.
    """
    return [
        Floor("multiply-adds", multiply_adds(step), bfloat16_peak()),
        Floor("bytes", bytes_moved(trainer, step), bandwidth()),
        Floor("launches", launches(step), launch_rate()),
    ]


def bytes_moved(trainer: Trainer, step: Callable[[], object]) -> int:
    """What must be read and written at least: all that a step changes, once each, the gradients, and each activation
    that the backward pass needs."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    kept = sum(tensor.nbytes for tensor in [*trainer.tensors_of_a_step(), *gradients])
    return 2 * (kept + sum(saved.values()))


def launches(step: Callable[[], object]) -> int:
    """Kernels, copies and fills that a step starts on the GPU."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


def bfloat16_peak() -> float:
    """Multiply-adds a second of a large product."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return size**3 / seconds(lambda: left @ right)


def bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.randint(255, (2**30,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))


def launch_rate() -> float:
    """Smallest kernels a second, each after the other, in a graph."""
    number = torch.zeros((), device="cuda")
    number.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            number.add_(1)
    return LAUNCHES / seconds(graph.replay)


def seconds(function: Callable[[], object], repeats: int = 20) -> float:
    """The median time that a GPU takes for a function."""
    times = []
    for _ in range(3 + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[3:])
