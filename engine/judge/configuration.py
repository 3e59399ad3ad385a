"""The engine's settings for a judgement, from the files below conf/ without Hydra: a GPU machine need not have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import yaml

from engine import crossref
from engine.backends import detect
from engine.canonical import Json
from engine.codec import decode_collecting, did_you_mean
from engine.decode import located
from engine.errors import ConfigError, Fault
from engine.project import conf_dir
from engine.settings import Settings
from engine.vocabulary import with_raw

GROUPS = {"judge": "judge", "metric": "metrics", "raw": "raw", "llm": "llm", "task": "task", "search": "search"}
"""Group of conf/ -> key of its values. Nothing of the last three is read here, but a back-end takes whole settings."""

READ_HERE = ("backend", "backends", "judge", "metrics", "raw")


def backend_names() -> tuple[str, ...]:
    """What `backend` may be: the options of conf/backend."""
    return tuple(sorted(path.stem for path in (conf_dir() / "backend").glob("*.yaml")))


def load_settings(backend: str, seed: int | None) -> Settings:
    """Settings for one back-end (`auto` is decided here), without plans. `seed`, where given, replaces judge.seed.

    Raises ConfigError with every fault of the parts that a judgement reads.
    """
    if backend not in backend_names():
        raise ConfigError([Fault("backend", f"no back-end '{backend}'{did_you_mean(backend, backend_names())}")])
    name = detect.resolve(backend)
    tree, files = _tree(name)
    faults: list[Fault] = []
    settings: Settings = decode_collecting(Settings, tree, "", faults)
    # Plans are not loaded, so what the check says of them is about this excerpt and not about the files.
    faults += [fault for fault in crossref.check(tree).faults if fault.path.split(".")[0] in READ_HERE]
    if faults:
        raise ConfigError(located(faults, files))
    settings = dataclasses.replace(settings, metrics=with_raw(settings.metrics, settings.raw))
    return (
        settings
        if seed is None
        else dataclasses.replace(settings, judge=dataclasses.replace(settings.judge, seed=seed))
    )


def _tree(backend: str) -> tuple[Json, Mapping[str, str]]:
    """The plain tree of the settings, and for each of its branches the file that it came from."""
    root = _read("config.yaml")
    options = {
        group: option for entry in root["defaults"] if isinstance(entry, dict) for group, option in entry.items()
    }
    groups = {key: f"{group}/{options[group]}.yaml" for group, key in GROUPS.items() if group in options}
    own = f"backend/{backend}.yaml"
    tree = {
        "category": crossref.AUTO,
        "categories": {},
        "thresholds": {},
        "backend": backend,
        "backends": {backend: _read(own)},
        **{key: _read(file) for key, file in groups.items()},
        **{key: root[key] for key in ("paths", "display", "run") if key in root},
    }
    files = {key: f"conf/{file}" for key, file in groups.items()}
    return tree, {**files, f"backends.{backend}": f"conf/{own}"}


def _read(file: str) -> Json:
    path = conf_dir() / Path(file)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([Fault("conf", f"cannot be read: {error}", str(path))]) from error
