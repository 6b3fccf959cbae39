"""The story itself, chapter by chapter."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from demo.fleet import AGENT, DAEMON, NAMESPACE, Fleet, Object, is_true, message_of, version_of
from demo.outcome import NotAsTold, Outcome, expect
from demo.terminal import Relay, Terminal, Waiting
from demo.workshop import AGENT_IMAGE, KEY, PUBLIC_KEY, ROOT, Build, Workshop, fetch_text
from localcluster import Cluster, images
from localcluster.addresses import free_port
from localcluster.cluster import allowed_real_nodes
from localcluster.processes import spawn

OPERATOR_NAMESPACE = "outrider-system"
_CHAPTERS = 11
_REAL_ONES = "node.outrider.test/kind=real"
_REAL_NODES = 2
_NEW_KEY = "signing-key-2.pem"
_CANARIES, _BATCH = 2, 5
_ALL_AT_ONCE = "type: Full"
_CAREFUL = f"""\
type: Canary
    canary: {{steps: [{{nodes: {_CANARIES}, soakSeconds: 6}}]}}
    rolling: {{batchSize: {_BATCH}}}"""
_CAREFUL_ON_REAL_NODES = f"""\
type: Canary
    canary:
      nodeSelector: {{matchLabels: {{{_REAL_ONES.replace("=", ": ")}}}}}
      steps: [{{nodes: 1, soakSeconds: 2}}, {{nodes: 1, soakSeconds: 6}}]
    rolling: {{batchSize: {_BATCH}}}"""
BUILDS = [
    Build("1.0.0", "the first one"),
    Build("1.1.0", "a better one"),
    Build("1.2.0", "crashes at its start", flaw="cannot read my own configuration, giving up"),
    Build("1.2.1", "good, and changed on its way to the nodes"),
    Build("1.3.0", "good when it was signed"),
    Build("1.4.0", "crashes at its start, but has a test", flaw="cannot read my own configuration, giving up"),
    Build("1.4.1", "corrected"),
    Build("2.0.0", "a daemon of the node itself", component=DAEMON),
    Build("2.1.0", "crashes at its start", flaw="cannot read my own configuration, giving up", component=DAEMON),
]


class Story:
    """Tells the demo on one cluster, from nothing to the summary."""

    def __init__(self, name: str, fake_nodes: int, real_nodes: str, terminal: Terminal, workshop: Workshop) -> None:
        self._name = name
        self._fake_nodes = fake_nodes
        self._real_nodes = real_nodes
        self._terminal = terminal
        self.workshop = workshop
        self._cluster: Cluster | None = None
        self._watched: Fleet | None = None
        self._chapter = 0
        self._answers: list[str] = []
        self.outcome = Outcome()

    @property
    def cluster(self) -> Cluster:
        """The cluster, once it runs."""
        if self._cluster is None:
            raise NotAsTold("there is no cluster yet")
        return self._cluster

    @property
    def _fleet(self) -> Fleet:
        if self._watched is None:
            size = self._fake_nodes + len(self._real)
            self._watched = Fleet(self.cluster.client(), self._terminal, AGENT, size)
            self._watched.listening_to = self._real
        return self._watched

    @property
    def real_node(self) -> str | None:
        """One of the nodes with a real kubelet, if there are any."""
        return next(iter(self.cluster.real_nodes), None)

    @property
    def _real(self) -> list[str]:
        return self.cluster.real_nodes

    @property
    def _carefully(self) -> str:
        return _CAREFUL_ON_REAL_NODES if len(self._real) >= _CANARIES else _CAREFUL

    def tell(self) -> None:
        """Tell all of it; raises NotAsTold at the first thing that does not come out."""
        self.workshop.start_building(BUILDS)
        self._start_cluster()
        self._install_operator()
        self._trust_a_key()
        self._first_version()
        self._second_version()
        self._bad_version()
        self._changed_on_its_way()
        self._tampered_version()
        self._tested_versions()
        self._another_key()
        self._daemon()
        claim = "the agent that runs is the one that was published"
        if self.real_node is None:
            self.outcome.cannot_show(claim, "there is no real node to ask")
        else:
            self.outcome.proves(claim, f"asked by HTTP {len(self._answers)} times: {', '.join(self._answers)}")

    # --- chapters ---------------------------------------------------------------------------

    def _start_cluster(self) -> None:
        self._begin("A cluster")
        self._terminal.say(
            "A real Kubernetes control plane on this machine, and a registry for the agents' files. Most nodes are "
            "fake: the API server cannot tell, but no program runs on them. Two are real, with kubelets, containers "
            "and a network of their own, where this machine allows it."
        )
        with self._launcher("starting the cluster"):
            wanted = self._real_nodes
            count = allowed_real_nodes(_REAL_NODES) if wanted == "auto" else wanted
            self._cluster = Cluster.up(self._name, self._fake_nodes, count)
        kubectl = self.cluster.kubectl
        path = f"{kubectl.parent}:{self.workshop.environment.get('PATH', '')}"
        self.workshop.environment |= {"PATH": path, "KUBECONFIG": str(self.cluster.kubeconfig)}
        if self.real_node is None:
            self._terminal.say(
                "There is no real node here, so the operator will run as a process beside the cluster, and nobody can "
                "ask an agent for its version. Everything else is the same."
            )
        self._show("kubectl get nodes", head=2, tail=1 + len(self._real))

    def _install_operator(self) -> None:
        self._begin("The operator")
        if self.real_node is None:
            self._run_operator_beside()
        else:
            self._run_operator_inside()

    def _run_operator_inside(self) -> None:
        self._terminal.say(
            "Outrider is installed as a user would: one file, then a word on where its registry is. Its image is built "
            "from the Dockerfile and handed to the real nodes."
        )
        with self._launcher("building and loading the images"):
            image = _image_of_the_deployment()
            self.cluster.load_image(images.build_operator_image(ROOT, image))
            self.cluster.load_image(images.build_busybox_image(AGENT_IMAGE))
            self._terminal.step(f"image {image} is on {_join(self._real)}")
        self._apply_install_yaml()
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} rollout restart deployment/outrider")
        started = time.monotonic()
        self._terminal.command(f"kubectl -n {OPERATOR_NAMESPACE} rollout status deployment/outrider")
        with Waiting(self._terminal, "two copies of the operator start"):
            said = self.workshop.run(
                f"kubectl -n {OPERATOR_NAMESPACE} rollout status deployment/outrider --timeout=120s", show=False
            )
        self._terminal.output(said.splitlines()[-1])
        pods = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"
        with Waiting(self._terminal, "those with the old settings end"):
            self._fleet.wait("the end of the old pods", lambda: len(self.cluster.client().items(pods)) == 2, 60)
        self._await_leader()
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} get pods --field-selector=status.phase=Running -o wide", columns=7)
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} get lease outrider")
        seconds = time.monotonic() - started
        self._terminal.done("Two copies run; the one that holds the Lease acts, the other stands by.")
        self.outcome.proves("install.yaml is all it takes", f"2 operator pods on {_join(self._real)}, {seconds:.0f} s")

    def _run_operator_beside(self) -> None:
        self._terminal.say(
            "Outrider is installed as a user would, with one file. Its pods have no node to run on, so they are scaled "
            "to none, and the same program runs here with the rights of its ServiceAccount and no others."
        )
        self._apply_install_yaml()
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} scale deployment/outrider --replicas=0")
        kubeconfig = self.cluster.kubeconfig_for_service_account(OPERATOR_NAMESPACE, "outrider")
        environment = {
            **{key: value for key, value in self.workshop.environment.items() if not key.startswith("OUTRIDER_")},
            "KUBECONFIG": str(kubeconfig),
            "OUTRIDER_REGISTRY": self.cluster.registry,
            "OUTRIDER_REGISTRY_PLAIN_HTTP": "true",
            # The files are served on this machine, where no source may be otherwise.
            "OUTRIDER_ALLOWED_SOURCE_ADDRESSES": "127.0.0.0/8",
            "OUTRIDER_LISTEN_HOST": "127.0.0.1",
            "OUTRIDER_LISTEN_PORT": str(free_port("127.0.0.1")),
            "OUTRIDER_POD_NAME": "beside",
        }
        log = self.cluster.directory / "logs" / "operator.log"
        # It carries the cluster's mark, and so ends with it.
        process = spawn(
            "operator",
            [sys.executable, "-m", "outrider", "run"],
            log,
            cluster=self.cluster.directory,
            environment=environment,
        )
        self._terminal.step(f"the operator runs as process {process.pid}, its log is {log}")
        self._await_leader()
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} get lease outrider")
        self.outcome.proves("install.yaml is all it takes", "CRDs, policies and rights; the operator as a process")

    def _apply_install_yaml(self) -> None:
        shutil.copyfile(ROOT / "install.yaml", self.workshop.directory / "install.yaml")
        lines = self.workshop.run("kubectl apply -f install.yaml").splitlines()
        self._terminal.output("\n".join([*lines[:2], f"… and {len(lines) - 2} more"]))
        settings = {"OUTRIDER_REGISTRY": self.cluster.registry, "OUTRIDER_REGISTRY_PLAIN_HTTP": "true"}
        if self.real_node is not None:
            # For one of the chapters: nodes reach the registry through somebody who passes everything on, until then.
            settings["OUTRIDER_NODE_REGISTRY"] = self.workshop.stand_between(self.cluster, sys.executable)
        self._show(
            f"kubectl -n {OPERATOR_NAMESPACE} patch configmap outrider-settings --type merge -p "
            f"'{json.dumps({'data': settings})}'"
        )

    def _trust_a_key(self) -> None:
        self._begin("Whom to trust")
        self._terminal.say(
            "Whoever runs the cluster decides whose signatures count: a public key in a Secret, in the operator's own "
            "namespace. The private key stays with the author of the agent."
        )
        self.workshop.make_key(KEY, PUBLIC_KEY)
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} create secret generic agent-team --from-file={PUBLIC_KEY}")
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} label secret agent-team outrider.dev/trust-key=true")

    def _first_version(self) -> None:
        self._begin("1.0.0: from a file to every node")
        self._terminal.say(
            "The author builds an executable, signs it, puts it on a web server and describes it in a ComponentVersion."
        )
        address = self.workshop.serve(self.cluster, sys.executable)
        self._show(f"kubectl create namespace {NAMESPACE}")
        self._build("1.0.0")
        self.workshop.sign("1.0.0")
        manifest = self.workshop.write_version("1.0.0")
        self._terminal.say(f"The files are served at {address}. {manifest} says, beside its name and version:")
        self._terminal.excerpt(_from(self.workshop.directory / manifest, "  artifacts:"))
        self._publish("1.0.0", watch=True)

        self._terminal.say(
            "A Rollout says which nodes run which version, and how they get there. Nothing runs yet, so the first "
            "version may go everywhere at once."
        )
        rollout = self.workshop.write(
            "rollout-1.0.0.yaml", "rollout.yaml", VERSION="1.0.0", STRATEGY=_ALL_AT_ONCE, IMAGE=AGENT_IMAGE
        )
        self._show(f"kubectl apply -f {rollout}")
        seconds = self._complete("1.0.0")
        self._show(f"kubectl get outrider -n {NAMESPACE}")
        self._look_at_a_node()
        self._ask_agents("1.0.0")
        self.outcome.proves(
            "1.0.0 is on every node", f"{self._fleet.size} of {self._fleet.size} nodes in {seconds:.0f} s"
        )

    def _look_at_a_node(self) -> None:
        if self.real_node is None:
            return
        pod = self._fleet.agent_on(self.real_node)
        assert pod is not None
        self._terminal.say(
            f"On {self.real_node} an init container has fetched the file by its digest and verified it once more, "
            "before anything of the agent started:"
        )
        self._show(
            f"kubectl -n {NAMESPACE} get pods --field-selector=spec.nodeName={self.real_node} -o wide", columns=7
        )
        said = self._show(f"kubectl -n {NAMESPACE} logs {pod['metadata']['name']} -c outrider-fetch")
        expect("verified: sha256" in said, "the init container says nothing of having verified the file")

    def _second_version(self) -> None:
        self._begin("1.1.0: a canary, then batches")
        first = (
            "one real node first, watched for 2 s, then the other, watched for 6 s"
            if self._carefully == _CAREFUL_ON_REAL_NODES
            else f"{_CANARIES} nodes first, watched for 6 s"
        )
        self._terminal.say(
            f"Now agents are at work, so the next version goes carefully: {first}, then {_BATCH} at a time. A batch "
            "starts only when the one before is healthy."
        )
        self._prepare("1.1.0")
        self._publish("1.1.0")
        rollout = self.workshop.write(
            "rollout-1.1.0.yaml", "rollout.yaml", VERSION="1.1.0", STRATEGY=self._carefully, IMAGE=AGENT_IMAGE
        )
        self._terminal.line()
        self._terminal.excerpt(_from(self.workshop.directory / rollout, "  strategy:", until="  health:"))
        self._show(f"kubectl apply -f {rollout}")
        lost: list[str] = []

        def the_canaries_are_healthy(rollout: Object) -> bool:
            return int(rollout["status"]["run"]["healthy"]) >= _CANARIES

        def the_first_batch_is_healthy(rollout: Object) -> bool:
            return int(rollout["status"]["run"]["healthy"]) >= _CANARIES + _BATCH

        def look() -> None:
            self._terminal.say("In the middle of it:")
            self._show(f"kubectl get outrider -n {NAMESPACE}")
            self._terminal.line()

        seconds = self._complete(
            "1.1.0",
            interludes={
                the_canaries_are_healthy: lambda: lost.append(self._lose_an_agent()),
                the_first_batch_is_healthy: look,
            },
        )
        self._ask_agents("1.1.0")
        sizes = [len(batch["spec"]["nodes"]) for batch in self._fleet.batches() if batch["spec"]["run"] == 2]
        canaries = [1, 1] if self._carefully == _CAREFUL_ON_REAL_NODES else [_CANARIES]
        expect(sizes[: len(canaries)] == canaries and max(sizes) <= _BATCH, f"batches of {sizes} nodes")
        away = self._fleet.size - self._fleet.fewest_ready
        expect(away <= _BATCH, f"{away} agents were away at a time, more than a batch")
        self._terminal.done(
            f"Batches of {_join(sizes)} nodes; at no time were more than {away} nodes without their agent."
        )
        self.outcome.proves(
            "1.1.0 went canary first, then in batches",
            f"batches of {_join(sizes)} in {seconds:.0f} s, at most {away} nodes without their agent",
        )
        self.outcome.proves("a lost agent returns at its node's version", f"{lost[0]}: 1.0.0, while 1.1.0 was rolling")

    def _lose_an_agent(self) -> str:
        moved = {node["name"] for batch in self._fleet.batches() for node in batch["spec"]["nodes"] if _run(batch) == 2}
        fake = set(self.cluster.fake_nodes)
        candidates = [pod for pod in self._fleet.agents() if pod["spec"].get("nodeName") in fake - moved]
        victim = max(candidates, key=lambda pod: str(pod["spec"]["nodeName"]))
        node, uid = victim["spec"]["nodeName"], victim["metadata"]["uid"]
        self._terminal.say(
            f"The canaries are healthy. While they are watched, {node}, still on 1.0.0, loses its agent. A DaemonSet "
            "on its way to 1.1.0 would bring the half-tested version back there. Here:"
        )
        # That this one is away is our own doing.
        self._fleet.excused.add(node)
        self._show(f"kubectl -n {NAMESPACE} delete pod {victim['metadata']['name']}")
        found: list[Object] = []

        def came_back() -> bool:
            pod = self._fleet.agent_on(node)
            if pod is not None and pod["metadata"]["uid"] != uid:
                found.append(pod)
            return bool(found)

        self._fleet.wait(f"a new agent on {node}", came_back, 10)
        version = version_of(found[0])
        expect(version == "1.0.0", f"the agent that came back on {node} is {version}, not 1.0.0")
        self._terminal.done(f"{found[0]['metadata']['name']} comes back on {node} as {version}.")
        self._terminal.line()
        return str(node)

    def _bad_version(self) -> None:
        self._begin("1.2.0: a bad one goes back by itself")
        self._terminal.say(
            "1.2.0 is signed as it should be, and published. But it crashes at its start."
            + ("" if self.real_node else " (Fake nodes run nothing, so they are told to fail on 1.2.0.)")
        )
        self._prepare("1.2.0")
        self._publish("1.2.0")
        fault = self.cluster.inject("crash-loop", pod_labels={"outrider.dev/version": "1.2.0"}, namespace=NAMESPACE)
        before = self._fleet.ready_versions()
        expect(before == {"1.1.0": self._fleet.size}, f"agents before: {dict(before)}")
        generation = self._set_version("1.2.0")
        started = time.monotonic()
        rollout = self._fleet.follow(generation, until=("RolledBack", "Completed", "Stalled"), seconds=120)
        seconds = time.monotonic() - started
        phase = rollout["status"]["phase"]
        expect(phase == "RolledBack" and is_true(rollout, "RolledBack"), f"the Rollout is {phase}, not RolledBack")
        fault.remove()

        self._terminal.say("The Rollout says what happened and what to do next:")
        self._terminal.prose(self._ready_message())
        failed = [
            batch
            for batch in self._fleet.batches()
            if batch["spec"]["version"] == "1.2.0" and _kind(batch) == "Rollout"
        ]
        touched = {node["name"] for batch in failed for node in batch["spec"]["nodes"]}
        expect(0 < len(touched) <= _CANARIES, f"{len(touched)} nodes were moved to 1.2.0")
        self._terminal.say("And for each node there is a record:")
        self._show(f"kubectl -n {NAMESPACE} get orb")
        record = failed[0]["metadata"]["name"]
        row = '{range .status.nodes[*]}{.name}: {.state} ({.reason}: {.message}){"\\n"}{end}'
        said = self.workshop.run(f"kubectl -n {NAMESPACE} get orb {record} --output=jsonpath='{row}'")
        for line in said.splitlines():
            self._terminal.prose(line)
        self._fleet.wait(
            f"all {self._fleet.size} agents Ready on 1.1.0",
            lambda: self._fleet.ready_versions() == {"1.1.0": self._fleet.size},
            30,
        )
        self._ask_agents("1.1.0")
        self._terminal.done(
            f"1.2.0 got no further than {len(touched)} of {self._fleet.size} nodes; all run 1.1.0 again, by themselves."
        )
        self.outcome.proves(
            "a bad version goes back by itself",
            f"1.2.0 got no further than {len(touched)} of {self._fleet.size} nodes and was gone after {seconds:.0f} s",
        )

    def _changed_on_its_way(self) -> None:
        self._begin("1.2.1: changed on its way to a node")
        claim = "bytes that are changed on their way do not start"
        if self.real_node is None:
            self._terminal.say("A fake node fetches nothing, so that this chapter is left out.")
            self.outcome.cannot_show(claim, "there is no real node that fetches anything")
            return
        self._terminal.say(
            "1.2.1 is good: the operator has read it back from the registry and verified it. But somebody sits between "
            "the nodes and the registry, and changes it as it passes."
        )
        self._prepare("1.2.1")
        self._publish("1.2.1")
        with self.workshop.tampering_with("1.2.1") as count:
            self._terminal.step(f"from here on {count} bytes of 1.2.1 are others than those that were signed")
            generation = self._set_version("1.2.1")
            started = time.monotonic()
            self._fleet.follow(generation, until=("RolledBack", "Completed", "Stalled"), seconds=120)
            seconds = time.monotonic() - started
        rollout = self._fleet.rollout()
        expect(is_true(rollout, "RolledBack"), f"the Rollout is {rollout['status']['phase']}, not RolledBack")
        failed = [
            node
            for batch in self._fleet.batches()
            if batch["spec"]["version"] == "1.2.1" and _kind(batch) == "Rollout"
            for node in batch["status"].get("nodes") or []
            if node["state"] == "Failed"
        ]
        expect(len(failed) == 1, f"{len(failed)} nodes failed on 1.2.1")
        self._fleet.wait(
            f"all {self._fleet.size} agents Ready on 1.1.0",
            lambda: self._fleet.ready_versions() == {"1.1.0": self._fleet.size},
            30,
        )
        self._ask_agents("1.1.0")
        self._terminal.done(
            f"Nothing of it was started. {failed[0]['name']} runs 1.1.0 again, and no other node was touched."
        )
        self.outcome.proves(claim, f"{failed[0]['name']}: {failed[0]['reason']}, back after {seconds:.0f} s")

    def _tampered_version(self) -> None:
        self._begin("1.3.0: tampered with, and refused")
        self._terminal.say(
            "1.3.0 is signed and described. Then somebody adds a few bytes to the file on the web server."
        )
        self._prepare("1.3.0")
        for architecture in self.workshop.architectures:
            file = self.workshop.file_name("1.3.0", architecture)
            self.workshop.run(
                f"sh -c 'echo a back door >> {file}'", show=architecture == self.workshop.architectures[0]
            )
            shutil.copyfile(
                self.workshop.directory / file, self.workshop.directory / self.workshop.file_name("1.3.1", architecture)
            )
        self._refused("1.3.0", "Stored")
        self._terminal.say(
            "A cleverer one makes the changed file a version of its own, 1.3.1, with the hash that it really has. But "
            "to sign it takes the private key, and the old signature does not fit:"
        )
        self.workshop.write_version("1.3.1", signed_as="1.3.0")
        self._refused("1.3.1", "Verified")
        self._terminal.say("Somebody asks for 1.3.0 all the same. Nobody is moved:")
        agents = self._fleet.uids()
        generation = self._set_version("1.3.0")
        rollout = self._fleet.follow(generation, until=("Waiting", "Stalled", "Completed"), seconds=30)
        expect(not is_true(rollout, "Ready"), "the Rollout to a version that was refused is Ready")
        self._show(f"kubectl -n {NAMESPACE} get orl,cver")
        self._terminal.prose(self._ready_message())
        time.sleep(3)
        expect(self._fleet.uids() == agents, "agents were replaced although the version was refused")
        self._terminal.say("Back to the version that works, as one would in Git:")
        generation = self._set_version("1.1.0")
        self._fleet.follow(generation, until=("Completed",), seconds=30)
        expect(self._fleet.uids() == agents, "agents were replaced although all ran the right version")
        self._ask_agents("1.1.0")
        self._terminal.done(f"The same {len(agents)} agents as before, not one restarted.")
        self.outcome.proves("changed bytes are refused", "1.3.0 by its hash, 1.3.1 by its signature; 0 nodes moved")

    def _tested_versions(self) -> None:
        self._begin("1.4.0: tested before anybody may use it")
        self._terminal.say(
            "1.4.0 crashes as 1.2.0 did. But this time its author has given it a test: a Job that starts the verified "
            "executable and asks it for its version. No node is touched to find out."
        )
        claim = "a version that fails its test is not published"
        if self.real_node is None:
            self._terminal.say("A fake node runs no Job for real, so that this chapter is left out.")
            self.outcome.cannot_show(claim, "there is no real node to run the test")
            return
        self._build("1.4.0")
        self.workshop.sign("1.4.0")
        manifest = self.workshop.write_version("1.4.0", tested=True)
        self._terminal.excerpt(_from(self.workshop.directory / manifest, "  testing:"))
        self._refused("1.4.0", "Tested")
        self._show(f"kubectl -n {NAMESPACE} get jobs")
        self._terminal.say("The corrected one has the same test:")
        self._build("1.4.1")
        self.workshop.sign("1.4.1")
        self.workshop.write_version("1.4.1", tested=True)
        self._publish("1.4.1")
        tested = message_of(self._fleet.version("1.4.1"), "Tested")
        self.outcome.proves(claim, f"1.4.0 stays a Draft by its test's last words, 1.4.1: {tested}")

    def _another_key(self) -> None:
        self._begin("A key goes, and nothing stops")
        self._terminal.say(
            "The signing key has to be replaced. The new one is trusted beside the old one, what is in use is signed "
            "again, and then the old one is removed. What nodes have pinned stays the same."
        )
        new, public = _NEW_KEY, _NEW_KEY.replace(".pem", ".pub")
        self.workshop.make_key(new, public)
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} create secret generic agent-team-2 --from-file={public}")
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} label secret agent-team-2 outrider.dev/trust-key=true")
        before = self._fleet.version("1.1.0")["status"]
        agents = self._fleet.uids()
        self.workshop.sign("1.1.0", new)
        self._show(f"kubectl apply -f {self.workshop.write_version('1.1.0')}")
        self._fleet.wait("1.1.0 signed again", lambda: self._is_settled("1.1.0", "Published"), 30)
        self._show(f"kubectl -n {OPERATOR_NAMESPACE} delete secret agent-team")
        self._fleet.wait("1.0.0 withdrawn", lambda: self._is_settled("1.0.0", "Withdrawn"), 30)

        def key_of(status: Object) -> str:
            return str(status["artifacts"][0]["signature"]["keyFingerprint"])

        self._fleet.wait(
            "1.1.0 by the new key", lambda: key_of(self._fleet.version("1.1.0")["status"]) != key_of(before), 30
        )
        after = self._fleet.version("1.1.0")["status"]
        self._show(f"kubectl -n {NAMESPACE} get cver")
        expect(after["reference"] == before["reference"], "what nodes have pinned has changed")
        expect(self._fleet.uids() == agents, "agents were replaced although only a signature was added")
        self._terminal.prose(f"1.0.0: {message_of(self._fleet.version('1.0.0'), 'Ready')}")
        seen = f"1.1.0 is vouched for by {key_of(after)[:19]}… now; 1.0.0, not signed again, is withdrawn"
        if self.real_node is not None:
            pod = self._fleet.agent_on(self.real_node)
            assert pod is not None
            self._terminal.say(f"And an agent that is lost on {self.real_node} is verified with the new key:")
            self._show(f"kubectl -n {NAMESPACE} delete pod {pod['metadata']['name']}")
            self._fleet.wait(
                f"all {self._fleet.size} agents Ready on 1.1.0",
                lambda: self._fleet.ready_versions() == {"1.1.0": self._fleet.size} and self._fleet.uids() != agents,
                60,
            )
            self._ask_agents("1.1.0")
        self.outcome.proves("a key can be replaced while agents run", seen)

    def _daemon(self) -> None:
        self._begin("A daemon on the node itself")
        claim = "a bad daemon goes back on its node"
        if self.real_node is None:
            self._terminal.say("Nothing can be installed on a fake node, so that this chapter is left out.")
            self.outcome.cannot_show(claim, "there is no real node to install anything on")
            return
        program = f"/opt/{DAEMON}/current/{DAEMON}"
        self._terminal.say(
            "Some programs do not belong into a pod. A component of type Daemon is installed on the node: fetched and "
            "verified as before, then one link is switched, the node's service manager restarts the unit, and the new "
            f"one must answer. Here the unit {DAEMON} of both real nodes starts {program}."
        )
        for node in self._real:
            self.cluster.real_node(node).add_service(DAEMON, program)
        self._watched = Fleet(self.cluster.client(), self._terminal, DAEMON, len(self._real))
        self._prepare("2.0.0", _NEW_KEY)
        self._publish("2.0.0")
        rollout = self.workshop.write("rollout-daemon.yaml", "rollout-daemon.yaml", VERSION="2.0.0")
        self._terminal.line()
        self._terminal.excerpt(_from(self.workshop.directory / rollout, "  delivery:"))
        self._show(f"kubectl apply -f {rollout}")
        self._complete("2.0.0")
        pod = self._fleet.agent_on(str(self.real_node))
        assert pod is not None
        self._show(f"kubectl -n {NAMESPACE} logs {pod['metadata']['name']} -c outrider-install")
        self._look_at("ls -l --time-style=+ /opt/node-daemon /opt/node-daemon/versions")
        self._ask_daemons("2.0.0")

        self._terminal.say("2.1.0 is signed and published. It crashes at its start:")
        self._prepare("2.1.0", _NEW_KEY)
        self._publish("2.1.0")
        generation = self._set_version("2.1.0")
        started = time.monotonic()
        rolled_back = self._fleet.follow(generation, until=("RolledBack", "Completed", "Stalled"), seconds=120)
        seconds = time.monotonic() - started
        expect(is_true(rolled_back, "RolledBack"), f"the Rollout is {rolled_back['status']['phase']}, not RolledBack")
        self._ask_daemons("2.0.0")
        failed = [
            node["name"]
            for batch in self._fleet.batches()
            if batch["spec"]["version"] == "2.1.0" and _kind(batch) == "Rollout"
            for node in batch["status"].get("nodes") or []
            if node["state"] == "Failed"
        ]
        expect(len(failed) == 1, f"2.1.0 failed on {failed}, and not on one node")
        self._terminal.done(
            f"{failed[0]} switched back by itself, before anybody told it to; the other node was never touched."
        )
        self.outcome.proves(claim, f"{failed[0]} runs 2.0.0 again; all over after {seconds:.0f} s")

    def _look_at(self, command: str) -> None:
        """Run a command on a real node itself, and show it and what it says."""
        assert self.real_node is not None
        said = self.cluster.real_node(self.real_node).run(*shlex.split(command)).stdout
        self._terminal.say(f"On {self.real_node}:")
        self._terminal.command(command)
        self._terminal.output(said.rstrip())

    def _ask_daemons(self, version: str) -> None:
        said = {}
        for node in self.cluster.client().items("/api/v1/nodes", labelSelector=_REAL_ONES):
            addresses = {one["type"]: one["address"] for one in node["status"]["addresses"]}
            name, url = node["metadata"]["name"], f"http://{addresses['InternalIP']}:8080/version"
            said[url] = self._await_answer(url)
            expect(said[url] == f"{DAEMON} {version} on {name}", f"{url} says {said[url]!r}, not {version}")
        self._terminal.say("The daemons, asked by HTTP at their nodes' addresses:")
        self._terminal.output("\n".join(f"GET {url}    {answer}" for url, answer in said.items()))

    def _await_answer(self, url: str) -> str:
        found: list[str] = []

        def answers() -> bool:
            with contextlib.suppress(OSError):
                found.append(fetch_text(url))
            return bool(found)

        self._fleet.wait(f"an answer of {url}", answers, 10)
        return found[0]

    def _is_settled(self, version: str, phase: str) -> bool:
        item = self._fleet.version(version)
        seen = item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
        return seen and _phase(item) == phase and not is_true(item, "Reconciling")

    # --- what several chapters do -----------------------------------------------------------

    def _begin(self, title: str) -> None:
        self._chapter += 1
        self._terminal.chapter(self._chapter, _CHAPTERS, title)

    @contextlib.contextmanager
    def _launcher(self, what: str) -> Iterator[None]:
        with contextlib.redirect_stderr(Relay(self._terminal)), Waiting(self._terminal, what):
            yield

    def _show(
        self,
        command: str,
        *,
        head: int | None = None,
        tail: int = 0,
        columns: int | None = None,
    ) -> str:
        """Run a command, show it and what it says; with `head` and `tail` only the first and last rows."""
        said = self.workshop.run(command)
        lines = said.splitlines()
        if columns is not None:
            lines = _first_columns(lines, columns)
        if head is not None and len(lines) > head + tail + 2:
            left_out = len(lines) - 1 - head - tail
            lines = [*lines[: head + 1], f"… {left_out} more like these", *lines[len(lines) - tail :]]
        self._terminal.output("\n".join(lines))
        return said

    def _await_leader(self) -> None:
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/outrider"
        client = self.cluster.client()

        def leads() -> bool:
            holder = str(client.get(lease)["spec"].get("holderIdentity") or "")
            pods = client.items(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods")
            # Beside a cluster without real nodes no pod runs, and the process that does holds it.
            return bool(holder) and (not pods or any(holder.startswith(pod["metadata"]["name"]) for pod in pods))

        self._fleet.wait("an operator that leads", leads, 60)

    def _build(self, version: str) -> None:
        with Waiting(self._terminal, f"compiling the agent {version}"):
            self.workshop.await_build(version)

    def _prepare(self, version: str, key: str = KEY) -> None:
        self._build(version)
        self.workshop.sign(version, key)
        self.workshop.write_version(version)

    def _publish(self, version: str, *, watch: bool = False) -> None:
        name = f"{self._fleet.name}-{version}"
        started = time.monotonic()

        def is_published() -> bool:
            return _phase(self._fleet.version(version)) == "Published"

        watching = f"kubectl -n {NAMESPACE} get cver --watch"
        context: contextlib.AbstractContextManager[list[str]] = contextlib.nullcontext([])
        if watch:
            context = self._watching(watching)
        with context as seen:
            self._show(f"kubectl apply -f {name}.yaml")
            self._fleet.wait(f"the publication of {version}", is_published, 60)
        seconds = time.monotonic() - started
        if watch:
            self._terminal.command(watching)
            self._terminal.output("".join(seen))
        status = self._fleet.version(version)["status"]
        key = status["artifacts"][0]["signature"]["keyFingerprint"]
        size = status["artifacts"][0]["size"] / 1e6
        self._terminal.done(
            f"{version} is Published after {seconds:.1f} s: {size:.1f} MB stored in the registry, read back, hash and "
            f"signature verified (key {key[:19]}…)."
        )

    @contextlib.contextmanager
    def _watching(self, command: str) -> Iterator[list[str]]:
        """Run a command that watches, and yield the list that its lines arrive in; ends it a moment later."""
        lines: list[str] = []
        with subprocess.Popen(
            shlex.split(command),
            env=self.workshop.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:

            def read() -> None:
                for line in process.stdout or ():
                    if line not in lines[-1:]:
                        lines.append(line)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            try:
                # It lists first, then watches: what happens before that would not be seen.
                time.sleep(0.5)
                yield lines
                time.sleep(0.5)
            finally:
                process.terminate()
                reader.join()

    def _complete(
        self, version: str, interludes: dict[Callable[[Object], bool], Callable[[], None]] | None = None
    ) -> float:
        """Follow the Rollout until the version is everywhere; return the seconds."""
        started = time.monotonic()
        generation = int(self._fleet.rollout()["metadata"]["generation"])
        self._terminal.line()
        rollout = self._fleet.follow(
            generation, until=("Completed", "RolledBack", "Stalled"), seconds=180, interludes=interludes
        )
        expect(is_true(rollout, "Ready"), f"the Rollout to {version} is not Ready: {message_of(rollout, 'Ready')}")
        versions = self._fleet.ready_versions()
        expect(versions == {version: self._fleet.size}, f"not every agent is Ready on {version}: {dict(versions)}")
        seconds = time.monotonic() - started
        self._terminal.done(f"{message_of(rollout, 'Ready')}, after {seconds:.0f} s.")
        return seconds

    def _ready_message(self) -> str:
        path = '{.status.conditions[?(@.type=="Ready")].message}'
        return self.workshop.run(f"kubectl -n {NAMESPACE} get orl {self._fleet.name} --output=jsonpath='{path}'")

    def _set_version(self, version: str) -> int:
        patch = f'{{"spec": {{"version": "{version}"}}}}'
        self._show(f"kubectl -n {NAMESPACE} patch orl {self._fleet.name} --type merge -p '{patch}'")
        self._terminal.line()
        return int(self._fleet.rollout()["metadata"]["generation"])

    def _refused(self, version: str, condition: str) -> None:
        self._show(f"kubectl apply -f {self._fleet.name}-{version}.yaml")

        def is_stalled() -> bool:
            return is_true(self._fleet.version(version), "Stalled")

        self._fleet.wait(f"the refusal of {version}", is_stalled, 60)
        item = self._fleet.version(version)
        self._show(f"kubectl -n {NAMESPACE} get cver {self._fleet.name}-{version}")
        self._terminal.prose(f"{condition}: {message_of(item, condition)}")
        states = {one["type"]: one["status"] for one in item["status"]["conditions"]}
        expect(states[condition] == "False", f"{condition} of {version} is {states[condition]}, not False")
        expect(_phase(item) == "Draft", f"{version} is {_phase(item)}, not Draft")
        expect("publishedAt" not in item["status"], f"{version} was published")
        self._terminal.done(f"{version} stays a Draft: no Rollout can use it.")

    def _ask_agents(self, version: str) -> None:
        if not self._real:
            return
        said = {}
        for node in self._real:
            pod = self._fleet.agent_on(node)
            expect(pod is not None and bool(pod["status"].get("podIP")), f"there is no agent on {node}")
            assert pod is not None
            url = f"http://{pod['status']['podIP']}:8080/version"
            said[url] = fetch_text(url)
            expect(said[url] == f"node-agent {version} on {node}", f"{url} says {said[url]!r}, not {version}")
        self._terminal.say("The agents on the real nodes, asked by HTTP:")
        self._terminal.output("\n".join(f"GET {url}    {answer}" for url, answer in said.items()))
        self._answers.append(version)


def _image_of_the_deployment() -> str:
    """Return the image that install.yaml runs: the one to build."""
    found = re.search(r"^ +image: \"?([^\"\s]+)\"?$", (ROOT / "install.yaml").read_text(), re.MULTILINE)
    if found is None:
        raise NotAsTold("install.yaml names no image for the operator")
    return found[1]


def _from(path: Path, start: str, until: str | None = None) -> str:
    """Return the part of a file from one line to before another; long words are cut."""
    text = path.read_text()
    text = text[text.index(start) :]
    if until is not None:
        text = text[: text.index(until)]
    return re.sub(r"[A-Za-z0-9+/=]{50,}", lambda found: found[0][:24] + "…", text)


def _first_columns(lines: Sequence[str], count: int) -> list[str]:
    """Cut a table after its first columns."""
    if not lines:
        return []
    starts = [found.start() for found in re.finditer(r"(?<=  )\S", lines[0])]
    end = starts[count - 1] if len(starts) >= count else None
    return [line[:end].rstrip() for line in lines]


def _join(sizes: Sequence[int] | Sequence[str]) -> str:
    return ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])


def _phase(item: Object) -> str:
    return str((item.get("status") or {}).get("phase"))


def _run(batch: Object) -> int:
    return int(batch["spec"]["run"])


def _kind(batch: Object) -> str:
    return str(batch["spec"]["kind"])
