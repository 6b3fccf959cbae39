"""A real Kubernetes control plane with fake and real nodes on this machine, without Docker."""

from localcluster.cluster import Cluster
from localcluster.errors import LauncherError
from localcluster.faults import Fault

__all__ = ["Cluster", "Fault", "LauncherError"]
