"""`python -m genrobust`: the command line."""

from .cli.main import main

main()
