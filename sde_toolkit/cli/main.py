"""``sde-toolkit COMMAND [overrides]`` and ``python -m sde_toolkit COMMAND [overrides]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sde_toolkit.cli.signals import stopping_with_a_message
from sde_toolkit.cli.speech import in_shell_words, one_line
from sde_toolkit.cli.user_files import separate_user_solvers, traceback_in_user_file
from sde_toolkit.cli.words import quote_paths, words_in_list
from sde_toolkit.errors import MissingDependencyError, SDEToolkitError
from sde_toolkit.progress import close_bars

__all__ = ["main"]

COMMANDS = {
    "train": "train a score network on images, signals or points",
    "sample": "draw samples from a trained model with any solver",
    "compare": "compare solvers at equal budgets and write a report",
    "table": "join comparisons into one table: models by solvers, for a terminal, Markdown, LaTeX and CSV",
    "bench": "rank solvers on problems whose answer is known, yours among them",
    "calibrate": "find the time grid and weights with the smallest error for a model and a budget",
    "likelihood": "evaluate a data set: exact likelihood, bits per dimension, variational bounds",
    "restore": "inpaint, deblur or super-resolve test samples or your own, with the truth beside them",
    "evaluate": "measure samples against real data: FID, KID, precision and recall, feature distances",
}
POSITIONAL = {"table": "runs"}  # the setting that takes the words of a command that are no settings


def main(arguments: list[str] | None = None) -> None:
    """Run one command; everything after its name goes to Hydra."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows ? instead
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    command, *overrides = arguments
    if command not in COMMANDS:
        print(f"sde-toolkit: there is no command {command!r}\n\n{_usage()}", file=sys.stderr)
        raise SystemExit(2)
    own: Exception | None = None
    with stopping_with_a_message():
        try:
            _run(command, overrides)
        except _UserCodeError as error:
            own = error.original
    if own is not None:  # raised here, its cause and context stay what they were
        raise own


def _run(command: str, overrides: list[str]) -> None:
    try:
        import hydra
    except ImportError as error:
        raise SystemExit(str(MissingDependencyError("hydra-core", "the command line", "cli", error))) from None
    if command in POSITIONAL:
        overrides = words_in_list(overrides, POSITIONAL[command])
    overrides = sorted(
        quote_paths(separate_user_solvers(overrides)), key=lambda word: word not in ("-m", "--multirun")
    )  # argparse: flags first
    task = import_module(f"sde_toolkit.cli.{command}").run
    sys.argv = [f"sde-toolkit {command}", *overrides]
    decorate = hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=command)
    _check_launcher(overrides)
    began: list[str] = []

    def run(config: Any) -> None:
        began.append(command)
        _reporting_errors(task, command)(config)

    with _exceptions_as_raised(began, overrides):
        decorate(run)()


@contextmanager
def _exceptions_as_raised(began: list[str], overrides: list[str]) -> Iterator[None]:
    """Let exceptions of a job pass unchanged, and turn Hydra's own into messages. Hydra would print both itself.

    ``began``: not empty once a job has begun. From then on an exception may come from the user's own code.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        _complain(f"error: {one_line(f'{error}{cause}')}")
    except OSError as error:  # of a folder that Hydra makes itself
        _complain(f"error: {one_line(str(error))}")
    except Exception as error:
        if began:
            raise
        _complain(f"error: {' '.join(overrides)}: these settings cannot be read ({one_line(str(error))})")
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def config_directory() -> Path:
    """The folder of the configurations: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "configs", package.parent / "configs"):
        if (place / "train.yaml").is_file():
            return place
    raise SystemExit(f"sde-toolkit: its configs are missing from {package}; reinstall the package.")


LAUNCHERS = {  # of --multirun: the module, the package and the extra that each needs
    ("local", "joblib"): ("hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher", "sweep"),
    ("slurm", "submitit_slurm", "submitit_local"): (
        "hydra_plugins.hydra_submitit_launcher",
        "hydra-submitit-launcher",
        "slurm",
    ),
    ("ray_cluster", "ray", "ray_aws"): ("hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher", "ray"),
}


def _check_launcher(overrides: list[str]) -> None:
    """Name the missing extra of a launcher. Hydra would only say that there is no such option."""
    chosen = {word.partition("=")[2] for word in overrides if word.partition("=")[0].lstrip("+") == "hydra/launcher"}
    for names, (module, package, extra) in LAUNCHERS.items():
        if chosen & set(names):
            try:
                import_module(module)
            except ImportError as reason:
                launcher = f"hydra/launcher={(chosen & set(names)).pop()}"
                print(f"error: {MissingDependencyError(package, launcher, extra, reason)}", file=sys.stderr)
                raise SystemExit(2) from None


def _reporting_errors(task: Callable[[Any], None], command: str) -> Callable[[Any], None]:
    """The task, with one message for a user's mistake. It sets ``sys.argv`` to the words of the job, in any process."""

    def run(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf.errors import MissingMandatoryValue

        sys.argv = [f"sde-toolkit {command}", *HydraConfig.get().overrides.task]
        try:
            with _users_errors_set_apart():
                task(config)
        except MissingMandatoryValue as error:
            _complain(f"error: {error.full_key} is needed and has no default. Add {error.full_key}=...")
        except SDEToolkitError as error:
            _complain(f"error: {in_shell_words(error, command)}")
        except OSError as error:
            _complain(f"error: {one_line(str(error))}")
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            why = " ".join(str(error).split())[:160] or "MemoryError"
            _complain(f"error: there is not enough memory ({why}). Ask for fewer samples, or a smaller batch_size.")

    return run


class _UserCodeError(Exception):
    """Carries an exception of a user's own code past everything that turns exceptions into messages."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original


@contextmanager
def _users_errors_set_apart() -> Iterator[None]:
    """Wrap exceptions that come from a user's file, with the part of their traceback that begins there."""
    try:
        yield
    except SyntaxError as error:  # it names file and line itself
        raise _UserCodeError(error.with_traceback(None)) from None
    except Exception as error:
        trace = traceback_in_user_file(error)
        if trace is None:
            raise
        raise _UserCodeError(error.with_traceback(trace)) from None


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's error, or torch's of a CPU or a GPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _complain(text: str) -> None:
    """Print to standard error, with the number of the process if there are several, and exit with status 2."""
    close_bars()
    rank = os.environ.get("RANK", "0")
    print(text if rank == "0" else f"[process {rank}] {text}", file=sys.stderr, flush=True)
    raise SystemExit(2) from None


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return (
        "usage: sde-toolkit COMMAND [key=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`sde-toolkit COMMAND --help` lists the settings of a command."
    )
