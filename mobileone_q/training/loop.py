"""The training loop, for every objective: one process or many, on a CPU or a GPU.

Hugging Face Accelerate starts the processes, averages gradients and scales losses. What is drawn, and
in which order, is decided in :mod:`mobileone_q.training.data`, so that two processes train as one.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mobileone_q.errors import Interrupted, TrainingError
from mobileone_q.progress import Advance, progress, silent
from mobileone_q.training import announce
from mobileone_q.training.checkpoint import TrainingProgress, TrainingState
from mobileone_q.training.data import Batch, Loader, Slot, Views
from mobileone_q.training.distributed import begin_tracking, first_message, make_accelerator
from mobileone_q.training.metric_log import MetricLog
from mobileone_q.training.objectives import Metrics, Objective
from mobileone_q.training.optim import averaged, follow_norm, largest_norm, make_optimizer, set_rates
from mobileone_q.training.settings import TrainingSettings
from mobileone_q.training.stop_signals import stop_requests

if TYPE_CHECKING:
    from accelerate import Accelerator

NAMED_INPUTS = 3  # how many inputs a message names when a loss is not finite


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``metrics`` are those of the weights kept, ``start`` those before the first step. ``steps`` were
    taken in all; the weights kept are those after ``kept_step``. ``seconds`` are this process's.
    ``last`` are the averaged weights after the last step, on the CPU.
    """

    metrics: dict[str, float]
    start: dict[str, float]
    steps: int
    kept_step: int
    seconds: float
    last: dict[str, Tensor] = field(default_factory=dict, repr=False)


M = TypeVar("M", bound=nn.Module)


