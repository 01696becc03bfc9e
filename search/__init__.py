"""Searches settings by validation error: python -m search.

    __main__            the command: starts the workers, shows their progress
    worker              trains one trial after the other
    storage             the trials that workers share, in a journal file or a database
    report              the table, the plots, and the command of the best trial
    options             its flags and the ranges to search

A trial is a run like any other, in ckpt_dir/STUDY/trial_N/. The test set is never read.
"""
