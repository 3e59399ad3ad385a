"""litellm against a server that misbehaves: what reaches the engine, and what is tried again."""

from __future__ import annotations

import os
import time

import pytest

from engine.errors import LlmError, LlmRefused, LlmRetryable, MissingError
from engine.extract import extract_code, extract_json
from engine.llm import open_llm
from engine.llm.caller import Budget, Caller
from engine.llm.litellm_client import import_litellm
from engine.records import Usage
from engine.settings import RetrySettings
from tests.support import chat_server
from tests.support.chat_server import ChatServer, fails, says, slow
from tests.support.llm import limits, llm_settings, request


@pytest.fixture(scope="module", autouse=True)
def litellm():
    return import_litellm()


def client(server, root, **changes):
    return open_llm(llm_settings("litellm", api_base=server.url, **changes), root)


def ask(server, root, **changes):
    return client(server, root, **changes).complete(request())


def test_a_good_reply_comes_with_everything_that_is_recorded(tmp_path):
    with ChatServer() as server:
        reply = ask(server, tmp_path)
    assert extract_code(reply).code == "import torch.nn as nn\n\n\nclass ModelNew(nn.Module):\n    pass\n"
    assert (reply.finish, reply.model, reply.provider, reply.attempts) == ("stop", "served-model", "litellm", 1)
    assert reply.usage == Usage(11, 7)
    assert 0 < reply.latency_s < 5
    (seen,) = server.seen
    assert seen["path"] == "/v1/chat/completions"
    assert seen["body"] == {
        "model": "served",
        "max_tokens": 100,
        "messages": [
            {"role": "system", "content": "You write Triton."},
            {"role": "user", "content": "write a kernel"},
        ],
    }


def test_cached_and_reasoning_tokens_are_counted_and_priced(tmp_path):
    with ChatServer(chat_server.THINKS) as server:
        reply = ask(server, tmp_path, price_per_mtok={"input": 1.0, "cached": 0.1, "output": 10.0})
    assert reply.usage == Usage(100, 50, 60, 40, cost_usd=pytest.approx((40 * 1 + 60 * 0.1 + 50 * 10) / 1e6))


def test_a_price_that_litellm_knows_is_used(tmp_path, litellm):
    rates = litellm.model_cost["gpt-5"]
    with ChatServer(says("hello", model="gpt-5")) as server:
        reply = client(server, tmp_path).complete(request(model="openai/gpt-5"))
    expected = 11 * rates["input_cost_per_token"] + 7 * rates["output_cost_per_token"]
    assert reply.usage.cost_usd == pytest.approx(expected)


REFUSALS = [
    pytest.param(fails(401, "Incorrect API key"), "auth", id="401"),
    pytest.param(fails(403, "not yours"), "auth", id="403"),
    pytest.param(fails(404, "The model `served` does not exist"), "model", id="404"),
    pytest.param(fails(400, "max_tokens is too large"), "request", id="400"),
    pytest.param(fails(422, "unprocessable"), "request", id="422"),
    pytest.param(
        fails(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded"),
        "context_window",
        id="context-window",
    ),
    pytest.param(
        fails(400, "Your request was rejected: content_policy_violation", "content_policy_violation"),
        "content_policy",
        id="content-policy",
    ),
    pytest.param(fails(429, "You exceeded your current quota", "insufficient_quota"), "quota", id="no-credit"),
]


@pytest.mark.parametrize(("behaviour", "kind"), REFUSALS)
def test_refused_at_once_by_kind(tmp_path, behaviour, kind):
    with ChatServer(behaviour) as server, pytest.raises(LlmRefused) as caught:
        Caller(client(server, tmp_path), RetrySettings(3, 0.0, 0.0), Budget(limits())).complete(request())
    assert caught.value.kind == kind
    assert caught.value.exit_code == 2
    assert len(server.seen) == 1


PASSING = [
    pytest.param(fails(429, "slow down"), "rate_limit", id="429"),
    pytest.param(fails(500, "oops"), "server", id="500"),
    pytest.param(fails(502, "bad gateway"), "server", id="502"),
    pytest.param(fails(503, "overloaded"), "server", id="503"),
    pytest.param(slow(1.5), "timeout", id="slow"),
    pytest.param(chat_server.reset, "connection", id="reset"),
    pytest.param(chat_server.cut_body, "connection", id="cut-body"),
    pytest.param(chat_server.not_json, "server", id="not-json"),
]


@pytest.mark.parametrize(("behaviour", "kind"), PASSING)
def test_retryable_by_kind_with_one_request_each(tmp_path, behaviour, kind):
    with ChatServer(behaviour) as server, pytest.raises(LlmRetryable) as caught:
        ask(server, tmp_path, timeout_s=0.5)
    assert caught.value.kind == kind
    assert len(server.seen) == 1


@pytest.mark.parametrize(("behaviour", "kind"), PASSING)
def test_a_passing_failure_is_survived(tmp_path, behaviour, kind):
    with ChatServer(behaviour, chat_server.GOOD) as server:
        caller = Caller(client(server, tmp_path, timeout_s=0.5), RetrySettings(2, 0.0, 0.0), Budget(limits()))
        reply = caller.complete(request())
    assert extract_code(reply).code
    assert reply.attempts == 2
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("3", 3.0, 3.0), ("0.25", 0.25, 0.25), (None, None, None), ("soon", None, None)],
    ids=["seconds", "fraction", "absent", "unreadable"],
)
def test_retry_after_is_read_from_the_response(tmp_path, header, low, high):
    with ChatServer(fails(429, "slow down", retry_after=header)) as server, pytest.raises(LlmRetryable) as caught:
        ask(server, tmp_path)
    found = caught.value.retry_after_s
    assert found is None if low is None else low <= found <= high


