"""The report as one HTML file: what it says, what it cannot run, and what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.report import write_run
from engine.journal import read_events
from engine.report import texts
from engine.report.__main__ import main
from engine.report.detail import operators
from engine.report.page import run_page, spent, write_report
from engine.report.sweep import reference_of, sweep_ids, sweep_page, sweep_runs, write_sweep
from engine.report.words import number, seconds
from tests.support.sample_journal import Writer, call, draft, end, promote, sample_events, start
from tests.support.synthetic_results import ESTIMATED, HIGH, LOW, write_results

HOSTILE = (
    "</pre></details></section></script><script>window.pwned = 1</script>"
    '<img src=x onerror=\'window.pwned=2\'>" onmouseover="window.pwned=3" {{ 7 * 191 }} ]]> <!-- &lt;b&gt; \u202e\u0007'
)


CELLS = ("td", "th", "dt", "dd", "small", "li", "p", "h2", "h3", "div", "span")


class Page(HTMLParser):
    """Elements with their attributes, and the words that are shown; in `text` with single spaces."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = self._spaced = ""
        self.raw: dict[str, str] = {"script": "", "style": ""}
        self._open = ""
        self.feed(html)
        self.text = " ".join(self._spaced.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag
        if tag in CELLS:
            self._spaced += " "

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in self.raw:
            self.raw[self._open] += data
        else:
            self.words += data
            self._spaced += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(tmp_path: Path, events=None) -> Page:
    return Page(run_page(tmp_path, sample_events() if events is None else events))


def source(run: Path, task: str, name: str, text: str) -> None:
    path = run / "tasks" / task / "candidates" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def exchange(run: Path, task: str, stem: str, prompt: str, reply: str) -> None:
    folder = run / "tasks" / task / "exchanges"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.prompt.md").write_text(f"<!-- system -->\nYou write kernels.\n\n<!-- user -->\n{prompt}\n")
    (folder / f"{stem}.reply.md").write_text(reply)


def test_summary_says_geomean_median_fast_1_and_cost(tmp_path):
    words = page(tmp_path).text
    assert "Scores: measured solved 2 of 4 geometric mean 1.00x over eager median 1.25x" in words
    assert "fast_1 0.25 1 of 4" in words
    assert "cost ? a call had no known price tokens 600 400 in, 200 out model calls 4 candidates 4" in words


@pytest.mark.parametrize(
    ("judged", "gpu_s"),
    [
        ([("a", "k1", "seed", 1.5, 0.25)], 0.25),
        ([("a", "k1", "seed", 1.5, 0.25), ("a", "k1", "tile", 1.5, 0.25)], 0.25),
        ([("a", "k1", "seed", 1.5, 0.25), ("a", "k1", "tile", 1.75, 0.25)], 0.5),
        ([("a", "k1", "seed", 1.5, 0.25), ("a", "k2", "tile", 1.5, 0.25)], 0.5),
        ([("a", "k1", "seed", 1.5, 0.25), ("b", "k1", "tile", 1.5, 0.25)], 0.5),
        ([("a", "k1", "seed", None, None), ("a", "k1", "tile", 1.5, 0.25)], 0.25),
    ],
    ids=["one", "in_two_stages", "judged_anew", "two_candidates", "of_two_operators", "an_older_engine_does_not_say"],
)
def test_gpu_time_counts_a_step_once(judged, gpu_s):
    write = Writer()
    for task, name, stage, wall_s, held in judged:
        write("verdict", task, stage, candidate_id=name, status="correct", wall_s=wall_s, gpu_s=held)
    assert spent(write.events, ()).gpu_s == pytest.approx(gpu_s)
    write("confirmation", "a", candidate_id="k1", outcome="confirmed", gpu_s=1.0)
    assert spent(write.events, ()).gpu_s == pytest.approx(gpu_s + 1.0)


def test_kinds_of_score_have_totals_of_their_own(tmp_path):
    events = sample_events()
    next(e for e in events if e["kind"] == "task_ended" and e["task_id"] == "level1/beta")["score_kind"] = "estimated"
    words = page(tmp_path, events).text
    assert "Scores: estimated solved 1 of 4 geometric mean 0.50x" in words
    assert "Scores: measured solved 1 of 4 geometric mean 2.00x" in words


def test_a_skip_names_its_rule_with_why_expression_and_operands(tmp_path):
    events = sample_events()
    rule = next(event for event in events if event["kind"] == "rule")
    rule |= {"when": "norm_ops == 0 and headroom < 2", "operands": {"norm_ops": 0, "headroom": 1.23456}}
    words = page(tmp_path, events).text
    assert "nothing skips this stage: nothing to fuse" in words
    assert "norm_ops == 0 and headroom < 2 is true: headroom = 1.235, norm_ops = 0" in words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"obeyed": False}, "nothing skips this stage, not obeyed: nothing to fuse"),
        ({"rule_kind": "exit"}, "nothing ends the plan: nothing to fuse"),
        ({"rule_kind": "require", "candidate_id": "k"}, "nothing is broken: nothing to fuse"),
        ({"outcome": "unknown", "missing": ["dram_pct"]}, "is unknown unknown: dram_pct"),
        ({"fired": False, "obeyed": False, "outcome": "false"}, "1 rule without effect"),
    ],
    ids=["observed", "exit", "require", "fired on missing", "quiet"],
)
def test_rules_say_what_they_did(tmp_path, changes, said):
    events = sample_events()
    next(event for event in events if event["kind"] == "rule").update(changes, when="x > 1")
    assert said in page(tmp_path, events).text


