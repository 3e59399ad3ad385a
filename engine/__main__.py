"""`python -m engine`, also installed as `kernel-engine`: the only module that sees Hydra.

Exit codes: 0 done, 1 engine error, 2 bad configuration or something needed is missing, 75 waiting for replies,
130 interrupted. Hydra drops a job's return value, so each job leaves its code in a file and `main` reads them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.canonical import Json, canonical, digest, short
from engine.codec import decode, did_you_mean, encode
from engine.command import reader_left
from engine.errors import ConfigError, EngineError, Fault, in_a_line
from engine.project import conf_dir, project_root
from engine.settings import JobEnd, Settings, SweepJob
from engine.sweeping import awaited_jobs, close_sweep, shared_compositions

if TYPE_CHECKING:
    from omegaconf import DictConfig

OUTCOMES = "KERNEL_ENGINE_OUTCOMES"
"""Environment variable with the folder of the jobs' exit codes; launchers that start processes pass it on."""
INTERRUPTED = 130
PRECEDENCE = (75, 1, 2)
"""Which code a sweep ends with when its jobs differ: replies can still come, so waiting wins."""
SUBTREES = {"category": "categories", "backend": "backends", "metric": "metrics"}
"""Groups whose files do not fill the key of their own name."""

LAUNCHERS = {"joblib": "sweep", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Launchers of plugins, and the extra that installs each."""

_THRESHOLD = re.compile(r"\bthresholds\.(\w+)")


def main() -> int:
    """Run the command line in sys.argv; returns the exit code."""
    # Otherwise Hydra prints errors itself and exits 1 whatever happened.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    arguments = name_sweep(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="kernel-engine-") as folder, shared_compositions():
        os.environ[OUTCOMES] = folder
        try:
            if arguments != sys.argv[1:]:
                _check_sweep(arguments)
            sys.argv[1:] = arguments
            with awaited_jobs(Path(folder)):
                hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            return _refuse(_explained(arguments, error), debug=False)
        except EngineError as error:
            return _refuse(error, debug=False)
        except KeyboardInterrupt:
            _say("interrupted; the same command continues, finished steps are not paid again")
            return INTERRUPTED
        except BrokenPipeError:
            # What Hydra shows itself, such as --help, through `head`.
            if not reader_left(sys.stdout):
                raise
        finally:
            ended = _ended(Path(folder))
            close_sweep(ended)
            reader_left(sys.stdout)
        return _combined(ended)


def _check_sweep(arguments: Sequence[str]) -> None:
    """Refuse a sweep with a bad value before its first job spends anything."""
    faults = diagnose(arguments)
    if faults:
        raise ConfigError(faults)


def _explained(arguments: Sequence[str], error: Exception) -> EngineError:
    """Hydra's refusal as a ConfigError with all faults of the command line, or of the tree where that is broken."""
    broken = _refusal([], [])
    if broken:
        return ConfigError([Fault("conf", broken)])
    return ConfigError(diagnose(arguments) or [Fault("command line", _compact(error))])


def job(config: DictConfig) -> JobEnd:
    """One job as Hydra runs it. Returns normally unless it is interrupted or the engine has a bug, because under a
    sweep an exit or exception would end or hide the other jobs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    current = HydraConfig.get()
    number = current.job.num if current.mode == RunMode.MULTIRUN else 0
    debug = bool(config.get("run", {}).get("debug", False))
    # A launcher may start the job on another machine, where the folder is not.
    folder = Path(os.environ[OUTCOMES]) if OUTCOMES in os.environ else None
    gathered = folder is not None and folder.is_dir()
    ended = JobEnd(int(number), 1, None, None, "an error that is no refusal of the engine ended it")
    try:
        settings = decode_config(config)
        from engine.app import run_job

        ended = run_job(settings, encode(settings), _sweep_job(settings), leave_ingest=gathered)
    except EngineError as error:
        ended = JobEnd(int(number), _refuse(error, debug=debug), None, None, in_a_line(error))
    finally:
        if folder is not None and gathered:
            # The command may have been interrupted before the last of the jobs that a cluster runs.
            with contextlib.suppress(FileNotFoundError):
                folder.joinpath(str(number)).write_text(canonical(encode(ended)), encoding="utf-8")
    return ended


def _ended(folder: Path) -> list[JobEnd]:
    """How the jobs that wrote their end here ended, by number."""
    found = [decode(JobEnd, json.loads(path.read_text(encoding="utf-8")), str(path)) for path in folder.iterdir()]
    return sorted(found, key=lambda ended: ended.job)


def _combined(ended: Sequence[JobEnd]) -> int:
    codes = {job.code for job in ended}
    return next((code for code in (*PRECEDENCE, *sorted(codes)) if code in codes), 0)


def _refuse(error: EngineError, *, debug: bool) -> int:
    if debug:
        _say("".join(traceback.format_exception(error)).rstrip())
    else:
        _say(f"{error}" + (f"\n{error.hint}" if error.hint else ""))
    return error.exit_code


def _say(text: str) -> None:
    reader_left(sys.stderr, f"engine: {text}\n")


def decode_config(config: DictConfig) -> Settings:
    """The settings of a configuration that Hydra composed, with the back-end resolved; raises ConfigError with every
    fault. Needs HydraConfig to be set."""
    from hydra.core.hydra_config import HydraConfig

    from engine.backends import detect
    from engine.decode import decode_settings, located

    hydra_config = HydraConfig.get()
    choices = {str(group): option for group, option in hydra_config.runtime.choices.items()}
    folders = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"]
    tree, unfilled = _plain(config)
    files = _sources(tree, choices, folders, _task_overrides())
    try:
        settings = decode_settings(
            tree,
            files,
            category=str(choices["category"]),
            backend=detect.resolve(str(choices["backend"])),
            mentioned=_mentioned(folders),
        )
    except ConfigError as error:
        reported = {fault.path for fault in unfilled}
        further = [fault for fault in error.faults if fault.path not in reported]
        raise ConfigError([*located(unfilled, files), *further], hint=error.hint) from error
    if unfilled:
        raise ConfigError(located(unfilled, files))
    return settings


def _plain(config: DictConfig) -> tuple[Json, list[Fault]]:
    """The resolved tree, and faults for values without default and for references to nothing."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    faults: list[Fault] = []
    try:
        tree: Json = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        faults.append(Fault(str(error.full_key), _hydra_line(error)))
        tree = OmegaConf.to_container(config, resolve=False)
    faults += [Fault(path, "missing; it has no default") for path, value in _leaves(tree, "") if value == "???"]
    return tree, faults


def compose(overrides: Sequence[str], folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration that these overrides compose, with HydraConfig set; `folders`: further configuration folders.
    For commands that take the engine's overrides but are not Hydra applications."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    search = [f"hydra.searchpath=[{','.join(f'file://{folder.resolve()}' for folder in folders)}]"] if folders else []
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = hydra.compose("config", [*overrides, *search], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
    from omegaconf import open_dict

    with open_dict(config):
        del config["hydra"]
    return config


def _mentioned(folders: Sequence[Path]) -> frozenset[str]:
    """Thresholds that any category file names, composed or not."""
    paths = (path for folder in folders for path in sorted(folder.glob("category/*.yaml")))
    lines = (line.split("#", 1)[0] for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return frozenset(name for line in lines for name in _THRESHOLD.findall(line))


def _sources(
    tree: Json, choices: Mapping[str, Any], folders: Sequence[Path], overrides: Sequence[str]
) -> dict[str, str]:
    """Dotted prefix -> what to blame: the group's file, the root file, the experiment's file, or the command line."""
    root = _shown("config.yaml", folders)
    found = {name: root for name in tree}
    for group, option in choices.items():
        if option is not None and not group.startswith("hydra/"):
            found[SUBTREES.get(group, group)] = _shown(f"{group}/{option}.yaml", folders)
    for group in ("category", "backend"):
        for name in tree.get(SUBTREES[group]) or ():
            found[f"{SUBTREES[group]}.{name}"] = _shown(f"{group}/{name}.yaml", folders)
    if choices.get("experiment"):
        file = f"experiment/{choices['experiment']}.yaml"
        found |= {path: _shown(file, folders) for path, _ in _leaves(_read(file, folders), "")}
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in choices:
            found[key] = f"command line: {override}"
    return found


def _read(file: str, folders: Sequence[Path]) -> Json:
    import yaml

    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    return {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _leaves(tree: Json, path: str) -> Iterator[tuple[str, Json]]:
    if not isinstance(tree, Mapping) or not tree:
        yield path, tree
        return
    for name, value in tree.items():
        if path or name not in ("defaults", "hydra"):
            yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _shown(file: str, folders: Sequence[Path]) -> str:
    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if path is None:
        return ""
    root = project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def name_sweep(arguments: list[str]) -> list[str]:
    """The command line with `run.sweep` added where it asks for a multirun, so that the jobs know each other: 16 hex of
    what the sweep is given, options that only say where or how left out."""
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments):
        return arguments
    if any(argument.startswith("run.sweep=") for argument in arguments):
        return arguments
    overrides = [argument for argument in arguments if _counts(argument)]
    return [*arguments, f"run.sweep='{short(digest(overrides))}'"]


def _counts(argument: str) -> bool:
    return not argument.lstrip("+~").startswith(("-", "hydra", "paths.", "display.", "run."))


def _sweep_job(settings: Settings) -> SweepJob | None:
    """This job's place in its sweep. A sweep that an experiment asks for is named by what it sweeps."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN:
        return None
    own = [override for override in _task_overrides() if _counts(override)]
    swept = {str(key): str(value) for key, value in (config.sweeper.get("params") or {}).items()}
    common = [override for override in own if override.split("=", 1)[0] not in swept]
    sweep_id = settings.run.sweep or short(digest([swept, sorted(common)]))
    return SweepJob(sweep_id, int(config.job.num), tuple(own))


def _task_overrides() -> list[str]:
    """This job's overrides as written: an interpolation in one refers to the configuration, not to Hydra's own."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    written = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(override) for override in written] if isinstance(written, list) else []


def diagnose(arguments: Sequence[str]) -> list[Fault]:
    """What is wrong with a command line: each override on its own, the configuration that the sound ones compose, and
    that of each further swept value, so that one report names every fault before a job starts."""
    folders = _config_dirs(arguments)
    overrides = [argument for argument in arguments if _is_override(argument)]
    # Groups first: a value can only be changed in a file that has been chosen.
    swept = [_expanded(override) for override in sorted(overrides, key=lambda text: "." in text.split("=", 1)[0])]
    faults: list[Fault] = []
    sound = [values[0] for values in swept]
    if _refusal(sound, folders):
        sound, absent = [], False
        for values in swept:
            refused = _refusal([*sound, values[0]], folders)
            if not refused:
                sound.append(values[0])
            elif not (absent and values[0].startswith("hydra.launcher.")):
                # The keys of a launcher that is not there are unknown for no fault of their own.
                faults.append(Fault(values[0], refused, "command line"))
            absent = absent or (bool(refused) and values[0].startswith("hydra/launcher="))
    faults += _faults(sound, folders)
    for values in swept:
        for text in values[1:]:
            variant = [*(other for other in sound if other != values[0]), text]
            refused = _refusal(variant, folders)
            faults += [Fault(text, refused, "command line")] if refused else _faults(variant, folders)
    return list(dict.fromkeys(faults))


def _refusal(overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Why Hydra does not compose these overrides, or nothing."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        compose(overrides, folders)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        return _compact(error)
    return ""


def _faults(overrides: Sequence[str], folders: Sequence[Path]) -> list[Fault]:
    try:
        decode_config(compose(overrides, folders))
    except ConfigError as error:
        return list(error.faults)
    return []


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    """Folders that --config-dir adds."""
    found = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--config-dir=")]
    pairs = itertools.pairwise(arguments)
    return [Path(folder) for folder in [*found, *(value for flag, value in pairs if flag in ("--config-dir", "-cd"))]]


def _expanded(override: str) -> list[str]:
    """The values of a swept override, one override each."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return [override]
    if not parsed.is_sweep_override() or not parsed.is_discrete_sweep():
        return [override]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def _compact(error: BaseException) -> str:
    """Hydra's and OmegaConf's message in one line, with the closest known name."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").rpartition("/")
        if group == "hydra/launcher" and name in LAUNCHERS:
            return f"the launcher '{name}' is not installed: pip install 'kernel-engine[{LAUNCHERS[name]}]'"
        known = [*error.options, *(LAUNCHERS if group == "hydra/launcher" else ())]
        return f"no option '{name}'{did_you_mean(name, known)}"
    if isinstance(error, OverrideParseException):
        return "cannot be read as key=value; a value with spaces, commas or < needs inner quotes: 'key=\"a < b\"'"
    cause = error.__cause__ or error
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        known = [str(name) for name in cause.parent_node]
        return f"unknown key{did_you_mean(str(cause.key), known)}"
    return _hydra_line(error)


def _hydra_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    return "; ".join(said[:4]) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
