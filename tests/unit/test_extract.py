"""Code and JSON out of replies, good and broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.extract import ReplyKind, extract_code, extract_json
from engine.records import Usage
from tests.support.llm import reply

BODY = "import torch.nn as nn\n\n\nclass ModelNew(nn.Module):\n    def forward(self, x):\n        return x\n"
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "recorded_replies.parquet"


def fenced(code=BODY, *, opening="```python", closing="```"):
    return f"{opening}\n{code}{closing}\n"


def indented(text, by="   "):
    return "".join(f"{by}{line}" if line.strip() else line for line in text.splitlines(keepends=True))


DOCSTRING_FENCE = (
    'class ModelNew:\n    """Usage:\n\n    ```python\n    y = ModelNew()(x)\n    ```\n    """\n\n    size = 1\n'
)
COLUMN_FENCE = '"""Usage:\n\n```\ny = ModelNew()(x)\n```\n"""\n\n\nclass ModelNew:\n    size = 1\n'
QUOTED_FENCE = 'class ModelNew:\n    mark = "```"\n    other = """x ``` y"""\n'

GOOD = [
    pytest.param(fenced(), BODY, id="python"),
    pytest.param(fenced(opening="```py"), BODY, id="py"),
    pytest.param(fenced(opening="```Python3"), BODY, id="Python3"),
    pytest.param(fenced(opening="```"), BODY, id="no-word"),
    pytest.param(fenced(opening="``` python title=kernel.py"), BODY, id="words-after-fence"),
    pytest.param(fenced(opening="~~~python", closing="~~~"), BODY, id="tildes"),
    pytest.param(fenced(opening="````python", closing="````"), BODY, id="four-backticks"),
    pytest.param(indented(fenced()), BODY, id="indented-fence"),
    pytest.param("1. ```python\n" + indented(BODY) + "   ```\n", BODY, id="in-a-list"),
    pytest.param(fenced().replace("\n", "\r\n"), BODY, id="CRLF"),
    pytest.param("\ufeff" + fenced(), BODY, id="byte-order-mark"),
    pytest.param("Here it is:\n\n" + fenced() + "\nIt is fast.", BODY, id="prose-around"),
    pytest.param("Here it is: ```python\n" + BODY + "```", BODY, id="fence-after-prose"),
    pytest.param("I answer in ```python\n" + fenced(), BODY, id="fence-named-in-prose"),
    pytest.param(fenced(DOCSTRING_FENCE), DOCSTRING_FENCE, id="fence-in-docstring"),
    pytest.param(fenced(COLUMN_FENCE), COLUMN_FENCE, id="fence-at-column-0-of-docstring"),
    pytest.param(fenced(QUOTED_FENCE), QUOTED_FENCE, id="backticks-in-strings"),
    pytest.param(fenced("pip install triton\n", opening="```bash") + fenced(), BODY, id="other-block-first"),
    pytest.param(fenced() + fenced("python -m bench\n", opening="```bash"), BODY, id="other-block-after"),
    pytest.param(fenced("@triton.jit\ndef k():\n    pass\n") + fenced(), BODY, id="helper-block-first"),
    pytest.param("<think>maybe\n" + fenced() + "</think>\n" + fenced(), BODY, id="thinking-first"),
    pytest.param("````markdown\n# Answer\n" + fenced() + "````\n", BODY, id="inside-markdown"),
    pytest.param("```python\n" + BODY, BODY, id="no-closing-fence-but-whole"),
    pytest.param(fenced("class ModelNew(\n"), "class ModelNew(\n", id="syntax-error-is-for-the-judge"),
    pytest.param(fenced(BODY + "\n\x00\n"), BODY + "\n\x00\n", id="null-byte-is-for-the-judge"),
    pytest.param(fenced("    \n" + BODY + "    \n"), "    \n" + BODY + "    \n", id="blank-lines-kept"),
]


@pytest.mark.parametrize(("text", "code"), GOOD)
def test_code(text, code):
    found = extract_code(reply(text))
    assert (found.kind, found.message) == (ReplyKind.OK, "")
    assert found.code == code


def test_a_cut_after_the_code_does_not_spoil_it():
    assert extract_code(reply(fenced() + "\nThis is fast beca", finish="length")).code == BODY


