"""The CUDA driver by ctypes, for what PyTorch does not offer: memory shared between processes, loading and launching
compiled kernels, and emptying L2 without write-back. Needs a current context (PyTorch's primary one)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import EngineError

HANDLE_BYTES = 64
"""sizeof(CUipcMemHandle)."""

_LAZY_PEER_ACCESS = 1
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 14
PORTABLE_CLUSTER = 8
_PREFER_SHARED = 1
_DEFAULT_SHARED_LIMIT = 48 << 10
_COOPERATIVE, _CLUSTER_DIMENSION, _CLUSTER_SCHEDULING = 2, 4, 5
_SCHEDULE_SPREAD = 1

DISCARD_PTX = b"""
.version 7.4
.target sm_80
.address_size 64
.visible .entry discard_l2(.param .u64 start, .param .u64 bytes)
{
  .reg .pred %p;
  .reg .b32 %r<4>;
  .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [start];
  ld.param.u64 %rd2, [bytes];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.wide.u32 %rd3, %r1, %r2, 0;
  cvt.u64.u32 %rd4, %r3;
  add.u64 %rd3, %rd3, %rd4;
  shl.b64 %rd3, %rd3, 7;
  setp.ge.u64 %p, %rd3, %rd2;
  @%p bra done;
  add.u64 %rd5, %rd1, %rd3;
  discard.global.L2 [%rd5], 128;
done:
  ret;
}
\0"""
"""Drops 128-byte lines from L2: a flush by writing leaves dirty lines, whose write-back the next kernel would pay."""


class DriverError(EngineError):
    """A driver call failed; `code` is the CUresult."""

    def __init__(self, what: str, code: int, text: str) -> None:
        super().__init__(f"{what}: {text} (CUDA error {code})")
        self.code = code


class _IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint), ("pad", ctypes.c_ubyte * 4), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):
    _fields_ = [
        *((f"grid_{axis}", ctypes.c_uint) for axis in "xyz"),
        *((f"block_{axis}", ctypes.c_uint) for axis in "xyz"),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


@dataclass(frozen=True, slots=True)
class Function:
    """A loaded kernel and the fixed part of its launches."""

    handle: ctypes.c_void_p
    module: ctypes.c_void_p
    threads: int
    shared_bytes: int
    cluster: tuple[int, int, int]
    cooperative: bool


class Driver:
    """Calls on the current context; DriverError for any that fails."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]

    def _check(self, what: str, code: int) -> None:
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise DriverError(what, code, (text.value or b"unknown").decode())

    def allocate(self, size: int) -> int:
        """Device memory of its own allocation, so that its handle shares nothing else; the address."""
        address = ctypes.c_uint64(0)
        self._check(
            f"allocating {size} bytes", self._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size))
        )
        return address.value

    def free(self, address: int) -> None:
        self._check("freeing memory", self._library.cuMemFree_v2(ctypes.c_uint64(address)))

    def export_handle(self, address: int) -> bytes:
        """What another process needs to map this allocation."""
        handle = _IpcHandle()
        self._check("sharing memory", self._library.cuIpcGetMemHandle(ctypes.byref(handle), ctypes.c_uint64(address)))
        return bytes(handle.reserved)

    def open_handle(self, content: bytes) -> int:
        """The address in this process of another process's allocation."""
        address = ctypes.c_uint64(0)
        handle = _IpcHandle((ctypes.c_ubyte * HANDLE_BYTES)(*content))
        code = self._library.cuIpcOpenMemHandle_v2(ctypes.byref(address), handle, ctypes.c_uint(_LAZY_PEER_ACCESS))
        self._check("mapping shared memory", code)
        return address.value

    def close_handle(self, address: int) -> None:
        self._check("unmapping shared memory", self._library.cuIpcCloseMemHandle(ctypes.c_uint64(address)))

    def load(
        self,
        image: bytes,
        symbol: str,
        *,
        threads: int,
        shared_bytes: int,
        cluster: tuple[int, int, int] = (1, 1, 1),
        cooperative: bool = False,
    ) -> Function:
        """A kernel from a cubin or PTX text, allowed the dynamic shared memory that it needs."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(f"loading {symbol}", self._library.cuModuleLoadData(ctypes.byref(module), image))
        self._check(
            f"finding {symbol}", self._library.cuModuleGetFunction(ctypes.byref(function), module, symbol.encode())
        )
        if shared_bytes > _DEFAULT_SHARED_LIMIT:
            self._check("cache configuration", self._library.cuFuncSetCacheConfig(function, _PREFER_SHARED))
            code = self._library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, ctypes.c_int(shared_bytes))
            self._check(f"{symbol}: {shared_bytes} bytes of shared memory", code)
        if math.prod(cluster) > PORTABLE_CLUSTER:
            code = self._library.cuFuncSetAttribute(function, _NON_PORTABLE_CLUSTER, ctypes.c_int(1))
            self._check(f"{symbol}: clusters of {math.prod(cluster)}", code)
        return Function(function, module, threads, shared_bytes, cluster, cooperative)

    def launch(
        self, function: Function, grid: Sequence[int], parameters: ctypes.Array[ctypes.c_void_p], stream: int
    ) -> None:
        """Enqueue one launch. `parameters`: addresses of the values, which must stay alive until this returns."""
        cluster = function.cluster
        if cluster == (1, 1, 1) and not function.cooperative:
            code = self._library.cuLaunchKernel(
                function.handle,
                *(ctypes.c_uint(extent) for extent in grid),
                ctypes.c_uint(function.threads),
                ctypes.c_uint(1),
                ctypes.c_uint(1),
                ctypes.c_uint(function.shared_bytes),
                ctypes.c_void_p(stream),
                parameters,
                None,
            )
        else:
            code = self._launch_with_attributes(function, grid, parameters, stream)
        if code != 0:
            self._check("launching a kernel", code)

    def _launch_with_attributes(
        self, function: Function, grid: Sequence[int], parameters: ctypes.Array[ctypes.c_void_p], stream: int
    ) -> int:
        wanted: list[tuple[int, tuple[int, ...]]] = []
        if function.cooperative:
            wanted.append((_COOPERATIVE, (1,)))
        if function.cluster != (1, 1, 1):
            wanted += [(_CLUSTER_DIMENSION, function.cluster), (_CLUSTER_SCHEDULING, (_SCHEDULE_SPREAD,))]
        attributes = (_Attribute * len(wanted))()
        for attribute, (identity, value) in zip(attributes, wanted, strict=True):
            attribute.id = identity
            attribute.value[: len(value)] = value
        extents = [extent * factor for extent, factor in zip(grid, function.cluster, strict=True)]
        config = _Config(*extents, function.threads, 1, 1, function.shared_bytes, stream, attributes, len(wanted))
        return int(self._library.cuLaunchKernelEx(ctypes.byref(config), function.handle, parameters, None))

    def reset_persisting_l2(self) -> None:
        """Lines that a kernel asked to persist become ordinary ones."""
        self._check("resetting persisting L2", self._library.cuCtxResetPersistingL2Cache())


class DeviceBytes:
    """Memory at an address as PyTorch can wrap it: `torch.as_tensor(DeviceBytes(address, size), device="cuda")`."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }
