"""What `outrider status` prints, from the status and the RolloutBatches."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from outrider.adapters import clock
from outrider.adapters.kube import ROLLOUT_BATCHES, ROLLOUTS, Cluster, Json
from outrider.api import names
from outrider.cli.access import list_all
from outrider.cli.asking import fetch
from outrider.core.preview import tell_seconds
from outrider.core.states import FAILED, RESULTS
from outrider.core.words import count_nodes

_LOOK_SECONDS = 1.0
_WIDTH = 24
_SHOWN = 10

Row = tuple[str, ...]


async def show(
    cluster: Cluster, namespace: str, name: str | None, *, watch: bool, show_nodes: bool, write: Callable[[str], None]
) -> None:
    """Print how things stand, once or whenever they change."""
    before = ""
    while True:
        if name is None:
            text = "\n".join(tell_all(await list_all(cluster, ROLLOUTS, namespace), namespace))
        else:
            body = await fetch(cluster, namespace, name)
            selector = f"{names.LABEL_ROLLOUT}={name}"
            batches = await list_all(cluster, ROLLOUT_BATCHES, namespace, labelSelector=selector)
            text = "\n".join(tell_one(body, batches, clock.now(), show_nodes=show_nodes))
        if text != before:
            write(text if not before else f"\n{text}")
            before = text
        if not watch:
            return
        await asyncio.sleep(_LOOK_SECONDS)


def tell_all(rollouts: Sequence[Json], namespace: str) -> Iterator[str]:
    """Yield a line for each Rollout."""
    if not rollouts:
        yield f"there is no Rollout in namespace {namespace}"
        return
    rows: list[Row] = [("NAME", "PHASE", "VERSION", "UPDATED", "FAILED", "RUN", "SAYS")]
    for body in sorted(rollouts, key=lambda each: str(each["metadata"]["name"])):
        status = body.get("status") or {}
        run = status.get("run") or {}
        rows.append(
            (
                body["metadata"]["name"],
                status.get("phase") or "new",
                body["spec"]["version"],
                f"{run.get('updated', 0)}/{status.get('nodes', 0)}",
                str(run.get("failed", 0)),
                str(run.get("id", "-")),
                _condition(body, "Ready").get("message", ""),
            )
        )
    yield from _columns(rows)


def tell_one(body: Json, batches: Sequence[Json], now: datetime, *, show_nodes: bool) -> Iterator[str]:
    """Yield the lines about one Rollout. `batches` are the RolloutBatches of all its runs."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    run = status.get("run") or {}
    yield f"Rollout {metadata['namespace']}/{metadata['name']}: {status.get('phase') or 'new'}"
    if status.get("observedGeneration", -1) < metadata.get("generation", 0):
        yield "  (the operator has not looked at the newest change yet: what follows is from before)"
    yield f"  {_condition(body, 'Ready').get('message') or 'nothing is known yet'}"
    yield ""
    yield f"  wants      {spec['component']} {spec['version']}"
    if running := _running(status):
        yield f"  runs       {running}"
    if run:
        yield from _tell_run(run, status, now)
        yield from _tell_batches(run, batches, now)
    yield from _tell_failures(status)
    yield from _tell_conditions(body)
    yield from _tell_requests(status)
    yield from _tell_history(status)
    if show_nodes and run:
        yield from _tell_nodes(run, batches)


def _running(status: Json) -> str:
    versions = status.get("versions") or []
    return ", ".join(f"{v['nodes']} x {v['version']} ({v.get('ready', 0)} Ready)" for v in versions)


def _tell_run(run: Json, status: Json, now: datetime) -> Iterator[str]:
    kind = "rollback of" if run.get("kind") == "Rollback" else "to"
    began = _moment(run.get("startedAt"))
    ended = _moment(run.get("finishedAt"))
    lasted = f", for {tell_seconds(((ended or now) - began).total_seconds())}" if began is not None else ""
    by = run.get("requestedBy") or run.get("startedBy") or "somebody"
    yield f"  run        {run['id']}, {kind} {run.get('version')}: {run.get('state')}{lasted}, by {by}"
    total = status.get("nodes", 0) or 1
    updated = run.get("updated", 0)
    yield f"  progress   {_bar(updated, total)} {updated} of {count_nodes(status.get('nodes', 0))} updated"
    counts = [f"{run.get(field, 0)} {field}" for field in ("healthy", "failed", "pending", "skipped", "outdated")]
    yield f"             {', '.join(counts)}; batch {run.get('batch') or '-'}"
    if run.get("message"):
        yield f"  waits for  {run['message']}"
    for approval in run.get("approvals") or []:
        yield f"  approved   step {approval.get('step')} by {approval.get('by') or 'somebody'} at {approval.get('at')}"


