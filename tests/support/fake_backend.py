"""A back-end without a device: candidates say in comments what the judge will find.

`# fake: us=50 launches=3 dram_pct=80` sets the time, the launch count and metric values; `# fake: reason=wrong_result`
makes the verdict a rejection, `confirm=crash` the confirmation one, `confirm=unsupported` leaves it open, and
`again=60,55,70` are the times of the confirmation. Every call is appended to `log` when given, so that tests can count
what was paid.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from engine.confirmation import Confirmation
from engine.records import (
    Device,
    Judged,
    Launch,
    Measurement,
    MetricValue,
    Mode,
    Operator,
    Ratio,
    Reason,
    ScoreKind,
    Status,
    Timing,
    Trace,
    Verdict,
)

EAGER_US = 100.0
FLOOR_US = 20.0


def marks(source: str) -> dict[str, str]:
    """The key=value words of all `# fake:` comments."""
    words = " ".join(re.findall(r"#\s*fake:(.*)", source))
    return dict(word.split("=", 1) for word in words.split() if "=" in word)


class FakeBackend:
    def __init__(self, log: Path | None = None, delay_s: float = 0.0, fail_on: str | None = None) -> None:
        self.device = Device("fake", "fake device", {"judge": "fake"}, {"sm_count": 1.0, "dram_gbps": 100.0})
        self.log = log
        self.delay_s = delay_s
        self.fail_on = fail_on

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _count(self, what: str, operator: Operator, source: str | None) -> None:
        time.sleep(self.delay_s)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{what} {operator.task.task_id} {hash(source) if source else 'reference'}\n")

    def judge(self, operator: Operator, source: str) -> Verdict:
        self._count("judge", operator, source)
        if self.fail_on is not None and self.fail_on in source:
            raise RuntimeError("the fake device broke")
        found = marks(source)
        launch = Launch("kernel", (4, 1, 1), int(found.get("launches", "1")), 1e6, 4, 2, has_dot=False)
        trace = Trace((launch,), ())
        if "reason" in found:
            reason = Reason(found["reason"])
            return Verdict(Status.REJECTED, reason, Mode.PLAN, f"the fake judge says {reason}", trace=trace)
        return Verdict(Status.CORRECT, None, Mode.PLAN, "", precision_class="ieee", error_ratio=1.0, trace=trace)

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        source = candidate.source if candidate else None
        self._count("measure", operator, source)
        timings = [_timing("eager", EAGER_US)]
        ratios = []
        if source is not None and marks(source).get("us") != "none":
            mine = float(marks(source).get("us", "100"))
            timings.append(_timing("candidate", mine))
            ratios.append(_ratio("eager", EAGER_US / mine))
            if incumbent is not None and marks(incumbent.source).get("us") != "none":
                best = float(marks(incumbent.source).get("us", "100"))
                timings.append(_timing("incumbent", best))
                ratios.append(_ratio("incumbent", best / mine))
        return Measurement(tuple(timings), tuple(ratios), FLOOR_US, {"protocol": "fake"})

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        self._count("confirm", operator, winner.source)
        found = marks(winner.source)
        status, reason = Status.CORRECT, None
        if "confirm" in found:
            undecided = found["confirm"] == Reason.UNSUPPORTED
            status = Status.UNDECIDED if undecided else Status.REJECTED
            reason = Reason(found["confirm"])
        message = "" if reason is None else f"confirmation: {reason}"
        verdict = Verdict(status, reason, Mode.PLAN, message, seed=5)
        times = found["again"].split(",") if "again" in found and reason is None else []
        measured = [
            Measurement(
                (_timing("eager", EAGER_US), _timing("candidate", float(us))),
                (_ratio("eager", EAGER_US / float(us)),),
                FLOOR_US,
                {"protocol": "fake"},
            )
            for us in times
        ]
        return Confirmation(verdict, {"unseen1": {"N": 7}}, measurements=tuple(measured))

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        source = candidate.source if candidate else None
        self._count("profile", operator, source)
        found = marks(source) if source else {"launches": "3"}
        return tuple(
            MetricValue(name, float(found[name]) if name in found else None, "", "fake", 1.0 if name in found else 0.0)
            for name in metrics
        )


def _timing(who: str, median_us: float) -> Timing:
    return Timing(who, ScoreKind.MEASURED, median_us, median_us * 0.99, median_us * 1.01, 20)


def _ratio(over: str, value: float) -> Ratio:
    return Ratio(over, value, value * 0.99, value * 1.01, 20)
