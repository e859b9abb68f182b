"""A dask cluster of worker processes on this machine."""

import contextlib
import warnings
from collections.abc import Generator

import pytest


@contextlib.contextmanager
def local_cluster(workers: int, *, allowed_failures: int = 3) -> Generator[str]:
    """The scheduler's address; a worker that ends is started again, and an item that ended more of them given up."""
    distributed = pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    settings = {"distributed.scheduler.allowed-failures": allowed_failures}
    with warnings.catch_warnings(), dask.config.set(settings):
        warnings.simplefilter("ignore")  # of dask's own sockets, where workers were killed
        with distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as made:
            yield made.scheduler_address
