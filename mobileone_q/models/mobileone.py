"""MobileOne as it trains: a chain of blocks with all their branches."""

from __future__ import annotations

from mobileone_q.architecture.spec import Architecture
from mobileone_q.models.branches import Classifier, MultiBranchBlock
from mobileone_q.models.chain import Chain
from mobileone_q.models.fuse import switch_to_deploy


class MobileOne(Chain["MultiBranchBlock | Classifier"]):
    """The train-time network with all branches; weights are torch's defaults until loaded."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch, lambda s: Classifier(s) if s.is_head else MultiBranchBlock(s))

    def switch_to_deploy(self) -> MobileOne:
        """Fuse every block in place; the outputs stay the same. Returns itself."""
        switch_to_deploy(self)
        return self
