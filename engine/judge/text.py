"""Judgements for people: a few lines each, and a table of several. docs/judge.md shows both."""

from __future__ import annotations

from collections.abc import Sequence

from engine.display.lines import microseconds, times
from engine.judge.judgement import Judgement
from engine.records import Ratio

HEADER = ("candidate", "verdict", "reason", "error", "class", "time", "score", "vs eager", "vs fastest")
RIGHT = frozenset({"error", "time", "vs eager", "vs fastest"})
MESSAGE_HEAD, MESSAGE_TAIL = 200, 120
"""Characters shown of a message in one line; the end of a long one often says what to do."""
EAGER = "eager"


def lines(made: Judgement) -> str:
    """What happened, why, how exact, how fast and with what work; only lines that have something to say."""
    told = [*_head(made), *_numbers(made), *_times(made), *_work(made), *_confirmation(made)]
    told += [f"  remark    {' '.join(remark.split())}" for remark in made.remarks]
    if made.seed is not None:
        layers = ", ".join(made.sandbox) or "none: no process of the candidate was started"
        told.append(f"  run       seed {made.seed}; sandbox {layers}")
    return "\n".join(map(_printable, told)) + "\n"


def _printable(line: str) -> str:
    """What a candidate said cannot begin a line, nor move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in line)


def under(made: Judgement) -> str:
    """What holds for every judgement of a call: the policy on one line, the versions on another."""
    known, policy = made.versions, made.policy
    versions = f"engine {known.engine}, judge {known.judge}, torch {known.torch}, triton {known.triton}"
    shapes = ", ".join(policy.variants) or "full alone"
    return (
        f"{made.reference} on {made.backend} ({made.device}): precision {policy.precision}, "
        f"host_ops {policy.host_ops}, shape variants {shapes} ({policy.contract})\n{versions}\n"
    )


def table(made: Sequence[Judgement]) -> str:
    """One line a candidate, then how many are correct."""
    cells = [HEADER, *map(_cells, made)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    rows = [_row(HEADER, widths), "  ".join("-" * width for width in widths), *(_row(row, widths) for row in cells[1:])]
    return "\n".join([*rows, f"{sum(one.correct for one in made)} of {len(made)} correct"]) + "\n"


def _head(made: Judgement) -> list[str]:
    words = made.status.value if made.reason is None else f"{made.status.value}, {made.reason.value}"
    words += f" ({made.mode.value})" if made.mode is not None else ""
    said = made.error if made.error is not None else made.message
    return [f"{made.candidate}: {words}", *([f"  why       {_line(said)}"] if said else [])]


def _line(text: str) -> str:
    flat = " ".join(text.split())
    short = len(flat) <= MESSAGE_HEAD + MESSAGE_TAIL
    return flat if short else f"{flat[:MESSAGE_HEAD].rstrip()} … {flat[-MESSAGE_TAIL:].lstrip()}"


def _numbers(made: Judgement) -> list[str]:
    parts = []
    if made.worst is not None:
        where = f"variant {made.worst.variant}, suite {made.worst.suite}, {_count(len(made.checks), 'check')}"
        parts.append(f"at worst {made.worst.error_ratio:.3g} x PyTorch's own ({where})")
    if made.precision_class is not None:
        parts.append(f"class {made.precision_class}")
    return [f"  error     {'; '.join(parts)}"] if parts else []


def _times(made: Judgement) -> list[str]:
    told = []
    if made.timing is not None:
        mine = made.timing
        spread = "" if mine.lo_us == mine.hi_us else f" [{microseconds(mine.lo_us)}, {microseconds(mine.hi_us)}]"
        ratios = "".join(f"; {_ratio(ratio)} over {ratio.over}" for ratio in made.speedups)
        told.append(f"  time      {microseconds(mine.median_us)}{spread} {mine.score_kind.value}{ratios}")
    if made.below_floor and made.headroom is not None:
        told.append(
            f"  flag      {made.headroom:.2f} x the floor of {microseconds(made.floor_us)}: {made.floor_source}"
        )
    if made.timing_note:
        told.append(
            f"  not timed {_line(made.timing_note)}" if made.timing is None else f"  note      {made.timing_note}"
        )
    return told


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return times(ratio.value) + ("" if ratio.lo == ratio.hi else f" [{ratio.lo:.2f}, {ratio.hi:.2f}]")


def _work(made: Judgement) -> list[str]:
    if made.launches is None or made.launched_bytes is None:
        return []
    parts = [f"{_count(made.launches, 'launch', 'es')}, {_size(made.launched_bytes)}"]
    if made.host_ops:
        parts.append("host " + ", ".join(f"{call.name} x{call.calls}" for call in made.host_ops))
    if made.kernel_share is not None:
        known = (("FLOPs", made.kernel_share.flops), ("bytes", made.kernel_share.bytes))
        shares = [f"{100 * share:.0f} % of the {what}" for what, share in known if share is not None]
        parts += [f"kernels keep {' and '.join(shares)}"] if shares else []
    return [f"  work      {'; '.join(parts)}"]


def _confirmation(made: Judgement) -> list[str]:
    """Shapes drawn, speed-ups over eager in fresh processes, tools that ran, kernels without effect."""
    found = made.confirmation
    if found is None:
        return []
    shapes = [" ".join(f"{name}={size}" for name, size in sizes.items()) for sizes in found.variants.values()]
    parts = [f"{found.verdict.status.value} at {'; '.join(shapes) or 'its own shapes'}"]
    again = [_ratio(one) for measured in found.measurements if (one := measured.ratio(EAGER)) is not None]
    parts += [f"{', '.join(again)} over eager in fresh processes"] if again else []
    parts += [f"{one.tool} {'-' if one.errors is None else one.errors}" for one in found.sanitizers]
    return [f"  confirm   {'; '.join(parts)}"]


def _count(number: int, what: str, ending: str = "s") -> str:
    return f"{number} {what}" + ("" if number == 1 else ending)


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def _cells(made: Judgement) -> tuple[str, ...]:
    eager = next((ratio for ratio in made.speedups if ratio.over == EAGER), None)
    fastest = min(made.speedups, key=lambda ratio: ratio.value, default=None)
    return (
        _printable(made.candidate),
        made.status.value,
        "-" if made.reason is None else made.reason.value,
        "-" if made.error_ratio is None else f"{made.error_ratio:.3g}",
        made.precision_class or "-",
        microseconds(made.timing.median_us if made.timing else None),
        made.timing.score_kind.value if made.timing else "-",
        _ratio(eager),
        "-" if fastest is None else f"{_ratio(fastest)} {fastest.over}",
    )


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if name in RIGHT else cell.ljust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()
