"""What every provider promises, and how one is opened."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.codec import decode, encode
from engine.errors import AwaitingReply, ConfigError, EngineError, LlmError, MissingError
from engine.llm import PROVIDERS, open_llm, request_for
from engine.llm.caller import Budget, Caller
from engine.llm.recordings import Recording, load, request_hash, save
from engine.records import Message, Reply
from engine.settings import RetrySettings, RoleSettings
from tests.support.chat_server import CODE, ChatServer, completion, says
from tests.support.llm import SLOT, limits, llm_settings, reply, request

TEXT = f"Here:\n{CODE}\n"


class Case:
    """One provider, ready to answer `request()` with TEXT."""

    def __init__(self, name, root):
        self.root = root
        self.server = None
        changes = getattr(self, name)()
        self.settings = llm_settings(name, **changes)

    def litellm(self):
        self.server = ChatServer(says(TEXT)).__enter__()
        return {"api_base": self.server.url}

    def replay(self):
        save(self.root / "recordings", Recording(request(), reply(TEXT, answered_by="a", date="2026-01-01")))
        return {"recordings": "recordings"}

    def mailbox(self):
        folder = self.root / "mail" / "in"
        folder.mkdir(parents=True)
        (folder / f"{request_hash(request())[:16]}.md").write_text(TEXT)
        return {"mailbox": "mail"}

    def batch(self):
        folder = self.root / "batch" / "in"
        folder.mkdir(parents=True)
        response = {"status_code": 200, "body": completion(TEXT)}
        line = {"custom_id": request_hash(request()), "response": response, "error": None}
        (folder / "results.jsonl").write_text(json.dumps(line))
        return {"mailbox": "batch"}

    def scripted(self):
        (self.root / "script.json").write_text(json.dumps([{"text": TEXT, "slot": SLOT.path()}]))
        return {"script": "script.json"}

    def close(self):
        if self.server:
            self.server.__exit__()


@pytest.fixture(params=sorted(PROVIDERS))
def case(request, tmp_path):
    made = Case(request.param, tmp_path)
    yield made
    made.close()


class TestEveryProvider:
    def test_check_passes_when_nothing_is_missing(self, case):
        open_llm(case.settings, case.root).check()

    def test_answers_with_a_whole_reply_that_survives_json(self, case):
        llm = open_llm(case.settings, case.root)
        llm.check()
        answer = llm.complete(request())
        assert (answer.text, answer.finish) == (TEXT, "stop")
        assert answer.provider == case.settings.provider
        assert answer.model
        assert answer.attempts == 1
        assert decode(Reply, json.loads(json.dumps(encode(answer)))) == answer

    def test_answers_equally_again(self, case):
        llm = open_llm(case.settings, case.root)
        assert replace(llm.complete(request()), latency_s=0) == replace(llm.complete(request()), latency_s=0)

    def test_can_be_recorded_and_replayed(self, case):
        recording = open_llm(replace(case.settings, record="made"), case.root)
        recording.check()
        answer = recording.complete(request())
        stored = load(case.root / "made" / f"{SLOT.path()}.json")
        assert stored.request == request()
        assert stored.reply.text == TEXT
        assert (stored.reply.answered_by, stored.reply.date) == (answer.answered_by, answer.date)
        assert answer.answered_by
        assert answer.date
        again = open_llm(llm_settings("replay", recordings="made"), case.root).complete(request())
        assert again.text == TEXT

    def test_works_under_the_caller(self, case):
        budget = Budget(limits(calls=1))
        caller = Caller(open_llm(case.settings, case.root), RetrySettings(2, 0.0, 0.0), budget)
        assert caller.complete(request()).text == TEXT
        assert budget.run.calls == 1


MISSING = [
    pytest.param("litellm", {"key_env": "NO_SUCH_KEY"}, "environment variable NO_SUCH_KEY is not set", id="key"),
    pytest.param(
        "litellm", {"api_base": "http://127.0.0.1:9/v1"}, "nothing answers at http://127.0.0.1:9", id="server"
    ),
    pytest.param("litellm", {"api_base": "http://localhost:9/v1"}, "nothing answers at", id="server-by-name"),
    pytest.param("litellm", {"api_base": "127.0.0.1:9"}, "expected an address with a host", id="address"),
    pytest.param("replay", {"recordings": "nowhere"}, "llm.recordings: there is no folder", id="recordings"),
    pytest.param("replay", {}, "llm.recordings is null", id="recordings-null"),
    pytest.param("mailbox", {}, "llm.mailbox is null", id="mailbox-null"),
    pytest.param("mailbox", {"mailbox": "file/mail"}, "llm.mailbox: cannot make the folder", id="mailbox-in-a-file"),
    pytest.param("batch", {}, "llm.mailbox is null", id="batch-null"),
    pytest.param("batch", {"mailbox": "file/mail"}, "llm.mailbox: cannot make the folder", id="batch-in-a-file"),
    pytest.param("scripted", {"script": "nowhere.json"}, "llm.script: there is no file", id="script"),
    pytest.param("scripted", {}, "llm.script is null", id="script-null"),
    pytest.param(
        "scripted", {"script": "script.json", "record": "file/r"}, "llm.record: cannot make the folder", id="record"
    ),
]


@pytest.mark.parametrize(("provider", "changes", "message"), MISSING)
def test_what_is_missing_is_refused_in_one_line_with_a_remedy(tmp_path, monkeypatch, provider, changes, message):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tmp_path / "file").write_text("")
    (tmp_path / "script.json").write_text("[]")
    with pytest.raises(MissingError) as caught:
        open_llm(llm_settings(provider, **changes), tmp_path).check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_key_that_is_set_passes(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "x")
    open_llm(llm_settings("litellm", key_env="SOME_KEY"), tmp_path).check()


def test_a_misspelt_price_is_a_fault_of_the_configuration(tmp_path):
    settings = llm_settings("litellm", price_per_mtok={"input": 1.0, "outptu": 2.0})
    with pytest.raises(ConfigError, match=r"llm\.price_per_mtok\.outptu: unknown key, did you mean 'output'"):
        open_llm(settings, tmp_path)


@pytest.mark.parametrize(
    ("provider", "changes"),
    [("mailbox", {"mailbox": "mail"}), ("batch", {"mailbox": "mail"})],
    ids=["mailbox", "batch"],
)
def test_waiting_is_not_retried_and_not_paid_for(tmp_path, provider, changes):
    llm = open_llm(llm_settings(provider, **changes), tmp_path)
    llm.check()
    caller = Caller(llm, RetrySettings(3, 9.0, 9.0), Budget(limits()), sleep=pytest.fail)
    with pytest.raises(AwaitingReply):
        caller.complete(request())
    assert caller.budget.run.calls == 0


class TestScript:
    def open(self, root, script):
        (root / "script.json").write_text(script if isinstance(script, str) else json.dumps(script))
        return open_llm(llm_settings(script="script.json"), root)

    def test_in_order_and_then_ended(self, tmp_path):
        llm = self.open(tmp_path, ["one", {"text": ["two", "lines"], "finish": "length"}])
        assert llm.complete(request()).text == "one"
        second = llm.complete(request())
        assert (second.text, second.finish) == ("two\nlines", "length")
        with pytest.raises(LlmError, match="its 2 replies in order are used up") as caught:
            llm.complete(request())
        assert caught.value.kind == "script_ended"

    def test_by_slot_or_pattern_as_often_as_asked(self, tmp_path):
        llm = self.open(
            tmp_path, [{"text": "s", "slot": "*/seed.*"}, {"text": "r", "slot": "*/repair.1.*"}, "in order"]
        )
        slots = [SLOT, replace(SLOT, role="repair", attempt=1), SLOT, replace(SLOT, role="repair", attempt=2)]
        assert [llm.complete(request(slot=slot)).text for slot in slots] == ["s", "r", "s", "in order"]

    def test_usage_can_be_written(self, tmp_path):
        usage = {"input_tokens": 5, "output_tokens": 7, "cost_usd": 0.5}
        found = self.open(tmp_path, [{"text": "x", "usage": usage}]).complete(request()).usage
        assert (found.input_tokens, found.output_tokens, found.cost_usd) == (5, 7, 0.5)

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("{", "expected a JSON list of replies"),
            ("3", "expected a JSON list of replies"),
            ('[{"txt": "x"}]', "did you mean 'text'"),
            ("[3]", "expected a mapping"),
        ],
        ids=["cut", "number", "misspelt", "not-a-reply"],
    )
    def test_a_bad_script_is_named_before_the_run(self, tmp_path, script, message):
        with pytest.raises(EngineError) as caught:
            self.open(tmp_path, script).check()
        assert message in str(caught.value)
        assert "script.json" in str(caught.value)


ROLES = {
    "strategy": RoleSettings(model="openai/small"),
    "repair": RoleSettings(params={"temperature": 0.0, "max_tokens": 9}),
}


@pytest.mark.parametrize(
    ("role", "model", "params"),
    [
        ("seed", "openai/served", {"max_tokens": 100}),
        ("strategy", "openai/small", {"max_tokens": 100}),
        ("repair", "openai/served", {"max_tokens": 9, "temperature": 0.0}),
    ],
    ids=["general", "own-model", "own-params"],
)
def test_a_role_may_have_its_own_model_and_parameters(role, model, params):
    slot = replace(SLOT, role=role)
    messages = [Message("user", "hello")]
    made = request_for(llm_settings(roles=ROLES), slot, messages, 3)
    assert (made.slot, made.model, dict(made.params), made.sample) == (slot, model, params, 3)
    assert made.messages == tuple(messages)


def test_importing_the_seam_imports_no_client():
    code = (
        "import sys, engine.llm, engine.llm.caller, engine.extract\n"
        "sys.exit(', '.join(sorted({'litellm', 'openai', 'httpx', 'torch'} & set(sys.modules))) or None)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")
