"""The syntaxes of constraints, a module each.

A module checks an expression, translates it for llguidance, and translates llguidance's error messages back. Every
expression becomes a grammar that forces no token: the model chooses which tokens spell a text.
"""
