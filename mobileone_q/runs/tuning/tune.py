"""From a run to the graph that is the fastest on this device within an accuracy budget: a run of its own.

1. measure what each block costs in accuracy, and its time in floating point and in INT8
2. search: propose graphs, build them, race them             (calibrate.precision_search, bench)
3. race the fastest ones once more, at length
4. calibrate the winner on the run's images and check its cost; if it is over the budget, another one
5. time the start, the winner and floating point side by side, and write the run
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrate.chain_model import fastest_within
from calibrate.precision_search import EQUAL, Candidate, Problem, Search, Trial
from mobileone_q.engines import Backend, BuildOptions
from mobileone_q.evaluation.latency import Timing
from mobileone_q.files import scratch_folder, sha256, write_atomically
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import pairing
from mobileone_q.progress import Advance, progress_if
from mobileone_q.report.provenance import installed_versions, typed_command, utc_now
from mobileone_q.report.schema import FloatBlocks, Report, Seconds
from mobileone_q.report.tuning import TunedGraph, Tuning
from mobileone_q.runs.engines.choice import choose_backend
from mobileone_q.runs.engines.graphs import input_form
from mobileone_q.runs.publish import image_counts, images_record, publish
from mobileone_q.runs.run import Run
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.storage.integrity import FUSED, TRIALS, TUNED
from mobileone_q.runs.storage.staging import discard, publish_folder, resumable, stage
from mobileone_q.runs.tuning.bench import EngineBench
from mobileone_q.runs.tuning.config import write_config
from mobileone_q.runs.tuning.job import TuningJob, expectations, refuse_backend, refuse_budgets
from mobileone_q.runs.tuning.log import RecordedRaces, TuningLog, candidate_of, trial_facts
from mobileone_q.runs.tuning.settings import TuneOptions

SEARCH_SHARE = 0.85  # of the time; the rest is for the last race
START_ROUNDS = 30
FINALISTS = 3
FINAL_ROUNDS = 100
MOST_CHECKED = 6  # candidates that are calibrated to see what they really cost
CLEARLY = 0.98  # a latency that is only modelled must be below so much of a measured one


def tune_run(
    run: RunFolder, options: TuneOptions, build: BuildOptions | None = None, *, progress: bool = False
) -> Run:
    """Find the fastest mix of INT8 and floating point within a budget, and make a run of it.

    ``options.seconds`` limit building and timing; measuring costs, calibrating and writing come besides.
    ``build`` says how engines are built. The new run appears whole or not at all. A search that was
    interrupted stays in a hidden folder, for ``options.resume``.

    Raises:
        RunError: two budgets; a run that cannot be tuned; nothing to resume, or a search to resume that was
            begun with other settings.
        EngineError: the backend must not or cannot run the run's INT8 graph here.
        DataError: the run's images are not there, or have no labels for ``options.max_drop_pts``.
    """
    refuse_budgets(options)
    sizes = (options.batch,) * 3
    build = BuildOptions(**{**vars(build or BuildOptions()), "threads": options.threads, "batch": sizes})
    name = f"{run.path.resolve().name}-tuned"
    staged = resumable(options.output, name, Path(TRIALS)) if options.resume else stage(options.output, name)
    try:
        backend = _backend(run, options, build, TuningLog(staged / TRIALS), progress)
        with scratch_folder() as scratch:
            job = TuningJob(run, options, scratch)
            _tune(job, run, RunFolder(staged), backend, options, build, scratch, progress)
        return Run(publish_folder(staged, options.output, name))
    finally:
        discard(staged)


def _backend(
    run: RunFolder, options: TuneOptions, build: BuildOptions, log: TuningLog, progress: bool
) -> Backend:
    """The backend to search in: for ``auto``, the one that the log was begun with, else the fastest here."""
    asked = log.backend if log.backend and options.backend == "auto" else options.backend
    backend = choose_backend(run, asked, ["int8"], build, progress=progress).backend
    refuse_backend(run, backend)
    return backend


def _tune(
    job: TuningJob,
    run: RunFolder,
    made: RunFolder,
    backend: Backend,
    options: TuneOptions,
    build: BuildOptions,
    scratch: Path,
    progress: bool,
) -> None:
    log = TuningLog(made.path / TRIALS)
    form, preprocessing = input_form(run, build), run.read_manifest().preprocessing
    bench = EngineBench(job.fused, job.networks, form, preprocessing, backend, build, options.batch, scratch)
    settings = {
        "graph": sha256(run.onnx("int8")),
        "runtime": backend.runtime(),
        "device": backend.device(),
        "threads": options.threads,
        "batch": options.batch,
        "input": form.describe(),
        "float precision": bench.float_precision,
        "budget": "drop" if job.limits_drop else "kl",
        "limit": job.limit,
    }
    if log.settings:
        log.refuse_other(settings)
        log.refuse_foreign([block.name for block in job.arch.blocks], job.networks)
    try:
        problem, facts = _problem(job, bench, log, settings, progress)
        clock = SearchTime(options.seconds, log.seconds)
        with progress_if(progress, "tuning", round(options.seconds), round(clock.elapsed())) as advance:
            search, is_complete = _searched(problem, bench, log, clock, facts["start_ms"], advance)
            ranked = _ranked(problem, search, bench, log, clock)
        final = log.found("final") or {}
        with progress_if(progress, "calibrating the choice", MOST_CHECKED) as advance:
            chosen, network, cost = _affordable(job, problem, ranked, advance)
        timings = log.found("result", candidate=asdict(chosen)) or _result(bench, log, clock, job, chosen)
    finally:
        bench.close()
    floating, start_ms, chosen_ms = (Timing(*each) for each in timings["timings"])
    start_cost = facts["start_costs"][job.start.activation_grids]
    unfitted = job.networks[chosen.activation_grids].mixed(chosen.keep_float)
    tuning = Tuning(
        runtime=backend.runtime(),
        device=backend.device(),
        threads=options.threads,
        batch=options.batch,
        budget="drop" if job.limits_drop else "kl",
        limit=problem.limit,
        images=len(job.images),
        start=TunedGraph(job.start.keep_float, job.start.activation_grids, start_cost, start_ms),
        chosen=TunedGraph(chosen.keep_float, chosen.activation_grids, cost, chosen_ms),
        float_precision=bench.float_precision,
        floating=floating,
        cost_without_images=cost if chosen == job.start else job.cost(unfitted),
        candidates=len(search.trials),
        seconds=final["seconds"],
        is_complete=is_complete,
        clock=bench.clock,
        note=pairing(job.networks[job.start.activation_grids].target, backend.name).label or None,
    )
    _write(job, run, made, network, chosen, tuning, options, backend, progress)


class SearchTime:
    """How long a search has taken, in seconds, those before it was resumed included."""

    def __init__(self, seconds: float, before: float) -> None:
        self._limit, self._before, self._started = seconds * SEARCH_SHARE, before, time.monotonic()

    def elapsed(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._started

    def is_over(self) -> bool:
        """Whether the search has had its share of the time."""
        return self.elapsed() >= self._limit


def _problem(
    job: TuningJob, bench: EngineBench, log: TuningLog, settings: Mapping[str, Any], progress: bool
) -> tuple[Problem, dict[str, Any]]:
    """The search problem, and the facts that it comes from: measured now, or read from the log."""
    if log.settings is None:
        costs = job.start_costs
        with progress_if(progress, "measuring what blocks cost", len(job.arch.blocks)) as advance:
            sensitivities = job.sensitivities(advance)
        (_, start) = bench.timings([job.start], START_ROUNDS)
        log.add(
            "start",
            settings=dict(settings),
            start_ms=start.median_ms,
            start_costs=costs,
            sensitivities=sensitivities,
            block_ms=bench.block_times(job.start),
        )
    facts = log.settings or {}
    limit = facts["start_costs"][job.start.activation_grids] if job.limit is None else job.limit
    block_ms = {name: (float_ms, int8_ms) for name, (float_ms, int8_ms) in facts["block_ms"].items()}
    return expectations(job, facts["start_costs"], facts["sensitivities"], block_ms, limit), facts


def _searched(
    problem: Problem, bench: EngineBench, log: TuningLog, clock: SearchTime, start_ms: float, advance: Advance
) -> tuple[Search, bool]:
    """The search, and whether nothing was left to try; every candidate goes into the log."""
    recorded, shown, count = len(log.trials), clock.elapsed(), 0

    def tell(trial: Trial) -> None:
        nonlocal shown, count
        count += 1
        now = clock.elapsed()
        if count > recorded:
            log.add("candidate", **trial_facts(trial, start_ms), seconds=now)
        best = search.best.latency if search.best else 1.0
        advance(round(now) - round(shown), f"{count} graphs, best {1 / best:.3f} times as fast")
        shown = now

    measured = _ModelledCost(problem, RecordedRaces(log, bench.ratio))
    search = Search(problem, measured, tell)
    is_complete = search.run(lambda: count >= recorded and clock.is_over())
    return search, is_complete


class _ModelledCost:
    """A bench whose costs are what the sensitivity of the blocks lets expect."""

    def __init__(self, problem: Problem, races: RecordedRaces) -> None:
        self._problem, self.ratio = problem, races.ratio

    def cost(self, candidate: Candidate) -> float:
        return _modelled_cost(self._problem, candidate)


def _modelled_cost(problem: Problem, candidate: Candidate) -> float:
    model = problem.cost[candidate.activation_grids].model
    return model(problem.rules.choice(candidate.keep_float))


def _ranked(
    problem: Problem, search: Search, bench: EngineBench, log: TuningLog, clock: SearchTime
) -> dict[Candidate, float]:
    """The latency of every candidate over the start's, the fastest first; the best ones by a last race."""
    ranked = sorted(search.trials, key=lambda trial: trial.latency)
    final = log.found("final")
    if final is None:
        within = [each for each in ranked if _modelled_cost(problem, each.candidate) <= problem.limit + EQUAL]
        raced = [each.candidate for each in within if each.candidate != problem.start][:FINALISTS]
        raced.insert(0, problem.start)
        timings = bench.timings(raced, FINAL_ROUNDS)[1:]
        log.add(
            "final",
            candidates=[asdict(each) for each in raced],
            timings=[(each.median_ms, each.p95_ms) for each in timings],
            seconds=clock.elapsed(),
        )
        final = log.found("final") or {}
    latency = {trial.candidate: trial.latency for trial in ranked}
    start_ms = final["timings"][0][0]
    latency |= {candidate_of(c): ms / start_ms for c, (ms, _) in zip(final["candidates"], final["timings"])}
    return dict(sorted(latency.items(), key=lambda each: each[1]))


