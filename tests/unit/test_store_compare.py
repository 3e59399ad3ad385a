"""Two groups of runs over the same tasks, the words that name runs, and the interval of a geometric mean."""

from __future__ import annotations

import pytest

from engine.errors import MissingError
from engine.results.comparing import as_text
from engine.store import compare, ingest
from engine.store.query import reader
from engine.store.selection import select
from engine.store.statistics import bootstrap_geomean, geometric_mean
from tests.support.synthetic_results import Run

A, B = "a" * 16, "b" * 16


def written(results, run_id, speedups, *, kind="measured", job=None, label=None, device="H200", going=(), **tasks):
    """A run with one seed for each task; intervals are ten per cent wide each way. Tasks in `going` have not ended, nor
    has their run."""
    run = Run(results, run_id, kind=kind, thresholds={"small": 0.2 if run_id == A else 0.3})
    run.start("cuda", device, job and ("sweep1", *job))
    if label:
        run.journal.write("label", label=label)
    for task, speedup in speedups.items():
        run.task(tasks.get(task, task), "flat" if task == "relu" else "windows")
        run.draft(task, "seed", f"{task}{run_id[:4]}", speedup, category="windows")
        best = f"{task}{run_id[:4]}" if speedup else None
        if task not in going:
            run.task_end(task, "windows", "done" if speedup else "unsolved", best, speedup)
    if going:
        run.journal.close()
    else:
        run.end(len(speedups), wall_s=1.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    first = {"conv": 1.0, "relu": 2.0, "gemm": 1.0, "lost": 1.0, "none": None, "mine": 1.0}
    second = {"conv": 2.0, "relu": 2.1, "gemm": 0.5, "lost": None, "none": None, "yours": 1.0}
    written(folder, A, first, job=(0, ["thresholds.small=0.2"]), label="base")
    written(folder, B, second, job=(1, ["thresholds.small=0.3"]), device="H100")
    written(folder, "c" * 16, {"conv": 8.0, "gemm": 1.0}, kind="estimated")
    written(folder, "cc" + "d" * 14, {"conv": 4.0})
    ingest(folder)
    return folder


def test_pairs(results):
    found = compare(results, A, B)
    assert {pair.task_id: (pair.outcome, pair.ratio) for pair in found.pairs} == {
        "conv": ("win", 2.0),
        "gemm": ("loss", 0.5),
        "lost": ("loss", None),
        "none": ("neither", None),
        "relu": ("tie", pytest.approx(1.05)),
    }
    assert (found.only_a, found.only_b, found.changed, found.kinds_differ) == (("mine",), ("yours",), (), ())
    assert found.remarks == ("devices differ: H200 against H100",)


def test_groups(results):
    groups = {(group.category, group.score_kind): group for group in compare(results, A, B).groups}
    whole = groups["all", "measured"]
    assert (whole.tasks, whole.both, whole.win, whole.tie, whole.loss) == (4, 3, 1, 1, 2)
    assert whole.ratio == pytest.approx((2.0 * 0.5 * 1.05) ** (1 / 3))
    assert 0.5 <= whole.lo < whole.ratio < whole.hi <= 2.0
    assert (groups["flat", "measured"].both, groups["flat", "measured"].lo) == (1, None)
    assert groups["all", None].tasks == 1
    # A solved task also has its confirmation: 2 s, of these 1 s on the GPU.
    assert (whole.cost_a.tokens, whole.cost_b.tokens) == (4800, 4800)
    assert whole.cost_a.usd == pytest.approx(0.04)
    assert whole.cost_a.gpu_s - whole.cost_b.gpu_s == pytest.approx(1.0)
    assert whole.cost_a.wall_s - whole.cost_b.wall_s == pytest.approx(2.0)


def test_a_run_against_itself_is_all_ties(results):
    found = compare(results, A, "base")
    assert {pair.outcome for pair in found.pairs} == {"tie", "neither"}
    assert found.groups[0].ratio == pytest.approx(1.0)
    assert found.remarks == ("1 run is on both sides",)


def test_kinds_of_score_are_never_mixed(results):
    found = compare(results, A, "c" * 16)
    assert found.kinds_differ == ("conv", "gemm")
    assert found.pairs == ()


def test_several_runs_give_their_geometric_mean_and_mean_cost(results):
    found = compare(results, A, "model=m")
    (conv,) = [pair for pair in found.pairs if pair.task_id == "conv"]
    assert (conv.score_kind, conv.b.speedup) == ("measured", pytest.approx(2.0))
    assert conv.cost_b.tokens == 1200
    assert "'model=m' is 4 runs; per task their geometric mean and mean cost" in found.remarks


@pytest.mark.parametrize(
    ("a", "b", "third", "pairs", "unfinished", "remarks"),
    [
        ((), ("conv",), None, {"gemm": 2.0}, ("conv",), ("'B' has not ended",)),
        (("conv",), (), None, {"gemm": 2.0}, ("conv",), ("'A' has not ended",)),
        ((), (), None, {"conv": 2.0, "gemm": 2.0}, (), ()),
        ((), ("conv",), (), {"conv": 8.0, "gemm": 4.0}, (), ("of the runs of 'B' 1 has not ended",)),
        ((), ("conv",), ("conv", "gemm"), {"gemm": 2.0}, ("conv",), ("of the runs of 'B' 2 have not ended",)),
    ],
    ids=["unfinished_in_b", "unfinished_in_a", "all_ended", "ended_in_another_run", "ended_in_no_run"],
)
def test_a_task_that_has_not_ended_is_no_loss(tmp_path, a, b, third, pairs, unfinished, remarks):
    written(tmp_path, A, {"conv": 1.0, "gemm": 1.0}, going=a, label="A")
    written(tmp_path, B, {"conv": 2.0, "gemm": 2.0, "later": 1.0}, going=b, label="B")
    if third is not None:
        written(tmp_path, "c" * 16, {"conv": 8.0, "gemm": 8.0}, going=third, label="B")
    ingest(tmp_path)
    found = compare(tmp_path, "A", "B")
    assert {pair.task_id: pair.ratio for pair in found.pairs} == {name: pytest.approx(r) for name, r in pairs.items()}
    assert (found.unfinished, found.only_a, found.only_b) == (unfinished, (), ("later",))
    assert found.remarks[-1:] == remarks
    assert ("left out, not ended: conv\n" in as_text(found)) == bool(unfinished)
    assert sum(group.loss for group in found.groups) == 0


def test_what_has_not_ended_on_one_side_alone_is_only_there(tmp_path):
    written(tmp_path, A, {"conv": 1.0, "mine": 1.0}, going=("mine",))
    written(tmp_path, B, {"conv": 1.0})
    ingest(tmp_path)
    found = compare(tmp_path, A, B)
    assert (found.only_a, found.unfinished) == (("mine",), ())


def unpriced(results, run_id, task):
    """Of `task`'s calls in `run_id` no price is known."""
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = [line.replace('"cost_usd":0.01', '"cost_usd":null') if f'"{task}"' in line else line for line in lines]
    assert changed != lines
    path.write_text("".join(changed), encoding="utf-8")


def test_dollars_are_those_of_runs_with_a_known_price(tmp_path):
    for run_id in (A, B, "c" * 16, "d" * 16):
        written(tmp_path, run_id, {"conv": 1.0, "gemm": 1.0}, label="three" if run_id != A else "one")
    unpriced(tmp_path, B, "conv")
    unpriced(tmp_path, A, "gemm")
    ingest(tmp_path)
    found = compare(tmp_path, "one", "three")
    costs = {pair.task_id: (pair.cost_a.usd, pair.cost_b.usd) for pair in found.pairs}
    assert costs == {
        "conv": (pytest.approx(0.01), pytest.approx(0.01)),
        "gemm": (None, pytest.approx(0.01)),
    }
    (whole,) = [group for group in found.groups if group.category == "all"]
    assert (whole.cost_a.usd, whole.cost_b.usd) == (None, pytest.approx(0.02))


def test_a_task_that_changed_is_left_out(tmp_path):
    written(tmp_path, A, {"conv": 1.0})
    written(tmp_path, B, {"conv": 1.0})
    path = tmp_path / "runs" / B / "events.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"task_hash":"convconv"', '"task_hash":"new"'))
    ingest(tmp_path)
    assert compare(tmp_path, A, B).changed == ("conv",)


@pytest.mark.parametrize(
    ("word", "runs"),
    [
        (A, [A]),
        ("aaaa", [A]),
        ("sweep1", [A, B]),
        ("sweep1:1", [B]),
        ("base", [A]),
        ("thresholds.small=0.3", [B]),
        ("device=H100", [B]),
        ("backend=cuda", [A, B, "c" * 16, "cc" + "d" * 14]),
    ],
)
def test_words_that_name_runs(results, word, runs):
    with reader(results) as connection:
        assert list(select(connection, word).run_ids) == runs


def test_a_threshold_of_runs_without_a_sweep(results):
    with reader(results) as connection:
        connection.execute(
            "CREATE TEMP VIEW sweep_jobs AS SELECT '' AS run_id, '' AS sweep_id, 0 AS job, '[]' AS overrides"
        )
        assert select(connection, "thresholds.small=0.20").run_ids == (A,)


@pytest.mark.parametrize(
    ("word", "why"),
    [("nobody", "no run is called 'nobody'"), ("sweep1:7", "no run"), ("model=x", "no run"), ("eeee", "no run")],
)
def test_words_that_name_none(results, word, why):
    with reader(results) as connection, pytest.raises(MissingError, match=why):
        select(connection, word)


def test_the_start_of_two_ids_is_refused(tmp_path):
    written(tmp_path, "abcd" + "0" * 12, {})
    written(tmp_path, "abcd" + "1" * 12, {})
    ingest(tmp_path)
    with reader(tmp_path) as connection, pytest.raises(MissingError, match="2 runs begin with 'abcd'"):
        select(connection, "abcd")


def test_the_start_of_a_sweeps_id_names_it_and_its_jobs(tmp_path):
    written(tmp_path, A, {}, job=(0, []))
    written(tmp_path, B, {}, job=(1, []))
    for run_id in (A, B):
        path = tmp_path / "runs" / run_id / "events.jsonl"
        path.write_text(path.read_text(encoding="utf-8").replace('"sweep1"', '"77cc8b83f8e1e6bc"'))
    ingest(tmp_path)
    with reader(tmp_path) as connection:
        assert select(connection, "77cc").run_ids == (A, B)
        assert select(connection, "77cc:1").run_ids == (B,)
        for word in ("77c", "77cc:2", "77cd:1"):
            with pytest.raises(MissingError, match=f"no run is called '{word}'"):
                select(connection, word)
        connection.execute(
            "CREATE TEMP VIEW sweep_jobs AS SELECT run_id, run_id AS sweep_id, 0 AS job FROM runs "
            "UNION ALL SELECT run_id, 'aaaa1', 0 FROM runs"
        )
        with pytest.raises(MissingError, match="2 sweeps begin with 'aaaa'"):
            select(connection, "aaaa:0")


def test_geometric_mean():
    assert geometric_mean([]) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_bootstrap_interval():
    """For many equal draws it is that of the mean of logarithms: exp(mean +- 1.96 sd / sqrt(n))."""
    values = [1.0, 4.0] * 50
    lo, hi = bootstrap_geomean(values)
    assert (lo, hi) == (pytest.approx(1.746, rel=0.02), pytest.approx(2.291, rel=0.02))
    assert bootstrap_geomean(values) == (lo, hi)
    assert bootstrap_geomean([3.0]) is None
    assert bootstrap_geomean([3.0, 3.0]) == (pytest.approx(3.0), pytest.approx(3.0))
