"""The sections of a report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console

from mobileone_q.evaluation.metrics import MeasuredAccuracy, MeasuredScore, Parity, TopK
from mobileone_q.report.console import TABLE_COLUMNS, console, is_narrow, make_table
from mobileone_q.report.device import print_score
from mobileone_q.report.latency import print_latency
from mobileone_q.report.lines import hanging
from mobileone_q.report.schema import Report
from mobileone_q.report.tuning import answer, how
from mobileone_q.report.verdict import verdict

MOST_CHANGED = 3  # blocks that fine-tuning changed, shown by name


def print_report(report: Report) -> None:
    """Print the verdict, then accuracy, tuning and latency, whichever of them the report has."""
    print_verdict(report)
    print_accuracy(report)
    print_tuning(report)
    if report.latency is not None:
        print_latency(report.latency)


def _say(out: Console, label: str, text: str) -> None:
    """Print text behind a label; further lines stand under the text."""
    out.print(hanging(f"{label:16}", text))


def print_verdict(report: Report) -> None:
    """Print what the report comes to, in a sentence."""
    console().print(f"{verdict(report)}\n")


def print_accuracy(report: Report) -> None:
    """Print what INT8 cost, which blocks are in floating point, and which images were skipped."""
    out, accuracy, images = console(), report.accuracy, report.images
    if accuracy is None:
        out.print(f"{report.model}: no accuracy was measured; calibrate with --eval-data to measure it")
    else:
        out.print(f"{report.model}: accuracy on {images.evaluation:,} images, in {accuracy.engine}")
        if accuracy.cosine is not None:
            cosine = accuracy.cosine
            _say(out, "cosine", f"{cosine.mean:.5f} mean, {cosine.lowest:.5f} lowest, INT8 with FP32")
        else:
            _print_classes(out, report, accuracy)
        if accuracy.note:
            out.print(hanging("note: ", accuracy.note))
    for each in report.maps or ():
        snr = "no noise" if each.snr_db is None else f"SNR {each.snr_db:.1f} dB"
        where = "x".join(map(str, each.shape))
        likeness = f"cosine {each.cosine:.5f} mean, {each.lowest:.5f} lowest, {snr}"
        _say(out, each.name, f"{where}: {likeness} ({each.engine})")
    _print_plain(out, report)
    if report.device is not None:
        print_score(report.device)
    if report.float_blocks is not None and report.float_blocks.all:
        names = report.float_blocks.all
        _say(out, "floating point", f"{len(names)} block{'s' * (len(names) > 1)}: {', '.join(names)}")
        for block in report.float_blocks.chosen:
            drop = f"INT8 there would make the drop {block.drop_without_pts:+.2f} points"
            _say(out, "", f"{block.name}: {drop}; alone it costs KL {block.kl:.4f}")
    if images.skipped:
        name, reason = next(iter(images.skipped.items()))
        _say(out, "skipped", f"{len(images.skipped)} unreadable images, first {name}: {reason}")
    if images.evaluated_on == "calibration":
        words = "evaluated on the calibration images themselves; pass --eval-data for an honest figure"
        out.print(hanging("note: ", words))


def _print_plain(out: Console, report: Report) -> None:
    """Print what the second INT8 graph of `calibrate --grids both` cost."""
    plain = report.plain_grids
    if plain is not None and plain.kl is not None and plain.agreement is not None:
        top1 = "" if plain.int8 is None else f"top-1 {100 * plain.int8.top1:.2f} %, "
        cost = f"{top1}agreement {100 * plain.agreement:.2f} %, KL {plain.kl:.4f} nats"
        _say(out, "plain grids", f"{cost}; the second INT8 graph of this run")


def _print_classes(out: Console, report: Report, accuracy: MeasuredAccuracy) -> None:
    table = make_table(out)
    for heading in ("", "top-1 %", "top-5 %"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("FP32 fused", *_shares(accuracy.fp32))
    table.add_row(f"INT8 for {report.target}", *_shares(accuracy.int8))
    out.print(table)
    if accuracy.drop_pts is not None:
        interval = ""
        if accuracy.drop_ci95_pts is not None:
            low, high = accuracy.drop_ci95_pts
            interval = f" (95 % interval {low:+.2f} to {high:+.2f})"
        _say(out, "accuracy drop", f"{accuracy.drop_pts:+.2f} points{interval}")
    if accuracy.agreement is not None:
        _say(out, "agreement", f"{100 * accuracy.agreement:.2f} % of images have the same best class")
    if accuracy.kl is not None:
        _say(out, "KL(FP32‖INT8)", f"{accuracy.kl:.4f} nats")


def print_tuning(report: Report) -> None:
    """Print what `tune` chose, what it won and what it cost."""
    tuning = report.tuning
    if tuning is None:
        return
    out = console()
    out.print(answer(tuning))
    if tuning.pays and tuning.added:
        out.print(
            f"`build-engine --config tuned.yaml` makes the same blocks floating point without images; the "
            f"{tuning.budget.replace('kl', 'KL')} is then {tuning.cost_without_images:.4f}"
        )
    out.print(how(tuning))
    if tuning.note:
        out.print(hanging("note: ", tuning.note))


def print_fine_tuning(report: Report) -> None:
    """Print what fine-tuning has changed, and accuracy before and after."""
    out, tuned = console(), report.qat
    if tuned is None:
        return
    kept = "" if tuned.kept_step == tuned.steps else f", of which step {tuned.kept_step} is kept"
    _say(out, "fine-tuned in", f"{tuned.seconds:.1f} s, {tuned.steps:,} steps{kept}")
    if tuned.changes is not None:
        changes = tuned.changes
        most = [block for block in changes.blocks[:MOST_CHANGED] if block.moved or block.scale_change]
        _say(out, "weight codes", f"{changes.moved:,} of {changes.codes:,} moved")
        _say(out, "scales", f"{changes.scales_moved:,} of {changes.scales:,} moved")
        for block in most:
            codes = f"{100 * block.moved / block.codes:.2f} % of codes"
            _say(out, "", f"{block.name}: {codes}, a scale by up to {100 * block.scale_change:.2f} %")
    before, after = tuned.before, report.accuracy
    if before is not None and after is not None:
        pairs = [("KL(FP32‖INT8)", before.kl, after.kl, 1, ".4f", " nats")]
        pairs += [("agreement", before.agreement, after.agreement, 100, ".2f", " %")]
        if before.int8 is not None and after.int8 is not None:
            pairs += [("top-1", before.int8.top1, after.int8.top1, 100, ".2f", " %")]
        for name, old, new, factor, form, unit in pairs:
            if old is not None and new is not None:
                _say(out, name, f"{factor * old:{form}}{unit} before, {factor * new:{form}}{unit} after")
        if before.cosine is not None and after.cosine is not None and not tuned.maps_before:
            _say(out, "cosine", f"{before.cosine.mean:.5f} before, {after.cosine.mean:.5f} after")
    for old_map, new_map in zip(tuned.maps_before, report.maps or ()):
        _say(out, new_map.name, f"cosine {old_map.cosine:.5f} before, {new_map.cosine:.5f} after")


def _shares(shares: TopK | None) -> tuple[str, str]:
    if shares is None:
        return "no labels", "no labels"
    return f"{100 * shares.top1:.2f}", f"{100 * shares.top5:.2f}"


def print_evaluation(score: MeasuredScore) -> None:
    """Print one engine's accuracy, the figure that was asked for first."""
    out = console()
    if score.top1 is None or score.top1_ci95_pct is None:
        out.print("no accuracy: the images have no labels; pass --data with a folder per class")
    else:
        low, high = score.top1_ci95_pct
        _say(out, "top-1", f"{100 * score.top1:.2f} % (95 % interval {low:.2f} to {high:.2f})")
    if score.top5 is not None:
        _say(out, "top-5", f"{100 * score.top5:.2f} %")
    parts = (("where right", score.confidence_right), ("where wrong", score.confidence_wrong))
    apart = "".join(f", {100 * value:.2f} % {where}" for where, value in parts if value is not None)
    _say(out, "confidence", f"{100 * score.confidence:.2f} % in the best class{apart}")
    _say(out, "engine", f"{score.engine}; {score.runtime}")
    labelled = "" if score.labelled == score.images else f", {score.labelled:,} of them with a label"
    skipped = f", {score.skipped:,} more could not be read" if score.skipped else ""
    _say(out, "images", f"{score.images:,} of {score.source}{labelled}{skipped}")
    if score.note:
        out.print(hanging("note: ", score.note))


