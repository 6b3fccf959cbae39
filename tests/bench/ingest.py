"""How fast, and in how much memory, does a file go from a URL into the registry and is verified from there?

    python tests/bench/ingest.py [--mib 1024] [--rounds 5]

The yardstick is what a person would do with the file in hand: hash it (`sha256sum`) and push it (`oras push`).
Outrider has to fetch it first, and reads it back from the registry before it believes that it is there. Each round
measures both, in turn, so that a busy machine slows down both, and each time into a fresh registry (CNCF distribution
with its data on the same disk). The web server sends by sendfile, and the ingesting process is one of its own. Its
memory growth is the peak that the kernel saw (VmHWM, reset before) less what it had when it began; with four at once,
in one process, too.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from adapters.realservers import RealHttpServer, RealRegistry, running_registry  # noqa: E402
from adapters.realtools import Tools, offline_tools  # noqa: E402
from adapters.signing import Signer  # noqa: E402
from localcluster import toolchain  # noqa: E402

MIB = 1024 * 1024
MAX_RATIO = 1.0
MAX_GROWTH = 64 * MIB
AT_ONCE = 4
AT_ONCE_MIB = 256
"""How much each of those ingests at most: memory does not depend on it, the time that this takes does."""

# Ingests a file as often as it is told, at once; each time as the operator does, from the URL to the proof.
INGEST = """
import base64, json, re, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from outrider.adapters.ingest import ArtifactFacts, ingest, read_back, store_artifact_manifest, store_evidence
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.adapters.sources import SourceLimits, open_http
from outrider.adapters.transport import AddressPolicy
from outrider.trust.evidence import Evidence
from outrider.trust.keys import parse_public_key
from outrider.trust.verify import verify_artifact

host, url, sha256, signature, key, count = sys.argv[1:]
keys = [parse_public_key(Path(key).read_bytes(), "bench")]
evidence = Evidence("Detached", base64.b64decode(signature))
facts = ArtifactFacts("agent", "1.0.0", "linux/amd64", "agent")
limits = SourceLimits(guard=AddressPolicy((ip_network("127.0.0.0/8"),)))

def usage(): return resource.getrusage(resource.RUSAGE_SELF)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def one(number):
    repository = f"bench/agent-{number}"
    with OciRegistry(RegistrySettings(host, plain_http=True)) as registry:
        started = time.perf_counter()
        with open_http(url, limits=limits) as source:
            blob = ingest(registry, repository, source, sha256)
        manifest = store_artifact_manifest(registry, repository, blob, facts)
        store_evidence(registry, repository, manifest, evidence)
        stored_after = time.perf_counter() - started
        stored = read_back(registry, repository, manifest.digest, keys=keys)
        verify_artifact(
            component=stored.facts.component, namespace="bench", version=stored.facts.version,
            platform=stored.facts.platform, size=stored.size, expected_sha256=sha256, actual_sha256=stored.sha256,
            evidence=stored.evidence, keys=keys, further_digests=stored.further_digests,
        )
        return stored_after

with OciRegistry(RegistrySettings(host, plain_http=True)) as registry:
    registry.check()
