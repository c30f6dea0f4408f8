"""MobileOne as it trains: a chain of blocks with all their branches."""

from __future__ import annotations

from mobileone_q.architecture.spec import Architecture
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import fuse_in_place


class MobileOne(Chain["MultiBranchBlock | Classifier"]):
    """The train-time network with all branches; weights are torch's initial ones until loaded."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch, lambda spec: Classifier(spec) if spec.is_head else MultiBranchBlock(spec))

    def switch_to_deploy(self) -> MobileOne:
        """Fuse every block in place, and return the network itself; the outputs stay the same."""
        fuse_in_place(self)
        return self
