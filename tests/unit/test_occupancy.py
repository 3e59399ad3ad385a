"""How many blocks fit on one multiprocessor, by the rules of the occupancy calculator."""

from __future__ import annotations

import pytest

from engine.backends.occupancy import MULTIPROCESSORS, limits


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "registers_fit", "shared_fit", "warps_fit", "occupancy"),
    [
        pytest.param("sm_90", 4, 226, 98304, 2, 2, 16, 12.5, id="as-ncu-said-of-a-matmul-on-an-h200"),
        pytest.param("sm_90", 4, 20, 0, 21, 228, 16, 100.0, id="as-ncu-said-of-a-softmax-on-an-h200"),
        pytest.param("sm_90", 4, 32, 0, 16, 228, 16, 100.0, id="everything-fits"),
        pytest.param("sm_90", 4, 168, 49152, 3, 4, 16, 18.75, id="registers-limit"),
        pytest.param("sm_90", 8, 64, 106496, 4, 2, 8, 25.0, id="shared-memory-limits"),
        pytest.param("sm_90", 8, 255, 232448, 1, 1, 8, 12.5, id="all-of-it"),
        pytest.param("sm_90", 1, 16, 0, 128, 228, 64, 50.0, id="blocks-limit"),
        pytest.param("sm_80", 4, 33, 40960, 12, 4, 16, 25.0, id="registers-come-in-eights"),
        pytest.param("sm_75", 8, 64, 0, 4, 512, 4, 100.0, id="no-reserved-shared-memory"),
    ],
)
def test_limits(target, warps, registers, shared, registers_fit, shared_fit, warps_fit, occupancy):
    assert limits(target, warps, registers, shared) == {
        "limit_registers": registers_fit,
        "limit_shared": shared_fit,
        "limit_blocks": MULTIPROCESSORS[target].blocks,
        "limit_warps": warps_fit,
        "occupancy_pct": occupancy,
    }


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(("sm_999", 4, 32, 0), id="unknown-chip"),
        pytest.param(("sm_90", 4, None, 0), id="not-compiled"),
        pytest.param(("sm_90", 4, 32, None), id="shared-memory-unknown"),
    ],
)
def test_what_is_unknown_stays_so(asked):
    assert limits(*asked) == {}
