"""Composes what the engine would compose: settings for some overrides, and for lint every category and back-end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.__main__ import compose, decode_config, diagnose
from engine.crossref import AUTO
from engine.errors import ConfigError, Fault
from engine.project import conf_dir
from engine.settings import BackendSettings, Settings
from engine.stageplan.lint import Plans


def settings_of(overrides: Sequence[str]) -> Settings:
    """As `python -m engine` with these overrides; ConfigError with every fault."""
    faults = diagnose(overrides)
    if faults:
        raise ConfigError(faults, hint="python -m engine --cfg job shows the composed configuration")
    return decode_config(compose(overrides))


def every_plan(overrides: Sequence[str]) -> Iterator[Plans]:
    """The plans that these overrides compose, and, unless they name one, every category that runs by name only. Each
    comes with every back-end."""
    first = settings_of(overrides)
    chosen = _value(overrides, "backend")
    backends = {name: _backend(overrides, name) for name in _options("backend") if chosen in ("", AUTO, name)}
    yield Plans(first, backends)
    if _value(overrides, "category") in ("", AUTO):
        for name in _options("category"):
            if name not in first.categories:
                # A plan that runs by name only need not have representatives, which the default task asks for.
                kept = [override for override in overrides if _concerns(override, name)]
                yield Plans(settings_of(["task=bundled", *kept, f"category={name}"]), backends)


def _concerns(override: str, category: str) -> bool:
    """Whether a composition of this category alone has what the override changes."""
    key = override.partition("=")[0].lstrip("+~")
    return not key.startswith("categories.") or key.startswith(f"categories.{category}.")


def _backend(overrides: Sequence[str], name: str) -> BackendSettings:
    kept = [override for override in overrides if not override.startswith("backend=")]
    return decode_config(compose([*kept, f"backend={name}"])).backends[name]


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if path.stem != AUTO)


def _value(overrides: Sequence[str], key: str) -> str:
    return next((text.partition("=")[2] for text in reversed(overrides) if text.partition("=")[0] == key), "")


def placed(faults: Sequence[Fault], overrides: Sequence[str]) -> list[Fault]:
    """Each fault with the command line's override or the file that its value comes from."""
    return [dataclasses.replace(fault, file=fault.file or _origin(fault.path, overrides)) for fault in faults]


def _origin(path: str, overrides: Sequence[str]) -> str:
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if path == key or path.startswith(f"{key}."):
            return f"command line: {override}"
    parts = path.split(".")
    folders: Mapping[str, str] = {"categories": "category", "backends": "backend"}
    if parts[0] in folders and len(parts) > 1:
        return _shown(conf_dir() / folders[parts[0]] / f"{parts[1]}.yaml")
    return _shown(conf_dir() / "config.yaml") if parts[0] == "thresholds" else ""


def _shown(path: Path) -> str:
    return path.relative_to(conf_dir().parent).as_posix() if path.is_file() else ""
