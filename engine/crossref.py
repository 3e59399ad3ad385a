"""What no single value shows: names that must exist elsewhere, rules against the vocabulary, sections that belong
together. Works on whatever part of the tree has the declared form, so that faults of form hide no others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from engine.canonical import Json
from engine.codec import decode_collecting, did_you_mean
from engine.errors import Fault
from engine.project import resolve
from engine.prompts import Prompts
from engine.rules import Expression, RuleError, parse
from engine.settings import BackendSettings, LlmSettings, Match, Metric, RawMetric, Rule, Spelling
from engine.vocabulary import RAW_PREFIX, THRESHOLD_PREFIX, OperandKind, operands, raw_metric, traced

T = TypeVar("T")

AUTO = "auto"
PROPOSERS = ("llm",)
PLANNED_PROPOSERS = ("analysis", "tune")
ROLES = ("seed", "error_analysis", "repair", "strategy", "optimise")
EXIT = "exit_when"
RULE_KINDS = ("skip_when", EXIT, "require")
ENDED_STAGE_SCORES = ("stage_gain", "failures")
HARDWARE = ("sm_count", "dram_gbps", "fp32_tflops", "tf32_tflops", "fp16_tflops", "l2_bytes", "shared_bytes")
SOURCES = ("ncu", "cupti", "trace", "static", "algebra", "msprof", "msprof_op", "torch_npu")
SPELLING_FORMS = ("name", "plus", "over", "least")
PRICES = ("input", "cached", "output")
FALLBACK_GUIDANCE = "guidance/generic/default.j2"
DEFAULT_TOLERANCE = "default"
NEEDED_BY_PROVIDER = {"replay": "recordings", "mailbox": "mailbox", "batch": "mailbox", "scripted": "script"}


@dataclass(frozen=True, slots=True)
class Crossed:
    faults: tuple[Fault, ...]
    thresholds: frozenset[str]
    """Those that a rule of this configuration uses."""


def check(tree: Json, mentioned: Collection[str] = ()) -> Crossed:
    """All cross-reference faults of `tree`, and the thresholds in use; `mentioned` thresholds may be unused."""
    checker = _Checker(tree)
    checker.categories()
    checker.thresholds(mentioned)
    checker.spellings()
    checker.backends()
    checker.llm()
    checker.task()
    checker.judge()
    checker.numbers(tree, ())
    return Crossed(tuple(checker.faults), frozenset(checker.used))


class _Checker:
    def __init__(self, tree: Json) -> None:
        self.tree = tree
        self.faults: list[Fault] = []
        self.used: set[str] = set()
        named = {name: self._part(Metric, "metrics", name) for name in self._names("metrics")}
        self.metrics = {name: metric for name, metric in named.items() if metric is not None}
        self.raw = {name: self._part(RawMetric, "raw", name) for name in self._names("raw")}
        # A metric or threshold whose own form is faulty is still a known name to rules and stages.
        self.named = (*named, *(f"{RAW_PREFIX}{alias}" for alias in self.raw))
        self.known = operands(self.named, self._names("thresholds"))
        self.traced = traced(self.metrics)
        self.templates = self._templates()
        self.tasks = self._tasks()

    def _at(self, *path: str) -> Json:
        node = self.tree
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def _names(self, *path: str) -> tuple[str, ...]:
        node = self._at(*path)
        return tuple(str(name) for name in node) if isinstance(node, Mapping) else ()

    def _part(self, kind: type[T], *path: str) -> T | None:
        """The decoded value at `path`; None where it is absent or malformed, which the decoder reports."""
        faults: list[Fault] = []
        value = decode_collecting(kind, self._at(*path), "", faults)
        return None if faults else cast(T, value)

    def _fault(self, path: tuple[str, ...], problem: str) -> None:
        self.faults.append(Fault(".".join(path), problem))

    def _expect(self, path: tuple[str, ...], what: str, name: str, known: Collection[str]) -> None:
        if name not in known:
            self._fault(path, f"no {what} '{name}'{did_you_mean(name, known)}")

    def _templates(self) -> frozenset[str]:
        folder = self._part(str, "paths", "prompts")
        if folder is None:
            return frozenset()
        if not resolve(folder).is_dir():
            self._fault(("paths", "prompts"), f"no such folder: {resolve(folder)}")
            return frozenset()
        prompts = Prompts(resolve(folder))
        self.faults.extend(prompts.faults())
        templates = prompts.templates()
        for name in (FALLBACK_GUIDANCE, *(f"{role}.j2" for role in ROLES)):
            if name not in templates:
                self._fault(("paths", "prompts"), f"the template {name} is missing from {prompts.folder}")
        return templates

    def _tasks(self) -> frozenset[str]:
        """Names of the bundled tasks."""
        folder = self._part(str, "paths", "tasks")
        if folder is None:
            return frozenset()
        if not resolve(folder).is_dir():
            self._fault(("paths", "tasks"), f"no such folder: {resolve(folder)}")
            return frozenset()
        return frozenset(path.stem for path in resolve(folder).glob("*.py"))

    def _options(self, folder: str) -> frozenset[str]:
        """Names of the templates below `folder`, as YAML writes them: without folder and suffix."""
        below = (name for name in self.templates if name.startswith(f"{folder}/"))
        return frozenset(name.removeprefix(f"{folder}/").removesuffix(".j2") for name in below)

    def categories(self) -> None:
        names, chosen = self._names("categories"), self._at("category")
        if not names:
            self._fault(("categories",), "no category is composed")
        for name in names:
            self._category(name)
        if chosen == AUTO and names and not any(self._at("categories", name, "match") for name in names):
            self._fault(("categories",), "the classifier needs at least one category with a `match`")
        if chosen != AUTO and names:
            self._expect(("category",), "category", chosen, names)

    def _category(self, name: str) -> None:
        path = ("categories", name)
        match = self._part(Match, *path, "match")
        if match is not None:
            self._match(path, match)
        for task in self._part(cast(Any, tuple[str, ...]), *path, "representatives") or ():
            self._expect((*path, "representatives"), "bundled task", task, self.tasks)
        if isinstance(self._at(*path, "stages"), Mapping) and not self._names(*path, "stages"):
            self._fault((*path, "stages"), "empty; a category needs at least one stage")
        for stage in self._names(*path, "stages"):
            self._stage((*path, "stages", stage))

    def _match(self, path: tuple[str, ...], match: Match) -> None:
        where = (*path, "match", "when")
        expression = self._parse(where, match.when)
        for name in sorted(expression.names if expression else ()):
            if self.known[name] in (OperandKind.SCORE, OperandKind.METRIC):
                kind = self.known[name].value
                self._fault(where, f"reads the {kind} '{name}'; a match sees facts and thresholds only")

    def _stage(self, path: tuple[str, ...]) -> None:
        self._proposer(path)
        listed = self._part(cast(Any, tuple[str, ...]), *path, "metrics")
        for name in listed or ():
            self._expect((*path, "metrics"), "metric", name, self.named)
        guidance = self._at(*path, "guidance")
        if isinstance(guidance, str):
            self._expect((*path, "guidance"), "guidance template", guidance, self._options("guidance"))
        for kind in RULE_KINDS:
            for name in self._names(*path, kind):
                rule = self._part(Rule, *path, kind, name)
                if rule is not None:
                    self._rule((*path, kind, name), rule, listed)

    def _proposer(self, path: tuple[str, ...]) -> None:
        proposer = self._part(str, *path, "proposer")
        if proposer in PLANNED_PROPOSERS:
            self._fault((*path, "proposer"), f"the proposer '{proposer}' does not exist yet; use llm")
        elif proposer is not None:
            self._expect((*path, "proposer"), "proposer", proposer, PROPOSERS)

    def _rule(self, path: tuple[str, ...], rule: Rule, listed: Collection[str] | None) -> None:
        if not rule.why.strip():
            self._fault((*path, "why"), "empty; say what the reader of the end table should know")
        expression = self._parse((*path, "when"), rule.when)
        if expression is None or listed is None:
            return
        for name in sorted(expression.names):
            if self.known[name] is OperandKind.METRIC and name not in listed and name not in self.traced:
                self._fault((*path, "when"), f"reads the metric '{name}', which this stage does not list in `metrics`")
            if name in ENDED_STAGE_SCORES and path[-2] != EXIT:
                self._fault((*path, "when"), f"reads '{name}', which only exit rules know")

    def _parse(self, path: tuple[str, ...], text: str) -> Expression | None:
        try:
            expression = parse(text, self.known)
        except RuleError as error:
            self._fault(path, str(error))
            return None
        named = (name for name in expression.names if self.known[name] is OperandKind.THRESHOLD)
        self.used |= {name.removeprefix(THRESHOLD_PREFIX) for name in named}
        return expression

    def thresholds(self, mentioned: Collection[str]) -> None:
        named = sorted({*self.used, *mentioned})
        for name in self._names("thresholds"):
            if name not in self.used and name not in mentioned:
                self._fault(("thresholds", name), f"no rule uses it{did_you_mean(name, named)}")

    def spellings(self) -> None:
        for name, metric in self.metrics.items():
            for tool, spelling in metric.spellings.items():
                self._expect(("metrics", name, "spellings", tool), "tool", tool, SOURCES)
                self._spelling(("metrics", name, "spellings", tool), spelling)
            if metric.low is not None and metric.high is not None and metric.high < metric.low:
                self._fault(("metrics", name, "high"), f"expected at least low = {metric.low:g}, got {metric.high:g}")
        for alias, raw in self.raw.items():
            if not alias.isidentifier():
                self._fault(("raw", alias), "expected a name of letters, digits and _, for rules say raw.<alias>")
            if raw is not None and not raw_metric(raw).spellings:
                self._fault(("raw", alias), "names no counter; give ncu, cupti, msprof or msprof_op")

    def _spelling(self, path: tuple[str, ...], spelling: Spelling) -> None:
        forms = {form: getattr(spelling, form) for form in SPELLING_FORMS}
        used = [form for form, counters in forms.items() if counters]
        if len(used) != 1:
            found = " and ".join(used) or "none of them"
            self._fault(path, f"expected exactly one of {', '.join(SPELLING_FORMS)}, got {found}")
        if spelling.over and len(spelling.over) != 2:
            self._fault((*path, "over"), f"expected two counters, dividend and divisor, got {len(spelling.over)}")
        if spelling.scale == 0:
            self._fault((*path, "scale"), "0 would make every value 0")
        if spelling.confidence < 1 and not spelling.note.strip():
            self._fault((*path, "note"), "missing; a substitute (confidence below 1) must say what it stands for")

    def backends(self) -> None:
        self._expect(("backend",), "back-end", str(self._at("backend")), self._names("backends"))
        for name in self._names("backends"):
            backend = self._part(BackendSettings, "backends", name)
            if backend is not None:
                self._backend(("backends", name), backend)

    def _backend(self, path: tuple[str, ...], backend: BackendSettings) -> None:
        if getattr(backend, backend.kind) is None:
            self._fault((*path, backend.kind), f"a back-end of kind {backend.kind} needs this section")
        self._expect((*path, "dialect"), "dialect template", backend.dialect, self._options("dialect"))
        spelled = {tool for metric in self.metrics.values() for tool in metric.spellings}
        for name in backend.profilers:
            self._expect((*path, "profilers", name), "metric is spelled for the profiler", name, spelled)
        for name in HARDWARE:
            if name not in backend.hardware:
                self._fault((*path, "hardware", name), "missing; floors, estimates and prompts use it")
        for name, value in backend.hardware.items():
            self._expect((*path, "hardware", name), "hardware number", name, HARDWARE)
            if value <= 0:
                self._fault((*path, "hardware", name), f"expected a number > 0, got {value:g}")

    def llm(self) -> None:
        for role in self._names("llm", "roles"):
            self._expect(("llm", "roles", role), "role", role, ROLES)
        for name in self._names("llm", "price_per_mtok"):
            self._expect(("llm", "price_per_mtok", name), "price", name, PRICES)
        llm = self._part(LlmSettings, "llm")
        if llm is None:
            return
        needed = NEEDED_BY_PROVIDER.get(llm.provider)
        if needed is not None and not getattr(llm, needed):
            self._fault(("llm", needed), f"the provider {llm.provider} needs a path here")
        if llm.provider == "litellm" and not llm.key_env and not llm.api_base:
            self._fault(("llm", "key_env"), "name the variable that holds the key, or set llm.api_base to a server")
        if llm.retry.max_s < llm.retry.base_s:
            self._fault(("llm", "retry", "max_s"), f"expected at least base_s = {llm.retry.base_s:g}")

    def task(self) -> None:
        source, path = self._at("task", "source"), self._at("task", "path")
        if source in ("path", "kernelbench") and path is None:
            self._fault(("task", "path"), f"the source {source} needs a file, directory or glob")
        for key in ("names", "exclude"):
            for name in self._part(cast(Any, tuple[str, ...]), "task", key) or ():
                if not name.strip():
                    self._fault(("task", key), "an empty name")
        chosen = self._at("category")
        if self._at("task", "of_category") is True and self._at("categories", str(chosen), "representatives") == []:
            self._fault(("task", "of_category"), f"'{chosen}' has no representatives; choose task=bundled or task=path")

    def judge(self) -> None:
        classes = self._names("judge", "tolerances")
        if DEFAULT_TOLERANCE not in classes:
            self._fault(
                ("judge", "tolerances", DEFAULT_TOLERANCE), "missing; tasks without a class of their own use it"
            )
        for name in classes:
            if not self._names("judge", "tolerances", name):
                self._fault(("judge", "tolerances", name), "empty; it needs limits for at least one dtype")
        if self._part(cast(Any, tuple[str, ...]), "judge", "suites") == ():
            self._fault(("judge", "suites"), "empty; a candidate must be run on at least one suite")

    def numbers(self, node: Json, path: tuple[str, ...]) -> None:
        """YAML's .nan and .inf are floats that compare with nothing and have no canonical form."""
        if isinstance(node, float) and not math.isfinite(node):
            self._fault(path, f"expected a finite number, got {node}")
        elif isinstance(node, Mapping):
            for name, item in node.items():
                self.numbers(item, (*path, str(name)))
        elif isinstance(node, list):
            for item in node:
                self.numbers(item, path)
