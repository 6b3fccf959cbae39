"""How fast, and in how much memory, does a file go from a URL into the registry?

    python tests/bench/ingest.py [--mib 1024] [--rounds 5]

The yardstick is what any ingest must do at least, one after the other on the same machine: hash the file, and copy it
over a loopback connection onto the disk. Each round measures both, in turn, so that a busy machine slows down both.
The web server sends by sendfile, the registry is CNCF distribution with its data on the same disk (it flushes what it
stores; the copy is not flushed, which makes the yardstick stricter), and the ingesting process is one of its own. Its
memory growth is the peak that the kernel saw (VmHWM, reset before) less what it had when it began.
"""

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from adapters.realservers import RealHttpServer, running_registry  # noqa: E402

MIB = 1024 * 1024
MAX_RATIO = 2.0
MAX_GROWTH = 64 * MIB

INGEST = """
import json, re, resource, sys, time
from ipaddress import ip_network
from pathlib import Path
from outrider.adapters.ingest import ingest
from outrider.adapters.registry import OciRegistry, RegistrySettings
from outrider.adapters.sources import SourceLimits, open_http
from outrider.adapters.transport import AddressPolicy
host, url, sha256 = sys.argv[1:]
limits = SourceLimits(guard=AddressPolicy((ip_network("127.0.0.0/8"),)))
def usage(): return resource.getrusage(resource.RUSAGE_SELF)
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
with OciRegistry(RegistrySettings(host, plain_http=True)) as registry:
    registry.check()
    # ru_maxrss would not do: a new process inherits that of its parent.
    Path("/proc/self/clear_refs").write_text("5")
    memory, before, started = peak(), usage(), time.perf_counter()
    with open_http(url, limits=limits) as source:
        ingest(registry, "bench/agent", source, sha256)
    seconds, after = time.perf_counter() - started, usage()
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "growth": peak() - memory}))
"""


def main() -> int:
    """Measure, print, and return 0 if the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file in MiB (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    arguments = parser.parse_args()

    say(f"ingest of {arguments.mib} MiB over loopback HTTP into a registry, {arguments.rounds} rounds")
    ratios, growths = [], []
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
        folder = Path(scratch)
        file = folder / "file"
        sha256 = make_file(file, arguments.mib)
        web = RealHttpServer()
        try:
            url = web.serve_file("/file", file)
            for number in range(1, arguments.rounds + 1):
                os.sync()  # what was written before is not to be paid for by what is measured next
                hashing = hash_file(file)
                copying = copy_over_loopback(web.port, folder / "copy")
                os.sync()
                result = ingest(folder / f"registry-{number}", url, sha256)
                ratios.append(result["seconds"] / (hashing + copying))
                growths.append(result["growth"])
                say(
                    f"  round {number}: hash {hashing:.2f} s + copy {copying:.2f} s = {hashing + copying:.2f} s; "
                    f"ingest {result['seconds']:.2f} s (own CPU {result['cpu']:.2f} s) = {ratios[-1]:.2f} x; "
                    f"memory +{result['growth'] / MIB:.1f} MiB"
                )
        finally:
            web.stop()
    ratio, growth = statistics.median(ratios), max(growths)
    met = ratio <= MAX_RATIO and growth < MAX_GROWTH
    say(
        f"ingest: {ratio:.2f} x (hash + copy), median; at most {MAX_RATIO:.0f} x. "
        f"Memory +{growth / MIB:.1f} MiB at worst; less than {MAX_GROWTH // MIB} MiB. {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def make_file(file: Path, mib: int) -> str:
    """Write a file of random bytes and return its SHA-256 in hex."""
    digest = hashlib.sha256()
    with file.open("wb") as output:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            output.write(block)
    return digest.hexdigest()


def hash_file(file: Path) -> float:
    """Return the seconds that hashing the file takes."""
    started = time.perf_counter()
    with file.open("rb") as content:
        hashlib.file_digest(content, "sha256")
    return time.perf_counter() - started


def copy_over_loopback(port: int, target: Path) -> float:
    """Return the seconds that it takes to receive the file over loopback and to write it down."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    buffer = memoryview(bytearray(MIB))
    started = time.perf_counter()
    connection.request("GET", "/file")
    response = connection.getresponse()
    with target.open("wb", buffering=0) as output:
        while count := response.readinto(buffer):
            output.write(buffer[:count])
    seconds = time.perf_counter() - started
    connection.close()
    target.unlink()
    return seconds


def ingest(folder: Path, url: str, sha256: str) -> dict[str, float]:
    """Ingest into a fresh registry in a process of its own; return seconds, CPU seconds and memory growth in bytes."""
    with running_registry(folder) as registry:
        command = [sys.executable, "-c", INGEST, registry.host, url, sha256]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
        result = subprocess.run(command, check=True, capture_output=True, env=environment)
        for blob in registry.data.glob("docker/registry/v2/blobs/sha256/*/*/data"):
            blob.unlink()
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
