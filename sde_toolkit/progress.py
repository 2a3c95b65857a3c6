"""Progress bars: tqdm if they are wanted, silent stand-ins otherwise."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sde_toolkit.errors import MissingDependencyError

__all__ = ["close_bars", "progress_bar", "require_progress"]


class _Silent:
    """A bar that shows nothing."""

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar of tqdm. Its methods return None, so that a callback may return what they return."""

    def __init__(self, total: int | None, description: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=description, dynamic_ncols=True)
        _open.add(self)

    def update(self, n: int = 1) -> None:
        self._bar.update(n)

    def set_postfix_str(self, text: str) -> None:
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        self._bar.close()
        _open.discard(self)


_open: WeakSet[_Bar] = WeakSet()


def progress_bar(total: int | None, description: str, *, enabled: bool) -> Any:
    """A tqdm bar on standard error, or a silent stand-in.

    Raises:
        MissingDependencyError: if it is wanted and tqdm is not installed.
    """
    if not enabled:
        return _Silent()
    require_progress(enabled)
    return _Bar(total, description)


def close_bars() -> None:
    """End the line of every bar that is still open, so that a message begins on a line of its own."""
    for bar in list(_open):
        bar.close()


def require_progress(enabled: bool) -> None:
    """Refuse before the work if a bar is wanted and tqdm is missing.

    Raises:
        MissingDependencyError: if it is not there.
    """
    if enabled:
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("tqdm", "a progress bar", "cli", error) from None
