"""What `tune` works on: a run's networks, its images, its budget, and what is expected before the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from calibrate.chain_model import ChainBelief, ChainModel, ChainRules, Floats
from calibrate.images import load_all
from calibrate.pipeline import Prepared, finish, prepare
from calibrate.precision_search import Candidate, Problem
from calibrate.recipe import Recipe
from calibrate.sensitivity import rank_blocks
from mobileone_q.architecture.spec import Architecture
from mobileone_q.data.batches import Batches
from mobileone_q.engines import Backend
from mobileone_q.errors import DataError, EngineError, RunError
from mobileone_q.evaluation.comparison import Comparison
from mobileone_q.models.quantized import QuantizedModel
from mobileone_q.names import DLA_TARGETS, ActivationGrids
from mobileone_q.progress import Advance, silent
from mobileone_q.runs.engines.graphs import refuse_foreign_target
from mobileone_q.runs.inputs import inputs_of
from mobileone_q.runs.storage.folder import RunFolder
from mobileone_q.runs.tuning.bench import BlockTimes
from mobileone_q.runs.tuning.settings import TuneOptions

BUDGET_IMAGES = 100  # that KL is measured on, of those for calibration
RANKING_IMAGES = 32
LEAST_GAIN = 0.002  # of the start's latency; less is not worth a trial
CONVERSION_SHARE = 0.2  # of the INT8 blocks' time, taken as that of converting every map once
UNSURE = 0.5  # of what is expected of a block, and of an even share of the latency
BASE_DEVIATION = 1.0  # of the latency of another graph's start


class TuningJob:
    """A run's networks by grids, its images and its budget. ``scratch`` takes files.

    Raises:
        RunError: the run cannot be tuned: it was fine-tuned, it is for DLA, or its network has no classes.
        EngineError: the backend must not run the run's INT8 graph.
        DataError: the images that the run was made with are not there.
    """

    def __init__(self, run: RunFolder, options: TuneOptions, scratch: Path) -> None:
        self._options, self._scratch = options, scratch
        manifest = run.read_manifest()
        if manifest.qat is not None:
            raise RunError(
                f"{run.path} was fine-tuned, and tuning calibrates again, which would undo it; tune "
                f"{manifest.tuned_from}, then fine-tune the tuned run with `mobileone-q qat`"
            )
        if manifest.target in DLA_TARGETS:
            raise RunError(
                f"{run.path} is for target {manifest.target}, which has no blocks in floating point; "
                "calibrate again with --target tensorrt"
            )
        if manifest.task != "classify":
            raise RunError(f"{run.path}: {manifest.arch} has no classes, so its cost has no KL and no drop")
        self.fused = run.load_fused()
        first = run.load_quantized()
        self.networks: dict[ActivationGrids, QuantizedModel] = {first.activation_grids: first}
        if run.has_plain_grids():
            self.networks["plain"] = run.load_plain()
        self.start = Candidate(first.keep_float, first.activation_grids)
        self.rules = ChainRules.of(self.arch, first.target, first.keep_float)
        self.inputs = inputs_of(run, self.arch, options.data, options.eval_data, None)
        self._recipe = Recipe.from_dict(manifest.recipe)
        self._prepared: dict[ActivationGrids, Prepared] = {}

    @property
    def arch(self) -> Architecture:
        return self.fused.arch

    @property
    def limits_drop(self) -> bool:
        """Whether the budget is a drop of top-1 in points; else it is KL in nats."""
        return self._options.max_drop_pts is not None

    @cached_property
    def images(self) -> Batches:
        """Batches that costs are measured on: of calibration for KL, of evaluation for a drop."""
        if self.limits_drop:
            return self.inputs.evaluated
        return self.inputs.calibration.sample(BUDGET_IMAGES)

    @cached_property
    def start_costs(self) -> dict[ActivationGrids, float]:
        """The measured cost of each network that the run has."""
        return {grids: self.cost(network) for grids, network in self.networks.items()}

    @property
    def limit(self) -> float | None:
        """The budget that was asked for; None for the KL of the run's own graph."""
        return self._options.max_drop_pts if self.limits_drop else self._options.max_kl

    def cost(self, model: QuantizedModel) -> float:
        """The measured cost of a network, in the unit of the budget.

        Raises:
            DataError: the budget is a drop, and the images have no labels.
        """
        measured = self._comparison.with_int8(model)
        value = measured.drop_pts if self.limits_drop else measured.kl
        if value is None:
            raise DataError("--max-drop needs labels: pass --eval-data with a folder per class")
        return round(value, 9)

    def calibrated(self, candidate: Candidate) -> QuantizedModel:
        """The candidate's network, calibrated as the run was; where nothing is different, the run's own."""
        network = self.networks[candidate.activation_grids]
        if candidate.keep_float == network.keep_float:
            return network
        prepared = self._in_float(candidate.activation_grids)
        return finish(prepared, self.inputs.calibration, self.recipe_for(candidate))

    def recipe_for(self, candidate: Candidate) -> Recipe:
        """The run's recipe with the candidate's choices."""
        return replace(
            self._recipe, keep_float=candidate.keep_float, activation_grids=candidate.activation_grids
        )

    def sensitivities(self, advance: Advance = silent) -> dict[str, float]:
        """KL, in nats, that quantizing each block alone costs, on a few calibration images.

        ``advance(1)`` is called after each block.
        """
        grids = self.start.activation_grids
        images, labels = load_all(self.inputs.calibration.sample(RANKING_IMAGES))
        ranking = rank_blocks(
            self._in_float(grids).equalized, self.networks[grids], images, labels, advance=advance
        )
        return {block.name: block.kl for block in ranking if block.name not in self.start.keep_float}

    def _in_float(self, grids: ActivationGrids) -> Prepared:
        if grids not in self._prepared:
            recipe = replace(self._recipe, activation_grids=grids)
            self._prepared[grids] = prepare(self.fused, self.inputs.calibration, recipe)
        return self._prepared[grids]

    @cached_property
    def _comparison(self) -> Comparison:
        images = self.images if self.limits_drop else list(self.images)  # few enough to hold
        return Comparison(self.fused, images, self._scratch)


