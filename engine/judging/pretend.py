"""Lets candidate code believe in a CUDA device where there is none: in Triton's interpreter and on fake tensors.

Half of all model-written kernels assert `is_cuda`; factories name `device="cuda"`. A torch-function mode answers those
queries and sends the work to the CPU. The same mode fills fresh memory with a poison pattern, so that reading what was
never written shows.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from engine.judging.streams import STREAMS, Event, Stream, StreamContext, refuse_graph, set_stream

EMPTY = frozenset(
    [
        *(torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted),
        *(torch.Tensor.new_empty, torch.Tensor.new_empty_strided),
    ]
)
CUDA = torch.device("cuda", 0)
_tensor: Any = torch.Tensor
_GETTERS: Mapping[Any, Any] = {
    _tensor.is_cuda.__get__: True,
    _tensor.is_cpu.__get__: False,
    _tensor.device.__get__: CUDA,
    _tensor.get_device: 0,
}

_CALLBACKS = (_tensor.apply_, _tensor.map_, _tensor.map2_)
_READS = frozenset(
    [
        *(_tensor.numpy, _tensor.tolist, _tensor.item),
        *(_tensor.__array__, _tensor.__dlpack__, _tensor.__reduce_ex__, _tensor.__repr__, _tensor.__format__),
        *(_tensor.__float__, _tensor.__int__, _tensor.__bool__, _tensor.__index__, _tensor.__complex__),
        *(*_CALLBACKS, _tensor.is_nonzero, torch.is_nonzero),
        torch._C._to_dlpack,
    ]
)
"""What hands a tensor's values to Python, or to a library that no recorder sees."""

_ARRAYS = frozenset([_tensor.numpy, _tensor.__array__])
_SHARING = frozenset([torch.as_tensor, torch.asarray])
"""What may share memory with an array; of a tensor they give the tensor."""


class Given:
    """`values`: elements of tensors that Python was given since somebody set it to 0."""

    def __init__(self) -> None:
        self.values = 0


GIVEN = Given()

GUARD_BYTES = 4096
CANARY = 0xA5

CAPABILITY = (9, 0)
PROPERTIES: Mapping[str, Any] = {
    "name": "NVIDIA H200",
    "major": 9,
    "minor": 0,
    "total_memory": 150_000_000_000,
    "multi_processor_count": 132,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "L2_cache_size": 62914560,
}


