"""Where versions come from, with what they are vouched for, and what nobody gets by naming it as a source."""

import base64
import itertools
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.realtools import Tools, offline_tools
from adapters.signing import Signer as PlainSigner
from e2e.conftest import E2eCluster
from e2e.files import P256, Answer, FileServer
from e2e.operator_process import SOURCES, OperatorProcess
from e2e.registry_proxy import RegistryProxy
from e2e.repository import Repository
from e2e.story import COMPONENT, Given, Story, Then, When, content_of, digest_of
from e2e.watching import Object, condition
from localcluster.addresses import LOOPBACK
from localcluster.pki import Authority


def put(story: Story, kind: str, name: str, **fields: object) -> None:
    """Create a Secret or a ConfigMap in the story's namespace."""
    path = f"/api/v1/namespaces/{story.namespace}/{kind}s"
    story.client.create(path, {"metadata": {"name": name}, **fields})


def signed_statement(story: Story, content: bytes, version: str, *options: str, key: str = "release") -> str:
    """Sign a file as a version with `outrider sign`, as its author does."""
    file, signer = story.folder / "node-agent", story.signer(key)
    file.write_bytes(content)
    command = (sys.executable, "-m", "outrider", "sign", file, "--component", COMPONENT, "--version", version)
    arguments: tuple[str | Path, ...] = ("--platform", "linux/amd64", "--key", signer.private, *options)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run([*command, *arguments], check=True, capture_output=True, env=environment).stdout.decode()


def signature_of(version: Object) -> Object:
    """Return what status says of the signature of a version's one artifact."""
    [artifact] = version["status"]["artifacts"]
    signature: Object = artifact["signature"]
    return signature


# --- servers that ask who is there ---------------------------------------------------------------


@pytest.fixture
def secure_files(story: Story, tmp_path: Path) -> Iterator[FileServer]:
    """A web server with TLS, whose authority nobody knows but the ConfigMap `authority`."""
    authority = Authority(tmp_path / "pki")
    authority.create()
    pair = authority.issue("files", "files", hosts=[LOOPBACK])
    put(story, "configmap", "authority", data={"ca.crt": authority.certificate_file.read_text()})
    server = FileServer(pair)
    server.start()
    yield server
    server.stop()


def test_a_server_that_wants_a_login_gets_it_once_the_operator_may_read_the_secret(
    story: Story, given: Given, when: When, then: Then, cluster: E2eCluster, secure_files: FileServer
) -> None:
    given.a_trusted_key()
    password = "correct-horse-battery-staple"
    header = "Basic " + base64.b64encode(f"author:{password}".encode()).decode()
    put(story, "secret", "login", stringData={"username": "author", "password": password})
    begun = story.operator.log_size()
    content = content_of("1.0.0")
    secure_files.answers["agent"] = Answer(content, authorization=header)
    source: Object = {"url": secure_files.url("agent"), "secretRef": {"name": "login"}}
    when.a_version_is_created("1.0.0", source={"http": source})
    refused = then.the_version_is("1.0.0", "Draft", "SecretForbidden", never="Published")
    message = condition(refused, "Stalled")["message"]
    assert f"the operator may not read Secret login in namespace {story.namespace}" in message

    # Whoever reads it can copy what to do.
    found = re.search(r"(kubectl .* && kubectl .*?);", message)
    assert found is not None, message
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig.absolute()),
        "PATH": f"{story.local.kubectl.parent}:{os.environ['PATH']}",
    }
    subprocess.run(["sh", "-ec", found[1]], check=True, env=environment, capture_output=True)
    when.somebody_asks_to_look_again("1.0.0")
    unknown = then.the_version_is("1.0.0", "Draft", "SourceUnreachable", never="Published")
    assert "certificate" in condition(unknown, "Ready")["message"]
    story.change_artifact("1.0.0", source={"http": {**source, "caConfigMap": {"name": "authority", "key": "ca.crt"}}})
    published = then.the_version_is("1.0.0", "Published")
    assert story.repository.pull("1.0.0") == content

    events = story.client.items(f"/api/v1/namespaces/{story.namespace}/events")
    shown = str([published, refused, events]) + story.operator.log_since(begun)
    for secret in (password, header.removeprefix("Basic "), base64.b64encode(password.encode()).decode()):
        assert secret not in shown


