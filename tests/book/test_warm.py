"""Forked kernels are kernels: they run, fail, end, and know their own folder and environment."""

import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))

import warm  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kernels are not forked where there is no fork")


def notebook_of(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    named = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=named)


def run(folder, *sources):
    notebook = notebook_of(*sources)
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    return [output["text"].strip() for cell in notebook.cells for output in cell.outputs]


def gone(pid):
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def test_kernels_share_nothing_but_what_was_imported(monkeypatch, tmp_path):
    before = os.environ.get("JUPYTER_PATH")
    with warm.warm():
        monkeypatch.setenv("WHO", "first")
        code = (
            "import os, sys\nprint(os.getpid(), os.getppid(), os.environ['WHO'], os.getcwd(), 'torch' in sys.modules)"
        )
        first, left = run(tmp_path, code, "here = 1\nprint(here)")
        monkeypatch.setenv("WHO", "second")
        (second,) = run(tmp_path, code)
        with pytest.raises(CellExecutionError, match="'here' is not defined"):
            run(tmp_path, "here")
        assert left == "1" and first.split()[2:] == ["first", str(tmp_path), "True"]
        assert second.split()[2:] == ["second", str(tmp_path), "True"]
        assert first.split()[1] == second.split()[1], "both were forked from one process"
        assert gone(first.split()[0]) and gone(second.split()[0])
    assert gone(second.split()[1]) and os.environ.get("JUPYTER_PATH") == before


def test_a_kernel_ends_with_whoever_asked_for_it(tmp_path):
    with warm.warm():
        client = NotebookClient(notebook_of("import os\nprint(os.getpid())"))
        with client.setup_kernel():
            pid = client.execute_cell(client.nb.cells[0], 0).outputs[0]["text"].strip()
            os.kill(client.km.provisioner.process.pid, 9)
            assert gone(pid)
