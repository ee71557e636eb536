"""Trees of requests: s-expressions and lists of nodes become what the scheduler runs."""
