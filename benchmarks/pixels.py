"""What it wins and costs that a graph takes pixels, against preprocessing in NumPy and a float graph.

    python benchmarks/pixels.py runs/s0 val/ [--images 400] [--framed 100] [--runs 200] [--threads 1]

RUN is a run on images of a network with classes, whose graphs take floats. Its graphs are exported again to
a temporary folder, and ONNX Runtime runs them. Prints three Markdown tables:

1. equality: on how many images the class is the same, and the largest difference of logits;
2. time from a decoded image of the network's size, uint8 (H, W, 3), to logits, interleaved; NumPy makes
   the float input with one multiplication and one addition, which is quicker than three operations. The
   processor time of the calling thread holds on a busy machine too; with --threads 1 it is all of the work;
3. frames of a camera, scaled in the graph, beside the same frames scaled by Pillow. Every image is made to
   fill the frame first, so that the network's own resize is all that differs. The difference of pixels is
   in steps of 255.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mobileone_q as mq  # before torch and onnxruntime

import numpy as np  # isort: skip
import onnx  # isort: skip
import onnxruntime as ort  # isort: skip
from PIL import Image  # isort: skip

from mobileone_q import engines
from mobileone_q.data.inputs import as_source
from mobileone_q.data.sources import ImageSource
from mobileone_q.engines import BuildOptions, Engine
from mobileone_q.evaluation.metrics import kl_divergences
from mobileone_q.export.graph import export_onnx
from mobileone_q.input_form import InputForm
from mobileone_q.runs.engines.engine_inputs import engine_input

FRAMES = ((480, 640), (720, 1280), (1080, 1920))
Answers = Callable[[Image.Image], np.ndarray]


class Study:
    """Engines of one network in several forms of input, and the images to ask them about."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        run = mq.open_run(args.run)
        manifest = run.read_manifest()
        if manifest.preprocessing is None or manifest.input.is_pixels:
            raise SystemExit(f"{args.run} is not a run on images whose graphs take floats")
        self.transform, self.folder, self.args = manifest.preprocessing, folder, args
        self.network = run.load_quantized() if args.precision == "int8" else run.load_fused()
        source = as_source(args.images_folder, self.network.arch, self.transform)
        if not isinstance(source, ImageSource):
            raise SystemExit(f"{args.images_folder} is not a folder of images")
        self.source, self.chosen = source, range(len(source))[: args.images]

    def graph(self, form: InputForm) -> Path:
        """Where the graph stands whose input has that form."""
        return self.folder / f"graph{form.suffix}.onnx"

    def engine(self, form: InputForm) -> Engine:
        """The network as an ONNX Runtime engine whose input has that form."""
        backend, graph = engines.backend("onnxruntime"), self.graph(form)
        export_onnx(self.network, graph, preprocessing=self.transform.to_dict(), input_form=form)
        path = self.folder / f"engine{form.suffix}.onnx"
        options = BuildOptions(self.args.precision, threads=self.args.threads)
        backend.build(graph, path, options)
        return backend.load(path, graph, self.args.threads)

    def logits(self, answer: Answers) -> np.ndarray:
        """Logits (images, classes)."""
        return np.concatenate([answer(image) for image in self.images()])

    def images(self) -> Iterator[Image.Image]:
        """The images, one after the other."""
        for index in self.chosen:
            with self.source.open(index) as image:
                yield image


def table(*rows: tuple[Any, ...]) -> None:
    head, *rest = rows
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rest:
        print("| " + " | ".join(map(str, row)) + " |")


def outside(study: Study, engine: Engine, image: Image.Image) -> np.ndarray:
    """Logits of an image that is normalized before the engine."""
    return engine.run(study.transform(image)[None])


def inside(study: Study, engine: Engine, image: Image.Image) -> np.ndarray:
    """Logits of an image that the engine gets as pixels."""
    return engine.run(engine_input(image, study.transform, engine.info.input)[None])


def equality(study: Study) -> None:
    """Print the first table."""
    expected = study.logits(partial(outside, study, study.engine(InputForm())))
    rows = []
    for form in (InputForm("uint8"), InputForm("uint8", "bgr")):
        logits = study.logits(partial(inside, study, study.engine(form)))
        same = int((logits.argmax(1) == expected.argmax(1)).sum())
        rows.append((form.describe(), f"{same} of {len(logits)}", f"{np.abs(logits - expected).max():.2g}"))
    table(("input", "same class", "largest difference of logits"), *rows)