def test_a_child_is_shown_as_a_difference_to_its_parent(tmp_path):
    events = sample_events()
    child = next(e for e in events if e["kind"] == "candidate" and e["candidate_id"] == "cccccccccccc")
    child["parent_id"] = "bbbbbbbbbbbb"
    source(tmp_path, "alpha", "bbbbbbbbbbbb", "a = 1\nb = 2\nc = 3\n")
    source(tmp_path, "alpha", "cccccccccccc", "a = 1\nb = 20\nc = 3\n")
    words = page(tmp_path, events).words
    assert "Changed from bbbbbbbb: +1 −1 lines" in words
    assert "--- bbbbbbbbbbbb\n+++ cccccccccccc\n@@ -1,3 +1,3 @@\n a = 1\n-b = 2\n+b = 20\n c = 3" in words


def hostile_run(run: Path) -> list[dict]:
    """Everything that a model, a compiler or a task's author writes is hostile."""
    write = Writer()
    task = "level1/<script>alert(1)</script>"
    write("run_started", model=HOSTILE, provider="replay", thresholds={HOSTILE: 1.0})
    write("environment", device={"backend": "b", "name": HOSTILE}, facts={"torch": HOSTILE})
    start(write, task, HOSTILE)
    write("rule", task, "seed", rule=HOSTILE, rule_kind="skip", when=HOSTILE, outcome="true", fired=True, obeyed=True,
          operands={HOSTILE: HOSTILE}, missing=[HOSTILE], why=HOSTILE)  # fmt: skip
    call(write, task, "seed")
    write("reply_unusable", task, "seed", role="optimise", attempt=0, sample=0, problem=HOSTILE, message=HOSTILE)
    write("prompt_drift", task, "seed", slot="t/c/seed/optimise.0.0", difference=HOSTILE)
    draft(write, task, "seed", "aaaa", reason=HOSTILE, speedup=2.0)
    draft(write, task, HOSTILE, "bbbb", reason=None, speedup=3.0)
    write.events[-4]["parent_id"] = "aaaa"
    promote(write, task, HOSTILE, "bbbb")
    for event in write.events:
        if event["kind"] == "verdict":
            event["message"] = HOSTILE
        if event["kind"] in ("candidate", "llm_call"):
            event.update(attempt=0, sample=0)
    write("metric", task, "seed", metric=HOSTILE, value=1.0, unit=HOSTILE, source=HOSTILE, confidence=1, note=HOSTILE)
    write("confirmation", task, candidate_id="bbbb", outcome="refused", reason=HOSTILE, message=HOSTILE, ratios=[],
          variants={HOSTILE: {HOSTILE: 1}}, sanitizers=[{"tool": HOSTILE, "errors": 2}], remarks=[HOSTILE])  # fmt: skip
    end(write, task, "done", "bbbb", 3.0, why=HOSTILE)
    source(run, task, "aaaa", "x = 1\n" + HOSTILE)
    source(run, task, "bbbb", "x = 2\n" + HOSTILE + "\n" + HOSTILE)
    exchange(run, task, "seed.optimise.0.0", HOSTILE, HOSTILE)
    return write.events


