"""Constants of a module, replaced and chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks.derive import TRIALS, derive
from engine.tasks.variants import apply_variant, constants

MODULE = '''"""Größe: 3."""
N = 2048 * 2  # rows: N
M: int = 8
height = width = 64
depth = 16; rows = cols = 2 ** 5
D, H, W = 4, 5, 6
shape = (32, 3, N)
layers = [16, 1 << 4]
scale = 2.0
flag = True
shift = -3
derived = N * 2
ä = 7; z = 9

def f():
    N = 5
    return N
'''


def test_constants():
    assert constants(MODULE) == {
        "N": 4096, "M": 8, "height": 64, "width": 64, "depth": 16, "rows": 32, "cols": 32, "D": 4, "H": 5, "W": 6,
        "shape[0]": 32, "shape[1]": 3, "layers[0]": 16, "layers[1]": 16, "shift": -3, "ä": 7, "z": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"N": 7}, {"N": 7, "derived": 14, "shape": (32, 3, 7)}),
        ({"M": 1}, {"M": 1}),
        ({"height": 5}, {"height": 5, "width": 64}),
        ({"height": 5, "width": 6}, {"height": 5, "width": 6}),
        ({"cols": 3, "depth": 2}, {"cols": 3, "rows": 32, "depth": 2}),
        ({"H": 1, "W": 2}, {"D": 4, "H": 1, "W": 2}),
        ({"shape[1]": 9, "layers[0]": 2}, {"shape": (32, 9, 4096), "layers": [2, 16]}),
        ({"z": 1, "ä": 2}, {"z": 1, "ä": 2}),
    ],
)
def test_apply(values, expected):
    module = {}
    exec(apply_variant(MODULE, values), module)
    assert {name: module[name] for name in expected} == expected
    assert module["f"]() == 5


def test_layout_and_comments_stay():
    assert apply_variant(MODULE, {"N": 7}) == MODULE.replace("2048 * 2", "7", 1)
    assert apply_variant(MODULE, {}) == MODULE


def test_last_assignment_counts():
    source = "a = b = 2048\na, b = 32, 33\nc = 1\nc = f()\n"
    assert constants(source) == {"a": 32, "b": 33}
    assert apply_variant(source, {"b": 5}) == source.replace("33", "5")


def test_unknown_constant():
    with pytest.raises(KeyError, match="K: not among the integer constants N"):
        apply_variant("N = 1\n", {"K": 2})


@given(st.dictionaries(st.sampled_from(sorted(constants(MODULE))), st.integers(1, 10**6)))
def test_applied_values_are_read_back(values):
    assert constants(apply_variant(MODULE, values)) == {**constants(MODULE), **values}


def probe(source, valid, size):
    """Runs nothing: the constants are valid when `valid` says so and the tensors are as large as `size` says."""

    def ask(values):
        known = {**constants(source), **values}
        return size(known) if valid(known) else None

    return ask


@pytest.mark.parametrize(
    ("source", "valid", "small", "odd"),
    [
        ("M = 4096\nK = 4096\n", lambda c: True, {"M": 128, "K": 128}, {"M": 77, "K": 77}),
        (
            "channels = 64\nnum_groups = 32\nheight = 128\n",
            lambda c: c["channels"] % c["num_groups"] == 0,
            {"height": 64},
            {"height": 65},
        ),
        (
            "channels = 64\ngroups = 8\nheight = 64\n",
            lambda c: c["channels"] % c["groups"] == 0,
            {},
            {"channels": 24, "height": 33},
        ),
        (
            "batch_size = 4096\nwidth = 4096\n",
            lambda c: c["batch_size"] == c["width"],
            {"batch_size": 64, "width": 64},
            {"batch_size": 65, "width": 65},
        ),
        ("batch_size = 128\nin_channels = 3\nkernel_size = 17\nstride = 32\n", lambda c: True, {"batch_size": 16},
         {"batch_size": 19}),
        ("batch_size = 32\nseq_len = 512\nhidden = 256\n", lambda c: True,
         {"batch_size": 16, "seq_len": 32, "hidden": 128}, {"batch_size": 19, "seq_len": 13, "hidden": 77}),
    ],
    ids=["all", "groups_that_divide", "odd_multiple_of_groups", "two_that_agree", "architecture_stays", "sequence"],
)  # fmt: skip
def test_derived(source, valid, small, odd):
    def size(known):
        return known.get("channels", 1) * known.get("height", 1) * 16

    found = derive(source, probe(source, valid, size))
    assert {name: found["small"][name] for name in small} == small
    assert found["odd"] == odd
    assert valid({**constants(source), **found["small"]})
    assert all("kernel" not in name and "groups" not in name for name in found["small"])


def test_small_variants_are_small_where_they_can_be():
    source = "batch_size = 64\nchannels = 64\nheight = 512\nwidth = 512\n"

    def size(known):
        return known["batch_size"] * known["channels"] * known["height"] * known["width"]

    found = derive(source, probe(source, lambda c: True, size))
    assert size({**constants(source), **found["small"]}) <= 1 << 17


@pytest.mark.parametrize(
    ("source", "valid"),
    [("x = 1.5\n", True), ("kernel_size = 64\nchannels = 3\n", True), ("N = 4096\n", False)],
    ids=["no_constants", "only_architecture", "nothing_runs"],
)
def test_nothing_to_derive(source, valid):
    assert derive(source, probe(source, lambda c: valid, lambda c: 1)) == {}


def test_trials_are_bounded():
    asked = []
    source = "".join(f"size_{n} = 64\n" for n in range(100))

    def ask(values):
        asked.append(values)

    assert derive(source, ask) == {}
    assert len(asked) <= TRIALS
