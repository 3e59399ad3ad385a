"""The trusted compiler: TTIR text to machine code, addressed by content, on all cores, without a GPU.

The text comes from a tracer that the candidate owns, and MLIR's parser and LLVM are not made for hostile input: each
kernel is lowered in a confined child of its own (`child_compile`). What comes back is decoded and checked here; a crash
or time-out of the child is a `CompileProblem` of that kernel and nothing else.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from engine.canonical import Json, digest
from engine.codec import DecodeError, Range, decode, encode
from engine.errors import WorkerError
from engine.files import write_whole
from engine.judging import sandbox
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.plan import Kernel

FORM = 1
"""Version of what a key addresses; raised when a lowering or `CompiledKernel` changes."""

MAX_TTIR_CHARS = 4 << 20
PRINTED_BYTES = 1 << 16
OUT_OF_RESOURCES = ("uses too much", "Insufficient registers", "register target of", "exceeds specified max reg")
"""The assembler's words for a kernel that does not fit."""
POINTER = "pointer"
ABI_BYTES: Mapping[str, int] = {
    POINTER: 8,
    "i1": 1,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
}
"""Kinds of kernel parameters and their bytes; each is aligned to its size."""

_POINTEE = re.compile(r"\*[a-zA-Z]\w*")
_PIECE = re.compile(r'"(?:[^"\\]|\\[\s\S])*+"?|(?m:^#loc\d*[ \t]*=[ \t]*loc\()|(?<![\w.@%#!$])loc\(|[()]')
"""Linear on any text: this runs in the judge's own process."""

_Count = Annotated[int, Range(0, 1 << 40)]
_Positive = Annotated[int, Range(1, 1 << 40)]


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What one block may use; the defaults are sm_90's. `registers`: 32-bit ones of a multiprocessor."""

    shared_bytes: int = 232448
    threads: int = 1024
    registers: int = 65536
    cluster: int = 16
    """Blocks of one cluster; above 8 the function needs NON_PORTABLE_CLUSTER_SIZE_ALLOWED."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a launch needs beside the machine code, as `child_compile` answers it. Scratch is per block, so a launch
    asks for grid x `num_ctas` x size bytes; `parameter_bytes` are the entry's in order, scratch pointers included."""

    symbol: str
    signature: tuple[str, ...]
    parameter_bytes: tuple[_Positive, ...]
    num_warps: _Positive
    num_ctas: _Positive
    cluster: tuple[_Positive, _Positive, _Positive]
    shared_bytes: _Count
    global_scratch_bytes: _Count
    global_scratch_align: _Positive
    profile_scratch_bytes: _Count
    profile_scratch_align: _Positive
    cooperative: bool
    registers: _Count | None
    spill_bytes: _Count | None


@dataclass(frozen=True, slots=True)
class CompiledKernel(Lowered):
    """Machine code and how it is launched: grid x `cluster` blocks of `threads`, `shared_bytes` of dynamic shared
    memory, and as parameters those of `parameters`, in order, then `scratch_pointers` device pointers: global scratch,
    then, where there are two, profile scratch; null where their size is 0.

    `registers` and `spill_bytes` (stack and local memory) are per thread, None where cuobjdump is absent."""

    key: str
    cubin: bytes

    @property
    def parameters(self) -> tuple[str, ...]:
        """ABI kind of each argument of the plan's launch: `pointer` or a type of `ABI_BYTES`."""
        return tuple(map(abi_kind, self.signature))

    @property
    def scratch_pointers(self) -> int:
        """1 before Triton 3.5, 2 since."""
        return len(self.parameter_bytes) - len(self.signature)

    @property
    def threads(self) -> int:
        """Of one block; `num_warps` counts the warps that specialisation added."""
        return 32 * self.num_warps


@dataclass(frozen=True, slots=True)
class CompileProblem:
    """Why a kernel cannot be launched. `resources`: it does not fit on the device."""

    kernel: str
    text: str
    resources: bool = False


@dataclass(frozen=True, slots=True)
class Confines:
    """Of one compiling process. `memory_bytes`: address space; `required`: all layers of the sandbox must hold."""

    memory_bytes: int
    processes: int
    file_bytes: int
    required: bool


class Malformed(Exception):
    """The child's answer or a cache entry is not what a compilation of this kernel yields."""


