"""kopf decorators only: they turn events into work for the queue."""
