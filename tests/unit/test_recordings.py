"""Recordings: the file's form, what is verified, and replay's two ways to match."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.errors import LlmError
from engine.llm.record import RecordingLlm
from engine.llm.recordings import Recording, every, find, load, location, paths, request_hash, save
from engine.llm.replay import ReplayLlm, prompt_difference
from engine.records import Message, Usage
from tests.support.llm import SLOT, reply, request

SIGNED = reply("line 1\nline 2", answered_by="somebody", date="2026-05-01", usage=Usage(10, 5, 3, 2, 0.5))


def recorded(folder, prompt="write a kernel", text="line 1\nline 2", **where):
    recording = Recording(request(prompt, **where), replace(SIGNED, text=text))
    save(folder, recording)
    return recording


def test_a_recording_comes_back_as_it_was(tmp_path):
    recording = recorded(tmp_path, "two\nlines, and\ttabs \u2028 ümlaut\r\n", text="a\r\nb\n")
    path = location(tmp_path, SLOT)
    assert path == tmp_path / "level1__matmul" / "some_category" / "first" / "seed.0.0.json"
    assert load(path) == recording
    assert find(tmp_path, SLOT) == recording
    assert list(every(tmp_path)) == [recording]
    assert paths(tmp_path) == [SLOT.path()]


def test_the_file_reads_as_a_diff(tmp_path):
    recorded(tmp_path)
    text = location(tmp_path, SLOT).read_text()
    tree = json.loads(text)
    assert list(tree) == ["v", "slot", "request", "request_hash", "reply", "answered_by", "date"]
    assert tree["request"] == {
        "model": "openai/served",
        "messages": [
            {"role": "system", "content": ["You write Triton."]},
            {"role": "user", "content": ["write a kernel"]},
        ],
        "params": {"max_tokens": 100},
        "sample": 0,
    }
    assert tree["reply"]["text"] == ["line 1", "line 2"]
    assert (tree["v"], tree["answered_by"], tree["date"]) == (1, "somebody", "2026-05-01")
    assert tree["request_hash"] == request_hash(request())
    assert text.endswith("}\n")
    assert '\n   "line 1",\n   "line 2"\n' in text


def test_a_text_may_also_be_one_string(tmp_path):
    recording = recorded(tmp_path)
    path = location(tmp_path, SLOT)
    tree = json.loads(path.read_text())
    tree["reply"]["text"] = "\n".join(tree["reply"]["text"])
    path.write_text(json.dumps(tree))
    assert load(path) == recording


def test_an_equal_recording_is_not_written_again(tmp_path):
    recording = recorded(tmp_path)
    path = location(tmp_path, SLOT)
    before = path.stat()
    save(tmp_path, recording)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    save(tmp_path, replace(recording, reply=reply("other")))
    assert load(path).reply.text == "other"
    assert [file.name for file in path.parent.iterdir()] == ["seed.0.0.json"]


def test_the_hash_covers_what_the_model_sees_and_not_the_slot():
    base = request_hash(request())
    assert request_hash(request(slot=replace(SLOT, stage="second"))) == base
    changed = [
        request("write another"),
        request(model="openai/other"),
        request(params={"max_tokens": 101}),
        request(params={}),
        request(sample=1),
        replace(request(), messages=(Message("user", "write a kernel"),)),
    ]
    hashes = {request_hash(one) for one in changed}
    assert len(hashes) == len(changed)
    assert base not in hashes


def broken(tree, **changes):
    return {**tree, **changes}


FAULTS = [
    pytest.param(lambda tree: broken(tree, v=2), "v: expected one of 1, got 2", id="version"),
    pytest.param(lambda tree: broken(tree, dtae="x"), "dtae: unknown key, did you mean 'date'?", id="unknown-key"),
    pytest.param(lambda tree: {k: v for k, v in tree.items() if k != "reply"}, "reply: missing", id="missing"),
    pytest.param(lambda tree: broken(tree, date=3), "date: expected str, got 3", id="type"),
    pytest.param(lambda tree: [tree], "expected a mapping", id="list"),
    pytest.param(lambda tree: broken(tree, request_hash="0" * 64), "request_hash is 0000000000000000", id="edited"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_damaged_file_is_named_with_its_fault(tmp_path, damage, message):
    recorded(tmp_path)
    path = location(tmp_path, SLOT)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(LlmError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert (caught.value.kind, bool(caught.value.hint)) == ("recording", True)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}"], ids=["cut", "empty", "not-utf-8"])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = location(tmp_path, SLOT)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(LlmError, match=r"seed\.0\.0\.json"):
        load(path)


def test_replay_by_slot_gives_the_recorded_reply(tmp_path):
    recorded(tmp_path)
    found = ReplayLlm(tmp_path, "slot").complete(request(model="another/model"))
    assert found == replace(SIGNED, provider="replay")


def test_replay_by_slot_says_how_the_prompt_drifted(tmp_path):
    recorded(tmp_path, "same\nold line\nsame too")
    found = ReplayLlm(tmp_path, "slot").complete(request("same\nnew line\nsame too\nand one more"))
    assert found.text == "line 1\nline 2"
    assert found.drift.splitlines() == [
        "2 lines added, 1 removed",
        "@@ -5 +5 @@",
        "-old line",
        "+new line",
        "@@ -6,0 +7 @@",
        "+and one more",
    ]


def test_a_long_drift_is_cut():
    old = [Message("user", "\n".join(f"old {n} " + "x" * 300 for n in range(50)))]
    new = [Message("user", "\n".join(f"new {n}" for n in range(50)))]
    lines = prompt_difference(old, new).splitlines()
    assert len(lines) == 14
    assert max(map(len, lines)) == 160
    assert (lines[0], lines[-1]) == ("50 lines added, 50 removed", "... 89 more lines")


def test_a_changed_role_is_a_drift():
    assert prompt_difference([Message("user", "x")], [Message("system", "x")]) is not None
    assert prompt_difference([Message("user", "x")], [Message("user", "x")]) is None


def test_a_miss_by_slot_names_the_nearest(tmp_path):
    recorded(tmp_path, slot=replace(SLOT, sample=1))
    recorded(tmp_path, slot=replace(SLOT, task_id="level2/other", stage="last", role="repair"))
    with pytest.raises(LlmError) as caught:
        ReplayLlm(tmp_path, "slot").complete(request())
    assert caught.value.kind == "no_recording"
    assert f"has no recording for {SLOT.path()}" in str(caught.value)
    assert str(caught.value).endswith("the nearest is level1__matmul/some_category/first/seed.0.1")
    assert "llm.record" in caught.value.hint


def test_exact_finds_the_request_in_any_slot(tmp_path):
    recorded(tmp_path, "one", text="answer one", slot=replace(SLOT, sample=1))
    recorded(tmp_path, "two", text="answer two", slot=replace(SLOT, sample=2))
    found = ReplayLlm(tmp_path, "exact").complete(request("two"))
    assert (found.text, found.drift) == ("answer two", None)


def test_an_exact_miss_explains_itself(tmp_path):
    recorded(tmp_path, "alpha\nbeta\ngamma", slot=replace(SLOT, sample=1))
    recorded(tmp_path, "something else", slot=replace(SLOT, sample=2))
    with pytest.raises(LlmError) as caught:
        ReplayLlm(tmp_path, "exact").complete(request("alpha\nbeta\ndelta", model="openai/other", sample=3))
    message = str(caught.value)
    assert caught.value.kind == "no_recording"
    assert "the nearest is level1__matmul/some_category/first/seed.0.1, which differs:" in message
    assert "model: recorded 'openai/served', asked 'openai/other'" in message
    assert "sample: recorded 0, asked 3" in message
    assert "-gamma\n+delta" in message


@pytest.mark.parametrize("match", ["slot", "exact"])
def test_an_empty_folder_is_a_miss(tmp_path, match):
    with pytest.raises(LlmError, match=r"holds (none|no recordings)"):
        ReplayLlm(tmp_path, match).complete(request())


class Fixed:
    def __init__(self, answer):
        self.answer = answer

    def check(self):
        pass

    def complete(self, request):
        return self.answer


@pytest.mark.parametrize(
    ("given", "signed"),
    [(("", ""), ("me", "2026-07-01")), (("you", "2025-01-01"), ("you", "2025-01-01"))],
    ids=["unsigned", "signed"],
)
def test_recording_signs_and_what_it_wrote_replays(tmp_path, given, signed):
    answer = reply("text", answered_by=given[0], date=given[1])
    llm = RecordingLlm(Fixed(answer), tmp_path / "new", "me", clock=lambda: "2026-07-01")
    llm.check()
    made = llm.complete(request())
    assert (made.answered_by, made.date) == signed
    assert ReplayLlm(tmp_path / "new", "slot").complete(request()) == replace(made, provider="replay")
