"""What the design promises for bad luck and has no better place: no device, no disk, two jobs at once, a damaged step,
a clock that jumps, another GPU. docs/steps.md has the table."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import engine.folder
import engine.memo
from engine.app import run_job
from engine.errors import StoreError, StoreFull
from engine.journal import Journal
from engine.llm.budget import Budget
from engine.memo import Memo
from engine.steps.verify import verify
from engine.store import ingest, query
from tests.flow import test_fresh
from tests.flow.test_fresh import REPLIES, Slower, device, lab
from tests.flow.test_runner import of

__all__ = ["lab"]

ROOT = Path(__file__).resolve().parents[2]
STAGE = "conv2d_relu_bias/fusion_memory"


def script_of(folder: Path) -> Path:
    slots = {
        f"{STAGE}/seed/seed.0.*": "```python\n# fake: us=90\nclass ModelNew: ...\n```",
        f"{STAGE}/*/strategy.0.0": "{}",
        f"{STAGE}/*/optimise.0.0": "```python\n# fake: us=50\nclass ModelNew: ...\n```",
    }
    path = folder / "script.json"
    path.write_text(json.dumps([{"slot": slot, "text": text} for slot, text in slots.items()]))
    return path


def command(results: Path, script: Path, *overrides: str) -> list[str]:
    start = [sys.executable, "-m", "tests.support.fake_engine", "category=fusion_memory", "backend=cpu"]
    return [*start, "llm=scripted", f"llm.script={script}", f"paths.results={results}", *overrides]


def test_a_run_that_needs_a_gpu_refuses_without_one_before_anything_is_spent(tmp_path):
    results = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, "-m", "engine", "backend=cuda", f"paths.results={results}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2, done.stderr
    assert "CUDA" in done.stderr
    assert "doctor" in done.stderr
    assert not list(results.glob("steps/reply/**/*.json"))


def test_two_sweep_jobs_at_once_finish_and_never_pay_one_step_twice(tmp_path):
    results, script = tmp_path / "results", script_of(tmp_path)
    jobs = [
        subprocess.Popen(
            command(results, script, f"thresholds.small_conv_speedup={value}"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for value in (0.1, 0.2, 0.3)
    ]
    for job in jobs:
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors[-2000:]
    ledger = [json.loads(line)["key"] for line in (results / "steps" / "ledger.jsonl").read_text().splitlines()]
    assert len(set(ledger)) == len(ledger)
    done = subprocess.run(
        [sys.executable, "-m", "engine.results", "--results", str(results), "ingest"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert query(results, "select count(*), count(distinct run_id) from runs").rows == ((3, 3),)


@pytest.mark.parametrize("what", ["journal", "memo"])
def test_a_full_disk_is_named_with_a_remedy(tmp_path, monkeypatch, what):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        if what == "memo":
            Memo(tmp_path, "r").step("kind", {}, lambda: (1, {}))
        else:
            journal = Journal(tmp_path / "events.jsonl", "r")
            try:
                journal.write("waiting", where="x", durable=True)
            finally:
                monkeypatch.undo()
                journal.close()
    assert "space" in caught.value.hint
    monkeypatch.undo()
    assert Memo(tmp_path, "r").lookup("kind", {}) is None


class Disk:
    """Lets so many writes through, then is full; the journal gets half a line in, as a real one would."""

    def __init__(self, monkeypatch):
        self.room: int | None = None
        whole, append = engine.memo.write_whole, Journal._append

        def write(*given: object, **named: object) -> None:
            self.spend()
            whole(*given, **named)

        def line(journal: Journal, data: bytes) -> None:
            try:
                self.spend()
            except OSError:
                append(journal, data[: len(data) // 2])
                raise
            append(journal, data)

        monkeypatch.setattr(engine.memo, "write_whole", write)
        monkeypatch.setattr(engine.folder, "write_whole", write)
        monkeypatch.setattr(Journal, "_append", line)

    def spend(self) -> None:
        if self.room is not None:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            self.room -= 1


def test_a_full_disk_stops_the_run_before_it_pays_for_what_it_cannot_keep(lab, monkeypatch):
    """Wherever it strikes; the journal has whole lines, the memo whole steps, and with space again the run ends. At
    most the one reply that could not be stored is asked twice."""
    disk, asked = Disk(monkeypatch), 0
    for stops, room in enumerate((2, 7, 5, 11, 9), start=1):
        disk.room = room
        with pytest.raises(StoreFull, match="No space left") as caught:
            lab.run()
        assert "repeat the command" in caught.value.hint
        asked += sum(lab.llm.seen.values())
        kept = len(list((lab.folder / "results/steps/reply").glob("*/*.json")))
        assert asked - kept <= stops
        assert verify(lab.folder / "results" / "steps").errors == 0
        (path,) = (lab.folder / "results").glob("runs/*/events.jsonl")
        assert path.read_bytes()[-1:] in (b"", b"\n")
    disk.room = None
    _, events, _ = lab.run()
    assert of(events, "run_ended", outcome="done")
    assert {key: len(of(events, "llm_call", stage=key.split(".")[0])) for key in REPLIES} == dict.fromkeys(REPLIES, 1)
    assert [e["seq"] for e in events] == list(range(len(events)))


def test_a_second_process_on_a_run_is_refused_and_the_first_goes_on(lab):
    class Twice(Slower):
        """Its first step starts the same run again, as another process would."""

        def judge(self, operator, source):
            with pytest.raises(StoreError, match="another process is writing") as caught:
                lab.run()
            assert "repeat the command" in caught.value.hint
            return super().judge(operator, source)

    _, events, _ = lab.run(backend=Twice())
    assert of(events, "run_ended", outcome="done")
    assert [e["seq"] for e in events] == list(range(len(events)))


def test_an_interrupted_run_leaves_its_files_its_table_and_its_rows(lab, monkeypatch, capsys):
    monkeypatch.setattr(test_fresh, "execute", lambda settings, tree: run_job(settings, tree, None))
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=6))
    (folder,) = (lab.folder / "results/runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["tasks"] == 1
    assert "toy" in capsys.readouterr().out
    assert query(lab.folder / "results", "SELECT count(*) FROM candidates").rows[0][0] > 0


def test_the_end_of_an_earlier_text_of_a_task_is_not_that_of_the_edited_one(lab):
    lab.run()
    toy = lab.folder / "toy.py"
    toy.write_text(toy.read_text() + "# edited\n")
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=1))
    again = Slower()
    _, events, _ = lab.run(backend=again)
    assert again.done, "the edited task has not been judged before"
    assert of(events, "run_ended")[-1]["seq"] > of(events, "task_started")[-1]["seq"]


def test_a_continued_run_counts_what_it_paid_before_once(lab, monkeypatch):
    accounts = []
    made = Budget.__init__

    def noted(self, *given, **named):
        made(self, *given, **named)
        accounts.append(self.run)

    monkeypatch.setattr(Budget, "__init__", noted)

    def limited(settings):
        budget = replace(settings.search.budget, gpu_s=1000.0)
        return replace(settings, search=replace(settings.search, budget=budget))

    with pytest.raises(KeyboardInterrupt):
        lab.run(limited, backend=Slower(patience=6))
    lab.run(limited, backend=Slower())
    lines = map(json.loads, (lab.folder / "results/steps/ledger.jsonl").read_text().splitlines())
    paid = sum(line["cost"]["wall_s"] for line in lines if "wall_s" in line["cost"])
    assert accounts[-1].gpu_s == pytest.approx(paid)


def test_a_damaged_step_names_its_file_and_is_done_again_without_it(lab):
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=4))
    (path,) = (lab.folder / "results/steps/baseline").glob("*/*.json")
    path.write_text(path.read_text()[:-40])
    _, events, _ = lab.run()
    (failed,) = of(events, "task_failed")
    assert str(path) in failed["message"]
    path.unlink()
    again = Slower()
    _, events, llm = lab.run(backend=again)
    assert of(events, "run_ended", outcome="done")
    assert again.done[0] == "measure"
    assert llm.seen.total() < len(REPLIES), "what was answered before the damage stays"


def test_an_outcome_of_another_version_names_its_file(lab):
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=4))
    (path,) = (lab.folder / "results/steps/baseline").glob("*/*.json")
    path.write_text(path.read_text().replace("floor_us", "ground_us"))
    _, events, _ = lab.run()
    assert str(path) in of(events, "task_failed")[0]["message"]


def test_a_clock_that_jumps_back_breaks_no_order_and_no_span(lab, monkeypatch):
    """Half an hour back at every look: the journal's order is `seq`, its spans are of the monotonic clock."""
    now = [1.7e9]

    def back() -> float:
        now[0] -= 1800.0
        return now[0]

    monkeypatch.setattr("engine.journal.time.time", back)
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=6))
    run_id, events, _ = lab.run()
    monkeypatch.undo()
    assert events[0]["t"] > events[-1]["t"], "the clock did jump"
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert of(events, "run_ended")[0]["wall_s"] >= 0
    assert lab.paid(run_id)["promotion"] == 2
    assert verify(lab.folder / "results" / "steps").findings == ()
    ingest(lab.folder / "results")
    best = query(lab.folder / "results", "select speedup, rank from leaderboard").rows
    assert best == ((pytest.approx(2.5), 1),)


def test_another_gpu_in_the_middle_of_a_run_measures_everything_itself(lab):
    with pytest.raises(KeyboardInterrupt):
        lab.run(backend=Slower(patience=6))
    run_id, events, _ = lab.run(backend=device("another GPU"))
    assert [e["device"]["name"] for e in of(events, "environment")] == ["fake device", "another GPU"]
    paid = lab.paid(run_id)
    assert paid["baseline"] == 2, "one on each device"
    assert of(events, "run_ended", outcome="done")
    assert lab.run(backend=device("a third GPU"))[0] == run_id
    assert lab.paid(run_id) == paid, "a run that has ended stays ended, on whatever device"
