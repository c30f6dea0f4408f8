#!/usr/bin/env python3
"""Classify one image with a TensorRT engine; needs TensorRT and NumPy, and nothing else.

    python3 run_image.py model.plan image.ppm

Reads binary PPM (P6) and .npy (uint8, height x width x RGB), and any other format where Pillow is
installed. Where preprocessing.json says that the network takes an array, reads that from .npy: of
the shape given there, and already normalized. Where it says that the engine takes uint8, the engine
gets the pixels and normalizes them itself. preprocessing.json and labels.txt stand beside this file.
Runs on Python 3.8 and later.

TensorRT reads and writes addresses on the device. Neither torch nor PyCUDA is needed for them:
ctypes makes four calls of the CUDA runtime's C library. cudaMalloc reserves bytes, cudaMemcpy moves
them (1: to the device, 2: back; it waits for the work before it), cudaFree releases them, and
cudaDeviceSynchronize waits. Stream 0 is the default one. Set CUDART to the library's path where it
is not found.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TO_DEVICE, TO_HOST = 1, 2
# Width, height and largest value; comments run to the end of a line, and one space ends the header.
PPM = re.compile(rb"P6" + rb"(?:\s|#[^\n]*\n)+(\d{1,6})" * 3 + rb"\s")
MOST_PIXELS = 65536  # a side
MOST_SCALED = 1 << 25  # pixels of a scaled image; a long and thin one grows with the square of its length
# What Pillow may take a file for. It runs Ghostscript on an EPS file, whatever its name ends in.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF", "JPEG2000")


def refuse_special(path: Path) -> None:
    """Raise an OSError for a pipe or a folder: a pipe could be waited for without end."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a plain file")


def read_text(path: Path) -> str:
    """Read the text of a plain file."""
    refuse_special(path)
    return path.read_text(encoding="utf-8")


def read_image(path: Path) -> np.ndarray:
    """Read an image as uint8 (height, width, 3), RGB."""
    if path.suffix == ".npy":
        return np.load(path)
    data = path.read_bytes()
    header = PPM.match(data)
    if header:
        width, height, largest = map(int, header.groups())
        if largest != 255:
            sys.exit(
                f"{path} has values up to {largest}, and only 255 can be read; save it with 8 bits a channel"
            )
        pixels = np.frombuffer(data, np.uint8, width * height * 3, header.end())
        return pixels.reshape(height, width, 3)
    try:
        from PIL import Image
    except ImportError:
        sys.exit(f"cannot read {path}: convert it to PPM or .npy, or pip install pillow")
    image = Image.open(path, formats=FORMATS)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # 16-bit grey
        grey = np.clip(np.rint(np.asarray(image).astype(np.float64) / 257), 0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode in ("I", "F"):
        sys.exit(f"{path} has 32-bit pixels, whose range is not known; save it with 8 or 16 bits a channel")
    return np.asarray(image.convert("RGB"))


def read_array(path: Path, shape: list) -> np.ndarray:
    """float32 (1, channels, height, width) of an array that is already normalized.

    ``shape`` is (channels, height, width). A signal, of height 1, may be (channels, length).
    """
    if path.suffix != ".npy":
        sys.exit(f"this network takes an array of shape {tuple(shape)}, not {path}; save one with numpy.save")
    array = np.load(path)
    accepted = [tuple(shape), (1, *shape)]
    if shape[1] == 1:
        accepted.append((shape[0], shape[2]))
    if array.shape not in accepted:
        sys.exit(f"{path} has shape {array.shape}, and this network takes {tuple(shape)}")
    return np.ascontiguousarray(array, np.float32).reshape(1, *shape)


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of a triangle filter, as Pillow's BILINEAR: it widens when it shrinks."""
    scale = source / target
    support = max(scale, 1.0)
    centers = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source) + 0.5 - centers[:, None]) / support
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(1, keepdims=True)


