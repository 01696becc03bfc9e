"""The README says what is true."""

import dataclasses
import re
from pathlib import Path

from config import Config
from plot_glimpses import PlotConfig
from sweep_config import SweepConfig
from tables import results_table, with_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_what_the_recorded_runs_say():
    assert len(list((ROOT / "results").glob("*.json"))) > 0
    assert with_table(README, results_table(ROOT / "results")) == README


def test_files_and_flags_it_names_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    flags = set(re.findall(r"--([a-zA-Z_]+)=", README))
    known = {field.name for kind in (Config, PlotConfig, SweepConfig) for field in dataclasses.fields(kind)}
    assert flags <= known


def test_the_tests_it_names_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert len(named) > 10
    assert all(f"def {name}(" in tests for name in named)
