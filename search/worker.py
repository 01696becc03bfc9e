"""The worker that trains the trials of a search, which other processes may share with it.

    study = open_study(search)
    Worker(search, study).work()

A trial keeps its slot: the number that it had first. A worker gives signs of life while it trains. If they stop,
another worker marks the trial as failed and queues its settings again in the same slot, whose folder holds the run's
checkpoint. The search ends when as many slots are finished as it has trials.

Optuna's own heartbeat, RetryFailedTrialCallback and MaxTrialsCallback (read in 4.9 and 5.0) cannot replace this queue:

- Only databases have the heartbeat. A journal file has none, and a trial without a first beat counts as alive forever.
- A stale trial is failed first and queued again after that: a worker that dies in between loses the trial.
- A trial that fails by an error or by Ctrl-C is not queued again.
- Trials are counted when they end. Of eight workers, seven may each finish one more than was asked for.
"""

import contextlib
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from config import Config, get_config
from data_loader import get_train_valid_loader
from images.batches import Loader
from search.options import Search, flags_of
from search.storage import finished, place_of, slot_of, slots_of
from trainer import Diverged, Trainer
from training.checkpoint import load_checkpoint
from training.cli import InputError
from training.distributed import pick_device
from training.progress import EpochResult, Progress
from training.run_folder import locked, open_run, read_metrics
from utils import interrupting_signals, seed_everything
from viz.reports import open_reports

MISSED_BEATS = 5  # signs of life whose absence means death


