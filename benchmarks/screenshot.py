"""Draw the picture of the report in README.md: the first screen of a run's report.html.

    apt-get install chromium
    make demo
    python benchmarks/screenshot.py runs/s0

Writes ``docs/img/report.png``. The page loads nothing, so the picture depends on the run, on Chromium, and on
the fonts that are installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

PICTURE = Path(__file__).parents[1] / "docs" / "img" / "report.png"
NAMES = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 128  # of the palette: text stays clear, and the file a third as large


def screenshot(page: Path, picture: Path, width: int, height: int) -> None:
    """Save the first ``height`` pixels of a page, at a width in pixels, as a PNG with a palette."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("Chromium is not installed; apt-get install chromium")
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        size = f"--window-size={width},{height}"
        command = [browser, *flags, size, f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args()
    screenshot(given.run / "report.html", given.output, given.width, given.height)
    print(f"{given.output}: {given.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
