"""The tree under conf/: every option composes and decodes, every file says what it is, every fault has its message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from engine.__main__ import compose as compose_config
from engine.__main__ import decode_config, diagnose
from engine.errors import ConfigError, Fault, MissingError, in_a_line
from tests.support.compose import compose

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
FILES = sorted(CONF.rglob("*.yaml"))
NEEDED = {
    "task=path": ["task.path=x.py"],
    "task=kernelbench": ["task.path=x.parquet"],
    "llm=scripted": ["llm.script=x.json"],
    "category=rounds": ["task.of_category=false"],
    "category=generic": ["task.of_category=false"],
}
"""What an option demands beside itself."""

STAGE = "categories.fusion_memory.stages.primary_conv"
RULE = f"{STAGE}.exit_when.small_conv"
FUSION = "category=fusion_memory"


def options() -> list[str]:
    return [f"{path.parent.name}={path.stem}" for path in FILES if path.parent != CONF]


def read(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def quickly(overrides: list[str]) -> list[str]:
    """With one category instead of all, where the overrides are not about categories."""
    about = any("categor" in text or "experiment" in text for text in overrides)
    return overrides if about else [*overrides, "category=attention"]


def refusal(overrides: list[str], folders: tuple[Path, ...] = ()) -> str:
    """What the command line says to these overrides: composed once where Hydra accepts them."""
    try:
        config = compose_config(overrides, folders)
    except (HydraException, OmegaConfBaseException):
        return str(ConfigError(diagnose([*(f"--config-dir={folder}" for folder in folders), *overrides])))
    with pytest.raises(ConfigError) as caught:
        decode_config(config)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("option", options())
def test_every_option_composes_and_decodes(option):
    compose(*quickly([option, *NEEDED.get(option, [])]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_file_says_what_it_is_and_which_command_uses_it(path):
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    prose = [line for line in head if not line.startswith("# @package")]
    assert len(prose) >= 2, "what it is, then the command"
    assert "python -m engine" not in prose[0]
    assert sum("python -m engine" in line or "'" in line for line in prose[1:]) >= 1


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent.name not in ("category", "metric")],
    ids=lambda path: path.relative_to(CONF).as_posix(),
)
def test_every_key_is_commented(path):
    """A key has a comment above it, or above the first of its block of siblings, or on its own line."""
    silent = []
    previous_commented = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        key = re.match(r"[\w.]+:", text)
        if text.startswith("#"):
            previous_commented = True
        elif key and not previous_commented and " # " not in text and not _excused(text):
            silent.append(f"{number}: {text}")
        elif not text:
            previous_commented = False
        if "help:" in text:
            break
    assert silent == []


def _excused(text: str) -> bool:
    """Keys whose meaning is the one of the block they stand in."""
    return text in ("defaults:", "paths:", "display:", "run:", "hydra:", "cuda: null", "cpu: null", "cpu:", "limits:")


def test_auto_lists_every_category_with_a_match():
    choosable = {path.stem for path in (CONF / "category").glob("*.yaml") if read(path).get("match")}
    assert sorted(read(CONF / "category" / "auto.yaml")["defaults"]) == sorted(choosable)


def test_auto_lists_every_backend():
    others = {path.stem for path in (CONF / "backend").glob("*.yaml")} - {"auto"}
    assert set(read(CONF / "backend" / "auto.yaml")["defaults"]) == others


@pytest.mark.parametrize("group", ["category", "backend"])
def test_options_live_below_their_own_name(group):
    plural = {"category": "categories", "backend": "backends"}[group]
    for path in (CONF / group).glob("*.yaml"):
        expected = plural if path.stem == "auto" else f"{plural}.{path.stem}"
        assert path.read_text(encoding="utf-8").startswith(f"# @package {expected}\n"), path.name


def test_only_experiments_may_change_everything():
    found = {path.parent.name for path in FILES if "@package _global_" in path.read_text(encoding="utf-8")}
    assert found == {"experiment"}


def leaves(tree, path=""):
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, value in tree.items():
        if path or name not in ("defaults", "hydra"):
            yield from leaves(value, f"{path}.{name}" if path else name)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_values_of_experiments_survive(name):
    wanted = read(CONF / "experiment" / f"{name}.yaml")
    settings, tree = compose(f"experiment={name}")
    for path, value in leaves(wanted):
        node = tree
        for key in path.split("."):
            node = node[key]
        assert node == value, path
    for choice in wanted.get("defaults", []):
        ((group, option),) = choice.items()
        if group == "override /category":
            assert settings.category == option
        if group == "override /llm":
            assert settings.llm.provider == read(CONF / "llm" / f"{option}.yaml")["provider"]


def test_the_same_path_reads_a_category_named_or_found():
    override = f"{STAGE}.budget.candidates=7"
    for choice in ("category=auto", FUSION):
        settings, _ = compose(choice, override)
        assert settings.categories["fusion_memory"].stages["primary_conv"].budget.candidates == 7


def test_contract_defaults():
    settings, _ = compose("backend=cpu")
    assert (settings.category, settings.llm.provider, settings.llm.recordings) == (
        "auto",
        "replay",
        "recordings/bundled",
    )
    assert settings.task.names == ("square_matmul", "conv1d", "matmul_sigmoid_sum", "conv2d_relu_bias")
    assert settings.backends["cpu"].accept_estimates


BROKEN = {
    "misspelt key": (["judge.seed_count=2"], "judge.seed_count=2: unknown key"),
    "misspelt key, close": (["search.seed=2"], "did you mean 'seeds'?"),
    "misspelt group": (["lllm=gpt"], "did you mean 'llm'?"),
    "unknown option": (["llm=gptt"], "llm=gptt: no option 'gptt', did you mean 'gpt'?"),
    "unknown category": (["category=recurent"], "no option 'recurent', did you mean 'recurrent'?"),
    "unknown experiment": (["experiment=roundss"], "no option 'roundss', did you mean 'rounds'?"),
    "threshold misspelt": (["thresholds.small_conv_sped=1"], "did you mean 'small_conv_speedup'?"),
    "added key": (["+search.patience=3"], "search.patience: unknown key"),
    "added top-level key": (["+patience=3"], "patience: unknown key"),
    "added into the group's name": (["+category.foo=1"], "category: unknown key"),
    "wrong type": (["search.seeds=many"], "search.seeds: expected int, got 'many'"),
    "bool for a number": (["search.seeds=true"], "search.seeds: expected int, got True"),
    "float for an int": (["search.seeds=1.5"], "search.seeds: expected int, got 1.5"),
    "text for a list": (["judge.suites=nominal"], "judge.suites: expected a list, got 'nominal'"),
    "number in a list of names": (["task.names=[1]"], "task.names[0]: expected str, got 1"),
    "below range": (["search.seeds=0"], "search.seeds: expected a number >= 1, got 0"),
    "above range": (["search.audit.share=1.5"], "search.audit.share: expected a number <= 1, got 1.5"),
    "not finite": (["search.min_gain=nan"], "search.min_gain: expected a finite number"),
    "not one of": (["judge.precision=tf23"], "judge.precision: expected one of ieee, tf32, reduced, got 'tf23'"),
    "choice, close": (["search.rules=observed"], "did you mean 'observe'?"),
    "null where a value is needed": (["judge.seeds=null"], "judge.seeds: expected int, got None"),
    "deleted key": (["~search.history"], "search.history: missing; expected int"),
    "no default": (["task=path"], "task.path: missing; it has no default (conf/task/path.yaml)"),
    "script missing": (["llm=scripted"], "llm.script: missing; it has no default (conf/llm/scripted.yaml)"),
    "cannot be read": (["thresholds.small_conv_speedup=a < b"], "needs inner quotes"),
    "interpolation to nothing": (["search.seeds=${nowhere}"], "Interpolation key 'nowhere' not found"),
    "unknown metric in a rule": (
        [FUSION, f'{RULE}.when="dram_pctt < 3"'],
        "did you mean 'dram_pct'?",
    ),
    "unlisted metric in a rule": (
        [FUSION, f'{RULE}.when="l1_hit_pct < 3"'],
        f"{RULE}.when: reads the metric 'l1_hit_pct', which this stage does not list in `metrics`",
    ),
    "unknown threshold in a rule": (
        [FUSION, f'{RULE}.when="speedup < thresholds.small_conv_sped"'],
        "did you mean 'thresholds.small_conv_speedup'?",
    ),
    "chained comparison": ([FUSION, f'{RULE}.when="1 < speedup < 3"'], f"{RULE}.when: "),
    "a score of the ended stage": (
        [FUSION, f"+{STAGE}.skip_when.early={{when: 'stage_gain < 1', why: x}}"],
        "reads 'stage_gain', which only exit rules know",
    ),
    "rule that is no expression": ([FUSION, f'{RULE}.when="speedup <"'], f"{RULE}.when: "),
    "call in a rule": ([FUSION, f"{RULE}.when=\"open('x') == 3\""], f"{RULE}.when: "),
    "rule without a reason": ([FUSION, f'{RULE}.why=""'], f"{RULE}.why: empty"),
    "rule of unknown kind": ([FUSION, f"+{STAGE}.exit_wen={{}}"], "did you mean 'exit_when'?"),
    "on_missing": ([FUSION, f"+{RULE}.on_missing=stop"], "expected one of ignore, fire, fail, got 'stop'"),
    "a match that reads a score": (
        [FUSION, 'categories.fusion_memory.match.when="speedup > 1"'],
        "reads the score 'speedup'; a match sees facts and thresholds only",
    ),
    "unused threshold": (["+thresholds.extra=1"], "thresholds.extra: no rule uses it"),
    "unknown raw counter in a stage": (
        [FUSION, f"{STAGE}.metrics=[raw.instruction]"],
        "no metric 'raw.instruction', did you mean 'raw.instructions'?",
    ),
    "unlisted raw counter in a rule": (
        [FUSION, f'{RULE}.when="raw.instructions < 3"'],
        "reads the metric 'raw.instructions', which this stage does not list in `metrics`",
    ),
    "misspelt raw counter in a rule": (
        [FUSION, f'{RULE}.when="raw.instruction < 3"'],
        "did you mean 'raw.instructions'?",
    ),
    "raw counter of nobody": (["+raw.x={unit: u, aggregate: sum}"], "raw.x: names no counter; give ncu, cupti"),
    "raw counter that rules cannot name": (
        ["+raw={a-b: {unit: u, aggregate: sum, ncu: c}}"],
        "raw.a-b: expected a name of letters, digits and _",
    ),
    "confidence demanded by a stage": (
        [FUSION, f"+{STAGE}.min_confidence=1.5"],
        f"{STAGE}.min_confidence: expected a number <= 1, got 1.5",
    ),
    "spelling for an unknown tool": (
        ["+metrics.dram_pct.spellings.cupty={name: x}"],
        "metrics.dram_pct.spellings.cupty: no tool 'cupty', did you mean 'cupti'?",
    ),
    "spelling of no form": (
        ["+metrics.launches.spellings.ncu={scale: 2}"],
        "metrics.launches.spellings.ncu: expected exactly one of name, plus, over, least, got none of them",
    ),
    "spelling of two forms": (
        ["+metrics.dram_pct.spellings.ncu.plus=[a, b]"],
        "metrics.dram_pct.spellings.ncu: expected exactly one of name, plus, over, least, got name and plus",
    ),
    "misspelt form": (["+metrics.dram_pct.spellings.ncu.pluss=[a, b]"], "did you mean 'plus'?"),
    "quotient of three": (
        ["+metrics.launches.spellings.ncu={over: [a, b, c]}"],
        "metrics.launches.spellings.ncu.over: expected two counters, dividend and divisor, got 3",
    ),
    "scale of nothing": (
        ["+metrics.dram_pct.spellings.ncu.scale=0"],
        "metrics.dram_pct.spellings.ncu.scale: 0 would make every value 0",
    ),
    "substitute without a note": (
        ["+metrics.launches.spellings.ncu={name: a, confidence: 0.5}"],
        "metrics.launches.spellings.ncu.note: missing; a substitute (confidence below 1) must say what it stands for",
    ),
    "range upside down": (["metrics.dram_pct.low=200"], "metrics.dram_pct.high: expected at least low = 200, got 101"),
    "unknown metric in a stage": ([FUSION, f"{STAGE}.metrics=[dram_pc]"], "no metric 'dram_pc', did you mean"),
    "planned proposer": ([FUSION, f"{STAGE}.proposer=tune"], "the proposer 'tune' does not exist yet"),
    "other planned proposer": ([FUSION, f"{STAGE}.proposer=analysis"], "'analysis' does not exist yet"),
    "unknown proposer": ([FUSION, f"{STAGE}.proposer=lm"], "no proposer 'lm', did you mean 'llm'?"),
    "missing guidance": (
        [FUSION, f"{STAGE}.guidance=generic/block_tilling"],
        "no guidance template 'generic/block_tilling', did you mean 'generic/block_tiling'?",
    ),
    "missing dialect": (
        ["backend=cpu", "backends.cpu.dialect=triton_cud"],
        "no dialect template 'triton_cud', did you mean 'triton_cuda'?",
    ),
    "no stages": (
        ["category=attention", "~categories.attention.stages", "+categories.attention.stages={}"],
        "categories.attention.stages: empty",
    ),
    "no representatives": (["category=rounds"], "'rounds' has no representatives; choose task=bundled or task=path"),
    "unknown suite": (["judge.suites=[nominl]"], "judge.suites[0]: expected one of nominal, signed"),
    "unknown representative": (
        ["category=attention", "categories.attention.representatives=[atention]"],
        "categories.attention.representatives: no bundled task 'atention', did you mean 'attention'?",
    ),
    "no tasks": (["paths.tasks=nowhere"], "paths.tasks: no such folder"),
    "no templates": (["paths.prompts=nowhere"], "paths.prompts: no such folder"),
    "unknown role": (["+llm.roles.optimize.model=x"], "no role 'optimize', did you mean 'optimise'?"),
    "unknown price": (["llm.price_per_mtok={inputs: 1.0}"], "no price 'inputs', did you mean 'input'?"),
    "no key": (["llm=gpt", "llm.key_env=null"], "llm.key_env: name the variable that holds the key"),
    "no recordings": (["llm.recordings=null"], "llm.recordings: the provider replay needs a path here"),
    "no mailbox": (["llm=mailbox", "llm.mailbox=null"], "llm.mailbox: the provider mailbox needs a path here"),
    "retry waits": (["llm.retry.max_s=1"], "llm.retry.max_s: expected at least base_s = 2"),
    "section of a back-end": (
        ["backend=cuda", "backends.cuda.cuda=null"],
        "backends.cuda.cuda: a back-end of kind cuda needs this section",
    ),
    "hardware number missing": (["backend=cpu", "~backends.cpu.hardware.dram_gbps"], "hardware.dram_gbps: missing"),
    "hardware number misspelt": (["backend=cpu", "+backends.cpu.hardware.dram_gps=1"], "did you mean 'dram_gbps'?"),
    "hardware number zero": (["backend=cpu", "backends.cpu.hardware.sm_count=0"], "expected a number > 0, got 0"),
    "profiler nobody spells": (
        ["backend=cpu", "+backends.cpu.profilers.statc={path: x, timeout_s: 1, max_launches: 1}"],
        "did you mean 'static'?",
    ),
    "no default tolerance": (["~judge.tolerances.default"], "judge.tolerances.default: missing"),
    "tolerance without a dtype": (["+judge.tolerances.loose={}"], "judge.tolerances.loose: empty"),
    "no suites": (["judge.suites=[]"], "judge.suites: empty"),
    "empty task name": (['task.names=[""]'], "task.names: an empty name"),
    "source without a path": (["task.source=path"], "task.path: the source path needs a file"),
    "experiment added": (["+experiment=rounds"], "+experiment=rounds: "),
}


@pytest.mark.parametrize(("overrides", "fragment"), BROKEN.values(), ids=BROKEN)
def test_broken_command_lines(overrides, fragment):
    assert fragment in refusal(quickly(overrides))


def test_there_are_enough_broken_configurations():
    assert len(BROKEN) >= 30


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError([Fault("task.names", "no task 'x'")]), "task.names: no task 'x'"),
        (
            ConfigError([Fault("a", "one", "f.yaml"), Fault("b", "two"), Fault("c", "three")]),
            "a: one (f.yaml), and 2 more",
        ),
        (ConfigError([Fault("a", "one\ntwo"), Fault("b", "three")]), "a: one, and 1 more"),
        (MissingError("no key\nin sight", hint="set it"), "no key"),
        (ConfigError([]), "0 faults in the configuration:"),
        (KeyboardInterrupt(), ""),
    ],
    ids=["a_fault", "the_first_of_three", "its_first_line", "another_error", "no_fault", "nothing_said"],
)
def test_an_error_in_a_line(error, line):
    assert in_a_line(error) == line


def test_all_faults_of_a_command_line_at_once():
    text = refusal(
        [
            "llm=gptt",
            "serch.seeds=2",
            "judge.seeds=x",
            f"{STAGE}.metrics=[dram_pc]",
            f'{RULE}.when="spedup < 3"',
            "+thresholds.extra=1",
        ]
    )
    for fragment in ("gptt", "serch.seeds=2: unknown key", "judge.seeds: expected int", "dram_pc", "spedup", "extra"):
        assert fragment in text
    assert text.startswith("6 faults") or text.startswith("7 faults"), text  # the exit rule used a threshold


def test_a_fault_names_the_file_or_the_override_it_came_from():
    assert "(command line: judge.seeds=x)" in refusal(["judge.seeds=x"])


CATEGORY = """# @package categories.mine
description: mine
match: {when: "ops >= 1 and thresholds.only_mine > 0", priority: 1}
representatives: [softmax]
stages:
  first:
    focus: f
    proposer: llm
    metrics: [%s]
    budget: {candidates: %s, repairs: 0}
    skip_when: {}
    exit_when: {}
    require: {}
    guidance: null
    sequential: false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for group in ("category", "experiment"):
        (tmp_path / group).mkdir()
    return tmp_path


