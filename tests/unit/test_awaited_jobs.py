"""A sweep through submitit waits for every job and tells what became of each; submitit and its plugin are played."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from hydra.core.utils import JobReturn, JobStatus

from engine.settings import JobEnd
from engine.sweeping import awaited_jobs

ENDED = JobEnd(0, 75, "ff6f558674b091a6", None, "waiting for replies: softmax")


class UncompletedJobError(RuntimeError):
    """As submitit.core.utils has it."""


class FailedJobError(UncompletedJobError):
    """As submitit.core.utils has it."""


class Executor:
    def map_array(self, function, *iterables):
        return [function(*given) for given in zip(*iterables, strict=True)]


class Launcher:
    def launch(self, job_overrides, initial_job_idx):
        jobs = Executor().map_array(lambda job: job, job_overrides)
        return [job.results()[0] for job in jobs]


class Job:
    """Gives `value`, as a job of Hydra that ended well returns it, or raises it; notes that it was cancelled."""

    def __init__(self, value, status=JobStatus.COMPLETED):
        self.value, self.status, self.cancelled = value, status, False
        self.job_id, self.state, self.paths = "7_0", "CANCELLED by 0", SimpleNamespace(stderr="/log.err")

    def results(self):
        if isinstance(self.value, BaseException) and self.status == JobStatus.COMPLETED:
            raise self.value
        return [JobReturn(status=self.status, _return_value=self.value)]

    def cancel(self, check):
        assert not check
        self.cancelled = True


@pytest.fixture(autouse=True)
def played(monkeypatch):
    packages = ("hydra_plugins", "hydra_plugins.hydra_submitit_launcher", "submitit", "submitit.core")
    played = {name: ModuleType(name) for name in packages}
    for name, holds in {
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher": {"BaseSubmititLauncher": Launcher},
        "submitit.core.core": {"Executor": Executor},
        "submitit.core.utils": {"UncompletedJobError": UncompletedJobError, "FailedJobError": FailedJobError},
    }.items():
        played[name] = ModuleType(name)
        vars(played[name]).update(holds)
    for name, module in played.items():
        monkeypatch.setitem(sys.modules, name, module)


def told(folder):
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "lost",
    [
        Job(UncompletedJobError("no output")),
        Job(FailedJobError("exit 1")),
        Job(UncompletedJobError("timed out"), JobStatus.FAILED),
    ],
    ids=["killed", "failed", "out of time"],
)
def test_a_lost_job_is_told_and_the_others_are_awaited(tmp_path, lost):
    with awaited_jobs(tmp_path):
        returned = Launcher().launch([lost, Job(ENDED)], 3)
    assert [one.status for one in returned] == [JobStatus.COMPLETED] * 2
    ends = told(tmp_path)
    assert (ends["3"]["code"], ends["3"]["results"]) == (1, None)
    assert ends["3"]["why"] == "job 7_0 of the cluster gave no result, its state is CANCELLED by 0; log: /log.err"
    assert ends["4"]["why"] == ENDED.why


def test_what_a_job_left_itself_stands(tmp_path):
    tmp_path.joinpath("0").write_text('"its own"')
    with awaited_jobs(tmp_path):
        Launcher().launch([Job(ENDED)], 0)
    assert told(tmp_path) == {"0": "its own"}


def test_a_bug_of_the_engine_is_left_to_hydra(tmp_path):
    with awaited_jobs(tmp_path):
        (returned,) = Launcher().launch([Job(ZeroDivisionError("a bug"), JobStatus.FAILED)], 0)
    assert returned.status == JobStatus.FAILED
    assert told(tmp_path) == {}


def test_an_interrupt_cancels_every_job(tmp_path):
    jobs = [Job(ENDED), Job(KeyboardInterrupt()), Job(ENDED)]
    with awaited_jobs(tmp_path), pytest.raises(KeyboardInterrupt):
        Launcher().launch(jobs, 0)
    assert [job.cancelled for job in jobs] == [True] * 3


def test_nothing_stays_changed(tmp_path):
    launch, map_array = Launcher.launch, Executor.map_array
    with awaited_jobs(tmp_path):
        Launcher().launch([Job(ENDED)], 0)
        assert Launcher.launch is not launch
    assert (Launcher.launch, Executor.map_array) == (launch, map_array)


def test_without_the_plugin_nothing_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher.submitit_launcher", None)
    with awaited_jobs(tmp_path):
        pass
