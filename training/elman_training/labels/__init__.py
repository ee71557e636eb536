"""Labels of text: a class for a whole text (classification), or a label for every character (tagging)."""
