"""How many training images a second: this project beside the plain way, timed in turn on the same machine.

    python benchmarks/throughput.py --data_dir=./data

The plain way is what public implementations do: a DataLoader that decodes, places and normalises each image by itself,
a Python loop that slices each image's patch, and every head run at every glimpse. The networks, the loss and the batch
are the same.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from canvas import WINDOW
from config import TASKS, Config, InputError, parse_flags
from data_loader import Canvas, get_train_valid_loader
from datasets import Examples
from runs import surroundings
from trainer import Trainer
from utils import Stream, make_generator, seed_everything


@dataclass(frozen=True)
class Benchmark:
    """Times training steps of this project and of the plain way, in turn."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    tasks: tuple[str, ...] = ("mnist", "translated60", "cluttered60")
    """Tasks to time."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 30
    """Steps per way and round."""
    rounds: int = 7
    """Rounds; each way's time is its median over them."""
    num_workers: int = 0
    """Worker processes of the plain way's DataLoader."""
    compile: bool = True
    """Time the compiled step, too."""


class PlainImages(Dataset):
    """One image at a time: placed on its canvas, then through PIL and torchvision's transforms."""

    def __init__(self, examples: Examples, canvas: Canvas | None, mean: float, std: float):
        from torchvision import transforms

        self.images = examples.images[:, 0].numpy()
        self.labels = examples.labels
        self.canvas = canvas
        self.random = np.random.default_rng(0)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = self.images[i]
        if self.canvas:
            image = self.place(image)
        return self.transform(Image.fromarray(image)), int(self.labels[i])

    def place(self, image: np.ndarray) -> np.ndarray:
        size, num_clutter = self.canvas
        canvas = np.zeros((size, size), dtype=np.int32)
        for _ in range(num_clutter):
            source = self.images[self.random.integers(len(self.images))]
            top, left = self.random.integers(28 - WINDOW + 1, size=2)
            y, x = self.random.integers(size - WINDOW + 1, size=2)
            canvas[y : y + WINDOW, x : x + WINDOW] += source[top : top + WINDOW, left : left + WINDOW]
        y, x = self.random.integers(size - 28 + 1, size=2)
        canvas[y : y + 28, x : x + 28] += image
        return np.minimum(canvas, 255).astype(np.uint8)


def plain_glimpse(images: Tensor, location: Tensor, patch_size: int, num_patches: int, glimpse_scale: int) -> Tensor:
    """The retina as a Python loop: pad the batch, then slice each image's patch by itself."""
    width = images.shape[-1]
    patches = []
    for i in range(num_patches):
        size = patch_size * glimpse_scale**i
        starts = ((location + 1) / 2 * width).floor().long() - size // 2 + size
        padded = F.pad(images, (size, size, size, size))
        crops = [
            padded[b, :, starts[b, 1] : starts[b, 1] + size, starts[b, 0] : starts[b, 0] + size]
            for b in range(len(images))
        ]
        patches.append(F.avg_pool2d(torch.stack(crops), glimpse_scale**i).flatten(1))
    return torch.cat(patches, dim=1)


def plain_loss(model: nn.Module, config: Config, images: Tensor, labels: Tensor) -> Tensor:
    """The hybrid loss of one rollout, every head run at every glimpse."""
    hidden = images.new_zeros(len(images), config.hidden_size)
    location = torch.rand(len(images), 2) * 2 - 1
    log_pis, baselines = [], []
    for t in range(config.num_glimpses):
        phi = plain_glimpse(images, location, config.patch_size, config.num_patches, config.glimpse_scale)
        hidden = model.rnn(model.sensor(phi, location), hidden)
        mean = model.locator(hidden.detach(), min(t, config.num_glimpses - 2))
        policy = torch.distributions.Normal(mean, config.std)
        sample = policy.sample()
        if t < config.num_glimpses - 1:
            log_pis.append(policy.log_prob(sample).sum(dim=1))
            baselines.append(model.baseliner(hidden.detach()))
        location = sample.clamp(-1, 1)
    log_probs = model.classifier(hidden)
    log_pi, baseline = torch.stack(log_pis, dim=1), torch.stack(baselines, dim=1)
    reward = (log_probs.argmax(dim=1) == labels).float()[:, None].expand_as(baseline)
    reinforce = (-log_pi * (reward - baseline.detach())).sum(dim=1).mean()
    return F.nll_loss(log_probs, labels) + F.mse_loss(baseline, reward) + config.reinforce_weight * reinforce


def plain_steps(trainer: Trainer, args: Benchmark):
    """Yields after each training step of the plain way."""
    loader, config, model = trainer.train_loader, trainer.config, trainer.model
    data = DataLoader(
        PlainImages(loader.examples, loader.canvas, loader.spec.mean[0], loader.spec.std[0]),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=config.init_lr)
    while True:
        for images, labels in data:
            loss = plain_loss(model, config, images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # as a progress bar reads it
            yield


def project_steps(trainer: Trainer):
    """Yields after each training step of this project."""
    generator = make_generator(Stream.ROLLOUT, trainer.config.random_seed)
    while True:
        for batch in trainer.train_loader:
            trainer.train_step(batch, generator)
            yield


def canvas_steps(trainer: Trainer):
    """Yields after each batch of canvases, with nothing trained on them."""
    while True:
        yield from trainer.train_loader.raw()


def new_trainer(config: Config) -> Trainer:
    seed_everything(config.random_seed)
    cpu = torch.device("cpu")
    return Trainer(config, get_train_valid_loader(config, cpu), cpu)


def seconds_per_step(steps, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - began) / count


def time_task(task: str, args: Benchmark):
    config = Config(task=task, data_dir=args.data_dir, **{**TASKS[task], "batch_size": args.batch_size})
    ways = {"plain": plain_steps(new_trainer(config), args), "this project": project_steps(new_trainer(config))}
    if args.compile:
        compiled = new_trainer(replace(config, compile="True"))
        compiled.descend.compile(compiled.spec, steps=compiled.config.epochs * len(compiled.train_loader))
        ways["compiled"] = project_steps(compiled)
    if config.canvas_size:
        ways["canvases alone"] = canvas_steps(new_trainer(config))
    for steps in ways.values():
        seconds_per_step(steps, 10)  # warm up
    times = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, steps in ways.items():
            times[way].append(seconds_per_step(steps, args.steps))
    median = {way: statistics.median(values) for way, values in times.items()}
    for way, value in median.items():
        print(
            f"{task:13s} {way:15s} {1000 * value:7.2f} ms a step  {args.batch_size / value:8.0f} images/s  "
            f"{54000 / args.batch_size * value:6.1f} s an epoch of 54,000  {median['plain'] / value:6.2f} x plain"
        )


def main(args: Benchmark):
    print(
        f"{surroundings()['machine']}, torch {torch.__version__}, batch {args.batch_size}, {args.num_workers} workers"
    )
    for task in args.tasks:
        time_task(task, args)


if __name__ == "__main__":
    try:
        main(parse_flags(Benchmark, None, Benchmark(), prog="throughput.py"))
    except InputError as error:
        sys.exit(f"throughput.py: {error}")
