"""The developers' folder of real weights and images, which a user's clone does not have."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared"
