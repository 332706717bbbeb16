"""`reward-server`, also as `python -m reward_server`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a package that is not installed is one line that names the extra."""
    try:
        from reward_server.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in ("reward_server", "reward_client"):
            raise
        what = f"{error.name} is missing: pip install 'flow-reward[server]'"
        print(f"reward-server: {what}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