HALF = BODY[:60]
BROKEN = [
    pytest.param("", "stop", "empty", "The reply is empty.", id="empty"),
    pytest.param(" \n\t\n", "stop", "empty", "The reply is empty.", id="blank"),
    pytest.param("\ufeff", "stop", "empty", "The reply is empty.", id="only-a-mark"),
    pytest.param("", "content_filter", "empty", "content filter withheld it", id="filtered-away"),
    pytest.param("", "error", "empty", "The reply is empty.", id="empty-by-error"),
    pytest.param("<think>hm</think>", "stop", "empty", "The reply is empty.", id="only-thinking"),
    pytest.param(
        "", "length", "truncated", "used up before the answer (9 output tokens, 8 of them", id="thought-it-all"
    ),
    pytest.param(f"```python\n{HALF}", "length", "truncated", "cut off at the token limit", id="cut-in-code"),
    pytest.param(f"```python\n{BODY}", "length", "truncated", "cut off at the token limit", id="cut-after-a-line"),
    pytest.param("Let me think about", "length", "truncated", "cut off at the token limit", id="cut-in-prose"),
    pytest.param("<think>so the grid", "length", "truncated", "cut off at the token limit", id="cut-in-thinking"),
    pytest.param(fenced("x = 1\n"), "length", "truncated", "cut off at the token limit", id="cut-before-the-model"),
    pytest.param(
        fenced() + f"```python\n{HALF}", "length", "truncated", "cut off at the token limit", id="cut-in-second-version"
    ),
    pytest.param("```", "length", "truncated", "cut off at the token limit", id="cut-at-the-fence"),
    pytest.param(
        "```python\nclass ModelNew:\n    def forward(self", "stop", "truncated", "no closing fence", id="stops-mid-line"
    ),
    pytest.param("I cannot help with that.", "stop", "no_code", "has no code block", id="refusal"),
    pytest.param("First fuse, then tile.", "stop", "no_code", "has no code block", id="prose"),
    pytest.param(BODY, "stop", "no_code", "outside a code block", id="no-fence"),
    pytest.param("`class ModelNew: pass`", "stop", "no_code", "has no code block", id="inline-code"),
    pytest.param(indented(BODY, "    "), "stop", "no_code", "has no code block", id="indented-code-block"),
    pytest.param(fenced("x = 1\n"), "stop", "no_code", "one code block does not define class", id="no-class"),
    pytest.param(fenced("x\n") + fenced("y\n"), "stop", "no_code", "None of the 2 code blocks", id="two-without"),
    pytest.param(
        fenced("class Model(nn.Module):\n    pass\n"), "stop", "no_code", "must be called ModelNew", id="old-name"
    ),
    pytest.param(fenced("class ModelNewer:\n    pass\n"), "stop", "no_code", "does not define", id="longer-name"),
    pytest.param(fenced("# class ModelNew\n"), "stop", "no_code", "does not define", id="only-a-comment"),
    pytest.param(fenced("ModelNew = make()\n"), "stop", "no_code", "does not define", id="assigned-only"),
    pytest.param(fenced("+class ModelNew:\n", opening="```diff"), "stop", "no_code", "does not define", id="a-diff"),
    pytest.param(fenced(""), "stop", "no_code", "does not define", id="empty-block"),
    pytest.param('{"code": "class ModelNew: pass"}', "stop", "no_code", "has no code block", id="code-in-json"),
    pytest.param("<html>502 Bad Gateway</html>", "stop", "no_code", "has no code block", id="an-error-page"),
    pytest.param("Sure, here is", "content_filter", "no_code", "content filter cut the reply", id="filtered-midway"),
    pytest.param("''''python\n" + BODY + "''''", "stop", "no_code", "outside a code block", id="wrong-quotes"),
    pytest.param(fenced() + fenced(), "stop", "ambiguous_code", "has 2 code blocks", id="same-twice"),
    pytest.param(
        fenced() + "or, faster:\n" + fenced(BODY + "x = 1\n"), "stop", "ambiguous_code", "has 2 code", id="two-versions"
    ),
    pytest.param(fenced() * 3, "stop", "ambiguous_code", "has 3 code blocks", id="three"),
    pytest.param(fenced() + fenced(opening="~~~", closing="~~~"), "stop", "ambiguous_code", "has 2", id="two-fences"),
    pytest.param(fenced() * 2, "length", "ambiguous_code", "has 2 code blocks", id="two-then-cut-in-prose"),
]


