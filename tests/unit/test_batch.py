"""Batch files: requests out once, results in, failures by kind, nothing submitted twice."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import AwaitingReply, LlmError, LlmRefused, MissingError
from engine.llm.batch import BatchLlm
from engine.llm.chat import Price
from engine.llm.recordings import request_hash
from engine.records import Usage
from tests.support.chat_server import completion
from tests.support.llm import request

OUT = "batch-openai_served.jsonl"


@pytest.fixture
def batch(tmp_path):
    llm = BatchLlm(tmp_path / "batch", None, must_price=False)
    llm.check()
    return llm


def wait(batch, *requests):
    for one in requests:
        with pytest.raises(AwaitingReply) as caught:
            batch.complete(one)
        assert caught.value.exit_code == 75


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def queued(batch, name=OUT):
    path = batch.folder / "out" / name
    return [line["custom_id"] for line in lines(path)] if path.is_file() else []


def result(one, body=None, *, status=200, error=None):
    response = {"status_code": status, "request_id": "r", "body": body} if status else None
    return {"id": "batch_req_1", "custom_id": request_hash(one), "response": response, "error": error}


def deliver(batch, *results, name="results.jsonl"):
    (batch.folder / "in" / name).write_text("".join(json.dumps(tree) + "\n" for tree in results))


def submit(batch, name="first.jsonl"):
    (batch.folder / "out" / OUT).rename(batch.folder / "sent" / name)


def test_a_request_is_one_line_of_the_published_form(batch):
    one = request()
    wait(batch, one)
    assert lines(batch.folder / "out" / OUT) == [
        {
            "custom_id": request_hash(one),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "served",
                "max_tokens": 100,
                "messages": [
                    {"role": "system", "content": "You write Triton."},
                    {"role": "user", "content": "write a kernel"},
                ],
            },
        }
    ]
    assert len(request_hash(one)) == 64


def test_lines_are_appended_once_and_models_kept_apart(batch):
    first, second, other = request("a"), request("b"), request("a", model="gpt-x")
    wait(batch, first, second, other, first)
    assert queued(batch) == [request_hash(first), request_hash(second)]
    assert queued(batch, "batch-gpt-x.jsonl") == [request_hash(other)]


def test_a_result_is_the_reply(batch):
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 40},
    }
    deliver(batch, result(request(), completion("the answer", finish="length", usage=usage)))
    reply = batch.complete(request())
    assert (reply.text, reply.finish, reply.provider, reply.model) == ("the answer", "length", "batch", "served-model")
    assert reply.usage == Usage(100, 50, 60, 40, None)
    assert queued(batch) == []


def test_a_declared_price_is_applied(tmp_path):
    llm = BatchLlm(tmp_path, Price(input=1.0, output=4.0), must_price=True)
    llm.check()
    deliver(llm, result(request(), completion("x")))
    assert llm.complete(request()).usage.cost_usd == pytest.approx((11 * 1.0 + 7 * 4.0) / 1e6)


def test_a_limit_in_usd_needs_a_price(tmp_path):
    with pytest.raises(MissingError, match="price of a batch is unknown"):
        BatchLlm(tmp_path, None, must_price=True).check()


def test_answered_requests_leave_every_file(batch):
    first, second, other = request("a"), request("b"), request("a", model="gpt-x")
    wait(batch, first, second, other)
    deliver(batch, result(first, completion("x")), result(other, completion("y")))
    wait(batch, second)
    assert queued(batch) == [request_hash(second)]
    assert not (batch.folder / "out" / "batch-gpt-x.jsonl").exists()


def test_a_submitted_request_is_not_queued_again(batch):
    one = request()
    wait(batch, one)
    submit(batch)
    wait(batch, one)
    assert queued(batch) == []
    wait(batch, request("another"))
    assert queued(batch) == [request_hash(request("another"))]


@pytest.mark.parametrize(
    "failed",
    [
        {"status": 429, "body": {"error": {"message": "slow down"}}},
        {"status": 500, "body": {}},
        {"status": None, "error": {"code": "batch_expired", "message": "not done in time"}},
    ],
    ids=["429", "500", "expired"],
)
def test_a_passing_failure_is_queued_again_once_for_each_submission(batch, failed):
    one = request()
    wait(batch, one)
    submit(batch)
    deliver(batch, result(one, **failed))
    wait(batch, one, one)
    assert queued(batch) == [request_hash(one)]
    submit(batch, "second.jsonl")
    wait(batch, one)
    assert queued(batch) == []
    deliver(batch, result(one, completion("late")), name="results2.jsonl")
    assert batch.complete(one).text == "late"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "bad parameter", "request"),
        (400, "context_length_exceeded", "context_window"),
        (401, "no key", "auth"),
        (404, "no such model", "model"),
    ],
    ids=["request", "context-window", "auth", "model"],
)
def test_a_refusal_is_typed_and_names_its_line(batch, status, message, kind):
    deliver(
        batch, result(request("b"), completion("x")), result(request(), {"error": {"message": message}}, status=status)
    )
    with pytest.raises(LlmRefused, match=rf"results\.jsonl:2: status {status}: .*{message}") as caught:
        batch.complete(request())
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"results\.jsonl:1: expected a line of JSON"),
        ("[]", r"results\.jsonl:1: expected an object with a custom_id"),
        ('{"response": {}}', r"results\.jsonl:1: expected an object with a custom_id"),
    ],
    ids=["cut", "list", "no-id"],
)
def test_an_unreadable_result_file_names_the_line(batch, line, message):
    (batch.folder / "in" / "results.jsonl").write_text(line)
    with pytest.raises(LlmError, match=message) as caught:
        batch.complete(request())
    assert caught.value.kind == "batch"


def test_a_body_without_choices_is_an_error_and_no_reply(batch):
    deliver(batch, result(request(), {"object": "chat.completion"}))
    with pytest.raises(LlmError, match=r"results\.jsonl:1: expected a chat completion with a list of choices"):
        batch.complete(request())


def test_line_separators_inside_texts_do_not_cut_lines(batch):
    one = request("a\u2028b\x0cc")
    wait(batch, one)
    wait(batch, request("other"))
    assert queued(batch) == [request_hash(one), request_hash(request("other"))]
    body = json.dumps(result(one, completion("x\u2028y")), ensure_ascii=False)
    (batch.folder / "in" / "r.jsonl").write_text(body + "\n", encoding="utf-8")
    assert batch.complete(one).text == "x\u2028y"


def test_runs_at_once_lose_no_line(tmp_path):
    """Each opening of the lock file is a lock of its own, in threads as in processes."""
    requests = [request(f"prompt {number}") for number in range(24)]

    def ask(one):
        llm = BatchLlm(tmp_path, None, must_price=False)
        llm.check()
        wait(llm, one)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, requests))
    assert {line["custom_id"] for line in lines(tmp_path / "out" / OUT)} == {request_hash(one) for one in requests}
