"""Kernels that start at once: a process that has imported what pages need is forked for each of them.

Python, torch, numba and altair take four seconds to start, and there are hundreds of pages. `warm()` makes the kernel
called python3 ask a waiting process to fork instead. Where there is no fork, kernels start as they always do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

IMPORTED = ("numpy", "torch", "numba", "pandas", "altair", "vl_convert", "taxonomy.charts", "ipykernel.kernelapp")


@contextmanager
def warm():
    """Inside, kernels are forked; the process to fork from starts with the first of them."""
    import tempfile
    from select import select
    from threading import Thread

    if not hasattr(os, "fork"):
        yield
        return
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/socket"
        listener.bind(address)
        listener.listen()
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        client = [sys.executable, "-I", "-S", __file__, address, "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": client, "display_name": "Python 3", "language": "python"}))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        servers: list[subprocess.Popen[bytes]] = []

        def serve_when_asked() -> None:
            with suppress(OSError, ValueError):  # closed unasked
                if select([listener], [], [])[0] and listener.fileno() >= 0:
                    number = listener.fileno()
                    servers.append(subprocess.Popen([sys.executable, __file__, str(number)], pass_fds=[number]))

        Thread(target=serve_when_asked, daemon=True).start()
        try:
            yield
        finally:
            for server in servers:
                server.kill()
                server.wait()
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


def serve(listener: socket.socket) -> None:
    """Fork for everybody who asks."""
    from importlib import import_module

    sys.path.pop(0)  # the folder of this file; a kernel has its own
    for name in IMPORTED:
        import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        asking, _ = listener.accept()
        asked = json.loads(asking.makefile().readline())
        if os.fork() == 0:
            listener.close()
            become_kernel(asking, **asked)
        asking.close()


def become_kernel(asking: socket.socket, options: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run a kernel with ipykernel's options, in a folder, until it is told to end or whoever asked is gone."""
    from threading import Thread

    from ipykernel.kernelapp import IPKernelApp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    asking.sendall(f"{os.getpid()}\n".encode())
    Thread(target=lambda: (asking.recv(1), os._exit(0)), daemon=True).start()
    try:
        parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # who asked is none
        IPKernelApp.launch_instance(argv=[*options, parent])
    finally:
        os._exit(0)


def ask(address: str, *options: str) -> None:
    """Ask for a kernel, and stay as long as it lives: for Jupyter this process is the kernel."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        asked = {"options": options, "folder": os.getcwd(), "environment": dict(os.environ)}
        server.sendall(json.dumps(asked).encode() + b"\n")
        kernel = int(server.makefile().readline())
        signal.signal(signal.SIGINT, lambda number, frame: os.kill(kernel, number))
        server.recv(1)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        ask(*sys.argv[1:])
