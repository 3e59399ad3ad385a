"""Chrome traces of torch's profiler: kernels, their times and shares, and how a run for one fails."""

from __future__ import annotations

import json
import math
import sys

import pytest

from engine.errors import ProfilerError
from engine.records import Launch, Trace
from profilers import trace
from profilers.seam import Job, coverage
from profilers.trace import TRACE_FILE, KernelTrace, parse, samples, totals


def kernel(name: str, ts: float, dur: float, grid=(8, 2, 1), **more) -> dict:
    details = {
        "queued": 0,
        "device": 0,
        "context": 1,
        "stream": 7,
        "correlation": 1,
        "registers per thread": 32,
        "shared memory": 1024,
        "blocks per SM": 0.12,
        "warps per SM": 0.48,
        "grid": list(grid),
        "block": [128, 1, 1],
        "est. achieved occupancy %": 25,
    }
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": details | more}


def other(category: str, name: str, ts: float, dur: float) -> dict:
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": {"stream": 7}}


def text(*events: dict) -> str:
    noise = [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "python3"}},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mul", "pid": 1, "tid": 1, "ts": 1.0, "dur": 900.0, "args": {}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": 1.0, "dur": 4.0},
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 1, "pid": 1, "tid": 1, "ts": 1.0},
        {
            "ph": "X",
            "cat": "gpu_user_annotation",
            "name": "step",
            "pid": 0,
            "tid": 7,
            "ts": 1.0,
            "dur": 950.0,
        },
    ]
    tree = {"schemaVersion": 1, "deviceProperties": [], "displayTimeUnit": "ms", "traceEvents": [*noise, *events]}
    return json.dumps(tree)


CALL = text(
    kernel("own", 30.0, 20.0),
    kernel("own", 10.0, 10.0),
    kernel("void lib::scale<float, 4>(float*, int)", 60.0, 30.0, (100, 1, 1)),
    other("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 100.0, 30.0),
    other("gpu_memset", "Memset (Device)", 140.0, 10.0),
)


def test_events_of_the_device_in_order_with_what_the_launch_used():
    events = parse(CALL)
    assert [(event.start_us, event.duration_us) for event in events] == [
        (10.0, 10.0),
        (30.0, 20.0),
        (60.0, 30.0),
        (100.0, 30.0),
        (140.0, 10.0),
    ]
    first, copy = events[0], events[3]
    assert (first.grid, first.block, first.stream) == ((8, 2, 1), (128, 1, 1), 7)
    assert (first.registers, first.shared_bytes, first.occupancy_pct) == (32.0, 1024.0, 25.0)
    assert (copy.grid, copy.registers, copy.category) == (None, None, "gpu_memcpy")


def test_totals_by_kernel_with_their_share_of_all_work_on_the_device():
    first, second = totals(parse(CALL))
    assert (first.name, first.count, first.sum_us, first.min_us, first.max_us) == ("own", 2, 30.0, 10.0, 20.0)
    assert (second.name, second.count, second.sum_us) == ("scale", 1, 30.0)
    assert first.share_pct == second.share_pct == 30.0


def test_one_sample_a_kernel_stands_for_its_launches():
    own, library = samples(parse(CALL), ())
    assert (own.kernel, own.duration_us, own.launches, own.seen, own.grid) == ("own", 15.0, 2.0, 2, (8, 2, 1))
    assert own.counters == {
        "launches": 1.0,
        "grid_programs": 16.0,
        "registers": 32.0,
        "shared_bytes": 1024.0,
        "est_occupancy_pct": 25.0,
        "duration_min_us": 10.0,
        "duration_max_us": 20.0,
        "time_share_pct": 30.0,
    }
    assert library.kernel == "scale"
    assert coverage((own, library)) == ""


def test_thousands_of_launches_become_one_sample_a_kernel():
    events = [kernel("a" if i % 3 else "b", 10.0 * i, 1.0 + i % 3, (i + 1, 1, 1)) for i in range(3000)]
    found = {sample.kernel: sample for sample in samples(parse(text(*events)), ("a", "b"))}
    assert (found["a"].launches, found["a"].duration_us, found["b"].launches) == (2000.0, 2.5, 1000.0)
    assert found["a"].counters["duration_max_us"] == 3.0
    assert found["a"].grid is None
    launched = sum(sample.launches * sample.counters["grid_programs"] for sample in found.values())
    assert launched == pytest.approx(sum(range(1, 3001)))


def test_only_the_jobs_kernels_under_the_jobs_names_but_shares_of_the_whole_call():
    (own,) = samples(parse(CALL.replace('"own"', '"own(float*)"')), ("own", "never_launched"))
    assert (own.kernel, own.counters["time_share_pct"]) == ("own", 30.0)


def test_what_a_launch_does_not_say_is_absent():
    details = {"est. achieved occupancy %": None, "registers per thread": "many", "grid": [1, 2]}
    (own,) = samples(parse(text(kernel("own", 1.0, 2.0, **details))), ())
    assert {"est_occupancy_pct", "registers", "grid_programs"}.isdisjoint(own.counters)
    assert own.counters["shared_bytes"] == 1024.0
    (mixed,) = samples(parse(text(kernel("own", 1.0, 2.0), kernel("own", 4.0, 2.0, **details))), ())
    assert "registers" not in mixed.counters


def test_an_event_without_duration_and_a_plain_list_of_events():
    begin = {**kernel("own", 1.0, 2.0), "ph": "B"}
    del begin["dur"]
    assert parse(text(begin)) == ()
    assert len(parse(json.dumps([kernel("own", 1.0, 2.0)]))) == 1


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("", id="empty"),
        pytest.param(CALL[:-40], id="cut-off"),
        pytest.param("{}", id="no-events"),
        pytest.param('{"traceEvents": [1]}', id="no-event"),
        pytest.param('{"traceEvents": [{"cat": "kernel", "dur": 1}]}', id="no-name"),
        pytest.param(CALL.replace("30.0", '"long"', 1), id="no-number"),
        pytest.param(CALL.replace("20.0", "NaN", 1), id="not-a-number"),
        pytest.param(CALL.replace("20.0", "-20.0", 1), id="negative"),
        pytest.param(CALL.replace("[8, 2, 1]", "[Infinity, 2, 1]", 1), id="no-grid"),
        pytest.param("[" * 100_000, id="nested"),
        pytest.param(text(kernel("own", 1.0, 2.0, [10**200] * 3)), id="huge-grid"),
        pytest.param(text(kernel("own", 1.0, 2.0, [0, 1, 1])), id="empty-grid"),
        pytest.param(text(kernel("own", 1.0, 1.7e308), kernel("own", 2.0, 1.7e308)), id="huge-duration"),
        pytest.param(text(kernel("own", -1.0, 2.0)), id="negative-start"),
        pytest.param(text(kernel("own", 1.0, 10**400)), id="huge-integer"),
    ],
)
def test_what_is_no_chrome_trace_is_a_profiler_error(broken):
    with pytest.raises(ProfilerError, match="no chrome trace"):
        parse(broken)


