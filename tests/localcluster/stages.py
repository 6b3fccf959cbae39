"""What fake nodes and the pods on them do: kwok Stage objects, the healthy and the failing.

kwok picks for each change of a pod or node one stage whose selector matches, at random by weight;
a weight of 0 loses against any other. So the healthy stages weigh 0 and exclude each other, and
each failing behaviour weighs more and always has exactly one stage that matches while it is in
force, if need be one that only waits.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localcluster.apiclient import Object
from localcluster.errors import LauncherError

PREFIX = "fake.outrider.test"
BEHAVIOUR = f"{PREFIX}/behaviour"
TIMING = f"{PREFIX}/timing"
HEALED = f"{PREFIX}/healed"

POD_BEHAVIOURS = (
    "never-ready",
    "late",
    "crash-loop",
    "init-crash-loop",
    "restarts",
    "image-pull-error",
    "config-error",
    "fails",
    "stuck-terminating",
)
NODE_BEHAVIOURS = ("not-ready", "unreachable")
_WITH_NUMBER = {"late": 20, "restarts": 3}

# Ten years: a stage that never plays, and so holds what it matches as it is.
_NEVER = 10 * 365 * 86_400_000

_BEHAVIOUR_OF = f'(.metadata.annotations["{BEHAVIOUR}"] // "" | split(":")[0] // "")'
_REALISTIC = f'.metadata.annotations["{TIMING}"] == "realistic"'
_FIRST = "(.status.containerStatuses[0] // {})"
_READY = '([.status.conditions[]? | select(.type == "Ready") | .status][0] // "Unknown")'

_CONTAINERS_READY = _READY.replace("Ready", "ContainersReady")

Expression = dict[str, Any]


def expression(query: str, operator: str, *values: str) -> Expression:
    """One condition of a selector: a jq query over the object."""
    return {"jq": {"key": query, "operator": operator, "values": list(values)}}


def condition(query: str) -> Expression:
    """One condition of a selector: a jq query that is true or false."""
    return expression(f'if {query} then "yes" else "no" end', "In", "yes")


_LIVE = expression(".metadata.deletionTimestamp", "DoesNotExist")
_DELETED = expression(".metadata.deletionTimestamp", "Exists")


def _stage(
    name: str,
    kind: str,
    selector: Sequence[Expression],
    following: Object,
    *,
    weight: int = 0,
    delay: Object | None = None,
) -> Object:
    spec: Object = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": list(selector)},
        "weight": weight,
        "next": following,
    }
    if delay is not None:
        spec["delay"] = delay
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": spec,
    }


def _jq(query: str) -> Object:
    return {"jq": {"expression": query}}


# --- what a pod's status says -----------------------------------------------------------------

_HEAD = """
{{ $now := Now }}
{{ $root := . }}
{{ $uid := or .metadata.uid "" }}
{{ $old := or .status.containerStatuses list }}
startTime: {{ or .status.startTime $now | Quote }}
{{ $hostIPs := NodeIPsWith .spec.nodeName }}
{{ with $hostIPs }}
hostIP: {{ index . 0 | Quote }}
hostIPs:
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
{{ if not .status.podIP }}
{{ $ips := PodIPsWith .spec.nodeName (or .spec.hostNetwork false) $uid .metadata.name .metadata.namespace }}
{{ with $ips }}
podIP: {{ index . 0 | Quote }}
podIPs:
- $patch: replace
{{ range . }}
- ip: {{ . | Quote }}
{{ end }}
{{ end }}
{{ end }}
"""

_INIT_DONE = """
initContainerStatuses:
{{ range .spec.initContainers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: {{ printf "fake@sha256:%s" (sha256sum .image) | Quote }}
  containerID: {{ printf "containerd://%s" (sha256sum (print $uid .name)) | Quote }}
  ready: true
  restartCount: 0
  {{ if eq (or .restartPolicy "") "Always" }}
  started: true
  state:
    running:
      startedAt: {{ $now | Quote }}
  {{ else }}
  started: false
  state:
    terminated:
      containerID: {{ printf "containerd://%s" (sha256sum (print $uid .name)) | Quote }}
      exitCode: 0
      reason: Completed
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
  {{ end }}
{{ end }}
"""

_INIT_CRASHES = """
initContainerStatuses:
{{ $oldInit := or .status.initContainerStatuses list }}
{{ range $index, $item := .spec.initContainers }}
- name: {{ $item.name | Quote }}
  image: {{ $item.image | Quote }}
  ready: false
  started: false
  {{ if eq $index 0 }}
  {{ $count := 0 }}
  {{ if $oldInit }}{{ $count = or (index $oldInit 0).restartCount 0 }}{{ end }}
  imageID: {{ printf "fake@sha256:%s" (sha256sum $item.image) | Quote }}
  containerID: {{ printf "containerd://%s" (sha256sum (print $uid $item.name)) | Quote }}
  restartCount: {{ add $count 1 }}
  state:
    waiting:
      reason: CrashLoopBackOff
      message: {{ printf "back-off restarting failed container=%s" $item.name | Quote }}
  lastState:
    terminated:
      containerID: {{ printf "containerd://%s" (sha256sum (print $uid $item.name)) | Quote }}
      exitCode: 1
      reason: Error
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
  {{ else }}
  imageID: ""
  restartCount: 0
  state:
    waiting:
      reason: PodInitializing
  {{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state:
    waiting:
      reason: PodInitializing
{{ end }}
"""


def _containers(first: str, *, others_ready: bool) -> str:
    """Statuses of all containers: the first as given, the others running."""
    ready = "true" if others_ready else "false"
    return (
        """
containerStatuses:
{{ range $index, $item := .spec.containers }}
{{ $id := printf "containerd://%s" (sha256sum (print $uid $item.name)) }}
{{ $count := 0 }}
{{ if gt (len $old) $index }}{{ $count = or (index $old $index).restartCount 0 }}{{ end }}
- name: {{ $item.name | Quote }}
  image: {{ $item.image | Quote }}
{{ if eq $index 0 }}
"""
        + first
        + """
{{ else }}
  imageID: {{ printf "fake@sha256:%s" (sha256sum $item.image) | Quote }}
  containerID: {{ $id | Quote }}
  ready: """
        + ready
        + """
  started: true
  restartCount: 0
  state:
    running:
      startedAt: {{ $now | Quote }}
{{ end }}
{{ end }}
"""
    )


_STARTED = """
  imageID: {{ printf "fake@sha256:%s" (sha256sum $item.image) | Quote }}
  containerID: {{ $id | Quote }}
"""
_TERMINATED = """
  lastState:
    terminated:
      containerID: {{ $id | Quote }}
      exitCode: 1
      reason: Error
      message: no such device
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
"""


def _running(*, ready: bool, restarts: str = "$count", crashed: bool = False) -> str:
    return (
        _STARTED
        + f"""
  ready: {str(ready).lower()}
  started: true
  restartCount: {{{{ {restarts} }}}}
  state:
    running:
      startedAt: {{{{ $now | Quote }}}}
"""
        + (_TERMINATED if crashed else "")
    )


_CRASHED = (
    _STARTED
    + """
  ready: false
  started: false
  restartCount: {{ add $count 1 }}
  state:
    waiting:
      reason: CrashLoopBackOff
      message: {{ printf "back-off restarting failed container=%s" $item.name | Quote }}
"""
    + _TERMINATED
)


def _waiting(reason: str, message: str) -> str:
    return f"""
  imageID: ""
  ready: false
  started: false
  restartCount: 0
  state:
    waiting:
      reason: {reason}
      message: {{{{ {message} | Quote }}}}
"""


def _status(phase: str, containers: str, *, ready: bool, initialized: bool = True) -> Object:
    """The next status of a pod: phase, conditions and containers in agreement."""

    def one(kind: str, holds: bool, reason: str, message: str) -> str:
        lines = f"""
- type: {kind}
  status: "{holds}"
  lastTransitionTime: {{{{ $now | Quote }}}}
"""
        if not holds:
            return lines + f"  reason: {reason}\n  message: {{{{ {message} | Quote }}}}\n"
        # Named as null, so that a strategic merge removes what an earlier state left here.
        return lines + "  reason: null\n  message: null\n"

    names = "{{ $names := list }}{{ range .spec.%s }}{{ $names = append $names .name }}{{ end }}\n"
    text = _HEAD + names % "containers"
    unready = 'printf "containers with unready status: %v" $names'
    incomplete = 'printf "containers with incomplete status: %v" $names'
    text += "conditions:"
    text += one("PodReadyToStartContainers", True, "", "")
    text += one("Initialized", initialized, "ContainersNotInitialized", incomplete)
    text += one("ContainersReady", ready, "ContainersNotReady", unready)
    text += one("Ready", ready, "ContainersNotReady", unready)
    if ready:
        text += """
{{ range .spec.readinessGates }}
- type: {{ .conditionType | Quote }}
  status: "True"
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
"""
    text += (_INIT_DONE if initialized else "") + containers + f"phase: {phase}\n"
    # Rendered as YAML, where an empty line means nothing: keep the objects readable instead.
    return {"statusTemplate": re.sub(r"\n\s*\n+", "\n", text).lstrip("\n")}


_HEALTHY = _status("Running", _containers(_running(ready=True), others_ready=True), ready=True)


# --- healthy ----------------------------------------------------------------------------------


def _paced(low: int, high: int) -> Object:
    """No delay, or one of ``low`` to ``high`` seconds for a pod that asks for realistic timing."""
    return {
        "durationFrom": _jq(f'if {_REALISTIC} then "{low}s" else "0s" end'),
        "jitterDurationFrom": _jq(f'if {_REALISTIC} then "{high}s" else "0s" end'),
    }


def healthy_stages() -> list[Object]:
    """What every fake node and pod does when nobody asked it to fail."""
    # Healed by hand, or not ready though all containers are: then the controller manager took the
    # node for dead for a while, and a kubelet back again puts that right.
    recovers = f'.metadata.annotations["{HEALED}"] != null or {_CONTAINERS_READY} == "True"'
    not_ready = condition(f'{_READY} != "True"')
    is_job = 'any(.metadata.ownerReferences[]?; .kind == "Job")'
    return [
        _stage(
            "pod-ready",
            "Pod",
            [_LIVE, expression(".status.phase", "In", "Pending"), not_ready],
            _HEALTHY,
            delay=_paced(3, 5),
        ),
        _stage(
            "pod-recover",
            "Pod",
            [_LIVE, expression(".status.phase", "In", "Running"), not_ready, condition(recovers)],
            _HEALTHY,
            # The node comes back first, or the controller manager would mark its pods again.
            delay={"durationMilliseconds": 500},
        ),
        _stage(
            "pod-complete",
            "Pod",
            [
                _LIVE,
                expression(".status.phase", "In", "Running"),
                condition(f'{_READY} == "True" and {is_job}'),
            ],
            _status(
                "Succeeded",
                """
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  imageID: {{ printf "fake@sha256:%s" (sha256sum .image) | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
""",
                ready=False,
            ),
            delay=_paced(1, 3),
        ),
        _stage("pod-delete", "Pod", [_DELETED], {"delete": True}, delay=_paced(1, 3)),
        _stage("node-ready", "Node", [condition(f'{_READY} != "True"')], _NODE_READY),
        _stage(
            "node-heartbeat",
            "Node",
            [condition(f'{_READY} == "True"')],
            _NODE_HEARTBEAT,
            delay={"durationMilliseconds": 300_000, "jitterDurationMilliseconds": 600_000},
        ),
        _lease_stage(),
    ]


_LEASE_LABEL = f"{PREFIX}/lease"
_MICRO_TIME = "2006-01-02T15:04:05.000000Z07:00"


def _lease_stage() -> Object:
    stage = _stage(
        "lease-renew",
        "Lease",
        [expression(f'.metadata.labels["{_LEASE_LABEL}"]', "Exists")],
        {
            "patches": [
                {
                    "type": "merge",
                    "root": "spec",
                    "template": f'renewTime: {{{{ now | date "{_MICRO_TIME}" | Quote }}}}\n',
                }
            ]
        },
        # Well within the 3,600 s that the controller manager waits here. Every 10 s, as kubelets do it, would keep most
        # of a processor busy for 1,000 nodes; like this 5,000 of them take a fifth of one.
        delay={"durationMilliseconds": 240_000, "jitterDurationMilliseconds": 360_000},
    )
    stage["spec"]["resourceRef"]["apiGroup"] = "coordination.k8s.io/v1"
    return stage


def node_lease(name: str, uid: str) -> Object:
    """The lease by which the controller manager sees that a fake node lives."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": "kube-node-lease",
            "labels": {_LEASE_LABEL: "fake"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
        },
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


# --- failing ----------------------------------------------------------------------------------


def parse_behaviour(text: str) -> tuple[str, int]:
    """Split ``late:20`` into the behaviour and its number (0 where it takes none)."""
    name, colon, number = text.partition(":")
    if name not in POD_BEHAVIOURS + NODE_BEHAVIOURS:
        known = ", ".join(POD_BEHAVIOURS + NODE_BEHAVIOURS + ("gone",))
        raise LauncherError(f"unknown behaviour {name!r}; there are: {known}")
    if not colon:
        return name, _WITH_NUMBER.get(name, 0)
    if name not in _WITH_NUMBER or not number.isdigit():
        takes = ", ".join(f"{one}:N" for one in _WITH_NUMBER)
        raise LauncherError(f"behaviour {text!r}: a number is only taken by {takes}")
    return name, int(number)


def annotated_stages() -> list[Object]:
    """The failing behaviours for pods, and nodes, whose annotation asks for one."""
    stages: list[Object] = []
    for name in POD_BEHAVIOURS:
        number = f'(.metadata.annotations["{BEHAVIOUR}"] | split(":")[1] // "{_WITH_NUMBER.get(name, 0)}" | tonumber)'
        selector = [expression(_BEHAVIOUR_OF, "In", name)]
        stages += pod_fault_stages(f"annotated-{name}", name, number, selector, weight=1_000)
    for name in NODE_BEHAVIOURS:
        selector = [expression(_BEHAVIOUR_OF, "In", name)]
        stages += node_fault_stages(f"annotated-{name}", name, selector, weight=1_000)
    return stages


@dataclass(frozen=True)
class _Step:
    """One stage of a failing behaviour, before it is known for which pods."""

    when: str
    following: Object
    delay: Object | None = None


def _hold(when: str) -> _Step:
    return _Step(when, {}, {"durationMilliseconds": _NEVER})


def pod_fault_stages(
    prefix: str, behaviour: str, number: str, selector: Sequence[Expression], weight: int
) -> list[Object]:
    """Stages that make the pods matching ``selector`` behave so.

    ``number`` is a jq expression: seconds for ``late``, a count for ``restarts``.
    """
    if behaviour == "stuck-terminating":
        return [frozen_stage(f"{prefix}-1", [_DELETED, *selector], weight)]
    steps = {
        "never-ready": _never_ready,
        "late": lambda: _late(number),
        "crash-loop": _crash_loop,
        "init-crash-loop": _init_crash_loop,
        "restarts": lambda: _restarts(number),
        "image-pull-error": _image_pull_error,
        "config-error": _config_error,
        "fails": _fails,
    }[behaviour]()
    return [
        _stage(
            f"{prefix}-{index}",
            "Pod",
            [_LIVE, *selector, condition(step.when)],
            step.following,
            weight=weight,
            delay=step.delay,
        )
        for index, step in enumerate(steps, start=1)
    ]


_WAITS = f'({_FIRST}.state.waiting.reason // "")'
_UNREADY = _status("Running", _containers(_running(ready=False), others_ready=True), ready=False)
_IS_UNREADY = f'.status.phase == "Running" and {_READY} != "True" and {_WAITS} == ""'


def _never_ready() -> list[_Step]:
    return [_Step(f"({_IS_UNREADY}) | not", _UNREADY), _hold(_IS_UNREADY)]


def _late(number: str) -> list[_Step]:
    # Counted from the pod's start, so that a change of its metadata does not start it anew.
    due = f"(.status.startTime | fromdateiso8601) + {number} | todateiso8601"
    return [
        _Step('.status.phase == "Pending"', _UNREADY),
        _Step(_IS_UNREADY, _HEALTHY, {"durationFrom": _jq(due)}),
        _hold(f'.status.phase == "Running" and {_READY} == "True"'),
    ]


def _crash_loop() -> list[_Step]:
    crashed = _status("Running", _containers(_CRASHED, others_ready=True), ready=False)
    crashes = f'{_WAITS} == "CrashLoopBackOff"'
    return [
        _Step(f"({crashes}) | not", crashed),
        _Step(crashes, crashed, {"durationFrom": _jq(_backoff(f"{_FIRST}.restartCount"))}),
    ]


def _init_crash_loop() -> list[_Step]:
    first = "(.status.initContainerStatuses[0] // {})"
    crashed = _status("Pending", _INIT_CRASHES, ready=False, initialized=False)
    crashes = f'{first}.state.waiting.reason == "CrashLoopBackOff"'
    return [
        _Step(f"({crashes}) | not", crashed),
        _Step(crashes, crashed, {"durationFrom": _jq(_backoff(f"{first}.restartCount"))}),
    ]


def _restarts(number: str) -> list[_Step]:
    done = f'{_READY} == "True" and {_FIRST}.restartCount >= {number}'
    # Templates cannot run jq, so there the number is text, or read from the annotation again.
    count = number if number.isdigit() else _ANNOTATED_NUMBER
    container = _running(ready=True, restarts=count, crashed=True)
    restarted = _status("Running", _containers(container, others_ready=True), ready=True)
    return [_Step(f"({done}) | not", restarted), _hold(done)]


def _image_pull_error() -> list[_Step]:
    message = 'printf "failed to pull and unpack image %q: not found" $item.image'
    back = 'printf "Back-off pulling image %q" $item.image'
    failed = _containers(_waiting("ErrImagePull", message), others_ready=True)
    waiting = _containers(_waiting("ImagePullBackOff", back), others_ready=True)
    return [
        _Step(
            f'{_WAITS} != "ErrImagePull" and {_WAITS} != "ImagePullBackOff"',
            _status("Pending", failed, ready=False),
        ),
        _Step(
            f'{_WAITS} == "ErrImagePull"',
            _status("Pending", waiting, ready=False),
            {"durationMilliseconds": 2_000},
        ),
        _hold(f'{_WAITS} == "ImagePullBackOff"'),
    ]


def _config_error() -> list[_Step]:
    reason = "CreateContainerConfigError"
    message = 'print "secret \\"agent-settings\\" not found"'
    containers = _containers(_waiting(reason, message), others_ready=True)
    return [
        _Step(f'{_WAITS} != "{reason}"', _status("Pending", containers, ready=False)),
        _hold(f'{_WAITS} == "{reason}"'),
    ]


def _fails() -> list[_Step]:
    """The pod of a Job that ends badly, with a word about it as from a termination log."""
    ended = """
  imageID: {{ printf "fake@sha256:%s" (sha256sum $item.image) | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      containerID: {{ $id | Quote }}
      exitCode: 1
      reason: Error
      message: the agent does not answer
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
"""
    failed = _status("Failed", _containers(ended, others_ready=False), ready=False)
    return [_Step('.status.phase != "Failed"', failed), _hold('.status.phase == "Failed"')]


_ANNOTATED_NUMBER = (
    f'(default "{_WITH_NUMBER["restarts"]}" '
    f'(index (splitn ":" 2 (index $root.metadata.annotations "{BEHAVIOUR}")) "_1"))'
)


def _backoff(count: str) -> str:
    """5, 10, 20, 40, 60, 60 … seconds, as jq."""
    return f'[5 * pow(2; {count} - 1), 60] | min | tostring + "s"'


def frozen_stage(name: str, selector: Sequence[Expression], weight: int) -> Object:
    """A stage in which matching pods stay as they are, whatever is asked of them."""
    return _stage(name, "Pod", selector, {}, weight=weight, delay={"durationMilliseconds": _NEVER})


def stranded_pod_stages(prefix: str, behaviour: str, selector: Sequence[Expression], weight: int) -> list[Object]:
    """Stages for the pods of a failed node: they stay as they are, to be deleted or not.

    When a kubelet goes silent, the controller manager marks its pods as not ready. It does so
    only for the silence that it noticed itself, so for a fake one a stage has to.
    """
    if behaviour != "unreachable":
        return [frozen_stage(f"{prefix}-1", selector, weight)]
    lost = condition(f'.metadata.deletionTimestamp == null and {_READY} == "True"')
    kept = condition(f'.metadata.deletionTimestamp != null or {_READY} != "True"')
    unready = """conditions:
- type: Ready
  status: "False"
  lastTransitionTime: {{ Now | Quote }}
"""
    return [
        _stage(f"{prefix}-1", "Pod", [*selector, lost], {"statusTemplate": unready}, weight=weight),
        frozen_stage(f"{prefix}-2", [*selector, kept], weight),
    ]


_NODE_READY: Object = {
    "statusTemplate": """{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
{{ end }}
"""
}
_NODE_HEARTBEAT: Object = {
    "statusTemplate": """{{ $now := Now }}
conditions:
{{ range .status.conditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  lastHeartbeatTime: {{ $now | Quote }}
{{ end }}
"""
}


def node_fault_stages(prefix: str, behaviour: str, selector: Sequence[Expression], weight: int) -> list[Object]:
    """Stages that make the nodes matching ``selector`` report so."""
    if behaviour == "not-ready":
        status, types = "False", ["Ready"]
        reason = "KubeletNotReady"
        message = "container runtime is down"
    elif behaviour == "unreachable":
        status, types = "Unknown", ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        reason = "NodeStatusUnknown"
        message = "Kubelet stopped posting node status."
    else:
        raise LauncherError(f"{behaviour!r} is not a behaviour of nodes")
    template = "{{ $now := Now }}\nconditions:\n" + "".join(
        f'- type: {kind}\n  status: "{status}"\n  reason: {reason}\n  message: "{message}"\n'
        "  lastHeartbeatTime: {{ $now | Quote }}\n  lastTransitionTime: {{ $now | Quote }}\n"
        for kind in types
    )
    failed = f'{_READY} == "{status}"'
    if status == "Unknown":
        # A node without conditions counts as Unknown too, but has yet to report it.
        failed = f"({failed} and (.status.conditions | length > 0))"
    return [
        _stage(
            f"{prefix}-1",
            "Node",
            [*selector, condition(f"{failed} | not")],
            {"statusTemplate": template},
            weight=weight,
        ),
        _stage(
            f"{prefix}-2",
            "Node",
            [*selector, condition(failed)],
            {},
            weight=weight,
            delay={"durationMilliseconds": _NEVER},
        ),
    ]


# The launcher brings no more of kwok's own schema than it needs.
STAGE_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "stages.kwok.x-k8s.io",
        "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/kwok",
        },
    },
    "spec": {
        "group": "kwok.x-k8s.io",
        "scope": "Cluster",
        "names": {
            "kind": "Stage",
            "listKind": "StageList",
            "plural": "stages",
            "singular": "stage",
        },
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                            }
                        },
                    }
                },
            }
        ],
    },
}
