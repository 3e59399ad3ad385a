"""The lines of OpenAI batch files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.errors import LlmError, LlmRefused
from engine.llm.files import read_text
from engine.records import Request

REFUSALS = {400: "request", 401: "auth", 403: "auth", 404: "model", 422: "request"}
"""Status codes that a second submission cannot help; any other failure is queued again."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of a result file. `status` is None for a line without a response (expired, cancelled)."""

    custom_id: str
    status: int | None
    body: Json
    error: Json
    where: str


def line_of(request: Request, key: str) -> Json:
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body = {"model": request.model.removeprefix("openai/"), "messages": messages, **request.params}
    return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}


def identified_lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield _identifier(_parsed(line, f"{file}:{number}"), f"{file}:{number}"), line


def _parsed(line: str, where: str) -> Json:
    try:
        return json.loads(line)
    except ValueError as error:
        raise LlmError(
            f"{where}: expected a line of JSON: {error}", kind="batch", hint="fetch the file again"
        ) from error


def _identifier(tree: Json, where: str) -> str:
    if not isinstance(tree, dict) or not isinstance(tree.get("custom_id"), str):
        raise LlmError(f"{where}: expected an object with a custom_id", kind="batch", hint="is this a batch file?")
    return str(tree["custom_id"])


def results_in(folder: Path) -> Iterator[Result]:
    """Every line of the folder's result files, in the order of their names."""
    for file in sorted(folder.glob("*.jsonl")):
        # Not splitlines: JSON texts may hold U+2028 unescaped.
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                yield _result(line, f"{file}:{number}")


def _result(line: str, where: str) -> Result:
    tree = _parsed(line, where)
    response = tree.get("response") if isinstance(tree, dict) else None
    status = response.get("status_code") if isinstance(response, dict) else None
    body = response.get("body") if isinstance(response, dict) else None
    return Result(_identifier(tree, where), status if isinstance(status, int) else None, body, tree.get("error"), where)


def refusal(result: Result) -> LlmRefused:
    assert result.status is not None
    detail = json.dumps(result.error if result.error else result.body)
    kind = "context_window" if "context_length" in detail else REFUSALS[result.status]
    hint = "to submit it again, correct the cause and delete that line"
    return LlmRefused(f"{result.where}: status {result.status}: {detail[:400]}", kind=kind, hint=hint)
