"""The training loop, for every objective: one process or many, CPU or GPU.

Hugging Face Accelerate starts the processes, averages gradients and scales losses; what is drawn
and in which order is ours (:mod:`mobileone_q.training.data`), so that two processes follow one.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobileone_q.errors import Interrupted, MissingDependency, TrainingError
from mobileone_q.progress import Advance, progress
from mobileone_q.training.checkpoint import Position, State
from mobileone_q.training.data import Batch, Feed, Views
from mobileone_q.training.distributed import keep_freed_memory
from mobileone_q.training.metric_log import Journal
from mobileone_q.training.objectives import Figures, Objective
from mobileone_q.training.optim import averaged, make_optimizer, schedule
from mobileone_q.training.settings import Settings

_GROUPS: list[Any] = []  # process groups that have ended
SHOWN = 3  # inputs named when a loss is not finite


@dataclass(frozen=True)
class Outcome:
    """``figures`` of the weights kept, those of ``start`` before the first step, what was done."""

    figures: dict[str, float]
    start: dict[str, float]
    steps: int
    kept_step: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_engine(settings: Settings) -> Any:
    """Accelerate's Accelerator, on the device that the settings name.

    Raises:
        MissingDependency: Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise MissingDependency("training needs Accelerate: pip install mobileone-q[train]") from None
    keep_freed_memory()
    AcceleratorState._reset_state()  # or a second run in one process keeps the first one's precision
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
    )


def end(engine: Any) -> None:
    """Let processes part together: one that leaves early takes the others' connections with it.

    The group outlives the training: were DDP's reducer its last owner, gloo would be taken down under
    the interpreter's lock, for which gloo's own thread may be waiting (seen in torch 2.13).
    """
    engine.wait_for_everyone()
    if torch.distributed.is_initialized():
        _GROUPS.append(torch.distributed.group.WORLD)
        if not engine.is_main_process:
            atexit.register(_leave)
    engine.end_training()


