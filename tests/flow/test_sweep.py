"""A sweep over a threshold: later jobs pay only for what it changes, and SQL shows what it changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine.store import query

ROOT = Path(__file__).resolve().parents[2]
STAGE = "conv2d_relu_bias/fusion_memory"


def reply(us: int) -> str:
    return f"```python\n# fake: us={us}\nclass ModelNew: ...\n```"


def test_three_thresholds_give_three_rows_and_pay_once(tmp_path):
    slots = {
        f"{STAGE}/seed/seed.0.*": reply(900),
        f"{STAGE}/primary_conv/strategy.0.0": "{}",
        f"{STAGE}/primary_conv/optimise.0.0": reply(400),
        f"{STAGE}/fuse_activation_pooling/strategy.0.0": "{}",
        f"{STAGE}/fuse_activation_pooling/optimise.0.0": reply(50),
    }
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"slot": slot, "text": text} for slot, text in slots.items()]))
    results = tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "tests.support.fake_engine",
        "-m",
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        f"llm.script={script}",
        f"paths.results={results}",
        "thresholds.small_conv_speedup=0.1,0.2,0.3",
        f"hydra.sweep.dir={tmp_path / 'hydra'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = query(results, "select small_conv_speedup, exits, geomean, solved from sweep order by 1").rows
    assert [(row[0], row[1], round(row[2], 3), row[3]) for row in rows] == [
        (0.1, 0, 2.0, 1),
        (0.2, 0, 2.0, 1),
        (0.3, 1, 0.25, 1),
    ]
    ledger = [json.loads(line) for line in (results / "steps" / "ledger.jsonl").read_text().splitlines()]
    assert len({entry["key"] for entry in ledger}) == len(ledger)
    first = ledger[0]["run_id"]
    later = [entry["kind"] for entry in ledger if entry["run_id"] != first]
    assert later == ["confirm"], (
        "the first job pays; the others find every step, or leave stages out, but for one winner"
    )
