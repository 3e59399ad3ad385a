"""The deciding parts of the judge's benchmarks: what they choose, count and conclude. Nothing is judged here."""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tarfile

import pytest

from benchmarks import all_judge, judge_aa, judge_cost, judge_soak, peers, recorded_speedups, worklist
from benchmarks.worklist import BenchmarkError, Entry, Lines, Recorded
from engine.backends.cuda import kernel_names
from engine.judging.timing import Estimate, Paired
from engine.records import Mode, Precision, Reason, Status, Verdict

KERNEL = '''
import triton
import triton.language as tl

@triton.jit
def first_kernel(x):
    """first_kernel reads x"""

@triton.jit
def second(x): first_kernel(x); second_best = 1

def forward(x): first_kernel[(1,)](x); second[(1,)](x)
'''


def recorded(score=1.0, runnable=True, **changes):
    known = {"phase": "seed", "runnable": runnable, "error_class": None, "score": score, "ref_ms": 2.0, "test_ms": 2.0}
    return Recorded(**{**known, "baseline_ms": None, "tolerance": 1e-3, "max_abs_err": 1e-4, **changes})


def entry(key, task, **changes):
    return Entry(key, task, f"# {key}", None, recorded(**changes))


def judged(kind="warm", key="k", **changes):
    row = {"kind": kind, "key": key, "outcome": "correct", "suites": list("abcde"), "halfwidth": 0.01}
    return {**row, "wall_s": 1.0, "gpu_s": 0.5, "stages": {"check": 0.4}, **changes}


class TestWorkList:
    OUTCOMES = {  # noqa: RUF012
        "a": {"ieee_outcome": "correct", "tf32": ""},
        "b": {"ieee_outcome": "rejected: precision", "tf32": "correct"},
        "c": {"ieee_outcome": "failed: compile", "tf32": ""},
        "d": {"ieee_outcome": "rejected: wrong_result", "tf32": ""},
    }

    def chosen(self):
        rows = [entry("a", "level1/x", score=0.5), entry("c", "level1/x", runnable=False), entry("d", "level1/x")]
        return worklist.choose([*rows, entry("b", "level2/y")], self.OUTCOMES, 1)

    def test_cost_takes_one_accepted_kernel_a_task_with_its_policy(self):
        work = self.chosen()
        assert {e.key: e.precision for e in work.chosen(work.cost)} == {"a": Precision.IEEE, "b": Precision.TF32}

    def test_drafts_are_those_that_never_ran(self):
        assert self.chosen().drafts == ("c",)

    def test_speedups_take_the_best_record_whatever_the_judge_said(self):
        assert set(self.chosen().speedups) == {"d", "b"}

    def test_slow_peers_are_half_of_the_peers(self):
        rows = [entry(f"k{n}", f"level{n % 2 + 1}/t{n}") for n in range(40)]
        outcomes = {row.key: {"ieee_outcome": "correct", "tf32": ""} for row in rows}
        work = worklist.choose(rows, outcomes, 1)
        assert (len(work.peers), len(work.slow_peers)) == (16, 8)
        assert set(work.slow_peers) < set(work.peers) < set(work.cost)
        assert {e.task_id[:6] for e in work.chosen(work.slow_peers)} == {"level1", "level2"}


class TestLines:
    def test_what_was_written_is_done_and_a_torn_line_is_not(self, tmp_path):
        path = tmp_path / "lines.jsonl"
        Lines(path).add({"id": "one", "kind": "k"}, {"id": "two", "kind": "k"})
        path.write_text(path.read_text() + '{"id": "three", "ki')
        again = Lines(path)
        assert again.done == {"one", "two"}
        again.add({"id": "three", "kind": "k"})
        assert Lines(path).done == {"one", "two", "three"}


def test_spread_of_known_values():
    found = worklist.spread([float(n) for n in range(11)])
    assert (found.n, found.median, found.p10, found.p90, found.least, found.largest) == (11, 5, 1, 9, 0, 10)
    assert worklist.spread([]) is None


def test_markdown_has_the_columns_of_all_rows():
    text = worklist.markdown("T", [{"a": 1.23456}, {"b": "x|y"}])
    assert "| a | b |" in text
    assert "| 1.235 |  |" in text
    assert "|  | x/y |" in text