def test_the_caller_waits_as_long_as_the_server_asks(tmp_path):
    slept = []
    with ChatServer(fails(503, "busy", retry_after="7"), chat_server.GOOD) as server:
        caller = Caller(client(server, tmp_path), RetrySettings(2, 0.0, 10.0), Budget(limits()), slept.append)
        caller.complete(request())
    assert slept == [7.0]


def test_gives_up_after_the_declared_calls(tmp_path):
    with ChatServer(fails(503, "busy")) as server, pytest.raises(LlmError, match="gave up after 3 calls") as caught:
        Caller(client(server, tmp_path), RetrySettings(3, 0.0, 0.0), Budget(limits())).complete(request())
    assert len(server.seen) == 3
    assert (caught.value.kind, caught.value.exit_code) == ("server", 1)
    assert not isinstance(caught.value, LlmRetryable)


BAD_TEXTS = [
    pytest.param(chat_server.EMPTY, "empty", id="empty"),
    pytest.param(chat_server.NULL, "empty", id="null-content"),
    pytest.param(says("", finish="length"), "truncated", id="reasoning-used-all"),
    pytest.param(chat_server.CUT_OFF, "truncated", id="cut-off"),
    pytest.param(chat_server.PROSE, "no_code", id="prose"),
    pytest.param(says("```python\nx = 1\n```"), "no_code", id="no-model"),
    pytest.param(chat_server.TWO_BLOCKS, "ambiguous_code", id="two-blocks"),
]


@pytest.mark.parametrize(("behaviour", "kind"), BAD_TEXTS)
def test_a_useless_text_is_a_reply_that_is_paid_for(tmp_path, behaviour, kind):
    with ChatServer(behaviour) as server:
        reply = ask(server, tmp_path)
    assert extract_code(reply).kind == kind
    assert reply.usage.output_tokens == 7


def test_wrong_json_is_no_advice(tmp_path):
    with ChatServer(chat_server.WRONG_JSON) as server:
        assert extract_json(ask(server, tmp_path).text, ["bottleneck"]) is None


def test_the_key_goes_to_the_server_and_never_into_a_message(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    behaviour = fails(401, "Incorrect API key provided: sk-very-secret")
    with ChatServer(behaviour) as server, pytest.raises(LlmRefused) as caught:
        ask(server, tmp_path, key_env="SOME_KEY")
    assert "Incorrect API key" in str(caught.value)
    assert "sk-very-secret" not in str(caught.value)


def test_a_parameter_that_the_model_lacks_is_dropped(tmp_path):
    with ChatServer() as server:
        client(server, tmp_path).complete(request(model="openai/gpt-5", params={"temperature": 0.2}))
    assert "temperature" not in server.seen[0]["body"]


def test_a_running_server_passes_the_check_and_a_stopped_one_does_not(tmp_path):
    with ChatServer() as server:
        client(server, tmp_path).check()
    with pytest.raises(MissingError, match=r"nothing answers at http://127\.0\.0\.1"):
        client(server, tmp_path).check()
    assert server.seen == []


@pytest.mark.parametrize(
    ("model", "price", "passes"),
    [("openai/gpt-5", None, True), ("openai/served", None, False), ("openai/served", {"input": 1, "output": 2}, True)],
    ids=["known", "unknown", "declared"],
)
def test_a_limit_in_usd_needs_a_price(tmp_path, model, price, passes):
    settings = llm_settings("litellm", model=model, price_per_mtok=price)
    llm = open_llm(settings, tmp_path, usd_limit=5.0)
    if passes:
        llm.check()
    else:
        with pytest.raises(MissingError, match=r"search\.budget\.usd: the price of openai/served is unknown"):
            llm.check()


def test_the_environment_forbids_downloads_and_dotenv(litellm):
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert os.environ["LITELLM_MODE"] == "PRODUCTION"
    assert litellm.telemetry is False


def test_a_time_out_is_kept(tmp_path):
    started = time.monotonic()
    with ChatServer(slow(2.5)) as server, pytest.raises(LlmRetryable):
        ask(server, tmp_path, timeout_s=0.3)
    assert time.monotonic() - started < 2.0
