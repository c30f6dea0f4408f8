#!/usr/bin/env python3
"""Measure an engine's accuracy on this device, and say whether it keeps what the run promised.

    python3 score.py model.plan FOLDER

FOLDER has a folder of images per class, as for `mobileone-q calibrate`; without labels only the
comparison with the reference is made. Images are read as run_image.py reads them, one at a time. Where
the bundle has reference.npz (`build-engine --bundle DIR --with-reference FOLDER`), images of the same
name are also compared with the FP32 network's logits, which tells a broken engine from unlucky images.

Writes score.json beside this file: `mobileone-q profile --from score.json` and `mobileone-q report RUN
--from score.json` read it back, with the times that build.sh recorded. The exit code is 1 where the
promise is not kept. Needs TensorRT and NumPy, and nothing else. Runs on Python 3.8 and later.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from run_image import (  # type: ignore[import-not-found]  # it stands beside this file in a bundle
    TO_DEVICE,
    TO_HOST,
    Cuda,
    laid_out,
    preprocess,
    read_array,
    read_image,
    read_labels,
    read_settings,
    read_text,
)

HERE = Path(__file__).resolve().parent
SCHEMA = 1
SUFFIXES = (".ppm", ".npy", ".png", ".jpg", ".jpeg", ".bmp", ".webp")
SIGMAS = 3.0  # chance alone is further away in one case of 400
SLACK = 0.01  # another order of sums, and FP16 between convolutions, flip a few images of a hundred
KL_FACTOR, KL_SLACK = 1.5, 0.002


class Session:
    """A loaded engine that runs one input after the other."""

    def __init__(self, path: Path) -> None:
        import tensorrt as trt

        self.version, self.cuda = str(trt.__version__), Cuda()
        self.logger = trt.Logger()  # outlives the runtime, which reports to it
        self.runtime = trt.Runtime(self.logger)
        if hasattr(self.runtime, "engine_host_code_allowed"):  # for engines that bring their own runtime
            self.runtime.engine_host_code_allowed = True
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            sys.exit(f"TensorRT cannot load {path}; build it again on this device with build.sh")
        self.context = self.engine.create_execution_context()
        self.places: dict[str, Any] = {}

    def __call__(self, x: np.ndarray, settings: dict) -> np.ndarray:
        """Logits (classes,) of one input, a batch of one; ``settings`` are those of preprocessing.json."""
        self.context.set_input_shape("input", tuple(x.shape))
        logits = np.empty(tuple(self.context.get_tensor_shape("logits")), np.float32)
        given = laid_out(x, settings)
        if not self.places:
            self.places = {
                "input": self.cuda.allocate(given.nbytes),
                "logits": self.cuda.allocate(logits.nbytes),
            }
        for name, address in self.places.items():
            self.context.set_tensor_address(name, address.value)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (given, logits)]
        self.cuda.copy(self.places["input"], pointers[0], given.nbytes, TO_DEVICE)
        if not self.context.execute_async_v3(0):
            sys.exit("the engine failed to run; its batch range may exclude a single image")
        self.cuda("cudaDeviceSynchronize")
        self.cuda.copy(pointers[1], self.places["logits"], logits.nbytes, TO_HOST)
        return logits[0]


def key_of(path: Path, root: Path) -> str:
    """What an image is called on every machine: its path in the folder, without the suffix."""
    return path.relative_to(root).with_suffix("").as_posix()


def find_images(root: Path) -> list:
    """The images in a folder and below, in order."""
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        sys.exit(f"there is no image in {root}; pass a folder with a folder of images per class")
    return found


def class_numbers(root: Path, labels: list) -> dict:
    """The number of each class folder, by the rule that calibration follows.

    Where the folder, or the one above it, has a classes.txt, its lines begin with the folders' names in
    order. Else folders are named as in labels.txt, or there is one for each class, in sorted order.
    """
    for listing in (root / "classes.txt", root.parent / "classes.txt"):
        if listing.is_file():
            try:
                lines = listing.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                sys.exit(f"cannot read {listing}: {error}; save it as UTF-8 text, one class a line")
            return {line.split()[0]: number for number, line in enumerate(lines) if line.strip()}
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if folders and all(folder in labels for folder in folders):
        return {folder: labels.index(folder) for folder in folders}
    if len(folders) == len(labels):
        return {folder: number for number, folder in enumerate(folders)}
    return {}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) to softmax(logits)) of each row, in nats."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(-1)


def lowest(share: float, images: int, promised_on: float = math.inf) -> float:
    """The least share that chance explains, where ``share`` was promised on other images."""
    spread = share * (1 - share)
    return share - SIGMAS * math.sqrt(spread / images + spread / promised_on) - SLACK


def judge(accuracy: dict, promise: dict) -> tuple:
    """(``kept``, ``broken`` or ``unknown``; the reason, in one line) of what was measured.

    ``accuracy`` has ``compared`` images with a reference and ``labelled`` ones; ``promise`` is what the
    run measured, and ``accuracy["expected"]`` is that on the very images that were compared.
    """
    said, broken = [], []
    if accuracy["compared"]:
        expected, n = accuracy["expected"], accuracy["compared"]
        least, most = lowest(expected["agreement"], n), KL_FACTOR * expected["kl"] + KL_SLACK
        said.append(
            "agreement {:.2f} % (promised {:.2f} %), KL {:.4f} (promised {:.4f}) on {} images".format(
                100 * accuracy["agreement"], 100 * expected["agreement"], accuracy["kl"], expected["kl"], n
            )
        )
        if not (accuracy["agreement"] >= least and accuracy["kl"] <= most):
            broken.append(
                f"agreement must be at least {100 * least:.2f} %, and KL at most {most:.4f} nats; "
                "rebuild with build.sh, and send score.json to the maintainers"
            )
    if accuracy["labelled"] and promise["top1"] is not None:
        least = lowest(promise["top1"], accuracy["labelled"], promise["images"])
        said.append(
            "top-1 {:.2f} % (promised {:.2f} %) on {} images".format(
                100 * accuracy["top1"], 100 * promise["top1"], accuracy["labelled"]
            )
        )
        if not accuracy["compared"] and accuracy["top1"] < least:
            broken.append(f"top-1 must be at least {100 * least:.2f} %; are these images of the same kind?")
    if broken:
        return "broken", "; ".join(said + broken)
    if not said:
        return "unknown", "no image has a label or a reference, so nothing can be compared"
    return "kept", "; ".join(said)


def measure(session: Session, root: Path, settings: dict, labels: list, reference: dict) -> dict:
    """Run every image of a folder and compare."""
    outputs: list = []
    truths: list = []
    places: list = []
    skipped = 0
    known = {str(name): index for index, name in enumerate(reference.get("names", ()))}
    numbers = class_numbers(root, labels)
    for number, path in enumerate(find_images(root), 1):
        try:
            is_array = settings["takes"] == "array"
            x = read_array(path, settings["shape"]) if is_array else preprocess(read_image(path), settings)
        except Exception as error:  # a damaged file can make NumPy and Pillow raise anything
            print(f"skipped {path}: {' '.join(str(error).split())}", file=sys.stderr)
            skipped += 1
            continue
        logits = session(np.ascontiguousarray(x), settings)
        if len(logits) != len(labels):
            sys.exit(
                f"the engine gives {len(logits)} values and this bundle's network {len(labels)}: it is not "
                "an engine of this bundle; build one with build.sh"
            )
        if not np.isfinite(logits).all():
            sys.exit(f"the engine gives values that are not finite for {path}; build it again with build.sh")
        place = known.get(key_of(path, root), -1)
        outputs.append(logits)
        places.append(place)
        folder = path.relative_to(root).parts[0]
        truths.append(int(reference["labels"][place]) if place >= 0 else numbers.get(folder, -1))
        if number % 50 == 0:
            print(f"{number} images", file=sys.stderr)
    if not outputs:
        sys.exit(f"no image in {root} can be read; convert them to PPM, or pip install pillow")
    given, truth, at = np.stack(outputs), np.array(truths), np.array(places)
    labelled, compared = truth >= 0, at >= 0
    accuracy: dict[str, Any] = {"images": len(given), "skipped": skipped, "labelled": int(labelled.sum())}
    accuracy["top1"] = float((given.argmax(1) == truth)[labelled].mean()) if labelled.any() else None
    accuracy.update({"compared": int(compared.sum()), "agreement": None, "kl": None, "expected": None})
    if compared.any():
        fp32, chosen = reference["logits"][at[compared]], given[compared]
        accuracy["agreement"] = float((fp32.argmax(1) == chosen.argmax(1)).mean())
        accuracy["kl"] = float(kl(fp32, chosen).mean())
        accuracy["expected"] = {
            "agreement": float(reference["agrees"][at[compared]].mean()),
            "kl": float(reference["kl"][at[compared]].mean()),
        }
    return accuracy


def recorded(engine: Path) -> dict:
    """What build.sh recorded beside an engine: the inspector's JSON and the times per layer."""
    found = {}
    for part in ("profile", "layers"):
        path = engine.with_name(f"{engine.name}.{part}.json")
        if path.is_file():
            found[part] = read_json(path, "build the engine again with build.sh")
    return found


