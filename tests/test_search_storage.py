"""The trials that workers share: opened by many at once, torn, on a full disk."""

import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from search.options import parse
from search.storage import Journal, open_study
from training.cli import InputError

STD = ["--search", "std=log:0.02:0.3"]


def test_many_may_open_a_new_storage_at_once(flags, storage):
    search = parse([*flags, f"--storage={storage}", *STD])
    together = threading.Barrier(4)

    def open_together(_) -> int:
        together.wait()
        return open_study(search)._study_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_together, range(4)))) == 1


@pytest.mark.parametrize(
    "torn", [b'{"op_code":4,"wor', b'{"op_code":4,"wor{"op_code":4}\n'], ids=["at the end", "within"]
)
def test_a_journal_torn_by_a_full_disk_loses_the_torn_line_alone(flags, torn):
    """Within: a version before this has appended to the torn line."""
    search = parse([*flags, "--trials=3", *STD])
    study = open_study(search)
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    journal = search.folder / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    study = open_study(search)
    assert [trial.value for trial in study.trials] == [1.0, 2.0]
    study.tell(study.ask(), 3.0)
    assert [trial.value for trial in open_study(search).trials] == [1.0, 2.0, 3.0]
    assert journal.read_bytes().startswith(whole)


def test_a_change_that_does_not_fit_on_the_disk_leaves_the_journal_as_it_was(flags, tmp_path):
    journal = Journal(str(tmp_path / "journal.log"))
    journal.append_logs([{"op_code": 0}])
    before = journal.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        with pytest.raises(InputError, match=r"cannot write .*journal.log \(File too large\)"):
            journal.append_logs([{"op_code": 1, "long": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.path.read_bytes() == before and not list(tmp_path.glob("*.lock"))
    journal.append_logs([{"op_code": 2}])
    assert list(journal.read_logs(0)) == [{"op_code": 0}, {"op_code": 2}]
