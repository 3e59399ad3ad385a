"""The best kernel of a task is confirmed before it is reported; one that is refused makes room for the one before."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from engine.codec import encode
from engine.confirmation import Confirmation
from engine.draft import TaskState
from engine.folder import RunFolder
from engine.kernel import Kernel
from engine.paid import Paid
from engine.records import Measurement, Ratio

EAGER = "eager"


def confirm_best(state: TaskState, paid: Paid, folder: RunFolder) -> bool | None:
    """Confirm the best kernel, then those that were best before it, until one is not refused: the state's best is that
    one with its time in fresh processes, or None. True: it is confirmed; False: every kernel was refused; None: the
    judge could not decide, or nothing is to be confirmed. Whatever is raised on the way leaves no refused kernel as
    the best one."""
    if state.best is None or not paid.settings.judge.confirm.enabled:
        return None
    for kernel in reversed(state.bests):
        made = paid.confirm(state.operator, kernel.judged)
        chosen = middle(made.measurements)
        _note(state, paid, kernel, made, chosen)
        if made.refused:
            state.best = None
            folder.remove_best(state.task_id)
            continue
        state.best = kernel
        if chosen is not None:
            state.best = dataclasses.replace(kernel, measurement=made.measurements[chosen], timed=True)
        folder.write_best(state.task_id, kernel.source)
        return True if made.confirmed else None
    return False


def middle(measurements: Sequence[Measurement]) -> int | None:
    """Which measurement of the candidate has the middle speed-up over eager, by its time where eager has none; of an
    even number the lower one. None where the candidate was never timed."""
    timed = [index for index, made in enumerate(measurements) if made.timing("candidate") is not None]
    if not timed:
        return None
    return statistics.median_low([(_speed(measurements[index]), index) for index in timed])[1]


def _speed(measurement: Measurement) -> float:
    ratio, timing = measurement.ratio(EAGER), measurement.timing("candidate")
    assert timing is not None
    return ratio.value if ratio is not None else 1.0 / timing.median_us


def disagreement(measurements: Sequence[Measurement]) -> str | None:
    """How speed-ups over eager differ by more than their intervals, in words; None where all intervals overlap."""
    ratios = [ratio for made in measurements if (ratio := made.ratio(EAGER)) is not None]
    if not ratios or max(ratio.lo for ratio in ratios) <= min(ratio.hi for ratio in ratios):
        return None
    told = ", ".join(f"{ratio.value:.3f} [{ratio.lo:.3f}, {ratio.hi:.3f}]" for ratio in ratios)
    return f"speed-ups over eager in fresh processes disagree beyond their intervals: {told}"


def outcome_of(made: Confirmation) -> str:
    """confirmed, refused or undecided."""
    return "refused" if made.refused else "confirmed" if made.confirmed else "undecided"


def remarks_of(made: Confirmation) -> tuple[str, ...]:
    """The verdict's remarks and what the times say of each other."""
    told = disagreement(made.measurements)
    lost = ["no measurement in fresh processes came to an end"] if made.measurements and _untimed(made) else []
    return (*made.verdict.remarks, *([told] if told else []), *lost)


def _untimed(made: Confirmation) -> bool:
    return made.confirmed and middle(made.measurements) is None


def _note(state: TaskState, paid: Paid, kernel: Kernel, made: Confirmation, chosen: int | None) -> None:
    verdict = made.verdict
    paid.journal.write(
        "confirmation",
        task_id=state.task_id,
        durable=True,
        candidate_id=kernel.candidate_id,
        outcome=outcome_of(made),
        status=verdict.status.value,
        reason=verdict.reason.value if verdict.reason else None,
        mode=verdict.mode.value,
        message=verdict.message,
        error_ratio=verdict.error_ratio,
        variant=verdict.variant,
        suite=verdict.suite,
        variants=encode(made.variants),
        drops=[encode(drop) for drop in made.drops],
        sanitizers=[encode(result) for result in made.sanitizers],
        ratios=[[_told(ratio) for ratio in measured.ratios] for measured in made.measurements],
        chosen=chosen,
        remarks=list(remarks_of(made)),
        seed=verdict.seed,
        wall_s=verdict.wall_s,
        gpu_s=made.gpu_s,
    )


def _told(ratio: Ratio) -> object:
    return {"over": ratio.over, "value": ratio.value, "lo": ratio.lo, "hi": ratio.hi, "n": ratio.n}
