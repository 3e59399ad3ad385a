"""What a change invalidates, over whole runs on one results folder; runs that measure afresh and ask nobody."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import engine.run
from engine.codec import encode
from engine.journal import read_events
from engine.run import execute
from tests.flow.test_runner import FACTS, TASK, ScriptLlm, kernel, of
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parents[2]
READ = {"dram_pct": 9, "dram_write_bytes": 9, "dram_read_bytes": 9}
REPLIES = {
    "seed.seed.0.0": kernel(us=80, launches=3, **READ),
    "primary_conv.optimise.0.0": kernel(us=60, launches=2, **READ),
    "fuse_activation_pooling.optimise.0.0": kernel(us=40, launches=1, **READ),
}
JUDGED = {"verdict", "baseline", "timing", "promotion", "profile", "confirm"}
TIMED = {"baseline", "timing", "promotion"}


@functools.cache
def composed():
    settings, _ = compose(
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        "llm.script=unused.json",
        "task=path",
        "task.path=unused.py",
        "search.seeds=1",
        "search.strategy=false",
    )
    return settings


class Slower(FakeBackend):
    """Another day: every time is longer by the same share, and may run out of patience after some steps."""

    def __init__(self, share=1.1, patience=None):
        super().__init__()
        self.share, self.patience, self.done = share, patience, []

    def _count(self, what, operator, source):
        if self.patience == len(self.done):
            raise KeyboardInterrupt
        self.done.append(what)

    def measure(self, operator, candidate, incumbent):
        made = super().measure(operator, candidate, incumbent)
        return replace(made, timings=tuple(self._later(timing) for timing in made.timings))

    def _later(self, timing):
        return replace(timing, median_us=timing.median_us * self.share)


def device(name="fake device", **facts):
    made = FakeBackend()
    made.device = replace(made.device, name=name, facts={**made.device.facts, **facts})
    return made


class Lab:
    """Runs of one task on one results folder."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        (folder / "toy.py").write_text(TASK)
        # Declared, or a process with torch would be started to derive them.
        (folder / "toy.yaml").write_text("variants: {small: {N: 4}}\n")
        monkeypatch.setattr(engine.run, "describe", lambda tasks, scratch: tuple(FACTS for _ in tasks))

    def run(self, change=lambda settings: settings, backend=None):
        """The run's id, its events, and the model with what it was really asked."""
        self.llm = llm = ScriptLlm(REPLIES)
        made = backend or FakeBackend()
        self.monkeypatch.setattr(engine.run, "open_llm", lambda *_, **__: llm)
        self.monkeypatch.setattr(engine.run, "open_backend", lambda *_: made)
        settings = composed()
        placed = replace(settings.paths, results=str(self.folder / "results"))
        task = replace(settings.task, path=str(self.folder / "toy.py"))
        settings = change(replace(settings, paths=placed, task=task))
        outcome = execute(settings, encode(settings))
        return outcome.run_id, read_events(self.folder / f"results/runs/{outcome.run_id}/events.jsonl"), llm

    def paid(self, run_id):
        """How many steps of each kind a run paid for."""
        lines = (self.folder / "results/steps/ledger.jsonl").read_text().splitlines()
        return Counter(line["kind"] for line in map(json.loads, lines) if line["run_id"] == run_id)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


def threshold(value):
    """A change that makes another run of the same work."""
    return lambda settings: replace(settings, thresholds={**settings.thresholds, "small_conv_speedup": value})


def fresh(*what, repeat=1):
    return lambda settings: replace(settings, search=replace(settings.search, fresh=what, repeat=repeat))


def model(settings):
    return replace(settings, llm=replace(settings.llm, model="another"))


def template(folder):
    shutil.copytree(ROOT / "prompts" / "templates", folder / "templates")
    system = folder / "templates" / "system.j2"
    system.write_text(system.read_text(encoding="utf-8") + "\nBe brief.\n", encoding="utf-8")
    return lambda settings: replace(
        threshold(0.21)(settings), paths=replace(settings.paths, prompts=str(folder / "templates"))
    )