@pytest.mark.parametrize("limit", [texts.PLAIN_LIMIT, 0], ids=["plain", "packed"])
def test_hostile_text_stays_text(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("engine.report.page.PLAIN_LIMIT", limit)
    shown = page(tmp_path, hostile_run(tmp_path))
    assert len(shown.of("script")) == 1
    assert not {"img", "iframe", "object", "embed", "link", "form", "base"} & {tag for tag, _ in shown.elements}
    assert [name for _, attributes in shown.elements for name in attributes if name.startswith("on")] == []
    assert "1337" not in shown.text, "a template in a reply is not rendered"
    assert shown.words.count("window.pwned = 1") > 20
    places = [
        value for _, attributes in shown.elements for name, value in attributes.items() if name in ("href", "src")
    ]
    assert places
    assert all(place.startswith("#") for place in places)


def test_reply_source_and_message_are_there_word_for_word(tmp_path):
    shown = page(tmp_path, hostile_run(tmp_path))
    assert shown.words.count(HOSTILE) > 20
    assert "The system message" not in shown.text
    assert "You write kernels." in shown.text


def test_the_policy_admits_the_one_script_and_style_and_no_network(tmp_path):
    shown = page(tmp_path)
    (policy,) = [meta["content"] for meta in shown.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(shown.raw[kind].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert [attributes for _, attributes in shown.elements if "style" in attributes] == []
    assert not re.search(r"@import|url\(", shown.raw["style"])


def test_long_texts_are_packed_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.report.page.PLAIN_LIMIT", 1000)
    reply = "every word of it\n" * 1000
    exchange(tmp_path, "alpha", "tile.optimise.0.0", "ask", reply)
    shown = page(tmp_path)
    assert "every word of it" not in shown.words
    (section,) = [one for one in shown.of("section") if one.get("aria-labelledby") == "t1h"]
    unpacked = json.loads(zlib.decompress(base64.b64decode(section["data-texts"])))
    assert reply.strip("\n") in unpacked
    wanted = [int(pre["data-n"]) for pre in shown.of("pre") if "data-n" in pre]
    assert unpacked[wanted[-1]] == reply.strip("\n")


def test_a_text_without_end_is_cut_and_says_so(tmp_path):
    exchange(tmp_path, "alpha", "tile.optimise.0.0", "ask", "x" * (texts.LONGEST + 1))
    assert f"{texts.LONGEST + 1} characters in all, middle left out" in page(tmp_path).text


def test_a_source_too_long_to_compare_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST_LINES", 2)
    events = sample_events()
    next(e for e in events if e["kind"] == "candidate" and e["candidate_id"] == "cccccccccccc")["parent_id"] = "b" * 12
    source(tmp_path, "alpha", "b" * 12, "a = 1\n")
    source(tmp_path, "alpha", "cccccccccccc", "a = 1\nb = 2\nc = 3\n")
    words = page(tmp_path, events).words
    assert "Changed from" not in words
    assert "a = 1\nb = 2\nc = 3\n" in words


def test_a_hundred_operators_fit_into_five_megabytes(tmp_path, monkeypatch):
    """A slice of benchmarks/report.py: one operator of each recorded one, packed as a hundred are."""
    monkeypatch.setattr("engine.report.page.PLAIN_LIMIT", 0)
    operators = 6
    run = write_run(tmp_path, operators)
    page = write_report(run, read_events(run / "events.jsonl"))
    assert page.stat().st_size / operators < 5e6 / 100


@pytest.mark.parametrize("cut", [0, 1, 2, *range(3, len(sample_events()), 4)])
def test_an_unfinished_journal_gives_a_page(tmp_path, cut):
    words = page(tmp_path, sample_events()[:cut]).text
    assert "unfinished" in words
    assert ("alpha" in words) == (cut > 2)


def test_a_run_that_began_a_task_again_is_unfinished(tmp_path):
    write = Writer()
    write.events = sample_events()
    assert "Summary failed" in page(tmp_path, write.events).text
    start(write, "alpha", "pointy")
    assert "Summary unfinished" in page(tmp_path, write.events).text
    write("run_ended", outcome="done", tasks=4, failed=[], wall_s=1.0)
    assert "Summary done" in page(tmp_path, write.events).text


def test_a_journal_of_an_older_engine_gives_a_page(tmp_path, capsys):
    since = {"confirmed", "contradiction", "below_floor", "gpu_s"}
    events = [{name: value for name, value in event.items() if name not in since} for event in sample_events()]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert main([str(tmp_path)]) == 0
    assert "alpha" in (tmp_path / "report.html").read_text()


def journal_with(folder, kind, **fields):
    events = [{**event, **fields} if event["kind"] == kind else event for event in sample_events()]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("task_ended", {"why": "a\ud800b"}),
        ("stage_ended", {"why": "a\ud800b"}),
        ("rule", {"operands": {"a\ud800b": float("nan")}}),
        ("ratio", {"lo": float("inf")}),
        ("task_ended", {"speedup": "fast"}),
    ],
)
def test_values_that_no_file_takes_give_a_page(tmp_path, capsys, kind, fields):
    journal_with(tmp_path, kind, **fields)
    assert main([str(tmp_path)]) == 0
    assert ("a?b" in (tmp_path / "report.html").read_text()) == (kind != "ratio" and "speedup" not in fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("candidate", {"candidate_id": None}), ("environment", {"device": None}), ("llm_call", {"input_tokens": [1]})],
)
def test_a_value_of_another_form_is_told_in_a_line(tmp_path, capsys, kind, fields):
    journal_with(tmp_path, kind, **fields)
    assert main([str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"{tmp_path / 'events.jsonl'}: a value of another form")


def test_intervals_sort_as_numbers(tmp_path):
    html = run_page(tmp_path, sample_events())
    table = html.partition("Candidates as a table")[2].partition("</table>")[0]
    heads = re.findall(r"<th scope=.col.( class=.n.)?>([^<]*)</th>", table)
    at = [name for _, name in heads].index("95 % interval")
    assert heads[at][0]
    cells = [
        re.findall(r"<t[dh]([^>]*)>(.*?)</t[dh]>", row)[at] for row in table.partition("<tbody>")[2].split("</tr>")[:-1]
    ]
    assert len(cells) > 1
    for attributes, text in cells:
        value = re.search(r'data-v="([^"]*)"', attributes)[1]
        assert text == "-" if value == "" else text.startswith(f"{float(value):.3f} to ")


def test_every_table_has_headers_with_a_scope_and_every_figure_a_label(tmp_path):
    shown = page(tmp_path)
    assert shown.of("th")
    assert all(head.get("scope") in ("row", "col") for head in shown.of("th"))
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in shown.of("svg"))
    names = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_the_roofline_is_where_flops_over_time_put_it():
    write = Writer()
    hardware = {"dram_gbps": 1000.0, "fp32_tflops": 50.0, "sm_count": 100.0}
    write("environment", device={"backend": "cuda", "name": "chip", "hardware": hardware}, facts={})
    start(write, "t", "c")
    write.events[1]["facts"] = {"flops": 1e9, "bytes": 1e7, "intensity": 100.0}
    draft(write, "t", "seed", "k", reason=None, speedup=2.0)
    end(write, "t", "done", "k", 2.0)
    found = operators(write.events)[0].roofline
    assert found is not None
    # 1e9 FLOP in 100 us, in 5 times the floor of 10 us, and in the floor.
    assert {point.name: point.tflops for point in found.reached} == pytest.approx({"eager": 10.0, "best": 20.0})
    assert (found.floor, found.bandwidth, found.rates) == (pytest.approx(100.0), 1000.0, {"fp32": 50.0})