class Worker:
    """Takes one trial after the other until all of the search are finished."""

    def __init__(self, search: Search, study: optuna.Study):
        self.search = search
        self.study = study
        self.beats: dict[int, tuple[object, float]] = {}  # of others: the latest sign of life, and since when
        self.loaders = None, None  # the latest, and what they were made for

    def work(self):
        """Takes trials and trains them.

        Raises:
            InputError: data or a folder are out of reach, as they would be for the next trial, too.
            KeyboardInterrupt: by a signal, with the trial saved.
        """
        with interrupting_signals("its trial is given back"):
            while len(finished(self.study)) < self.search.total:
                trial = self.take()
                if trial:
                    self.run(trial)
                else:  # other workers have the rest, and may die
                    time.sleep(min(1, self.search.flags.heartbeat))

    def take(self) -> optuna.Trial | None:
        """A trial to train: one that was given back, or a new one; None if there is none left to begin."""
        self.give_up_the_dead()
        slots = slots_of(self.study)
        for slot, attempts in sorted(slots.items())[: self.search.total]:
            if all(trial.state == TrialState.FAIL for trial in attempts):
                latest = attempts[-1]
                self.study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=latest.params,
                        distributions=latest.distributions,
                        intermediate_values=latest.intermediate_values,
                        user_attrs={"slot": slot},
                    )
                )
        if len(slots) >= self.search.total and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return None
        trial = self.study.ask()
        if self.is_surplus(trial):
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def give_up_the_dead(self):
        """Fails the trials whose workers have given no sign of life for too long, by this process's own clock."""
        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            beat = trial.user_attrs.get("beat", [0, self.search.flags.heartbeat])
            seen, since = self.beats.get(trial.number, (None, now))
            if beat != seen:
                self.beats[trial.number] = beat, now
            elif now - since > MISSED_BEATS * beat[1]:
                with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def is_surplus(self, trial: optuna.Trial) -> bool:
        """Whether another attempt at this slot came first, or others fill the search: two may have begun at once."""
        slots, slot = slots_of(self.study), slot_of(trial)
        earlier = [attempt for attempt in slots[slot] if attempt.number < trial.number]
        taken = any(attempt.state != TrialState.FAIL for attempt in earlier)
        return taken or sorted(slots).index(slot) >= self.search.total

    def run(self, trial: optuna.Trial):
        """Trains a trial, or resumes it, and records in the study how it ended."""
        slot = slot_of(trial)
        # A worker that stood still so long that another took its trial learns it by this error, and leaves the trial.
        with heartbeat(trial, self.search.flags.heartbeat), contextlib.suppress(UpdateFinishedTrialError):
            try:
                outcome = {"values": self.train(trial, slot)}
            except optuna.TrialPruned as pruned:
                outcome = {"state": TrialState.PRUNED}
                trial.set_user_attr("note", str(pruned))
            except BaseException:
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                raise
            epochs = read_metrics(self.search.trial_config(slot).run_dir / "metrics.jsonl")
            trial.set_user_attr("seconds", sum(epoch["seconds"] for epoch in epochs))
            self.study.tell(trial, **outcome, skip_if_finished=True)

    def train(self, trial: optuna.Trial, slot: int) -> float:
        """The best validation error of the trial's training, in %.

        Raises:
            optuna.TrialPruned: the settings do not go together, do not fit into memory, diverge, or promise little.
        """
        settings = {part.field: part.suggest(trial) for part in self.search.ranges}
        if self.search.flags.seeds:
            seed = self.search.base.training.random_seed + place_of(self.study, slot)
            settings = {"random_seed": seed}
        trial.set_user_attr("settings", settings)
        try:
            config = self.search.trial_config(slot, **settings)
        except InputError as error:
            raise optuna.TrialPruned(str(error)) from error
        config.run_dir.mkdir(parents=True, exist_ok=True)
        with locked(config.run_dir / "lock"):  # a worker that seemed dead, and is not, first ends its epoch
            config = get_config([*flags_of(config), "--resume=auto"])  # which rejects the folder of another run
        try:
            return self.train_run(trial, config)
        except Diverged as error:
            raise optuna.TrialPruned(str(error).partition(": ")[0]) from error  # without advice for main.py
        except torch.OutOfMemoryError as error:
            raise optuna.TrialPruned("out of memory") from error

    def train_run(self, trial: optuna.Trial, config: Config) -> float:
        """Trains as main.py does, and reports each epoch to the trial."""
        seed_everything(config.training.random_seed)
        torch.compiler.reset()  # after a number of trainings in one process it would silently not compile
        device = pick_device(config.machine.use_gpu)
        checkpoint = load_checkpoint(config.checkpoint_path, to_resume=True) if config.call.resume else None
        trainer = Trainer(config, self.load(config, device, checkpoint), device, checkpoint)

        def report(state: Progress | EpochResult):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an epoch may have been reported before
                trial.report(100 - state.best_valid_acc, state.epoch)
            if state.epoch < config.training.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"pruned after {state.epoch} epochs")

        epoch, step = trainer.progress.epoch, trainer.progress.step
        with open_run(config, device, epoch, step), open_reports(config, trainer) as reports:
            if epoch:  # the worker before may have died after it saved this epoch, and before it reported it
                report(trainer.progress)
            trainer.train(on_epoch=[*reports, report])
        return 100 - trainer.progress.best_valid_acc

    def load(self, config: Config, device: torch.device, checkpoint: dict | None = None) -> tuple[Loader, Loader]:
        """The loaders of these settings; the latest are kept, but for a training that resumes, whose images must be
        those of its checkpoint."""
        key = config.data, config.training.random_seed
        if checkpoint:
            return get_train_valid_loader(*key, device, checkpoint=checkpoint)
        if self.loaders[0] != key:
            with locked(self.search.folder / "data.lock"):  # only one downloads
                self.loaders = key, get_train_valid_loader(*key, device)
        return self.loaders[1]


@contextlib.contextmanager
def heartbeat(trial: optuna.Trial, seconds: float) -> Iterator[None]:
    """Gives a sign of life with the trial every so many seconds, from a thread that ends with the process."""
    over = threading.Event()

    def beat():
        for count in range(2**62):
            with contextlib.suppress(Exception):  # the training will notice if it was given up, or cannot be stored
                trial.set_user_attr("beat", [count, seconds, f"{platform.node()}:{os.getpid()}"])
            if over.wait(seconds):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
