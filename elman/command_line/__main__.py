"""`python -m elman.command_line`, for where the script is not on the path."""

from elman.command_line.application import main

main()
