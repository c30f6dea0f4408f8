"""The part of a bundle's build.sh that chooses between two INT8 graphs of one run.

A run of ``calibrate --grids both`` has two: ``saturating``, whose codes are all used, and ``plain``, whose
ReLUs are all in the graph, so that TensorRT may fuse a depthwise convolution with the one behind it. Which
is faster only the device can say. What each costs in accuracy only the run can say, since a device has no
labelled images. So build.sh builds and times both, and takes the faster one whose recorded KL is within
the limit that the run states. If neither is, it takes the one that costs less.

Source: "Types of Fusions" in NVIDIA's TensorRT documentation, on DepSepConvolution.
"""

from __future__ import annotations

from collections.abc import Mapping

from mobileone_q.errors import EngineError
from mobileone_q.names import ActivationGrids
from mobileone_q.report.schema import Manifest, Report

CHOSEN = "model.plan.grids"  # beside the engine: the name of the grids that it was built from

FUNCTIONS = """LIMIT={limit}
BEST= BEST_MS=
# Build and time one graph; what trtexec says is kept in GRIDS.log.
build() {{
  GRIDS=$1; shift
  rm -f "$GRIDS.plan"
  echo "building and timing the graph on $GRIDS grids"
  if ! "$@" > "$GRIDS.log" 2>&1; then
    echo "$GRIDS grids: trtexec cannot build this graph; see $GRIDS.log" >&2
    rm -f "$GRIDS.plan"
  fi
}}
# Compare one graph, by its median time and the KL that the run recorded, with the best so far.
consider() {{
  [ -f "$1.plan" ] || return 0
  MS=$(sed -n 's/.*GPU Compute Time:.*median = \\([0-9.]*\\) ms.*/\\1/p' "$1.log" | tail -n 1)
  if [ -z "$MS" ]; then echo "$1 grids: no time in $1.log" >&2; return 0; fi
  if awk "BEGIN {{ exit !($2 > $LIMIT) }}"; then
    echo "$1 grids: $MS ms, KL $2, beyond the limit of $LIMIT"
    return 0
  fi
  echo "$1 grids: $MS ms, KL $2"
  if [ -z "$BEST" ] || awk "BEGIN {{ exit !($MS < $BEST_MS) }}"; then BEST=$1 BEST_MS=$MS; fi
}}
"""
CHOICE = """
{considered}
if [ -z "$BEST" ]; then  # neither is within the limit, or has a time: what costs less in accuracy
  for GRIDS in {by_cost}; do
    if [ -f "$GRIDS.plan" ]; then BEST=$GRIDS; break; fi
  done
fi
if [ -z "$BEST" ]; then echo "no engine was built" >&2; exit 1; fi
cp "$BEST.plan" {engine}
for KIND in profile layers device; do
  if [ -f "$BEST.plan.$KIND.json" ]; then cp "$BEST.plan.$KIND.json" "{engine}.$KIND.json"; fi
done
echo "$BEST" > {chosen}
echo "{engine}: the graph on $BEST grids"
"""


def recorded_costs(report: Report, manifest: Manifest) -> dict[ActivationGrids, float]:
    """KL(FP32 to INT8) of a run's two graphs, in nats.

    Raises:
        EngineError: the run measured none, so that nothing can be chosen by it.
    """
    first, second = report.accuracy, report.plain_grids
    if first is None or first.kl is None or second is None or second.kl is None or manifest.max_kl is None:
        raise EngineError(
            "this run has two INT8 graphs and no accuracy of them, so a device could not choose; "
            "calibrate again with --eval-data, or with --grids saturating"
        )
    return {"saturating": first.kl, "plain": second.kl}


def functions(max_kl: float) -> str:
    """Shell functions that stand ahead of the build lines; ``max_kl`` is in nats."""
    return FUNCTIONS.format(limit=f"{max_kl:.6f}")


def choice(costs: Mapping[ActivationGrids, float], engine: str) -> str:
    """Shell lines that stand behind the build lines and leave the chosen engine as ``engine``."""
    return CHOICE.format(
        considered="\n".join(f"consider {grids} {kl:.6f}" for grids, kl in costs.items()),
        by_cost=" ".join(grids for grids, _ in sorted(costs.items(), key=lambda cost: cost[1])),
        engine=engine,
        chosen=CHOSEN,
    )