def test_numbers_of_any_size_leave_finite_counters():
    details = {
        "registers per thread": 1.7e308,
        "shared memory": 10**400,
        "est. achieved occupancy %": -1,
        "stream": 1e300,
    }
    most = trace.MAX_VALUE
    (own,) = samples(parse(text(*[kernel("own", most, most, [trace.MAX_EXTENT] * 3, **details)] * 2)), ())
    assert {"registers", "shared_bytes", "est_occupancy_pct"}.isdisjoint(own.counters)
    assert all(map(math.isfinite, own.counters.values())) and own.duration_us == most


def test_more_events_than_a_call_has_are_refused(monkeypatch):
    monkeypatch.setattr(trace, "MAX_EVENTS", 2)
    assert len(parse(text(kernel("own", 1.0, 2.0), kernel("own", 3.0, 2.0)))) == 2
    with pytest.raises(ProfilerError, match="3 events of the device, expected at most 2"):
        parse(text(*[kernel("own", 1.0, 2.0)] * 3))


def job(tmp_path, body: str, kernels=("own",)) -> Job:
    record = Trace((Launch("own", (8, 2, 1), 2, 0.0, 4, 3, False),), ())
    return Job((sys.executable, "-c", body), str(tmp_path), {}, kernels, record)


def writes(content: str) -> str:
    return f"open({TRACE_FILE!r}, 'w').write({content!r}); print('printed')"


def test_the_jobs_command_writes_the_trace(tmp_path):
    (sample,) = KernelTrace("", 60.0, 1).collect(job(tmp_path, writes(CALL)), ["launches", "no_such_counter"])
    assert (sample.kernel, sample.launches, sample.counters) == ("own", 2.0, {"launches": 1.0})


@pytest.mark.parametrize(
    ("body", "kernels", "message"),
    [
        pytest.param("print('no torch'); raise SystemExit(5)", ("own",), "status 5: no torch", id="crash"),
        pytest.param("print('quiet')", ("own",), "expected a chrome trace.*quiet", id="no-file"),
        pytest.param(writes(CALL), ("else",), "no launch of else", id="no-kernel"),
        pytest.param(writes(text()), (), "no launch of any kernel", id="no-activity"),
        pytest.param("import time; time.sleep(60)", ("own",), "did not finish within 0.5 s", id="time-out"),
    ],
)
def test_a_failing_run_says_why(tmp_path, body, kernels, message):
    (tmp_path / TRACE_FILE).write_text("{}")
    with pytest.raises(ProfilerError, match=message):
        KernelTrace("", 0.5 if "sleep" in body else 60.0, 1).collect(job(tmp_path, body, kernels), ["launches"])


@pytest.mark.parametrize(
    "left",
    [
        pytest.param("os.symlink('secret', TRACE)", id="link"),
        pytest.param("os.mkfifo(TRACE)", id="pipe"),
        pytest.param("os.mkdir(TRACE)", id="folder"),
        pytest.param("open(TRACE, 'w').write(open('secret').read() + ' ' * 4096)", id="too-long"),
    ],
)
def test_only_a_regular_file_of_bounded_size_is_read(tmp_path, monkeypatch, left):
    (tmp_path / "secret").write_text(CALL)
    monkeypatch.setattr(trace, "MAX_TRACE_BYTES", len(CALL) + 4095)
    body = f"import os; TRACE = {TRACE_FILE!r}; {left}; print('left')"
    with pytest.raises(ProfilerError, match=r"expected a chrome trace.*left"):
        KernelTrace("", 60.0, 1).collect(job(tmp_path, body), ["launches"])


def test_an_output_that_became_a_pipe_is_not_waited_for(tmp_path):
    body = (
        "import glob, os; (path,) = glob.glob('trace-*/output'); os.unlink(path); os.mkfifo(path); "
        f"open({TRACE_FILE!r}, 'w').write({CALL!r})"
    )
    (sample,) = KernelTrace("", 60.0, 1).collect(job(tmp_path, body), ["launches"])
    assert sample.launches == 2.0


def test_a_trace_of_torch_without_a_device_has_no_kernels(tmp_path):
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(4) + 1
    profiler.export_chrome_trace(str(tmp_path / TRACE_FILE))
    written = (tmp_path / TRACE_FILE).read_text()
    assert "aten::add" in written
    assert parse(written) == ()
