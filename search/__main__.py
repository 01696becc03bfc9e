"""Searches settings by random search or TPE, in one process or on many machines, and tries one setting with many seeds.

    python sweep.py --task=mnist --trials=40 --search std=log:0.02:0.3 init_lr=log:1e-4:3e-3
    python sweep.py --config=sweep.toml --workers=4    # the same command goes on after Ctrl-C
    python sweep.py --task=digits --seeds=5            # mean and standard deviation over five seeds

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

from config import InputError
from flags import refusals_told
from sweep_config import Sweep, parse


def main(sweep: Sweep):
    """Works at the trials until all are finished, then says what came out.

    Raises:
        InputError: a file, a setting or the storage does not fit, or all workers have stopped before the end.
        KeyboardInterrupt: by a signal, with every trial under way saved.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from sweep_report import report
    from sweep_trials import Worker, open_study

    study = open_study(sweep)
    if not sweep.flags.workers:
        Worker(sweep, study).work()
        return
    supervise(sweep, study)
    report(sweep, study)


def supervise(sweep: Sweep, study):
    """Starts the workers and shows one bar until the last trial is finished; a signal stops them, saved.

    Raises:
        InputError: the workers have all stopped before.
        KeyboardInterrupt: after a signal.
    """
    from sweep_trials import finished, line_of

    log = sweep.folder / f"workers_{platform.node()}.log"
    shown = {trial.number for trial in finished(study)}
    fallen: set[int] = set()  # workers
    count = sweep.flags.workers if len(shown) < sweep.total else 0
    with (
        stop_signals() as received,
        start_workers(sweep, count, log) as workers,
        tqdm(total=sweep.total, initial=len(shown), unit="trial", disable=None) as bar,
    ):
        passed_on, at_work = 0, True
        while at_work:
            codes = [worker.poll() for worker in workers]
            at_work = None in codes  # asked before the trials are: none is missed
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
                if code and index not in fallen and not received:
                    fallen.add(index)
                    bar.write(f"[!] A worker has stopped with code {code}; others go on with its trial ({log})")
            if len(received) > passed_on:
                passed_on += 1
                for worker in workers:
                    worker.send_signal(signal.SIGINT if passed_on == 1 else signal.SIGKILL)
            time.sleep(0.5 * at_work)
    state = f"{len(shown)} of {sweep.total} trials finished, {best}"
    if received:
        interrupt = KeyboardInterrupt(f"stopped by {signal.Signals(received[0]).name}, {state}")
        interrupt.exit_code = 128 + received[0]
        raise interrupt
    if len(shown) < sweep.total:
        last = (log.read_text().splitlines() or ["nothing"])[-1]
        raise InputError(f"all workers have stopped, {state}; {log} ends with: {last}")


@contextlib.contextmanager
def start_workers(sweep: Sweep, count: int, log: Path) -> Iterator[list[subprocess.Popen]]:
    """This command again, as workers that share the cores and write into the log; they do not outlive the caller.

    Each has a process group of its own: a terminal's Ctrl-C reaches it only through the caller, once.
    """
    threads = max(1, (os.cpu_count() or 1) // max(1, count))
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **os.environ}
    workers: list[subprocess.Popen] = []
    try:
        with open(log, "a") as output:
            for _ in range(count):
                workers.append(
                    subprocess.Popen(
                        [sys.executable, __file__, *sweep.argv, "--workers=0"],
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
                    )
                )  # fmt: skip
        yield workers
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGINT)  # to those that still run
        for worker in workers:
            worker.wait()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Gives the list of the signals to stop that have come since."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(argv: list[str] | None = None) -> int:
    """`main` as a command: prints what the user can put right as one line, and gives the exit code."""
    try:
        with refusals_told():
            main(parse(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        stopped = str(error).partition(";")[0] or "interrupted"  # without main.py's way to go on
        print(f"sweep.py: {stopped}; the same command goes on", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    return 0


if __name__ == "__main__":
    sys.exit(run())