def test_a_login_that_is_wrong_or_missing_is_told_without_its_words(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    story.client.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{story.namespace}/roles",
        {
            "metadata": {"name": "secrets"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
        },
    )
    story.client.create(
        f"/apis/rbac.authorization.k8s.io/v1/namespaces/{story.namespace}/rolebindings",
        {
            "metadata": {"name": "secrets"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "secrets"},
            "subjects": [{"kind": "ServiceAccount", "name": "outrider", "namespace": "outrider-system"}],
        },
    )
    put(story, "secret", "odd", stringData={"pass": "hunter2-hunter2"})
    put(story, "secret", "broken", stringData={"token": "hunter2\nhunter2"})
    for version, secret, reason, words in (
        ("1.0.0", "nowhere", "SecretNotFound", "there is no Secret nowhere"),
        ("1.1.0", "odd", "SecretUnusable", "it has the keys pass"),
        ("1.2.0", "broken", "SecretUnusable", "its key token holds more than one line"),
    ):
        when.a_version_is_created(version, source=story.source(version, secretRef={"name": secret}))
        told = then.the_version_is(version, "Draft", reason, never="Published")
        assert words in condition(told, "Stalled")["message"]
        assert "hunter2" not in str(told)


# --- addresses that nobody gets by naming them ----------------------------------------------------

METADATA = "http://169.254.169.254/latest/meta-data/iam"
FORBIDDEN = {
    "the cloud's metadata": METADATA,
    "the same in another clothing": "http://[::ffff:a9fe:a9fe]/latest",
    "a link-local address": "http://[fe80::1]/agent",
    "a name that means it": "http://metadata.google.internal/computeMetadata/v1/",
}


@pytest.mark.parametrize("redirected", [False, True], ids=["at once", "by a redirect"])
def test_the_operator_asks_no_address_that_is_not_for_it(
    story: Story, given: Given, when: When, then: Then, redirected: bool
) -> None:
    given.a_trusted_key()
    for number, url in enumerate(FORBIDDEN.values()):
        version = f"1.{number}.0"
        if redirected:
            when.a_version_is_created(version, Answer(status=302, headers={"Location": url}))
        else:
            when.a_version_is_created(version, source={"http": {"url": url}})
    for number, what in enumerate(FORBIDDEN):
        refused = then.the_version_is(f"1.{number}.0", "Draft", "AddressNotAllowed", never="Published")
        assert "nothing is fetched from there" in condition(refused, "Stalled")["message"], what


# --- files that are somewhere already -----------------------------------------------------------


def test_a_file_that_is_in_the_registry_already_is_taken_from_there(
    story: Story, given: Given, when: When, then: Then
) -> None:
    given.a_trusted_key()
    content = content_of("1.0.0")
    when.a_version_is_created("1.0.0", source={"stored": {"digest": digest_of(content)}})
    missing = then.the_version_is("1.0.0", "Draft", "SourceNotFound", never="Published")
    assert digest_of(content) in condition(missing, "Stalled")["message"]
    assert "push it there" in condition(missing, "Stalled")["message"]
    assert story.repository.push(content) == digest_of(content)
    when.somebody_asks_to_look_again("1.0.0")
    then.the_version_is("1.0.0", "Published")
    assert story.repository.pull("1.0.0") == content
    assert f"{story.name}/1.0.0" not in story.files.asked


# --- what vouches for them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "place"), [("statement", "inline"), ("bundle", "configMap"), ("statement", "http")]
)
def test_a_statement_made_by_outrider_sign_vouches_for_its_version_and_for_no_other(
    story: Story, given: Given, when: When, then: Then, format_: str, place: str
) -> None:
    given.a_trusted_key()
    content = content_of("1.0.0")
    options = ("--format", "bundle") if format_ == "bundle" else ()

    def proof(version: str) -> str:
        return signed_statement(story, content, version, *options)

    if place == "inline":
        signature: Object = {"inline": proof("1.0.0")}
    elif place == "configMap":
        put(story, "configmap", "proof", data={"proof.json": proof("1.0.0")})
        signature = {"configMap": {"name": "proof", "key": "proof.json"}}
    else:
        story.files.answers[f"{story.name}/proof"] = Answer(proof("1.0.0").encode())
        signature = {"http": {"url": story.files.url(f"{story.name}/proof")}}
    when.a_version_is_created("1.0.0", signature={format_: signature})
    # The same bytes as another version: the detached signature would have done.
    when.a_version_is_created("1.0.1", content=content, signature={format_: signature})
    said = signature_of(then.the_version_is("1.0.0", "Published"))
    assert (said["format"], said["binds"]) == ("OutriderStatement", True)
    assert said["keyFingerprint"] == story.signer().fingerprint
    other = then.the_version_is("1.0.1", "Draft", "StatementMismatch", never="Published")
    assert "1.0.0" in condition(other, "Ready")["message"]

    # Signed again where the spec says: nothing changes in the spec but for what is inline.
    if place == "inline":
        story.change_artifact("1.0.1", signature={format_: {"inline": proof("1.0.1")}})
    elif place == "configMap":
        path = f"/api/v1/namespaces/{story.namespace}/configmaps/proof"
        story.client.merge(path, {"data": {"proof.json": proof("1.0.1")}})
        when.somebody_asks_to_look_again("1.0.1")
    else:
        story.files.answers[f"{story.name}/proof"] = Answer(proof("1.0.1").encode())
        when.somebody_asks_to_look_again("1.0.1")
    then.the_version_is("1.0.1", "Published")


