"""The corpus on a CUDA device: the same labels, judged at full size as well."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from engine.codec import decode
from engine.judging.service import Opening, Service
from engine.records import Contract, Status, Task
from engine.settings import JudgeSettings

pytestmark = pytest.mark.gpu

CORPUS = Path(__file__).resolve().parents[1] / "adversarial"
INDEX = list(csv.DictReader((CORPUS / "index.csv").read_text(encoding="utf-8").splitlines()))
ELSEWHERE = {
    "b23.py": "hangs until the limit, which is longer here",
    "b35.py": "host memory is not limited beside a CUDA context",
}


@pytest.fixture(scope="module")
def service(project, tmp_path_factory):
    tree = yaml.safe_load((project / "conf" / "judge" / "default.yaml").read_text(encoding="utf-8"))
    scratch = str(tmp_path_factory.mktemp("judge"))
    opened = Service(Opening(decode(JudgeSettings, tree), "cuda:0", "sm_90", True, scratch, {}))
    yield opened
    opened.close()


def task(project, name):
    contract = decode(Contract, yaml.safe_load((project / "tasks" / f"{name}.yaml").read_text(encoding="utf-8")))
    return Task(name, name, (project / "tasks" / f"{name}.py").read_text(encoding="utf-8"), contract, "declared", name)


@pytest.mark.parametrize("row", INDEX, ids=[f"{row['file'][:-3]}-{row['reason'] or 'correct'}" for row in INDEX])
def test_case(row, service, project):
    if row["file"] in ELSEWHERE:
        pytest.skip(ELSEWHERE[row["file"]])
    source = (CORPUS / "cases" / row["file"]).read_text(encoding="utf-8")
    verdict = service.judge.judge(task(project, row["task"]), source, 11)
    assert (verdict.reason or "") == row["reason"], verdict.message
    assert (verdict.status is Status.CORRECT) == (row["label"] == "honest")
    assert verdict.mode == "fallback"
