"""What a training step costs as glimpses and images grow: linear in the glimpses, flat in the image's size.

    python benchmarks/scaling.py --out=benchmarks/scaling.png

The images are random bytes and no canvas is made. Beside the whole step, the parts that see a whole image are timed by
themselves: normalising it, and `Retina.prepare`.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import TASKS, Config, InputError, parse_flags
from data_loader import Loader, describe
from datasets import Examples
from runs import surroundings
from trainer import Trainer
from utils import Stream, make_generator, seed_everything

CPU = torch.device("cpu")
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart with any colour vision


@dataclass(frozen=True)
class Scaling:
    """Times training steps for several numbers of glimpses and sizes of images, in turn."""

    glimpses: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14, 16)
    """Numbers of glimpses, of 8x8 pixels in 28x28 images."""
    sizes: tuple[int, ...] = (28, 60, 100, 150, 200, 300, 400)
    """Widths of square images, with 8 glimpses of three 12x12 patches."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 10
    """Steps per setting and round."""
    rounds: int = 9
    """Rounds; each time is the median over them."""
    out: str = "benchmarks/scaling.png"
    """Where the plot goes."""


def new_trainer(config: Config, size: int) -> Trainer:
    """A trainer on four batches of random images of this size."""
    seed_everything(config.random_seed)
    count = 4 * config.batch_size
    images = torch.randint(256, (count, 1, size, size), dtype=torch.uint8)
    loader = Loader(Examples(images, torch.randint(10, (count,))), batch_size=config.batch_size, device=CPU)
    loader.normalize_with(describe(loader, [str(digit) for digit in range(10)]))
    return Trainer(config, (loader, loader), CPU)


def step_way(trainer: Trainer) -> Callable[[int], None]:
    """Trains so many steps, whose batches come from the loader."""
    generator = make_generator(Stream.ROLLOUT, 1)

    def run(steps: int):
        done = 0
        while done < steps:
            for batch in trainer.train_loader:
                trainer.train_step(batch, generator)
                done += 1
                if done == steps:
                    break

    return run


def loader_way(trainer: Trainer) -> Callable[[int], None]:
    """The batches alone: bytes picked and normalised."""

    def run(steps: int):
        done = 0
        while done < steps:
            for _ in trainer.train_loader:
                done += 1
                if done == steps:
                    break

    return run


def prepare_way(trainer: Trainer) -> Callable[[int], None]:
    """What the retina makes of each batch, once for all glimpses."""
    images = next(iter(trainer.train_loader)).images

    def run(steps: int):
        for _ in range(steps):
            trainer.model.retina.prepare(images)

    return run


def medians(ways: dict, args: Scaling) -> dict:
    """Milliseconds a step of each way, timed in turn, so that whatever else the machine does strikes all alike."""
    for run in ways.values():
        run(3)  # warm up
    times = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            began = time.perf_counter()
            run(args.steps)
            times[name].append(1000 * (time.perf_counter() - began) / args.steps)
    return {name: statistics.median(values) for name, values in times.items()}


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Least squares: slope, intercept, R^2."""
    line = statistics.linear_regression(x, y)
    return line.slope, line.intercept, statistics.correlation(x, y) ** 2


def main(args: Scaling):
    print(f"{surroundings()['machine']}, torch {torch.__version__}, eager, batch {args.batch_size}")
    config = Config(compile="False", use_gpu=False, batch_size=args.batch_size)
    by_glimpses = medians({n: step_way(new_trainer(replace(config, num_glimpses=n), 28)) for n in args.glimpses}, args)
    slope, intercept, r_squared = fit_line(list(by_glimpses), list(by_glimpses.values()))
    for n, value in by_glimpses.items():
        print(f"{n:3d} glimpses  {value:7.2f} ms a step")
    print(f"a line fits: {intercept:.2f} ms + {slope:.2f} ms a glimpse, R^2 = {r_squared:.4f}")

    wide = replace(config, **{**TASKS["cluttered60"], "canvas_size": 0, "num_clutter": 0})
    trainers = {size: new_trainer(wide, size) for size in args.sizes}
    parts = {"whole step": step_way, "batch from bytes": loader_way, "retina's table": prepare_way}
    by_size = medians({(part, n): way(t) for n, t in trainers.items() for part, way in parts.items()}, args)
    for n in args.sizes:
        print(f"{n:3d} x {n:3d}  " + "  ".join(f"{part} {by_size[part, n]:7.2f} ms" for part in parts))
    plot(args, by_glimpses, (slope, intercept, r_squared), {p: [by_size[p, n] for n in args.sizes] for p in parts})
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
    left.set(xlabel="glimpses", ylabel="ms a training step", title="28x28 images, 8x8 glimpses", ylim=(0, None))
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
    try:
        main(parse_flags(Scaling, None, Scaling(), prog="scaling.py"))
    except InputError as error:
        sys.exit(f"scaling.py: {error}")