@pytest.mark.parametrize("another_operator", [{"OUTRIDER_REQUIRE_BINDING": "true"}], indirect=True, ids=["binding"])
def test_where_binding_is_demanded_a_detached_signature_does_not_do(
    story: Story, given: Given, when: When, then: Then, another_operator: OperatorProcess
) -> None:
    given.a_trusted_key()
    when.a_version_is_created("1.0.0")
    refused = then.the_version_is("1.0.0", "Draft", "BindingRequired", never="Published")
    assert "outrider sign" in condition(refused, "Stalled")["message"]
    document = signed_statement(story, content_of("1.0.0"), "1.0.0")
    story.change_artifact("1.0.0", signature={"statement": {"inline": document}})
    assert signature_of(then.the_version_is("1.0.0", "Published"))["binds"] is True
    assert another_operator.is_running()


# --- other registries -----------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    """oras, cosign and crane."""
    folder = tmp_path / "tools"
    folder.mkdir()
    with offline_tools(folder) as made:
        yield made


def cosign_key(story: Story) -> PlainSigner:
    """A key as the tools want it; its public half is trusted."""
    signer = PlainSigner(story.folder, "cosign", *P256)
    story.trust("cosign", content=signer.public.read_text())
    return signer


@pytest.mark.parametrize("classic", [False, True], ids=["as a bundle", "as cosign 2 did"])
def test_a_file_pushed_by_oras_and_signed_by_cosign_comes_with_its_signature(
    story: Story, when: When, then: Then, tools: Tools, classic: bool
) -> None:
    file = story.folder / "agent"
    file.write_bytes(content_of("1.0.0"))
    place = f"{story.local.registry}/elsewhere/{story.name}"
    digest = tools.oras.push(f"{place}:1.0.0", file)
    source = {"oci": {"reference": f"{place}@{digest}"}}
    signer = cosign_key(story)
    when.a_version_is_created("1.0.0", source=source, signature=None)
    then.the_version_is("1.0.0", "Draft", "SignatureMissing", never="Published")
    tools.cosign.sign(f"{place}@{digest}", signer, classic=classic)
    when.somebody_asks_to_look_again("1.0.0")
    published = then.the_version_is("1.0.0", "Published")
    assert signature_of(published)["format"] == ("CosignClassic" if classic else "SigstoreAttestation")
    assert story.repository.pull("1.0.0") == content_of("1.0.0")
    # Another key: it is signed again where it came from, and nothing changes in the spec.
    when.a_key_goes("cosign")
    then.the_version_is("1.0.0", "Withdrawn", "NoTrustedKey")
    following = PlainSigner(story.folder, "next", *P256)
    tools.cosign.sign(f"{place}@{digest}", following, classic=classic)
    when.a_key_comes("next", content=following.public.read_text())
    again = then.the_version_is("1.0.0", "Published")
    assert again["status"]["reference"] == published["status"]["reference"]
    assert signature_of(again)["keyFingerprint"] != signature_of(published)["keyFingerprint"]
    # What is here needs the other registry no more.
    other = Repository(story.local, f"elsewhere/{story.name}")
    other.delete(f"manifests/{digest}")
    story.client.merge(f"{story.versions}/{COMPONENT}-1.0.0", {"spec": {"releaseNotes": "The other registry is gone."}})
    when.somebody_asks_to_look_again("1.0.0")
    then.the_version_is("1.0.0", "Published")


