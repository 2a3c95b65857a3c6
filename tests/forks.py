"""Processes that begin at once: forked from one that has imported what they need, and has done nothing else.

An interpreter of its own for each would spend seconds on imports before it trains for one.
"""

import atexit
import contextlib
import json
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path

IMPORTED = ["sde_toolkit.training", "sde_toolkit.calibration", "sde_toolkit.cli.train", "sde_toolkit.cli.parts"]
IMPORTED += ["accelerate", "matplotlib.backends.backend_agg", "matplotlib.figure", "ot", "jinja2", "torch._dynamo"]
COMMAND = Path(__file__).parents[1] / "sde_toolkit/__main__.py"


class Forks:
    """The process to fork from. ``start`` several processes, one after another; ``wait`` for each start."""

    def __init__(self, folder):
        self.log = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}
        self._server = subprocess.Popen([sys.executable, __file__, str(self.log)], **pipes)
        assert self._answer() == "ready"

    def start(self, processes, script, *words, folder="."):
        """Run a script in a folder as so many processes of one group; their numbers."""
        self._server.stdin.write(json.dumps([processes, str(folder), str(script), *map(str, words)]) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def wait(self):
        """What each of them ended with, by rank: the exit status, or minus the signal; and what all of them said."""
        return self._answer(), self.log.read_text()

    def run(self, processes, script, *words, folder="."):
        """Start, wait, and demand that all end well: what they said."""
        self.start(processes, script, *words, folder=folder)
        statuses, said = self.wait()
        assert statuses == [0] * processes, said[-3000:]
        return said

    def command(self, processes, folder, *words):
        """``sde-toolkit`` in a folder; ``sde_toolkit/__main__.py`` is what ``python -m sde_toolkit`` runs."""
        return self.run(processes, COMMAND, *words, folder=folder)

    def close(self):
        self._server.stdin.write("null\n")  # the end of its input does not come where another process holds the pipe
        self._server.stdin.close()
        assert self._server.wait(timeout=60) == 0
        self._server.stdout.close()

    def _answer(self):
        line = self._server.stdout.readline()
        assert line, "the process to fork from has ended"
        return json.loads(line)


def _serve(log):
    for name in IMPORTED:
        import_module(name)
    from sde_toolkit.evaluation import page

    os.fsync = os.fstat  # as in the tests: see conftest.py
    page.VECTORS = ()  # as in the fixture command
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        if told is None:
            os._exit(0)  # at once: nothing of it is left to be written
        processes, folder, *words = told
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        Path(log).write_text("")
        pids = [_fork(rank, processes, port, folder, words, log) for rank in range(processes)]
        print(json.dumps(pids), flush=True)
        print(json.dumps(_ends(pids)), flush=True)


def _ends(pids, patience=60, limit=600):
    """What each process ended with. Where one has failed, or none ends, those that are left are killed in the end."""
    found, until = {}, time.monotonic() + limit
    while len(found) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            found[pid] = os.waitstatus_to_exitcode(status)
            if status:
                until = min(until, time.monotonic() + patience)
        elif time.monotonic() < until:
            time.sleep(0.01)
        else:
            for other in {*pids} - {*found}:
                os.kill(other, signal.SIGKILL)
            until = math.inf
    return [found[pid] for pid in pids]


def _fork(rank, processes, port, folder, words, log):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    atexit._clear()  # what the parent does at its own end
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(output, number)
        if processes > 1:
            group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in group.items()})
        os.chdir(folder)
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # as an interpreter does at its end
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
