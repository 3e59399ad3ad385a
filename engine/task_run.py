"""One task: baselines, seeds, the stages of its plan, and the best kernel, confirmed, kept whatever happens later."""

from __future__ import annotations

from collections.abc import Mapping

from engine.codec import encode
from engine.confirm import confirm_best
from engine.draft import SEED, Plan, TaskState
from engine.errors import AwaitingReply, BudgetSpent, EngineError, LlmRefused, MissingError, StoreFull
from engine.paths import Paths
from engine.records import Operator
from engine.stage import StageRunner
from engine.tasks.licence import licence

ALL_ENDED = "all stages ended"


class TaskRunner:
    """Runs tasks of one run through their stage plans."""

    def __init__(self, stages: StageRunner) -> None:
        self.stages = stages
        self.drafter = stages.drafter
        self.paid = stages.paid
        self.settings = stages.settings

    def start(self, operator: Operator, classified: str, evaluations: list[Mapping[str, object]]) -> TaskState:
        """Announce the task; a named category beats the classifier, and both are recorded."""
        named = self.settings.category
        name = classified if named == "auto" else named
        task = operator.task
        self.paid.journal.write(
            "task_started",
            task_id=task.task_id,
            name=task.name,
            category=name,
            named=None if named == "auto" else named,
            classified=classified,
            facts=encode(operator.facts),
            contract=encode(task.contract),
            contract_origin=task.contract_origin,
            task_hash=task.task_hash,
            licence=licence(task.source, self.settings.task.source),
        )
        self.paid.folder.write_reference(task.task_id, task.source)
        self.paid.journal.write("classification", task_id=task.task_id, evaluations=evaluations)
        return TaskState(operator, name, self.settings.categories[name])

    def run(self, state: TaskState) -> None:
        """Everything up to the end of the plan and of the task; raises what the caller must record (waiting, our
        errors), and, after the task's end, BudgetSpent of the whole run."""
        spent: BudgetSpent | None = None
        with self.paid.caller.budget.task(state.task_id):
            try:
                outcome, why = self._plan(state)
            except BudgetSpent as error:
                spent, outcome, why = error, "budget", str(error)
            spent = self._finish(state, outcome, why) or spent
        if spent is not None and spent.level == "run":
            raise spent

    def _finish(self, state: TaskState, outcome: str, why: str) -> BudgetSpent | None:
        """Confirm the best kernel and end the task; what kept the confirmation from being made, if anything."""
        spent = None
        try:
            state.confirmed = confirm_best(state, self.paid, self.stages.folder)
        except BudgetSpent as error:
            spent = error
            untimed = state.best is not None and not state.best.timed
            outcome, why = "budget", f"{error}; the best kernel is not confirmed{' nor timed' if untimed else ''}"
        if state.confirmed is False:
            outcome, why = "unsolved", f"{why}; every kernel was refused when it was judged again"
        missing = self._other_paths(state) if spent is None else None
        if missing is not None:
            why = f"{why}; other paths not all made: {_told(missing)}"
        # Once: a continued run does not repeat an event, so that of two ends the wrong one could stay the last.
        self.end(state, outcome, why)
        return spent or (missing if isinstance(missing, BudgetSpent) else None)

    def _other_paths(self, state: TaskState) -> Exception | None:
        """What kept the other paths from being made, if anything: the task's own result stands whatever breaks there.
        Raises what concerns the whole run."""
        search = self.settings.search
        if search.rules != "observe" or not search.every_path:
            return None
        try:
            Paths(self.stages, state).walk()
        except BudgetSpent as error:
            return error
        except (AwaitingReply, LlmRefused, MissingError, StoreFull):
            raise
        except (EngineError, RuntimeError) as error:  # torch tells of a broken device by RuntimeError
            return error
        return None

    def _plan(self, state: TaskState) -> tuple[str, str]:
        """How the plan ended, and why."""
        state.baseline = self.paid.timing(state.operator, None)
        for timing in state.baseline.timings:
            self.paid.journal.write(
                "baseline",
                task_id=state.task_id,
                who=timing.who,
                score_kind=timing.score_kind.value,
                median_us=timing.median_us,
                lo_us=timing.lo_us,
                hi_us=timing.hi_us,
                n=timing.n,
                floor_us=state.baseline.floor_us,
                settings=dict(state.baseline.settings),
                note=state.baseline.note,
            )
        cut = self._seeds(state)
        if state.best is None and cut:
            return "budget", cut
        if state.best is None:
            return "unsolved", "no seed was correct within its repairs"
        told = f"; {cut}" if cut else ""
        for name, stage in state.category.stages.items():
            end = self.stages.run(state, name, stage)
            if end.exit:
                return "exited", f"{name}: {end.why}{told}"
        return "done", f"{ALL_ENDED}{told}"

    def _seeds(self, state: TaskState) -> str | None:
        """Why the seeds' own budget ended them, if it did."""
        search = self.settings.search
        plan = Plan(SEED, None, (), search.seed_repairs, search.seeds, audit=False, known=len(state.history))
        try:
            with self.paid.caller.budget.stage(SEED):
                self.stages.settle(state, plan, self.stages.drafts(state, plan))
        except BudgetSpent as spent:
            if spent.level != "stage":
                raise
            return str(spent)
        finally:
            state.seeded = list(state.bests)
        return None

    def end(self, state: TaskState, outcome: str, why: str) -> None:
        """Record the task's result; also called after an error, so that a kernel already found is never lost."""
        view = state.scores()
        best = state.best
        eager = best.measurement.ratio("eager") if best else None
        self.paid.journal.write(
            "task_ended",
            task_id=state.task_id,
            durable=True,
            category=state.category_name,
            outcome=outcome,
            why=why,
            best_id=best.candidate_id if best else None,
            speedup=view.speedup,
            speedup_lo=eager.lo if eager else None,
            speedup_hi=eager.hi if eager else None,
            speedup_fastest=view.speedup_fastest,
            fastest=view.fastest,
            headroom=view.headroom,
            score_kind=view.score_kind.value if view.score_kind else None,
            confirmed=state.confirmed,
        )


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    message = lines[-1] if lines else ""
    return message if isinstance(error, BudgetSpent) else f"{type(error).__name__}: {message}"
