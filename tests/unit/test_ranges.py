"""What a rule can say over ranges: by table, and against evaluation at drawn points."""

from __future__ import annotations

import random

import pytest

from engine.rules import evaluate, parse
from engine.stageplan.ranges import ANY_TEXT, Span, Words, given, number, outcomes, whole_from
from engine.vocabulary import operands

KNOWN = operands(["m", "p"], ["t"])
PERCENT = Span(0.0, 100.0)
DOMAINS = {
    "m": PERCENT,
    "p": PERCENT,
    "thresholds.t": number(50.0),
    "ops": whole_from(0),
    "norm_ops": whole_from(0),
    "conv_ops": whole_from(0),
    "kernel_size": whole_from(1),
    "headroom": Span(0.0, low_open=True),
    "dtype": ANY_TEXT,
}
NEVER, ALWAYS, BOTH = {False}, {True}, {True, False}


def said(text, domains=DOMAINS):
    return set(outcomes(parse(text, KNOWN).root, domains))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m > 100", NEVER),
        ("m >= 100", BOTH),
        ("m >= 0", ALWAYS),
        ("m <= 100", ALWAYS),
        ("m < 0", NEVER),
        ("m > thresholds.t", BOTH),
        ("m == 101", NEVER),
        ("m != 101", ALWAYS),
        ("m < 10 and m > 20", NEVER),
        ("m < 10 or m >= 10", ALWAYS),
        ("m < 10 or m > 10", BOTH),
        ("m < thresholds.t and m > thresholds.t", NEVER),
        ("not (m >= 0)", NEVER),
        ("not (m < 10) or m < 20", ALWAYS),
        ("m == m", ALWAYS),
        ("m < m", NEVER),
        ("True", ALWAYS),
        ("(m > 10) == (m <= 10)", NEVER),
        ("ops > 1 and ops < 2", NEVER),
        ("ops >= 1 and ops < 2", BOTH),
        ("ops == 1.5", NEVER),
        ("norm_ops == 0 or norm_ops > 0", ALWAYS),
        ("norm_ops == 0 or norm_ops >= 2", BOTH),
        ("conv_ops + norm_ops == 0 and conv_ops >= 1", NEVER),
        ("conv_ops + norm_ops >= 0", ALWAYS),
        ("kernel_size < 1", NEVER),
        ("kernel_size <= 1", BOTH),
        ("headroom <= 0", NEVER),
        ("headroom > 0", ALWAYS),
        ("m + p > 200", NEVER),
        ("m + p >= 200", BOTH),
        ("m - p < -100", NEVER),
        ("m * 2 > 201", NEVER),
        ("m / 2 > 50", NEVER),
        ("m / p >= 0", BOTH),
        ("-m > 0", NEVER),
        ("abs(m - p) > 100", NEVER),
        ("max(m, p) < 0", NEVER),
        ("min(m, 150) > 100", NEVER),
        ("len(dtype) < 0", NEVER),
        ("dtype == 'a' and dtype == 'b'", NEVER),
        ("dtype == 'a' or dtype == 'b'", BOTH),
        ("dtype in ['a', 'b'] or dtype not in ['a', 'b']", ALWAYS),
        ("dtype == dtype", ALWAYS),
        ("m in [101, 102]", NEVER),
        ("m not in [101]", ALWAYS),
    ],
)
def test_possible_outcomes(text, expected):
    assert said(text) == expected


def test_known_values_decide():
    at = {**DOMAINS, "ops": number(3.0), "dtype": Words(frozenset({"float32"}))}
    assert said("ops >= 3 and dtype == 'float32'", at) == ALWAYS
    assert said("dtype in ['float16', 'bfloat16']", at) == NEVER


@pytest.mark.parametrize(
    ("condition", "text", "expected"),
    [
        ("conv_ops >= 1", "conv_ops == 0", NEVER),
        ("conv_ops >= 1", "conv_ops > 0", ALWAYS),
        ("conv_ops >= 1", "conv_ops == 1", BOTH),
        ("conv_ops + norm_ops == 0", "norm_ops >= 1", NEVER),
        ("conv_ops >= 1 or norm_ops >= 1", "norm_ops == 0 and conv_ops == 0", NEVER),
        ("m > 100", "ops > 1", set()),
    ],
)
def test_outcomes_where_another_rule_holds(condition, text, expected):
    assert set(given(parse(condition, KNOWN).root, parse(text, KNOWN).root, DOMAINS)) == expected


def drawn_rule(draw, depth=0):
    """A random rule over the names of DOMAINS."""
    if depth < 2 and draw.random() < 0.6:
        glue = draw.choice([" and ", " or "])
        text = glue.join(f"({drawn_rule(draw, depth + 1)})" for _ in range(draw.choice([2, 3])))
        return f"not ({text})" if draw.random() < 0.2 else text
    left, right = drawn_number(draw), drawn_number(draw)
    return f"{left} {draw.choice(['<', '<=', '>', '>=', '==', '!='])} {right}"


def drawn_number(draw):
    name = draw.choice(["m", "p", "ops", "norm_ops", "headroom", "thresholds.t", "0", "1", "2", "50", "100"])
    other = draw.choice(["m", "ops", "1", "2", "3"])
    forms = [name] * 5 + [
        f"({name} {draw.choice('+-*/')} {other})",
        f"abs({name})",
        f"min({name}, {other})",
        f"-{name}",
    ]
    return draw.choice(forms)


def drawn_value(draw, name):
    if name == "thresholds.t":
        return 50.0
    if name.endswith("ops"):
        return draw.choice([0, 1, 2, 3, 50, 1000])
    return draw.choice([1e-9, 0.5, 1.0, 2.0, 50.0, 99.0, 100.0] + ([0.0] if name != "headroom" else [1e9]))


def test_no_evaluation_has_an_outcome_that_was_ruled_out():
    draw = random.Random(7)
    decided = 0
    for _ in range(400):
        expression = parse(drawn_rule(draw), KNOWN)
        possible = outcomes(expression.root, DOMAINS)
        decided += len(possible) == 1
        for _ in range(40):
            values = {name: drawn_value(draw, name) for name in expression.names}
            found = evaluate(expression, values)
            assert found is None or found in possible, (expression.text, values)
    # Were everything always possible, the loop above would prove nothing.
    assert decided > 20