def print_parity(parity: Parity) -> None:
    """Print every engine beside its reference, and why the others were not run."""
    out = console()
    out.print(
        f"Every engine at hand on the same {parity.images:,} images. Its logits are compared with those of "
        "the one in the column `against`: the largest difference of any logit, the same as a share of the "
        "largest logit, and how many images have the same best class. KL is from FP32 in PyTorch, and top-1 "
        "is by the labels."
    )
    table = make_table(out, gap=0)
    for heading in ("engine", "against"):
        table.add_column(heading, no_wrap=True)
    wide = (
        "difference\nfrom it", "relative\nto it", "agreement\nwith it",
        "KL from\nfp32 torch", "top-1 %\nby labels",
    )  # fmt: skip
    narrow = (
        "differ-\nence\nfrom it", "relative\nto it", "agrees\nwith it",
        "KL from\nFP32", "top-1 %\nby label",
    )  # fmt: skip
    for heading in narrow if is_narrow(out) else wide:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in parity.engines:
        table.add_row(
            row.name,
            row.reference,
            f"{row.largest_difference:.4f}",
            f"{100 * row.relative:.2f} %",
            f"{100 * row.agreement:.1f} %" if is_narrow(out) else f"{100 * row.agreement:.2f} %",
            f"{row.kl:.4f}",
            "no labels" if row.top1 is None else f"{100 * row.top1:.2f}",
        )
    out.print(table)
    for name, reason in parity.not_run.items():
        out.print(hanging("not run: ", f"{name}: {reason}"))


