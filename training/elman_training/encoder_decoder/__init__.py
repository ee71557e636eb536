"""Encoder-decoders: a target sequence for a source sequence, as in translation, pronunciation or answering."""
