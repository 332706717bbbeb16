"""`python -m trainer`: the same as `flow-train`."""

from trainer.cli import main

main()