def _affordable(
    job: TuningJob, problem: Problem, ranked: Mapping[Candidate, float], advance: Advance
) -> tuple[Candidate, QuantizedModel, float]:
    """The fastest candidate whose cost, once calibrated, is within the budget; its network and its cost.

    Where calibrated candidates cost more than expected, less is expected to be within the budget. The
    model may then propose one that was not raced. With every block in floating point nothing is lost.
    """
    dearer, checked = 1.0, set[Candidate]()
    while len(checked) < MOST_CHECKED:
        candidate = _next_to_check(problem, ranked, checked, problem.limit / dearer)
        if candidate is None:
            break
        checked.add(candidate)
        network = job.calibrated(candidate)
        cost, modelled = job.cost(network), _modelled_cost(problem, candidate)
        if cost <= problem.limit + EQUAL:
            return candidate, network, cost
        advance(1, f"{len(checked)} cost more than the budget")
        dearer = max(dearer, cost / modelled if modelled > 0 else dearer)
    everything = Candidate(problem.rules.names, job.start.activation_grids)
    network = job.calibrated(everything)
    return everything, network, job.cost(network)


def _next_to_check(
    problem: Problem, ranked: Mapping[Candidate, float], checked: Collection[Candidate], limit: float
) -> Candidate | None:
    """The fastest candidate that is expected to be within ``limit`` and was not checked yet.

    One that was measured is preferred to one of the model that is not clearly faster.
    """
    measured = [
        (latency, each)
        for each, latency in ranked.items()
        if each not in checked and _modelled_cost(problem, each) <= limit + EQUAL
    ]
    best = min(measured, key=lambda each: each[0], default=(float("inf"), None))
    for grids, belief in problem.latency.items():
        point = fastest_within(belief.model, problem.cost[grids].model, problem.rules, limit)
        if point is not None:
            proposed = Candidate(problem.rules.keep_float(point.choice), grids)
            if proposed not in checked and proposed not in ranked and point.latency < CLEARLY * best[0]:
                best = (point.latency, proposed)
    return best[1]


