"""How many training images a second: this project, the plain way and the floor, timed in turn on one machine.

    python -m benchmarks.throughput --data_dir=./data

The plain way is what public implementations do: a DataLoader that decodes, places and normalises each image by itself,
a Python loop that slices each image's patch, and every head run at every glimpse. The networks, the loss and the batch
are the same, and so is the optimizer, Adam; a task whose default is another has a line of its own. The floor is what
the multiply-adds of a step would cost at the machine's float32 peak for such products; on a GPU, which captures the
whole step, it is the longest of arithmetic, memory and launches, see floor.py.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.floor import cpu_floors, gpu_floors
from config import Config, ModelConfig, make_config
from data_loader import get_train_valid_loader
from images.batches import Canvas
from images.canvas import WINDOW
from images.datasets import Examples
from trainer import Trainer
from training.checkpoint import write_whole
from training.cli import run_command
from training.distributed import pick_device
from training.run_folder import environment
from utils import describe_device, has_bfloat16, seed_everything


@dataclass(frozen=True)
class Benchmark:
    """Times training steps of this project and of the plain way, in turn."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    tasks: tuple[str, ...] = ("mnist", "cluttered60")
    """Tasks to time."""
    batch_sizes: tuple[int, ...] = (128, 512)
    """Images per step."""
    steps: int = 30
    """Steps per way and round."""
    rounds: int = 7
    """Rounds; each way's time is its median over them."""
    num_workers: int = 0
    """Worker processes of the plain way's DataLoader."""
    compile: bool = True
    """Time the compiled step, too."""
    use_gpu: bool = True
    """Time a CUDA GPU if there is one."""
    out: str = ""
    """Write the times as JSON to this file."""


class PlainImages(Dataset):
    """One image at a time: placed on its canvas, then through PIL and torchvision's transforms."""

    def __init__(self, examples: Examples, canvas: Canvas | None, mean: float, std: float):
        from torchvision import transforms

        self.images = examples.images[:, 0].cpu().numpy()
        self.labels = examples.labels.cpu()
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


def plain_glimpse(images: Tensor, location: Tensor, sizes: ModelConfig) -> Tensor:
    """The retina as a Python loop: pad the batch, then slice each image's patch by itself."""
    width = images.shape[-1]
    patches = []
    for i in range(sizes.num_patches):
        size = sizes.patch_size * sizes.glimpse_scale**i
        starts = ((location + 1) / 2 * width).floor().long() - size // 2 + size
        padded = F.pad(images, (size, size, size, size))
        crops = [
            padded[b, :, starts[b, 1] : starts[b, 1] + size, starts[b, 0] : starts[b, 0] + size]
            for b in range(len(images))
        ]
        patches.append(F.avg_pool2d(torch.stack(crops), sizes.glimpse_scale**i).flatten(1))
    return torch.cat(patches, dim=1)


def plain_loss(model: nn.Module, config: Config, images: Tensor, labels: Tensor) -> Tensor:
    """The hybrid loss of one rollout, every head run at every glimpse."""
    hidden = images.new_zeros(len(images), config.model.hidden_size)
    location = torch.rand(len(images), 2, device=images.device) * 2 - 1
    log_pis, baselines = [], []
    for t in range(config.model.num_glimpses):
        phi = plain_glimpse(images, location, config.model)
        hidden, _ = model.rnn(model.sensor(phi, location), hidden)
        mean = model.locator(hidden.detach(), min(t, config.model.num_glimpses - 2))
        policy = torch.distributions.Normal(mean, config.model.std)
        sample = policy.sample()
        if t < config.model.num_glimpses - 1:
            log_pis.append(policy.log_prob(sample).sum(dim=1))
            baselines.append(model.baseliner(hidden.detach()))
        location = sample.clamp(-1, 1)
    log_probs = model.classifier(hidden)
    log_pi, baseline = torch.stack(log_pis, dim=1), torch.stack(baselines, dim=1)
    reward = (log_probs.argmax(dim=1) == labels).float()[:, None].expand_as(baseline)
    reinforce = (-log_pi * (reward - baseline.detach())).sum(dim=1).mean()
    return F.nll_loss(log_probs, labels) + F.mse_loss(baseline, reward) + config.training.reinforce_weight * reinforce


