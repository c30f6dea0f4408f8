"""The lines in which a training run says how it begins and how each epoch went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mobileone_q.training.data import Slot
from mobileone_q.training.settings import TrainingSettings

SHARES = ("agreement", "top1", "top5")  # metrics that are shown in percent


def beginning(
    title: str, device: str, slot: Slot, settings: TrainingSettings, steps: int, inputs: int, held_out: int
) -> str:
    """On how many processes the run is, what an epoch is, and how many inputs are held out."""
    parts = f"{slot.world} x " * (slot.world > 1) + f"{settings.accumulate} x " * (settings.accumulate > 1)
    batch = f"{settings.batch} = {parts}{slot.batch_per_process}" if parts else f"{settings.batch}"
    processes = "1 process" if slot.world == 1 else f"{slot.world} processes"
    held = f"{held_out} inputs held out" if held_out else "no inputs held out, so the last weights are kept"
    return (
        f"{title} on {processes}, {device}: batches of {batch}, {steps} steps an epoch of {inputs} inputs, "
        f"{settings.passes(steps)} epochs; {held}"
    )


def going_on(step: int, changes: Sequence[str]) -> str:
    """What is no longer equal where a run is resumed with other processes or micro-batches."""
    return (
        f"resuming at step {step} of a run with {', '.join(changes)}: every batch holds the same inputs, but "
        "sums are rounded in another order, and batch statistics and dropout may be others, so the weights "
        "will be close to those of that run, not equal"
    )


def epoch_line(
    epoch: int, epochs: int, trained: Mapping[str, float], held_out: Mapping[str, float], is_best: bool
) -> str:
    """How an epoch went: means over its training batches, and the averaged weights on held-out inputs."""
    parts = [f"training {_shown(trained)}"] if trained else []
    parts += [f"held out {_shown(held_out)}{', the best so far' * is_best}"] if held_out else []
    return f"epoch {epoch + 1} of {epochs}: {'; '.join(parts)}"


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * value:.2f} %" if name in SHARES else f"{name} {value:.4g}"
        for name, value in metrics.items()
    )