def scale(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize an image (height, width, 3) as Pillow's BILINEAR does, rounding after each direction."""
    height, width = image.shape[:2]
    if (height, width) == (rows, columns):
        return image
    across = np.einsum("xw,hwc->hxc", resize_matrix(width, columns), image.astype(np.float64))
    across = np.clip(np.floor(across + 0.5), 0, 255)
    both = np.einsum("yh,hxc->yxc", resize_matrix(height, rows), across)
    return np.clip(np.floor(both + 0.5), 0, 255)


def preprocess(image: np.ndarray, settings: dict) -> np.ndarray:
    """Make an engine's input of an image: resize, crop the center, and normalize where it takes floats.

    Gives float32 (1, 3, crop, crop), or uint8 (1, height, width, 3) for an engine that takes pixels. Its
    size is ``crop``, or that of a camera's frame, which the image is made to fill.
    """
    height, width = image.shape[:2]
    wanted = settings.get("camera_size", [settings["crop"]] * 2)
    if "camera_size" in settings:
        sides = [max(wanted[0], round(height * wanted[1] / width))]
        sides.append(max(wanted[1], round(width * wanted[0] / height)))
    else:
        short = settings["resize"]
        sides = [max(1, round(side * short / min(height, width))) for side in (height, width)]
    if sides[0] * sides[1] > max(MOST_SCALED, 16 * wanted[0] * wanted[1]):
        raise ValueError(f"too long and thin: it would be scaled to {sides[1]} x {sides[0]} pixels; cut it")
    image = scale(image, sides[0], sides[1])
    top, left = ((side - size) // 2 for side, size in zip(image.shape, wanted))
    image = image[top : top + wanted[0], left : left + wanted[1]]
    if settings.get("dtype") == "uint8":
        ordered = image[..., ::-1] if settings["channels"] == "BGR" else image
        return np.ascontiguousarray(ordered, np.uint8)[None]
    unit = image.astype(np.float32) / np.float32(255)
    normal = (unit - np.asarray(settings["mean"], np.float32)) / np.asarray(settings["std"], np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def read_settings(path: Path) -> dict:
    """Read and check preprocessing.json."""
    try:
        settings = json.loads(read_text(path))
        if settings["takes"] == "array":
            is_sound = len(settings["shape"]) == 3 and all(map(_is_side, settings["shape"]))
        else:
            numbers = np.array([settings["mean"], settings["std"]], np.float64)
            is_sound = numbers.shape == (2, 3) and bool(np.isfinite(numbers).all() and (numbers[1] > 0).all())
            is_sound = is_sound and _is_side(settings["resize"]) and _is_side(settings["crop"])
            is_sound = is_sound and settings.get("dtype", "float32") in ("float32", "uint8")
            is_sound = is_sound and settings.get("channels", "RGB") in ("RGB", "BGR")
            frame = settings.get("camera_size", [1, 1])
            is_sound = is_sound and len(frame) == 2 and all(map(_is_side, frame))
            is_sound = is_sound and 0 < float(settings.get("dla_scale", 1)) < float("inf")
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        sys.exit(f"cannot read {path}: {error!r}; copy the bundle again")
    if not is_sound:
        sys.exit(f"{path} has values that cannot be; copy the bundle again")
    return settings


def read_labels(path: Path) -> list:
    """Read labels.txt: a name for each class, one a line."""
    try:
        return read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"cannot read {path}: {error}; copy the bundle again")


def laid_out(x: np.ndarray, settings: dict) -> np.ndarray:
    """What goes to the device of an input (N, C, H, W): itself, or INT8 in DLA's layout for images.

    The latter where preprocessing.json has a ``dla_scale``, the real value of one step: [N][H][W][4], where
    rows begin at multiples of 64 bytes, and a channel that is not there is 0 (TensorFormat::kDLA_HWC4 in
    NvInferRuntimeBase.h of TensorRT 10.3). Here the width is a multiple of 16, so that no row needs filling.
    """
    if "dla_scale" not in settings:
        return x
    count, channels, height, width = x.shape
    codes = np.zeros((count, height, width, 4), np.int8)
    steps = np.clip(np.rint(x / np.float32(settings["dla_scale"])), -128, 127)
    codes[..., :channels] = steps.transpose(0, 2, 3, 1)
    return codes


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_PIXELS


def read_input(path: Path, settings_path: Path) -> np.ndarray:
    """Make the engine's input, a batch of one, of an image or an array."""
    settings = read_settings(settings_path)
    try:
        refuse_special(path)
        if settings["takes"] == "array":
            return read_array(path, settings["shape"])
        return preprocess(read_image(path), settings)
    except Exception as error:  # a damaged file can make NumPy and Pillow raise anything
        sys.exit(f"cannot read {path}: {' '.join(str(error).split()) or type(error).__name__}")


class Cuda:
    """Calls the CUDA runtime, and ends the program with the error of a call that fails."""

    def __init__(self) -> None:
        names = [os.environ.get("CUDART"), ctypes.util.find_library("cudart"), "libcudart.so"]
        for name in filter(None, names):
            try:
                self.library = ctypes.CDLL(str(name))
                break
            except OSError:
                continue
        else:
            sys.exit("the CUDA runtime library is not found; set CUDART=/usr/local/cuda/lib64/libcudart.so")

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            sys.exit(f"{name} failed with CUDA error {status}")

    def allocate(self, size: int) -> ctypes.c_void_p:
        address = ctypes.c_void_p()
        self("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def copy(self, target: Any, source: Any, size: int, direction: int) -> None:
        self("cudaMemcpy", target, source, ctypes.c_size_t(size), direction)


def run(engine_path: Path, x: np.ndarray, settings: dict) -> np.ndarray:
    """Logits (N, classes) of a batch of what the engine takes; ``settings`` are preprocessing.json's."""
    import tensorrt as trt

    cuda = Cuda()
    logger = trt.Logger()
    runtime = trt.Runtime(logger)
    if hasattr(runtime, "engine_host_code_allowed"):  # a version-compatible engine brings its own runtime
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(engine_path.read_bytes())
    if engine is None:
        sys.exit(f"TensorRT cannot load {engine_path}; build it again on this device with build.sh")
    context = engine.create_execution_context()
    context.set_input_shape("input", tuple(x.shape))
    logits = np.empty(tuple(context.get_tensor_shape("logits")), np.float32)
    given = laid_out(x, settings)
    on_device = {"input": cuda.allocate(given.nbytes), "logits": cuda.allocate(logits.nbytes)}
    cuda.copy(on_device["input"], ctypes.c_void_p(given.ctypes.data), given.nbytes, TO_DEVICE)
    for name, address in on_device.items():
        context.set_tensor_address(name, address.value)
    if not context.execute_async_v3(0):
        sys.exit("the engine failed to run; its batch range may exclude a single image")
    cuda("cudaDeviceSynchronize")
    cuda.copy(ctypes.c_void_p(logits.ctypes.data), on_device["logits"], logits.nbytes, TO_HOST)
    for address in on_device.values():
        cuda("cudaFree", address)
    return logits


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python3 run_image.py model.plan image.ppm (or array.npy)")
    if not os.path.isfile(sys.argv[1]):  # Path.is_file() raises an error for a path that is too long
        sys.exit(f"there is no engine at {sys.argv[1]}; build it with build.sh")
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # for terminals without UTF-8
    labels = read_labels(HERE / "labels.txt")
    x = read_input(Path(sys.argv[2]), HERE / "preprocessing.json")
    logits = run(Path(sys.argv[1]), x, read_settings(HERE / "preprocessing.json"))[0]
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    for index in np.argsort(-logits, kind="stable")[:5]:
        label = labels[index] if index < len(labels) else f"class {index}"
        print(f"{100 * probabilities[index]:5.1f} %  {label}")


if __name__ == "__main__":
    main()
