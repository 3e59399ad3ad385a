"""SIGKILL at random moments: the same command finishes, no finished step is repeated, no row lost or doubled."""

from __future__ import annotations

import json
import sys

from benchmarks.kill_and_resume import run_trial

KILLS = 5
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
    script.write_text(json.dumps([{"slot": slot, "text": text} for slot, text in slots.items()]))
    overrides = [
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        f"llm.script={script}",
        "search.seeds=4",
        "display.mode=none",
    ]
    engine = (sys.executable, "-m", "tests.support.fake_engine")
    trial = run_trial(KILLS, 7, tmp_path, overrides, engine=engine)
    assert trial.clean, trial
    assert trial.kills == KILLS
    assert len(set(trial.moments)) > 1, "the kills fell at different moments of the run"
    assert trial.events > 40
