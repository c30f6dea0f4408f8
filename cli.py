"""The command line: each command reads as the story of what it does.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mobileone_q import __version__
from mobileone_q.errors import MobileOneQError
from mobileone_q.options import (
    ARCH_HELP,
    ARCHITECTURES,
    AS_JSON,
    BACKENDS,
    BATCH,
    FILE,
    LAYOUTS,
    MODULES,
    RUN,
    THREADS,
    ArchitectureName,
    calibration_options,
    engine_options,
    fetch_weights,
    load_config,
    qat_options,
    training_options,
)

if TYPE_CHECKING:
    from calibrate.mixed_precision import Kept
    from mobileone_q.names import BackendName, Target, Task
    from mobileone_q.runs.folder import Run

# Waiting threads that spin slow torch down twentyfold on a machine with other work to do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SENSITIVITY_IMAGES = 100


class Group(click.Group):
    """Turns the project's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MobileOneQError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mobileone-q")
def main() -> None:
    """Quantise MobileOne to INT8 and show what it cost and what it won.

    \b
    mobileone-q calibrate --arch s0      quantise; with no other option, on the bundled sample
    mobileone-q build-engine --int8      build engines of the newest run and time them
    """


@main.command()
@calibration_options
@click.option(
    "--max-drop",
    "max_drop_pts",
    type=click.FloatRange(min=0),
    help="Keep the fewest blocks in floating point with which the top-1 drop on the evaluation images is at "
    "most so many points; takes minutes.",
)
@click.option("--output", type=FILE, help="Run folder, new or empty.  [default: runs/ARCH, numbered]")
def calibrate(
    arch: str,
    image_size: int | None,
    target: str,
    max_drop_pts: float | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Quantise a checkpoint to INT8 and measure the accuracy drop."""
    from calibrate.mixed_precision import calibrate_within
    from calibrate.pipeline import calibrate as run_recipe
    from calibrate.pipeline import steps
    from calibrate.recipe import Recipe
    from mobileone_q.architecture.registry import choose_architecture
    from mobileone_q.checkpoints.load import load_model, stored_image_size
    from mobileone_q.data import sample
    from mobileone_q.data.inputs import choose_inputs
    from mobileone_q.export.graph import export_onnx
    from mobileone_q.files import sha256
    from mobileone_q.models.certificate import certify
    from mobileone_q.models.fuse import fuse as fuse_branches
    from mobileone_q.progress import progress
    from mobileone_q.report.schema import (
        ChosenBlock,
        FloatBlocks,
        FusionErrors,
        Manifest,
        Report,
        Seconds,
        WeightsRecord,
        installed_versions,
        utc_now,
    )
    from mobileone_q.report.terminal import print_accuracy
    from mobileone_q.runs.folder import Run
    from mobileone_q.runs.inputs import image_counts, images_record
    from mobileone_q.runs.measure import measure_accuracy

    recipe = Recipe.from_options(options, target=_resolve_target(target))
    wanted = choose_architecture(arch, image_size=image_size or stored_image_size(options["weights"]))
    inputs = choose_inputs(wanted, **options)
    model, checkpoint = load_model(inputs.weights, arch, inputs.image_size(wanted))
    run = Run.create(output, model.arch.name)
    click.echo(f"{inputs.title}: {checkpoint.description}; target {recipe.target}")

    started = time.perf_counter()
    fused = fuse_branches(model)
    fuse_s = time.perf_counter() - started
    certificate = certify(model, inputs.calibration.first(2))
    fused.save(run.fused, certificate=certificate.to_dict())

    started = time.perf_counter()
    kept: list[Kept] = []
    if max_drop_pts is None:
        with progress("calibrating", steps(recipe, fused, len(inputs.calibration))) as advance:
            quantized = run_recipe(fused, inputs.calibration, recipe, advance)
    else:
        quantized, kept = calibrate_within(
            max_drop_pts, fused, inputs.calibration, inputs.judged, recipe, click.echo
        )
    calibrate_s = time.perf_counter() - started
    quantized.save(run.quantized, recipe=recipe.to_dict())

    preprocessing = inputs.preprocessing.to_dict() if inputs.preprocessing else None
    export_onnx(fused, run.onnx("fp32"), preprocessing=preprocessing)
    export_onnx(quantized, run.onnx("int8"), preprocessing=preprocessing)

    with progress("evaluating", len(inputs.judged)) as advance:
        measured = measure_accuracy(run, quantized, inputs.judged, advance)

    report = Report(
        arch=model.arch.name,
        model=inputs.title,
        target=cast("Target", recipe.target),
        images=image_counts(inputs),
        seconds=Seconds(fuse=fuse_s, calibrate=calibrate_s),
        fusion=FusionErrors(**certificate.summary()),
        float_blocks=FloatBlocks(
            tuple(ChosenBlock(**block.to_dict()) for block in kept), tuple(quantized.keep_float)
        ),
        accuracy=measured.accuracy,
        simulation=measured.simulation,
    )
    run.write_report(report)
    classes = inputs.names_for(model.arch)
    manifest = Manifest(
        made=utc_now(),
        versions=installed_versions(),
        arch=model.arch.name,
        target=report.target,
        task=cast("Task", model.arch.task),
        title=inputs.title,
        is_sample=inputs.title == sample.NAME,
        weights=WeightsRecord(str(inputs.weights), sha256(inputs.weights), checkpoint.layout),
        images=images_record(inputs),
        preprocessing=inputs.preprocessing,
        classes=tuple(classes) if classes else None,
        recipe=recipe.to_dict(),
        seed=options["seed"],
        max_drop_pts=max_drop_pts,
    )
    run.write_manifest(manifest)
    print_accuracy(report)
    click.echo(f"calibrated in   {calibrate_s:.1f} s on {len(inputs.calibration)} images")
    click.echo(f"run folder      {run.path}; next: mobileone-q build-engine --int8 --run {run.path}")


@main.command("build-engine")
@click.option("--int8", "wants_int8", is_flag=True, help="INT8 beside its FP32 baseline.  [default]")
@click.option(
    "--fp16",
    "wants_fp16",
    is_flag=True,
    help="FP16 beside its FP32 baseline; with --int8, what INT8 leaves in floating point is FP16 too.",
)
@click.option("--fp32", "wants_fp32", is_flag=True, help="The FP32 baseline; by itself, that alone.")
@RUN
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Runtime to build for; auto takes TensorRT where it and a GPU are there.",
)
@engine_options
@click.option("--bundle", type=FILE, help="Write a deployment folder instead: graph, script, commands.")
def build_engine(
    wants_int8: bool,
    wants_fp16: bool,
    wants_fp32: bool,
    run_path: Path | None,
    backend: str,
    bundle: Path | None,
    **settings: Any,
) -> None:
    """Build engines of a run; where they can run, show the latency per block."""
    from mobileone_q.engines import BuildOptions, best_backend
    from mobileone_q.engines import backend as engine_class
    from mobileone_q.progress import progress
    from mobileone_q.runs.folder import Run
    from mobileone_q.runs.graphs import build_options, write_graph

    run = Run.find(run_path)
    wants_int8 = wants_int8 or not (wants_fp16 or wants_fp32)
    options = BuildOptions(remainder="fp16" if wants_fp16 else "fp32", **settings)
    if bundle is not None:
        from mobileone_q.runs.bundle import write_bundle

        precision = "int8" if wants_int8 else "fp16" if wants_fp16 else "fp32"
        click.echo(write_bundle(run, bundle, precision, options))
        return
    backend = best_backend() if backend == "auto" else backend
    factory = engine_class(backend)
    precisions = ["fp32", *["fp16"] * wants_fp16, *["int8"] * wants_int8]
    with progress(f"building for {factory.runtime()}", 100 * len(precisions)) as advance:
        for precision in precisions:
            graph = write_graph(run, precision, options.remainder, factory)
            path = run.engine(precision, backend, factory.suffix)
            info = factory.build(graph, path, build_options(run, precision, options), advance)
            click.echo(f"built {path} ({path.stat().st_size / 1e6:.1f} MB)")
            if info.warnings:
                click.echo(f"      {info.warnings}")
    if not wants_int8:
        return
    if not factory.can_run():
        click.echo(f"no latency: running a {backend} engine needs an NVIDIA GPU, and there is none here")
        return
    _show_latency(run, backend, options.threads, runs=50)


@main.command()
@RUN
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Whose engines to time; build them first.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Interleaved runs to take medians of.",
)
@BATCH
@click.option("--from", "recorded", type=FILE, help="Report a profile recorded on a device instead.")
@THREADS
def profile(
    run_path: Path | None, backend: str, runs: int, batch: int, recorded: Path | None, threads: int
) -> None:
    """Time the built FP32, FP16 and INT8 engines of a run, interleaved, per block."""
    if recorded is not None:
        from mobileone_q.evaluation.recorded_profile import latency_from
        from mobileone_q.report.terminal import print_latency

        print_latency(latency_from(recorded))
        return
    from mobileone_q.engines import best_backend
    from mobileone_q.runs.folder import Run

    run = Run.find(run_path)
    _show_latency(run, best_backend() if backend == "auto" else backend, threads, runs, batch)


@main.command()
@RUN
def report(run_path: Path | None) -> None:
    """Print a run's report again."""
    from mobileone_q.report.terminal import print_report
    from mobileone_q.runs.folder import Run

    run = Run.find(run_path)
    print_report(run.read_report())
    click.echo(f"as HTML         {run.html}")


@main.command()
@click.option("--arch", type=ArchitectureName(), required=True, help=ARCH_HELP)
@click.option(
    "--image-size",
    type=click.IntRange(min=32),
    help="Side of the input that the certificate is measured on, pixels.  [default: the architecture's]",
)
@click.option(
    "--data", type=FILE, help="Images, or an .npz, for the certificate.  [default: the bundled sample's]"
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="own",
    show_default=True,
    help="Whose fused network is to load DST.",
)
@click.argument("src", type=FILE, callback=fetch_weights)
@click.argument("dst", type=FILE)
def fuse(arch: str, image_size: int | None, data: Path | None, layout: str, src: Path, dst: Path) -> None:
    """Fold SRC's training branches into plain convolutions and write DST.

    DST is safetensors, with the certificate of how little that changed inside; with another
    --layout than own, safetensors or .pth under that codebase's names.
    """
    from mobileone_q.checkpoints.load import load_model, save_fused
    from mobileone_q.data.inputs import certificate_images
    from mobileone_q.errors import RunError
    from mobileone_q.models.certificate import certify
    from mobileone_q.models.fuse import fuse as fuse_branches

    if dst.exists():
        raise RunError(f"{dst} exists; choose another name, so that nothing is lost")
    model, checkpoint = load_model(src, arch, image_size)
    fused = fuse_branches(model)
    certificate = certify(model, certificate_images(data, model.arch))
    save_fused(fused, dst, layout, certificate=certificate.to_dict())
    state = "was fused already" if checkpoint.is_fused else "fused"
    parameters = sum(p.numel() for p in fused.parameters())
    click.echo(f"{dst}: {state}, {parameters:,} parameters")
    click.echo(f"largest relative change, in float64: {certificate.worst:.1e}")


@main.command()
@qat_options
@click.option("--output", type=FILE, help="Run folder, new or empty.  [default: runs/RUN-qat, numbered]")
@training_options(epochs=50, lr=0.005, crop=0.35, flip=0.5, jitter=0.3, mixup=0.4)
def qat(run_path: Path | None, output: Path | None, **options: Any) -> None:
    """Fine-tune a run's INT8 network on images, to the FP32 network's answers or to labels."""
    from mobileone_q.report.terminal import print_accuracy
    from mobileone_q.runs.folder import Run
    from mobileone_q.training.finetune import fine_tune

    made = fine_tune(Run.find(run_path), output, **options)
    if made is not None:
        run, report = made
        assert report.qat is not None
        print_accuracy(report)
        click.echo(f"fine-tuned in   {report.qat.seconds:.1f} s, {report.qat.steps} steps")
        click.echo(f"run folder      {run.path}; next: mobileone-q build-engine --int8 --run {run.path}")


@main.command()
@click.argument("config", type=FILE, is_eager=True, expose_value=False, callback=load_config)
@click.option("--arch", type=ArchitectureName(), required=True, help=ARCH_HELP)
@click.option("--weights", type=FILE, callback=fetch_weights, help="Checkpoint with branches to begin from.")
@click.option(
    "--data", required=True, help="Folder with one folder per class, .npz, or .tar shards {000..099}."
)
@click.option("--eval-data", type=FILE, required=True, help="The same for evaluation; no shards.")
@click.option("--image-size", type=click.IntRange(min=32), help="Side of the input, pixels.  [default: 224]")
@click.option("--resolutions", type=int, multiple=True, help="Sides to train at in turn, pixels; repeatable.")
@click.option("--epoch-images", type=click.IntRange(min=1), help="Images per epoch, for shards.")
@click.option("--output", type=FILE, help="Folder, new or empty.  [default: runs/train-ARCH, numbered]")
@training_options(optimizer="sgd", lr=0.1, ema=0.999)
def train(**options: Any) -> None:
    """Train MobileOne on labelled inputs as a recipe says, such as configs/sample.yaml."""
    from mobileone_q.training.train import train_model

    made = train_model(**options)
    if made is not None:
        path, outcome = made
        top1, top5 = (100 * outcome.figures[key] for key in ("top1", "top5"))
        click.echo(f"FP32 top-1      {top1:.2f} %, top-5 {top5:.2f} %, after {outcome.steps} steps")
        click.echo(f"weights         {path}; next: mobileone-q calibrate --weights {path}")


@main.command()
@calibration_options
@AS_JSON
def sensitivity(arch: str, image_size: int | None, target: str, as_json: bool, **options: Any) -> None:
    """Rank blocks by what quantising each alone costs, inputs and weights apart."""
    from calibrate.images import load_all
    from calibrate.pipeline import fit, steps
    from calibrate.recipe import Recipe
    from calibrate.sensitivity import rank_blocks
    from mobileone_q.architecture.registry import choose_architecture
    from mobileone_q.checkpoints.load import load_model, stored_image_size
    from mobileone_q.data.inputs import choose_inputs
    from mobileone_q.models.fuse import fuse as fuse_branches
    from mobileone_q.models.mobileone import MobileOne
    from mobileone_q.progress import progress
    from mobileone_q.report.terminal import print_sensitivity

    recipe = Recipe.from_options(options, target=_resolve_target(target))
    wanted = choose_architecture(arch, image_size=image_size or stored_image_size(options["weights"]))
    inputs = choose_inputs(wanted, **options)
    model, _ = load_model(inputs.weights, arch, inputs.image_size(wanted))
    fused = fuse_branches(model)
    with progress("calibrating", steps(recipe, fused, len(inputs.calibration))) as advance:
        equalised, quantized = fit(fused, inputs.calibration, recipe, advance)
    images, labels = load_all(inputs.judged.sample(SENSITIVITY_IMAGES))
    original = model if isinstance(model, MobileOne) else None
    with progress("measuring blocks", len(fused.arch.blocks)) as advance:
        ranking = rank_blocks(equalised, quantized, images, labels, original, advance)
    if as_json:
        click.echo(json.dumps([result.to_dict() for result in ranking], indent=2))
    else:
        print_sensitivity(ranking, len(labels))


@main.command()
@click.option("--arch", type=ArchitectureName(), help=f"{ARCH_HELP}  [default: a table of s0 to s4]")
@click.option("--image-size", type=click.IntRange(min=32), help="Side of the input, pixels.")
@AS_JSON
@click.option(
    "--runs",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Timed runs in ONNX Runtime; 0 for none.",
)
@THREADS
def info(arch: str | None, image_size: int | None, as_json: bool, runs: int, threads: int) -> None:
    """Show what a network costs: parameters, FLOP, memory traffic and time per operator type."""
    from mobileone_q.architecture.registry import choose_architecture
    from mobileone_q.evaluation.cost import NOTES, network_cost, variant_table
    from mobileone_q.report.network import print_network_cost, print_variants

    if arch is None:
        rows = variant_table(image_size or 224)
        if as_json:
            click.echo(json.dumps({"variants": [asdict(row) for row in rows], "notes": NOTES}, indent=2))
        else:
            print_variants(rows, NOTES)
        return
    cost = network_cost(choose_architecture(arch, image_size=image_size), runs, threads)
    click.echo(json.dumps(cost.to_dict(), indent=2)) if as_json else print_network_cost(cost)


@main.command()
@RUN
@click.option("--engine", type=FILE, help="Engine file in a run folder, instead of --run.")
@click.option(
    "--precision",
    type=click.Choice(("int8", "fp32")),
    default="int8",
    show_default=True,
    help="Which engine.",
)
@click.option("--backend", type=click.Choice(BACKENDS), default="onnxruntime", show_default=True)
@click.option("--classes", type=FILE, help="Class names, one a line.  [default: the calibration data's]")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per image.")
@click.argument("images", type=FILE, nargs=-1, required=True, metavar="IMAGE...")
def predict(
    run_path: Path | None,
    engine: Path | None,
    precision: str,
    backend: str,
    classes: Path | None,
    top: int,
    as_json: bool,
    images: tuple[Path, ...],
) -> None:
    """Classify image files with a run's engine."""
    from mobileone_q.engines import best_backend
    from mobileone_q.runs.folder import Run
    from mobileone_q.runs.predict import lines, load_predictor, predictor_of_engine

    if engine:
        predictor = predictor_of_engine(engine, classes)
    else:
        backend = best_backend() if backend == "auto" else backend
        predictor = load_predictor(Run.find(run_path), precision, backend, classes)
    results = (predictor(image, top) for image in images)
    for line in map(json.dumps, results) if as_json else lines(results):
        click.echo(line)


@main.command()
@RUN
@click.option("--engines", is_flag=True, required=True, help="Compare the logits of every engine at hand.")
@click.option(
    "--data",
    type=FILE,
    help="Folder of images, or an .npz for a run on arrays.  [default: the bundled sample's, for its run]",
)
@click.option("--images", type=click.IntRange(min=1), default=200, show_default=True, help="How many.")
@THREADS
def evaluate(run_path: Path | None, engines: bool, data: Path | None, images: int, threads: int) -> None:
    """Compare simulation, ONNX Runtime and TensorRT on the same images."""
    from mobileone_q.models.fused import FusedModel
    from mobileone_q.progress import progress
    from mobileone_q.report.terminal import print_parity
    from mobileone_q.runs.folder import Run
    from mobileone_q.runs.inputs import comparison_inputs
    from mobileone_q.runs.parity import measure_parity

    run = Run.find(run_path)
    report = run.read_report()
    chosen = comparison_inputs(run, FusedModel.load(run.fused).arch, data, images)
    with progress("comparing", len(chosen)) as advance:
        parity = measure_parity(run, chosen, threads, advance)
    run.write_report(report.with_sections(parity=parity))
    print_parity(parity)


@main.command()
@click.option("--device", type=click.Choice(MODULES), required=True, help="Jetson module.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), required=True, help="MobileOne variant.")
@click.option("--image-size", type=click.IntRange(min=32), default=224, show_default=True, help="Pixels.")
@BATCH
@AS_JSON
def roofline(device: str, arch: str, image_size: int, batch: int, as_json: bool) -> None:
    """Show the least time that a Jetson's published rates allow each block: a bound, not a measurement."""
    from mobileone_q.architecture.variants import architecture
    from mobileone_q.evaluation.jetson import MODULES as published
    from mobileone_q.evaluation.roofline import roofline as bounds
    from mobileone_q.evaluation.roofline import to_dict
    from mobileone_q.report.network import print_roofline

    chain, module = architecture(arch, image_size=image_size), published[device]
    found = bounds(chain, module, batch)
    if as_json:
        click.echo(json.dumps(to_dict(chain, module, batch, found), indent=2))
    else:
        print_roofline(chain, module, batch, found)


@main.command()
@AS_JSON
def doctor(as_json: bool) -> None:
    """Say what is installed, what will work, and how to mend the rest."""
    from mobileone_q.doctor import gather, judge, to_dict

    facts = gather()
    checks = judge(facts)
    if as_json:
        click.echo(json.dumps(to_dict(facts, checks), indent=2))
        return
    for check in checks:
        click.echo(f"{check.status:8} {check.name:12} {check.finding}")
        if check.remedy:
            click.echo(f"{'':21} remedy: {check.remedy}")


def _resolve_target(target: str) -> str:
    """``auto``: TensorRT's grids where TensorRT can run, ONNX Runtime's elsewhere."""
    if target != "auto":
        return target
    from mobileone_q.engines import best_backend

    return best_backend()


def _show_latency(run: Run, backend: str, threads: int, runs: int, batch: int = 1) -> None:
    """Time a run's two engines, put the result into its report and print both."""
    from mobileone_q.models.fused import FusedModel
    from mobileone_q.progress import progress
    from mobileone_q.report.terminal import print_report
    from mobileone_q.runs.measure import measure_latency

    arch, target, report = FusedModel.load(run.fused).arch, run.read_manifest().target, run.read_report()
    name = cast("BackendName", backend)
    with progress("profiling", 2 * runs) as advance:
        latency = measure_latency(
            run, arch, target, name, threads=threads, runs=runs, batch=batch, advance=advance
        )
    print_report(run.write_report(report.with_sections(latency=latency)))
    click.echo(f"as HTML         {run.html}")


if __name__ == "__main__":
    main()
