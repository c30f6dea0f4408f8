"""Folding of a block's training branches and their batch norms into one convolution.

Everything in a block before SE and the activation is linear, so

    kernel = sum over branches b of kernel_b * gain_b,   gain_b = gamma_b / sqrt(var_b + eps)
    bias   = sum over branches b of beta_b - mean_b * gain_b

where the 1×1 and identity branches are written as k×k kernels that are zero except at the centre tap.
Source: Ding et al., "RepVGG" (arXiv:2101.03697), section 3.3. Everything is computed in float64.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileone_q.architecture.spec import BlockSpec
from mobileone_q.errors import FusionError
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fused import FusedBlock, FusedModel
from mobileone_q.models.layers import per_output_channel


@torch.no_grad()
def fuse_branches(model: Chain, dtype: torch.dtype = torch.float32) -> FusedModel:
    """Fuse a train-time model: fold in float64, then round to ``dtype``.

    A fused model comes back as a copy. The given model is left as it was.

    Raises:
        FusionError: a branch has no exact equivalent in the block's kernel, or a block's weights are
            not finite once they are rounded.
    """
    if isinstance(model, FusedModel):
        return _finite(copy.deepcopy(model).to(dtype))
    fused = FusedModel(model.arch).to(torch.float64)
    for name, block in model.blocks():
        result = fused.block(name)
        exact = copy.deepcopy(block).to(torch.float64)
        if isinstance(exact, MultiBranchBlock):
            weight, bias = fold_branches(exact)
            result.se = exact.se
        elif isinstance(exact, Classifier):
            weight, bias = fold_head(exact)
        else:
            raise FusionError(f"{name}: cannot fuse a {type(exact).__name__}; fuse the train-time model")
        result.weight.copy_(weight)
        result.bias.copy_(bias)
    return _finite(fused.eval().requires_grad_(False).to(dtype))


def _finite(fused: FusedModel) -> FusedModel:
    """The model, once every weight of it is known to be finite as it will be stored."""
    for name, block in fused.blocks():
        if not all(torch.isfinite(value).all() for value in block.state_dict().values()):
            raise FusionError(
                f"{name}: its fused weights are not finite as they would be stored: the checkpoint has "
                "NaN, huge values or a negative running variance there; fetch it again"
            )
    return fused


def fuse_in_place(chain: Chain) -> None:
    """Replace every block of a train-time chain by its fused form; a second call changes nothing.

    Parameters stay trainable if they were; device, dtype and training mode stay as they were.

    Raises:
        FusionError: a branch has no exact equivalent; the chain is then left as it was.
    """
    blocks = list(chain.blocks())
    if all(isinstance(block, FusedBlock) for _, block in blocks):
        return
    reference = next(chain.parameters())
    fused = fuse_branches(chain).to(reference.device, reference.dtype).requires_grad_(reference.requires_grad)
    for name, _ in blocks:
        path, _, leaf = name.rpartition(".")
        chain.get_submodule(path).add_module(leaf, fused.block(name).train(chain.training))


def fold_branches(block: MultiBranchBlock) -> tuple[Tensor, Tensor]:
    """Compute the (kernel, bias) of the convolution that equals the block's sum of branches.

    Gradients flow through it.
    """
    kernels, biases = zip(*branch_kernels(block).values())
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def branch_kernels(block: MultiBranchBlock) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute the (kernel, bias) of each branch by name: ``kxk.0``, ..., ``scale``, ``identity``.

    Every kernel has the size of the block's k×k ones.
    """
    spec = block.spec
    folded = {
        f"kxk.{index}": fold_batch_norm(branch.conv.weight, branch.bn)
        for index, branch in enumerate(block.conv_branches())
    }
    if block.scale is not None:
        kernel, bias = fold_batch_norm(block.scale.conv.weight, block.scale.bn)
        folded["scale"] = at_centre_tap(spec, kernel), bias
    if block.identity is not None:
        kernel, bias = fold_batch_norm(identity_kernel(spec).to(block.identity.weight), block.identity)
        folded["identity"] = at_centre_tap(spec, kernel), bias
    return folded


def fold_head(head: Classifier) -> tuple[Tensor, Tensor]:
    """Compute the (kernel, bias) of a head with its final batch norm, if any, folded in."""
    if head.bn is None:
        return head.weight, head.bias
    kernel, shift = fold_batch_norm(head.weight, head.bn)
    gain, _ = fold_batch_norm(torch.ones_like(head.bias), head.bn)
    return kernel, head.bias * gain + shift


def fold_batch_norm(kernel: Tensor, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold the batch norm (with its running statistics) that follows a convolution without bias.

    ``kernel`` is (C_out, ...); the result is the (kernel, bias) of the convolution that equals both.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    gain = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return kernel * per_output_channel(gain, kernel), bn.bias - bn.running_mean * gain


def identity_kernel(spec: BlockSpec) -> Tensor:
    """Build the 1×1 kernel, float64 (C, C / groups, 1, 1), that passes each channel through.

    Within a group, output channel i reads input channel i modulo the size of the group.
    """
    per_group = spec.in_channels // spec.groups
    kernel = torch.zeros(spec.out_channels, per_group, 1, 1, dtype=torch.float64)
    channels = torch.arange(spec.out_channels)
    kernel[channels, channels % per_group] = 1.0
    return kernel


def at_centre_tap(spec: BlockSpec, kernel: Tensor) -> Tensor:
    """Pad a 1×1 kernel with zeros to the size of the block's k×k kernels.

    The input of the branch is padded by :attr:`BlockSpec.skip_padding`, so that the centre tap reads
    the same position at any padding, stride and dilation.

    Raises:
        FusionError: a kernel of even size has no centre tap.
    """
    if any(size % 2 == 0 for size in spec.kernel):
        raise FusionError(
            f"{spec.name}: a {spec.kernel} kernel has no centre tap for the 1×1 and identity branches to "
            "land on, so they cannot be folded exactly; use odd sizes"
        )
    height, width = (size // 2 for size in spec.kernel)
    return F.pad(kernel, (width, width, height, height))