def times(study: Study) -> None:
    """Print the second table."""
    pixels = np.random.default_rng(0).integers(0, 256, (*study.network.arch.image_size, 3), np.uint8)
    std = np.asarray(study.transform.std, np.float32)
    gain, offset = 1 / (255 * std), -np.asarray(study.transform.mean, np.float32) / std
    gain, offset = (each.astype(np.float32).reshape(3, 1, 1) for each in (gain, offset))
    floats, takes_pixels = study.engine(InputForm()), study.engine(InputForm("uint8"))
    ready = study.transform.normalize(pixels.transpose(2, 0, 1))[None]
    actions: dict[str, Callable[[], object]] = {
        "float engine alone": lambda: floats.run(ready),
        "NumPy (2 operations) + float engine": lambda: floats.run(
            (np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) * gain + offset)[None]
        ),
        "Preprocessing.normalize + float engine": lambda: floats.run(
            np.ascontiguousarray(study.transform.normalize(pixels.transpose(2, 0, 1))[None])
        ),
        "uint8 engine": lambda: takes_pixels.run(pixels[None]),
    }
    wall: dict[str, list[float]] = {name: [] for name in actions}
    processor: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(study.args.runs):
        for name, action in actions.items():
            started, worked = time.perf_counter(), time.thread_time()
            action()
            processor[name].append(1000 * (time.thread_time() - worked))
            wall[name].append(1000 * (time.perf_counter() - started))
    own = np.median(processor["uint8 engine"])
    rows = []
    for name in actions:
        cpu = np.median(processor[name])
        rows.append((name, f"{np.median(wall[name]):.3f}", f"{cpu:.3f}", f"{cpu / own:.2f}"))
    head = (
        "from pixels to logits",
        "median, ms",
        "of the thread's processor time",
        "times the uint8 engine's",
    )
    table(head, *rows)


def pixel_difference(study: Study, form: InputForm, image: Image.Image) -> np.ndarray:
    """How far the scaled and cropped pixels of a frame are from Pillow's, in steps of 255."""
    part = study.folder / f"part{form.suffix}.onnx"
    if not part.is_file():
        onnx.utils.extract_model(str(study.graph(form)), str(part), ["input"], ["pixels/shift:0"])
    session = ort.InferenceSession(part.read_bytes(), providers=["CPUExecutionProvider"])
    frame = engine_input(image, study.transform, form)
    (scaled,) = session.run(None, {"input": frame[None]})
    wanted = study.transform.to_pixels(Image.fromarray(frame)).astype(np.float32)
    return np.abs(study.transform.read_back(scaled[0]) - wanted).ravel()[::97]


def frames(study: Study) -> None:
    """Print the third table."""
    floats, rows = study.engine(InputForm()), []
    for size in FRAMES:
        form = InputForm("uint8", "rgb", size)

        def framed(image: Image.Image, form: InputForm = form) -> Image.Image:
            return Image.fromarray(engine_input(image, study.transform, form))

        engine = study.engine(form)
        expected = study.logits(lambda image: outside(study, floats, framed(image)))
        logits = study.logits(partial(inside, study, engine))
        steps = np.concatenate([pixel_difference(study, form, image) for image in study.images()])
        labels = np.array([study.source.label(index) for index in study.chosen])
        right = [(each.argmax(1) == labels)[labels >= 0].mean() * 100 for each in (expected, logits)]
        rows.append(
            (
                f"{size[0]}x{size[1]}",
                f"{steps.mean():.2f}",
                f"{np.percentile(steps, 99):.1f}",
                f"{100 * (logits.argmax(1) == expected.argmax(1)).mean():.2f} %",
                f"{kl_divergences(expected, logits).mean():.4f}",
                f"{right[0]:.2f} %",
                f"{right[1]:.2f} %",
            )
        )
    head = (
        "frame",
        "pixels differ by, mean",
        "99 %",
        "same class as with Pillow",
        "KL, nats",
        "top-1 with Pillow",
        "top-1 inside",
    )
    table(head, *rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images_folder", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--framed", type=int, default=100, help="images for the third table")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(args, Path(folder))
        equality(study)
        times(study)
        study.chosen = study.chosen[:: max(1, len(study.chosen) // args.framed)][: args.framed]
        frames(study)


if __name__ == "__main__":
    main()