def test_a_category_of_the_users_own_is_a_file(folder):
    (folder / "category" / "mine.yaml").write_text(CATEGORY % ("dram_pct", 2))
    settings = decode_config(compose_config(["category=mine", "+thresholds.only_mine=1"], [folder]))
    assert settings.categories["mine"].stages["first"].budget.candidates == 2


def test_faults_in_a_users_file_name_that_file(folder):
    file = folder / "category" / "mine.yaml"
    file.write_text(CATEGORY % ("dram_pc", "many"))
    text = refusal(["category=mine"], (folder,))
    assert f"categories.mine.stages.first.budget.candidates: expected int, got 'many' ({file})" in text
    assert f"no metric 'dram_pc', did you mean 'dram_pct'? ({file})" in text
    assert "thresholds.only_mine" in text


def test_a_threshold_that_another_category_uses_is_no_fault(folder):
    (folder / "category" / "mine.yaml").write_text(CATEGORY % ("dram_pct", 2))
    settings = decode_config(compose_config(["category=attention", "+thresholds.only_mine=1"], [folder]))
    assert "only_mine" not in settings.thresholds


def test_faults_in_an_experiment_name_its_file(folder):
    file = folder / "experiment" / "bad.yaml"
    file.write_text("# @package _global_\nsearch: {seeds: 0}\njudge: {limits: {run_s: -1}}\n")
    text = refusal(["experiment=bad"], (folder,))
    assert f"search.seeds: expected a number >= 1, got 0 ({file})" in text
    assert f"judge.limits.run_s: expected a number >= 0, got -1.0 ({file})" in text


def test_swept_values_are_all_checked():
    found = [str(fault) for fault in diagnose(["search.seeds=1,0,x", "llm=replay,gptt", "category=attention"])]
    assert len(found) == 3
    assert any("no option 'gptt'" in line for line in found)
    assert any("got 0" in line for line in found)
    assert any("got 'x'" in line for line in found)


def test_a_sound_command_line_has_no_faults():
    assert diagnose(["-m", "thresholds.small_conv_speedup=0.1,0.2", FUSION]) == []