def plain_steps(trainer: Trainer, batch_size: int, num_workers: int):
    """Yields after each training step of the plain way."""
    loader, config, model = trainer.train_loader, trainer.config, trainer.model
    data = DataLoader(
        PlainImages(loader.examples, loader.canvas, loader.spec.mean[0], loader.spec.std[0]),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=config.training.init_lr)
    while True:
        for images, labels in data:
            loss = plain_loss(model, config, images.to(trainer.device), labels.to(trainer.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # as a progress bar reads it
            yield


def project_steps(trainer: Trainer):
    """Yields after each training step of this project."""
    trainer.model.train()
    while True:
        for _ in trainer.take_steps():
            trainer.progress.step += 1
            yield
        trainer.progress.step = 0


def canvas_steps(trainer: Trainer):
    """Yields after each batch of canvases, with nothing trained on them."""
    while True:
        yield from trainer.train_loader.raw()


def new_trainer(config: Config, device: torch.device) -> Trainer:
    """One whose step is compiled and captured as its settings say."""
    seed_everything(config.training.random_seed)
    trainer = Trainer(config, get_train_valid_loader(config.data, config.training.random_seed, device), device)
    trainer.compile()
    return trainer


def seconds_per_step(steps, count: int) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    wait()
    return (time.perf_counter() - began) / count


def ways_of(config: Config, device: torch.device, args: Benchmark) -> dict[str, Config]:
    """The settings of each way to time this project's step."""
    adam = config.replace(optimizer="adam")
    ways = {"eager float32": adam.replace(compile="False", precision="float32")}
    precision = "bfloat16" if has_bfloat16(device) else "float32"
    fast = adam.replace(precision=precision)
    own = config.replace(precision=precision)
    ways[f"eager {precision}"] = fast.replace(compile="False")
    optimizer = config.training.optimizer
    if device.type == "cuda":
        short = {"epochs": 1}  # too short for `auto` to compile
        ways["captured float32"] = adam.replace(precision="float32", **short)
        ways[f"captured {precision}"] = fast.replace(**short)
        ways[f"captured {precision}, {optimizer}"] = own.replace(**short)
    elif args.compile:
        ways["compiled float32"] = adam.replace(compile="True", precision="float32")
    if args.compile:
        kind = "compiled, captured" if device.type == "cuda" else "compiled"
        ways[f"{kind} {precision}"] = fast.replace(compile="True")
        ways[f"{kind} {precision}, {optimizer}"] = own.replace(compile="True")
    return ways


def time_task(task: str, batch_size: int, device: torch.device, args: Benchmark) -> list[dict]:
    """Prints and returns a line for each floor and each way."""
    config = make_config(task=task, data_dir=args.data_dir, batch_size=batch_size)
    settings = ways_of(config, device, args)
    eager = new_trainer(settings["eager float32"], device)
    measure = gpu_floors if device.type == "cuda" else cpu_floors
    floors = measure(eager, project_steps(eager).__next__)
    ways = {"plain": plain_steps(eager, batch_size, args.num_workers)}
    for name, each in settings.items():
        ways[name] = project_steps(new_trainer(each, device))
    if config.data.canvas_size:
        ways["canvases alone"] = canvas_steps(eager)
    for steps in ways.values():
        seconds_per_step(steps, 10)  # warm up
    times = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, steps in ways.items():
            # The plain way is so slow on a GPU that a tenth of the steps tells.
            slow = way == "plain" and device.type == "cuda"
            times[way].append(seconds_per_step(steps, max(1, args.steps // 10) if slow else args.steps))
    median = {way: statistics.median(values) for way, values in times.items()}
    floor = max(each.seconds for each in floors)
    names = {f"floor: {each.amount:.3g} {each.name} at {each.rate:.3g} a second": each.seconds for each in floors}
    lines = []
    for way, value in {**names, **median}.items():
        lines.append({"task": task, "batch_size": batch_size, "way": way, "seconds": value})
        print(
            f"| {task}, {batch_size} | {way} | {1000 * value:.3f} | {batch_size / value:,.0f} | "
            f"{54000 / batch_size * value:.2f} | {median['plain'] / value:.2f} | {value / floor:.2f} |",
            flush=True,
        )
    return lines


def main(args: Benchmark):
    device = pick_device(args.use_gpu)
    machine = describe_device(device) if device.type == "cuda" else environment()["machine"]
    print(f"{machine}, torch {torch.__version__}, {args.num_workers} workers of the plain way\n")
    print("| task, batch | way | ms a step | images/s | s an epoch of 54,000 | times plain | times floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    lines = []
    for task in args.tasks:
        for batch_size in args.batch_sizes:
            lines += time_task(task, batch_size, device, args)
    if args.out:
        record = {"machine": machine, "torch": torch.__version__, "steps": args.steps, "rounds": args.rounds}
        write_whole(Path(args.out), json.dumps({**record, "times": lines}, indent=1).encode())


if __name__ == "__main__":
    run_command(main, Benchmark, prog="benchmarks.throughput")