def _tell_batches(run: Json, batches: Sequence[Json], now: datetime) -> Iterator[str]:
    pages: dict[int, list[Json]] = {}
    for batch in batches:
        if batch["spec"]["run"] == run["id"]:
            pages.setdefault(batch["spec"]["batch"], []).append(batch)
    if not pages:
        return
    yield ""
    rows: list[Row] = [("BATCH", "", "HEALTHY", "FAILED", "LEFT OUT", "PENDING", "TOOK")]
    numbers = sorted(pages)
    hidden = numbers[: -_SHOWN * 2]
    for number in numbers[-_SHOWN * 2 :]:
        found = pages[number]
        spec = found[0]["spec"]
        states = [page.get("status") or {} for page in found]
        count = {f: sum(s.get(f, 0) for s in states) for f in ("succeeded", "failed", "skipped")}
        size = sum(len(page["spec"]["nodes"]) for page in found)
        name = f"{number} (canary {spec['step']})" if spec.get("step") else str(number)
        if spec.get("purpose") == "Removal":
            name += " (agents taken away)"
        ended = [_moment(state.get("finishedAt")) for state in states]
        is_over = bool(ended) and all(ended)
        end = max(moment for moment in ended if moment is not None) if is_over else now
        began = _moment(spec["startedAt"]) or now
        took = tell_seconds((end - began).total_seconds()) + ("" if is_over else ", under way")
        done = count["succeeded"] + count["failed"] + count["skipped"]
        rows.append(
            (
                name,
                _bar(done, size),
                f"{count['succeeded']}/{size}",
                str(count["failed"]),
                str(count["skipped"]),
                str(size - done),
                took,
            )
        )
    yield from _columns(rows)
    if hidden:
        yield f"  (and {len(hidden)} batches before them)"
    results = [
        result for found in pages.values() for page in found for result in (page.get("status") or {}).get("nodes") or []
    ]
    moving = [
        f"{result['name']} {result['state']}"
        + (f" ({result['reason']})" if result.get("reason") not in {None, "", result["state"]} else "")
        for result in results
        if result["state"] not in RESULTS and result["state"] != "Pending"
    ]
    preparing = [
        result["name"] for result in results if (result["state"], result.get("reason")) == ("Pending", "Preparing")
    ]
    if moving:
        yield f"  now        {_first(moving)}"
    if preparing:
        yield f"  prepares   {_first(preparing)}: their agents run on"


def _first(things: Sequence[str]) -> str:
    return ", ".join(things[:_SHOWN]) + (f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else "")


def _tell_failures(status: Json) -> Iterator[str]:
    failures = status.get("failures") or []
    if failures:
        yield ""
        failed = status.get("failed") or (status.get("run") or {}).get("failed") or len(failures)
        yield f"  failed     {count_nodes(failed)}"
        for failure in failures:
            yield f"    {failure['node']}  {failure['reason']}: {failure.get('message') or '-'}"
    last = status.get("lastFailure") or {}
    if last and last.get("run") != (status.get("run") or {}).get("id"):
        yield ""
        yield (
            f"  last failure: run {last['run']} to {last['version']}, "
            f"{last['failed']} of {count_nodes(last['nodes'])}; {last.get('message') or ''}"
        )


def _tell_conditions(body: Json) -> Iterator[str]:
    ready = _condition(body, "Ready").get("message")
    told = [
        c
        for c in (body.get("status") or {}).get("conditions") or []
        if c["type"] not in {"Ready", "Reconciling", "Progressing"} and c["status"] == "True"
    ]
    if not told:
        return
    yield ""
    for condition in told:
        more = "" if condition.get("message") == ready else f": {condition.get('message')}"
        yield f"  {condition['type'].lower():<9}  {condition['reason']}{more}"


def _tell_requests(status: Json) -> Iterator[str]:
    refused = status.get("lastRefused") or {}
    if refused:
        yield ""
        yield f"  refused    {refused.get('message')} ({refused.get('at')})"


def _tell_history(status: Json) -> Iterator[str]:
    history = status.get("history") or []
    if not history:
        return
    yield ""
    rows: list[Row] = [("RUN", "KIND", "VERSION", "RESULT", "HEALTHY", "FAILED", "LEFT OUT", "ENDED", "BY")]
    rows += [
        (
            str(record["id"]),
            record["kind"],
            record["version"],
            record["result"],
            f"{record.get('healthy', 0)}/{record.get('nodes', 0)}",
            str(record.get("failed", 0)),
            str(record.get("skipped", 0)),
            record["finishedAt"],
            record.get("requestedBy") or record.get("startedBy") or "-",
        )
        for record in history[:_SHOWN]
    ]
    yield from _columns(rows)
    if len(history) > _SHOWN:
        yield f"  (and {len(history) - _SHOWN} before them)"


def _tell_nodes(run: Json, batches: Sequence[Json]) -> Iterator[str]:
    yield ""
    rows: list[Row] = [("NODE", "BATCH", "STATE", "SINCE", "WHY")]
    for batch in sorted(batches, key=lambda b: (b["spec"]["batch"], b["spec"].get("page", 1))):
        if batch["spec"]["run"] != run["id"]:
            continue
        results = {result["name"]: result for result in (batch.get("status") or {}).get("nodes") or []}
        for entry in batch["spec"]["nodes"]:
            result = results.get(entry["name"], {"state": "Pending"})
            why = f"{result['reason']}: {result.get('message') or '-'}" if result.get("reason") else ""
            since = result.get("finishedAt") or result.get("startedAt") or ""
            state = result["state"] + (" !" if result["state"] in FAILED else "")
            rows.append((entry["name"], str(batch["spec"]["batch"]), state, since, why))
    yield from _columns(rows)


def _condition(body: Json, kind: str) -> Json:
    found: Json = next((c for c in (body.get("status") or {}).get("conditions") or [] if c["type"] == kind), {})
    return found


def _bar(done: int, total: int) -> str:
    filled = _WIDTH * done // total if total else 0
    return "[" + "#" * filled + "." * (_WIDTH - filled) + "]"


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _columns(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
