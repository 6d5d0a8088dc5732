"""How many threads a process takes."""

import pytest

from luthier import runtime


@pytest.mark.parametrize(
    ("asked", "processes", "threads"),
    [("", 1, 8), ("3", 1, 3), ("4,2", 1, 4), ("64", 1, 8), ("0", 1, 1), ("many", 1, 8), ("1", 2, 4)],
)
def test_threads_are_cores_or_fewer_where_asked(asked, processes, threads, monkeypatch):
    """torchrun sets OMP_NUM_THREADS to 1 for each of several processes: there it is not asked."""
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert runtime.num_threads() == threads
