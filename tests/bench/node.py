"""How long, and in how much memory, does a node get its agent's file, beyond what pulling and hashing it takes anyway?

    python tests/bench/node.py [--mib 64] [--rounds 7] [--pods 20]

The yardstick is what a person would type: `curl` of the blob from the registry, piped into `sha256sum`. Outrider's init
container starts a program, reads manifests and signatures, writes the file to disk so that it outlives a power cut, and
verifies. Each round measures all, in turn, so that a busy machine slows down all: the yardstick, a pod without a cache,
one that fills the node's cache, and one that takes from it. Memory is the peak that the kernel saw (VmHWM) of the whole
process. At last many pods of one node start at once, and the registry tells how often it sent the file.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]

from adapters.nodeside import PLATFORM, REPOSITORY, CountingRegistry, Node, publish  # noqa: E402
from adapters.signing import Signer  # noqa: E402
from localcluster import toolchain  # noqa: E402

MIB = 1024 * 1024
MAX_SECONDS = 1.5
"""Over the yardstick."""
MAX_PEAK = 64 * MIB

# The program as the container starts it; then its peak, which nobody can ask for once it has ended.
FETCH = """
import os, re, sys
from pathlib import Path
from outrider.node.__main__ import run
code = run([], os.environ)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
sys.exit(code)
"""


def main() -> int:
    """Measure, print, and return 0 if the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of the file in MiB (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts (default 7)")
    parser.add_argument("--pods", type=int, default=20, help="pods that start at once (default 20)")
    arguments = parser.parse_args()

    toolchain.ensure(("registry",))
    say(f"init container: {arguments.mib} MiB from a registry on loopback, {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as scratch:
        folder = Path(scratch)
        data = os.urandom(arguments.mib * MIB)
        signer = Signer(folder, "key", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        registry = CountingRegistry(folder / "registry")
        registry.start()
        try:
            bench = Bench(folder, registry, signer, data)
            del data
            return bench.run(arguments.rounds, arguments.pods)
        finally:
            registry.kill()


class Bench:
    """A registry with one version, and a node for which pods are made."""

    def __init__(self, folder: Path, registry: CountingRegistry, signer: Signer, data: bytes) -> None:
        self._folder = folder
        self._registry = registry
        self._signer = signer
        self._index = publish(registry, signer, data=data)
        self._sha256 = hashlib.sha256(data).hexdigest()
        self._cache = folder / "cache"
        self._pods = 0

    def run(self, rounds: int, count: int) -> int:
        """Measure, print, and return 0 if the targets are met."""
        without, filling, taking, peaks = [], [], [], []
        for number in range(1, rounds + 1):
            bare = self.pull_and_hash()
            seconds, peak = self.fetch(self.pod())
            shutil.rmtree(self._cache, ignore_errors=True)
            filled, fill_peak = self.fetch(self.pod(cache=True))
            taken, take_peak = self.fetch(self.pod(cache=True))
            without.append(seconds - bare)
            filling.append(filled - bare)
            taking.append(taken - bare)
            peaks += [peak, fill_peak, take_peak]
            say(
                f"  round {number}: curl | sha256sum {bare:.2f} s; without a cache {seconds:.2f} s, filling it "
                f"{filled:.2f} s, from it {taken:.2f} s; peak {max(peak, fill_peak, take_peak) / MIB:.1f} MiB"
            )
        downloads, together = self.at_once(count)
        say(f"  {count} pods at once, sharing a cache: {together:.1f} s, {downloads} download(s) of the file")
        over = {
            "without a cache": statistics.median(without),
            "filling it": statistics.median(filling),
            "from it": statistics.median(taking),
        }
        worst = max(over.values())
        met = worst <= MAX_SECONDS and max(peaks) <= MAX_PEAK and downloads == 1
        told = ", ".join(f"{name} {seconds:+.2f} s" for name, seconds in over.items())
        say(
            f"init container over a bare pull and hash, median: {told}; at most {MAX_SECONDS:+.1f} s. Peak memory "
            f"{max(peaks) / MIB:.1f} MiB; at most {MAX_PEAK // MIB} MiB. {count} pods: {downloads} download(s); "
            f"wanted 1. {'met' if met else 'MISSED'}"
        )
        return 0 if met else 1

    def pod(self, *, cache: bool = False) -> Node:
        """Make what a pod has."""
        self._pods += 1
        node = Node(self._folder / f"pod-{self._pods}", self._registry, self._index, self._signer)
        node.environment["OUTRIDER_DIGESTS"] = json.dumps({PLATFORM: self._sha256})
        if cache:
            node.use_cache(self._cache)
        return node

    def fetch(self, node: Node) -> tuple[float, int]:
        """Run the program to its end; return its seconds and its peak memory in bytes."""
        os.sync()  # what was written before is not to be paid for by what is measured next
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", FETCH], env=node.environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        shutil.rmtree(node.target)
        return seconds, int(result.stdout)

    def pull_and_hash(self) -> float:
        """Pull the file and hash it with nothing else; return the seconds that it takes."""
        url = f"http://{self._registry.host}/v2/{REPOSITORY}/blobs/sha256:{self._sha256}"
        started = time.perf_counter()
        result = subprocess.run(
            ["sh", "-c", 'curl --silent --fail "$1" | sha256sum', "sh", url], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - started
        if result.stdout.split()[0] != self._sha256:
            raise RuntimeError("curl got something else")
        return seconds

    def at_once(self, count: int) -> tuple[int, float]:
        """Start so many pods at once on a node without a copy; return how many downloads that made, and the seconds."""
        shutil.rmtree(self._cache, ignore_errors=True)
        before = self._registry.downloads(f"sha256:{self._sha256}")
        nodes = [self.pod(cache=True) for _ in range(count)]
        started = time.perf_counter()
        processes = [node.start() for node in nodes]
        try:
            for process in processes:
                _, log = process.communicate(timeout=300)
                if process.returncode != 0:
                    raise RuntimeError(log)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return self._registry.downloads(f"sha256:{self._sha256}") - before, time.perf_counter() - started


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
