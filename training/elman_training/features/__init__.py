"""Classification of rows of numbers by a feed-forward network, a model without state."""
