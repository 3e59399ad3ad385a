"""The launch recorder: grids, meta-parameters, bytes, host operations and resources, without a device."""

from __future__ import annotations

import pytest

from engine.records import Reason, Status
from tests.support.judge import bundled_tasks, case, judged

N = 2048


@pytest.fixture(scope="module")
def autotuned():
    return judged("square_matmul", case("a03"))


def test_launch_of_an_autotuned_product(autotuned):
    (launch,) = autotuned.trace.launches
    assert launch.kernel == "matmul_kernel"
    assert launch.grid == (N // 64, N // 64, 1)
    assert (launch.num_warps, launch.num_stages, launch.count) == (4, 3, 1)
    assert launch.bytes == 3 * 4 * N * N
    assert launch.has_dot
    assert any("autotune matmul_kernel: 2 configs" in remark for remark in autotuned.trace.remarks)


def test_compiled_for_the_declared_chip(autotuned):
    (launch,) = autotuned.trace.launches
    assert 16 <= launch.registers <= 255
    assert launch.spill_bytes >= 0
    assert launch.shared_bytes > 0


def test_host_operations_are_named_and_weighed():
    trace = judged("conv2d_relu_bias", case("a08")).trace
    ops = {op.name: op for op in trace.host_ops}
    assert ops["aten.convolution"].compute
    # Two FLOPs per multiply-add: batch, output channels, output plane, taps.
    assert ops["aten.convolution"].flops == 2 * 64 * 128 * 126 * 126 * 64 * 9
    assert not ops["aten.empty_like"].compute


def test_launches_in_a_loop_are_counted_not_listed():
    source = case("a04").replace(
        "        gelu_kernel",
        "        for _ in range(7):\n            gelu_kernel[(1,)](x, y, 0, BLOCK=1024)\n        gelu_kernel",
    )
    trace = judged("gelu", source).trace
    assert trace.launch_count == 8
    assert sorted(launch.count for launch in trace.launches) == [1, 7]


def test_heuristics_and_device_queries_are_answered():
    source = case("a04").replace(
        "@triton.jit",
        '@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(min(args["n"], 512))})\n@triton.jit',
    )
    source = source.replace(
        "        gelu_kernel[(triton.cdiv(n, 1024),)](x, y, n, BLOCK=1024)",
        "        sms = torch.cuda.get_device_properties(x.device).multi_processor_count\n"
        "        assert sms == 132 and x.device.type == 'cuda' and torch.cuda.current_device() == 0\n"
        "        y = torch.empty(x.shape, device='cuda', dtype=x.dtype)\n"
        "        with torch.cuda.device(x.device):\n"
        "            gelu_kernel[lambda meta: (triton.cdiv(n, meta['BLOCK']),)](x, y, n)",
    )
    verdict = judged("gelu", source)
    assert verdict.status is Status.CORRECT, verdict.message
    assert verdict.trace.launches[0].grid[0] == 8192 * 8192 // 512


def test_a_candidate_that_reads_values_has_no_record_but_is_judged():
    source = case("a04").replace("        n = x.numel()", "        n = x.numel() if float(x.sum()) < 1e30 else 0")
    verdict = judged("gelu", source)
    assert verdict.trace is None
    assert "DataDependent" in verdict.trace_error
    assert verdict.status is Status.CORRECT, verdict.message


def test_without_a_record_the_policy_holds_for_what_ran():
    source = case("b04").replace("        y = torch", "        float(x.sum())\n        y = torch")
    verdict = judged("softmax", source)
    assert verdict.trace is None
    assert verdict.reason is Reason.HOST_OP


@pytest.mark.parametrize(("policy", "reason"), [("none", Reason.HOST_OP), ("library", None), ("any", None)], ids=str)
def test_host_policy_of_the_contract(policy, reason):
    import dataclasses

    task = bundled_tasks()["conv2d_relu_bias"]
    contract = dataclasses.replace(task.contract, host_ops=policy)
    verdict = judged(dataclasses.replace(task, contract=contract), case("a08"))
    assert verdict.reason is reason, verdict.message