class RankedBlock(Protocol):
    """What quantizing one block alone costs; see ``BlockSensitivity`` in calibrate.sensitivity."""

    @property
    def name(self) -> str: ...
    @property
    def input_kl(self) -> float: ...
    @property
    def weight_kl(self) -> float: ...
    @property
    def input_drop_pts(self) -> float | None: ...
    @property
    def weight_drop_pts(self) -> float | None: ...
    @property
    def input_channels(self) -> tuple[int, ...]: ...
    @property
    def weight_channels(self) -> tuple[int, ...]: ...
    @property
    def branches(self) -> tuple[str, ...]: ...


def print_sensitivity(ranking: Sequence[RankedBlock], images: int) -> None:
    """Print the blocks by what quantizing each one alone costs, the costliest first."""
    out = console()
    out.print(f"each block quantized alone, {images} images; KL in nats, drop in top-1 points")
    table = make_table(out)
    table.add_column("block", no_wrap=True)
    between = "\n" if is_narrow(out) else " "
    for heading in ("KL inputs", "KL weights", "drop inputs", "drop weights"):
        table.add_column(heading.replace(" ", between), justify="right", no_wrap=True)
    table.add_column(f"input{between}channels", no_wrap=is_narrow(out))
    table.add_column(f"weight{between}channels", no_wrap=is_narrow(out))
    for block in ranking:
        drops = ("" if d is None else f"{d:+.2f}" for d in (block.input_drop_pts, block.weight_drop_pts))
        branches = () if is_narrow(out) else block.branches
        branches = branches or ("",) * len(block.input_channels)
        channels = (f"{c} ({b})" if b else str(c) for c, b in zip(block.input_channels, branches))
        table.add_row(
            block.name,
            f"{block.input_kl:.5f}",
            f"{block.weight_kl:.5f}",
            *drops,
            ", ".join(channels),
            ", ".join(map(str, block.weight_channels)),
        )
    out.print(table, width=min(out.width, TABLE_COLUMNS))
