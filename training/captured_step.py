"""A whole training step as one CUDA graph: the processor says which images, and the GPU does the rest.

step = CapturedStep(take_step, batch_size=128, num_seeds=2, device=torch.device("cuda"))
step.warm_up(tensors)
step.capture()
losses = step(index, seeds, steps_taken)
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # in the first steps libraries choose kernels, and optimizers make their states


class CapturedStep:
    """Repeats the kernels of one training step on the same memory, without the Python that started them.

    What differs from step to step is written into that memory before: which images, the generators' seeds, how many
    steps were taken. All else, such as the learning rate, stays as it was captured: capture again where it changes.

    Args:
        take_step: a training step, from the images' index (B,), a generator for each seed and the number of steps () to
            the losses (terms,). Nothing in it may wait for the device, or bring a tensor from the CPU.
        batch_size: B, images of a step.
        num_seeds: generators of a step.
        device: a CUDA GPU.
    """

    def __init__(
        self,
        take_step: Callable[[Tensor, list[torch.Generator], Tensor], Tensor],
        *,
        batch_size: int,
        num_seeds: int,
        device: torch.device,
    ):
        self.take_step = take_step
        self.index = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.steps = torch.ones((), device=device)
        self.generators = [torch.Generator(device) for _ in range(num_seeds)]

    def run(self):
        self.losses = self.take_step(self.index, self.generators, self.steps)

    def warm_up(self, tensors: Callable[[], list[Tensor]]):
        """Takes some steps, and undoes them.

        Args:
            tensors: gives all that a step changes. What the steps have added starts as zeros, as in any optimizer.
        """
        before = {id(tensor): tensor.detach().clone() for tensor in tensors()}
        try:
            on_another_stream(lambda: [self.run() for _ in range(WARM_UP_STEPS)])
        finally:
            with torch.no_grad():
                for tensor in tensors():
                    tensor.copy_(before.get(id(tensor), torch.zeros_like(tensor)))

    def capture(self):
        """Captures the step as it is now; the memory of an earlier capture is freed."""
        self.replay = self.losses = None
        self.replay = capture(self.run, self.generators)

    def __call__(self, index: Tensor, seeds: list[int], steps: int) -> Tensor:
        """Takes a step.

        Args:
            index: (B,), which images.
            seeds: of the generators.
            steps: taken, with this one.
        Returns:
            (terms,), the losses of the batch before the step.
        """
        self.index.copy_(index)
        self.steps.fill_(steps)
        for generator, seed in zip(self.generators, seeds, strict=True):
            generator.manual_seed(seed)
        self.replay()
        return self.losses.clone()  # the next step writes over them


def on_another_stream(function: Callable[[], object]):
    """Calls a function that must not use the default stream, as what is captured later must not."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)


def capture(function: Callable[[], None], generators: list[torch.Generator]) -> Callable[[], None]:
    """Captures what a function asks the GPU to do, without doing it, and returns what does it."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


def captured(take_step: Callable, tensors: Callable[[], list[Tensor]], **sizes) -> CapturedStep | None:
    """A captured step, or None, with a line that says why, if this GPU or its libraries cannot; see `CapturedStep`."""
    step = CapturedStep(take_step, **sizes)
    try:
        step.warm_up(tensors)
        step.capture()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"[!] The training step cannot be made a CUDA graph ({reason}); training continues without")
        return None
    return step