def _result(
    bench: EngineBench, log: TuningLog, clock: SearchTime, job: TuningJob, chosen: Candidate
) -> dict[str, Any]:
    """Times of floating point, the start and the choice: measured afresh, since the choice was a winner."""
    both = [job.start, chosen] if chosen != job.start else [chosen]
    timings = [(each.median_ms, each.p95_ms) for each in bench.timings(both, FINAL_ROUNDS)]
    timings += timings[1:] * (chosen == job.start)
    log.add("result", candidate=asdict(chosen), timings=timings, seconds=clock.elapsed())
    return log.lines[-1]


def _write(
    job: TuningJob,
    run: RunFolder,
    made: RunFolder,
    network: QuantizedModel,
    chosen: Candidate,
    tuning: Tuning,
    options: TuneOptions,
    backend: Backend,
    progress: bool,
) -> None:
    manifest, before = run.read_manifest(), run.read_report()
    original, recipe = run.verified(FUSED), job.recipe_for(chosen).to_dict()
    write_atomically(made.fused, lambda temporary: shutil.copyfile(original, temporary))
    network.save(made.quantized, recipe=recipe)
    write_config(made.path / TUNED, tuning, before.arch, before.target, backend.name, manifest.input)
    report = Report(
        arch=before.arch,
        model=before.model,
        target=before.target,
        fusion=before.fusion,
        images=image_counts(job.inputs, None),
        graphs={},
        seconds=Seconds(before.seconds.fuse, before.seconds.calibrate),
        float_blocks=FloatBlocks((), network.keep_float),
        tuning=tuning,
    )
    changed = {
        "made": utc_now(),
        "versions": installed_versions(),
        "images": images_record(job.inputs, job.inputs.evaluated),
        "recipe": recipe,
        "max_kl": None,  # of the two graphs of `--grids both`, one was chosen
        "tuned_from": str(run.path),
        "tuning": options.to_dict(),
        "command": typed_command(),
    }
    publish(
        made, job.fused, network, report, manifest.model_copy(update=changed), job.inputs,
        job.inputs.evaluated, progress=progress,
    )  # fmt: skip