@pytest.mark.parametrize(("text", "finish", "kind", "message"), BROKEN)
def test_broken_reply(text, finish, kind, message):
    found = extract_code(reply(text, finish=finish, usage=Usage(100, 9, reasoning_tokens=8)))
    assert (found.code, found.kind) == (None, kind)
    assert message in found.message
    assert "in one ```python block that defines class ModelNew" in found.message


def test_the_table_is_as_long_as_promised():
    assert len(BROKEN) >= 30


@given(st.text(alphabet="`~ \n\rab{}\"'class ModelNew:\\\t-", max_size=120), st.sampled_from(["stop", "length"]))
@settings(max_examples=300, deadline=None)
def test_any_text_is_answered(text, finish):
    found = extract_code(reply(text, finish=finish))
    assert (found.code is None) == (found.kind is not ReplyKind.OK)
    assert bool(found.message) == (found.code is None)
    extract_json(text, ["a"])


@given(st.lists(st.sampled_from(["x = 1", "", "    ", "y = '''", "'''", "# ``", "z = '`'"]), max_size=12))
@settings(max_examples=100, deadline=None)
def test_fenced_code_comes_back_as_it_was(lines):
    code = "\n".join(["class ModelNew:", "    pass", *lines, "end = 1"]) + "\n"
    assert extract_code(reply(f"Some words.\n```python\n{code}```\nMore.")).code == code


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded replies lie beside the project, not in it")
def test_recorded_replies_give_the_recorded_kernels():
    """The recorded rule was the first fence; where a reply has one that counts, both must agree."""
    import pandas

    table = pandas.read_parquet(RECORDED, columns=["reply_text", "kernel_code"]).dropna()
    found = [extract_code(reply(text)) for text in table.reply_text]
    same = sum(
        a.code is not None and a.code.strip() == b.strip() for a, b in zip(found, table.kernel_code, strict=True)
    )
    assert len(table) >= 1100
    assert same / len(table) >= 0.995, f"{same} of {len(table)} equal"


KEYS = ["bottleneck", "method"]
PLAIN = '{"bottleneck": "memory", "method": "fuse"}'
READ = {"bottleneck": "memory", "method": "fuse"}
JSON_GOOD = [
    pytest.param(PLAIN, READ, id="bare"),
    pytest.param(f"```json\n{PLAIN}\n```", READ, id="fenced"),
    pytest.param(f"```\n{PLAIN}\n```", READ, id="fenced-without-word"),
    pytest.param(f"I think {PLAIN} is right {{sic}}", READ, id="in-prose"),
    pytest.param(f"Use f(x) = {{x}} here: {PLAIN}", READ, id="brace-before"),
    pytest.param('{"note": "draft"}\n' + PLAIN, READ, id="other-object-first"),
    pytest.param('{"bottleneck": "a", "method": "b"}\n```json\n' + PLAIN + "\n```", READ, id="fence-wins"),
    pytest.param(f'{{"answer": {PLAIN}}}', None, id="nested-is-not-looked-into"),
    pytest.param(
        '{"bottleneck": "memory", "method": ["fuse", "tile"]}',
        {"bottleneck": "memory", "method": "fuse\ntile"},
        id="list-joined",
    ),
    pytest.param('{"bottleneck": "memory", "method": "fuse", "gain": 1.5}', READ, id="more-keys"),
    pytest.param('{"bottleneck": "a } b", "method": "c"}', {"bottleneck": "a } b", "method": "c"}, id="brace-in-text"),
    pytest.param("<think>{}</think>" + PLAIN, READ, id="after-thinking"),
    pytest.param("", None, id="empty"),
    pytest.param("no object", None, id="prose"),
    pytest.param('{"bottleneck": "memory"}', None, id="missing-key"),
    pytest.param('{"bottleneck": "memory", "method": 3}', None, id="number"),
    pytest.param('{"bottleneck": "memory", "method": null}', None, id="null"),
    pytest.param('{"bottleneck": "memory", "method": [1]}', None, id="list-of-numbers"),
    pytest.param('{"bottleneck": "memory", "method": "fu', None, id="cut"),
    pytest.param("{'bottleneck': 'memory', 'method': 'fuse'}", None, id="single-quotes"),
    pytest.param('{"bottleneck": "memory", "method": "fuse",}', None, id="trailing-comma"),
    pytest.param("[" * 5000 + "{" * 5000, None, id="deep"),
    pytest.param('{"a":' * 5000, None, id="deep-objects"),
]


@pytest.mark.parametrize(("text", "expected"), JSON_GOOD)
def test_json(text, expected):
    assert extract_json(text, KEYS) == expected
