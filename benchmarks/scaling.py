"""What a training step costs as glimpses and images grow: linear in the glimpses, flat in the image's size.

    python -m benchmarks.scaling

The images are random bytes and no canvas is made. Beside the whole step, its two parts are timed by themselves: picking
the batch, which copies every byte of it, and the step on a batch at hand.
"""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from config import TASKS, Config, make_config
from data_loader import describe
from images.batches import Batch, Loader
from images.datasets import Examples
from model import Losses
from trainer import Trainer
from training.cli import run_command
from training.run_folder import environment
from utils import Stream, make_generator, seed_everything

CPU = torch.device("cpu")
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # distinct with any colour vision


@dataclass(frozen=True)
class Scaling:
    """Times training steps for several numbers of glimpses and sizes of images, in turn."""

    glimpses: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14, 16)
    """Numbers of glimpses, of 8x8 pixels in 28x28 images."""
    sizes: tuple[int, ...] = (28, 60, 100, 150, 200, 300, 400)
    """Widths of square images, with 8 glimpses of three 12x12 patches."""
    batch_size: int = 128
    """Images per step."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the matrix products."""
    steps: int = 10
    """Steps per setting and round."""
    rounds: int = 9
    """Rounds; each time is the median over them."""
    out: str = "benchmarks/scaling.png"
    """Where the plot goes."""


def new_trainer(config: Config, size: int) -> Trainer:
    """A trainer on four batches of random images of this size."""
    seed_everything(config.training.random_seed)
    count = 4 * config.data.batch_size
    images = torch.randint(256, (count, 1, size, size), dtype=torch.uint8)
    loader = Loader(Examples(images, torch.randint(10, (count,))), batch_size=config.data.batch_size, device=CPU)
    loader.described_by(describe(loader, [str(digit) for digit in range(10)]))
    return Trainer(config, (loader, loader), CPU)


def batches_of(trainer: Trainer) -> Iterator[Batch]:
    """Batches without end."""
    while True:
        yield from trainer.train_loader


def steps_of(trainer: Trainer, batches: Iterable[Batch]) -> Iterator[Losses]:
    """Trains a step on each of these."""
    generator = make_generator(Stream.ROLLOUT, 1)
    for batch in batches:
        yield trainer.train_step(batch, generator)


def parts_of(trainer: Trainer) -> dict[str, Iterator]:
    """A training step as a whole, what comes before the model, and the model with all that follows."""
    at_hand = itertools.repeat(next(iter(trainer.train_loader)))
    return {
        "whole step": steps_of(trainer, batches_of(trainer)),
        "batch picked": batches_of(trainer),
        "step on a batch at hand": steps_of(trainer, at_hand),
    }


def medians(ways: dict, args: Scaling) -> dict:
    """Milliseconds a step of each way, in turn.

    Of processor time: what else the machine does hardly counts, and with one thread it is what an idle machine takes.
    """
    times = {name: [] for name in ways}
    for done in range(1 + args.rounds):
        for name, steps in ways.items():
            began = time.process_time()
            for _ in range(args.steps):
                next(steps)
            if done == 0:  # warming up
                continue
            times[name].append(1000 * (time.process_time() - began) / args.steps)
    return {name: statistics.median(values) for name, values in times.items()}


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Least squares: slope, intercept, R^2."""
    line = statistics.linear_regression(x, y)
    return line.slope, line.intercept, statistics.correlation(x, y) ** 2


def main(args: Scaling):
    torch.set_num_threads(1)
    print(f"{environment()['machine']}, torch {torch.__version__}, eager, batch {args.batch_size}, {args.precision}")
    config = make_config(compile="False", precision=args.precision, use_gpu=False, batch_size=args.batch_size)
    trainers = {n: new_trainer(config.replace(num_glimpses=n), 28) for n in args.glimpses}
    by_glimpses = medians({n: steps_of(trainer, batches_of(trainer)) for n, trainer in trainers.items()}, args)
    slope, intercept, r_squared = fit_line(list(by_glimpses), list(by_glimpses.values()))
    for n, value in by_glimpses.items():
        print(f"{n:3d} glimpses  {value:7.2f} ms")
    print(f"a line fits: {intercept:.2f} ms + {slope:.2f} ms a glimpse, R^2 = {r_squared:.4f}")

    wide = config.replace(**{**TASKS["cluttered60"], "canvas_size": 0, "num_clutter": 0})
    trainers = {size: new_trainer(wide, size) for size in args.sizes}
    ways = {(part, size): way for size, t in trainers.items() for part, way in parts_of(t).items()}
    times = medians(ways, args)
    by_size = {part: [times[part, size] for size in args.sizes] for part, _ in ways}
    for i, size in enumerate(args.sizes):
        print(f"{size:3d} x {size:3d}  " + "  ".join(f"{part} {values[i]:7.2f} ms" for part, values in by_size.items()))
    plot(args, by_glimpses, (slope, intercept, r_squared), by_size)
    print(f"[*] Plot in {args.out}")


def plot(args: Scaling, by_glimpses: dict, line: tuple[float, float, float], by_size: dict[str, list[float]]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    slope, intercept, r_squared = line
    left.plot(
        args.glimpses, [intercept + slope * n for n in args.glimpses], color="0.6", label=f"line, R² = {r_squared:.4f}"
    )
    left.plot(list(by_glimpses), list(by_glimpses.values()), "o", color=BLUE, label="whole step")
    left.set(
        xlabel="glimpses", ylabel="ms of processor time a step", title="28x28 images, 8x8 glimpses", ylim=(0, None)
    )
    for (part, values), colour, marker in zip(by_size.items(), (BLUE, ORANGE, GREEN), "os^", strict=True):
        right.plot(args.sizes, values, marker=marker, color=colour, label=part)
    right.set(
        xlabel="width and height of the images, pixels", title="8 glimpses of three 12x12 patches", ylim=(0, None)
    )
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    run_command(main, Scaling, prog="benchmarks.scaling")
