"""The report of a real run in a real browser: what a reader clicks works, and what a model wrote runs nothing."""

from __future__ import annotations

import pytest

import engine.run
from engine.journal import read_events
from engine.records import Reply, Usage
from engine.report import write_report
from engine.run import execute
from tests.flow.test_runner import FACTS, TASK
from tests.support.browser import HOW, browser, missing
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend

HOSTILE = "</pre><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
TIMES = {"one": (200, 80, 40), "two": (150, 60, 300), "three": (1000, 900, 800)}
"""Microseconds of the kernels of each task, by stage; the fake eager time is 100."""
SCRIPTED = ("seed", "primary_conv", "fuse_activation_pooling")


class Writes:
    """A model that wants its replies to run in the reader's browser."""

    def check(self) -> None:
        return None

    def complete(self, request):
        slot = request.slot
        us = TIMES[slot.task_id][SCRIPTED.index(slot.stage)]
        code = f"```python\n# fake: us={us}\n# {HOSTILE}\nclass ModelNew: ...\n```"
        return Reply(f"{HOSTILE}\n{code}", "stop", Usage(10, 5), 0.1, request.model, "scripted", "test")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of three operators, of which one leaves its plan by a rule."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tasks").mkdir()
    for name in TIMES:
        (folder / "tasks" / f"{name}.py").write_text(TASK)
    settings, tree = compose(
        "category=fusion_memory", "backend=cpu", "llm=scripted", "llm.script=unused.json", "task=path",
        f"task.path={folder / 'tasks'}", f"paths.results={folder / 'results'}", "search.seeds=1",
        "search.strategy=false", "search.error_analysis=false",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.run, "describe", lambda tasks, scratch: tuple(FACTS for _ in tasks))
        patch.setattr(engine.run, "open_llm", lambda *_, **__: Writes())
        patch.setattr(engine.run, "open_backend", lambda *_: FakeBackend())
        outcome = execute(settings, tree)
    return folder / "results" / "runs" / outcome.run_id


@pytest.fixture(scope="module")
def window():
    if missing():
        pytest.skip(HOW)
    with browser() as opened:
        yield opened


@pytest.fixture(params=["plain", "packed"])
def shown(run, window, request, monkeypatch):
    """The page, opened at the size of a desk; texts as they are, and packed as those of a large run."""
    if request.param == "packed":
        monkeypatch.setattr("engine.report.page.PLAIN_LIMIT", 0)
    page = write_report(run, read_events(run / "events.jsonl"))
    window.size(1280, 900)
    window.prefer("light")
    window.open(page)
    window.run("localStorage.clear(); delete document.documentElement.dataset.theme")
    yield window
    assert window.run("return window.pwned === undefined && document.images.length === 0")
    assert window.log() == [], "an error of a script, or something that the policy refused"


COLUMN = "return Array.from(document.querySelectorAll('#operators tbody tr'), row => row.cells[0].textContent)"


def test_the_run_itself_is_told(run):
    """Without a browser, too: the path of each operator with the rule that ended it."""
    text = write_report(run, read_events(run / "events.jsonl")).read_text()
    assert "ends the plan: cuDNN wins on small windows" in text
    assert "<code>kernel_size = 3</code>" in text
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in text
    assert "<script>window" not in text


def test_a_table_sorts_by_a_click_on_its_header(shown):
    assert shown.run(COLUMN) == ["one", "three", "two"]
    header = "#operators th:nth-child(4)"
    shown.click(f"{header} button")
    assert shown.run(COLUMN) == ["one", "two", "three"]
    assert shown.run(f"return document.querySelector('{header}').ariaSort") == "descending"
    shown.click(f"{header} button")
    assert shown.run(COLUMN) == ["three", "two", "one"]
    shown.keys("#operators th:nth-child(1) button", "\ue007")
    assert shown.run(COLUMN) == ["one", "three", "two"], "Return on a header sorts as a click does"


def test_a_prompt_a_reply_and_a_difference_unfold(shown):
    call = "#t1 .path > li:nth-child(2) details.call"
    shown.click(f"{call} > summary")
    shown.click(f"{call} details.reply > summary")
    text = f"return document.querySelector('{call} details.reply pre').textContent"
    shown.wait(f"{text}.includes('ModelNew')")
    assert HOSTILE in shown.run(text)
    shown.click(f"{call} details.prompt > summary")
    shown.wait(f"return document.querySelector('{call} details.prompt pre').textContent.includes('class Model')")
    shown.click(f"{call} details:not([class]) > summary")
    lines = f"return Array.from(document.querySelectorAll('{call} pre.diff .plus'), line => line.textContent)"
    shown.wait(f"{lines}.length")
    assert shown.run(lines) == ["+# fake: us=80"]


def test_light_and_dark(shown):
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = shown.run(colour)
    shown.prefer("dark")
    dark = shown.run(colour)
    assert light != dark, "the system's wish counts"
    shown.click("#theme")
    assert shown.run(colour) == light, "the reader's wish counts more"
    shown.run("location.reload()")
    assert shown.wait(f"{colour} === '{light}'"), "and is kept"
    shown.click("#theme")
    assert shown.run(colour) == dark


@pytest.mark.parametrize("width", [320, 375, 768])
def test_narrow_windows_scroll_in_one_direction(shown, width):
    shown.size(width, 800)
    shown.run("for (const one of document.querySelectorAll('details')) one.open = true")
    shown.wait("return Array.from(document.querySelectorAll('pre[data-n]')).every(pre => pre.textContent)")
    assert shown.run("return document.documentElement.scrollWidth") == width
    shown.click("#theme")


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function light(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = Array.from(canvas.getImageData(0, 0, 1, 1).data, v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(element) {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!colour.endsWith(', 0)') && colour !== 'transparent') return colour;
  }
  return 'white';
}
const weak = [];
for (const one of document.querySelectorAll('main *, header *')) {
  const own = Array.from(one.childNodes).some(node => node.nodeType === 3 && node.data.trim());
  if (!own || !one.checkVisibility()) continue;
  const style = getComputedStyle(one), paint = one.closest('svg') ? style.fill : style.color;
  const [a, b] = [light(paint), light(ground(one))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) weak.push(`${one.tagName}.${one.className} ${one.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
}
return weak;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_have_the_contrast_of_wcag_aa(shown, scheme):
    shown.prefer(scheme)
    assert shown.run(CONTRAST) == []
