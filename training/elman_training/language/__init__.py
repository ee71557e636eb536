"""Language models: the next token of a text, learned by truncated back-propagation through time."""
