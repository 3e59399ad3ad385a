"""What the driver is handed by ctypes, against the header that declares it. No device, no libcuda."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.judging import driver
from engine.judging.driver import Driver, DriverError, Function

FIELDS = {
    "CUlaunchConfig": (
        driver._Config,
        {
            "gridDimX": "grid_x",
            "gridDimY": "grid_y",
            "gridDimZ": "grid_z",
            "blockDimX": "block_x",
            "blockDimY": "block_y",
            "blockDimZ": "block_z",
            "sharedMemBytes": "shared",
            "hStream": "stream",
            "attrs": "attributes",
            "numAttrs": "count",
        },
    ),
    "CUlaunchAttribute": (driver._Attribute, {"id": "id", "value": "value"}),
    "CUipcMemHandle": (driver._IpcHandle, {"reserved": "reserved"}),
}
CONSTANTS = {
    "CU_IPC_HANDLE_SIZE": driver.HANDLE_BYTES,
    "CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS": driver._LAZY_PEER_ACCESS,
    "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": driver._MAX_DYNAMIC_SHARED,
    "CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED": driver._NON_PORTABLE_CLUSTER,
    "CU_FUNC_CACHE_PREFER_SHARED": driver._PREFER_SHARED,
    "CU_LAUNCH_ATTRIBUTE_COOPERATIVE": driver._COOPERATIVE,
    "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION": driver._CLUSTER_DIMENSION,
    "CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE": driver._CLUSTER_SCHEDULING,
    "CU_CLUSTER_SCHEDULING_POLICY_SPREAD": driver._SCHEDULE_SPREAD,
}
CALLED = sorted(set(re.findall(r"_library\.(cu\w+)", Path(driver.__file__).read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def include():
    """The folder of Triton's copy of cuda.h."""
    found = find_spec("triton")
    folder = Path(found.origin).parent / "backends" / "nvidia" / "include" if found and found.origin else None
    if folder is None or not (folder / "cuda.h").is_file():
        pytest.skip("no Triton that comes with cuda.h")
    return folder


@pytest.fixture(scope="module")
def compiled(include, tmp_path_factory):
    """What a C compiler makes of the header: name to number."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    rows = {name: name for name in CONSTANTS}
    for kind, (_, fields) in FIELDS.items():
        rows[kind] = f"sizeof({kind})"
        rows |= {f"{kind}.{name}": f"offsetof({kind}, {name})" for name in fields}
    lines = "".join(f'printf("{name} %d\\n", (int)({value}));\n' for name, value in rows.items())
    folder = tmp_path_factory.mktemp("header")
    source = f"#include <cuda.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
    (folder / "facts.c").write_text(source, encoding="utf-8")
    subprocess.run([compiler, "-I", str(include), "-o", "facts", "facts.c"], cwd=folder, check=True)
    printed = subprocess.run([str(folder / "facts")], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in map(str.split, printed.splitlines())}


@pytest.mark.parametrize(("kind", "size"), [("CUlaunchConfig", 56), ("CUlaunchAttribute", 72), ("CUipcMemHandle", 64)])
def test_structures_have_the_documented_size(kind, size):
    structure, _ = FIELDS[kind]
    assert ctypes.sizeof(structure) == size


@pytest.mark.parametrize("kind", FIELDS)
def test_structures_lie_in_memory_as_the_header_says(compiled, kind):
    structure, fields = FIELDS[kind]
    assert ctypes.sizeof(structure) == compiled[kind]
    ours = {theirs: getattr(structure, mine).offset for theirs, mine in fields.items()}
    assert ours == {name: compiled[f"{kind}.{name}"] for name in fields}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_those_of_the_header(compiled, name):
    assert CONSTANTS[name] == compiled[name]


def test_functions_are_called_by_the_names_that_the_library_exports(include):
    text = (include / "cuda.h").read_text(encoding="utf-8", errors="replace")
    renamed = {old for old, new in re.findall(r"#define (cu\w+)\s+(cu\w+_v\d+)\b", text) if new.startswith(old)}
    declared = set(re.findall(r"CUresult CUDAAPI (cu\w+)\(", text))
    for name in CALLED:
        assert name not in renamed
        assert name in declared or name.partition("_v")[0] in declared


class Library:
    """In place of libcuda: keeps what a launch is given, while it is given."""

    def __init__(self, code=0):
        self.code, self.calls = code, []

    def cuLaunchKernel(self, *arguments):
        self.calls.append([getattr(value, "value", value) for value in arguments])
        return self.code

    def cuLaunchKernelEx(self, config, *arguments):
        given = config._obj
        attributes = {given.attributes[i].id: list(given.attributes[i].value[:3]) for i in range(given.count)}
        grid, block = (given.grid_x, given.grid_y, given.grid_z), (given.block_x, given.block_y, given.block_z)
        self.calls.append((grid, block, given.shared, given.stream, attributes))
        return self.code

    def cuGetErrorString(self, code, text):
        text._obj.value = b"an illegal address"


def opened(library):
    made = object.__new__(Driver)
    made._library = library
    return made


def launched(function, library=None):
    library = Library() if library is None else library
    opened(library).launch(function, (5, 3, 2), (ctypes.c_void_p * 1)(), 77)
    return library.calls


def function(cluster=(1, 1, 1), *, cooperative=False):
    return Function(ctypes.c_void_p(9), ctypes.c_void_p(8), 128, 4096, cluster, cooperative)


def test_a_plain_launch_gives_grid_threads_memory_and_stream():
    (call,) = launched(function())
    assert call[:9] == [9, 5, 3, 2, 128, 1, 1, 4096, 77]


@pytest.mark.parametrize(
    ("made", "grid", "attributes"),
    [
        (function(cooperative=True), (5, 3, 2), {driver._COOPERATIVE: [1, 0, 0]}),
        (
            function((2, 1, 1)),
            (10, 3, 2),
            {driver._CLUSTER_DIMENSION: [2, 1, 1], driver._CLUSTER_SCHEDULING: [1, 0, 0]},
        ),
        (
            function((4, 1, 2), cooperative=True),
            (20, 3, 4),
            {
                driver._COOPERATIVE: [1, 0, 0],
                driver._CLUSTER_DIMENSION: [4, 1, 2],
                driver._CLUSTER_SCHEDULING: [1, 0, 0],
            },
        ),
    ],
    ids=["cooperative", "cluster", "both"],
)
def test_clusters_and_cooperation_are_attributes_and_the_grid_counts_blocks(made, grid, attributes):
    (call,) = launched(made)
    assert call == (grid, (128, 1, 1), 4096, 77, attributes)


@pytest.mark.parametrize("made", [function(), function((2, 1, 1))])
def test_a_refused_launch_names_the_error(made):
    with pytest.raises(DriverError, match=r"launching a kernel: an illegal address \(CUDA error 700\)") as caught:
        launched(made, Library(700))
    assert caught.value.code == 700
