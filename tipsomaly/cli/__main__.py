"""`python -m tipsomaly.cli` is the `tipsomaly` command."""

from tipsomaly.cli import main

main()
