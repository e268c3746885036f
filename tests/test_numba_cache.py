"""After an edit in a helper that a compiled kernel imports, the new code runs: numba's own cache does not notice."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HELPER = "from numba import njit\n\n@njit(cache=True)\ndef scale(x):\n    return x * {factor}\n"
KERNEL = """from numba import njit
from kernels.helper import scale

@njit(cache=True)
def run(x):
    return scale(x)
"""


def run(folder, *, keyed=True):
    setup = "" if keyed else "import os; os.environ['NUMBA_CACHE_DIR'] = 'one-folder'; import numba; "
    reset = "" if keyed else "numba.config.CACHE_DIR = 'one-folder'; "
    code = f"{setup}import kernels; {reset}from kernels.kernel import run; print(run(1))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    return int(out.stdout)


def house(folder):
    (folder / "kernels").mkdir(parents=True)
    shutil.copy(ROOT / "kernels/__init__.py", folder / "kernels/__init__.py")
    (folder / "kernels/helper.py").write_text(HELPER.format(factor=2))
    (folder / "kernels/kernel.py").write_text(KERNEL)
    return folder


def test_an_edit_in_an_imported_helper_is_seen(tmp_path):
    folder = house(tmp_path / "keyed")
    assert run(folder) == 2
    assert len(list((folder / ".cache/numba").iterdir())) == 1
    (folder / "kernels/helper.py").write_text(HELPER.format(factor=3))
    assert run(folder) == 3


def test_without_the_key_it_would_not_be(tmp_path):
    folder = house(tmp_path / "plain")
    assert run(folder, keyed=False) == 2
    (folder / "kernels/helper.py").write_text(HELPER.format(factor=3))
    assert run(folder, keyed=False) == 2, "numba notices by itself now: the key can go"