def abi_kind(written: str) -> str:
    """`pointer` for `*f32` and its like, else the scalar type itself; Malformed for all else."""
    if _POINTEE.fullmatch(written) and not written.startswith("*tensor"):
        return POINTER
    if written in ABI_BYTES and written != POINTER:
        return written
    raise Malformed(f"parameter of type {written!r}: expected a pointer or one of {', '.join(ABI_BYTES)}")


def without_locations(ttir: str) -> str:
    """TTIR without its source locations: kernels that differ by them alone are the same kernel, and their paths are
    those of a folder that changes with each trace. String literals are left as they are."""
    kept: list[str] = []
    start = depth = 0
    for piece in _PIECE.finditer(ttir):
        text = piece.group()
        if depth == 0 and text.endswith("loc("):
            kept.append(ttir[start : piece.start()].rstrip(" \t"))
            depth = 1
        elif depth and text.endswith("("):
            depth += 1
        elif depth and text == ")":
            depth -= 1
            start = piece.end()
    if depth == 0:
        kept.append(ttir[start:])
    # A lone surrogate, which JSON can carry and UTF-8 cannot, becomes a question mark.
    plain = "".join(kept).encode(errors="replace").decode()
    lines = (line.rstrip() for line in plain.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def options_of(kernel: Kernel) -> Json:
    """The options that Triton's back-end lowers it with."""
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "num_ctas": kernel.num_ctas,
        "enable_fp_fusion": kernel.enable_fp_fusion,
        "launch_cooperative_grid": kernel.launch_cooperative_grid,
    }
    return options if kernel.maxnreg is None else {**options, "maxnreg": kernel.maxnreg}


def kernel_key(kernel: Kernel, target: str) -> str:
    """sha256 over the TTIR without locations, options, target and compiler; `target` e.g. sm_90."""
    return digest(
        {
            "form": FORM,
            "ttir": without_locations(kernel.ttir),
            "options": options_of(kernel),
            "target": target,
            "compiler": _compiler(),
        }
    )


@functools.lru_cache(maxsize=1)
def _compiler() -> Json:
    import triton

    return {"triton": triton.__version__, "ptxas": os.environ.get("TRITON_PTXAS_PATH")}


