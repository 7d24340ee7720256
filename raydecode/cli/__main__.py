"""`python -m raydecode.cli`: the same commands without an installed script."""

from raydecode.cli import main

main()
