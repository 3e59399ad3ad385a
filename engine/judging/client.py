"""The controller's side of the judge: starts its process on first use, imports neither torch nor Triton."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.canonical import Json
from engine.codec import decode, encode
from engine.confirmation import Confirmation
from engine.errors import EngineError, MissingError, ProfilerError, WorkerError
from engine.records import Judged, Measurement, Operator, Precision, Task, TaskLint, Verdict
from engine.settings import JudgeSettings, ProfilerSettings, Settings
from engine.worker import Worker, scrubbed_environment
from profilers.cupti import Counted, NoCounters

JUDGE_VERSION = "5"
"""Part of every step key: raise it when a verdict may change for the same candidate."""

START_S = 180.0
REFUSED_CHARS = 600
SANITIZERS = 3
"""Tools of compute-sanitizer that one confirmation runs."""

LINT_S = 120.0
"""For the lint of one task on the CPU, which takes about a second."""
WORK_SHARE = 0.8
"""Of a lint's time after which it answers with what it has; at the end of all its time it is killed."""


class NotCounted(ProfilerError):
    """This call cannot be counted so: a candidate has no plan for it, or fails."""


class JudgeClient:
    """Asks one judge process per lane. `kind`: `cpu` (interpreter) or `cuda`; `root`: the folder that holds the engine
    package; `scratch`: a writable folder; `environment`: for all processes, e.g. CUDA_VISIBLE_DEVICES."""

    def __init__(
        self,
        settings: Settings,
        kind: str,
        root: Path,
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        gpu_uuid: str = "",
    ) -> None:
        self._settings, self._kind, self._root = settings, kind, root
        self._scratch = scratch
        self._environment = dict(environment or {})
        self._gpu_uuid = gpu_uuid
        self._free: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def judge(self, operator: Operator, source: str) -> Verdict:
        """The verdict on one candidate. Calls from several threads are judged at once, each in a process of its own.
        WorkerError when the judge itself broke; a dead judge is replaced on the next call."""
        worker = self._take()
        limits = self._settings.judge.limits
        message = {"op": "judge", "task": encode(operator.task), "source": source}
        answer = worker.ask(message, START_S + limits.trace_s + 2 * limits.run_s)
        self._give(worker)
        if "fault" in answer:
            raise _fault(answer["fault"], worker.log)
        return decode(Verdict, answer["verdict"], "verdict")

    def measure(
        self, task: Task, precision: Precision, source: str | None, incumbent: str | None, floor_us: float | None
    ) -> Measurement:
        """Paired times, on a GPU. The process that judged the candidate has its plan still; another traces it again."""
        worker = self._take()
        request = {
            "task": encode(task),
            "precision": precision.value,
            "source": source,
            "incumbent": incumbent,
            "floor_us": floor_us,
        }
        limits = self._settings.judge.limits
        answer = worker.ask({"op": "measure", "request": request}, START_S + 4 * (limits.trace_s + limits.run_s))
        self._give(worker)
        if "fault" in answer:
            raise _fault(answer["fault"], worker.log)
        return decode(Measurement, answer["measurement"], "measurement")

    def confirm(self, task: Task, precision: Precision, winner: Judged, floor_us: float | None) -> Confirmation:
        """The last look at a kernel: verdict, drop test, sanitizers and times, as far as the back-end has them."""
        worker = self._take()
        request = {
            "task": encode(task),
            "precision": precision.value,
            "source": winner.source,
            "trace": None if winner.trace is None else encode(winner.trace),
            "floor_us": floor_us,
        }
        limits, asked = self._settings.judge.limits, self._settings.judge.confirm
        checks_s = limits.trace_s + 2 * limits.run_s + SANITIZERS * asked.sanitizer_s
        times_s = asked.repeats * (START_S + 4 * (limits.trace_s + limits.run_s))
        answer = worker.ask({"op": "confirm", "request": request}, START_S + checks_s + times_s)
        self._give(worker)
        if "fault" in answer:
            raise _fault(answer["fault"], worker.log)
        return decode(Confirmation, answer["confirmation"], "confirmation")

    def count(
        self,
        task: Task,
        precision: Precision,
        source: str | None,
        counters: Sequence[str],
        limit: int,
        ncu: ProfilerSettings | None = None,
    ) -> Counted:
        """Counters of each launch of one call, of `limit` launches at most, in a process that is warm already, or by
        `ncu`. NotCounted where this call cannot be, ProfilerError where the tool gives nothing."""
        worker = self._take()
        request = {"task": encode(task), "precision": precision.value, "source": source}
        request |= {"counters": list(counters), "limit": limit}
        request["ncu"] = None if ncu is None else {"path": ncu.path, "timeout_s": ncu.timeout_s}
        limits = self._settings.judge.limits
        answer = worker.ask({"op": "count", "request": request}, START_S + 2 * (limits.trace_s + limits.run_s))
        self._give(worker)
        if "fault" in answer:
            raise _fault(answer["fault"], worker.log)
        if "refused" in answer:
            raise NotCounted(str(answer["refused"])[:REFUSED_CHARS])
        if "unavailable" in answer:
            kind = NoCounters if ncu is None else ProfilerError
            raise kind(str(answer["unavailable"])[:REFUSED_CHARS])
        return decode(Counted, answer["counted"], "counters")

    def cubins(self, task: Task, precision: Precision, source: str) -> tuple[str, ...]:
        """Files of a judged candidate's compiled kernels at full size. NotCounted where it has no plan."""
        worker = self._take()
        request = {"task": encode(task), "precision": precision.value, "source": source, "counters": [], "limit": 1}
        limits = self._settings.judge.limits
        answer = worker.ask({"op": "cubins", "request": {**request, "ncu": None}}, START_S + limits.trace_s)
        self._give(worker)
        if "fault" in answer:
            raise _fault(answer["fault"], worker.log)
        if "refused" in answer:
            raise NotCounted(str(answer["refused"])[:REFUSED_CHARS])
        return tuple(answer["paths"])

    def _take(self) -> Worker:
        with self._lock:
            while self._free:
                worker = self._free.pop()
                if worker.alive:
                    return worker
                worker.close()
        return self._start()

    def _give(self, worker: Worker) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(worker)
                return
        worker.close()

    def _start(self) -> Worker:
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="judge-", dir=self._scratch)).resolve()
        worker = _service(folder, self._environment)
        answer = worker.ask({"op": "open", "opening": self._opening(folder)}, START_S)
        if "fault" in answer:
            worker.close()
            raise _fault(answer["fault"], worker.log)
        return worker

    def _opening(self, folder: Path) -> Json:
        backend = self._settings.backends[self._settings.backend]
        return {
            "settings": encode(self._settings.judge),
            "device": "cpu" if self._kind == "cpu" else "cuda:0",
            "target": backend.target,
            "compile_kernels": backend.cpu.compile_kernels if backend.cpu is not None else True,
            "scratch": str(folder / "candidates"),
            "environment": self._environment,
            "gpu_uuid": self._gpu_uuid,
            "cuda": None if backend.cuda is None else encode(backend.cuda),
            "shared_bytes": int(backend.hardware["shared_bytes"]),
            "compiled": str((self._scratch / "compiled").resolve()),
        }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers, self._free = self._free, []
        for worker in workers:
            worker.close()


