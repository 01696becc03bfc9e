"""benchmarks/gpu.sh runs to its end on a machine without a GPU, in tiny sizes."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_dry_form_runs_every_part(tmp_path):
    parts = {"OUT": str(tmp_path), "CARRY": str(tmp_path), "PYTHON": sys.executable, "JOBS": "1",
             "PARTS": "step mnist canvases long"}  # fmt: skip
    call = [ROOT / "benchmarks" / "gpu.sh", "--dry"]
    done = subprocess.run(call, env={**os.environ, **parts}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "=== 0 parts failed" in done.stdout
    assert json.loads((tmp_path / "throughput.json").read_text())["times"]
    assert json.loads((tmp_path / "time_to_accuracy.json").read_text())["runs"]
    for name in ("epoch_digits", "long_1", "long_2"):
        assert (tmp_path / "ckpt" / name / "last.pt").exists()
    assert (tmp_path / "ckpt" / "long_2" / "test.json").exists()


@pytest.mark.slow
def test_a_part_that_fails_is_counted_and_costs_no_other(tmp_path):
    parts = {"OUT": str(tmp_path), "CARRY": str(tmp_path), "PYTHON": "/bin/false", "PARTS": "step mnist"}
    call = [ROOT / "benchmarks" / "gpu.sh", "--dry"]
    done = subprocess.run(call, env={**os.environ, **parts}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stdout.count("FAILED") == 2
