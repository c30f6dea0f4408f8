"""The command line: each command reads as the story of what it does.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mobileone_q import __version__
from mobileone_q.errors import MobileOneQError
from mobileone_q.options import engine_options

if TYPE_CHECKING:
    from mobileone_q.run import Run

ARCHITECTURES = ("s0", "s1", "s2", "s3", "s4")
TARGETS = ("auto", "tensorrt", "onnxruntime", "dla")
METHODS = ("minmax", "percentile", "entropy", "mse")
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime")
MODULES = ("xavier-nx", "orin-nano", "orin-nano-super", "orin-nx", "agx-orin", "thor")
FILE = click.Path(path_type=Path)


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


def _load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a YAML file's values the defaults of the command's options."""
    if path is not None:
        from mobileone_q.config import read_config

        names = {p.name for p in ctx.command.params if p.name and p.name != "config"}
        ctx.default_map = read_config(path, names)


config_option = click.option(
    "--config",
    type=FILE,
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="YAML file of options; those on the command line win.",
)


@main.command()
@config_option
@click.option("--arch", type=click.Choice(ARCHITECTURES), required=True, help="MobileOne variant.")
@click.option("--weights", type=FILE, help="Checkpoint, with or without branches.  [default: bundled sample]")
@click.option("--data", type=FILE, help="Folder of calibration images.  [default: bundled sample]")
@click.option(
    "--eval-data", type=FILE, help="Folder of labelled images.  [default: images of --data left over]"
)
@click.option("--images", type=click.IntRange(min=1), help="Calibration images to draw.  [default: 200]")
@click.option(
    "--image-size",
    type=click.IntRange(min=32),
    default=224,
    show_default=True,
    help="Side of the network's input, pixels.",
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="auto",
    show_default=True,
    help="Runtime whose integer grids to use.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="mse",
    show_default=True,
    help="How activation ranges are chosen.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the calibration images.")
@click.option("--output", type=FILE, help="Run folder, new or empty.  [default: runs/ARCH, numbered]")
def calibrate(
    arch: str,
    weights: Path | None,
    data: Path | None,
    eval_data: Path | None,
    images: int | None,
    image_size: int,
    target: str,
    method: str,
    seed: int,
    output: Path | None,
) -> None:
    """Quantise a checkpoint to INT8 and measure the accuracy drop."""
    from calibrate.inputs import choose_inputs
    from calibrate.recipe import Recipe
    from calibrate.recipe import calibrate as run_recipe
    from mobileone_q.checkpoints import load_model
    from mobileone_q.export import export_onnx
    from mobileone_q.files import sha256
    from mobileone_q.fuse import certify
    from mobileone_q.fuse import fuse as fuse_branches
    from mobileone_q.measure import measure_accuracy
    from mobileone_q.progress import progress
    from mobileone_q.report import print_accuracy, update_report
    from mobileone_q.run import Run, write_manifest

    recipe = Recipe(target=_resolve_target(target), method=method)
    inputs = choose_inputs(arch, weights, data, eval_data, images, image_size, seed)
    model, checkpoint = load_model(inputs.weights, arch, inputs.preprocessing.crop)
    run = Run.create(output, arch)
    click.echo(f"{inputs.title}: {checkpoint.description}; target {recipe.target}")

    started = time.perf_counter()
    fused = fuse_branches(model)
    fuse_s = time.perf_counter() - started
    certificate = certify(model, inputs.calibration.first(2))
    fused.save(run.fused, certificate=certificate.to_dict())

    started = time.perf_counter()
    with progress("calibrating", recipe.passes * len(inputs.calibration)) as advance:
        quantized = run_recipe(fused, inputs.calibration, recipe, advance)
    calibrate_s = time.perf_counter() - started
    quantized.save(run.quantized, recipe=recipe.to_dict())

    preprocessing = inputs.preprocessing.to_dict()
    export_onnx(fused, run.onnx("fp32"), preprocessing=preprocessing)
    export_onnx(quantized, run.onnx("int8"), preprocessing=preprocessing)

    judged = inputs.evaluation or inputs.calibration
    with progress("evaluating", len(judged)) as advance:
        accuracy = measure_accuracy(run, quantized, judged, advance)

    report = update_report(
        run,
        arch=arch,
        model=inputs.title,
        target=recipe.target,
        images=inputs.describe(),
        seconds={"fuse": fuse_s, "calibrate": calibrate_s},
        fusion=certificate.summary(),
        **accuracy,
    )
    write_manifest(
        run,
        arch=arch,
        weights={"path": str(inputs.weights), "sha256": sha256(inputs.weights), "layout": checkpoint.layout},
        images={"source": inputs.calibration.source.name, "sha256": inputs.calibration.fingerprint()},
        preprocessing=preprocessing,
        recipe=recipe.to_dict(),
        seed=seed,
    )
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
@click.option("--run", "run_path", type=FILE, help="Run folder.  [default: the newest under runs/]")
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
    from mobileone_q.graphs import build_options, write_graph
    from mobileone_q.progress import progress
    from mobileone_q.run import Run

    run = Run.find(run_path)
    wants_int8 = wants_int8 or not (wants_fp16 or wants_fp32)
    options = BuildOptions(remainder="fp16" if wants_fp16 else "fp32", **settings)
    if bundle is not None:
        from mobileone_q.bundle import write_bundle

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
@click.option("--run", "run_path", type=FILE, help="Run folder.  [default: the newest under runs/]")
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
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once.")
@click.option("--from", "recorded", type=FILE, help="Report a profile recorded on a device instead.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads (onnxruntime)."
)
def profile(
    run_path: Path | None, backend: str, runs: int, batch: int, recorded: Path | None, threads: int
) -> None:
    """Time the built FP32, FP16 and INT8 engines of a run, interleaved, per block."""
    if recorded is not None:
        from mobileone_q.recorded import latency_from
        from mobileone_q.report import print_latency

        print_latency(latency_from(recorded))
        return
    from mobileone_q.engines import best_backend
    from mobileone_q.run import Run

    run = Run.find(run_path)
    _show_latency(run, best_backend() if backend == "auto" else backend, threads, runs, batch)