with ThreadPoolExecutor(int(count)) as pool:
    # ru_maxrss would not do: a new process inherits that of its parent.
    Path("/proc/self/clear_refs").write_text("5")
    memory, before, started = peak(), usage(), time.perf_counter()
    stored_after = max(pool.map(one, range(int(count))))
    seconds, after = time.perf_counter() - started, usage()
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"seconds": seconds, "stored_after": stored_after, "cpu": cpu, "growth": peak() - memory}))
"""


@dataclass(frozen=True)
class Job:
    """A file behind a URL, what it hashes to, and who signed it."""

    file: Path
    url: str
    sha256: str
    signature: str
    key: Path


def main() -> int:
    """Measure, print, and return 0 if the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    arguments = parser.parse_args()

    toolchain.ensure(("registry", "oras"))
    say(f"ingest of {arguments.mib} MiB over loopback HTTP into a registry, {arguments.rounds} rounds")
    ratios, growths = [], []
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
        folder = Path(scratch)
        signer = Signer(folder, "key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        web = RealHttpServer()
        try:
            with offline_tools(folder) as tools:
                job = prepare(folder / "file", arguments.mib, web, signer)
                for number in range(1, arguments.rounds + 1):
                    hashing = sha256sum(job.file)
                    pushing = oras_push(folder / f"oras-{number}", tools, job.file)
                    result = ingest(folder / f"registry-{number}", job)
                    ratios.append(result["seconds"] / (hashing + pushing))
                    growths.append(result["growth"])
                    verifying = result["seconds"] - result["stored_after"]
                    say(
                        f"  round {number}: sha256sum {hashing:.2f} s + oras push {pushing:.2f} s = "
                        f"{hashing + pushing:.2f} s; store {result['stored_after']:.2f} s + verify {verifying:.2f} s "
                        f"= {result['seconds']:.2f} s (own CPU {result['cpu']:.2f} s) = {ratios[-1]:.2f} x; "
                        f"memory +{result['growth'] / MIB:.1f} MiB"
                    )
                small = prepare(folder / "small", min(AT_ONCE_MIB, arguments.mib), web, signer)
                several = ingest(folder / "registry-several", small, AT_ONCE)
                say(
                    f"  {AT_ONCE} at once, {small.file.stat().st_size // MIB} MiB each: {several['seconds']:.2f} s; "
                    f"memory +{several['growth'] / MIB:.1f} MiB"
                )
        finally:
            web.stop()
    ratio, growth = statistics.median(ratios), max(*growths, several["growth"])
    met = ratio <= MAX_RATIO and growth < MAX_GROWTH
    say(
        f"ingest and verification: {ratio:.2f} x (sha256sum + oras push), median; at most {MAX_RATIO:.1f} x. "
        f"Memory +{max(growths) / MIB:.1f} MiB, {AT_ONCE} at once +{several['growth'] / MIB:.1f} MiB; less than "
        f"{MAX_GROWTH // MIB} MiB. {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def prepare(file: Path, mib: int, web: RealHttpServer, signer: Signer) -> Job:
    """Write a file of random bytes, sign it and serve it."""
    digest = hashlib.sha256()
    with file.open("wb") as output:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            output.write(block)
    return Job(file, web.serve_file(f"/{file.name}", file), digest.hexdigest(), signer.sign_file(file), signer.public)


def sha256sum(file: Path) -> float:
    """Return the seconds that hashing the file takes."""
    started = time.perf_counter()
    subprocess.run(["sha256sum", file], check=True, capture_output=True)
    return time.perf_counter() - started


def oras_push(folder: Path, tools: Tools, file: Path) -> float:
    """Push the file into a fresh registry with oras; return the seconds that it takes."""
    os.sync()  # what was written before is not to be paid for by what is measured next
    with running_registry(folder) as registry:
        started = time.perf_counter()
        tools.oras.push(f"{registry.host}/bench/agent:1.0.0", file)
        seconds = time.perf_counter() - started
        forget(registry)
    return seconds


def ingest(folder: Path, job: Job, count: int = 1) -> dict[str, float]:
    """Ingest into a fresh registry in a process of its own, so often at once; return what it measured."""
    os.sync()
    with running_registry(folder) as registry:
        arguments = [registry.host, job.url, job.sha256, job.signature, str(job.key), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
        result = subprocess.run(
            [sys.executable, "-c", INGEST, *arguments], check=True, stdout=subprocess.PIPE, env=environment
        )
        forget(registry)
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def forget(registry: RealRegistry) -> None:
    """Delete what a registry has stored: the disk has other things to do."""
    for blob in registry.data.glob("docker/registry/v2/blobs/sha256/*/*/data"):
        blob.unlink()


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
