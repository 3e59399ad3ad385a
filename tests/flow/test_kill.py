"""SIGKILL at random moments: the same command finishes, no finished step is repeated, no row lost or doubled, and the
bill is higher by the calls in flight at a kill and no other."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.kill_and_resume import Harness, run_trial

KILLS = 3
SEED = 2
"""Every kill waits for the journal to grow, and the last one strikes in its middle."""
STAGES = ("primary_conv", "fuse_activation_pooling")


def reply(us: int) -> str:
    return f"```python\n# fake: us={us}\nclass ModelNew: ...\n```"


def test_a_killed_run_continues_without_repeating_or_losing_anything(tmp_path):
    advice = json.dumps({"bottleneck": "b", "method": "m", "plan": "p"})
    script = tmp_path / "script.json"
    slots = {f"conv2d_relu_bias/fusion_memory/seed/seed.0.{n}": reply(200 - n) for n in range(4)}
    for number, stage in enumerate(STAGES):
        slots[f"conv2d_relu_bias/fusion_memory/{stage}/strategy.0.0"] = advice
        slots[f"conv2d_relu_bias/fusion_memory/{stage}/optimise.0.0"] = reply(90 - 10 * number)
    usage = {"input_tokens": 100, "output_tokens": 50, "cost_usd": 0.01}
    script.write_text(json.dumps([{"slot": slot, "text": text, "usage": usage} for slot, text in slots.items()]))
    overrides = [
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        f"llm.script={script}",
        "search.seeds=4",
        "search.audit.share=0.0",
        "display.mode=none",
    ]
    harness = Harness(overrides, (sys.executable, "-m", "tests.support.fake_engine"), call_s=0.1, pause_s=0.1)
    whole = tmp_path / "whole"
    harness.finish(whole)
    trial = run_trial(harness, whole, tmp_path / "broken", KILLS, SEED)
    assert trial.clean, trial
    assert trial.kills == KILLS
    assert trial.progressed == KILLS, "the kills fell after the run had gone on"
    assert len(set(trial.moments)) > 1, "the kills fell at different moments of the run"
    assert trial.events > 40
    assert trial.whole_usd == 0.08
    assert trial.charged_usd == pytest.approx(trial.whole_usd + 0.01 * sum(trial.in_flight))
