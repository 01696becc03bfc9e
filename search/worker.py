"""The trials of a search: a queue that processes share through Optuna's storage, and the worker that trains them.

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
import json
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from config import FREE, Config, get_config, names_marked
from data_loader import get_train_valid_loader
from images.batches import Loader
from search.options import Search, flags_of
from trainer import Diverged, Trainer
from training.checkpoint import load_checkpoint, write_whole
from training.cli import InputError
from training.distributed import pick_device
from training.progress import EpochResult, Progress
from training.run_folder import locked, open_run, read_metrics
from utils import interrupting_signals, seed_everything
from viz.reports import open_reports

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MISSED_BEATS = 5  # signs of life whose absence means death


def open_study(search: Search) -> optuna.Study:
    """The study of a search, made if it is missing.

    Raises:
        InputError: the storage cannot be opened, or its study searches something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = search.flags.storage or str(search.folder / "journal.log")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, search.base.training.epochs // 4))
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
        storage = _database(where) if "://" in where else JournalStorage(Journal(where))
        study = optuna.create_study(
            study_name=search.study,
            storage=storage,
            sampler=SeededByNumber(search.flags.sampler, search.base.training.random_seed),
            pruner=pruner if search.flags.prune and not search.flags.seeds else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        about = _about(search)
        before = study.user_attrs.get("about")
        if before is None:
            study.set_user_attr("about", before := about)
    except Exception as error:  # no list says what a database's driver may raise
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"cannot open --storage= ({reason[0]}): name a file, or a database that runs, and install its "
                         f"driver") from error  # fmt: skip
    for name in about:
        if about[name] != before.get(name):
            raise InputError(
                f"the study {search.study} was begun with {name}={before.get(name)}, not {about[name]}: "
                f"repeat that, or choose another --study="
            )
    return study


class Journal(JournalFileBackend):
    """Optuna's journal, a line for each change, which loses no more than a line that was torn by a full disk or a kill.

    Optuna itself would append to the torn line, and could never read the journal again.
    """

    def __init__(self, path: str):
        self.path, self.lock = Path(path), JournalFileSymlinkLock(path)
        super().__init__(path, self.lock)
        with self.locked():
            lines = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            whole = [line for line in lines if is_json(line)]
            if len(whole) < len(lines):
                write_whole(self.path, b"".join(whole))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def append_logs(self, logs: list[dict]):
        """Adds changes; raises InputError, and leaves the journal as it was, if the disk is full."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.locked():
            end = end_of_lines(self.path)
            try:
                os.truncate(self.path, end)
                with open(self.path, "ab") as file:
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self.path, end)
                raise InputError(
                    f"cannot write {self.path} ({error.strerror}): fix that, and repeat the command"
                ) from error


def end_of_lines(path: Path) -> int:
    """How many bytes a file's whole lines take."""
    with open(path, "rb") as file:
        for end in range(file.seek(0, os.SEEK_END), 0, -1):
            file.seek(end - 1)
            if file.read(1) == b"\n":
                return end
    return 0


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _database(url: str) -> RDBStorage:
    """A database, in which several processes that start at once may all try to make the same tables."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    for seconds in (0.5, 1, 2, 4):
        with contextlib.suppress(IntegrityError, ProgrammingError):
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})  # an idle connection that was cut is renewed
        time.sleep(seconds)
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _about(search: Search) -> dict:
    """What all who work at one study must agree about: all that changes a trial's error."""
    free = set(names_marked(FREE)) - {"M"}  # M changes no training, but the errors
    searched = {part.field for part in search.ranges}
    settings = {name: value for name, value in search.base.flat().items() if name not in free | searched}
    return {"search": sorted(search.flags.search), "seeds": bool(search.flags.seeds), **settings}


class SeededByNumber(BaseSampler):
    """Random search or TPE whose draws for a trial depend on the seed and the trial's number: no two workers draw the
    same, and random search tries the same settings with any number of workers."""

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


def slot_of(trial: FrozenTrial | optuna.Trial) -> int:
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
            seed = self.search.base.training.random_seed + sorted(slots_of(self.study)).index(slot)
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
