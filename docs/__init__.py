"""The documentation: Markdown pages, and in `generate/` what is written from the code. `make docs` builds the site."""