class TestClone:
    def test_kernels_get_other_names_and_nothing_else_changes(self):
        text = judge_cost.clone(KERNEL, "t")
        assert kernel_names(text, None) == ("first_kernel_t", "second_t")
        assert text.replace("_t", "") == KERNEL.replace("_t", "")
        assert '"""first_kernel reads x"""' in text
        assert "second_best" in text
        ast.parse(text)

    def test_no_python_gets_a_comment(self):
        assert judge_cost.clone("def (", "t").startswith("def (\n# t")


class TestCost:
    def verdict(self, **changes):
        return Verdict(Status.CORRECT, None, Mode.PLAN, "", **changes)

    def test_a_gpu_verdict_that_ran_must_state_its_seconds(self):
        assert judge_cost.held(self.verdict(gpu_s=0.3, stages={"check": 0.3}), "cuda") == 0.3
        assert judge_cost.held(self.verdict(stages={"check": 0.3}), "cuda") is None
        assert judge_cost.held(self.verdict(stages={"trace": 0.3}), "cuda") == 0.0
        assert judge_cost.held(self.verdict(stages={"check": 0.3}), "cpu") == 0.0

    @pytest.mark.parametrize(
        "changes", [{"suites": list("abcd")}, {"halfwidth": 0.02}, {"halfwidth": None}, {"outcome": "failed: crash"}]
    )
    def test_what_misses_a_part_of_the_target_is_left_out(self, changes):
        assert judge_cost.complete(judged())
        assert not judge_cost.complete(judged(**changes))

    def test_one_value_a_problem_and_none_for_what_is_not_stated(self):
        rows = [judged(gpu_s=0.2), judged(gpu_s=0.4), judged(gpu_s=None), judged(key="other", gpu_s=1.0)]
        assert sorted(judge_cost.medians(rows, "gpu_s")) == pytest.approx([0.3, 1.0])

    def test_drafts_that_reach_the_gpu_are_no_part_of_the_rate(self):
        rows = [{"key": f"k{n % 2}", "gpu_s": 0.0, "stages": {"trace": 0.1}} for n in range(4)]
        rows.append({"key": "k2", "gpu_s": 0.0, "stages": {"check": 0.1}})
        rate = judge_cost.draft_rate(rows, 7, 2, 8.0)
        assert (rate["drafts"], rate["ending_early"], rate["rejected_without_gpu"]) == (7, 2, 4)
        assert rate["drafts_per_s"] == 0.5


class TestAA:
    def trial(self, lo, hi, **changes):
        row = {"size": "50us", "ratio": (lo + hi) / 2, "lo": lo, "hi": hi, "candidate_us": 50.0, "wall_s": 0.2}
        return {**row, "opening": 0, "blocks": 20, **changes}

    def test_intervals_are_counted(self):
        rows = [self.trial(0.99, 1.01), self.trial(1.001, 1.009), self.trial(1.02, 1.03), self.trial(0.97, 0.98)]
        row = judge_aa.aa_row("50us", rows)
        assert (row["contains 1.00"], row["false faster"], row["false slower"]) == (1, 1, 1)
        assert row["width max"] == pytest.approx(0.02)

    def test_the_error_of_a_delay_is_a_share_of_the_kernel(self):
        rows = [{**self.trial(1.0, 1.2, ratio=ratio), "share": 0.1, "known_us": 5.0} for ratio in (1.1, 1.104, 1.13)]
        (row,) = judge_aa.delay_rows(rows)
        assert row["recovered us median"] == pytest.approx(5.2)
        assert row["error % median"] == pytest.approx(0.4)
        assert row["error % largest"] == pytest.approx(3.0)
        assert row["within 1 %"] == 2

    def test_a_cut_run_goes_on_and_has_all_sizes(self, tmp_path):
        lines = Lines(tmp_path / "aa.jsonl")

        class Layer:
            name = "counted"
            opened_sizes: list = []  # noqa: RUF012

            def opened(self, pairing):
                self.opened_sizes.append(pairing.elements)
                return self

            def __enter__(self):
                estimate = Estimate(1.0, 0.99, 1.01, 20)
                both = {"candidate": estimate, "incumbent": estimate}
                return lambda: Paired(both, {"incumbent": estimate}, 20, 0, None, "precise")

            def __exit__(self, *_):
                pass

        judge_aa.Run(Layer(), lines, float("inf"), 2).aa(["10us", "50us"], 2)
        judge_aa.Run(Layer(), lines, float("inf"), 2).aa(["10us", "50us"], 4)
        assert Layer.opened_sizes == [judge_aa.ELEMENTS[size] for size in ("10us", "50us")] * 2
        assert [row["trials"] for row in judge_aa.aa_rows(lines.of("aa"))] == [4, 4, 8]


