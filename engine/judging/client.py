"""The controller's side of the judge: starts its process on first use, imports neither torch nor Triton."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import EngineError, MissingError, WorkerError
from engine.records import Operator, Verdict
from engine.settings import Settings
from engine.worker import Worker, scrubbed_environment

JUDGE_VERSION = "1"
"""Part of every step key: raise it when a verdict may change for the same candidate."""

START_S = 180.0


class JudgeClient:
    """Asks one judge process per lane. `kind`: `cpu` (interpreter) or `cuda`; `root`: the folder that holds the engine
    package; `scratch`: a writable folder; `environment`: for all processes, e.g. CUDA_VISIBLE_DEVICES."""

    def __init__(
        self, settings: Settings, kind: str, root: Path, scratch: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._settings, self._kind, self._root = settings, kind, root
        self._scratch = scratch
        self._environment = dict(environment or {})
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
        own = {**dict.fromkeys(("HOME", "TMPDIR"), str(folder)), **self._environment}
        environment = scrubbed_environment({**own, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
        worker = Worker(
            [sys.executable, "-m", "engine.judging.service"],
            environment=environment,
            cwd=str(folder),
            log=str(folder / "judge.log"),
        )
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
        }

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers, self._free = self._free, []
        for worker in workers:
            worker.close()


def _fault(fault: Json, log: str) -> EngineError:
    kind = MissingError if fault["kind"] == MissingError.__name__ else WorkerError
    return kind(f"judge: {fault['message']}", hint=fault["hint"] or f"its log: {log}")
