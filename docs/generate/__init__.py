"""The parts of the documentation that are generated from the code and from measured results.

site            the hook of mkdocs: adds the pages below to the site
protocol        the messages and services, from the comments of the .proto files
command_line    the commands and options, from the typer application
settings        the settings of the server
errors          the statuses and reasons, from the error classes and their table
figures         the tables of measured figures, from benchmarks/results
recording       the picture of a stream in the README, from the output of a real server
"""
