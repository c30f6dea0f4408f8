"""The command line: a table of contents. Each command reads as the story of what it does.

A command's docstring is its manual; its options are made from the settings that they fill
(:mod:`mobileone_q.options`). Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.recipe import Recipe
from mobileone_q import __version__
from mobileone_q.commands import Group, wants_json
from mobileone_q.data.settings import InputOptions
from mobileone_q.engines.settings import BuildOptions
from mobileone_q.errors import OptionError, RunError
from mobileone_q.evaluation.settings import InfoOptions, RooflineOptions
from mobileone_q.jetson_devices import find_device
from mobileone_q.names import DLA_TARGETS, RTX_WARNING, Form
from mobileone_q.options import (
    CONFIG,
    CONFIG_ARGUMENT,
    FILE,
    FOLDER,
    FORM,
    RUN,
    RUNS,
    fetch_weights,
    takes,
)
from mobileone_q.runs.engines.settings import EngineRequest, PredictOptions
from mobileone_q.runs.measuring.settings import BenchmarkOptions, EvaluateOptions, ProfileOptions
from mobileone_q.runs.reports.settings import DoctorOptions, ReportOptions
from mobileone_q.runs.settings import (
    CalibrationOptions,
    FuseOptions,
    NetworkOptions,
    QatOptions,
    TrainOptions,
)
from mobileone_q.runs.tuning.settings import TuneOptions, tuning_request
from mobileone_q.training.settings import (
    FINE_TUNING,
    FINE_TUNING_AUGMENTATION,
    TRAINING,
    TRAINING_AUGMENTATION,
    Augmentation,
    EpochSettings,
    FineTuneSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from mobileone_q.engines import Backend
    from mobileone_q.report.tables import Column, Row
    from mobileone_q.runs.storage.folder import RunFolder
    from mobileone_q.training.learning_rates import RangeTest


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mobileone-q")
def main() -> None:
    """Quantize MobileOne to INT8 and show what it cost and what it won.

    \b
    mobileone-q calibrate --arch s0      quantize the bundled sample
    mobileone-q build-engine --int8      build the newest run's engines, time them
    mobileone-q calibrate --help         how to quantize weights of your own

    Completion of commands, options and values in bash (zsh and fish: write their name instead):

    \b
    eval "$(_MOBILEONE_Q_COMPLETE=bash_source mobileone-q)"
    """


@main.command()
@CONFIG
@takes(CalibrationOptions, "options")
@takes(InputOptions, "inputs")
@takes(Recipe, "recipe")
def calibrate(options: CalibrationOptions, inputs: InputOptions, recipe: Recipe) -> Any:
    """Quantize a checkpoint to INT8 and measure the accuracy drop.

    Calibration needs some images of the kind that the network will see, and no labels. Accuracy is
    measured on other, labelled images. The run folder that it writes is what all other commands read.

    \b
    mobileone-q calibrate --arch s0 --weights s0.pth --data calib/
    """
    from mobileone_q.report.terminal import print_accuracy, print_verdict
    from mobileone_q.runs.calibration import calibrate_inputs, settled_target
    from mobileone_q.runs.model import gather, stages_of
    from mobileone_q.runs.storage.staging import final_place

    if options.output is not None:
        final_place(options.output, "")  # refused now, and not after all the work
    target = settled_target(options.target)
    recipe = replace(recipe, target=target, activation_grids=options.activation_grids)
    model, chosen = gather(options.arch, inputs)
    click.echo(f"{chosen.title}: {model.description}; target {recipe.target}")
    if options.features:
        model = model.with_maps(stages_of(options.features), not options.no_head)
    result = calibrate_inputs(
        model, chosen, recipe, inputs.seed, options.max_drop_pts, options.plain_within,
        with_sensitivity=options.sensitivity, progress=True,
    )  # fmt: skip
    run = result.save(
        options.output, evaluate_on=chosen.evaluated, input=options.input,
        channel_order=options.channel_order, progress=True,
    )  # fmt: skip
    made = run.read_report()
    print_verdict(made)
    print_accuracy(made)
    click.echo(f"calibrated in   {result.seconds.calibrate:.1f} s on {len(chosen.calibration)} images")
    _say_plan(run)
    return _new_run(run)


@main.command("build-engine")
@CONFIG
@takes(EngineRequest, "wanted")
@takes(BuildOptions, "options")
@RUN
def build_engine(run_path: Path | None, wanted: EngineRequest, options: BuildOptions) -> Any:
    """Build engines of RUN; where they can run, show the latency per block.

    RUN is a run folder, by default the newest one under runs/.

    \b
    mobileone-q build-engine --int8 --fp16 runs/s0
    """
    from mobileone_q.runs.bundles.write import write_folder
    from mobileone_q.runs.engines.choice import choose_backend
    from mobileone_q.runs.storage.folder import find_run

    run = find_run(run_path)
    if wanted.tune_seconds is not None:
        run = _tuned(run, tuning_request(wanted, options), options)
    if "int8" in wanted.precisions:
        _say_plan(run)
    written = write_folder(run, wanted, options)
    if written is not None:
        click.echo(written.said)
        return {written.kind: str(written.path)}
    choice = choose_backend(
        run, wanted.backend, wanted.precisions, options, keep_float=wanted.keep_float, progress=True
    )
    if choice.median_ms:
        click.echo(choice.describe())
    backend = choice.backend
    built = _build(run, backend, wanted, options)
    if "int8" in wanted.precisions and backend.can_run():
        _show_latency(run, ProfileOptions(backend.name, threads=options.threads))
    elif "int8" in wanted.precisions:
        click.echo(f"no latency: running a {backend.name} engine needs an NVIDIA GPU, and there is none here")
    return {"engines": built, **_facts(run)}


@main.command()
@CONFIG
@takes(TuneOptions, "options")
@RUN
def tune(run_path: Path | None, options: TuneOptions) -> Any:
    """Find the mix of INT8 and floating point that is the fastest on this device, within a budget.

    It builds graphs of RUN with other blocks in floating point, and times each one whole against the best so
    far. The fastest within the budget of accuracy becomes a run of its own, with a file tuned.yaml that
    repeats the choice elsewhere. After Ctrl-C or a crash, --resume goes on.

    \b
    mobileone-q tune runs/s0 --seconds 300 --threads 1
    """
    from mobileone_q.runs.storage.folder import find_run

    return _new_run(_tuned(find_run(run_path), options))


@main.command()
@takes(ProfileOptions, "options")
@RUN
def profile(run_path: Path | None, options: ProfileOptions) -> Any:
    """Time the built FP32, FP16 and INT8 engines of RUN, interleaved, per block.

    \b
    mobileone-q profile runs/s0 --runs 200
    """
    from mobileone_q.evaluation.device_score import read_score
    from mobileone_q.evaluation.recorded_profile import engine_from, latency_from
    from mobileone_q.report.device import print_engine, print_score
    from mobileone_q.report.latency import print_latency
    from mobileone_q.runs.storage.folder import find_run

    if options.recorded is not None:
        score = read_score(options.recorded)
        if score is None:
            latency = latency_from(options.recorded)
            print_latency(latency)
            return asdict(latency)
        engine = engine_from(options.recorded, score.precision)
        print_score(score)
        print_engine(engine)
        return {"score": asdict(score), "engine": asdict(engine) if engine else None}
    run = find_run(run_path)
    _show_latency(run, options)
    return _facts(run)


@main.command()
@takes(ReportOptions, "options")
@RUN
def report(run_path: Path | None, options: ReportOptions) -> Any:
    """Print the report of RUN again, and write its page, report.html, again.

    The page shows no image unless --with-images asks for it, and no device's bound without --device. The
    next command that adds to the report writes it without them.

    \b
    mobileone-q report runs/s0 --with-images
    """
    from mobileone_q.report.expected import expected_on
    from mobileone_q.report.lines import hanging
    from mobileone_q.report.terminal import print_report
    from mobileone_q.runs.reports.device import add_score
    from mobileone_q.runs.reports.thumbnails import thumbnails
    from mobileone_q.runs.storage.folder import find_run

    run = find_run(run_path)
    if options.scored is not None:
        add_score(run, options.scored)
    made, manifest = run.read_report(), run.read_manifest()
    expected = (
        expected_on(find_device(options.device), run.load_fused().arch, made) if options.device else None
    )
    run.write_page(made, manifest, thumbnails(made, manifest) if options.with_images else {}, expected)
    print_report(made)
    if expected:
        click.echo(hanging("expected        ", expected.describe()))
    click.echo(f"as HTML         {run.html}")
    return _facts(run)


@main.command()
@takes(FuseOptions, "options")
@click.argument("src", type=FILE, callback=fetch_weights)
@click.argument("dst", type=FILE)
def fuse(options: FuseOptions, src: Path, dst: Path) -> Any:
    """Fold SRC's training branches into plain convolutions and write DST.

    DST is a safetensors file that also holds the certificate: how little the folding changed. With
    another --layout than own it is a safetensors or .pth file under that codebase's names.

    \b
    mobileone-q fuse --arch s0 mobileone_s0.pth.tar fused.safetensors
    """
    from mobileone_q.runs.fuse import fuse_file

    state, certificate, parameters = fuse_file(src, dst, options)
    click.echo(f"{dst}: {state}, {parameters:,} parameters")
    click.echo(f"largest relative change, in float64: {certificate.worst:.1e}")
    return {"file": str(dst), "parameters": parameters, "certificate": certificate.to_dict()}


@main.command()
@CONFIG
@takes(QatOptions, "options")
@takes(FineTuneSettings, "tuning")
@takes(TrainingSettings, "settings", defaults=FINE_TUNING)
@takes(Augmentation, "augmentation", defaults=FINE_TUNING_AUGMENTATION)
@RUN
def qat(
    run_path: Path | None,
    options: QatOptions,
    tuning: FineTuneSettings,
    settings: TrainingSettings,
    augmentation: Augmentation,
) -> Any:
    """Fine-tune the INT8 network of RUN to the FP32 network's answers, or to labels.

    A folder of unlabelled images is enough. After Ctrl-C or a crash, --resume goes on.

    \b
    mobileone-q qat runs/s0 --config qat-imagenet --arch s0 --data train/
    """
    from mobileone_q.report.terminal import print_accuracy, print_fine_tuning, print_verdict
    from mobileone_q.runs.qat import fine_tune_run, range_test_run, refuse_other_architecture
    from mobileone_q.runs.storage.folder import find_run

    start = find_run(run_path)
    refuse_other_architecture(start, options.arch)
    if options.find_lr:
        return _rates(
            range_test_run(
                start, data=options.data, images=options.images, tuning=tuning, settings=settings,
                augmentation=augmentation,
            )
        )  # fmt: skip
    run = fine_tune_run(
        start, options.output, data=options.data, eval_data=options.eval_data,
        images=options.images, tuning=tuning, settings=settings, augmentation=augmentation,
        resume=options.resume, progress=True,
    )  # fmt: skip
    if run is None:
        return None  # the first process of several speaks for all
    made = run.read_report()
    print_verdict(made)
    print_accuracy(made)
    print_fine_tuning(made)
    return _new_run(run)


@main.command()
@CONFIG_ARGUMENT
@takes(TrainOptions, "options")
@takes(EpochSettings, "epoch_settings")
@takes(TrainingSettings, "settings", defaults=TRAINING)
@takes(Augmentation, "augmentation", defaults=TRAINING_AUGMENTATION)
def train(
    options: TrainOptions,
    epoch_settings: EpochSettings,
    settings: TrainingSettings,
    augmentation: Augmentation,
) -> Any:
    """Train MobileOne on labelled inputs, as the recipe CONFIG says, such as configs/sample.yaml.

    \b
    mobileone-q train sample --output runs/trained
    """
    from mobileone_q.runs.train import range_test_train, train_run

    asked = (options, epoch_settings, settings, augmentation)
    if options.find_lr:
        return _rates(range_test_train(*asked))
    made = train_run(*asked)
    if made is None:
        return None  # the first process of several speaks for all
    path, outcome = made
    top1, top5 = (100 * outcome.metrics[key] for key in ("top1", "top5"))
    click.echo(f"FP32 top-1      {top1:.2f} %, top-5 {top5:.2f} %, after {outcome.steps} steps")
    _say_next("weights", path, f"mobileone-q calibrate --arch {options.arch} --weights {path} --data IMAGES")
    return {"weights": str(path), "steps": outcome.steps, "metrics": dict(outcome.metrics)}


@main.command()
@CONFIG
@takes(NetworkOptions, "options")
@takes(InputOptions, "inputs")
@takes(Recipe, "recipe")
def sensitivity(options: NetworkOptions, inputs: InputOptions, recipe: Recipe) -> Any:
    """Rank blocks by what quantizing each alone costs, inputs and weights apart.

    \b
    mobileone-q sensitivity --arch s0 --target tensorrt
    """
    from mobileone_q.report.terminal import print_sensitivity
    from mobileone_q.runs.calibration import SENSITIVITY_IMAGES, block_sensitivity, settled_target
    from mobileone_q.runs.model import gather

    recipe = replace(recipe, target=settled_target(options.target))
    ranking, images = block_sensitivity(*gather(options.arch, inputs), recipe, SENSITIVITY_IMAGES)
    print_sensitivity(ranking, images)
    return [result.to_dict() for result in ranking]


@main.command()
@takes(InfoOptions, "options")
def info(options: InfoOptions) -> Any:
    """Show what a network costs: parameters, FLOP, memory traffic and time per operator type.

    \b
    mobileone-q info --arch s0
    """
    from mobileone_q.architecture.registry import resolve_architecture
    from mobileone_q.evaluation.cost import NOTES, network_cost, variant_table
    from mobileone_q.report.network import print_network_cost, print_variants

    if options.arch is None:
        rows = variant_table(options.image_size or 224)
        print_variants(rows, NOTES)
        return {"variants": [asdict(row) for row in rows], "notes": NOTES}
    arch = resolve_architecture(options.arch, image_size=options.image_size)
    cost = network_cost(arch, options.runs, options.threads)
    print_network_cost(cost)
    return cost.to_dict()


@main.command()
@takes(PredictOptions, "options")
@click.argument("images", type=FILE, nargs=-1, required=True, metavar="IMAGE...")
def predict(options: PredictOptions, images: tuple[Path, ...]) -> None:
    """Classify images with a run's engine.

    IMAGE is a file, a folder, a pattern such as 'photos/*.jpg', a video, or camera:0. The last two need
    OpenCV, the extra [camera].

    \b
    mobileone-q predict --run runs/s0 dog.jpg photos/
    """
    from mobileone_q.data.pictures import pictures
    from mobileone_q.runs.engines.predict import lines, load_predictor, predictor_of_engine
    from mobileone_q.runs.storage.folder import find_run

    if options.engine:
        predictor = predictor_of_engine(options.engine, options.classes)
    else:
        run = find_run(options.run)
        predictor = load_predictor(run, options.precision, options.backend, options.classes)
    with predictor:
        found = pictures(images, options.every, options.frames)
        results = (predictor(picture, options.top, title) for title, picture in found)
        for line in (json.dumps(each.to_dict()) for each in results) if options.as_json else lines(results):
            click.echo(line)


@main.command()
@takes(EvaluateOptions, "options")
@click.argument("path", type=FILE, required=False, metavar="[ENGINE|RUN]")
def evaluate(path: Path | None, options: EvaluateOptions) -> Any:
    """Measure the accuracy of one engine on a folder of images.

    ENGINE is an engine file in a run folder. Of RUN it is the INT8 engine of ONNX Runtime, unless
    --precision and --backend name another. With --parity all engines of RUN are compared instead.

    \b
    mobileone-q evaluate runs/s0 --data val/
    """
    from mobileone_q.report.terminal import print_evaluation, print_parity
    from mobileone_q.runs.measuring.evaluate import evaluate_engine
    from mobileone_q.runs.measuring.parity import compare_engines
    from mobileone_q.runs.storage.folder import find_run

    if options.parity or options.exact:
        parity = compare_engines(find_run(path), options, progress=True)
        print_parity(parity)
        return asdict(parity)
    evaluation = evaluate_engine(path, options, progress=True)
    print_evaluation(evaluation)
    return asdict(evaluation)


@main.command()
@FORM
@RUNS
def compare(run_paths: tuple[Path, ...], form: Form) -> Any:
    """Set the figures of several RUNs side by side; nothing is measured anew.

    \b
    mobileone-q compare runs/s0 runs/s0-qat
    """
    from mobileone_q.runs.reports.compare import COLUMNS, cautions, row_of

    if not run_paths:
        raise RunError("name the runs to compare, such as `mobileone-q compare runs/s0 runs/s0-qat`")
    return _table([row_of(path) for path in run_paths], COLUMNS, form, cautions(run_paths))


@main.command()
@takes(BenchmarkOptions, "options")
@FORM
@RUNS
def benchmark(run_paths: tuple[Path, ...], options: BenchmarkOptions, form: Form) -> Any:
    """Measure every built engine of the RUNs on the same images: accuracy, latency, size.

    \b
    mobileone-q benchmark runs/s0 --data val/ --format markdown
    """
    from mobileone_q.runs.measuring.benchmark import COLUMNS
    from mobileone_q.runs.measuring.benchmark import benchmark as measure
    from mobileone_q.runs.storage.folder import find_run

    rows, missing = measure([find_run(path) for path in run_paths or (None,)], options, progress=True)
    return _table(rows, COLUMNS, form, [f"{name} was not run: {why}" for name, why in missing.items()])


@main.command()
@RUN
def verify(run_path: Path | None) -> Any:
    """Check every file of RUN against what was recorded when it was written.

    The exit code is 1 if a file has changed or is missing.

    \b
    mobileone-q verify runs/s0
    """
    from mobileone_q.report.lines import hanging
    from mobileone_q.runs.storage.folder import find_run
    from mobileone_q.runs.storage.integrity import check_all

    run = find_run(run_path)
    files = list(check_all(run.path))
    for file in files:
        click.echo(hanging(f"{file.state:8} ", f"{file.name}{': ' * bool(file.why)}{file.why}"))
    bad = sum(file.state != "ok" for file in files)
    if bad:
        raise RunError(f"{run.path}: {bad} file{'s' * (bad > 1)} not as written; see the lines above")
    return [asdict(file) for file in files]


@main.group()
def runs() -> None:
    """List runs, and clean up after them."""


@runs.command("list")
@FOLDER
def list_runs(folder: Path) -> Any:
    """List the runs in FOLDER, by default runs/: architecture, target, cost, size.

    \b
    mobileone-q runs list
    """
    from mobileone_q.report.lines import hanging
    from mobileone_q.runs.storage.catalog import finished_runs, summarize_run

    rows = [summarize_run(path) for path in finished_runs(folder)]
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        click.echo(hanging("", row.line(width), indent=4))
    if not rows:
        click.echo(f"no run in {folder}; make one with `mobileone-q calibrate --arch s0`")
    return [row.to_dict() for row in rows]


@runs.command()
@FOLDER
@click.option("--yes", is_flag=True, help="Delete without asking.")
@click.option("--checkpoints", is_flag=True, help="Also what `qat --resume` could go on from.")
def clean(folder: Path, yes: bool, checkpoints: bool) -> Any:
    """Delete half-made folders and stale engines in FOLDER, by default runs/; asks first.

    Nothing else of a finished run is deleted. The size of the cache folder is only said.

    \b
    mobileone-q runs clean --yes
    """
    from mobileone_q.files import cache_folder
    from mobileone_q.runs.storage.catalog import leftovers, size_of

    found = list(leftovers(folder, checkpoints))
    for leftover in found:
        click.echo(leftover.line())
    removable = [leftover for leftover in found if leftover.is_removable]
    cache = cache_folder()
    click.echo(f"{size_of(cache) / 1e6:8.1f} MB  {cache}: downloads and timing caches  (kept)")
    if removable and (yes or click.confirm(f"delete {len(removable)} of these?", err=True)):
        for leftover in removable:
            leftover.remove()
        click.echo(f"deleted {len(removable)}")
        return {"deleted": [str(path) for leftover in removable for path in leftover.paths]}
    return {"deleted": []}


@main.command()
@takes(RooflineOptions, "options")
def roofline(options: RooflineOptions) -> Any:
    """Show the least time that a Jetson's published rates allow each block, and an estimate beside it.

    The least time is a bound, and the estimate is fitted to published times of another network. Neither
    is a measurement.

    \b
    mobileone-q roofline --arch s0 --device orin-nano
    """
    from mobileone_q.architecture.variants import build_variant
    from mobileone_q.evaluation.estimate import estimate, published_fit, recorded_fit
    from mobileone_q.evaluation.roofline import block_bounds, to_dict
    from mobileone_q.report.network import print_estimate, print_roofline

    chain, module = build_variant(options.arch, image_size=options.image_size), find_device(options.device)
    bounds = block_bounds(chain, module, options.batch)
    fitted = recorded_fit(options.recorded, module) if options.recorded else published_fit()
    expected = estimate(chain, module, options.batch, fitted)
    print_roofline(chain, module, options.batch, bounds)
    print_estimate(expected)
    return to_dict(chain, module, options.batch, bounds) | {"estimate": expected}


@main.command()
@takes(DoctorOptions, "options")
@RUN
def doctor(run_path: Path | None, options: DoctorOptions) -> Any:
    """Say what is installed, what will work, and how to mend the rest.

    \b
    mobileone-q doctor --json
    """
    from mobileone_q.doctor import gather, judge, to_dict
    from mobileone_q.report.lines import hanging

    if options.archive is None and (run_path or options.scored):
        raise OptionError("RUN and --from are for the archive of --report; pass that too, or leave them out")
    facts = gather()
    checks = judge(facts)
    if options.archive is not None:
        from mobileone_q.runs.reports.issue_report import write_issue_report

        names = write_issue_report(options.archive, to_dict(facts, checks), run_path, options.scored)
        said = f"wrote {options.archive}: {', '.join(names)}; look through it before you attach it"
        click.echo(said, err=wants_json())
    for check in checks:
        click.echo(hanging(f"{check.status:8} {check.name:12} ", check.finding))
        if check.remedy:
            click.echo(hanging(f"{'':22}", f"remedy: {check.remedy}"))
    return to_dict(facts, checks)


def _tuned(run: RunFolder, options: TuneOptions, build: BuildOptions | None = None) -> RunFolder:
    """Tune a run and print what was found; gives the new run."""
    from mobileone_q.report.terminal import print_accuracy, print_tuning, print_verdict
    from mobileone_q.runs.tuning.tune import tune_run

    tuned = tune_run(run, options, build, progress=True)
    made = tuned.read_report()
    print_verdict(made)
    print_accuracy(made)
    print_tuning(made)
    return tuned


def _build(run: RunFolder, backend: Backend, wanted: EngineRequest, options: BuildOptions) -> list[str]:
    """Build a run's engines and say which; gives their paths."""
    from mobileone_q.runs.engines.build import build_engines

    precisions, built = wanted.precisions, []
    if "int8" in precisions and backend.name == "tensorrt-rtx":
        click.echo(f"warning: {RTX_WARNING}", err=True)
    for path, info in build_engines(
        run, backend, precisions, options, keep_float=wanted.keep_float, progress=True
    ):
        built.append(str(path))
        click.echo(f"built {path} ({path.stat().st_size / 1e6:.1f} MB)")
        if info.warnings:
            click.echo(f"      {info.warnings}")
    return built