def test_a_change_invalidates_what_it_must_and_nothing_else(lab, tmp_path):
    """A threshold nothing; judge and driver what is judged and timed; a template and the model the replies; another
    GPU and another Triton, which the prompts name, both. The reference's facts stay in every case."""
    first = lab.paid(lab.run()[0])
    assert set(first) == JUDGED | {"reply", "facts"}
    judged, replies = {kind: first[kind] for kind in JUDGED}, {"reply": first["reply"]}

    def again(change, backend=None):
        return lab.paid(lab.run(change, backend)[0])

    assert again(threshold(0.2)) == {}
    assert again(threshold(0.19), device(judge="another")) == judged
    assert again(threshold(0.18), device(driver="another")) == judged
    assert again(template(tmp_path)) == replies
    assert again(model) == replies
    assert again(threshold(0.17), device("another GPU")) == judged | replies
    assert again(threshold(0.16), device(triton="4")) == judged | replies


def test_fresh_times_are_measured_and_no_model_is_asked(lab):
    first, _, _ = lab.run()
    run_id, events, llm = lab.run(fresh("timing"), Slower())
    paid = lab.paid(first)
    assert lab.paid(run_id) == {kind: paid[kind] for kind in TIMED}
    assert not llm.seen, "every reply stays"
    assert [e["median_us"] for e in of(events, "baseline")] == [pytest.approx(110.0)]
    assert {e["slot"].rsplit("/", 1)[1] for e in of(events, "prompt_drift")} == {"optimise.0.0"}
    assert len(of(events, "llm_call")) == len(REPLIES)


def test_without_fresh_another_time_is_another_prompt(lab):
    """What `fresh` saves: a run whose times were measured again asks again."""
    lab.run()
    _, _, llm = lab.run(threshold(0.2), slower_device())
    assert len(llm.seen) == len(REPLIES) - 1, "all but the seed, whose prompt shows no time"


def slower_device():
    made = Slower()
    made.device = replace(made.device, facts={**made.device.facts, "driver": "another"})
    return made


def test_profiles_are_measured_anew_only_when_that_is_asked_for(lab):
    first = lab.paid(lab.run()[0])
    assert lab.paid(lab.run(fresh("profile"))[0]) == {"profile": first["profile"]}
    both = lab.paid(lab.run(fresh("timing", "profile"), Slower())[0])
    assert both == {kind: first[kind] for kind in (*TIMED, "profile")}


def test_another_repeat_measures_again_and_the_same_one_is_over(lab):
    lab.run()
    one, _, _ = lab.run(fresh("timing"))
    two, _, llm = lab.run(fresh("timing", repeat=2))
    assert lab.paid(two) == lab.paid(one)
    assert not llm.seen
    before = lab.paid(one)
    assert lab.run(fresh("timing"))[0] == one
    assert lab.paid(one) == before


def test_a_killed_fresh_run_finds_what_it_measured_itself(lab):
    lab.run()
    killed = Slower(patience=3)
    with pytest.raises(KeyboardInterrupt):
        lab.run(fresh("timing"), killed)
    rest = Slower()
    run_id, _, llm = lab.run(fresh("timing"), rest)
    whole = Slower()
    other, _, _ = lab.run(fresh("timing", repeat=2), whole)
    assert Counter(killed.done) + Counter(rest.done) == Counter(whole.done)
    assert lab.paid(run_id) == lab.paid(other)
    assert not llm.seen


def test_a_fresh_run_without_the_other_one_asks(lab):
    _, events, llm = lab.run(fresh("timing"))
    assert len(llm.seen) == len(REPLIES)
    assert of(events, "prompt_drift") == []


def test_an_edited_task_is_asked_anew_even_when_only_times_are_fresh(lab):
    lab.run()
    toy = lab.folder / "toy.py"
    toy.write_text(toy.read_text() + "# another operator\n")
    _, _, llm = lab.run(fresh("timing"))
    assert llm.seen