def test_an_operator_without_facts_has_no_roofline(tmp_path):
    assert operators(sample_events())[0].roofline is None
    assert "No roofline" in page(tmp_path).text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "unknown"),
        (0, "0"),
        (True, "True"),
        (0.30000001, "0.3"),
        (1e9, "1e+09"),
        (12345, "12,345"),
        ("fp32", "fp32"),
    ],
    ids=str,
)
def test_operands_in_words(value, told):
    assert number(value) == told


@pytest.mark.parametrize(
    ("value", "told"), [(None, "-"), (0.421, "0.42 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_seconds_in_words(value, told):
    assert seconds(value) == told


class TestSweep:
    @pytest.fixture
    def results(self, tmp_path):
        return write_results(tmp_path / "results")

    def jobs(self, results):
        from engine.report.sweep import _jobs

        return [job for folder in sweep_runs(results, "sweep1") for job in _jobs(folder, "sweep1")]

    def test_its_runs_are_those_with_its_event(self, results):
        assert [folder.name for folder in sweep_runs(results, "sweep1")] == [LOW, HIGH]
        assert sweep_ids(results) == ["sweep1"]

    @pytest.mark.parametrize(
        ("old", "new"),
        [('"input_tokens":', '"input_tokens":"x","was":'), ('"kind":"verdict"', '"kind":7'), ('_job",', '_job"}{,')],
    )
    def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(self, results, capsys, old, new):
        journal = results / "runs" / LOW / "events.jsonl"
        journal.write_text(journal.read_text().replace(old, new))
        code = main(["sweep1", "--results", str(results)])
        text = (results / "sweeps" / "sweep1.html").read_text()
        assert HIGH in text
        told = capsys.readouterr().err
        assert (code, f"run {LOW}: " in told, LOW in text) in ((1, True, False), (0, False, False))
        assert (code == 0) == ("}{" in new), "a run whose job is not to be read is no job"

    def test_a_finished_run_that_is_a_job_once_more_counts_in_both(self, results):
        journal = results / "runs" / ESTIMATED / "events.jsonl"
        lines = journal.read_text().splitlines()
        again = {**json.loads(lines[-1]), "kind": "sweep_job", "sweep_id": "other", "job": 4, "overrides": ["a=1"]}
        journal.write_text("\n".join([*lines, json.dumps({**again, "seq": len(lines)})]) + "\n")
        assert sweep_ids(results) == ["other", "sweep1"]
        words = Page(write_sweep(results, "other", sweep_runs(results, "other")).read_text()).text
        assert "in all jobs" not in words
        assert "estimated: saved cost against lost gain" in words

    def test_what_a_job_saved_and_lost(self, results):
        low, high = self.jobs(results)
        assert reference_of([high, low]) is low, "five calls against four"
        words = Page(sweep_page("sweep1", [low, high])).text
        # conv falls from 0.5x to 0.25x, relu stays: half of one of two is a geometric mean of 0.707.
        assert "1 0.3 2 of 2 0.71x 1.12x 0.50 29.3 % 2 0 conv keeps 0.50x $0.04 4.8k 4 4" in words
        assert "0 0.2 2 of 2 1.00x 1.25x 0.50 0.0 % 2 0 - $0.05 6.0k 5 5" in words
        assert "Money saved over gain lost" in words

    def test_marks_of_the_plot_say_both_shares(self, results):
        shown = sweep_page("sweep1", self.jobs(results))
        assert "job 1: 20.0 % saved, 29.3 % lost" in shown
        assert "job 0: 0.0 % saved, 0.0 % lost" in shown

    def test_jobs_that_went_the_same_way_are_one_line(self, results):
        words = Page(sweep_page("sweep1", self.jobs(results))).text
        relu = words[words.index("relu jobs outcome") :]
        assert relu.startswith("relu jobs outcome vs eager score path 0, 1 done 2.00x [1.80, 2.20] measured seed done")
        conv = words[words.index("conv jobs outcome") : words.index("relu jobs outcome")]
        assert "0 done 0.50x" in conv
        assert "1 exited 0.25x" in conv

    def test_kinds_are_compared_apart(self, results):
        low, high = self.jobs(results)
        from dataclasses import replace

        other = replace(high, rows=tuple(replace(row, score_kind="estimated") for row in high.rows))
        words = Page(sweep_page("s", [low, other])).text
        assert words.count("Nothing to compare") == 2
        assert "Against job 1, which spent most" in words
        assert "gain lost, %" not in words

    def test_a_job_that_came_to_nothing_is_listed(self, results):
        from dataclasses import replace

        low, high = self.jobs(results)
        nothing = replace(high, rows=(), outcome="unfinished")
        assert "1 done, job 1 unfinished" in Page(sweep_page("s", [low, nothing])).text

    def test_a_job_that_began_a_task_again_is_unfinished(self, results):
        path = results / "runs" / HIGH / "events.jsonl"
        events = read_events(path)
        again = next(event for event in events if event["kind"] == "task_started") | {"seq": len(events)}
        path.write_text(path.read_text() + json.dumps(again) + "\n")
        words = Page(write_sweep(results, "sweep1", sweep_runs(results, "sweep1")).read_text()).text
        assert "1 done, job 1 unfinished" in words

    def test_a_job_that_could_not_run_says_why(self, results):
        head = {"v": 1, "run_id": "d" * 16, "t": 1.0, "task_id": None, "stage": None}
        events = [
            {
                **head,
                "seq": 0,
                "kind": "sweep_job",
                "sweep_id": "sweep1",
                "job": 2,
                "overrides": ["thresholds.small=9"],
            },
            {**head, "seq": 1, "kind": "job_failed", "error": "MissingError", "message": "no key <b>"},
        ]
        folder = results / "runs" / ("d" * 16)
        folder.mkdir()
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        words = Page(write_sweep(results, "sweep1", sweep_runs(results, "sweep1")).read_text()).text
        assert "3, 3 different runs; 2 done, job 2 failed (MissingError: no key <b>)" in words

    def test_command(self, results, capsys):
        assert main(["--results", str(results), "sweep1"]) == 0
        assert str(results / "sweeps" / "sweep1.html") in capsys.readouterr().out
        assert main(["--results", str(results), "sweep2"]) == 2
        assert "sweeps: sweep1" in capsys.readouterr().err

    def test_links_lead_to_reports_that_were_written(self, results):
        assert main(["--results", str(results), LOW]) == 0
        shown = Page(write_sweep(results, "sweep1", sweep_runs(results, "sweep1")).read_text())
        (link,) = [a["href"] for a in shown.of("a") if a["href"].endswith(".html")]
        assert (results / "sweeps" / link).resolve() == results / "runs" / LOW / "report.html"


def test_command_takes_the_run_that_was_written_last(tmp_path, capsys):
    results = write_results(tmp_path)
    os.utime(results / "runs" / HIGH / "events.jsonl", (4e9, 4e9))
    assert main(["--results", str(results)]) == 0
    assert f"report: {results / 'runs' / HIGH / 'report.html'}" in capsys.readouterr().out


def test_command_takes_the_start_of_an_id(tmp_path, capsys):
    results = write_results(tmp_path)
    assert main(["--results", str(results), HIGH[:4]]) == 0
    assert f"report: {results / 'runs' / HIGH / 'report.html'}" in capsys.readouterr().out
    (results / "runs" / f"{HIGH[:8]}00000000").mkdir()
    assert main(["--results", str(results), HIGH[:4]]) == 2
    assert f"2 runs begin with '{HIGH[:4]}'" in capsys.readouterr().err
    for folder in (results / "runs").iterdir():
        journal = folder / "events.jsonl"
        if journal.exists():
            journal.write_text(journal.read_text().replace('"sweep1"', '"77aa8b83f8e1e6bc"'))
    assert main(["--results", str(results), "77aa"]) == 0
    assert str(results / "sweeps" / "77aa8b83f8e1e6bc.html") in capsys.readouterr().out


def test_command_without_any_run(tmp_path, capsys):
    assert main(["--results", str(tmp_path)]) == 2
    assert f"no run in {tmp_path / 'runs'}" in capsys.readouterr().err


def test_a_run_has_one_file(tmp_path):
    assert write_report(tmp_path, sample_events()) == tmp_path / "report.html"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
