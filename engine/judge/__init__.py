"""Judge kernels without a run: a reference, one or more candidates, one back-end. `python -m engine.judge` is the
command; its options are the arguments here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.errors import ConfigError, Fault
from engine.judge.configuration import load_settings
from engine.judge.inputs import demands, load_subject, read_candidates
from engine.judge.judgement import Judgement
from engine.judge.session import judgements
from engine.project import resolve

__all__ = ["Judgement", "judge", "judge_many"]


def judge(
    reference: str | Path,
    candidate: str | Path,
    *,
    backend: str = "auto",
    host_ops: str | None = None,
    precision: str | None = None,
    contract: str | Path | None = None,
    variants: int | None = None,
    seed: int | None = None,
    timing: bool = True,
    confirm: bool = False,
) -> Judgement:
    """The judgement on one candidate file; arguments and errors as of `judge_many`, which starts its processes once for
    all its candidates."""
    if Path(candidate).expanduser().is_dir():
        problem = "expected one file, got a folder; judge_many takes folders"
        raise ConfigError([Fault("candidate", problem, str(candidate))])
    (made,) = judge_many(
        reference,
        [candidate],
        backend=backend,
        host_ops=host_ops,
        precision=precision,
        contract=contract,
        variants=variants,
        seed=seed,
        timing=timing,
        confirm=confirm,
    )
    return made


def judge_many(
    reference: str | Path,
    candidates: str | Path | Iterable[str | Path],
    *,
    backend: str = "auto",
    host_ops: str | None = None,
    precision: str | None = None,
    contract: str | Path | None = None,
    variants: int | None = None,
    seed: int | None = None,
    timing: bool = True,
    confirm: bool = False,
) -> Iterator[Judgement]:
    """Judgements on candidate files, and on all .py files below candidate folders, in order, each when it is made.

    `reference`: a file in KernelBench form or a bundled task's name. `host_ops` (none, library, any), `precision`
    (ieee, tf32, reduced) and `seed` replace what the contract, else conf/judge, says; `contract` replaces the .yaml
    beside the reference; `variants` keeps only the first so many shape variants; without `timing` nothing is timed.
    `confirm`: a correct candidate is judged again as the best kernel of a run is, on other seeds at shapes drawn for
    it, and on a GPU timed in fresh processes.

    What is wrong with a candidate is in its judgement. Before the first one: ConfigError (unreadable files, a reference
    that is none, unknown values) and MissingError (no such reference, no such device).
    """
    asked = demands(host_ops, precision, variants)
    settings = load_settings(backend, seed)
    paths = [candidates] if isinstance(candidates, str | Path) else candidates
    found = read_candidates(paths, reference)
    subject = load_subject(reference, contract, asked, resolve(settings.paths.tasks))
    return judgements(settings, subject, found, timing=timing, confirm=confirm)
