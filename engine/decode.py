"""From the composed configuration tree to `Settings`: one decoder, every fault at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from engine import crossref
from engine.canonical import Json, digest, short
from engine.codec import decode_collecting, did_you_mean
from engine.errors import ConfigError, Fault
from engine.settings import Settings
from engine.vocabulary import with_raw

UNIDENTIFYING = ("paths", "display", "hydra")
"""Top-level keys that say where and how a run is shown, not what it does."""

UNIDENTIFYING_OF_RUN = ("sweep", "debug", "label", "form", "write")
"""The same below `run`."""

_INDEX = re.compile(r"\[\d+\]")


def decode_settings(
    tree: Json,
    files: Mapping[str, str],
    *,
    category: str,
    backend: str,
    mentioned: frozenset[str] = frozenset(),
) -> Settings:
    """The settings in `tree`, a resolved plain tree; raises one ConfigError that lists all faults.

    `files` maps a dotted path prefix to what a fault below it is blamed on (the longest match wins). `category` is the
    chosen option (`auto` or a name), `backend` a resolved back-end. `mentioned`: thresholds that rules of category
    files outside this composition name; they are allowed and dropped. Of `backends` and `thresholds` only what this
    run uses is kept, so that nothing else can change its identity. Raw counters join the metrics as raw.<alias>.
    """
    faults: list[Fault] = []
    if not isinstance(tree, Mapping):
        raise ConfigError([Fault("(top)", f"expected a mapping of settings, got {tree!r}")])
    for name in ("category", "backend"):
        if name in tree:
            plural = did_you_mean(name, ("categories", "backends"))
            faults.append(Fault(name, f"unknown key, chosen as {name}=<option>, its values are elsewhere{plural}"))
    whole = {**tree, "category": category, "backend": backend}
    settings: Settings = decode_collecting(Settings, whole, "", faults)
    crossed = crossref.check(whole, mentioned)
    faults.extend(crossed.faults)
    if faults:
        raise ConfigError(located(faults, files), hint="python -m engine --cfg job shows the composed configuration")
    return dataclasses.replace(
        settings,
        backends={backend: settings.backends[backend]},
        metrics=with_raw(settings.metrics, settings.raw),
        thresholds={name: value for name, value in settings.thresholds.items() if name in crossed.thresholds},
    )


def run_identity(tree: Json) -> str:
    """The run id: 16 hex of the resolved configuration without paths, display, and the run's sweep and debug flags."""
    kept = {name: value for name, value in tree.items() if name not in UNIDENTIFYING}
    kept["run"] = {name: value for name, value in tree["run"].items() if name not in UNIDENTIFYING_OF_RUN}
    return short(digest(kept))


def remembered_identity(tree: Json) -> str:
    """The run id of the same settings with nothing measured afresh: the run whose replies a fresh one keeps."""
    return run_identity({**tree, "search": {**tree["search"], "fresh": [], "repeat": 1}})


def located(faults: Iterable[Fault], files: Mapping[str, str]) -> list[Fault]:
    """Each fault once, in order, with the source of the longest matching path prefix."""
    unique = dict.fromkeys(
        dataclasses.replace(fault, file=fault.file or _source(fault.path, files)) for fault in faults
    )
    return list(unique)


def _source(path: str, files: Mapping[str, str]) -> str:
    parts = _INDEX.sub("", path).split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in files:
            return files[prefix]
    return ""
