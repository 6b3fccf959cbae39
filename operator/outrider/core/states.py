"""The states of nodes and runs, by what they mean for a decision."""

from typing import Final

ARRIVING: Final = frozenset({"Downloading", "Verifying", "Installing", "Starting"})
"""The new agent is on the node, and not healthy yet."""
IN_FLIGHT: Final = ARRIVING | {"Stopping", "Returning", "Retrying"}
RESULTS: Final = frozenset({"Succeeded", "Failed", "RolledBack", "Skipped"})
UNDECIDED: Final = IN_FLIGHT | {"Pending"}
FAILED: Final = frozenset({"Failed", "Returning", "RolledBack"})
NOT_BROUGHT: Final = FAILED | {"Skipped"}
"""The run has given the node up, for now: it may be in a later batch of the same run."""
SETTLED: Final = frozenset({"Succeeded", "Skipped", "RolledBack"})
"""What runs there stays there, as far as that run is concerned."""
ONGOING: Final = frozenset({"Running", "Paused"})
BARRED: Final = frozenset({"Withdrawn", "Revoked"})
"""Phases of a version: no node may be sent to it."""
COMPLETED: Final = frozenset({"Succeeded", "PartiallySucceeded"})
COMES_BACK: Final = frozenset(
    {
        "NodeNotReady",
        "WouldNotSchedule",
        "NoArtifact",
        "OsImageUnsupported",
        "KernelUnsupported",
        "KubeletUnsupported",
        "RequirementMissing",
        "RequirementUnmet",
        "RequirementUnknown",
        "RequiredByOther",
        "NodeUnknown",
        "RulesUnreadable",
        "LeftTarget",
        "RunEnded",
        "Retried",
    }
)
"""Reasons of Skipped that may pass: such a node is taken by a later batch of the same run."""
