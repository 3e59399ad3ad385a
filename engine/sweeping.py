"""What a sweep of many jobs needs of Hydra: jobs that differ in values alone share one composition, and a launcher that
hands jobs to a cluster waits for all of them."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.canonical import canonical
from engine.codec import encode
from engine.command import reader_left
from engine.settings import JobEnd

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@contextlib.contextmanager
def shared_compositions() -> Iterator[None]:
    """Within it Hydra reads the files of conf/ once for all jobs whose overrides choose the same groups, and lays each
    job's values over a copy, by its own functions and in its own order. It composes every job of a sweep twice, 0.3 s
    each time, which is most of what a job without anything to pay for would take. A file that is edited while a sweep
    runs does not reach its later jobs."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    whole = ConfigLoaderImpl._load_configuration_impl
    known: dict[str, bytes] = {}

    def load(
        self: Any,
        config_name: str | None,
        overrides: list[str],
        run_mode: Any,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        values = _values(overrides)
        if values is None:
            return whole(self, config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        given = {value.input_line for value in values}
        groups = [override for override in overrides if override not in given]
        key = repr((config_name, groups, run_mode, str(self.config_search_path), from_shell, validate_sweep_overrides))
        if key not in known:
            base = whole(self, config_name, groups, run_mode, from_shell, validate_sweep_overrides)
            known[key] = pickle.dumps(base)
        config: DictConfig = pickle.loads(known[key])
        return _with_values(config, overrides, values) if values else config

    setattr(ConfigLoaderImpl, "_load_configuration_impl", load)  # noqa: B010 - mypy refuses to assign a method
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, "_load_configuration_impl", whole)  # noqa: B010


def _values(overrides: Sequence[str]) -> list[Override] | None:
    """The overrides that change one value each, below a key that no other override sets as a whole: no groups, nothing
    of Hydra's own, no sweeps. None where that cannot be told."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return None
    if any(override.is_sweep_override() for override in parsed):
        return None
    found = [override for override in parsed if _is_value(override)]
    lines = {override.input_line for override in found}
    # A mapping that is given as a whole is laid over before or after its own values, as they were written.
    wholes = {
        override.key_or_group for override in parsed if override.input_line not in lines and _is_mapping(override)
    }
    return None if any(override.key_or_group.split(".")[0] in wholes for override in found) else found


def _is_value(override: Override) -> bool:
    # Groups are named with slashes, never with dots.
    key = override.key_or_group
    return "." in key and "/" not in key and override.package is None and not key.startswith("hydra.")


def _is_mapping(override: Override) -> bool:
    return isinstance(override.value(), dict) or override.is_delete() or override.is_add() or override.is_force_add()


def _with_values(config: DictConfig, overrides: Sequence[str], values: Sequence[Override]) -> DictConfig:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
    from hydra.core.override_parser.overrides_parser import OverridesParser

    ConfigLoaderImpl._apply_overrides_to_config(list(values), config)
    own = [override for override in OverridesParser.create().parse_overrides(list(overrides))]
    task = [override for override in own if not override.is_hydra_override()]
    config.hydra.overrides.task = [override.input_line for override in task]
    declared = config.hydra.job.config.override_dirname
    config.hydra.job.override_dirname = get_overrides_dirname(
        overrides=task, kv_sep=declared.kv_sep, item_sep=declared.item_sep, exclude_keys=declared.exclude_keys
    )
    return config


@contextlib.contextmanager
def awaited_jobs(folder: Path) -> Iterator[None]:
    """Within it a sweep through submitit waits for each of its jobs, and of one that the cluster cancelled, killed or
    lost there is an end in `folder` as of others; Ctrl-C cancels those that have not ended. The plugin raises at the
    first lost job and forgets the others, and leaves all running after Ctrl-C, where they would hold their runs."""
    try:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
    except ImportError:
        yield
        return
    launch = BaseSubmititLauncher.launch

    def launch_and_await(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        from submitit.core.core import Executor

        map_array = Executor.map_array
        jobs: list[_Awaited] = []

        def map_awaited(self: Any, function: Any, *iterables: Any) -> list[_Awaited]:
            found = enumerate(map_array(self, function, *iterables), initial_job_idx)
            jobs.extend(_Awaited(job, number, folder) for number, job in found)
            return jobs

        Executor.map_array = map_awaited
        try:
            return launch(self, job_overrides, initial_job_idx)
        except KeyboardInterrupt:
            for awaited in jobs:
                awaited.job.cancel(check=False)
            raise
        finally:
            Executor.map_array = map_array

    BaseSubmititLauncher.launch = launch_and_await
    try:
        yield
    finally:
        BaseSubmititLauncher.launch = launch


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A job of submitit, number `number` of the sweep, whose loss is told in `folder` and not raised."""

    job: Any
    number: int
    folder: Path

    def results(self) -> list[Any]:
        from hydra.core.utils import JobReturn, JobStatus
        from submitit.core.utils import FailedJobError, UncompletedJobError

        lost = (FailedJobError, UncompletedJobError)
        try:
            (returned,) = self.job.results()
        except lost:
            returned = JobReturn(status=JobStatus.FAILED)
        value = returned._return_value
        if returned.status == JobStatus.FAILED and (value is None or isinstance(value, lost)):
            state, log = self.job.state, self.job.paths.stderr
            why = f"job {self.job.job_id} of the cluster gave no result, its state is {state}; log: {log}"
            self._tell(JobEnd(self.number, 1, None, None, why))
            return [JobReturn(status=JobStatus.COMPLETED)]
        # On another machine it could not leave its end here itself.
        if isinstance(value, JobEnd) and not self.folder.joinpath(str(self.number)).exists():
            self._tell(value)
        return [returned]

    def _tell(self, ended: JobEnd) -> None:
        self.folder.joinpath(str(self.number)).write_text(canonical(encode(ended)), encoding="utf-8")


def close_sweep(ended: Sequence[JobEnd]) -> None:
    """Take the journals of a sweep's jobs into the database, and say which jobs are not done."""
    folders = dict.fromkeys(job.results for job in ended if job.results is not None)
    if folders:
        from engine.app import take_in

        for results in folders:
            take_in(Path(results))
    lost = [job for job in ended if job.code]
    if len(ended) > 1 and lost:
        told = [f"  job {job.job}: exit {job.code}, {job.why}\n" for job in lost]
        head = f"{len(lost)} of {len(ended)} jobs are not done; the same command continues\n"
        reader_left(sys.stderr, f"{head}{''.join(told)}")
