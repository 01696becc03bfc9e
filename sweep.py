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
    workers: list[subprocess.Popen] = []
    shown: set[int] = set()
    passed_on = 0
    with _signals() as received, tqdm(total=sweep.total, unit="trial", disable=None) as bar:
        if len(finished(study)) < sweep.total:
            workers = [start_worker(sweep, log) for _ in range(sweep.flags.workers)]
        at_work = True
        while at_work:
            at_work = any(worker.poll() is None for worker in workers)  # asked before the trials: none is missed
            trials = finished(study)
            errors = [trial.value for trial in trials if trial.state.name == "COMPLETE"]
            best = f"best {min(errors):.2f} %" if errors else "no trial complete"
            for trial in trials:
                if trial.number not in shown:
                    shown.add(trial.number)
                    bar.write(line_of(trial))
                    bar.update()
            bar.set_postfix_str(best)
            for _ in received[passed_on:]:
                passed_on += 1
                for worker in workers:
                    worker.send_signal(signal.SIGINT if passed_on == 1 else signal.SIGKILL)
            time.sleep(0.5 * at_work)
    state = f"{len(shown)} of {sweep.total} trials finished, {best}"
    if received:
        interrupt = KeyboardInterrupt(
            f"stopped by {signal.Signals(received[0]).name}, {state}; the same command goes on"
        )
        interrupt.exit_code = 128 + received[0]
        raise interrupt
    if len(shown) < sweep.total:
        last = log.read_text().splitlines()[-1] if log.exists() and log.stat().st_size else "nothing"
        raise InputError(f"all workers have stopped, {state}; {log} ends with: {last}")


def start_worker(sweep: Sweep, log: Path) -> subprocess.Popen:
    """This command again as one worker, in a process group of its own: a terminal's Ctrl-C reaches it through us."""
    threads = max(1, (os.cpu_count() or 1) // sweep.flags.workers)
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **os.environ}
    with open(log, "a") as output:
        return subprocess.Popen(
            [sys.executable, __file__, *sweep.argv, "--workers=0"],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Gives the list of the signals to stop that came meanwhile."""
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
        main(parse(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"sweep.py: {error or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    return 0


if __name__ == "__main__":
    sys.exit(run())
