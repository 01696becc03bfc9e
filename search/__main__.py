"""Searches settings by random search or TPE, in one process or on many machines, and tries one setting with many seeds.

    python -m search --task=mnist --trials=40 --search std=log:0.02:0.3 init_lr=log:1e-4:3e-3
    python -m search --config=search.toml --workers=4    # the same command continues after Ctrl-C
    python -m search --task=digits --seeds=5             # mean and standard deviation over five seeds

On other machines the same command with the same --storage helps: a journal on a shared disk, or a database's URL.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from search.options import Search, parse
from training.cli import InputError, as_input_errors, printable, steady_process
from training.distributed import ALONE

ROOT = Path(__file__).parents[1]


def main(search: Search):
    """Works at the trials until all are finished, then reports what came out.

    Raises:
        InputError: a file, a setting or the storage does not fit, or all workers have stopped before the end.
        KeyboardInterrupt: by a signal, with every running trial saved.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from search.report import report
    from search.storage import open_study
    from search.worker import Worker

    study = open_study(search)
    if not search.flags.workers:
        Worker(search, study).work()
        return
    supervise(search, study)
    report(search, study)


def supervise(search: Search, study):
    """Starts the workers and shows one bar until the last trial is finished.

    A first signal stops the workers, with their trials saved; a second one kills them.

    Raises:
        InputError: the workers have all stopped before.
        KeyboardInterrupt: after a signal.
    """
    from search.storage import finished, line_of
    from utils import Interrupted, StopSignal

    log = search.folder / f"workers_{platform.node()}.log"
    shown = {trial.number for trial in finished(study)}
    failed: set[int] = set()  # workers
    count = search.flags.workers if len(shown) < search.total else 0
    with (
        StopSignal() as second,  # which receives a signal once the inner one has recorded the first
        StopSignal() as first,
        start_workers(search, count, log) as workers,
        tqdm(total=search.total, initial=len(shown), unit="trial", disable=None) as bar,
    ):
        passed_on, running = None, True
        while running:
            codes = [worker.poll() for worker in workers]
            running = None in codes  # asked before the trials are: none is missed
            # show
            trials = finished(study)
            for trial in trials:
                if trial.number not in shown:
                    shown.add(trial.number)
                    bar.write(line_of(trial))
                    bar.update()
            errors = [trial.value for trial in trials if trial.state.name == "COMPLETE"]
            best = f"best {min(errors):.2f} %" if errors else "none complete"
            bar.set_postfix_str(best)
            for index, code in enumerate(codes):
                if code and index not in failed and not first.received:
                    failed.add(index)
                    bar.write(f"[!] A worker has stopped with code {code}; others continue its trial ({log})")
            # stop
            due = signal.SIGKILL if second.received else signal.SIGTERM if first.received else None
            if due != passed_on:
                passed_on = due
                for worker in workers:
                    worker.send_signal(due)
            time.sleep(0.5 * running)
    state = f"{len(shown)} of {search.total} trials finished, {best}"
    if first.received:
        raise Interrupted(first.received, state)
    if len(shown) < search.total:
        last = (log.read_text().splitlines() or ["nothing"])[-1]
        raise InputError(f"all workers have stopped, {state}; {log} ends with: {last}")


@contextlib.contextmanager
def start_workers(search: Search, count: int, log: Path) -> Iterator[list[subprocess.Popen]]:
    """This command again, as workers that divide the cores and write into the log; they end before the block does.

    Each has a process group of its own: a terminal's Ctrl-C reaches it only through this process, once.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, count))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # they may start in any folder
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    workers: list[subprocess.Popen] = []
    try:
        with open(log, "a") as output:
            for _ in range(count):
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "search", *search.argv, "--workers=0"],
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
                    )
                )  # fmt: skip
        yield workers
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)  # to those that still run; a process in the background ignores SIGINT
        for worker in workers:
            worker.wait()


def run(argv: list[str] | None = None) -> int:
    """`main` as a command: prints what the user can fix as one line, and returns the exit code."""
    try:
        with as_input_errors():
            search = parse(sys.argv[1:] if argv is None else argv)
            with steady_process():
                main(search)
    except InputError as error:
        ALONE.print_reason(printable(f"search: {error}"))
        return 1
    except KeyboardInterrupt as error:
        stopped = str(error).partition(";")[0] or "interrupted"  # without main.py's way to resume
        ALONE.print_reason(f"search: {stopped}; the same command continues")
        return getattr(error, "exit_code", 130)
    return 0


if __name__ == "__main__":
    sys.exit(run())