@pytest.mark.parametrize("copied", [False, True], ids=["where it is", "copied"])
def test_an_image_is_pinned_to_the_digest_that_was_signed(
    story: Story, when: When, then: Then, tools: Tools, copied: bool
) -> None:
    place = f"{story.local.registry}/elsewhere/{story.name}"
    digest = tools.crane.push_image(f"{place}:1.0.0", {"agent": b"first"})
    tools.cosign.sign(f"{place}@{digest}", cosign_key(story))
    when.a_version_is_created(
        "1.0.0",
        fileName=None,
        sha256=digest.removeprefix("sha256:"),
        source={"image": {"reference": f"{place}:1.0.0", "copy": copied}},
        signature=None,
    )
    published = then.the_version_is("1.0.0", "Published")
    [artifact] = published["status"]["artifacts"]
    assert (artifact["kind"], artifact["digest"]) == ("Image", digest)
    where = f"{story.local.registry}/{story.repository.name}" if copied else place
    assert artifact["image"] == f"{where}@{digest}"
    assert story.repository.has(f"manifests/{digest}") == copied
    # The tag moves; what was verified stays what is used, and nothing new comes in by it.
    moved = tools.crane.push_image(f"{place}:1.0.0", {"agent": b"second"})
    assert moved != digest
    when.a_version_is_created(
        "1.0.1",
        fileName=None,
        sha256=digest.removeprefix("sha256:"),
        source={"image": {"reference": f"{place}:1.0.0", "copy": copied}},
        signature=None,
    )
    told = then.the_version_is("1.0.1", "Draft", "DigestMismatch", never="Published")
    assert moved in condition(told, "Ready")["message"]
    when.somebody_asks_to_look_again("1.0.0")
    then.the_version_is(
        "1.0.0", "Published", where=lambda obj: obj["status"]["artifacts"][0]["image"] == artifact["image"]
    )


# --- a registry that dies --------------------------------------------------------------------------

SEED = 20260704
ROUNDS = 10


def test_a_registry_that_is_killed_at_ten_random_moments_of_an_ingest_has_nothing_half_published(
    story: Story, given: Given, when: When, then: Then, registry_behind_proxy: RegistryProxy
) -> None:
    proxy, chance = registry_behind_proxy, random.Random(SEED)  # noqa: S311 (no secret)
    given.a_trusted_key()

    created: dict[str, bytes] = {}

    def create(version: str) -> None:
        created[version] = chance.randbytes(2_000_000)
        when.a_version_is_created(version, content=created[version])

    def killed_in_time(version: str, killed: threading.Event) -> bool:
        """Wait for the moment; False if the version was published before it came."""
        while not killed.wait(0.1):
            if (story.version(version).get("status") or {}).get("phase") == "Published":
                return killed.is_set()
        return True

    # The second one is measured: the first finds the repository empty.
    for version in ("0.1.0", "0.2.0"):
        proxy.count()
        create(version)
        then.the_version_is(version, "Published")
    requests, size = proxy.requests, proxy.bytes
    # Half of them where requests begin, half of them anywhere in what is sent.
    moments = [("requests", chance.randrange(1, requests)) for _ in range(ROUNDS // 2)]
    moments += [("bytes", chance.randrange(size)) for _ in range(ROUNDS - ROUNDS // 2)]
    for number, (unit, most) in enumerate(moments, start=1):
        for attempt in itertools.count():
            # Some need fewer requests than others: then sooner, with the next.
            version = f"1.{number}.{attempt}"
            killed = proxy.at(unit, most * 2**attempt // 3**attempt, story.local.stop_registry)
            create(version)
            if killed_in_time(version, killed):
                break
        # The operator stands still while everything is looked at.
        story.operator.freeze()
        try:
            story.local.start_registry()
            look_for_halves(story, version, created[version])
        finally:
            story.operator.thaw()
        then.the_version_is(version, "Published")
    assert sorted(story.repository.tags()) == sorted(created)
    for version, content in created.items():
        assert story.repository.pull(version) == content


def look_for_halves(story: Story, version: str, content: bytes) -> None:
    """What the registry has of a version is whole: a file or none, and under the version's tag all or nothing."""
    repository, digest = story.repository, digest_of(content)
    if repository.has(f"blobs/{digest}"):
        assert repository.get(f"blobs/{digest}") == content
    status = story.version(version).get("status") or {}
    if version in repository.tags():
        assert repository.pull(version) == content
    else:
        assert status.get("phase") != "Published"
        assert status.get("publishedAt") is None


@pytest.fixture
def registry_behind_proxy(story: Story, operator_with: Callable[..., OperatorProcess]) -> Iterator[RegistryProxy]:
    """An operator whose registry is behind a proxy that counts, and knows moments."""
    proxy = RegistryProxy(story.local.registry)
    operator_with(OUTRIDER_REGISTRY=proxy.host)
    yield proxy
    proxy.stop()
