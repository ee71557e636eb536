"""The use cases of the server, between its doors and the scheduler. Nothing here knows a wire format.

A use case takes a frozen dataclass and returns a result, or yields events. What a request may ask for is checked here,
so that every door has the same rules.

    generate (generate_in_session) | classify, classify_stream, classify_trees | choose | score | embed | inspect
    session_management | batch
"""
