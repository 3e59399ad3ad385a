"""Calls beyond those that a plan is made of, traced on fake tensors."""

from __future__ import annotations

import pytest

from tests.unit.test_plan_recorder import answer_of, forward

STEADY = "return scaled(x, torch.empty_like(x))"


@pytest.mark.parametrize(
    ("body", "init"),
    [
        pytest.param(
            """
            self.calls += 1
            if self.calls > 5:
                return self.last
            self.last = scaled(x, torch.empty_like(x))
            return self.last
            """,
            "self.calls = 0",
            id="the-last-result-after-some-calls",
        ),
        pytest.param(
            """
            if self.seen is not x:
                self.seen, self.last = x, scaled(x, torch.empty_like(x))
            return self.last
            """,
            "self.seen = self.last = None",
            id="the-last-result-for-the-same-tensor",
        ),
        pytest.param(
            """
            if x.data_ptr() not in self.known:
                self.known[x.data_ptr()] = scaled(x, torch.empty_like(x))
            return self.known[x.data_ptr()]
            """,
            "self.known = {}",
            id="a-result-for-each-address",
        ),
        pytest.param(
            """
            self.calls += 1
            return scaled(x, torch.empty_like(x), 2.0, n=1 if self.calls > 6 else None)
            """,
            "self.calls = 0",
            id="another-argument-makes-another-kernel",
        ),
    ],
)
def test_a_call_that_differs_leaves_no_plan(tmp_path, body, init):
    answer = answer_of(tmp_path, forward(body, init=init))
    assert answer["plan"] is None
    assert "keeps changing" in answer["untraceable"]


@pytest.mark.parametrize(
    ("body", "init"),
    [
        pytest.param(STEADY, "pass", id="stateless"),
        pytest.param(f"self.calls += 1\n{STEADY}", "self.calls = 0", id="a-counter-that-nothing-reads"),
        pytest.param("scaled(x, torch.empty_like(x))\nreturn x", "pass", id="an-input-returned"),
        pytest.param(
            """
            if self.space is None:
                self.space = torch.empty_like(x)
            return scaled(scaled(x, self.space), torch.empty_like(x))
            """,
            "self.space = None",
            id="a-workspace",
        ),
        pytest.param(
            """
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                y = scaled(x, torch.empty_like(x))
            torch.cuda.current_stream().wait_stream(side)
            return y
            """,
            "pass",
            id="a-new-stream-for-each-call",
        ),
    ],
)
def test_a_call_that_does_the_same_keeps_the_plan(tmp_path, body, init):
    answer = answer_of(tmp_path, forward(body, init=init))
    assert answer["plan"] is not None, answer["untraceable"]
    assert not answer["grows"]


@pytest.mark.parametrize(
    ("keep", "grows"),
    [
        pytest.param("self.kept.append(y)", True, id="every-result-in-a-list"),
        pytest.param("self.kept = [y]", False, id="the-last-one-only"),
        pytest.param("KEPT.append(y)", True, id="in-a-list-of-the-module"),
    ],
)
def test_tensors_that_pile_up_are_told(tmp_path, keep, grows):
    body = f"y = scaled(x, torch.empty_like(x))\n{keep}\nreturn scaled(x, torch.empty_like(x))"
    answer = answer_of(tmp_path, forward(body, init="self.kept = []", more="KEPT = []"))
    assert answer["grows"] is grows


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("return scaled(x, torch.empty_like(x)).cpu()", id="cpu"),
        pytest.param('return scaled(x, torch.empty_like(x)).to("cpu")', id="to-cpu"),
        pytest.param('return scaled(x, torch.empty(x.shape, device="cpu"))', id="made-on-the-host"),
    ],
)
def test_memory_of_the_host_leaves_no_plan(tmp_path, body):
    answer = answer_of(tmp_path, forward(body))
    assert answer["plan"] is None
    assert "host" in answer["untraceable"]
