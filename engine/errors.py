"""The errors a user can meet, each with its exit code and a remedy.

EngineError                1   the engine itself failed
├── ConfigError            2   faults in the configuration, all of them at once
├── MissingError           2   a key, GPU, tool or file that this run needs is absent
├── WorkerError            1   a worker process died, hung or answered nonsense
├── ProfilerError          1   a profiler could not answer; stages go on without its metrics
├── StoreError             1   the database or the memo could not be read or written
│   └── StoreFull          1   nothing more can be written; the run stops before it pays for what it could not keep
└── LlmError               1   a model call failed for good
    ├── LlmRetryable       1   a later attempt may succeed; carries Retry-After
    ├── LlmRefused         2   the provider rejects the key, the model or the request
    ├── BudgetSpent        0   a declared budget forbids the next call
    └── AwaitingReply     75   the reply is not there yet: mailbox or batch

A candidate's failure is data (`records.Verdict`), never one of these.
"""

from __future__ import annotations

from dataclasses import dataclass


class EngineError(Exception):
    """Base of all errors that are printed without a traceback. `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in a configuration: dotted path, what is wrong, the file it came from ('' when unknown)."""

    path: str
    problem: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f" ({self.file})" if self.file else "")


class ConfigError(EngineError):
    """Every fault found, together; nothing has been spent when it is raised."""

    exit_code = 2

    def __init__(self, faults: list[Fault], *, hint: str = "") -> None:
        lines = "\n".join(f"  {fault}" for fault in faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{count} in the configuration:\n{lines}", hint=hint)
        self.faults = tuple(faults)


def in_a_line(error: BaseException) -> str:
    """What an error says in a table or a list: its first line, of a configuration the first fault. '' where nothing."""
    said = str(error)
    if isinstance(error, ConfigError) and error.faults:
        others = len(error.faults) - 1
        said = f"{error.faults[0]}".partition("\n")[0] + (f", and {others} more" if others else "")
    return said.partition("\n")[0]


class MissingError(EngineError):
    """Something this run needs is not there; `python -m engine.doctor` explains."""

    exit_code = 2


class WorkerError(EngineError):
    """A process of ours (not a candidate's) died, hung or broke its protocol."""


class ProfilerError(EngineError):
    """A profiler is absent, forbidden or unreadable."""


class StoreError(EngineError):
    """The memo, journal or database cannot be used."""


class StoreFull(StoreError):
    """A file of the run or the memo could not be written: the disk is full, the quota used up, the folder read-only."""


class LlmError(EngineError):
    """A model call failed and will not be tried again. `kind` is one word for the journal."""

    def __init__(self, message: str, *, kind: str = "llm", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class LlmRetryable(LlmError):
    """Rate limit, time-out, server error, lost connection; `retry_after_s` is what the server asked for."""

    def __init__(self, message: str, *, kind: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, kind=kind)
        self.retry_after_s = retry_after_s


class LlmRefused(LlmError):
    """Authentication, unknown model, invalid request, content policy: trying again cannot help."""

    exit_code = 2


class BudgetSpent(LlmError):
    """The next call would exceed a declared budget; `limit` names it, `level` is run, task or stage."""

    exit_code = 0

    def __init__(self, message: str, *, limit: str, level: str = "run") -> None:
        super().__init__(message, kind="budget")
        self.limit, self.level = limit, level


class AwaitingReply(LlmError):
    """The request was written out; its reply has not arrived. The same command continues."""

    exit_code = 75

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message, kind="awaiting")
        self.where = where
