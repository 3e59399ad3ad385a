"""Which category's plan an operator gets: the match rules of the categories, evaluated on its facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import ConfigError, Fault
from engine.records import Facts
from engine.rules import Evaluation, apply, parse
from engine.settings import Category, Rule
from engine.vocabulary import FACTS, OperandKind


@dataclass(frozen=True, slots=True)
class Classification:
    """The chosen category and the evaluation of every match rule, by descending priority."""

    category: str
    evaluations: tuple[Evaluation, ...]


def classify(facts: Facts, categories: Mapping[str, Category], *, otherwise: str | None = None) -> Classification:
    """The category with the highest priority whose match rule is true; equal priorities go by name.

    Categories without a match rule are never chosen. When no rule is true it is `otherwise`, and without that a
    ConfigError: a plan for everything else is a category whose rule always holds.
    """
    known = dict.fromkeys(FACTS, OperandKind.FACT)
    values = {name: getattr(facts, name) for name in FACTS}
    rules = sorted(
        (-category.match.priority, name, category.match.when, category.description)
        for name, category in categories.items()
        if category.match is not None
    )
    evaluations = tuple(
        apply(name, "match", Rule(when, why), parse(when, known), values) for _, name, when, why in rules
    )
    chosen = next((evaluation.rule for evaluation in evaluations if evaluation.fired), otherwise)
    if chosen is None:
        hint = "give one category a match rule that always holds, with the lowest priority"
        raise ConfigError([Fault("categories", "no match rule is true of this operator's facts")], hint=hint)
    return Classification(chosen, evaluations)