def poison(tensor: torch.Tensor, pattern: str) -> torch.Tensor:
    """Fill fresh memory: `nan`, or `garbage`: large and finite. Integers get a large odd number either way."""
    if tensor.dtype == torch.bool:
        return tensor.fill_(pattern == "nan")
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        info = torch.iinfo(tensor.dtype)
        return tensor.fill_(info.max if pattern == "nan" else info.max // 2 - 3)
    return tensor.fill_(float("nan") if pattern == "nan" else 12345.0)


class Pretend(TorchFunctionMode):
    """`cuda`: answer as a CUDA device. `pattern`: poison for fresh memory, None leaves it. `guard`: put canary bytes
    around fresh memory, for `overwritten_guards` to find; that keeps all of it alive."""

    def __init__(self, *, cuda: bool, pattern: str | None = None, fake: bool = False, guard: bool = False) -> None:
        super().__init__()
        self.cuda, self.pattern, self.fake = cuda, pattern, fake
        self.host_copies = 0
        """Calls that named the host's memory."""
        self._guards: list[torch.Tensor] | None = [] if guard else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _READS:
            self._read(func, args[0])
        if self.cuda and func is not torch.device:
            if func in _GETTERS:
                return _GETTERS[func]
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.pin_memory:
                return args[0]
            if self.fake and func is torch.Tensor.data_ptr:
                return _fake_address(args[0])
            if func is torch.Tensor.cpu or any(map(_names_host, (*args, *kwargs.values()))):
                self.host_copies += 1
            args = _to_cpu(args)
            kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
            kwargs.pop("pin_memory", None)
        result = func(*args, **kwargs)
        if func in EMPTY and isinstance(result, torch.Tensor):
            return self._fresh(result)
        # Memory that a tensor and an array of another library both hold would carry values past every record.
        if func in _ARRAYS and not self.fake:
            return result.copy()
        return result.clone() if func in _SHARING and not isinstance(args[0], torch.Tensor) else result

    def _read(self, func: Any, tensor: torch.Tensor) -> None:
        if not self.fake:
            GIVEN.values += int(tensor.numel())
        elif func in _CALLBACKS:
            raise NotImplementedError(f"{func.__name__}() calls Python for each value, and fake tensors have none")

    def _fresh(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._guards is not None:
            tensor = _guarded(tensor, self._guards)
        return tensor if self.pattern is None else poison(tensor, self.pattern)

    def overwritten_guards(self) -> int:
        """How many allocations had bytes written before their start or after their end."""
        return sum(
            bool((raw[:GUARD_BYTES] != CANARY).any() or (raw[-GUARD_BYTES:] != CANARY).any())
            for raw in self._guards or ()
        )


def _guarded(tensor: torch.Tensor, guards: list[torch.Tensor]) -> torch.Tensor:
    size = tensor.numel() * tensor.element_size()
    span = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    if size == 0 or span != tensor.numel():
        return tensor
    raw = torch.full((size + 2 * GUARD_BYTES,), CANARY, dtype=torch.uint8, device=tensor.device)
    guards.append(raw)
    inner = raw[GUARD_BYTES : GUARD_BYTES + size].view(tensor.dtype)
    return inner.as_strided(tensor.size(), tensor.stride(), inner.storage_offset())


def part_memory() -> None:
    """Let tensors that are made of arrays and buffers have memory of their own, in this process: no mode sees the
    functions that share it."""
    for name in ("from_numpy", "frombuffer", "from_dlpack"):
        setattr(torch, name, _cloned(getattr(torch, name)))


def _cloned(function: Any) -> Any:
    def own(*args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = function(*args, **kwargs).clone()
        return result

    return own


def count_bytes_given() -> None:
    """Let `GIVEN` count what is read of storages, which no mode sees."""
    storage: Any = torch.UntypedStorage
    one = storage.__getitem__

    def getitem(self: Any, place: Any) -> Any:
        GIVEN.values += len(range(*place.indices(len(self)))) if isinstance(place, slice) else 1
        return one(self, place)

    storage.__getitem__ = getitem


_ADDRESSES: dict[int, tuple[int, torch.UntypedStorage]] = {}
_FIRST_ADDRESS = 0x7F40_0000_0000
_LAST_ADDRESS = 0x7FFF_0000_0000
_next_address = _FIRST_ADDRESS


def _fake_address(tensor: torch.Tensor) -> int:
    """A stable address a storage: 16 divides it and no larger power of two does, as nobody is promised more."""
    global _next_address
    storage = tensor.untyped_storage()
    key = int(storage._cdata)
    if key not in _ADDRESSES:
        # The storage is held, so that its identity is not used again.
        _ADDRESSES[key] = (_next_address + 16, storage)
        _next_address += (int(storage.nbytes()) // 512 + 2) * 512
    return _ADDRESSES[key][0] + int(tensor.storage_offset()) * tensor.element_size()


def is_fake_address(number: int) -> bool:
    """Whether a number is one that `data_ptr()` of a fake tensor may have answered, or lies in its memory."""
    return _FIRST_ADDRESS <= number < min(_next_address, _LAST_ADDRESS)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_to_cpu(item) for item in value)
    return value


def _names_host(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cpu") or (isinstance(value, str) and value == "cpu")


class _Nothing:
    """A device context or generator that does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.cuda_stream = 0
        self.device = torch.device("cuda", 0)

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: 0.0 if name == "elapsed_time" else None


def answer_as_cuda() -> None:
    """Replace `torch.cuda` queries in this process, which must be one that never touches a real device."""
    properties = types.SimpleNamespace(**PROPERTIES)
    answers: Mapping[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: PROPERTIES["name"],
        "get_device_properties": lambda device=None: properties,
        "current_stream": lambda device=None: STREAMS.current,
        "default_stream": lambda device=None: STREAMS.default,
        "stream": StreamContext,
        "StreamContext": StreamContext,
        "set_stream": set_stream,
        "synchronize": lambda device=None: STREAMS.host_waits_for_all(),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (100_000_000_000, PROPERTIES["total_memory"]),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "CUDAGraph": refuse_graph,
        "graph": refuse_graph,
        "make_graphed_callables": refuse_graph,
        "Stream": Stream,
        "Event": Event,
        "device": _Nothing,
        "device_of": _Nothing,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        setattr(torch.cuda.nvtx, name, lambda *_: 0)
    # A CUDA build would pack the weights of nn.GRU and its kin with cuDNN as soon as they answer as CUDA.
    torch.backends.cudnn.is_acceptable = lambda tensor: False
    # It takes PyTorch's own streams alone, and refuses others before a mode hears of the call.
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda self, stream: None


def answer_on_fake_tensors() -> None:
    """Fake tensors answer `.device` by a Python property that no mode sees. Candidate code runs with a `Pretend` on the
    stack and is told cuda; PyTorch's own code runs below it and gets the truth."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.overrides import _get_current_function_mode_stack

    truth: Any = FakeTensor.device
    stack: Any = _get_current_function_mode_stack

    def device(self: Any) -> Any:
        if any(isinstance(mode, Pretend) for mode in stack()):
            return CUDA
        return truth.fget(self)

    fake: Any = FakeTensor
    fake.device = property(device)


class FakeDriver:
    """What Triton asks of its active driver, answered for `target` (e.g. sm_90) without a device."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", int(target.removeprefix("sm_").rstrip("a")), 32)
        self.utils = self
        self.binary_ext = "cubin"

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_device_properties(self, device: int = 0) -> dict[str, int]:
        return {
            "max_shared_mem": PROPERTIES["shared_memory_per_block_optin"],
            "max_num_regs": PROPERTIES["regs_per_multiprocessor"],
            "multiprocessor_count": PROPERTIES["multi_processor_count"],
            "warpSize": PROPERTIES["warp_size"],
            "sm_clock_rate": 1_980_000,
            "mem_clock_rate": 3_201_000,
            "mem_bus_width": 6144,
        }

    def get_benchmarker(self) -> Any:
        return lambda call, quantiles=None, **_: [0.0, 0.0, 0.0]

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, cache: Any) -> None: ...


def install_driver(target: str) -> None:
    """Make a `FakeDriver` Triton's active driver in this process."""
    from triton.runtime.driver import driver

    driver.set_active(FakeDriver(target))
