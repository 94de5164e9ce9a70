"""Hunts with another host library or scheduler, as the hunts with sanitizers run them; and where those build."""

import os
from pathlib import Path

import pytest

from kvit._native import host


@pytest.fixture(scope="session", autouse=True)
def _host_as_asked():
    """KVIT_HARDENING_LIBRARY and KVIT_HARDENING_SCHEDULER: set by a hunt for the hunts that it runs."""
    library, scheduler = (os.environ.get(f"KVIT_HARDENING_{name}") for name in ("LIBRARY", "SCHEDULER"))
    if library:
        host.configure(library=library)
    if scheduler:
        host.configure(scheduler=scheduler)


@pytest.fixture(scope="session")
def builds(request, tmp_path_factory):
    """The folder of sanitized builds: --hardening-folder, which is kept, or a temporary one."""
    folder = request.config.option.hardening_folder
    return tmp_path_factory.mktemp("builds") if folder is None else Path(folder).resolve()


@pytest.fixture(scope="session")
def jobs():
    """Compilers side by side: its share of the cores, if pytest-xdist runs several workers."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, len(os.sched_getaffinity(0)) // workers)
