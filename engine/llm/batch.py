"""OpenAI batch files: requests out as JSONL, results in as JSONL."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from engine.canonical import canonical
from engine.errors import AwaitingReply, LlmError, MissingError
from engine.files import write_whole
from engine.llm.batch_lines import REFUSALS, Result, identified_lines, line_of, refusal, results_in
from engine.llm.chat import Price, read_completion
from engine.llm.files import ensure_folder, locked
from engine.llm.recordings import request_hash
from engine.records import Reply, Request


class BatchLlm:
    """Keeps unanswered requests in `out/batch-<model>.jsonl` and reads `in/*.jsonl`; files moved to `sent/` count as
    submitted. `must_price`: a limit in USD is set, so `check` refuses an unknown price."""

    def __init__(self, folder: Path, price: Price | None, *, must_price: bool) -> None:
        self.folder = folder
        self.price = price
        self.must_price = must_price

    def check(self) -> None:
        for name in ("out", "sent", "in"):
            ensure_folder(self.folder / name, "llm.mailbox")
        if self.must_price and self.price is None:
            hint = "set llm.price_per_mtok to your batch price, or remove search.budget.usd"
            raise MissingError("search.budget.usd: the price of a batch is unknown", hint=hint)

    def complete(self, request: Request) -> Reply:
        """AwaitingReply until a result is there; LlmRefused for one that the provider rejects."""
        key = request_hash(request)
        results = [result for result in results_in(self.folder / "in") if result.custom_id == key]
        answered = [result for result in results if result.status == 200]
        if answered:
            return self._reply(request, answered[-1])
        refused = [result for result in results if result.status in REFUSALS]
        if refused:
            raise refusal(refused[-1])
        path = self._queue(request, key, failures=len(results))
        message = f"{path.parent.parent}: request {key[:16]} waits for a result in in/*.jsonl"
        raise AwaitingReply(message, where=str(path))

    def _reply(self, request: Request, result: Result) -> Reply:
        try:
            completion = read_completion(result.body, self.price)
        except ValueError as error:
            raise LlmError(f"{result.where}: {error}", kind="batch") from error
        return Reply(
            text=completion.text,
            finish=completion.finish,
            usage=completion.usage,
            latency_s=0.0,
            model=completion.model or request.model,
            provider="batch",
        )

    def _queue(self, request: Request, key: str, failures: int) -> Path:
        """Add the request to its model's file unless it is there or under way; drop from every file what is answered,
        so that submitting a file never pays for a reply twice."""
        out = self.folder / "out"
        path = out / f"batch-{re.sub(r'[^A-Za-z0-9.-]+', '_', request.model)}.jsonl"
        with locked(self.folder / ".lock"):
            settled = {result.custom_id for result in results_in(self.folder / "in") if result.status == 200}
            for file in {path, *out.glob("*.jsonl")}:
                waiting = dict(identified_lines(file)) if file.is_file() else {}
                kept = {name: line for name, line in waiting.items() if name not in settled}
                if file == path and key not in kept and self._sent()[key] <= failures:
                    kept[key] = canonical(line_of(request, key))
                if kept and kept != waiting:
                    write_whole(file, "".join(f"{line}\n" for line in kept.values()))
                elif not kept:
                    file.unlink(missing_ok=True)
        return path

    def _sent(self) -> Counter[str]:
        """How often each request was submitted."""
        files = sorted((self.folder / "sent").glob("*.jsonl"))
        return Counter(name for file in files for name, _ in identified_lines(file))
