"""Finished runs that several tests look at, each trained once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import FEW, extractor_job, pure_job

from purecc.job import Job
from purecc.settings import PureSettings

torch.set_num_threads(
    1
)  # the tensors are small: more threads wait for one another, and spin where the machine has other work


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """A finished run with the default settings: "extractor", or a method."""
    jobs: dict[str, Job] = {}

    def get(name: str) -> Job:
        if name not in jobs:
            root = tmp_path_factory.mktemp("finished")
            jobs[name] = extractor_job(root) if name == "extractor" else pure_job(root, PureSettings(name, **FEW))
            list(jobs[name])
        return jobs[name]

    return get
