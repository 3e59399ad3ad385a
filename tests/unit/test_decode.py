"""The decoder on plain trees: all faults at once, where they come from, what is kept, what names a run."""

from __future__ import annotations

import copy

import pytest

from engine.codec import encode
from engine.decode import decode_settings, located, run_identity
from engine.errors import ConfigError, Fault
from tests.support.compose import compose


@pytest.fixture(scope="module")
def whole():
    """The default tree before decoding, both back-ends included."""
    tree = compose("backend=cpu")[1]
    both = compose("backend=cuda")[1]["backends"]
    plain = {name: value for name, value in tree.items() if name not in ("category", "backend")}
    return {**plain, "backends": {**tree["backends"], **both}}


@pytest.fixture
def tree(whole):
    return copy.deepcopy(whole)


def decoded(tree, **given):
    return decode_settings(tree, {}, **{"category": "auto", "backend": "cpu", **given})


def faults(tree, **given) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        decoded(tree, **given)
    assert caught.value.exit_code == 2
    return [f"{fault.path}: {fault.problem}" for fault in caught.value.faults]


def test_decodes_and_keeps_the_chosen_backend_only(tree):
    settings = decoded(tree)
    assert (settings.category, settings.backend, set(settings.backends)) == ("auto", "cpu", {"cpu"})


def test_thresholds_of_other_categories_are_dropped_and_unknown_ones_refused(tree):
    tree["thresholds"] |= {"elsewhere": 1.0}
    assert "elsewhere" not in decoded(tree, mentioned=frozenset({"elsewhere"})).thresholds
    assert any(line.startswith("thresholds.elsewhere: no rule uses it") for line in faults(tree))


def test_faults_of_form_and_of_reference_come_together(tree):
    stage = next(iter(tree["categories"]["generic"]["stages"].values()))
    stage["budget"]["candidates"] = 0
    stage["metrics"] = ["dram_pctt"]
    tree["judge"]["seeds"] = True
    tree["llm"]["roles"] = {"sed": {}}
    tree["thresholds"]["unused"] = 1.0
    found = "\n".join(faults(tree))
    for fragment in (
        "budget.candidates: expected a number >= 1, got 0",
        "metrics: no metric 'dram_pctt', did you mean 'dram_pct'?",
        "judge.seeds: expected int, got True",
        "llm.roles.sed: no role 'sed', did you mean 'seed'?",
        "thresholds.unused: no rule uses it",
    ):
        assert fragment in found


def test_a_broken_rule_does_not_hide_another_in_the_same_stage(tree):
    stage = next(iter(tree["categories"]["generic"]["stages"].values()))
    stage["skip_when"] = {"form": {"when": 3, "why": "x"}, "name": {"when": "spedup > 1", "why": "x"}}
    found = "\n".join(faults(tree))
    assert "skip_when.form.when: expected str, got 3" in found
    assert "skip_when.name.when" in found
    assert "did you mean 'speedup'?" in found


def test_a_metric_of_broken_form_is_still_a_known_name(tree):
    tree["metrics"]["dram_pct"]["better"] = "maximum"
    assert [line.split(":")[0] for line in faults(tree)] == ["metrics.dram_pct.better"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_numbers_are_finite(tree, value):
    tree["search"]["min_gain"] = value
    assert f"search.min_gain: expected a finite number, got {value}" in faults(tree)


@pytest.mark.parametrize("name", ["category", "backend"])
def test_group_names_are_no_keys(tree, name):
    tree[name] = {"x": 1}
    assert any(line.startswith(f"{name}: unknown key") for line in faults(tree))


def test_not_a_mapping():
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        decode_settings([], {}, category="auto", backend="cpu")


def test_unknown_backend_and_category(tree):
    found = faults(tree, category="recurent", backend="cpuu")
    assert "category: no category 'recurent', did you mean 'recurrent'?" in found
    assert "backend: no back-end 'cpuu', did you mean 'cpu'?" in found


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("a.b.c", "leaf"),
        ("a.b.d", "branch"),
        ("a.x", "root"),
        ("a.b[2].c", "leaf"),
        ("other", ""),
    ],
)
def test_faults_are_blamed_on_the_longest_prefix(path, file):
    files = {"a": "root", "a.b": "branch", "a.b.c": "leaf"}
    assert located([Fault(path, "x")], files) == [Fault(path, "x", file)]


def test_a_fault_is_reported_once():
    assert len(located([Fault("a", "x"), Fault("a", "x")], {})) == 1


@pytest.mark.parametrize(
    "override",
    [
        "paths.results=/elsewhere",
        "display.mode=none",
        "run.debug=true",
        "run.sweep=abc",
    ],
)
def test_what_does_not_name_a_run(override):
    assert run_identity(compose("backend=cpu", override)[1]) == run_identity(compose("backend=cpu")[1])


@pytest.mark.parametrize(
    "override",
    [
        "search.seeds=3",
        "thresholds.small_conv_speedup=0.2",
        "run.mode=forecast",
        "judge.precision=tf32",
        "llm=mailbox",
        "category=generic task.of_category=false",
        "backends.cpu.cpu.launch_overhead_us=1",
    ],
)
def test_what_names_a_run(override):
    changed = run_identity(compose("backend=cpu", *override.split())[1])
    assert changed != run_identity(compose("backend=cpu")[1])
    assert len(changed) == 16 and int(changed, 16) >= 0


def test_the_other_backend_does_not_name_a_run(tree):
    first = run_identity(encode(decoded(tree)))
    tree["backends"]["cuda"]["cuda"]["device"] = 1
    assert run_identity(encode(decoded(tree))) == first
    assert run_identity(encode(decoded(tree, backend="cuda"))) != first


def test_a_threshold_of_another_category_does_not_name_a_run():
    quiet = ("backend=cpu", "category=attention")
    assert run_identity(compose(*quiet, "thresholds.small_conv_speedup=0.1")[1]) == run_identity(compose(*quiet)[1])


def test_the_tree_of_a_run_decodes_to_itself():
    settings, tree = compose("backend=cpu")
    plain = {name: value for name, value in tree.items() if name not in ("category", "backend")}
    assert encode(decode_settings(plain, {}, category="auto", backend="cpu")) == encode(settings)
