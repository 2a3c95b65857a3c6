"""One process works in a folder at a time, on whatever the file system offers, and nobody's files are touched."""

import errno
import subprocess
import sys
import threading
import time
import types

import pytest

from sde_toolkit.errors import FolderInUseError
from sde_toolkit.files import claims
from sde_toolkit.files.claims import claimed

HOLDER = """
import sys, time
from sde_toolkit.files.claims import claimed
with claimed(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(100)
"""


def elsewhere(action):
    """The error that ``action`` ends with in another thread, or None."""
    found = []

    def run():
        try:
            action()
        except FolderInUseError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0] if found else None


def claim(folder):
    with claimed(folder, "sampling", "output"):
        pass


def test_a_claim_of_another_process_is_refused_until_it_dies(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=rf"another process works in it \(training, process {other.pid} on"):
            claim(tmp_path)
        other.kill()
        other.wait()
    claim(tmp_path)


def test_a_thread_claims_twice_and_others_wait_for_the_outer_end(tmp_path):
    with claimed(tmp_path, "comparing"):
        with claimed(tmp_path / "." / "", "sampling"):
            assert elsewhere(lambda: claim(tmp_path))
        assert "output=" in str(elsewhere(lambda: claim(tmp_path)))
        assert elsewhere(lambda: claim(tmp_path / "another")) is None
    assert elsewhere(lambda: claim(tmp_path)) is None


def test_never_two_at_once_though_the_lock_file_comes_and_goes(tmp_path):
    inside, most, taken, start = [], [], [], threading.Barrier(4)

    def work():
        start.wait()
        while len(taken) < 150:
            try:
                with claimed(tmp_path, "working"):
                    inside.append(1)
                    time.sleep(1e-4)  # long enough for another to come in
                    most.append(len(inside))
                    taken.append(1)
                    inside.pop()
            except FolderInUseError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_nothing_is_left_and_nothing_is_touched(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path / "a/b", "working"):
        raise RuntimeError
    assert not (tmp_path / "a/b").exists()
    (tmp_path / "a/.lock").write_text("mine")
    with claimed(tmp_path / "a", "working"):
        (tmp_path / "a/result").write_text("done")
    assert {file.name: file.read_text() for file in (tmp_path / "a").iterdir()} == {".lock": "mine", "result": "done"}


def test_where_there_are_no_locks_the_work_goes_on(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    claim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_on_windows_a_byte_is_locked(tmp_path, monkeypatch):
    """By a stand-in for msvcrt: a second locking of the same file is refused as Windows refuses it."""
    locked = []

    def locking(descriptor, mode, size):
        place = claims.os.fstat(descriptor).st_ino
        if place in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        locked.append(place)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(claims, "fcntl", None)
    with claimed(tmp_path, "working"):
        assert "working, process" in str(elsewhere(lambda: claim(tmp_path)))