class TestSoak:
    def test_every_round_has_every_harmful_kind_and_a_slice_every_kind(self):
        kinds = judge_soak.kinds("cuda")
        harmful = [kind.name for kind in kinds if kind.group == "harmful"]
        one_round = len(harmful) + sum(judge_soak.ROUND.values())
        names = [kind.name for kind in judge_soak.deal(kinds, 3 * one_round, 1)]
        assert all(names.count(name) == 3 for name in harmful)
        assert {kind.name for kind in judge_soak.slice_of(kinds, len(kinds), 1)} == {kind.name for kind in kinds}

    def candidate(self, number, kind, got):
        row = {"id": f"candidate|{number}", "kind": "candidate", "name": kind.name, "outcome": got, "message": ""}
        return {**row, "expected": list(kind.expected)}

    MACHINE = {  # noqa: RUF012
        "id": "m", "kind": "machine", "judged": 2, "processes_open": 3, "left": [], "zombies": 0, "memory_back": True,
        "gpu_mib_before": 1.0, "gpu_mib_after": 1.0,
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("got", "machine", "said"),
        [
            ("rejected: wrong_result", {}, "expected correct"),
            ("lost", {}, "got lost"),
            ("correct", {"left": ["12 S python"]}, "still running"),
            ("correct", {"zombies": 1}, "waited for"),
            ("correct", {"memory_back": False}, "GPU memory"),
            ("correct", {"processes_open": 0}, "finds nothing"),
        ],
    )
    def test_each_fault_is_found(self, tmp_path, got, machine, said):
        kind = next(kind for kind in judge_soak.kinds("cpu") if kind.group == "honest")
        lines = Lines(tmp_path / "soak.jsonl")
        lines.add(self.candidate(0, kind, "correct"), self.MACHINE)
        assert judge_soak.faults([kind], lines) == []
        assert "no verdict" in judge_soak.faults([kind, kind], lines)[0]
        lines.add(self.candidate(1, kind, got), {**self.MACHINE, **machine})
        (fault,) = judge_soak.faults([kind, kind], lines)
        assert said in fault

    def test_a_process_is_found_by_its_environment_until_it_ends(self, tmp_path):
        mark = str(tmp_path / "marked")
        command = [sys.executable, "-c", "print(flush=True); input()"]
        with subprocess.Popen(
            command, env={**os.environ, "HOME": mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            assert [found.pid for found in judge_soak.processes([mark])] == [process.pid]
            process.stdin.close()
        assert judge_soak.processes([mark]) == []


class TestReasons:
    def row(self, verdict=None, times=None, **changes):
        said = {"policy": "ieee", "status": "correct", "reason": None, "class": "ieee", "launches": 1, "operations": 0}
        us = {"eager": 10.0, "candidate": 5.0}
        known = {"us": us, "ratios": {"eager": [2.0, 1.9, 2.1, 20]}, "note": ""}
        record = {"score": 4.0, "ref_ms": 8.0, "test_ms": 2.0, "max_abs_err": 0.1, "tolerance": 1.0}
        row = {"verdict": {**said, **(verdict or {})}, "times": known, "strict_us": 10.0, "recorded": record}
        row = {**row, "bytes": 1e9, "allocates": False, **changes}
        return row if times is None else {**row, "times": times or None}

    @pytest.mark.parametrize(
        ("row", "first"),
        [
            ({}, "another GPU"),
            ({"recorded": {"score": 2.1, "ref_ms": 2.1, "test_ms": 1.0}}, "agrees"),
            ({"recorded": {"score": 4.0, "ref_ms": 4.0, "test_ms": 2.0}}, "recorded over a baseline"),
            ({"verdict": {"policy": "tf32", "class": "tf32"}, "strict_us": 50.0}, "tf32 arithmetic"),
            ({"bytes": 1 << 20}, "cold L2"),
            ({"verdict": {"launches": 80}}, "launch overhead: 20%"),
            ({"allocates": True}, "the record paid a NaN fill"),
            ({"verdict": {"reason": Reason.STATE_MISMATCH, "status": "failed"}, "times": {}}, "parameters under other"),
            ({"verdict": {"reason": Reason.WRONG_RESULT, "status": "rejected"}, "times": {}}, "wrong result; recorded"),
            ({"verdict": {"reason": Reason.REQUIREMENT, "status": "rejected"}, "times": {}}, "rejected: requirement"),
        ],
    )
    def test_the_first_reason_follows_from_the_row(self, row, first):
        assert recorded_speedups.reasons(self.row(**row))[0].startswith(first)

    def test_the_larger_factor_comes_first(self):
        row = self.row({"policy": "tf32", "class": "tf32"}, strict_us=15.0)
        row["recorded"] = {**row["recorded"], "ref_ms": 2.0}
        assert [text[:8] for text in recorded_speedups.reasons(row)[:2]] == ["recorded", "tf32 ari"]


class TestPeers:
    def test_medians_are_over_kernels_that_both_judged_with_a_verdict(self, tmp_path):
        lines = Lines(tmp_path / "peers.jsonl")
        for key, wall, accepted in (("a", 10.0, True), ("b", 20.0, False), ("c", 120.0, None), ("d", 90.0, True)):
            row = {"id": f"LLMKernel|{key}", "kind": "LLMKernel", "key": key, "wall_s": wall, "accepted": accepted}
            lines.add(row)
        ours = [judged(key=key, wall_s=wall) for key, wall in (("a", 1.0), ("a", 3.0), ("b", 0.5), ("c", 1.0))]
        alone, warm = peers.total_rows("LLMKernel", lines, ours)
        assert (alone["n"], alone["no verdict"], alone["accepted"]) == (3, 1, 2)
        assert (warm["n"], warm["ratio of medians"], warm["median ratio"]) == (2, 12.0, 22.5)

    def test_other_files_than_the_named_commits_are_refused(self, tmp_path):
        for file in peers.FILES.values():
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).write_text("changed")
        with pytest.raises(BenchmarkError, match="d078a38"):
            peers.check(tmp_path)


class TestAll:
    def steps(self):
        return [all_judge.Step(name, (), seconds) for name, seconds in (("a", 100.0), ("b", 300.0), ("c", 0.0))]

    def test_a_step_has_its_share_and_what_earlier_ones_left(self):
        first, second, third = self.steps()
        assert all_judge.share_of(second, [third], 400.0) == 400 - all_judge.GRACE_S
        assert all_judge.share_of(first, [second, third], 400.0) == 100
        assert all_judge.share_of(third, [], 30.0) < all_judge.LEAST_S

    def test_lines_travel_and_what_is_there_stays(self, tmp_path):
        there, here = tmp_path / "there", tmp_path / "here"
        Lines(all_judge.lines_of(there, "peers")).add({"id": "old", "kind": "k"})
        Lines(all_judge.lines_of(there, "judge_aa")).add({"id": "old", "kind": "k"})
        Lines(all_judge.lines_of(here, "judge_aa")).add({"id": "new", "kind": "k"})
        all_judge.pack(there, tmp_path / "out", [], {})
        assert len(list((tmp_path / "out").iterdir())) <= 8
        all_judge.unpack(tmp_path / "out" / "lines.tgz", here)
        assert Lines(all_judge.lines_of(here, "peers")).done == {"old"}
        assert Lines(all_judge.lines_of(here, "judge_aa")).done == {"new"}
        assert json.loads((tmp_path / "out" / "report.json").read_text())["reports"] == {}

    def test_nothing_of_an_archive_lands_elsewhere(self, tmp_path):
        (tmp_path / "x").write_text("{}")
        with tarfile.open(tmp_path / "bad.tgz", "w:gz") as packed:
            packed.add(tmp_path / "x", "../escaped/escaped.jsonl")
        all_judge.unpack(tmp_path / "bad.tgz", tmp_path / "here")
        assert not (tmp_path / "escaped").exists()

    def test_an_unknown_share_is_named(self, tmp_path):
        arguments = argparse.Namespace(share=["nonsense=3"], backend="cpu", work=tmp_path, peers=None, scratch=tmp_path)
        with pytest.raises(BenchmarkError, match="nonsense"):
            all_judge.plan(arguments, ["judge_aa"])
