"""Trains, validates and tests the Recurrent Attention Model, and saves what a run needs to resume.

    trainer = Trainer(config, (train_loader, valid_loader), torch.device("cpu"))
    trainer.train(on_epoch=[print])

One training step passes through this file, training/step.py, model.py, modules.py and training/optim.py.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from config import Config
from games.catch import Games, trivial_players
from images.batches import Batch, DataSpec, Loader, spec_of
from model import Losses, RecurrentAttention, draw_first_locations
from training import optim
from training.captured_step import CapturedStep, can_capture, captured
from training.checkpoint import model_of, save_checkpoint
from training.cli import InputError, say
from training.distributed import ALONE
from training.evaluation import Metrics, class_accuracies, class_table, confusion_of, evaluate
from training.fixed_policies import fixed_locations
from training.progress import EpochResult, Progress
from training.run_folder import append_metrics, record_test
from training.step import GameObjective, Objective, first_not_finite, should_compile
from utils import (
    Interrupted,
    StopSignal,
    Stream,
    generator_seed,
    keep_freed_memory,
    make_generator,
    random_states,
    restore_random_states,
)

MOST_IN_TABLE = 20  # classes of which a test prints a line each


class Diverged(InputError):
    """A loss or a weight is infinite or not a number."""


class Trainer:
    """One run of one model.

    Args:
        config: the run's settings.
        data_loader: (train, validation) loaders to train with, the latter None if nothing validates; or the test
            loader.
        device: where the model is to be.
        checkpoint: from `load_checkpoint`, to resume or to test; None begins a new run.
    Raises:
        InputError: the checkpoint contradicts the settings or the data.
    """

    def __init__(
        self,
        config: Config,
        data_loader: tuple[Loader, Loader | None] | Loader,
        device: torch.device,
        checkpoint: dict | None = None,
    ):
        keep_freed_memory()
        self.config = config
        self.device = device
        if config.call.is_train:
            self.train_loader, self.valid_loader = data_loader
        else:
            self.test_loader = data_loader
        loader = self.train_loader if config.call.is_train else self.test_loader
        self.spec, self.world = loader.spec, loader.world
        if checkpoint:
            self.spec = self.checked_spec(checkpoint)
            self.model_args = checkpoint["model_args"]
            self.model = model_of(checkpoint, config.checkpoint_path).to(device)
        else:
            self.model_args = config.model_args(self.spec.num_channels, len(self.spec.classes))
            self.model = RecurrentAttention(**self.model_args).normalize_by(self.spec.mean, self.spec.std).to(device)
        self.average = copy.deepcopy(self.model)  # of the weights over the steps: it is validated, saved and tested
        self.progress = Progress()
        if config.call.is_train:
            self.prepare_training(checkpoint)
        else:
            self.progress.epoch, self.progress.best_valid_acc = checkpoint["epoch"], checkpoint["best_valid_acc"]

    def prepare_training(self, checkpoint: dict | None):
        training, model = self.config.training, self.model
        # Freeze parameters this run never uses: they would have no gradient, and the optimizer no state of them.
        model.locator.requires_grad_(training.policy == "learned" and model.num_choices > 0)
        if self.config.model.core == "relu":
            model.rnn.from_hidden.requires_grad_(model.num_glimpses > 1)
        self.optimizer = optim.make_optimizer(training, model)
        self.plateau = optim.make_plateau(training, self.optimizer)
        self.objective = Objective(model, training, self.config.data.batch_size)
        if self.config.data.dataset == "catch":
            self.objective = GameObjective(model, training, self.config.data.batch_size, self.world)
        self.shared_objective = self.world.parallel(self.objective)
        self.captured_step: CapturedStep | None = None
        self.steps_per_epoch = len(self.train_loader)
        if checkpoint:
            self.load_checkpoint(checkpoint)

    def train(self, on_epoch: Sequence[Callable[[EpochResult], None]] = ()):
        """Trains up to config.training.epochs, or until patience with the validation accuracy, if there is one, ends.

        Args:
            on_epoch: called after each epoch, when it is saved.
        Raises:
            Interrupted: by a signal, with everything saved.
            Diverged: a loss or a weight is not finite any more; what was saved before is still there.
            InputError: the run's folder cannot be written.
        """
        progress, world = self.progress, self.world
        with StopSignal(echoes=world.size > 1) as self.signal:
            counts = self.train_loader.num_images, self.valid_loader.num_images if self.valid_loader else "no"
            print(f"[*] Number of model parameters: {sum(each.numel() for each in self.model.parameters()):,}")
            print("[*] Train on {} samples, validate on {} samples".format(*counts))
            self.compile()
            while not self.finished():
                self.began = time.perf_counter() - progress.seconds
                # train
                train = self.train_one_epoch()
                images_per_second = self.train_loader.num_images / (time.perf_counter() - self.began)
                # evaluate
                valid = self.valid_loader and self.evaluate(self.valid_loader, after_batch=self.stop_if_asked)
                seconds, lr = time.perf_counter() - self.began, self.optimizer.param_groups[0]["lr"]
                if self.plateau:
                    self.plateau.step(valid.acc)
                is_best = progress.finish_epoch(valid and valid.acc)
                result = EpochResult(progress.epoch, self.config.training.epochs, train, valid, lr, images_per_second,
                                     seconds, progress.best_valid_acc, is_best)  # fmt: skip
                # save
                self.save_metrics(result)
                self.save_checkpoint(is_best)
                # report
                for report in on_epoch:
                    report(result)
                # stop
                stop = world.largest(self.signal.received)
                if stop:
                    raise Interrupted(stop, f"saved after epoch {progress.epoch}")

    def finished(self) -> bool:
        """Whether the last epoch is finished, or the one to stop after, or patience has ended; prints how to resume."""
        training, progress = self.config.training, self.progress
        patience = training.train_patience
        for reached, more in (
            (progress.epoch >= training.epochs, f" --epochs={2 * progress.epoch}"),
            (progress.epochs_since_best > patience, f" --train_patience={2 * patience + 1}"),
            (0 < self.config.call.stop_after_epoch <= progress.epoch, ""),
        ):
            if reached:
                print(f"[*] {progress.epoch} epochs finished, {self.best}. To continue: --resume=True{more}")
                return True
        return False

    def train_one_epoch(self) -> Metrics:
        """One pass over the training images, or what is left of it."""
        config, progress = self.config, self.progress
        # The std and the learning rate of this epoch.
        for model in (self.model, self.average):
            model.std.fill_(optim.policy_std(config.training, config.model.std, progress.epoch))
        if not self.plateau:
            for group in self.optimizer.param_groups:
                group["lr"] = optim.learning_rate(config.training, progress.epoch)
        self.model.train()
        self.train_loader.set_epoch(progress.epoch)
        title = f"Epoch {progress.epoch + 1}/{config.training.epochs}"
        unchecked = []  # losses since they were last checked
        with tqdm(total=self.train_loader.num_images, initial=progress.meter.weight, desc=title, unit="img",
                  leave=False, disable=self.world.hide_bars) as bar:  # fmt: skip
            for losses, count in self.take_steps():
                progress.step += 1
                # log
                unchecked.append(losses)
                progress.meter.update(losses, count)
                bar.update(count)
                # check, save, stop
                stop = self.world.largest(self.signal.received)
                every = config.machine.save_every_steps
                due = stop or (every and progress.step % every == 0)
                if due or progress.step % config.machine.print_freq == 0:
                    self.check_finite(unchecked)
                    unchecked = []
                    bar.set_postfix(loss=f"{losses[0]:.3f}", acc=f"{100 * losses[-1]:.1f}")
                if due:
                    self.save_checkpoint()
                if stop:
                    raise Interrupted(stop, f"saved at step {progress.step} of epoch {progress.epoch + 1}")
        self.check_finite(unchecked)
        *losses, accuracy = progress.meter.mean()
        return Metrics(*losses, acc=100 * accuracy, correct=round(accuracy * progress.meter.weight))

    def take_steps(self) -> Iterator[tuple[Tensor, int]]:
        """Takes the steps that the epoch still needs; yields for each the losses (terms,) and the number of images."""
        loader, progress, seed = self.train_loader, self.progress, self.config.training.random_seed
        if self.captured_step:
            self.captured_step.capture()  # at this epoch's learning rate
            for index in loader.order(progress.step):
                if len(index) == loader.batch_size:
                    place = seed, progress.epoch, progress.step
                    seeds = [generator_seed(stream, *place) for stream in (Stream.ROLLOUT, Stream.CANVAS)]
                    yield self.captured_step(index, seeds, self.steps_taken + 1), len(index)
        for batch in loader.batches(progress.step):
            generator = make_generator(Stream.ROLLOUT, seed, progress.epoch, progress.step, self.device)
            losses = self.train_step(batch, generator, self.steps_taken + 1)
            yield torch.stack(losses).detach(), batch.count

    @property
    def steps_taken(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def train_step(self, batch: Batch, generator: torch.Generator, steps: int | Tensor) -> Losses:
        """One step of gradient descent, and of the average of the weights; nothing here waits for the device.

        Args:
            batch: this process's shard.
            generator: of the whole batch's first locations and the policy's noise.
            steps: taken with this one, a tensor () on the device if a graph repeats it.
        Returns:
            The losses of the batch, before the step.
        """
        training, shard = self.config.training, batch.shard
        # All processes draw the numbers of the whole batch, and take those of their shard.
        locations = draw_first_locations(self.config.model.first_location, batch.count, self.device, generator)
        locations = locations[shard.part]
        noise = self.objective.draw_noise(batch.count, generator)[:, shard.part].contiguous()
        if training.policy != "learned":
            whole = shard.part, batch.count
            locations = fixed_locations(self.config, locations, batch.centres, generator, whole)
        losses = self.shared_objective(batch.images, batch.labels, locations, noise)
        self.optimizer.zero_grad()
        (losses.total if shard.weight == 1 else losses.total * shard.weight).backward()
        if training.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_grad_norm)
        self.optimizer.step()
        optim.average_weights(self.average, self.model, training.ema_decay, steps)
        return self.world.mean(losses, shard.weight) if self.world.size > 1 else losses

    def compile(self):
        """Compiles the step, if that is wanted or pays, and captures it whole, if it can be."""
        training, device = self.config.training, self.device
        if self.train_loader.num_images < self.train_loader.batch_size:
            return  # no batch is full
        self.model.train()
        captures = can_capture(device) and training.compile != "False" and self.world is ALONE
        captures = captures and self.train_loader.in_memory
        if should_compile(training.compile, device, steps=training.epochs * self.steps_per_epoch):
            self.objective.compile(*self.example(), captured=captures)
        if captures:
            self.captured_step = captured(self.step_from_memory, self.tensors_of_a_step, num_seeds=2,
                                          batch_size=self.train_loader.batch_size, device=device)  # fmt: skip

    def example(self) -> tuple[Tensor | Games, ...]:
        """Arguments of the objective, of a full batch."""
        count, device = self.config.data.batch_size, self.device
        generator = torch.Generator(device)  # the global one stays as it is
        labels = torch.zeros(count, dtype=torch.long, device=device)
        first_locations = draw_first_locations(self.config.model.first_location, count, device, generator)
        locations = fixed_locations(self.config, first_locations, first_locations, generator)
        noise = self.objective.draw_noise(count, generator)
        return self.train_loader.blank(count), labels, locations, noise

    def step_from_memory(self, index: Tensor, generators: list[torch.Generator], steps: Tensor) -> Tensor:
        """A training step on the images of an index (B,); the losses, (terms,)."""
        rollout, canvas = generators
        batch = self.train_loader.batch(self.train_loader.read(index, canvas), len(index))
        return torch.stack(self.train_step(batch, rollout, steps)).detach()

    def tensors_of_a_step(self) -> list[Tensor]:
        """All that a step changes."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        modules = self.model, self.average
        weights = [each for module in modules for each in (*module.parameters(), *module.buffers())]
        return [*weights, *filter(torch.is_tensor, states)]

    def check_finite(self, losses: list[Tensor]):
        """Stops if a loss of the latest steps, (terms,) each, or a weight is not finite, before that is saved.

        Raises:
            Diverged: with the step, the term, and the checkpoint to resume from.
        """
        step, epoch = self.progress.step, self.progress.epoch
        found = first_not_finite(torch.stack(losses)) if losses else None
        if found:
            index, term, value = found
            what = f"the {term} loss is {value} at step {step - len(losses) + index + 1}"
        elif not torch.nn.utils.get_total_norm(self.model.parameters()).isfinite():
            what = f"the weights are not finite after step {step}"
        else:
            return
        last = self.config.run_dir / "last.pt"
        raise Diverged(
            f"{what} of epoch {epoch + 1}: train again with a lower --init_lr= or with --clip_grad_norm=1; "
            + (f"{last} is from before it, --resume=True accepts the latter" if last.exists() else "nothing was saved")
        )

    def stop_if_asked(self):
        """Saves the epoch, trained and not validated, and stops, if a signal has come; a resume validates it again.

        Raises:
            Interrupted: a signal has come.
        """
        stop = self.world.largest(self.signal.received)
        if stop:
            self.save_checkpoint()
            raise Interrupted(stop, f"saved before the validation of epoch {self.progress.epoch + 1}")

    def evaluate(self, loader: Loader, **options) -> Metrics:
        return evaluate(self.average, loader, self.config, **options).metrics

    @property
    def best(self) -> str:
        """What validation came to, in words."""
        if not self.valid_loader:
            return "nothing validated, so that the last one is tested"
        return f"best validation accuracy {self.progress.best_valid_acc:.3f}%"

    def test(self) -> Metrics:
        """Prints and returns the test set's metrics, and records a run's in its test.json."""
        metrics, predictions = evaluate(self.average, self.test_loader, self.config)
        count, is_game = self.test_loader.num_images, self.config.data.dataset == "catch"
        by_class = {} if is_game else self.test_classes(predictions)
        print(f"[*] Test Acc: {metrics.correct}/{count} ({metrics.acc:.2f}% - {100 - metrics.acc:.2f}%)")
        if is_game:
            games = self.test_loader.examples.images.map(Tensor.cpu)
            caught = trivial_players(games, make_generator(Stream.EVALUATION, self.config.training.random_seed))
            print("[*] The same games: " + ", ".join(f"{name} {100 * part:.1f}%" for name, part in caught.items()))
        if self.world.is_main and not self.config.call.checkpoint:
            record = {**metrics._asdict(), "images": count, "M": self.config.training.M, "epoch": self.progress.epoch}
            record_test(self.config, {**record, **by_class}, self.progress.best_valid_acc)
        return metrics

    def test_classes(self, predictions: Tensor) -> dict:
        """What test.json says of each class; prints a table if there are not too many."""
        classes = self.spec.classes
        confusion = confusion_of(self.test_loader.examples.labels, predictions, len(classes))
        if len(classes) <= MOST_IN_TABLE:
            print(class_table(confusion, classes))
        return {"classes": classes, "class_acc": class_accuracies(confusion), "confusion": confusion.tolist()}

    def save_metrics(self, result: EpochResult):
        if self.world.is_main:
            pace = {name: getattr(result, name) for name in ("epoch", "lr", "images_per_second", "seconds")}
            passes = {"train": result.train._asdict(), "valid": result.valid and result.valid._asdict()}
            append_metrics(self.config.run_dir / "metrics.jsonl", {**pace, **passes})

    def save_checkpoint(self, is_best: bool = False):
        """Writes best.pt if this epoch is the best, then last.pt: if cut off between the two, the epoch is repeated.

        One process writes; the others wait, so that none continues or ends before.
        """
        if self.progress.step:
            self.progress.seconds = time.perf_counter() - self.began
        checkpoint = {
            **self.progress.state_dict(),
            "model_state": self.average.state_dict(),
            "trained_state": self.model.state_dict(),
            "optim_state": self.optimizer.state_dict(),
            "scheduler_state": self.plateau.state_dict() if self.plateau else {},
            "random_states": random_states(),
            "model_args": self.model_args,
            "data": self.spec._asdict(),
            "images": self.train_loader.record and self.train_loader.record._asdict(),
            "config": self.config.flat(),
            "processes": self.world.size,
        }
        if self.world.is_main:
            save_checkpoint(checkpoint, *[self.config.run_dir / "best.pt"] * is_best, self.config.run_dir / "last.pt")
        self.world.barrier()

    def load_checkpoint(self, checkpoint: dict):
        """Continues a run where the checkpoint left it; raises InputError if it contradicts itself or the epochs."""
        try:
            self.progress.load_state_dict(checkpoint, self.device)
            self.model.load_state_dict(checkpoint["trained_state"])
            optim.load_optimizer(self.optimizer, checkpoint["optim_state"])
            if self.plateau:
                optim.load_plateau(self.plateau, checkpoint["scheduler_state"])
            restore_random_states(checkpoint["random_states"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            path, reason = self.config.checkpoint_path, " ".join(str(error).split())
            raise InputError(f"{path} is not a whole checkpoint ({reason}): restore it, or train again") from error
        epochs, done = self.config.training.epochs, self.progress.epoch
        if epochs < done:
            raise InputError(f"epochs={epochs} are fewer than the {done} that are finished: name more, or leave it out")
        say(f"[*] Loaded {self.config.checkpoint_path}, after epoch {self.progress.epoch}: {self.best}")

    def checked_spec(self, checkpoint: dict) -> DataSpec:
        """The data that a checkpoint was trained on; raises InputError if these are others."""
        path = self.config.checkpoint_path
        spec = spec_of(checkpoint, path)
        if not spec.fits(self.spec):
            raise InputError(f"{path} was trained on other images than those of --data_dir={self.config.data.data_dir}")
        return spec