class CompileService:
    """Compiles through `server`'s children of kind `compile`, at most `workers` at once, and keeps what it compiled
    in `folder`, which other processes may use at the same time. Safe to use from several threads.

    Problems are not kept: a time-out may be the machine's."""

    def __init__(
        self, server: ForkServerClient, folder: Path, scratch: Path, confines: Confines, workers: int | None = None
    ) -> None:
        self.server, self.folder, self.scratch, self.confines = server, folder, scratch, confines
        self.started = 0
        """Children started so far."""
        self._pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="compile")
        self._lock = threading.Lock()
        self._running: dict[str, Future[CompiledKernel | CompileProblem]] = {}
        self._wanted: Counter[str] = Counter()
        """By how many each is waited for."""

    def begin(
        self, kernels: Sequence[Kernel], target: str, limits: DeviceLimits, timeout_s: float
    ) -> dict[str, Future[CompiledKernel | CompileProblem]]:
        """Start on each kernel, by `kernel_key`; the caller passes them to `outcomes` or `abandon` afterwards.
        `timeout_s`: wall-clock seconds of one."""
        begun: dict[str, Future[CompiledKernel | CompileProblem]] = {}
        for kernel in kernels:
            key = kernel_key(kernel, target)
            if key not in begun:
                known = _option_problem(kernel, limits) or self._read(key)
                begun[key] = self._submit(key, kernel, target, timeout_s) if known is None else _done(known)
        return begun

    def compile(
        self, kernels: Sequence[Kernel], target: str, limits: DeviceLimits, timeout_s: float
    ) -> Mapping[str, CompiledKernel | CompileProblem]:
        """Each kernel's machine code or problem, by `kernel_key`.

        Raises WorkerError or MissingError when the compiler itself cannot be started."""
        return self.outcomes(kernels, self.begin(kernels, target, limits, timeout_s), target, limits)

    def outcomes(
        self,
        kernels: Sequence[Kernel],
        begun: Mapping[str, Future[CompiledKernel | CompileProblem]],
        target: str,
        limits: DeviceLimits,
    ) -> Mapping[str, CompiledKernel | CompileProblem]:
        """What became of kernels that were begun; errors as of `compile`."""
        names = {kernel_key(kernel, target): kernel.name for kernel in kernels}
        return {key: _fitting(name, begun[key].result(), limits) for key, name in names.items()}

    def abandon(self, begun: Mapping[str, Future[CompiledKernel | CompileProblem]]) -> None:
        """Nobody waits for these any more: what no other caller wants and has not been started never is."""
        with self._lock:
            for key, future in begun.items():
                if self._running.get(key) is future:
                    self._wanted[key] -= 1
                    if not self._wanted[key] and future.cancel():
                        del self._running[key]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, key: str, kernel: Kernel, target: str, timeout_s: float
    ) -> Future[CompiledKernel | CompileProblem]:
        with self._lock:
            self._wanted[key] += 1
            if key not in self._running:
                self._running[key] = self._pool.submit(self._build, key, kernel, target, timeout_s)
            return self._running[key]

    def _build(self, key: str, kernel: Kernel, target: str, timeout_s: float) -> CompiledKernel | CompileProblem:
        try:
            outcome = self._lower(key, kernel, target, timeout_s)
            if isinstance(outcome, CompiledKernel):
                write_whole(self.entry(key), json.dumps(_to_entry(outcome)))
            return outcome
        finally:
            with self._lock:
                self._running.pop(key, None)
                self._wanted.pop(key, None)

    def _lower(self, key: str, kernel: Kernel, target: str, timeout_s: float) -> CompiledKernel | CompileProblem:
        message = {
            "op": "compile",
            "ttir": without_locations(kernel.ttir),
            "target": target,
            "options": options_of(kernel),
        }
        confinement = sandbox.Confinement(
            scratch=new_scratch(self.scratch),
            cpu_s=math.ceil(timeout_s) + 1,
            memory_bytes=self.confines.memory_bytes,
            processes=self.confines.processes,
            file_bytes=self.confines.file_bytes,
            gpu=False,
            required=self.confines.required,
        )
        with Child(self.server, "compile", confinement) as child:
            self._start(child)
            try:
                answer = child.ask(message, timeout_s)
            except ChildTimeout:
                return CompileProblem(kernel.name, f"no machine code within {timeout_s:g} s; the compiler was stopped")
            except ChildEnded as ended:
                text = f"the compiler ended with status {ended.status}: {_errors(child.output(PRINTED_BYTES))}"
                return CompileProblem(kernel.name, text)
            printed = child.output(PRINTED_BYTES)
        if "refused" in answer:
            return CompileProblem(kernel.name, f"refused: {str(answer['refused'])[:1000]}")
        try:
            if "error" in answer:
                return _failed(kernel.name, answer["error"], printed, str(child.scratch))
            return _checked(key, answer)
        except Malformed as malformed:
            return CompileProblem(kernel.name, f"it cannot be launched: {str(malformed)[:1000]}")

    def _start(self, child: Child) -> None:
        """Before it has read anything of the candidate's, a failure is ours."""
        with self._lock:
            self.started += 1
        try:
            child.start()
        except (ChildEnded, ChildTimeout) as error:
            hint = f"{child.output()[-400:]}\npython -m engine.doctor names the layers"
            raise WorkerError(f"the compiler did not start: {error}", hint=hint) from error

    def entry(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, key: str) -> CompiledKernel | None:
        """The kept kernel; None without one, and for an entry that is damaged or another key's."""
        try:
            entry = json.loads(self.entry(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        try:
            if entry["digest"] != digest([entry["key"], entry["cubin"], entry["facts"]]) or entry["key"] != key:
                return None
            return _checked(key, entry)
        except (KeyError, TypeError, Malformed):
            return None


def _to_entry(kernel: CompiledKernel) -> Json:
    cubin = base64.b64encode(kernel.cubin).decode()
    facts = {field.name: encode(getattr(kernel, field.name)) for field in fields(Lowered)}
    return {"key": kernel.key, "cubin": cubin, "facts": facts, "digest": digest([kernel.key, cubin, facts])}


def _checked(key: str, answer: Mapping[str, Json]) -> CompiledKernel:
    """The kernel in an answer or entry; Malformed unless the entry's parameters are the signature's and one or two
    scratch pointers: the executor packs them blindly."""
    try:
        cubin = base64.b64decode(answer["cubin"], validate=True)
        lowered = decode(Lowered, answer["facts"], "facts of a compiled kernel")
    except (KeyError, TypeError, ValueError, DecodeError) as error:
        raise Malformed(str(error)) from error
    if not cubin.startswith(b"\x7fELF") or not re.fullmatch(r"[A-Za-z_]\w*", lowered.symbol, re.ASCII):
        raise Malformed(f"expected an ELF file and a C name, found {cubin[:4]!r} and {lowered.symbol!r}")
    declared = [ABI_BYTES[abi_kind(written)] for written in lowered.signature]
    scratch = list(lowered.parameter_bytes[len(declared) :])
    if list(lowered.parameter_bytes[: len(declared)]) != declared or scratch not in ([8], [8, 8]):
        found = f"{list(lowered.parameter_bytes)} bytes for ({', '.join(lowered.signature)})"
        raise Malformed(f"expected parameters of {declared} bytes and one or two pointers, found {found}")
    if math.prod(lowered.cluster) != lowered.num_ctas:
        raise Malformed(f"a cluster of {lowered.cluster} is not num_ctas={lowered.num_ctas} blocks")
    return CompiledKernel(
        **{field.name: getattr(lowered, field.name) for field in fields(Lowered)}, key=key, cubin=cubin
    )


def _failed(name: str, error: Json, printed: str, folder: str) -> CompileProblem:
    """MLIR prints its diagnostics, the assembler's are in the exception. The child's folder is left out: one problem
    has one text."""
    try:
        kind, said = str(error["type"]), str(error["message"]).partition("Repro command:")[0]
    except (KeyError, TypeError) as malformed:
        raise Malformed(f"an error of another form: {malformed!r}") from malformed
    text = f"{kind}: {said.strip()}"
    if kind == "RuntimeError":
        text += f"\n{_errors(printed)}"
    resources = any(words in said for words in OUT_OF_RESOURCES)
    return CompileProblem(name, text.replace(folder, ".").strip()[:2000], resources)


def _errors(printed: str) -> str:
    """The first diagnostics of what a compiler printed, else its end."""
    lines = [line.strip()[:300] for line in printed.splitlines() if "error:" in line]
    return "\n".join(lines[:3]) or printed.strip()[-300:]


def _option_problem(kernel: Kernel, limits: DeviceLimits) -> CompileProblem | None:
    """What the text need not be parsed for."""
    if len(kernel.ttir) > MAX_TTIR_CHARS:
        return CompileProblem(kernel.name, f"{len(kernel.ttir)} characters of TTIR, at most {MAX_TTIR_CHARS}")
    for name in ("num_warps", "num_ctas"):
        value = getattr(kernel, name)
        if value < 1 or value & (value - 1):
            return CompileProblem(kernel.name, f"{name}={value}: expected a power of two")
    return _too_much(kernel.name, "threads of a block", 32 * kernel.num_warps, limits.threads) or _too_much(
        kernel.name, "blocks of a cluster", kernel.num_ctas, limits.cluster
    )


def _done(outcome: CompiledKernel | CompileProblem) -> Future[CompiledKernel | CompileProblem]:
    future: Future[CompiledKernel | CompileProblem] = Future()
    future.set_result(outcome)
    return future


def _fitting(
    name: str, outcome: CompiledKernel | CompileProblem, limits: DeviceLimits
) -> CompiledKernel | CompileProblem:
    """The kernel itself, or which of the device's limits it exceeds."""
    if isinstance(outcome, CompileProblem):
        return outcome
    # Registers are given to warps in units of 256.
    registers = math.ceil((outcome.registers or 0) * 32 / 256) * 256 * outcome.num_warps
    return (
        _too_much(name, "bytes of shared memory", outcome.shared_bytes, limits.shared_bytes)
        or _too_much(name, "threads of a block", outcome.threads, limits.threads)
        or _too_much(name, "registers of a block", registers, limits.registers)
        or outcome
    )


def _too_much(name: str, what: str, required: int, limit: int) -> CompileProblem | None:
    if required <= limit:
        return None
    text = f"out of resource: {what}, required {required}, hardware limit {limit}. Reduce block sizes or num_stages."
    return CompileProblem(name, text, resources=True)