def _leave() -> None:
    """Exit without taking the interpreter down: gloo's threads may ask for its lock then, which
    aborts the process (seen in torch 2.13), and the launcher would end the first one, still writing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Training:
    """One run: ``model`` is trained in place on ``feed`` and ends with the weights kept.

    Kept are the averaged weights: the best by ``objective`` on ``held_out`` if ``keeps_best``, else
    the last. ``folder`` gets checkpoint and figures. ``on_epoch(model, epoch)`` may change how the
    model trains.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        feed: Feed,
        held_out: Views | None,
        settings: Settings,
        folder: Path,
        *,
        engine: Any = None,
        keeps_best: bool = False,
        on_epoch: Callable[[nn.Module, int], None] = lambda model, epoch: None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.objective, self.feed, self.held_out = objective, feed, held_out
        self.settings, self.folder = settings, folder
        self.keeps_best, self.on_epoch = keeps_best, on_epoch
        self.engine = engine or make_engine(settings)
        self.rank, self.world = self.engine.process_index, self.engine.num_processes
        self.share = settings.share(self.world)
        self.steps_per_epoch = feed.passes(self.share * self.world) // settings.accumulate
        if not self.steps_per_epoch:
            raise TrainingError(f"fewer inputs than one batch of {settings.batch}; lower --batch")
        self.steps = self.steps_per_epoch * settings.epochs
        # Channels last is what convolutions run fastest on; torch's stubs do not know it of modules.
        model.to(device=self.engine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.average = averaged(model, settings.ema)
        self.wrapped, self.optimizer = self.engine.prepare(model, make_optimizer(model, settings))
        described = {**settings.to_dict(), **(facts or {}), "processes": self.world}
        self.state = State(
            model, self.average, self.optimizer, self.engine.scaler, described, Position(), kept={}
        )

    def run(self, title: str, resume: bool = False) -> Outcome:
        """Train to the end, or until no evaluation has been better for ``patience`` of them.

        Raises:
            TrainingError: a loss that is not finite; nothing to resume.
            Interrupted: Ctrl-C, after saving.
        """
        started = time.monotonic()
        if resume:
            self.state.load(self.folder)
        position = self.state.position
        with Journal(self.folder, position.step, self.engine.is_main_process) as journal:
            if not resume:
                position.start = self._evaluate_and_judge(journal)
            with _stop_signals() as wants_to_stop, self._progress(title) as advance:
                for epoch in range(position.step // self.steps_per_epoch, self.settings.epochs):
                    if position.is_done:
                        break
                    self._epoch(epoch, journal, advance, wants_to_stop)
        if self.keeps_best:
            self.average.module.load_state_dict(self.state.kept)
        self.model.load_state_dict(self.average.module.state_dict())
        seconds = time.monotonic() - started
        kept_step = position.best_step if self.keeps_best else position.step
        return Outcome(self.evaluate(), position.start, position.step, kept_step, seconds)

    def _epoch(self, epoch: int, journal: Journal, advance: Advance, wants_to_stop: threading.Event) -> None:
        position, settings = self.state.position, self.settings
        first = position.step % self.steps_per_epoch
        self.on_epoch(self.model, epoch)
        self.model.train()
        loader = self.feed.loader(
            epoch, first * settings.accumulate, self.share, self.rank, self.world, settings.workers
        )
        passes: list[Figures] = []
        last = time.monotonic()
        for batch in loader:
            passes.append(self._pass(batch.to(self.engine.device), epoch, len(passes)))
            if len(passes) < settings.accumulate:
                continue
            self.average.update_parameters(self.model)
            position.step += 1
            figures = self._means(passes)
            rate = settings.batch / max(time.monotonic() - last, 1e-9)
            passes, last = [], time.monotonic()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            advance(1, f"{shown}, {rate:.0f} inputs/s")
            if position.step % settings.log_every == 0:
                lr = self.optimizer.param_groups[0]["lr"]
                journal.write(position.step, epoch=epoch, **figures, lr=lr, inputs_per_s=rate)
            is_last = position.step % self.steps_per_epoch == 0
            if is_last and (epoch + 1) % settings.evaluate_every == 0:
                self._evaluate_and_judge(journal)
                self.model.train()
            if is_last or position.step % settings.checkpoint_every == 0:
                self.save()
            if self._any(wants_to_stop.is_set()):
                self.save()
                raise Interrupted(
                    f"stopped at step {position.step} of {self.steps} and saved in {self.folder}; "
                    "go on with the same command and --resume"
                )

    def _means(self, passes: list[Figures]) -> dict[str, float]:
        """Figures of a step, over its passes and all processes."""
        rows = torch.stack([torch.stack(list(figures.values())) for figures in passes])
        return dict(zip(passes[0], self.engine.reduce(rows.mean(0), "mean").tolist()))

    def _pass(self, batch: Batch, epoch: int, done: int) -> Figures:
        """Forward and backward of one process's share; the optimizer steps when all are summed."""
        step = self.state.position.step
        schedule(self.optimizer, self.settings, step, self.steps)
        torch.manual_seed(hash((self.settings.seed, step, done, self.rank)) % 2**63)  # dropout
        with self.engine.accumulate(self.wrapped):
            with self.engine.autocast():
                figures = self.objective.measure(self.wrapped, batch)
            loss = figures["loss"]
            if not torch.isfinite(loss):
                more = f" and {len(batch) - SHOWN} more" if len(batch) > SHOWN else ""
                raise TrainingError(
                    f"the loss is {loss.item()} at step {step} (epoch {epoch}), on "
                    f"{', '.join(batch.names[:SHOWN])}{more}; look at these inputs, or lower --lr"
                )
            self.engine.backward(loss)
            if self.settings.clip_norm and self.engine.sync_gradients:
                self.engine.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {name: figure.detach() for name, figure in figures.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-out inputs; none without such."""
        if self.held_out is None:
            return {}
        model = self.average.module.eval()
        sums: dict[str, Tensor] = {}
        batches = self.held_out.in_order(self.share, self.rank, self.world, self.settings.workers)
        for batch in batches:
            for key, value in self.objective.judge(model, batch.to(self.engine.device)).items():
                sums[key] = sums.get(key, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        return {
            key: float(self.engine.reduce(value.to(self.engine.device), "sum")) / len(self.held_out)
            for key, value in sums.items()
        }

    def _evaluate_and_judge(self, journal: Journal) -> dict[str, float]:
        figures = self.evaluate()
        self._judge(figures)
        journal.write(self.state.position.step, **{f"held_out/{key}": v for key, v in figures.items()})
        return figures

    def _judge(self, figures: dict[str, float]) -> None:
        """Keep the averaged weights if they are the best so far; count if they are not."""
        position, value = self.state.position, figures.get(self.objective.monitor)
        if value is None:
            return
        sign = 1 if self.objective.higher_is_better else -1
        if position.best is None or sign * value > sign * position.best:
            position.best, position.best_step, position.stale = value, position.step, 0
            if self.keeps_best:
                self.state.kept = {
                    key: tensor.detach().cpu().clone()
                    for key, tensor in self.average.module.state_dict().items()
                }
        else:
            position.stale += 1
            position.is_done = 0 < self.settings.patience <= position.stale

    def save(self) -> None:
        """Write the checkpoint from the first process; the others wait."""
        if self.engine.is_main_process:
            self.state.save(self.folder)
        self.engine.wait_for_everyone()

    def _any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.world == 1:
            return flag
        return bool(self.engine.reduce(torch.tensor(float(flag), device=self.engine.device), "sum") > 0)

    @contextmanager
    def _progress(self, title: str) -> Iterator[Callable[..., None]]:
        if not self.engine.is_main_process:
            yield lambda steps, note="": None
            return
        with progress(title, self.steps, self.state.position.step) as advance:
            yield advance


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """The event is set by a first Ctrl-C or SIGTERM; a second one has its usual effect."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in wanted}

    def stop(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in wanted:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number in wanted:
            signal.signal(number, before[number])
