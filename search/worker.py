"""The trials of a sweep: a queue that processes share through Optuna's storage, and the worker that trains them.

    study = open_study(sweep)
    Worker(sweep, study).work()

A trial keeps its slot, which is the number it first had. A worker gives signs of life while it trains. One that dies
leaves a trial without them: another marks that as failed and queues its settings anew in the same slot, whose run's
folder, and so its checkpoint, is the same. The count of slots is the sweep's exact number of trials.
"""

import contextlib
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, fields

import numpy as np
import optuna
import torch
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from config import FREE, TASKS, Config, InputError, get_config
from data_loader import get_train_valid_loader
from runs import load_checkpoint, read_metrics
from sweep_config import Sweep
from trainer import Trainer
from utils import pick_device, seed_everything

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MISSED_BEATS = 5  # signs of life whose absence means death
# All that loaders read of a Config: trials that agree in these share theirs.
LOADER_FIELDS = ("dataset", "data_dir", "canvas_size", "num_clutter", "image_height", "image_width", "valid_size",
                 "batch_size", "num_workers", "shuffle", "random_seed")  # fmt: skip


def open_study(sweep: Sweep) -> optuna.Study:
    """The sweep's study, made where it is missing.

    Raises:
        InputError: the storage cannot be opened, or its study searches something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = sweep.flags.storage or str(sweep.folder / "journal.log")
    epochs = sweep.base.epochs
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 4))
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        storage = _database(where) if "://" in where else JournalStorage(JournalFileBackend(where))
        study = optuna.create_study(
            study_name=sweep.study,
            storage=storage,
            sampler=SeededByNumber(sweep.flags.sampler, sweep.base.random_seed),
            pruner=pruner if sweep.flags.prune and not sweep.flags.seeds else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        about = _about(sweep)
        before = study.user_attrs.get("about")
        if before is None:
            study.set_user_attr("about", before := about)
    except Exception as error:  # what a database's driver raises is nowhere stated
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot open --storage= ({reason[0]}): name a file, or a database that runs, and install its "
                         f"driver") from error  # fmt: skip
    for name in about:
        if about[name] != before.get(name):
            raise InputError(
                f"the study {sweep.study} was begun with {name}={before.get(name)}, not {about[name]}: "
                f"repeat that, or choose another --study="
            )
    return study


def _database(url: str) -> RDBStorage:
    """A database, in which several processes that start at once may all try to make the same tables."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for seconds in (0.5, 1, 2, 4):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})  # a connection cut while idle is made anew
        time.sleep(seconds)
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _about(sweep: Sweep) -> dict:
    """What all who work at one study must agree about."""
    searched = [part.field for part in sweep.ranges]
    settings = {name: value for name, value in asdict(sweep.base).items() if name == "M" or name not in FREE}
    settings = {name: value for name, value in settings.items() if name not in (*searched, "save_every_steps")}
    return {"search": sorted(sweep.flags.search), "seeds": bool(sweep.flags.seeds), **settings}


class SeededByNumber(BaseSampler):
    """Random search or TPE whose draws for a trial depend on the seed and the trial's number: no two workers draw the
    same, and random search tries the same settings however many there are."""

    def __init__(self, kind: str, seed: int):
        self.kind = kind
        self.seed = seed

    def before_trial(self, study, trial):
        seed = int(np.random.SeedSequence((trial.number, self.seed)).generate_state(1)[0])
        self.inner = TPESampler(seed=seed) if self.kind == "tpe" else RandomSampler(seed=seed)

    def infer_relative_search_space(self, study, trial):
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.inner.sample_independent(study, trial, param_name, param_distribution)


def slot_of(trial: FrozenTrial) -> int:
    return trial.user_attrs.get("slot", trial.number)


