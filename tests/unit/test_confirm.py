"""What a confirmation consists of: its seed and shapes, fresh executors, what stops it, and which time is reported."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest

from engine.confirm import disagreement, middle
from engine.confirmation import Confirmation, DropResult, SanitizerResult
from engine.judging import confirm
from engine.judging.confirm import Confirmer, Device, with_variants
from engine.judging.judge import Findings, Stop
from engine.judging.on_device import ReplayJudge
from engine.judging.references import References
from engine.records import Measurement, Mode, Operator, Ratio, Reason, ScoreKind, Status, Timing, Verdict
from tests.support.judge import FACTS, backend, bundled_tasks, case, settings

TASK = bundled_tasks()["softmax"]
ASKED = dataclasses.replace(settings().judge.confirm, repeats=3)
DRAWN = {"unseen1": {"ROWS": 9, "COLUMNS": 700}}


class StandInJudge:
    """Answers with a correct verdict unless the further checks stop; `asked` holds task and seed of each call."""

    def __init__(self, mode=None, status=Status.CORRECT):
        self.settings, self.asked, self.mode, self.status = settings().judge, [], mode, status

    def judge(self, task, source, seed, *, further, trace=None):
        self.asked.append((task, seed))
        found = Findings(seed, mode=self.mode)
        if self.status is not Status.CORRECT:
            return Verdict(self.status, Reason.WRONG_RESULT, Mode.PLAN, "wrong")
        try:
            further(found)
        except Stop as stop:
            return Verdict(stop.failure.status, stop.failure.reason, Mode.PLAN, stop.failure.message)
        return Verdict(Status.CORRECT, None, Mode.PLAN, "", remarks=tuple(found.remarks), gpu_s=found.gpu_s)


class StandInReplays:
    """Remembers whether executors were to be fresh while it was asked for anything."""

    def __init__(self):
        self.one = False
        compiled = SimpleNamespace(plan=SimpleNamespace(buffers=(SimpleNamespace(bytes=8),)))
        larger = SimpleNamespace(plan=SimpleNamespace(buffers=(SimpleNamespace(bytes=80),)))
        self.plans = SimpleNamespace(variants={"full": larger, "unseen1": compiled})

    @contextlib.contextmanager
    def one_shot(self):
        self.one = True
        yield
        self.one = False

    def prepared(self, *_):
        assert self.one
        return self.plans

    def shared(self):
        return contextlib.nullcontext()

    def executor(self):
        raise AssertionError("the drop test is replaced")


def measured(speedup, width=0.01, refuted=""):
    timing = Timing("candidate", ScoreKind.MEASURED, 100 / speedup, 1.0, 2.0, 20)
    ratio = Ratio("eager", speedup, speedup - width, speedup + width, 20)
    return Measurement((timing,), (ratio,), None, {}, refuted=refuted)


UNTIMED = Measurement((), (), None, {})


@pytest.fixture
def tested(monkeypatch):
    """The variants at which the drop test was made; it and the sanitizer find nothing unless told."""
    seen = []

    class Drop:
        def __init__(self, judge, executor, compiled, task, variant, found):
            seen.append(variant)

        def run(self):
            return (DropResult("k", True),)

    monkeypatch.setattr(confirm, "DropTest", Drop)
    monkeypatch.setattr(confirm, "find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(confirm, "launched", lambda plan: ("k",))
    monkeypatch.setattr(confirm, "write_request", lambda *_: None)
    sanitized(monkeypatch)
    return seen


def sanitized(monkeypatch, **errors):
    ran = []

    def run_tool(path, tool, *_):
        ran.append(tool)
        return SanitizerResult(tool, errors.get(tool, 0), "" if errors.get(tool, 0) == 0 else "told")

    monkeypatch.setattr(confirm, "run_tool", run_tool)
    return ran


def confirmed(tmp_path, judge=None, asked=ASKED, clock=None, drawn=DRAWN):
    judge, times = judge or StandInJudge(), iter([measured(2.0), measured(1.5), measured(1.8)])
    replays = StandInReplays()

    def timed():
        assert replays.one
        return next(times)

    device = Device(replays, {}, tmp_path, clock or timed)
    return Confirmer(judge, asked, lambda task, seed: drawn).confirm(TASK, "source", 5, device), judge


def test_a_kernel_is_judged_at_the_shapes_drawn_and_timed_again(tmp_path, tested):
    made, judge = confirmed(tmp_path)
    ((subject, seed),) = judge.asked
    assert (dict(subject.contract.variants), seed) == (DRAWN, 5)
    assert subject.task_hash != TASK.task_hash, "nothing kept of the search is used"
    assert subject.source == TASK.source
    assert (made.verdict.status, made.variants) == (Status.CORRECT, DRAWN)
    assert tested == ["unseen1"], "the smallest shape"
    assert made.drops == (DropResult("k", True),)
    assert [(result.tool, result.errors) for result in made.sanitizers] == [
        ("memcheck", 0),
        ("racecheck", 0),
        ("initcheck", 0),
    ]
    assert [made.measurements[index].ratio("eager").value for index in range(3)] == [2.0, 1.5, 1.8]


@pytest.mark.parametrize(
    ("errors", "ran", "reason"),
    [
        ({"memcheck": 1}, ["memcheck"], Reason.CRASH),
        ({"racecheck": 2}, ["memcheck", "racecheck"], Reason.UNSTABLE),
        ({"initcheck": 1}, ["memcheck", "racecheck", "initcheck"], Reason.UNWRITTEN),
    ],
)
def test_an_error_of_a_sanitizer_refuses_and_nothing_is_timed(tmp_path, tested, monkeypatch, errors, ran, reason):
    seen = sanitized(monkeypatch, **errors)
    made, _ = confirmed(tmp_path)
    assert seen == ran
    assert (made.refused, made.verdict.reason, made.measurements) == (True, reason, ())
    assert len(made.sanitizers) == len(ran), "what was found is kept"


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"absent": True}, "compute-sanitizer is not installed"),
        ({"hangs": True}, "compute-sanitizer memcheck: told"),
        ({"off": True}, None),
        ({"fallback": True}, "without a launch plan"),
        ({"nothing drawn": True}, "no shape variant could be drawn"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_left_out_is_a_remark(tmp_path, tested, monkeypatch, change, remark):
    if "absent" in change:
        monkeypatch.setattr(confirm, "find_sanitizer", lambda: None)
    if "hangs" in change:
        sanitized(monkeypatch, memcheck=None)
    asked = dataclasses.replace(ASKED, sanitizer="off") if "off" in change else ASKED
    judge = StandInJudge(mode=Mode.FALLBACK if "fallback" in change else None)
    made, judge = confirmed(tmp_path, judge, asked, drawn={} if "nothing drawn" in change else DRAWN)
    assert made.confirmed
    assert [remark in told for told in made.verdict.remarks] == ([True] if remark else [])
    if "nothing drawn" in change:
        assert judge.asked[0][0] == TASK


def test_a_wrong_kernel_is_not_timed(tmp_path, tested):
    made, _ = confirmed(tmp_path, StandInJudge(status=Status.REJECTED))
    assert (made.refused, made.measurements, tested) == (True, (), [])


def test_a_kernel_that_computes_something_else_while_it_is_timed_is_refused(tmp_path, tested):
    made, _ = confirmed(tmp_path, clock=lambda: measured(9.0, refuted="set 3 is wrong"))
    assert (made.refused, made.verdict.reason) == (True, Reason.WRONG_RESULT)
    assert "set 3 is wrong" in made.verdict.message


def test_subjects_of_other_shapes_share_nothing():
    hashes = {with_variants(TASK, {"unseen1": {"ROWS": rows}}).task_hash for rows in (3, 5, 5)}
    assert len(hashes) == 2


class StandInPool:
    def __init__(self, *uses):
        self.waiting, self.given = [SimpleNamespace(uses=count) for count in uses], []

    def take(self):
        return self.waiting.pop(0)

    def give_back(self, executor, *, intact):
        self.given.append((executor.uses, intact))


def test_a_confirmation_takes_only_executors_that_served_nobody(tmp_path):
    pool = StandInPool(3, 1, 0, 4)
    judge = SimpleNamespace(references=References("cpu"))
    replays = ReplayJudge(judge, None, pool, tmp_path / "lock")
    with replays.one_shot(), replays.executor() as executor:
        assert executor.uses == 0
    assert pool.given == [(3, False), (1, False), (0, False)]
    with replays.executor() as executor:
        assert executor.uses == 4


@pytest.mark.parametrize(
    ("speedups", "chosen"),
    [((2.0, 1.5, 1.8), 2), ((1.0,), 0), ((1.0, 3.0), 0), ((None, 1.5, None), 1), ((None, None), None), ((), None)],
)
def test_the_middle_measurement_is_reported(speedups, chosen):
    assert middle([UNTIMED if speedup is None else measured(speedup) for speedup in speedups]) == chosen


def test_without_eager_the_middle_is_by_time():
    bare = [dataclasses.replace(measured(speedup), ratios=()) for speedup in (2.0, 1.5, 1.8)]
    assert middle(bare) == 2


@pytest.mark.parametrize(
    ("speedups", "width", "told"),
    [((2.0, 1.5, 1.8), 0.01, True), ((2.0, 1.99, 2.01), 0.02, False), ((2.0,), 0.0, False), ((), 0.0, False)],
)
def test_disagreement_beyond_intervals_is_told(speedups, width, told):
    text = disagreement([measured(speedup, width) for speedup in speedups])
    assert (text is not None) == told
    assert text is None or all(f"{speedup:.3f} [" in text for speedup in speedups)


SHAPED = """        if x.shape[1] not in (512, 1031, 16384):
            return out
"""


def test_a_kernel_made_for_the_shapes_of_the_search_is_refused_at_others():
    """In the interpreter: right at every shape of the contract, and nothing is written at another."""
    source = case("a01")
    line = next(line for line in source.splitlines() if "torch.empty_like(" in line)
    assert line.strip().startswith(("out =", "y ="))
    name = line.strip().split(" ")[0]
    special = source.replace(line, f"{line}\n{SHAPED.replace('return out', f'return {name}')}", 1)
    operator = Operator(TASK, FACTS)
    assert backend().judge(operator, special).status is Status.CORRECT
    from engine.records import Judged

    made = backend().confirm(operator, Judged(special, None))
    assert made.refused, made.verdict
    assert made.verdict.variant in made.variants
    found = backend().judge(operator, source)
    honest = backend().confirm(operator, Judged(source, found.trace))
    assert honest.verdict.trace == found.trace
    assert "trace" not in honest.verdict.stages, "the launch record of the search serves"
    assert (honest.confirmed, len(honest.variants), honest.measurements) == (True, 2, ())
    assert {check.variant for check in honest.verdict.checks} == set(honest.variants)
    assert honest.verdict.seed != made.verdict.seed
    assert isinstance(honest, Confirmation)
