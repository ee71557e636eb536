"""Decoding on the host: for rows whose logits are shaped, constrained by a grammar, or reported.

shaping      the options that change logits
shaped_rows  the rows of a batch that are shaped, and what each has generated
choosing     logits to tokens: shaping, then the draw
drawing      temperature, top-k, top-p, min-p and the draw
"""
