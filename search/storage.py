"""The trials of a search: a queue that processes share through Optuna's storage, a journal file or a database.

    study = open_study(search)

A trial keeps its slot: the number that it had first.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from config import FREE, Config, names_marked
from search.options import Search
from training.checkpoint import write_whole
from training.cli import InputError
from training.run_folder import check_folder

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(search: Search) -> optuna.Study:
    """The study of a search, made if it is missing.

    Raises:
        InputError: the search's folder cannot be written, the storage cannot be opened, or its study searches something
            else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = search.flags.storage or str(search.folder / "journal.log")
    check_folder(search.folder, "ckpt_dir")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, search.base.training.epochs // 4))
    try:
        storage = _database(where) if "://" in where else JournalStorage(Journal(where))
        study = optuna.create_study(
            study_name=search.study,
            storage=storage,
            sampler=SeededByPlace(search.flags.sampler, search.base.training.random_seed),
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
    before = {**Config().flat(), **before}  # a study lacks the settings that came after it
    for name in about:
        if about[name] != before[name]:
            raise InputError(
                f"the study {search.study} was begun with {name}={before[name]}, not {about[name]}: "
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
    return {"search": sorted(search.flags.searched), "seeds": bool(search.flags.seeds), **settings}


class SeededByPlace(BaseSampler):
    """Random search or TPE whose draws for a trial depend on the seed and the trial's place: no two workers draw the
    same, and random search tries the same settings with any number of workers, however often it was stopped."""

    def __init__(self, kind: str, seed: int):
        self.kind = kind
        self.seed = seed

    def before_trial(self, study, trial):
        seed = int(np.random.SeedSequence((place_of(study, slot_of(trial)), self.seed)).generate_state(1)[0])
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


def place_of(study: optuna.Study, slot: int) -> int:
    """How many slots were begun before this one. Attempts have numbers, too: those of slots have gaps."""
    return sorted(slots_of(study)).index(slot)


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
