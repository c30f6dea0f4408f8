"""What a Jetson's published rates allow a run's network, and what is estimated, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from mobileone_q.architecture.spec import Architecture
from mobileone_q.evaluation.estimate import estimate, published_fit
from mobileone_q.evaluation.roofline import block_bounds
from mobileone_q.jetson_devices import JetsonDevice
from mobileone_q.report.schema import Report


@dataclass(frozen=True)
class ExpectedRow:
    """A block's least times in FP16 and INT8, what bounds the latter, and its measured INT8 time; us."""

    name: str
    fp16_us: float
    int8_us: float
    bound_by: str
    measured_us: float | None


@dataclass(frozen=True)
class Expected:
    """Bound and estimate of a network on a device; times in microseconds.

    ``estimates`` are by precision, ``error_pct`` is the largest error of the fit on a published time that
    was left out of it. ``measured_in`` is where the measured times come from, None where there are none.
    """

    device: str
    source: str
    batch: int
    rows: tuple[ExpectedRow, ...]
    bound_us: tuple[float, float]
    estimates: dict[str, float]
    fitted_to: str
    error_pct: float
    reading: str
    measured_us: float | None
    measured_in: str | None

    def describe(self) -> str:
        """The totals in a sentence."""
        measured = f"; measured {self.measured_us:.0f} us in {self.measured_in}" if self.measured_us else ""
        least, guess = self.bound_us[1], self.estimates["int8"]
        return (
            f"{self.device}, INT8, batch {self.batch}: at least {least:.0f} us by published rates, about "
            f"{guess:.0f} us by an estimate fitted to {self.fitted_to}{measured}"
        )


def expected_on(device: JetsonDevice, arch: Architecture, report: Report) -> Expected:
    """Work out bound and estimate for the batch that was measured, or for one image."""
    latency = report.latency
    batch = latency.batch if latency else 1
    timings = {row.name: 1000 * row.int8_ms for row in latency.layers} if latency else {}
    bounds = block_bounds(arch, device, batch)
    guess = estimate(arch, device, batch, published_fit())
    return Expected(
        device=device.title,
        source=device.source,
        batch=batch,
        rows=tuple(
            ExpectedRow(
                bound.name, bound.fp16.least_us, bound.int8.least_us, bound.int8.bound_by,
                timings.get(bound.name),
            )
            for bound in bounds
        ),
        bound_us=(sum(bound.fp16.least_us for bound in bounds), sum(bound.int8.least_us for bound in bounds)),
        estimates=guess["us"],
        fitted_to=guess["fit"]["source"],
        error_pct=100 * max(map(abs, guess["leave_one_out_errors"])),
        reading=guess["reading"],
        measured_us=1000 * latency.layer_sum_ms[1] if latency else None,
        measured_in=f"{latency.runtime} on {latency.device}" if latency else None,
    )  # fmt: skip
