"""``python -m sde_toolkit`` is ``sde-toolkit``."""

from sde_toolkit.cli.main import main

if __name__ == "__main__":
    main()
