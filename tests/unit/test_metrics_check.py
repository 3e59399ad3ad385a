"""`python -m engine.metrics check`: which spelled counters are ghosts, by what lists, and what is said of them."""

from __future__ import annotations

import stat
import sys

import pytest

from engine.errors import ProfilerError
from engine.metrics import check
from engine.metrics.__main__ import main
from engine.settings import Metric, Spelling
from profilers import ncu_names
from profilers.cupti_host import INSTALL, Host
from tests.unit.test_cupti_host import GHOSTS


def metric(**spellings):
    return Metric("u", "min", "m", None, None, "sum", spellings)


VOCABULARY = {
    "m": metric(ncu=Spelling("real.sum"), cupti=Spelling("real.sum")),
    "n": metric(ncu=Spelling(plus=("real.sum", "unreal.sum")), trace=Spelling("launches")),
    "o": metric(ncu=Spelling("launch__grid_size"), cupti=Spelling("launch__grid_size")),
    "p": metric(ncu=Spelling("launch__grid_sise"), static=Spelling(least=("registers", "registerz"))),
}


class Lists:
    def knows(self, name):
        return name == "real.sum"

    def suggest(self, name):
        return "real.sum" if name == "unreal.sum" else None


def test_each_counter_is_asked_once_with_everyone_who_names_it():
    found = check.spelled(VOCABULARY, ("ncu", "cupti"))
    assert found[0] == check.Spelled("real.sum", ("m", "n"), ("ncu", "cupti"))
    assert [one.counter for one in found] == ["real.sum", "unreal.sum", "launch__grid_size", "launch__grid_sise"]


def test_ghosts_of_a_chip_and_names_that_only_ncu_works_out():
    ghosts = check.chip_ghosts("GH100", check.spelled(VOCABULARY, ("ncu", "cupti")), Lists())
    assert [(ghost.spelled.counter, ghost.where, ghost.right) for ghost in ghosts] == [
        ("unreal.sum", "GH100", "real.sum"),
        ("launch__grid_size", "cupti", None),
        ("launch__grid_sise", "GH100", "launch__grid_size"),
    ]
    assert check.told(ghosts[0]) == (
        "ghost: n (ncu): unreal.sum does not exist on GH100; the nearest that exists: real.sum\n"
    )
    assert "nothing near it exists" in check.told(ghosts[1])


def test_names_of_the_engines_own_answers():
    (ghost,) = check.own_ghosts(VOCABULARY)
    assert (ghost.spelled.counter, ghost.where, ghost.right) == ("registerz", "static", "registers")


@pytest.fixture(scope="module")
def library():
    try:
        Host()
    except ProfilerError as error:
        pytest.skip(f"{error}; {INSTALL}")


@pytest.mark.parametrize("chip", check.CHIPS)
def test_every_spelling_of_the_bundled_vocabulary_exists(library, capsys, chip):
    assert main(["check", "--chip", chip, "--ncu", "no-such-program"]) == 0
    said = capsys.readouterr().out
    assert f"checked {chip}: " in said and said.endswith("no ghosts\n")


def test_planted_and_copied_ghosts_are_found_with_the_right_name(library, capsys):
    planted = [f"+raw.ghost{number}={{unit: x, aggregate: sum, ncu: {name}}}" for number, name in enumerate(GHOSTS)]
    assert main(["check", "--chip", "GH100", *planted]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ghost: ")]
    assert len(lines) == len(GHOSTS)
    for number, (ghost, right) in enumerate(GHOSTS.items()):
        expected = f"raw.ghost{number} (ncu, cupti): {ghost} does not exist on GH100; the nearest that exists: {right}"
        assert f"ghost: {expected}" in lines


def test_an_unknown_chip_ends_with_2(library, capsys):
    assert main(["check", "--chip", "GH1000"]) == 2
    assert "did you mean GH100" in capsys.readouterr().err


def test_without_the_library_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr("profilers.cupti_host.find_libraries", lambda: ())
    assert main(["check"]) == 2
    assert "pip install 'nvidia-cuda-cupti" in capsys.readouterr().err
    assert main(["check", "--if-possible"]) == 0
    assert "not checked: libcupti is neither" in capsys.readouterr().out


def test_a_faulty_override_is_explained(capsys):
    assert main(["check", "metrics.dram_pct.spellings.ncu.nam=x"]) == 2
    assert "nam" in capsys.readouterr().err


QUERY = """\
Device NVIDIA H200 (GH100)
-------------------------- ----------- --------------------
Metric Name                Metric Unit Metric Description
-------------------------- ----------- --------------------
dram__bytes_read           byte        # of bytes read
launch__grid_size                      Maximum number of CTAs
"""


def test_names_of_a_list_that_ncu_prints():
    assert ncu_names.parse_query(QUERY) == {"dram__bytes_read", "launch__grid_size"}


@pytest.fixture
def ncu(tmp_path):
    """A stand-in that lists for chips, and for launches only what it is told."""

    def write(launches, status=0):
        program = tmp_path / "ncu"
        lists = f"print({launches!r} if 'launch' in sys.argv else 'real__bytes byte x')"
        program.write_text(f"#!{sys.executable}\nimport sys\n{lists}\nsys.exit({status})\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return str(program)

    return write


REAL = (check.Spelled("real__bytes.sum", ("m",), ("ncu",)), check.Spelled("launch__grid_size", ("n",), ("ncu",)))


def test_ncu_verifies_its_own_names_where_it_is_installed(ncu):
    ghosts, done, left_out = check._by_ncu(REAL, ("GH100",), ncu("launch__grid_size x"))
    assert (ghosts, len(done), left_out) == ([], 2, ())
    ghosts, _, _ = check._by_ncu(REAL, ("GH100",), ncu("launch__grid_dimension x"))
    assert [(ghost.spelled.counter, ghost.where) for ghost in ghosts] == [("launch__grid_size", "ncu")]


def test_an_ncu_that_cannot_be_asked_is_said_and_decides_nothing(ncu):
    ghosts, done, left_out = check._by_ncu(REAL, (), ncu("unrecognised option", status=1))
    assert (ghosts, done) == ([], ())
    assert "ended with 1" in left_out[0] and "taken from its documentation" in left_out[0]