def slots_of(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """The attempts at each slot, oldest first, without those that were one too many."""
    slots: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if not trial.user_attrs.get("surplus"):
            slots.setdefault(slot_of(trial), []).append(trial)
    return slots


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to the end or were pruned, in the order in which they finished."""
    return sorted(study.get_trials(deepcopy=False, states=FINISHED), key=lambda trial: trial.datetime_complete)


def line_of(trial: FrozenTrial) -> str:
    """A finished trial in one line."""
    settings = " ".join(f"--{name}={value:.4g}" if isinstance(value, float) else f"--{name}={value}"
                        for name, value in trial.user_attrs["settings"].items())  # fmt: skip
    note = trial.user_attrs.get("note", "")
    error = "-" if trial.value is None else f"{trial.value:.3f} %"
    return f"trial {slot_of(trial)}: {error} {settings} {note and f'({note})'}".rstrip()


class Worker:
    """Takes one trial after the other until the sweep's are all finished."""

    def __init__(self, sweep: Sweep, study: optuna.Study):
        self.sweep = sweep
        self.study = study
        self.beats: dict[int, tuple[object, float]] = {}  # of others: the latest sign of life, and since when
        self.loaders = None, None

    def work(self):
        """Raises InputError where data or a folder are out of reach, as they would be for the next trial, too."""
        while len(finished(self.study)) < self.sweep.total:
            trial = self.take()
            if trial:
                self.run(trial)
            else:  # the others have the rest, and may die
                time.sleep(min(1, self.sweep.flags.heartbeat))

    def take(self) -> optuna.Trial | None:
        """A trial to train: one that was given back, or a new one; None where there is none left to begin."""
        self.give_up_the_dead()
        slots = slots_of(self.study)
        for slot, attempts in sorted(slots.items())[: self.sweep.total]:
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
        if len(slots) >= self.sweep.total and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return None
        trial = self.study.ask()
        if self.is_surplus(trial):
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def give_up_the_dead(self):
        """Fails the trials whose workers have given no sign for too long, by this process's own clock."""
        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            beat = trial.user_attrs.get("beat", [0, self.sweep.flags.heartbeat])
            seen, since = self.beats.get(trial.number, (None, now))
            if beat != seen:
                self.beats[trial.number] = beat, now
            elif now - since > MISSED_BEATS * beat[1]:
                with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # another was quicker
                    self.study.tell(trial.number, state=TrialState.FAIL)

    def is_surplus(self, trial: optuna.Trial) -> bool:
        """Whether another attempt at this slot came first, or others fill the sweep: two may have begun at once."""
        slots = slots_of(self.study)
        slot = trial.user_attrs.get("slot", trial.number)
        earlier = [attempt for attempt in slots[slot] if attempt.number < trial.number]
        taken = any(attempt.state != TrialState.FAIL for attempt in earlier)
        return taken or sorted(slots).index(slot) >= self.sweep.total

    def run(self, trial: optuna.Trial):
        """Trains a trial, or goes on with it, and tells the study."""
        slot = trial.user_attrs.get("slot", trial.number)
        # Whoever stands still so long that it is taken to be dead learns it by this error, and leaves the trial alone.
        with heartbeat(trial, self.sweep.flags.heartbeat), contextlib.suppress(UpdateFinishedTrialError):
            try:
                outcome = {"values": self.train(trial, slot)}
            except optuna.TrialPruned as pruned:
                outcome = {"state": TrialState.PRUNED}
                trial.set_user_attr("note", str(pruned))
            except BaseException:
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                raise
            epochs = read_metrics(self.sweep.trial_config(slot, {}).run_dir / "metrics.jsonl")
            trial.set_user_attr("seconds", sum(epoch["seconds"] for epoch in epochs))
            self.study.tell(trial, **outcome, skip_if_finished=True)

    def train(self, trial: optuna.Trial, slot: int) -> float:
        """The best validation error of the trial's training, in %.

        Raises:
            optuna.TrialPruned: the settings do not go together, do not fit into memory, diverge, or promise little.
        """
        settings = {part.field: part.suggest(trial) for part in self.sweep.ranges}
        if self.sweep.flags.seeds:
            settings = {"random_seed": self.sweep.base.random_seed + sorted(slots_of(self.study)).index(slot)}
        trial.set_user_attr("settings", settings)
        try:
            config = self.sweep.trial_config(slot, settings)
        except InputError as error:
            raise optuna.TrialPruned(str(error)) from error
        config.run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(config.run_dir / "lock"):  # whoever was taken to be dead, and is not, first ends its epoch
            last = config.run_dir / "last.pt"
        config = get_config([*flags_of(config), f"--resume={last.exists()}"])  # which refuses another run's folder
        seed_everything(config.random_seed)
        torch.compiler.reset()  # past a number of trainings in one process it would silently not compile
        device = pick_device(config.use_gpu)
        checkpoint = load_checkpoint(last) if config.resume else None
        try:
            trainer = TrialTrainer(trial, config, self.load(config, device), device, checkpoint)
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise optuna.TrialPruned("out of memory") from error
        return 100 - trainer.best_valid_acc

    def load(self, config: Config, device: torch.device):
        """The loaders of these settings; the latest are kept."""
        key = [getattr(config, name) for name in LOADER_FIELDS]
        if self.loaders[0] != key:
            with FileLock(self.sweep.folder / "data.lock"):  # only one downloads
                self.loaders = key, get_train_valid_loader(config, device)
        return self.loaders[1]


class TrialTrainer(Trainer):
    """A training that tells its study how each epoch went, and stops where that prunes it."""

    def __init__(self, trial: optuna.Trial, *arguments):
        self.trial = trial
        super().__init__(*arguments)

    def finished(self) -> bool:
        """Asked before each epoch, when the one before is saved."""
        if self.epoch:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an epoch is told again where a worker died between telling and saving
                self.trial.report(100 - self.best_valid_acc, self.epoch)
            if self.epoch < self.config.epochs and self.trial.should_prune():
                raise optuna.TrialPruned(f"pruned after {self.epoch} epochs")
        return super().finished()

    def check_finite(self, losses):
        try:
            super().check_finite(losses)
        except InputError as error:
            raise optuna.TrialPruned(str(error)) from error


@contextlib.contextmanager
def heartbeat(trial: optuna.Trial, seconds: float) -> Iterator[None]:
    """Gives a sign of life with the trial every so many seconds, from a thread that ends with the process."""
    over = threading.Event()

    def beat():
        for count in range(2**62):
            with contextlib.suppress(Exception):  # given up, or a storage out of reach: the training will hear of it
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


def flags_of(config: Config) -> list[str]:
    """The flags of main.py that give these settings: those that differ from the task's own."""
    preset = Config(task=config.task, **TASKS[config.task])
    names = [field.name for field in fields(Config) if getattr(config, field.name) != getattr(preset, field.name)]
    return [f"--{name}={getattr(config, name)}" for name in ("task", *names)]