def _show_latency(run: RunFolder, options: ProfileOptions) -> None:
    """Time a run's engines, and print the report with the figures."""
    from mobileone_q.report.terminal import print_report
    from mobileone_q.runs.run import Run

    Run(run.path).profile(
        options.backend, runs=options.runs, batch=options.batch, threads=options.threads, progress=True
    )
    print_report(run.read_report())
    click.echo(f"as HTML         {run.html}")


def _table(rows: Sequence[Row], columns: Sequence[Column], form: Form, notes: Iterable[str]) -> Any:
    """Print figures in a form, and notes beside them; gives the figures, for --json."""
    from mobileone_q.report.lines import terminal_width
    from mobileone_q.report.tables import render, values

    click.echo(render(rows, columns, form, terminal_width()))
    for note in notes:
        click.echo(f"note: {note}", err=form != "table")
    return values(rows, columns)


def _say_plan(run: RunFolder) -> None:
    """Say what DLA is expected to run, of a run for DLA."""
    from mobileone_q.runs.engines.graphs import planned_for_dla

    plan = planned_for_dla(run)
    if plan is not None:
        click.echo(plan.describe())


def _new_run(run: RunFolder) -> dict[str, Any]:
    """Say where a new run is, and how its engines are built; gives its facts."""
    core = " --dla 0" * (run.read_manifest().target in DLA_TARGETS)
    _say_next("run folder", run.path, f"mobileone-q build-engine --int8{core} {run.path}")
    return _facts(run)


def _say_next(label: str, path: Path, command: str) -> None:
    """Say where a result is, and the command that goes on from it."""
    click.echo(f"{label:16}{path}; next: {command}")


def _rates(found: RangeTest | None) -> Any:
    """What a range test found, printed and for --json; nothing in any process but the first."""
    from mobileone_q.training.learning_rates import range_lines

    if found is None:
        return None
    click.echo("\n".join(range_lines(found)))
    return asdict(found)


def _facts(run: RunFolder) -> dict[str, Any]:
    """A run's folder, verdict and report, for --json."""
    from mobileone_q.report.verdict import verdict

    made = run.read_report()
    report = made.model_dump(mode="json", by_alias=True)
    return {"run": str(run.path), "verdict": verdict(made), "report": report}


if __name__ == "__main__":
    main()
