"""What surrounds every call: interception, error statuses, writing, caller identity, delivery into the event loop."""
