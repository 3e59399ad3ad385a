"""`python -m engine.judge REFERENCE CANDIDATE...`, also installed as `kernel-judge`: verdicts without a run.

Exit codes: 0 every candidate is correct, 1 the engine itself failed, 2 wrong use or something needed is missing, 3 a
candidate is rejected, failed or undecided, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from engine.codec import did_you_mean, encode
from engine.errors import EngineError
from engine.judge import judge_many, text
from engine.judge.configuration import backend_names
from engine.judge.inputs import CANDIDATE_FORM, REFERENCE_FORM
from engine.judge.judgement import Judgement
from engine.records import Precision
from engine.tasks.contracts import HOST_OPS

NOT_CORRECT = 3
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge what the command line names; the exit code."""
    options = _options(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold what is no UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    made: list[Judgement] = []
    try:
        for one in _judge(options):
            made.append(one)
            _show(one, as_json=options.json)
        if not options.json:
            _close(made)
    except EngineError as error:
        sys.stderr.write(f"engine.judge: {error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough.
        sys.stderr.close()
    except KeyboardInterrupt:
        return INTERRUPTED
    return _exit_code(made)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser()
    known, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        names = re.findall(r"--[\w-]+", parser.format_usage())
        parser.error(f"unknown option {unknown[0]}{did_you_mean(unknown[0], names)}")
    return known


def options_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.judge",
        description=f"Judge Triton kernels against a reference. {REFERENCE_FORM}; {CANDIDATE_FORM}.",
        epilog="exit codes: 0 every candidate is correct, 1 the engine failed, 2 wrong use or something is missing, "
        "3 a candidate is rejected, failed or undecided. docs/judge.md describes the output.",
        allow_abbrev=False,
    )
    parser.add_argument("reference", metavar="REFERENCE")
    parser.add_argument("candidates", metavar="CANDIDATE", nargs="+")
    parser.add_argument("--backend", choices=backend_names(), default="auto", help="default: auto")
    policies = "torch operations outside kernels; default: the contract's, else conf/judge's"
    parser.add_argument("--host-ops", choices=HOST_OPS, help=policies)
    arithmetic = "arithmetic of fp32 products; default: the contract's, else conf/judge's"
    parser.add_argument("--precision", choices=[member.value for member in Precision], help=arithmetic)
    parser.add_argument("--contract", metavar="FILE.yaml", help="instead of the .yaml beside REFERENCE")
    shapes = "only the first N shape variants beside the full one: quicker, and weaker"
    parser.add_argument("--variants", type=_whole(1), metavar="N", help=shapes)
    timed = "time correct candidates; default: --time"
    parser.add_argument("--time", action=argparse.BooleanOptionalAction, default=True, help=timed)
    repeats = "draw inputs from this seed; default: one drawn anew for each verdict"
    again = "judge a correct candidate again, on other seeds at new shapes, as a run does with its best kernel"
    parser.add_argument("--confirm", action="store_true", help=again)
    parser.add_argument("--seed", type=_whole(0), metavar="N", help=repeats)
    parser.add_argument("--json", action="store_true", help="one JSON object a candidate and line, and nothing else")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return int(text)

    return read


def _judge(options: argparse.Namespace) -> Iterator[Judgement]:
    return judge_many(
        options.reference,
        options.candidates,
        backend=options.backend,
        host_ops=options.host_ops,
        precision=options.precision,
        contract=options.contract,
        variants=options.variants,
        seed=options.seed,
        timing=options.time,
        confirm=options.confirm,
    )


def _show(one: Judgement, *, as_json: bool) -> None:
    sys.stdout.write(json.dumps(encode(one), allow_nan=False) + "\n" if as_json else text.lines(one))
    sys.stdout.flush()


def _close(made: Sequence[Judgement]) -> None:
    if len(made) > 1:
        sys.stdout.write("\n" + text.table(made))
    sys.stdout.write(text.under(made[0]))


def _exit_code(made: Sequence[Judgement]) -> int:
    if any(one.error is not None for one in made):
        return EngineError.exit_code
    return 0 if all(one.correct for one in made) else NOT_CORRECT


if __name__ == "__main__":
    sys.exit(main())