def state_of(engine: Path) -> Any:
    """The device's power mode, clocks and power while build.sh timed the engine; None without a record."""
    path = engine.with_name(f"{engine.name}.device.json")
    return read_json(path, "build the engine again with build.sh") if path.is_file() else None


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file, or end with what is wrong with it."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        sys.exit(f"cannot read {path}: {error}; {remedy}")


def board() -> str:
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n ")
    except OSError:
        return "unknown device"


def load_reference(folder: Path, grids: str, classes: int) -> dict:
    """The FP32 logits that travel with the bundle, and what the graph on these grids does with them."""
    path = folder / "reference.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("names", "labels", "logits")}
            found.update({name: file[f"{grids}_{name}"] for name in ("agrees", "kl")})
        count = len(found["names"])
        kinds = {"names": "U", "labels": "iu", "agrees": "b", "kl": "f", "logits": "f"}
        is_sound = all(found[name].dtype.kind in kind for name, kind in kinds.items())
        is_sound = is_sound and found["logits"].shape == (count, classes)
        is_sound = is_sound and all(found[name].shape == (count,) for name in ("labels", "agrees", "kl"))
        is_sound = is_sound and bool(np.isfinite(found["logits"]).all() and np.isfinite(found["kl"]).all())
    except Exception as error:  # a damaged file can make NumPy raise anything
        sys.exit(f"cannot read {path}: {' '.join(str(error).split())}; copy the bundle again")
    if not is_sound:
        sys.exit(f"{path} has values that cannot be; copy the bundle again")
    return found


