"""How long a prediction takes: the exported model in onnxruntime compared with eager PyTorch, in turn.

python -m benchmarks.onnx_speed --checkpoint=models/mnist.pt
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from training.cli import PathText, Positive, Settings, run_command

BATCHES = (1, 128)
SECONDS = 0.3  # that a measurement takes


@dataclass(frozen=True)
class OnnxSpeed(Settings):
    """Times the exported model in onnxruntime and in eager PyTorch, in turn."""

    checkpoint: PathText = "./models/mnist.pt"
    """The model."""
    rounds: Positive = 9
    """Measurements of each, in turn, of which the median counts."""
    threads: Positive = 1
    """Threads of each."""


def main(args: OnnxSpeed):
    """Prints the table."""
    import torch

    from tools.export import needed_packages, onnx_of
    from training.checkpoint import load_checkpoint, model_of

    with needed_packages():
        import onnxruntime
    torch.set_num_threads(args.threads)
    checkpoint = load_checkpoint(args.checkpoint)
    model, data = model_of(checkpoint, args.checkpoint).eval(), checkpoint["data"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(onnx_of(model, data), options, providers=["CPUExecutionProvider"])

    print("| images at once | eager PyTorch, ms an image | onnxruntime, ms an image |\n| --- | --- | --- |")
    for batch in BATCHES:
        images = torch.randint(256, (batch, data["num_channels"], data["height"], data["width"]), dtype=torch.uint8)
        inputs = {"images": images}
        if model.first_location != "learned":
            inputs["first_locations"] = torch.zeros(batch, 2)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}

        def eager(inputs=inputs):
            with torch.no_grad():
                model(**inputs)

        def exported(arrays=arrays):
            session.run(None, arrays)

        times = in_turn([eager, exported], args.rounds)
        print(f"| {batch} | {' | '.join(f'{1000 * seconds / batch:.3f}' for seconds in times)} |")


def in_turn(functions: list[Callable[[], None]], rounds: int) -> list[float]:
    """The median seconds that a call of each takes."""
    counts = []
    for function in functions:
        function()
        began = time.perf_counter()
        function()
        counts.append(max(int(SECONDS / (time.perf_counter() - began)), 1))
    measured: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, count, seconds in zip(functions, counts, measured, strict=True):
            began = time.perf_counter()
            for _ in range(count):
                function()
            seconds.append((time.perf_counter() - began) / count)
    return [statistics.median(seconds) for seconds in measured]


if __name__ == "__main__":
    run_command(main, OnnxSpeed, prog="benchmarks.onnx_speed")
