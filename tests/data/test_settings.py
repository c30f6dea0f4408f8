import subprocess
import sys


def test_options_are_read_without_heavy_imports():
    code = (
        "import sys, mobileone_q.data.settings\n"
        "print([m for m in ('numpy', 'PIL', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
