"""The edge: proto <-> domain, validation, errors, and the bridge between the scheduler's threads and asyncio."""
