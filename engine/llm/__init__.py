"""The model seam: one function from a request to a reply, and its providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.errors import MissingError
from engine.llm.batch import BatchLlm
from engine.llm.chat import declared_price
from engine.llm.litellm_client import LiteLlm
from engine.llm.mailbox import MailboxLlm
from engine.llm.record import RecordingLlm
from engine.llm.replay import ReplayLlm
from engine.llm.scripted import ScriptedLlm
from engine.llm.seam import Llm
from engine.project import is_checkout
from engine.records import Message, Request, Slot
from engine.settings import LlmSettings

Open = Callable[[LlmSettings, Path, bool], Llm]

PROVIDERS: Mapping[str, Open] = {
    "litellm": lambda settings, root, priced: LiteLlm(
        settings, declared_price(settings.price_per_mtok), must_price=priced
    ),
    "replay": lambda settings, root, priced: ReplayLlm(
        _located(settings.recordings, "llm.recordings", root), settings.match
    ),
    "mailbox": lambda settings, root, priced: MailboxLlm(
        _located(settings.mailbox, "llm.mailbox", root), settings.answered_by
    ),
    "batch": lambda settings, root, priced: BatchLlm(
        _located(settings.mailbox, "llm.mailbox", root), declared_price(settings.price_per_mtok), must_price=priced
    ),
    "scripted": lambda settings, root, priced: ScriptedLlm(_located(settings.script, "llm.script", root)),
}


def open_llm(settings: LlmSettings, root: Path, *, usd_limit: float | None = None) -> Llm:
    """The configured provider, recording its replies where `llm.record` is set. Relative paths are below `root`.

    With a limit in USD, `check` of a provider that costs money refuses a model whose price is unknown. Raises
    MissingError for a folder or file that the provider needs and the settings do not name.
    """
    llm = PROVIDERS[settings.provider](settings, root, usd_limit is not None)
    if settings.record is None:
        return llm
    return RecordingLlm(llm, _located(settings.record, "llm.record", root), settings.answered_by)


def request_for(settings: LlmSettings, slot: Slot, messages: Sequence[Message], sample: int) -> Request:
    """The request of one slot: the role's model where it has one, its parameters laid over the general ones."""
    model, params = settings.model, dict(settings.params)
    if slot.role in settings.roles:
        role = settings.roles[slot.role]
        model = role.model or model
        params |= role.params or {}
    return Request(slot, model, tuple(messages), params, sample)


def _located(path: str | None, setting: str, root: Path) -> Path:
    if path is None:
        raise MissingError(f"{setting} is null, and this provider needs it", hint=f"add {setting}=<path>")
    given = Path(path).expanduser()
    inside = root / given
    # An installed package's data folder holds what was shipped; what runs write belongs to the working directory.
    return inside if is_checkout() or inside.exists() else Path.cwd() / given
