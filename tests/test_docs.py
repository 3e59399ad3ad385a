"""What the documents say exists: commands, targets, links, kinds, decisions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from engine.codec import decode
from engine.errors import AwaitingReply, BudgetSpent, ConfigError, EngineError, MissingError
from engine.journal import EVENTS
from engine.judge import Judgement
from engine.judge.__main__ import INTERRUPTED, NOT_CORRECT, options_parser
from engine.records import Reason, ScoreKind, Status

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
AHEAD = {ROOT / "docs" / "design.md", ROOT / "docs" / "contracts.md"}
"""These describe the whole project, commands that are still to come included."""
ADRS = sorted(path for path in (ROOT / "docs" / "adr").glob("0*.md"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands() -> list[str]:
    """Lines of README.md that run the engine, without comment and leading assignment."""
    lines = (line.partition("  #")[0].strip() for line in text(ROOT / "README.md").splitlines() if line[:4] == "    ")
    return [re.sub(r"^[A-Z_]+=\S+ ", "", line) for line in lines if "python -m engine" in line]


def test_readme_shows_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("page", [page for page in (*PAGES, *DOCS) if page not in AHEAD], ids=name_of)
def test_modules_that_are_run_exist(page):
    for module in sorted(set(re.findall(r"python -m (engine[\w.]*\w)", text(page)))):
        assert (ROOT / module.replace(".", "/") / "__main__.py").exists(), f"{name_of(page)} runs {module}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [*PAGES, *DOCS], ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", text(page)):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m engine ")])
def test_overrides_of_the_readme_compose(command):
    """Each command as written, but only composed: nothing is run."""
    import shlex

    arguments = [word for word in shlex.split(command)[3:] if word not in ("-m", "--cfg", "job")]
    arguments = [re.sub(r"=(0\.1),.*", r"=\1", word) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "engine", *arguments, "--cfg", "job"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_every_decision_is_listed_and_whole():
    assert ADRS
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", text(ROOT / "docs" / "adr" / "README.md"))
    assert listed == [path.name for path in ADRS]
    for path in ADRS:
        parts = re.findall(r"^## (\w+)", text(path), re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], path.name
        assert text(path).startswith(f"# {path.name[:4]}: ")


@pytest.mark.parametrize("kind", EVENTS)
def test_every_kind_of_event_is_described(kind):
    assert f"`{kind}`" in text(ROOT / "docs" / "journal.md")


@pytest.mark.parametrize("word", [*Status, *ScoreKind], ids=str)
def test_glossary_has_the_states(word):
    assert f"`{word}`" in text(ROOT / "README.md")


def rows_of(page: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading of a page in docs/, without its head."""
    section = text(ROOT / "docs" / page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.replace(r"\|", "/") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("reason", list(Reason), ids=str)
def test_every_reason_is_described_with_an_example(reason):
    (described,) = [row for row in rows_of("verdicts.md", "Reasons") if row[0] == f"`{reason}`"]
    assert len(described) == 3
    assert all(described)


def test_no_reason_is_described_that_does_not_exist():
    assert {row[0].strip("`") for row in rows_of("verdicts.md", "Reasons")} <= {reason.value for reason in Reason}


def judgements() -> list[Judgement]:
    """The examples of docs/judge.md; each has every key, and no other."""
    blocks = re.findall(r"```json\n(.*?)```", text(ROOT / "docs" / "judge.md"), re.DOTALL)
    trees = [json.loads(block) for block in blocks]
    assert [list(tree) for tree in trees] == [[field.name for field in fields(Judgement)]] * len(trees)
    return [decode(Judgement, tree, "docs/judge.md") for tree in trees]


def test_the_judge_is_shown_with_each_of_its_exits():
    shown = [(made.correct, made.error is not None) for made in judgements()]
    assert sorted(shown) == [(False, False), (False, True), (True, False)]
    codes = {int(row[0]) for row in rows_of("judge.md", "Exit codes")}
    assert codes == {0, EngineError.exit_code, ConfigError.exit_code, NOT_CORRECT, INTERRUPTED}


def test_every_key_of_a_judgement_is_described():
    described = [name for row in rows_of("judge.md", "JSON") for name in re.findall(r"`(\w+)`", row[0])]
    assert described == [field.name for field in fields(Judgement)]


def test_every_option_of_the_judge_is_described():
    described = set(re.findall(r"^\| `([A-Z-][\w-]*)", text(ROOT / "docs" / "judge.md"), re.MULTILINE))
    options = set(re.findall(r"--[\w-]+", options_parser().format_usage()))
    assert options - described == {"--no-time"}
    assert described - options == {"REFERENCE", "CANDIDATE"}


@pytest.mark.parametrize("error", [EngineError, ConfigError, MissingError, AwaitingReply, BudgetSpent])
def test_exit_codes_are_told(error):
    line = next(line for line in text(ROOT / "README.md").splitlines() if line.startswith("Exit codes:"))
    assert re.search(rf"\b{error.exit_code} ", line)


def test_readme_has_the_place_for_a_real_run():
    whole = text(ROOT / "README.md")
    assert whole.count("<!-- run output -->") == whole.count("<!-- /run output -->") == 1


def test_the_picture_is_well_formed():
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    assert root.tag.endswith("svg")
    assert root.find("{http://www.w3.org/2000/svg}title") is not None


def test_configuration_files_begin_with_what_they_are_and_a_command():
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        head = text(path).splitlines()[:6]
        assert head[0].startswith("#"), path
        assert any("python -m engine" in line for line in head), path
        yaml.safe_load(text(path))


def test_licence_is_what_the_project_says():
    assert "Apache License" in text(ROOT / "LICENSE")
    assert 'license = "Apache-2.0"' in text(ROOT / "pyproject.toml")


@pytest.mark.parametrize("page", [*PAGES, *DOCS], ids=name_of)
def test_no_adjective_without_a_measurement(page):
    claims = re.compile(r"\b(robust|production-ready|blazing|state-of-the-art|seamless|cutting-edge)\b", re.IGNORECASE)
    assert claims.findall(text(page)) == []
