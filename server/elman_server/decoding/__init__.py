"""Decoding: from the logits of a model to the next token, for each row independently of the rest of its batch.

in_graph      nodes that are added to a model's graph: sampling, filters, scores of given tokens
host          sampling outside the graph: for rows whose logits are shaped or constrained first
constraints   grammars, and which tokens they allow
beams         beam search
stopping      stop sequences
randomness    the random numbers of both samplers
"""
