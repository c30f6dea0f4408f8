"""A run as an object: everything that can be done with it from Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.errors import EngineError, TrainingError
from mobileone_q.evaluation.latency import Latency
from mobileone_q.evaluation.metrics import MeasuredAccuracy
from mobileone_q.names import BackendChoice, Precision
from mobileone_q.progress import progress_if
from mobileone_q.runs.bundles.bundle import write_bundle
from mobileone_q.runs.engines.build import build_engines
from mobileone_q.runs.engines.choice import choose_backend
from mobileone_q.runs.engines.loading import built_backend, load_engine
from mobileone_q.runs.engines.predict import Prediction, load_predictor
from mobileone_q.runs.inputs import prepared
from mobileone_q.runs.measuring.measure import measure_accuracy, measure_latency
from mobileone_q.runs.qat import fine_tune_run
from mobileone_q.runs.storage.folder import RunFolder, find_run
from mobileone_q.settings import checks_arguments
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    FineTuneSettings,
    filled,
    refuse_unknown,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Run(RunFolder):
    """A finished run: build engines, measure them, classify images, fine-tune.

    ``path`` is its folder. Get one from :meth:`Result.save` or :func:`open_run`.
    """

    @checks_arguments
    def build(
        self,
        precision: Precision = "int8",
        backend: BackendChoice = "auto",
        *,
        progress: bool = False,
        **options: Any,
    ) -> Engine:
        """Build an engine and load it; ``engine(batch)`` then gives logits.

        Args:
            precision: ``int8``, ``fp16`` or ``fp32``.
            backend: ``auto`` is TensorRT where it and a GPU are, else the CPU backend that runs the graph
                fastest here, which is measured where several are installed.
            progress: whether to show progress on standard error.
            options: fields of :class:`BuildOptions`, such as ``batch=(1, 1, 8)``.

        Raises:
            EngineError: the backend must not run this run's graph, refuses it, or cannot run here.
            MissingDependency: the backend's library is not installed.
        """
        wanted = BuildOptions(precision=precision, **_known(BuildOptions, options))
        chosen = choose_backend(self, backend, [precision], wanted, progress=progress).backend
        for _ in build_engines(self, chosen, [precision], wanted, progress=progress):
            pass
        return load_engine(self, precision, chosen.name, wanted.threads)

    @checks_arguments
    def evaluate(self, images: object, *, progress: bool = False) -> MeasuredAccuracy:
        """Accuracy of the exported graphs on labelled images.

        ``images`` is a folder with a folder per class, an ``.npz``, a sequence of PIL images or
        arrays, the last two with labels as a pair.

        Raises:
            DataError: images of another kind or shape than the run was calibrated on.
        """
        quantized = self.load_quantized()
        manifest = self.read_manifest()
        batches = prepared(images, quantized.arch, manifest)
        with progress_if(progress, "evaluating", len(batches)) as advance:
            return measure_accuracy(
                self, quantized, batches, advance, preprocessing=manifest.preprocessing
            ).accuracy

    @checks_arguments
    def profile(
        self,
        backend: BackendChoice = "auto",
        *,
        runs: int = 50,
        batch: int = 1,
        threads: int = 1,
        progress: bool = False,
    ) -> Latency:
        """Time the built FP32 and INT8 engines, interleaved, in milliseconds, block by block.

        The figures also go into the run's report.

        Raises:
            EngineError: an engine is missing or stale, or cannot run here.
        """
        self.read_report()  # so that a damaged one is refused before the work, not after it
        with progress_if(progress, "profiling", 2 * runs) as advance:
            latency = measure_latency(
                self,
                self.load_fused().arch,
                self.read_manifest().target,
                built_backend(self, backend, "int8").name,
                threads=threads,
                runs=runs,
                batch=batch,
                keep_float=self.load_quantized().keep_float,
                advance=advance,
            )
        self.add_to_report(latency=latency)
        return latency

    @checks_arguments
    def predict(
        self,
        images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
        *,
        precision: Precision = "int8",
        backend: BackendChoice = "auto",
        top: int = 5,
    ) -> list[Prediction]:
        """The best ``top`` classes of each image, from the run's engine.

        Raises:
            DataError: an image cannot be read, or the run was calibrated on arrays.
            EngineError: the engine is missing or stale.
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        with load_predictor(self, precision, backend) as predictor:
            return [predictor(image, top) for image in images]

    @checks_arguments
    def qat(self, images: str | Path | None = None, path: str | Path | None = None, **settings: Any) -> Run:
        """Fine-tune the INT8 network to the FP32 network's answers; gives a new run.

        Args:
            images: a folder of images, labelled or not; at most 16,000 are taken. By default the run's own.
            path: the new run's folder; by default ``runs/<name>-qat``, numbered.
            settings: fields of the training settings, such as ``epochs=10``.

        Raises:
            TrainingError: settings that cannot be used.
            MissingDependency: Accelerate is not installed.
        """
        refuse_unknown(settings, FINE_TUNING, FINE_TUNING_AUGMENTATION, FineTuneSettings())
        made = fine_tune_run(
            self,
            None if path is None else Path(path),
            data=None if images is None else Path(images),
            tuning=filled(FineTuneSettings(), settings),
            settings=filled(FINE_TUNING, settings),
            augmentation=filled(FINE_TUNING_AUGMENTATION, settings),
        )
        if made is None:
            raise TrainingError("only the first of several processes gets the fine-tuned run")
        return Run(made.path)

    def to_pt2e(self, unsigned: bool = False) -> ExportedProgram:
        """The INT8 network as a program of ``torch.export``, with the run's codes, scales and biases.

        Save it with ``torch.export.save(program, "int8.pt2")``; ``program.module()`` runs it on normalized
        float32 (N, C, H, W). The batch size is free.

        Args:
            unsigned: whether to write int8 inputs as uint8 with zero-point 128, the same values. Inductor's
                INT8 kernels for x86, under ``torch.compile``, need it.

        Raises:
            MissingDependency: torchao is not installed.
            ExportError: the run is for a DLA.
            RunError: the run's files have changed.
        """
        from mobileone_q.export.pt2e import to_pt2e

        return to_pt2e(self.load_quantized(), unsigned)

    @checks_arguments
    def bundle(self, path: str | Path, precision: Precision = "int8", **options: Any) -> Path:
        """Write a deployment folder for a device with TensorRT and NumPy; see `build-engine --bundle`."""
        folder = Path(path)
        write_bundle(self, folder, precision, BuildOptions(**_known(BuildOptions, options)))
        return folder


@checks_arguments
def open_run(path: str | Path | None = None) -> Run:
    """A finished run, checked; by default the newest one under ``runs/``.

    Raises:
        RunError: there is none.
        FileError: its report or manifest is damaged.
    """
    run = Run(find_run(None if path is None else Path(path)).path)
    run.read_manifest()
    run.read_report()
    return run


def _known(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(cls)}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise EngineError(
            f"unknown build options {', '.join(unknown)}; choose from {', '.join(sorted(known))}"
        )
    return options
