"""`python -m elman.cli`, for environments in which the script is not on the path."""

from elman.cli.application import main

main()
