"""The default configuration without Hydra, for machines that lack it: the same files, groups chosen by argument."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from engine.canonical import Json
from engine.decode import decode_settings
from engine.settings import Settings

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = {"llm": "replay", "task": "representatives", "search": "default", "judge": "default", "metric": "canonical"}


def compose(backend: str, overrides: Mapping[str, Json], options: Mapping[str, str] | None = None) -> Settings:
    """Settings for every category and one back-end; `overrides` are dotted paths, `options` other group options."""
    tree: dict[str, Json] = {}
    _place(tree, "category/auto")
    _place(tree, f"backend/{backend}")
    for group, option in {**GROUPS, **(options or {})}.items():
        _place(tree, f"{group}/{option}")
    root = yaml.safe_load((CONF / "config.yaml").read_text())
    _merge(tree, {name: value for name, value in root.items() if name not in ("defaults", "hydra")})
    for path, value in overrides.items():
        _merge(tree, _nested(path, value))
    return decode_settings(tree, {}, category="auto", backend=backend)


def _place(tree: dict[str, Json], name: str) -> None:
    """Merge a group file at its package, and what its defaults list beside it."""
    path = CONF / f"{name}.yaml"
    text = path.read_text()
    first = text.splitlines()[0]
    package = first.split("@package", 1)[1].strip() if "@package" in first else path.parent.name
    content = yaml.safe_load(text) or {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            _place(tree, f"{path.parent.name}/{entry}")
    _merge(tree, content if package == "_global_" else _nested(package, content))


def _nested(path: str, value: Json) -> dict[str, Json]:
    *outer, last = path.split(".")
    tree: dict[str, Json] = {last: value}
    for part in reversed(outer):
        tree = {part: tree}
    return tree


def _merge(tree: dict[str, Json], other: Mapping[str, Json]) -> None:
    for name, value in other.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            _merge(tree[name], value)
        else:
            tree[name] = value
