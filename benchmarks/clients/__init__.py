"""The benchmark clients; each kind runs in a separate process."""
