"""The world outside: cluster, registry, sources, events, metrics, clock. Raises our errors only."""
