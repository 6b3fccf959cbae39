"""What `examples/` offers to be copied is taken by the API server as it stands."""

import pytest

from e2e.conftest import ROOT, E2eCluster

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", [path.name for path in EXAMPLES])
def test_an_example_is_valid(cluster: E2eCluster, file: str) -> None:
    cluster.kubectl("create", "namespace", "fleet", check=False)
    answer = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(ROOT / "examples" / file))
    assert "(server dry run)" in answer.stdout
    assert "Warning" not in answer.stderr
