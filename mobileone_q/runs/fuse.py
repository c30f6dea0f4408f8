"""The command `fuse`: from a checkpoint with training branches to a file without."""

from __future__ import annotations

from pathlib import Path

from mobileone_q.checkpoints.load import save_fused
from mobileone_q.data.inputs import certificate_images
from mobileone_q.errors import RunError
from mobileone_q.models.certificate import Certificate, certify
from mobileone_q.models.fuse import fuse_branches
from mobileone_q.runs.model import load
from mobileone_q.runs.settings import FuseOptions


def fuse_file(src: Path, dst: Path, options: FuseOptions) -> tuple[str, Certificate, int]:
    """Fuse a checkpoint into a file: (what was done, in words, the certificate, parameters).

    Raises:
        RunError: ``dst`` exists.
        CheckpointError: ``src`` cannot be used, or ``dst`` cannot be written in that layout.
        FusionError: the fused weights are not finite, or further from ``src`` than rounding explains.
    """
    if dst.exists():
        raise RunError(f"{dst} exists; choose another name, so that nothing is lost")
    model = load(src, options.arch, options.image_size)
    fused = fuse_branches(model.network)
    certificate = certify(model.network, certificate_images(options.data, model.arch))
    certificate.judge()
    save_fused(fused, dst, options.layout, certificate=certificate.to_dict())
    state = "was fused already" if model.is_fused else "fused"
    return state, certificate, sum(p.numel() for p in fused.parameters())
