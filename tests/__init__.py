"""Tests of everything; several processes may run them side by side (`make test`), each on its share of the cores.

Before torch is imported, because its threads are counted then: threads of two processes that outnumber the cores wait for
each other far longer than they compute. What a test starts inherits the share.
"""

import os

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    _worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, _cores[_worker % len(_cores) :: WORKERS] or _cores)