class Training(Generic[M]):
    """One run: trains ``model`` in place on ``feed`` and leaves the kept weights in it.

    The averaged weights are kept: those that are best by ``objective`` on ``held_out``, or the last
    ones where the settings say so or nothing is held out. ``folder`` gets the checkpoint and the
    metrics; it is made when the run begins. ``on_epoch(model, epoch)`` may change how the model trains.
    ``facts`` are recorded in the checkpoint; a resumed run must have the same. All blocks but the head
    train at ``backbone_lr`` times the learning rate, unless the model has rates of its own.
    With ``compiles`` torch.compile makes the training step; evaluation stays as it is.

    Raises:
        TrainingError: the batch does not divide among the processes, or an epoch is smaller than it.
    """

    def __init__(
        self,
        model: M,
        objective: Objective,
        feed: Views,
        held_out: Views | None,
        settings: TrainingSettings,
        folder: Path,
        *,
        accelerator: Accelerator | None = None,
        on_epoch: Callable[[nn.Module, int], None] | None = None,
        facts: dict[str, Any] | None = None,
        backbone_lr: float = 1.0,
        compiles: bool = False,
    ) -> None:
        self.objective, self.feed, self.held_out = objective, feed, held_out
        self.settings, self.folder = settings, folder
        self.keeps_best, self.on_epoch = settings.keep == "best" and held_out is not None, on_epoch
        self.accelerator = accelerator or make_accelerator(settings)
        processes = self.accelerator.num_processes
        batch_per_process = settings.batch_per_process(processes)
        place = (batch_per_process, self.accelerator.process_index, processes)
        self.slot = Slot(*place, settings.workers, settings.accumulate)
        self.loader = Loader(feed, self.slot)
        self.steps_per_epoch = feed.steps_per_epoch(settings.batch)
        if len(feed) < settings.batch:
            raise TrainingError(f"fewer inputs than one batch of {settings.batch}; lower --batch")
        self.epochs = settings.passes(self.steps_per_epoch)
        self.steps = self.steps_per_epoch * self.epochs
        # Convolutions run fastest in channels-last memory; torch's stubs lack it for modules.
        model.to(device=self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.average = averaged(model, settings.ema)
        if compiles:  # the averaged copy is not: what is evaluated and kept is computed as ever
            model.compile()
        optimizer = make_optimizer(model, settings, backbone_lr)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        described = {**settings.to_dict(), **(facts or {}), "processes": processes}
        described |= {"data": feed.source.name, "inputs": len(feed)}
        scaler = self.accelerator.scaler
        self.state = TrainingState(
            model, self.average, self.optimizer, scaler, described, TrainingProgress(), best_weights={}
        )

    def run(self, title: str, resume: bool = False) -> Outcome:
        """Train to the end, or until ``patience`` evaluations have passed without a new best.

        Raises:
            TrainingError: a loss that is not finite, or nothing to resume.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint has been written.
        """
        started = time.monotonic()
        inputs, held = self.feed.epoch_inputs or len(self.feed), len(self.held_out or ())
        how = (self.accelerator.device.type, self.slot, self.settings, self.steps_per_epoch, inputs, held)
        self._say(announce.beginning(title, *how))
        if resume:
            self._resume()
        done = self.state.progress
        begin_tracking(self.accelerator, self.folder, self.state.settings)
        is_main, track = self.accelerator.is_main_process, self.accelerator.log
        with MetricLog(self.folder, done.step, is_main, track) as log:
            if not resume:
                done.start = self._evaluate_and_compare(log)
            with stop_requests() as stop, self._show_progress(title) as advance:
                for epoch in range(done.step // self.steps_per_epoch, self.epochs):
                    if done.is_done:
                        break
                    self._epoch(epoch, log, advance, stop)
        last = {key: value.detach().cpu().clone() for key, value in self.average.module.state_dict().items()}
        if self.keeps_best:
            self.average.module.load_state_dict(self.state.best_weights)
        self.model.load_state_dict(self.average.module.state_dict())
        seconds = time.monotonic() - started
        kept_step = done.best_step if self.keeps_best else done.step
        return Outcome(self.evaluate(), done.start, done.step, kept_step, seconds, last)

    def try_rates(self, rates: Iterable[float]) -> Iterator[tuple[float, float]]:
        """Take one step at each learning rate, and give (rate, loss before the step); nothing is written.

        Ends where the loss is no longer finite. The model is then of no further use.
        """
        settings = self.settings
        batches = self._batches_without_end()
        if self.on_epoch is not None:
            self.on_epoch(self.model, 0)
        self.model.train()
        for rate in rates:
            self.settings = replace(settings, lr=rate, final_lr=rate, warmup_steps=0)
            try:
                step = [self._micro_batch(next(batches), 0, k) for k in range(settings.accumulate)]
            except TrainingError:  # the loss is not finite, in some process
                return
            self.state.progress.step += 1
            yield rate, self._means(step)["loss"]

    def _batches_without_end(self) -> Iterator[Batch]:
        for epoch in count():
            for batch in self.loader.epoch(epoch, 0):
                yield batch.to(self.accelerator.device)

    def _resume(self) -> None:
        """Take over the checkpoint in the folder."""
        self.state.load(self.folder)
        done = self.state.progress
        if done.step > self.steps or (self.keeps_best and not self.state.best_weights):
            raise TrainingError(
                f"the checkpoint in {self.folder} is damaged (step {done.step} of {self.steps}, or no best "
                "weights); begin again in a new folder"
            )
        if self.state.changes:
            self._say(announce.going_on(done.step, self.state.changes))

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def _epoch(self, epoch: int, log: MetricLog, advance: Advance, stop: threading.Event) -> None:
        """Train from the next step to the end of an epoch, with its evaluation and checkpoints."""
        done, settings = self.state.progress, self.settings
        first = (done.step % self.steps_per_epoch) * settings.accumulate
        if self.on_epoch is not None:
            self.on_epoch(self.model, epoch)
        self.model.train()
        micro_batches: list[Metrics] = []
        steps: list[dict[str, float]] = []
        last = time.monotonic()
        for batch in self.loader.epoch(epoch, first):
            micro_batches.append(
                self._micro_batch(batch.to(self.accelerator.device), epoch, len(micro_batches))
            )
            if len(micro_batches) < settings.accumulate:
                continue
            self.average.update_parameters(self.model)
            done.step += 1
            metrics = self._means(micro_batches)
            steps.append(metrics)
            rate = settings.batch / max(time.monotonic() - last, 1e-9)
            micro_batches, last = [], time.monotonic()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            advance(1, f"{shown}, {rate:.0f} inputs/s")
            if done.step % settings.log_every == 0:
                lr = self.optimizer.param_groups[0]["lr"]
                log.write(done.step, epoch=epoch, **metrics, lr=lr, inputs_per_s=rate)
            is_last = done.step % self.steps_per_epoch == 0
            if is_last and (epoch + 1) % settings.evaluate_every == 0:
                self._report(epoch, steps, log)
                self.model.train()
            if is_last or done.step % settings.checkpoint_every == 0:
                self.save()
            if self._in_any_process(stop.is_set()):
                self.save()
                raise Interrupted(
                    f"stopped at step {done.step} of {self.steps} and saved in {self.folder}; "
                    "go on with the same command and --resume"
                )

    def _means(self, micro_batches: list[Metrics]) -> dict[str, float]:
        """The metrics of a step, over its micro-batches and all processes."""
        rows = torch.stack([torch.stack(list(metrics.values())) for metrics in micro_batches])
        return dict(zip(micro_batches[0], self.accelerator.reduce(rows.mean(0), "mean").tolist()))

    def _micro_batch(self, batch: Batch, epoch: int, number: int) -> Metrics:
        """Forward and backward pass of one process's micro-batch ``number`` of a step.

        The optimizer steps after the last one.
        """
        step = self.state.progress.step
        set_rates(self.optimizer, self.settings, step, self.steps)
        torch.manual_seed(hash((self.settings.seed, step, number, self.slot.rank)) % 2**63)  # dropout
        with self.accelerator.accumulate(self.wrapped):
            # Accelerate runs the prepared model in mixed precision; a teacher and the loss are in float32.
            metrics = self.objective.measure(self.wrapped, batch)
            loss = metrics["loss"]
            self._refuse_loss_that_is_not_finite(loss, batch, epoch)
            self.accelerator.backward(loss)
            self._clip_gradient()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {name: metric.detach() for name, metric in metrics.items()}

    def _clip_gradient(self) -> None:
        """Limit the gradient of a whole step, as the settings say."""
        done, before = self.state.progress, self.state.progress.gradient_norm
        limit = largest_norm(self.settings, before)
        if limit is None or not self.accelerator.sync_gradients:
            return
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        if math.isfinite(norm):  # in float16 a step may overflow, and is then left out
            done.gradient_norm = follow_norm(before, min(norm, limit))

    def _refuse_loss_that_is_not_finite(self, loss: Tensor, batch: Batch, epoch: int) -> None:
        """End every process, with the same line, where the loss of one is not finite."""
        message = None
        if not torch.isfinite(loss):
            more = f" and {len(batch) - NAMED_INPUTS} more" if len(batch) > NAMED_INPUTS else ""
            message = (
                f"the loss is {loss.item()} at step {self.state.progress.step} (epoch {epoch}), on "
                f"{', '.join(batch.names[:NAMED_INPUTS])}{more}; look at these inputs, or lower --lr"
            )
        message = first_message(self.accelerator, message)
        if message is not None:
            raise TrainingError(message)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Metrics of the averaged weights on the held-out inputs; empty if there are none."""
        if self.held_out is None:
            return {}
        model = self.average.module.eval()
        sums: dict[str, Tensor] = {}
        for batch in self.held_out.in_order(self.slot):
            for key, value in self.objective.evaluate(model, batch.to(self.accelerator.device)).items():
                sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        return {
            key: float(self.accelerator.reduce(value.to(self.accelerator.device), "sum")) / len(self.held_out)
            for key, value in sums.items()
        }

    def _report(self, epoch: int, steps: list[dict[str, float]], log: MetricLog) -> None:
        """Evaluate at the end of an epoch, and say how it went."""
        trained = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}
        done = self.state.progress
        held_out = self._evaluate_and_compare(
            log, epoch=epoch, **{f"epoch/{k}": v for k, v in trained.items()}
        )
        is_best = bool(held_out) and done.best_step == done.step
        self._say(announce.epoch_line(epoch, self.epochs, trained, held_out, is_best))

    def _evaluate_and_compare(self, log: MetricLog, **beside: float) -> dict[str, float]:
        metrics = self.evaluate()
        self._compare_with_best(metrics)
        log.write(self.state.progress.step, **beside, **{f"held_out/{k}": v for k, v in metrics.items()})
        return metrics

    def _compare_with_best(self, metrics: dict[str, float]) -> None:
        """Keep the averaged weights if they are the best so far; count the evaluation if they are not."""
        done, value = self.state.progress, metrics.get(self.objective.monitor)
        if value is None:
            return
        sign = 1 if self.objective.higher_is_better else -1
        if done.best is None or sign * value > sign * done.best:
            done.best, done.best_step, done.stale = value, done.step, 0
            if self.keeps_best:
                self.state.best_weights = {
                    key: tensor.detach().cpu().clone()
                    for key, tensor in self.average.module.state_dict().items()
                }
        else:
            done.stale += 1
            done.is_done = 0 < self.settings.patience <= done.stale

    def save(self) -> None:
        """Write the checkpoint from the first process; the others wait."""
        if self.accelerator.is_main_process:
            self.state.save(self.folder)
        self.accelerator.wait_for_everyone()

    def _in_any_process(self, flag: bool) -> bool:
        """Whether ``flag`` is true in at least one process."""
        if self.slot.world == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum") > 0)

    @contextmanager
    def _show_progress(self, title: str) -> Iterator[Advance]:
        """Show progress in the first process only."""
        if not self.accelerator.is_main_process:
            yield silent
            return
        with progress(title, self.steps, self.state.progress.step) as advance:
            yield advance