def read_promise(folder: Path, engine: Path) -> tuple:
    """What promise.json says of the network, and of the graph that an engine was built from, by its grids."""
    path = folder / "promise.json"
    promises = read_json(path, "copy the bundle again")
    try:
        choice = engine.with_name(f"{engine.name}.grids")
        grids = choice.read_text().strip() if choice.is_file() else next(iter(promises["graphs"]))
        promise = promises["graphs"][grids]
        shares = [promise["top1"]] if promise["top1"] is not None else []
        is_sound = all(0 <= share <= 1 for share in shares) and bool(shares) <= promise["images"] < 10**12
        needed = (promises["arch"], promises["precision"], promise["graph_sha256"])
        is_sound = is_sound and all(isinstance(word, str) for word in needed) and "keep_float" in promises
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        sys.exit(f"cannot read {path}: {error!r}; copy the bundle again")
    if not is_sound:
        sys.exit(f"{path} has values that cannot be; copy the bundle again")
    return promises, promise, grids


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python3 score.py model.plan FOLDER")
    engine, root = Path(sys.argv[1]), Path(sys.argv[2])
    if not os.path.isfile(engine):  # Path.is_file() raises an error for a path that is too long
        sys.exit(f"there is no engine at {engine}; build it with build.sh")
    if not os.path.isdir(root):
        sys.exit(f"{root} is not a folder; pass a folder with a folder of images per class")
    settings, labels = read_settings(HERE / "preprocessing.json"), read_labels(HERE / "labels.txt")
    promises, promise, grids = read_promise(HERE, engine)
    reference = load_reference(HERE, grids, len(labels))
    session = Session(engine)
    accuracy = measure(session, root, settings, labels, reference)
    verdict, reason = judge(accuracy, promise)
    score = {
        "schema": SCHEMA,
        "arch": promises["arch"],
        "device": board(),
        "batch": 1,
        "score": {
            "verdict": verdict,
            "reason": reason,
            "grids": grids,
            "precision": promises["precision"],
            "graph_sha256": promise["graph_sha256"],
            "engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
            "runtime": f"tensorrt {session.version}",
            "promised_top1": promise["top1"],
            "state": state_of(engine),
            **accuracy,
        },
        "engines": {promises["precision"]: {"version": session.version, **recorded(engine)}},
        "keep_float": promises["keep_float"],
    }
    try:
        (HERE / "score.json").write_text(json.dumps(score, indent=1) + "\n")
    except OSError as error:
        sys.exit(f"cannot write {HERE / 'score.json'}: {error}; copy the bundle to a folder you may write to")
    print(f"promise {verdict}: {reason}")
    sys.exit(1 if verdict == "broken" else 0)


if __name__ == "__main__":
    main()
