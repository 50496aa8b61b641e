"""`versolog` and `python -m versolog`: the command line."""

from __future__ import annotations

import sys

from versolog import lifetime


def main() -> None:
    """Run the command line; without the server extra, say what to install."""
    try:
        with lifetime.importing():
            from versolog.cli import app
    except ModuleNotFoundError as error:
        sys.exit(f"the command line needs {error.name}: pip install 'versolog[server,broker]'")
    app()


if __name__ == "__main__":
    main()
