"""`python -m tipsomaly` is the `tipsomaly` command."""

from tipsomaly.cli import main

main()
