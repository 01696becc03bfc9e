"""Runs commands of main.py in processes of their own without importing torch anew for each: a helper of the tests.

Reads a line of JSON from stdin, forks, and answers with the child's process number. The line holds a file, variables
and flags: the child runs the command of these flags, with its output in the file and the variables in its environment.
If the file is a terminal, the child is its foreground process, and Ctrl-C reaches all that it starts. The variable
IN_MEMORY is not for the command: it sets the bytes up to which a folder's images are kept in memory.
A line "wait PID" answers with that child's exit code.
"""

import functools
import json
import os
import signal
import sys

import sklearn.datasets
import torch

import data_loader  # noqa: F401
import images.datasets
import main
import trainer  # noqa: F401
import viz.reports  # noqa: F401

# A suite that was started in the background, or by nohup, would ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)])  # imports a second's worth more of torch
sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
sklearn.datasets.load_digits()
for line in sys.stdin:
    if line.startswith("wait "):
        answer = os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1])
    else:
        log, environment, *flags = json.loads(line)
        answer = os.fork()
        if answer == 0:
            images.datasets.IN_MEMORY = int(environment.pop("IN_MEMORY", images.datasets.IN_MEMORY))
            os.environ.update(environment)
            if log.startswith("/dev/"):
                os.setsid()  # the next terminal that is opened is this process's
            output = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            for stream in (0, 1, 2) if os.isatty(output) else (1, 2):
                os.dup2(output, stream)
            sys.stdout.reconfigure(line_buffering=True)  # the tests wait for what it prints
            os._exit(main.run(flags))
    print(answer, flush=True)
