import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localcluster import Cluster, LauncherError, addresses, cli, hostpackages, images, processes, stages, toolchain
from localcluster.apiclient import ApiError, Object
from localcluster.middleman import Middleman


def test_a_recycled_pid_is_neither_alive_nor_ended() -> None:
    stat = processes._stat(os.getpid())
    assert stat is not None
    recycled = processes.Process("somebody else's", os.getpid(), stat[1] - 1, "")
    assert not recycled.alive()
    processes.stop([recycled])


def test_who_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = processes.spawn("stubborn", [sys.executable, "-c", script], tmp_path / "log", cluster=tmp_path)
    while not (tmp_path / "log").read_text():
        time.sleep(0.01)
    processes.stop([process], grace=0.2)
    assert not process.alive()


def test_a_process_that_was_never_written_down_is_found(tmp_path: Path) -> None:
    process = processes.spawn("lost", ["/bin/sleep", "60"], tmp_path / "log", cluster=tmp_path)
    deadline = time.monotonic() + 5
    while not (found := processes.find_started_for(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [one.pid for one in found] == [process.pid]
    processes.stop(found, grace=1)
    assert processes.find_started_for(tmp_path) == []


def test_a_network_in_use_is_not_chosen() -> None:
    first = addresses.free_network(())
    assert addresses.free_network({first.second}).second != first.second


@pytest.mark.parametrize("text", ["lazy", "late:x", "crash-loop:3", ""])
def test_an_unknown_behaviour_says_what_there_is(text: str) -> None:
    with pytest.raises(LauncherError, match="behaviour"):
        stages.parse_behaviour(text)


def test_behaviours_have_sensible_numbers() -> None:
    assert stages.parse_behaviour("late:7") == ("late", 7)
    assert stages.parse_behaviour("restarts") == ("restarts", 3)
    assert stages.parse_behaviour("crash-loop") == ("crash-loop", 0)


def test_somebody_elses_kubeconfig_is_not_overwritten(tmp_path: Path) -> None:
    own = tmp_path / "config"
    own.write_text("current-context: production\n")
    with pytest.raises(LauncherError, match="not overwritten"):
        cli.check_replaceable(own)
    own.write_text("")
    cli.check_replaceable(own)


@pytest.mark.parametrize("name", ["A", "a b", "-a", "a" * 41, "../x", ""])
def test_an_unusable_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert cli.main(["up", f"--name={name}"]) == 1
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert "cluster name" in capsys.readouterr().err


def test_the_same_files_make_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hostpackages.find("busybox") is None:
        pytest.skip("busybox-static is not installed")
    archives = []
    for home in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        archives.append(images.build_busybox_image("localhost/x:1", files={"a/b": "c"}).read_bytes())
    assert archives[0] == archives[1]


class _Answering(http.server.BaseHTTPRequestHandler):
    body = b"hello good world\n" * 4000

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def middleman() -> Iterator[Middleman]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answering)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    found = Middleman(f"127.0.0.1:{server.server_port}", "127.0.0.1")
    yield found
    found.stop()
    server.shutdown()
    server.server_close()


def get(middleman: Middleman) -> bytes:
    with urllib.request.urlopen(f"http://{middleman.host}/", timeout=5) as answer:
        content: bytes = answer.read()
    return content


def test_a_middleman_passes_on_and_changes_what_he_is_told_to(middleman: Middleman) -> None:
    assert get(middleman) == _Answering.body
    assert not middleman.changed.is_set()
    middleman.change(b"good", b"evil")
    assert get(middleman) == _Answering.body.replace(b"good", b"evil")
    assert middleman.changed.is_set()
    middleman.behave()
    assert get(middleman) == _Answering.body


def test_a_middleman_refuses_and_admits(middleman: Middleman) -> None:
    middleman.refuse()
    with pytest.raises(OSError, match="refused"):
        get(middleman)
    middleman.admit()
    middleman.demand("somebody", "knows")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        get(middleman)
    middleman.behave()
    assert get(middleman) == _Answering.body


def test_a_middleman_holds_back(middleman: Middleman) -> None:
    middleman.hold_after(5000)
    received: list[bytes] = []
    asking = threading.Thread(target=lambda: received.append(get(middleman)))
    asking.start()
    assert middleman.holding.wait(5)
    assert received == []
    middleman.behave()
    asking.join(5)
    assert received == [_Answering.body]


# --- on a real API server ---------------------------------------------------------------------

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if toolchain.missing(toolchain.CONTROL_PLANE_TOOLS):
        pytest.skip("not built yet: python -m localcluster build")
    made = Cluster.up("launcher-test", fake_nodes=3, real_nodes=0, registry=False)
    yield made
    made.down()


def pod(name: str, node: str = "fake-0001", **annotations: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
        "spec": {
            "nodeName": node,
            "initContainers": [{"name": "fetch", "image": "example.test/fetch:1"}],
            "containers": [
                {"name": "agent", "image": "example.test/agent:1"},
                {"name": "side", "image": "example.test/side:1"},
            ],
            "tolerations": [{"operator": "Exists"}],
        },
    }


def is_ready(found: Object) -> bool:
    conditions = found["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def waiting_reason(found: Object) -> str:
    statuses = found["status"].get("containerStatuses", [{}])
    return str(statuses[0].get("state", {}).get("waiting", {}).get("reason", ""))


def restarts(found: Object) -> int:
    return int(found["status"].get("containerStatuses", [{}])[0].get("restartCount", 0))


def eventually(check: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def gone(cluster: Cluster, name: str) -> bool:
    try:
        cluster.client().get(f"{PODS}/{name}")
    except ApiError as error:
        return error.status == 404
    return False


EXPECTED: dict[str, Callable[[Object], bool]] = {
    "never-ready": lambda found: found["status"]["phase"] == "Running" and not is_ready(found),
    "late:2": is_ready,
    "restarts:2": lambda found: is_ready(found) and restarts(found) == 2,
    "crash-loop": lambda found: waiting_reason(found) == "CrashLoopBackOff" and restarts(found) >= 1,
    "image-pull-error": lambda found: waiting_reason(found) == "ImagePullBackOff",
    "config-error": lambda found: waiting_reason(found) == "CreateContainerConfigError",
    "init-crash-loop": lambda found: waiting_reason(found) == "PodInitializing",
}


FOR_GOOD: dict[str, Callable[[Object], bool]] = {"fails": lambda found: found["status"]["phase"] == "Failed"}
"""What nothing heals."""


@pytest.mark.parametrize("behaviour", EXPECTED | FOR_GOOD)
def test_a_template_can_ask_for_a_failure(cluster: Cluster, behaviour: str) -> None:
    name = "annotated-" + behaviour.replace(":", "-")
    cluster.client().create(PODS, pod(name, **{stages.BEHAVIOUR: behaviour}))
    expected = (EXPECTED | FOR_GOOD)[behaviour]
    eventually(lambda: expected(cluster.client().get(f"{PODS}/{name}")), behaviour)


@pytest.mark.parametrize("behaviour", EXPECTED)
def test_a_fault_hits_only_what_it_names_and_heals(cluster: Cluster, behaviour: str) -> None:
    client = cluster.client()
    hit, spared = ("hit-" + behaviour.replace(":", "-"), "spared-" + behaviour.replace(":", "-"))
    fault = cluster.inject(behaviour, nodes=["fake-0002"], pod_labels={"app": hit})
    client.create(PODS, pod(hit, "fake-0002"))
    client.create(PODS, pod(spared, "fake-0002"))
    eventually(lambda: EXPECTED[behaviour](client.get(f"{PODS}/{hit}")), behaviour)
    eventually(lambda: is_ready(client.get(f"{PODS}/{spared}")), "the other pod is ready")
    assert restarts(client.get(f"{PODS}/{spared}")) == 0
    fault.remove()
    eventually(lambda: is_ready(client.get(f"{PODS}/{hit}")), "it healed")


def test_a_pod_can_be_stuck(cluster: Cluster) -> None:
    client = cluster.client()
    client.create(PODS, pod("stuck"))
    eventually(lambda: is_ready(client.get(f"{PODS}/stuck")), "it runs")
    fault = cluster.inject("stuck-terminating", pod_labels={"app": "stuck"})
    client.delete(f"{PODS}/stuck")
    time.sleep(1)
    assert "deletionTimestamp" in client.get(f"{PODS}/stuck")["metadata"]
    fault.remove()
    eventually(lambda: gone(cluster, "stuck"), "it ended")


@pytest.mark.parametrize(("behaviour", "status"), [("not-ready", "False"), ("unreachable", "Unknown")])
def test_a_node_fails_and_comes_back(cluster: Cluster, behaviour: str, status: str) -> None:
    client = cluster.client()

    def reported() -> str:
        conditions = client.get("/api/v1/nodes/fake-0003")["status"]["conditions"]
        return str(next(one["status"] for one in conditions if one["type"] == "Ready"))

    client.create(PODS, pod(f"on-{behaviour}", "fake-0003"))
    eventually(lambda: is_ready(client.get(f"{PODS}/on-{behaviour}")), "the pod runs")
    fault = cluster.inject(behaviour, nodes=["fake-0003"])
    eventually(lambda: reported() == status, f"the node reports {status}")
    client.delete(f"{PODS}/on-{behaviour}")
    time.sleep(1)
    assert not gone(cluster, f"on-{behaviour}"), "nobody ends pods on a dead node"
    fault.remove()
    assert reported() == "True"
    eventually(lambda: gone(cluster, f"on-{behaviour}"), "the node does what was asked meanwhile")


def test_a_node_is_gone_and_comes_back(cluster: Cluster) -> None:
    fault = cluster.inject("gone", nodes=["fake-0003"])
    assert cluster.fake_nodes == ["fake-0001", "fake-0002"]
    fault.remove()
    cluster.wait_for_fake_nodes()
    assert "fake-0003" in cluster.fake_nodes


def test_a_service_account_has_no_more_than_its_rights(cluster: Cluster) -> None:
    path = cluster.kubeconfig_for_service_account("default", "default")
    command = [str(cluster.kubectl), f"--kubeconfig={path}", "get", "secrets"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "system:serviceaccount:default:default" in result.stderr


def test_a_running_cluster_is_taken_as_it_is(cluster: Cluster) -> None:
    again = Cluster.up("launcher-test", fake_nodes=3, real_nodes=0, registry=False)
    assert again.server_url == cluster.server_url
    with pytest.raises(LauncherError, match="registry"):
        Cluster.up("launcher-test", fake_nodes=3, real_nodes=0, registry=True)


def test_a_pod_of_a_node_that_was_taken_for_dead_gets_ready_again(cluster: Cluster) -> None:
    client = cluster.client()
    client.create(PODS, pod("marked"))
    eventually(lambda: is_ready(client.get(f"{PODS}/marked")), "it runs")
    # What the controller manager writes when it has not heard of a node for too long.
    marked = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    client.strategic(f"{PODS}/marked/status", marked)
    assert not is_ready(client.get(f"{PODS}/marked"))
    eventually(lambda: is_ready(client.get(f"{PODS}/marked")), "it is ready again")