class LintClient:
    """Lints tasks on the CPU, one after another, in a process that judges no candidate. `limit_s`: for one task."""

    def __init__(self, settings: JudgeSettings, scratch: Path, limit_s: float = LINT_S) -> None:
        self._settings, self._scratch, self._limit_s = settings, scratch, limit_s
        self._worker: Worker | None = None

    def lint(self, task: Task) -> TaskLint:
        """The lint of one task. Never raises for a task: one that breaks, kills or outlasts the process is not
        examined, which a remark says, and the next gets a new process."""
        limit_s = self._limit_s
        if self._worker is None or not self._worker.alive:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._worker = _service(self._scratch.resolve(), {"OMP_NUM_THREADS": "1"})
            limit_s += START_S
        message = {
            "op": "lint",
            "task": encode(task),
            "settings": encode(self._settings),
            "limit_s": WORK_SHARE * self._limit_s,
        }
        try:
            answer = self._worker.ask(message, limit_s)
        except WorkerError as error:
            return _not_examined(task, str(error))
        if "fault" in answer:
            return _not_examined(task, str(answer["fault"]["message"]))
        return decode(TaskLint, answer["lint"], "lint")

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def _not_examined(task: Task, why: str) -> TaskLint:
    return TaskLint(task.task_id, (), (), (), (f"not examined: {why}",))


def _service(folder: Path, environment: Mapping[str, str]) -> Worker:
    own = {**dict.fromkeys(("HOME", "TMPDIR"), str(folder)), **environment}
    return Worker(
        [sys.executable, "-m", "engine.worker", "engine.judging.service"],
        environment=scrubbed_environment({**own, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}),
        cwd=str(folder),
        log=str(folder / "judge.log"),
    )


def _fault(fault: Json, log: str) -> EngineError:
    kind = MissingError if fault["kind"] == MissingError.__name__ else WorkerError
    return kind(f"judge: {fault['message']}", hint=fault["hint"] or f"its log: {log}")
