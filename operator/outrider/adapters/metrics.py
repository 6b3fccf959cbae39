"""What Prometheus may know of the operator: counts by kind and result, never by node or digest."""

from prometheus_client import Counter, Gauge, Histogram

from outrider import __version__

BUILD = Gauge("outrider_build_info", "The operator's version; always 1.", ["version"])
BUILD.labels(__version__).set(1)
LEADER = Gauge("outrider_leader", "Whether this replica acts (1) or stands by (0).")
PASSES = Counter("outrider_reconcile", "Passes over objects.", ["kind", "result"])
PASS_SECONDS = Histogram("outrider_reconcile_duration_seconds", "How long passes take.", ["kind"])
NODES = Gauge("outrider_rollout_nodes", "Nodes of a Rollout's fleet by state.", ["namespace", "name", "state"])
BETWEEN = Gauge(
    "outrider_rollout_oldest_half_move_seconds",
    "For how long the oldest half-made move of a Rollout has been waiting for its old pod to end.",
    ["namespace", "name"],
)
CONDITIONS = Gauge(
    "outrider_rollout_condition",
    "Whether a condition of a Rollout (Ready, Stalled, Degraded, Paused) is True (1) or not (0).",
    ["namespace", "name", "condition"],
)
VERSIONS = Gauge("outrider_versions", "ComponentVersions by phase.", ["namespace", "phase"])
STEPS = Counter("outrider_version_steps", "Steps of ComponentVersions.", ["step", "result"])
