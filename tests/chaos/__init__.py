"""Chaos: servers are killed at random moments while sessions stream, and what the clients have seen is checked.

__main__ (make chaos) -> trial (kill, start again) -> fleet (servers, a balancer)
                                                   -> writers (clients) -> history (what they saw, and is it right?)
"""
