"""The rows of the tables of results: experiments, and what the paper and others published, or are quoted with.

published = {(row.task, row.glimpses): row.nips for row in ROWS if row.policy == "learned"}
"""

from typing import NamedTuple


class Row(NamedTuple):
    """An experiment, and what others found in it: test errors in %."""

    task: str
    glimpses: int
    policy: str = "learned"
    arxiv: float | None = None  # the paper's first version on arXiv
    nips: float | None = None  # the paper as published at NIPS 2014
    others: str = ""


TORCH, TFRAM, ORIGINAL = "Torch blog", "tfRAM", "the original"
ROWS = (
    Row("mnist", 2, arxiv=6.27, nips=3.79),
    Row("mnist", 3, nips=1.51),
    Row("mnist", 4, arxiv=1.73, nips=1.54),
    Row("mnist", 5, nips=1.34),
    Row("mnist", 6, arxiv=1.29, nips=1.12, others=f"{ORIGINAL} 1.21"),
    Row("mnist", 6, "scan"),
    Row("mnist", 6, "random"),
    Row("mnist", 7, nips=1.07, others=f"{TORCH} 0.85"),
    Row("fashion", 6),
    Row("translated60", 4, arxiv=2.29, nips=1.54, others=f"{TFRAM} 1.54"),
    Row("translated60", 6, arxiv=1.86, nips=1.22, others=f"{TFRAM} 1.08"),
    Row("translated60", 8, arxiv=1.84, nips=1.20, others=f"{TFRAM} 0.94; {TORCH} (7 glimpses) 0.92"),
    Row("translated60", 8, "oracle"),
    Row("cluttered60", 4, arxiv=7.1, nips=4.96, others=f"{TFRAM} 5.15"),
    Row("cluttered60", 6, nips=4.08, others=f"{TFRAM} 3.33"),
    Row("cluttered60", 8, arxiv=5.23, nips=4.04, others=f"{TFRAM} 2.63"),
    Row("cluttered60", 8, "random", nips=14.4),
    Row("cluttered60", 8, "oracle"),
    Row("cluttered100", 4, arxiv=14.95, nips=9.41, others=f"{TFRAM} 14.86"),
    Row("cluttered100", 6, arxiv=11.58, nips=8.31, others=f"{TFRAM} 8.3"),
    Row("cluttered100", 8, arxiv=10.83, others=f"{TFRAM} 5.9"),
)  # fmt: skip
