"""`flow-train`, also as `python -m trainer`."""

import sys

OWN = ("trainer", "prompt_sets", "miniature", "reward_client")


def main() -> None:
    """Run the command line; a package that is not installed is one line that names the extra."""
    try:
        from trainer.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] in OWN:
            raise
        print(f"error: {error.name} is missing: pip install 'flow-reward[train]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
