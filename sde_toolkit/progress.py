"""Progress bars: tqdm where they are asked for, nothing at all where they are not."""

from __future__ import annotations

from typing import Any

from sde_toolkit.errors import MissingDependencyError

__all__ = ["progress_bar"]


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
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingDependencyError("tqdm", "a progress bar", "cli", error) from None
    return tqdm(total=total, desc=description, dynamic_ncols=True)