@main.command()
@click.option("--run", "run_path", type=FILE, help="Run folder.  [default: the newest under runs/]")
def report(run_path: Path | None) -> None:
    """Print a run's report again."""
    from mobileone_q.report import print_accuracy, print_latency
    from mobileone_q.run import Run

    run = Run.find(run_path)
    values = run.read_report()
    if "latency" in values:
        print_latency(values["latency"])
    print_accuracy(values)
    click.echo(f"as HTML         {run.html}")


@main.command()
@click.option("--arch", type=click.Choice(ARCHITECTURES), required=True, help="MobileOne variant.")
@click.option(
    "--image-size",
    type=click.IntRange(min=32),
    default=224,
    show_default=True,
    help="Side of the input that the certificate is measured on, pixels.",
)
@click.option(
    "--data", type=FILE, help="Folder of images for the certificate.  [default: the bundled sample's]"
)
@click.argument("src", type=FILE)
@click.argument("dst", type=FILE)
def fuse(arch: str, image_size: int, data: Path | None, src: Path, dst: Path) -> None:
    """Fold SRC's training branches into plain convolutions and write DST (safetensors).

    The certificate of how little that changed is saved inside DST.
    """
    from calibrate.inputs import certificate_images
    from mobileone_q.checkpoints import load_model
    from mobileone_q.errors import RunError
    from mobileone_q.fuse import certify
    from mobileone_q.fuse import fuse as fuse_branches

    if dst.suffix != ".safetensors":
        raise RunError(f"{dst} must end in .safetensors")
    if dst.exists():
        raise RunError(f"{dst} exists; choose another name, so that nothing is lost")
    model, checkpoint = load_model(src, arch, image_size)
    fused = fuse_branches(model)
    certificate = certify(model, certificate_images(data, image_size).first(2))
    fused.save(dst, certificate=certificate.to_dict())
    state = "was fused already" if checkpoint.is_fused else "fused"
    parameters = sum(p.numel() for p in fused.parameters())
    click.echo(f"{dst}: {state}, {parameters:,} parameters")
    click.echo(f"largest relative change, in float64: {certificate.worst:.1e}")


@main.command()
@click.option("--run", "run_path", type=FILE, help="Run folder.  [default: the newest under runs/]")
@click.option("--engines", is_flag=True, required=True, help="Compare the logits of every engine at hand.")
@click.option("--data", type=FILE, help="Folder of images.  [default: the bundled sample's, for its run]")
@click.option("--images", type=click.IntRange(min=1), default=200, show_default=True, help="How many.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads.")
def evaluate(run_path: Path | None, engines: bool, data: Path | None, images: int, threads: int) -> None:
    """Compare simulation, ONNX Runtime and TensorRT on the same images."""
    from calibrate.data import Batches, ImageFolder
    from calibrate.inputs import sample_images
    from mobileone_q import sample
    from mobileone_q.errors import DataError
    from mobileone_q.parity import measure_parity
    from mobileone_q.preprocess import Preprocessing
    from mobileone_q.progress import progress
    from mobileone_q.report import print_parity, update_report
    from mobileone_q.run import Run

    run = Run.find(run_path)
    if data is None and run.read_report().get("model") != sample.NAME:
        raise DataError(f"{run.path} is not of the bundled sample; pass --data FOLDER of images")
    source = ImageFolder(data) if data else sample_images("evaluation")
    transform = Preprocessing.from_dict(run.read_manifest()["preprocessing"])
    chosen = Batches.choose(source, transform, min(images, len(source)))
    with progress("comparing", len(chosen)) as advance:
        parity = measure_parity(run, chosen, threads, advance)
    update_report(run, parity=parity)
    print_parity(parity)


@main.command()
@click.option("--device", type=click.Choice(MODULES), required=True, help="Jetson module.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), required=True, help="MobileOne variant.")
@click.option("--image-size", type=click.IntRange(min=32), default=224, show_default=True, help="Pixels.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def roofline(device: str, arch: str, image_size: int, batch: int, as_json: bool) -> None:
    """Show the least time that a Jetson's published rates allow each block: a bound, not a measurement."""
    from mobileone_q.architecture import architecture
    from mobileone_q.devices import MODULES as published
    from mobileone_q.report import print_roofline
    from mobileone_q.roofline import roofline as bounds
    from mobileone_q.roofline import to_dict

    chain, module = architecture(arch, image_size=image_size), published[device]
    values = to_dict(chain, module, batch, bounds(chain, module, batch))
    click.echo(json.dumps(values, indent=2)) if as_json else print_roofline(values)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    from mobileone_q.fused import FusedModel
    from mobileone_q.measure import measure_latency
    from mobileone_q.progress import progress
    from mobileone_q.report import print_accuracy, print_latency, update_report

    arch, target = FusedModel.load(run.fused).arch, run.read_report()["target"]
    with progress("profiling", 2 * runs) as advance:
        latency = measure_latency(
            run, arch, target, backend, threads=threads, runs=runs, batch=batch, advance=advance
        )
    report = update_report(run, latency=latency)
    print_latency(latency)
    print_accuracy(report)
    click.echo(f"as HTML         {run.html}")


if __name__ == "__main__":
    main()
