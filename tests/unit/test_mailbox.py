"""The mailbox: what is written, what is read, and how a run waits."""

from __future__ import annotations

import pytest

from engine.errors import AwaitingReply, LlmError
from engine.llm.mailbox import Letter, MailboxLlm, read_letter
from engine.llm.recordings import request_hash
from tests.support.llm import request


@pytest.fixture
def mailbox(tmp_path):
    llm = MailboxLlm(tmp_path / "mail", "tester")
    llm.check()
    return llm


def key(prompt="write a kernel", **fields):
    return request_hash(request(prompt, **fields))[:16]


def wait(mailbox, prompt="write a kernel"):
    with pytest.raises(AwaitingReply) as caught:
        mailbox.complete(request(prompt))
    return caught.value


def test_waiting_writes_the_prompt_and_says_where_the_reply_goes(mailbox):
    error = wait(mailbox)
    answer = mailbox.folder / "in" / f"{key()}.md"
    prompt = mailbox.folder / "out" / f"{key()}.md"
    assert (error.where, error.exit_code) == (f"{answer}, the prompt is {prompt}", 75)
    assert str(answer) in str(error)
    assert prompt.read_text() == (
        "---\n"
        f"key: {key()}\n"
        "slot: level1__matmul/some_category/first/seed.0.0\n"
        "model: openai/served\n"
        'params: {"max_tokens": 100}\n'
        "sample: 0\n"
        f"reply_to: in/{key()}.md\n"
        "---\n\n"
        "<!-- system -->\nYou write Triton.\n\n<!-- user -->\nwrite a kernel\n"
    )


def test_the_reply_continues(mailbox):
    wait(mailbox)
    (mailbox.folder / "in" / f"{key()}.md").write_text("the answer\n")
    reply = mailbox.complete(request())
    assert (reply.text, reply.finish, reply.provider) == ("the answer\n", "stop", "mailbox")
    assert (reply.answered_by, reply.date, reply.model) == ("tester", "", "openai/served")


def test_a_waiting_prompt_is_written_once_and_mended(mailbox):
    wait(mailbox)
    out = mailbox.folder / "out" / f"{key()}.md"
    before = out.stat()
    wait(mailbox)
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    text = out.read_text()
    out.write_text("half a fi")
    wait(mailbox)
    assert out.read_text() == text
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("content", ["", "  \n\n"], ids=["empty", "blank"])
def test_a_file_without_text_is_not_yet_a_reply(mailbox, content):
    (mailbox.folder / "in" / f"{key()}.md").write_text(content)
    wait(mailbox)


def test_requests_have_letters_of_their_own(mailbox):
    wait(mailbox, "one")
    wait(mailbox, "two")
    (mailbox.folder / "in" / f"{key('two')}.md").write_text("two's answer")
    assert mailbox.complete(request("two")).text == "two's answer"
    wait(mailbox, "one")
    assert key(sample=1) != key(sample=0)


LETTERS = [
    pytest.param("plain", Letter("plain"), id="plain"),
    pytest.param(
        "---\nanswered_by: Ada\ndate: 2026-05-01\nmodel: m:1\nfinish: length\n---\n\ntext\n",
        Letter("text\n", "Ada", "2026-05-01", "m:1", "length"),
        id="front-matter",
    ),
    pytest.param("---\nanswered_by: Ada\n---\ntext", Letter("text", "Ada"), id="one-field"),
    pytest.param("---\r\nanswered_by: Ada\r\n---\r\ntext\r\n", Letter("text\r\n", "Ada"), id="CRLF"),
    pytest.param("---\ntext under a rule\n---\nmore", Letter("---\ntext under a rule\n---\nmore"), id="rules-in-text"),
    pytest.param("text\n---\nanswered_by: x\n---\n", Letter("text\n---\nanswered_by: x\n---\n"), id="later-block"),
    pytest.param("---\nanswered_by: x\n", Letter("---\nanswered_by: x\n"), id="not-closed"),
    pytest.param("---", Letter("---"), id="only-a-rule"),
]


@pytest.mark.parametrize(("content", "letter"), LETTERS)
def test_letter(content, letter):
    assert read_letter(content, "in/x.md") == letter


def test_misspelt_front_matter_is_refused_by_name(mailbox):
    path = mailbox.folder / "in" / f"{key()}.md"
    path.write_text("---\nanswerd_by: Ada\n---\ntext")
    with pytest.raises(LlmError, match="unknown front matter 'answerd_by', did you mean 'answered_by'") as caught:
        mailbox.complete(request())
    assert str(path) in str(caught.value)


def test_another_encoding_is_refused_by_name(mailbox):
    path = mailbox.folder / "in" / f"{key()}.md"
    path.write_bytes("größer".encode("latin-1"))
    with pytest.raises(LlmError, match="expected UTF-8 text, found byte 0xf6 at offset 2"):
        mailbox.complete(request())
    path.write_bytes("größer".encode("utf-8-sig"))
    assert mailbox.complete(request()).text == "größer"
