"""Progress bars: tqdm where they are asked for, nothing at all where they are not."""

from __future__ import annotations

from typing import Any

from sde_toolkit.errors import MissingDependencyError

__all__ = ["progress_bar", "require_progress"]


class _Silent:
    """A bar that shows nothing."""

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...

    def close(self) -> None: ...


def progress_bar(total: int | None, description: str, *, enabled: bool) -> Any:
    """A tqdm bar on standard error, or a silent stand-in.

    Raises:
        MissingDependencyError: if it is wanted and tqdm is not installed.
    """
    if not enabled:
        return _Silent()
    require_progress(enabled)
    from tqdm import tqdm

    return tqdm(total=total, desc=description, dynamic_ncols=True)


def require_progress(enabled: bool) -> None:
    """Find out before the work that tqdm is missing, if it is wanted.

    Raises:
        MissingDependencyError: if it is not there.
    """
    if enabled:
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("tqdm", "a progress bar", "cli", error) from None