def expectations(
    job: TuningJob,
    start_costs: Mapping[ActivationGrids, float],
    sensitivities: Mapping[str, float],
    block_ms: BlockTimes,
    limit: float,
) -> Problem:
    """The search problem, from each block's share of the cost and its times in both precisions.

    Costs stay as they are expected. Of latency, each block's times are what is expected at first, and that
    two neighbours in floating point save what converting the map between them takes.
    """
    names = job.rules.names
    total = sum(int8 for _, int8 in block_ms.values())
    converts = total * CONVERSION_SHARE * _map_shares(job.arch)
    either_side = np.append(converts, 0.0) + np.append(0.0, converts)
    single = np.array([block_ms[name][0] - block_ms[name][1] for name in names]) + either_side
    latency = ChainModel(total, single, -2 * converts).over(total)
    even = UNSURE / len(names)
    parameters = np.concatenate([latency.single, latency.pair])
    deviations = np.append(BASE_DEVIATION, UNSURE * np.abs(parameters) + even)
    kinds = [
        (each.kernel, each.stride, each.is_depthwise, each.in_channels, each.out_channels, each.is_head)
        for each in job.arch.blocks
    ]
    shares = np.array([max(sensitivities.get(name, 0.0), 0.0) for name in names])
    shares = shares / (shares.sum() or 1.0)
    beliefs, costs = {}, {}
    for grids, cost in start_costs.items():
        beliefs[grids] = ChainBelief(latency, deviations, ["base", *kinds, *pairwise(kinds)])
        model = ChainModel(cost, -max(cost, 0.0) * shares, np.zeros(len(names) - 1))
        costs[grids] = ChainBelief.sure(model)
    return Problem(job.rules, job.start, beliefs, costs, limit, LEAST_GAIN)


def _map_shares(arch: Architecture) -> Floats:
    """How the values between blocks are spread over the maps, (N - 1,), summing to 1."""
    values = [
        block.out_channels * height * width for block, (height, width) in zip(arch.blocks, arch.sizes())
    ]
    return np.array(values[:-1], np.float64) / sum(values[:-1])


def refuse_budgets(options: TuneOptions) -> None:
    """Check that one budget is given at most.

    Raises:
        RunError: there are two.
    """
    if options.max_kl is not None and options.max_drop_pts is not None:
        raise RunError("--max-kl and --max-drop are two budgets; give one of them")


def refuse_backend(run: RunFolder, backend: Backend) -> None:
    """Check that a backend may and can run the run's INT8 graph here.

    Raises:
        EngineError: it must not, or there is no processor for it.
        MissingDependency: its library is not installed.
    """
    refuse_foreign_target(run, backend.name, None)
    backend.runtime()
    if not backend.can_run():
        raise EngineError(
            f"tuning times {backend.name} engines, and there is no NVIDIA GPU here; run it on the device, or "
            "pass --backend onnxruntime"
        )
