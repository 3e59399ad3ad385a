"""History of earlier runs, and what a forecast makes of it."""

from __future__ import annotations

import json

from engine.history import read_history


def call(role, tokens, usd, model="openai/m-2026"):
    return {
        "kind": "llm_call",
        "run_id": "r",
        "task_id": "t",
        "role": role,
        "model": model,
        "input_tokens": tokens,
        "output_tokens": 0,
        "cost_usd": usd,
        "latency_s": 2.0,
    }


def test_medians_by_role_and_kind_with_their_n(tmp_path):
    events = [call("seed", 100, 0.1), call("seed", 300, None), call("seed", 200, 0.3), call("seed", 9, 9.0, "other")]
    journal = tmp_path / "runs" / "r" / "events.jsonl"
    journal.parent.mkdir(parents=True)
    lines = [json.dumps(event, separators=(",", ":")) for event in events]
    journal.write_text("\n".join(lines) + '\n{"kind":"llm_call","torn')
    ledger = tmp_path / "steps" / "ledger.jsonl"
    ledger.parent.mkdir()
    steps = [{"kind": "verdict", "cost": {"wall_s": wall}} for wall in (1.0, 5.0, 3.0)]
    ledger.write_text("\n".join(json.dumps(step) for step in steps) + "\n")
    found = read_history(tmp_path, "m")
    assert (found.roles["seed"].n, found.roles["seed"].tokens, found.roles["seed"].usd) == (3, 200, 0.2)
    assert found.roles["seed"].priced == 2
    assert (found.kinds["verdict"].n, found.kinds["verdict"].seconds) == (3, 3.0)
    assert found.calls_a_task == (3,)


def test_no_history_is_no_number(tmp_path):
    found = read_history(tmp_path, "m")
    assert (found.roles, found.kinds, found.calls_a_task) == ({}, {}, ())
