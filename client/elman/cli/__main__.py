"""`python -m elman.cli`, for where the script is not on the path."""

from elman.cli.application import main

main()
