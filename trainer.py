"""Trains, validates and tests the Recurrent Attention Model, and keeps what a run needs to go on.

trainer = Trainer(config, (train_loader, valid_loader), torch.device("cpu"))
trainer.train()
"""

import copy
import time
from dataclasses import asdict

import torch
from torch import Tensor
from tqdm import tqdm

from config import Config, InputError
from data_loader import Batch, Loader, save_samples, spec_of
from evaluation import Metrics, evaluate, evaluation_locations
from glimpses import NUM_SAVED, look, save_glimpses
from model import Losses, RecurrentAttention, draw_first_locations, first_not_finite
from optim import average_weights, load_states, make_optimizer, make_scheduler, policy_std, step_scheduler
from policies import given_locations
from runs import append_metrics, open_run, record_test, save_checkpoint
from step import TrainingStep
from utils import (
    AverageMeter,
    Interrupted,
    StopSignal,
    Stream,
    make_generator,
    random_states,
    restore_random_states,
)
from writers import open_writer


class Trainer:
    """One run of one model.

    Args:
        config: the run's settings.
        data_loader: (train, validation) loaders to train with, or the test loader.
        device: where the model is to be.
        checkpoint: from `runs.load_checkpoint`, to go on with or to test; None begins a new run.
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
        self.world = (self.train_loader if config.is_train else self.test_loader).world
        if checkpoint:
            self.model_args = checkpoint["model_args"]
            self.model = RecurrentAttention.of(checkpoint, config.checkpoint_path).to(device)
        else:
            self.model_args = config.model_args(self.spec.num_channels, len(self.spec.classes))
            self.model = RecurrentAttention(**self.model_args).normalize_by(self.spec.mean, self.spec.std).to(device)
        self.average = copy.deepcopy(self.model)  # of its weights over the steps: what is validated, kept and tested
        self.optimizer = make_optimizer(config, self.model)
        self.scheduler = make_scheduler(config, self.optimizer)
        self.descend = TrainingStep(config, self.model, self.optimizer, self.world)
        self.epoch = 0  # epochs done
        self.step = 0  # steps done of the epoch under way
        self.meter = AverageMeter()  # training metrics of those steps
        self.seconds = 0.0  # that they took
        self.best_valid_acc = 0.0  # %
        self.epochs_since_best = 0
        if checkpoint:
            self.load_checkpoint(checkpoint)

    def train(self):
        """Trains up to config.epochs, or until the validation accuracy has not improved for train_patience epochs.

        Raises:
            Interrupted: by a signal, with everything saved.
            InputError: the run's folder is another's or cannot be written, or the loss is not finite any more.
        """
        config = self.config
        world = self.world
        with (
            world.main_only(open_run(config, self.device, self.epoch, self.step)),
            open_writer(config, self.epoch, world.is_main) as writer,
            StopSignal(echoes=world.size > 1) as self.signal,
        ):
            counts = self.train_loader.num_images, self.valid_loader.num_images
            print("[*] Train on {} samples, validate on {} samples".format(*counts))
            if config.show_sample and world.is_main:
                save_samples(self.train_loader, config.run_plots / "samples.png")
            self.descend.compile(self.spec, steps=config.epochs * len(self.train_loader))
            while not self.finished():
                self.began, lr = time.perf_counter() - self.seconds, self.optimizer.param_groups[0]["lr"]
                train = self.train_one_epoch()
                images_per_second = self.train_loader.num_images / (time.perf_counter() - self.began)
                valid = self.evaluate(self.valid_loader)
                pace = {"lr": lr, "images_per_second": images_per_second, "seconds": time.perf_counter() - self.began}
                self.epoch, self.step, self.meter, self.seconds = self.epoch + 1, 0, AverageMeter(), 0.0
                is_best = self.epoch == 1 or valid.acc > self.best_valid_acc
                self.best_valid_acc = valid.acc if is_best else self.best_valid_acc
                self.epochs_since_best = 0 if is_best else self.epochs_since_best + 1
                step_scheduler(self.scheduler, valid.acc)
                if world.is_main:
                    self.report(writer, train, valid, pace, is_best)
                self.save_checkpoint(is_best)

    def finished(self) -> bool:
        """Whether the last epoch is done, or the one to stop after, or patience is; says how to go on."""
        config = self.config
        for reached, more in (
            (self.epoch >= config.epochs, "--epochs="),
            (self.epochs_since_best > config.train_patience, "--train_patience="),
            (0 < config.stop_after_epoch <= self.epoch, ""),
        ):
            if reached:
                print(f"[*] {self.epoch} epochs done, best validation accuracy {self.best_valid_acc:.3f}%. To go on: "
                      f"--resume=True {more}")  # fmt: skip
                return True
        return False

    def train_one_epoch(self) -> Metrics:
        """One pass over the training images, or what is left of it."""
        config = self.config
        self.model.train()
        for model in (self.model, self.average):
            model.std.fill_(policy_std(config, self.epoch))
        self.train_loader.set_epoch(self.epoch)
        title = f"Epoch {self.epoch + 1}/{config.epochs}"
        unchecked = []  # losses since the last look at them
        with tqdm(total=self.train_loader.num_images, initial=self.meter.weight, desc=title, unit="img", leave=False,
                  disable=self.world.hide_bars) as bar:  # fmt: skip
            for batch in self.train_loader.batches(self.step):
                generator = make_generator(Stream.ROLLOUT, config.random_seed, self.epoch, self.step, self.device)
                losses = self.train_step(batch, generator)
                self.step += 1
                unchecked.append(torch.stack(losses).detach())
                self.meter.update(unchecked[-1], batch.count)
                bar.update(batch.count)
                stop = self.world.agree(self.signal.received)
                due = config.save_every_steps and self.step % config.save_every_steps == 0
                if due or stop or self.step % config.print_freq == 0:
                    self.check_finite(unchecked)
                    unchecked = []
                    bar.set_postfix(loss=f"{losses.total:.3f}", acc=f"{100 * losses.accuracy:.1f}")
                if due or stop:
                    self.save_checkpoint()
                if stop:
                    raise Interrupted(stop, f"saved at step {self.step} of epoch {self.epoch + 1}")
        self.check_finite(unchecked)
        *losses, accuracy = self.meter.mean()
        return Metrics(*losses, acc=100 * accuracy, correct=round(accuracy * self.meter.weight))

    def check_finite(self, losses: list[Tensor]):
        """Stops at a loss of the latest steps, (terms,) each, or at weights that are infinite or not numbers, before
        they are saved.

        Raises:
            InputError: with the step, the term, and the checkpoint to go on with.
        """
        found = first_not_finite(torch.stack(losses)) if losses else None
        weights = torch.stack([parameter.detach().sum() for parameter in self.model.parameters()])
        if found:
            step, term, value = found
            what = f"the {term} loss is {value} at step {self.step - len(losses) + step + 1}"
        elif not weights.isfinite().all():
            what = f"the weights are not finite after step {self.step}"
        else:
            return
        last = self.config.run_dir / "last.pt"
        raise InputError(
            f"{what} of epoch {self.epoch + 1}: train anew with a lower --init_lr= or with --clip_grad_norm=1; "
            + (f"{last} is from before it, --resume=True takes the latter" if last.exists() else "nothing is saved yet")
        )

    def train_step(self, batch: Batch, generator: torch.Generator) -> Losses:
        """One step of gradient descent, taken into the average; nothing here waits for the device."""
        share = self.world.share(batch.count)
        starts = draw_first_locations(self.config.first_location, batch.count, self.device, generator)[share.part]
        noise = self.model.draw_noise(batch.count, self.device, generator)[:, share.part].contiguous()
        whole = share.part, batch.count
        locations = given_locations(self.config, starts, batch.centres, generator, whole)
        losses = self.descend(batch.images, batch.labels, locations, noise, share.weight)
        steps = self.epoch * len(self.train_loader) + self.step + 1
        average_weights(self.average, self.model, self.config.ema_decay, steps)
        return self.world.mean(losses, share.weight)

    def evaluate(self, loader: Loader) -> Metrics:
        return evaluate(self.average, loader, self.config)

    def test(self) -> Metrics:
        """Prints and returns the test set's metrics, and records the run in test.json beside its checkpoints."""
        metrics = self.evaluate(self.test_loader)
        count = self.test_loader.num_images
        record = {**metrics._asdict(), "images": count, "M": self.config.M, "epoch": self.epoch}
        print(f"[*] Test Acc: {metrics.correct}/{count} ({metrics.acc:.2f}% - {100 - metrics.acc:.2f}%)")
        if self.world.is_main and not self.config.is_shipped:
            record_test(self.config, record, self.best_valid_acc)
        return metrics

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
        if self.epoch % self.config.plot_freq == 0 or self.epoch == self.config.epochs:
            self.save_glimpses(writer)

    def save_glimpses(self, writer):
        """Logs where the model looks in the first validation batch, and saves some of it for plot_glimpses.py."""
        self.average.eval()
        batch = next(iter(self.valid_loader))
        given = evaluation_locations(self.config, self.valid_loader)[0, : len(batch.labels)]
        glimpses = look(self.average, batch, given, self.valid_loader)
        save_glimpses(self.config.run_plots / f"glimpses_{self.epoch}.npz", glimpses.take(slice(NUM_SAVED)))
        writer.add_glimpses(glimpses, self.epoch)

    def save_checkpoint(self, is_best: bool = False):
        """Writes best.pt if this epoch is the best, then last.pt: cut off between the two, the epoch is done again.

        One process writes, and none goes on or ends before.
        """
        checkpoint = {
            "epoch": self.epoch,
            "step": self.step,
            "meter": self.meter.state_dict(),
            "seconds": time.perf_counter() - self.began if self.step else 0.0,
            "model_state": self.average.state_dict(),
            "trained_state": self.model.state_dict(),
            "optim_state": self.optimizer.state_dict(),
            "scheduler_state": self.scheduler.state_dict(),
            "best_valid_acc": self.best_valid_acc,
            "epochs_since_best": self.epochs_since_best,
            "random_states": random_states(),
            "model_args": self.model_args,
            "data": self.spec._asdict(),
            "config": asdict(self.config),
            "processes": self.world.size,
        }
        if self.world.is_main:
            save_checkpoint(checkpoint, *[self.config.run_dir / "best.pt"] * is_best, self.config.run_dir / "last.pt")
        self.world.agree(None)

    def load_checkpoint(self, checkpoint: dict):
        """Takes up a run where the checkpoint left it.

        Raises:
            InputError: it was trained on other data than these, or it contradicts itself.
        """
        path = self.config.checkpoint_path
        spec = spec_of(checkpoint, path)
        if not spec.fits(self.spec):
            raise InputError(f"{path} was trained on other images than those of --data_dir={self.config.data_dir}")
        self.spec = spec
        self.epoch = checkpoint["epoch"]
        self.best_valid_acc = checkpoint["best_valid_acc"]
        if not self.config.is_train:
            return
        self.step, self.seconds = checkpoint["step"], checkpoint["seconds"]
        self.epochs_since_best = checkpoint["epochs_since_best"]
        try:
            if min(self.epoch, self.step, self.seconds, self.epochs_since_best) < 0:
                raise ValueError("it counts below 0")
            self.meter.load_state_dict(checkpoint["meter"], len(Losses._fields), self.device)
            self.model.load_state_dict(checkpoint["trained_state"])
            load_states(self.config, self.model, self.optimizer, self.scheduler, checkpoint)
            restore_random_states(checkpoint["random_states"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not a whole checkpoint ({reason}): restore it, or train anew") from error
        print(f"[*] Loaded {path}, after epoch {self.epoch}: best validation accuracy {self.best_valid_acc:.3f}%")
