"""Trains, validates and tests the Recurrent Attention Model, and keeps what a run needs to go on.

trainer = Trainer(config, (train_loader, valid_loader), torch.device("cpu"))
trainer.train()
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from config import Config, InputError
from data_loader import Batch, DataSpec, Loader
from model import Losses, RecurrentAttention, draw_first_locations, hybrid_loss
from utils import (
    AverageMeter,
    Glimpses,
    Stream,
    append_metrics,
    load_weights,
    make_generator,
    make_writer,
    prepare_dirs,
    random_states,
    read_metrics,
    restore_random_states,
    save_checkpoint,
    save_glimpses,
    surroundings,
    write_whole,
)

NUM_PLOTTED = 9  # validation images whose glimpses are kept for plot_glimpses.py
COMPILING_PAYS_AFTER = 10_000  # steps


class Metrics(NamedTuple):
    """Means over a pass through a data set."""

    loss: float  # the hybrid loss
    loss_action: float
    loss_baseline: float
    loss_reinforce: float
    acc: float  # %
    correct: int  # images


class Trainer:
    """One run of one model.

    Args:
        config: the run's settings.
        data_loader: (train, validation) loaders to train with, or the test loader.
        device: where the model is to be.
        checkpoint: from `utils.load_checkpoint`, to go on with or to test; None begins a new run.
    Raises:
        InputError: the checkpoint contradicts the settings or the data.
    """

    def __init__(
        self,
        config: Config,
        data_loader: tuple[Loader, Loader] | Loader,
        device: torch.device,
        checkpoint: dict | None = None,
    ):
        self.config = config
        self.device = device
        if config.is_train:
            self.train_loader, self.valid_loader = data_loader
            self.spec = self.train_loader.spec
        else:
            self.test_loader = data_loader
            self.spec = data_loader.spec
        self.model_args = checkpoint["model_args"] if checkpoint else model_args(config, self.spec)
        self.model = RecurrentAttention(**self.model_args).to(device)
        self.optimizer = make_optimizer(config, self.model)
        self.scheduler = make_scheduler(config, self.optimizer)
        self.compiled_losses = self.batch_losses
        self.surroundings = surroundings()  # of the training; a test takes them from the checkpoint
        self.epoch = 0  # epochs done
        self.best_valid_acc = 0.0  # %
        self.epochs_since_best = 0
        if checkpoint:
            self.load_checkpoint(checkpoint)

    def train(self):
        """Trains up to config.epochs, or until the validation accuracy has not improved for train_patience epochs."""
        config = self.config
        prepare_dirs(config)
        print(
            f"[*] Train on {self.train_loader.num_images} samples, validate on {self.valid_loader.num_images} samples"
        )
        self.compiled_losses = self.compile_losses()
        with contextlib.closing(make_writer(config, self.epoch)) as writer:
            while self.epoch < config.epochs and self.epochs_since_best <= config.train_patience:
                began, lr = time.perf_counter(), self.optimizer.param_groups[0]["lr"]
                train = self.train_one_epoch()
                images_per_second = self.train_loader.num_images / (time.perf_counter() - began)
                valid = self.evaluate(self.valid_loader)
                pace = {"lr": lr, "images_per_second": images_per_second, "seconds": time.perf_counter() - began}
                self.epoch += 1
                is_best = self.epoch == 1 or valid.acc > self.best_valid_acc
                self.best_valid_acc = valid.acc if is_best else self.best_valid_acc
                self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
                self.step_schedule(valid)
                self.report(writer, train, valid, pace, is_best)
                self.save_checkpoint(is_best)
        limit = "--epochs=" if self.epoch >= config.epochs else "--train_patience="
        print(f"[*] Best validation accuracy {self.best_valid_acc:.3f}%. To train longer: --resume=True {limit}")

    def train_one_epoch(self) -> Metrics:
        """One pass over the training images."""
        self.model.train()
        self.train_loader.set_epoch(self.epoch)
        meter = AverageMeter()
        title = f"Epoch {self.epoch + 1}/{self.config.epochs}"
        with tqdm(total=self.train_loader.num_images, desc=title, unit="img", leave=False, disable=None) as bar:
            for step, batch in enumerate(self.train_loader):
                generator = make_generator(Stream.ROLLOUT, self.config.random_seed, self.epoch, step, self.device)
                losses = self.train_step(batch, generator)
                meter.update(torch.stack(losses), len(batch.labels))
                bar.update(len(batch.labels))
                if step % self.config.print_freq == 0 and not bar.disable:
                    bar.set_postfix(loss=f"{losses.total:.3f}", acc=f"{100 * losses.reward:.1f}")
        *losses, reward = meter.mean()
        return Metrics(*losses, acc=100 * reward, correct=round(reward * meter.weight))

    def train_step(self, batch: Batch, generator: torch.Generator) -> Losses:
        """One step of gradient descent; nothing here waits for the device."""
        count = len(batch.labels)
        first_locations = draw_first_locations(count, self.device, generator)
        noise = self.model.draw_noise(count, self.device, generator)
        # An epoch's last, smaller batch is not worth a compilation of its own.
        batch_losses = self.compiled_losses if count == self.config.batch_size else self.batch_losses
        losses = batch_losses(batch.images, batch.labels, first_locations, noise)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        return losses

    def batch_losses(self, images: Tensor, labels: Tensor, first_locations: Tensor, noise: Tensor) -> Losses:
        rollout = self.model(images, first_locations, noise)
        return hybrid_loss(rollout, labels, reinforce_weight=self.config.reinforce_weight)

    def compile_losses(self) -> Callable[..., Losses]:
        """`batch_losses`, compiled for full batches where config.compile asks for it and a compiler is at hand."""
        wanted = self.config.compile == "True"
        if self.config.compile == "auto":  # decided by the whole run, so that a resumed one computes the same bits
            steps = self.config.epochs * len(self.train_loader)
            wanted = self.device.type == "cpu" and steps >= COMPILING_PAYS_AFTER
        if not wanted:
            return self.batch_losses
        print("[*] Compiling the training step (--compile=False does without)")
        compiled = torch.compile(self.batch_losses, dynamic=False)
        count, spec = self.config.batch_size, self.spec
        images = torch.zeros(count, spec.num_channels, spec.height, spec.width, device=self.device)
        labels = torch.zeros(count, dtype=torch.long, device=self.device)
        noise = torch.zeros(self.config.num_glimpses - 1, count, 2, device=self.device)
        try:
            self.model.train()
            compiled(images, labels, torch.zeros(count, 2, device=self.device), noise).total.backward()
        except Exception as error:  # a compiler may be missing, or fail in ways of its own
            print(f"[!] Compiling failed ({type(error).__name__}); training goes on without")
            return self.batch_losses
        return compiled

    @torch.no_grad()
    def evaluate(self, loader: Loader) -> Metrics:
        """Looks at the policy's mean locations, from M random first locations per image that the seed fixes.

        Loss terms are means over the M rollouts; the answer is the class of the highest mean probability.
        """
        self.model.eval()
        first_locations = self.evaluation_starts(loader.num_images)
        meter = AverageMeter()
        correct = torch.zeros((), dtype=torch.long, device=self.device)
        begin = 0
        for images, labels in tqdm(loader, desc="Evaluate", leave=False, disable=None):
            end = begin + len(labels)
            rollouts = [self.model(images, starts[begin:end]) for starts in first_locations]
            losses = [hybrid_loss(r, labels, reinforce_weight=self.config.reinforce_weight) for r in rollouts]
            meter.update(torch.stack([torch.stack(terms) for terms in losses]).mean(dim=0), len(labels))
            probabilities = torch.stack([rollout.log_probs.exp() for rollout in rollouts]).mean(dim=0)
            correct += (probabilities.argmax(dim=-1) == labels).sum()
            begin = end
        *losses, _ = meter.mean()
        return Metrics(*losses, acc=100 * correct.item() / loader.num_images, correct=correct.item())

    def evaluation_starts(self, count: int) -> Tensor:
        """(M, count, 2): drawn on the CPU, so that every device begins at the same places."""
        generator = make_generator(Stream.EVALUATION, self.config.random_seed)
        starts = draw_first_locations(self.config.M * count, torch.device("cpu"), generator)
        return starts.view(self.config.M, count, 2).to(self.device)

    def test(self) -> Metrics:
        """Prints and returns the test set's metrics, and records the run in test.json beside its checkpoints."""
        metrics = self.evaluate(self.test_loader)
        count = self.test_loader.num_images
        epochs = read_metrics(self.config.run_dir / "metrics.jsonl")
        record = {
            "test": {**metrics._asdict(), "images": count, "M": self.config.M, "epoch": self.epoch},
            "best_valid_acc": self.best_valid_acc,
            "seconds": sum(epoch["seconds"] for epoch in epochs),
            "valid_acc_per_epoch": [epoch["valid"]["acc"] for epoch in epochs],
            "config": asdict(self.config),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "trained_with": self.surroundings,
        }
        path = self.config.run_dir / "test.json"
        try:
            write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
        except OSError as error:  # a finished model may well lie where nobody can write
            print(f"[!] {path} not written: {error.strerror}")
        print(f"[*] Test Acc: {metrics.correct}/{count} ({metrics.acc:.2f}% - {100 - metrics.acc:.2f}%)")
        return metrics

    def step_schedule(self, valid: Metrics):
        if self.config.lr_patience is None:
            self.scheduler.step()
        else:
            self.scheduler.step(valid.acc)

    def report(self, writer, train: Metrics, valid: Metrics, pace: dict[str, float], is_best: bool):
        """Prints the epoch's line, logs it, and saves where the model looks."""
        print(
            f"Epoch {self.epoch}/{self.config.epochs} - "
            f"train loss: {train.loss:.3f} - train acc: {train.acc:.3f} - val loss: {valid.loss:.3f} - "
            f"val acc: {valid.acc:.3f} - val err: {100 - valid.acc:.3f}{' [*]' if is_best else ''}",
            flush=True,
        )
        passes = {"train": train._asdict(), "valid": valid._asdict()}
        append_metrics(self.config.run_dir / "metrics.jsonl", {"epoch": self.epoch, **pace, **passes})
        for name, value in pace.items():
            writer.add_scalar(name, value, self.epoch)
        for part, metrics in passes.items():
            for name, value in metrics.items():
                writer.add_scalar(f"{name}/{part}", value, self.epoch)
        if self.epoch % self.config.plot_freq == 0:
            self.save_glimpses()

    @torch.no_grad()
    def save_glimpses(self):
        """Saves where the model looks in the first validation images, for plot_glimpses.py."""
        self.model.eval()
        batch = next(iter(self.valid_loader))
        images, labels = batch.images[:NUM_PLOTTED], batch.labels[:NUM_PLOTTED]
        rollout = self.model(images, self.evaluation_starts(self.valid_loader.num_images)[0, : len(images)])
        glimpses = Glimpses.of(rollout, self.valid_loader.denormalize(images), labels, self.spec.classes, self.config)
        save_glimpses(self.config.run_plots / f"glimpses_{self.epoch}.npz", glimpses)

    def save_checkpoint(self, is_best: bool):
        """Writes best.pt if this epoch is the best, then last.pt: cut off between the two, the epoch is done again."""
        checkpoint = {
            "epoch": self.epoch,
            "model_state": self.model.state_dict(),
            "optim_state": self.optimizer.state_dict(),
            "scheduler_state": self.scheduler.state_dict(),
            "best_valid_acc": self.best_valid_acc,
            "epochs_since_best": self.epochs_since_best,
            "random_states": random_states(),
            "model_args": self.model_args,
            "data": self.spec._asdict(),
            "config": asdict(self.config),
            "surroundings": self.surroundings,
        }
        save_checkpoint(checkpoint, *[self.config.run_dir / "best.pt"] * is_best, self.config.run_dir / "last.pt")

    def load_checkpoint(self, checkpoint: dict):
        """Takes up a run where the checkpoint left it.

        Raises:
            InputError: it was trained on other data than these.
        """
        path = self.config.checkpoint_path
        if checkpoint["data"] != self.spec._asdict():
            raise InputError(f"{path} was trained on other images than those of --data_dir={self.config.data_dir}")
        load_weights(self.model, checkpoint, path)
        self.epoch = checkpoint["epoch"]
        self.best_valid_acc = checkpoint["best_valid_acc"]
        if not self.config.is_train:
            self.surroundings = checkpoint["surroundings"]
            return
        self.optimizer.load_state_dict(checkpoint["optim_state"])
        self.scheduler.load_state_dict(checkpoint["scheduler_state"])
        self.epochs_since_best = checkpoint["epochs_since_best"]
        restore_random_states(checkpoint["random_states"])
        print(f"[*] Loaded {path}, after epoch {self.epoch}: best validation accuracy {self.best_valid_acc:.3f}%")


def model_args(config: Config, spec: DataSpec) -> dict:
    """What `RecurrentAttention` is built with; a checkpoint keeps it."""
    return {
        "patch_size": config.patch_size,
        "num_patches": config.num_patches,
        "glimpse_scale": config.glimpse_scale,
        "num_channels": spec.num_channels,
        "loc_hidden": config.loc_hidden,
        "glimpse_hidden": config.glimpse_hidden,
        "hidden_size": config.hidden_size,
        "std": config.std,
        "num_classes": len(spec.classes),
        "locator_hidden": config.locator_hidden,
        "num_glimpses": config.num_glimpses,
        "scan_radius": config.scan_radius,
    }


def make_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.init_lr, momentum=config.momentum, fused=True)
    return torch.optim.Adam(model.parameters(), lr=config.init_lr, betas=(config.momentum, 0.999), fused=True)


def make_scheduler(
    config: Config, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LambdaLR | torch.optim.lr_scheduler.ReduceLROnPlateau:
    """A half cosine over config.epochs, or a tenfold cut where the validation accuracy stays on a plateau."""
    if config.lr_patience is not None:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=config.lr_patience)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: (1 + math.cos(math.pi * min(epoch / config.epochs, 1))) / 2
    )
