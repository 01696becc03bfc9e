"""How many training images a second: this project beside the plain way, timed in turn on the same machine.

    python benchmarks/throughput.py --data_dir=./data

The plain way is what public implementations do: a DataLoader that decodes and normalises each image by itself, a Python
loop that slices each image's patch, and every head run at every glimpse. Model, loss, batch and optimizer are the same.
Without the data set, random images of its size take its place; the work is the same.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from config import Config, InputError, parse_flags
from data_loader import Loader, describe
from datasets import Examples, read_examples
from trainer import Trainer
from utils import make_generator, seed_everything


@dataclass(frozen=True)
class Benchmark:
    """Times training steps of this project and of the plain way, in turn."""

    data_dir: str = "./data"
    """Folder of the data set."""
    batch_size: int = 128
    """Images per step."""
    steps: int = 60
    """Steps per way and round."""
    rounds: int = 5
    """Rounds; each way's time is its median over them."""
    num_workers: int = 2
    """Worker processes of the plain way's DataLoader."""


class PlainImages(Dataset):
    """One image at a time, through PIL and torchvision's transforms."""

    def __init__(self, examples: Examples, mean: float, std: float):
        from torchvision import transforms

        self.examples = examples
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((mean,), (std,))])

    def __len__(self) -> int:
        return len(self.examples.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.examples.images[i, 0].numpy())), int(self.examples.labels[i])


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
        mean = model.locator(hidden.detach())
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


def plain_steps(examples: Examples, config: Config, args: Benchmark):
    """Yields after each training step of the plain way."""
    mean, std = examples.images.float().mean().item() / 255, examples.images.float().std().item() / 255
    data = DataLoader(
        PlainImages(examples, mean, std),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )
    model = new_trainer(examples, config, args).model
    optimizer = torch.optim.Adam(model.parameters(), lr=config.init_lr)
    while True:
        for images, labels in data:
            loss = plain_loss(model, config, images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # as a progress bar reads it
            yield


def project_steps(examples: Examples, config: Config, args: Benchmark):
    """Yields after each training step of this project."""
    trainer = new_trainer(examples, config, args)
    generator = make_generator(0, config.random_seed)
    while True:
        for batch in trainer.train_loader:
            trainer.train_step(batch, generator)
            yield


def new_trainer(examples: Examples, config: Config, args: Benchmark) -> Trainer:
    seed_everything(config.random_seed)
    cpu = torch.device("cpu")
    loader = Loader(examples, batch_size=args.batch_size, device=cpu, shuffle_seed=1)
    loader.normalize_with(describe(loader, [str(digit) for digit in range(10)]))
    return Trainer(config, (loader, loader), cpu)


def seconds_per_step(steps, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - began) / count


def main(args: Benchmark):
    config = Config(data_dir=args.data_dir, batch_size=args.batch_size)
    try:
        examples, _ = read_examples(config, train=True)
    except InputError:
        examples = Examples(
            torch.randint(0, 256, (54000, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (54000,))
        )
        print("no data set: random images")
    ways = {"plain": plain_steps(examples, config, args), "this project": project_steps(examples, config, args)}
    for steps in ways.values():
        seconds_per_step(steps, 10)  # warm up
    times = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, steps in ways.items():
            times[way].append(seconds_per_step(steps, args.steps))
    seconds = {way: torch.tensor(values).median().item() for way, values in times.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch_size}")
    for way, value in seconds.items():
        print(
            f"{way:13s} {1000 * value:7.2f} ms a step  {args.batch_size / value:8.0f} images/s  "
            f"{54000 / args.batch_size * value:6.1f} s an epoch of 54,000  {seconds['plain'] / value:5.2f}x plain"
        )


if __name__ == "__main__":
    main(parse_flags(Benchmark, None, Benchmark(), prog="throughput.py"))
