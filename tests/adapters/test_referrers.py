"""Referrers: with the API, and with the tag that stands in for it; registries that lie about them."""

import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.realservers import RealHttpServer, RealRegistry, running_registry, sha256_of
from adapters.realtools import REGISTRY_KINDS, ReferrersRegistry, running_registry_of_kind
from outrider.adapters.registry import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MAX_REFERRERS,
    Descriptor,
    OciRegistry,
    RegistrySettings,
    referrers_tag,
)
from outrider.api.errors import Stalling, Transient

EVIDENCE = "application/vnd.example.evidence"
EMPTY = b"{}"
EMPTY_CONFIG = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:" + sha256_of(EMPTY), "size": 2}
NOTHING = "sha256:" + "0" * 64


@pytest.fixture(scope="module", params=REGISTRY_KINDS)
def shared_registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """One registry of each kind that runs here."""
    with running_registry_of_kind(request.param, tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def fake(web: RealHttpServer, **settings: Any) -> OciRegistry:
    return OciRegistry(RegistrySettings(f"127.0.0.1:{web.port}", plain_http=True, resume_delays=(), **settings))


def subject_in(client: OciRegistry, repository: str) -> Descriptor:
    client.push_bytes(repository, EMPTY)
    content = manifest(None, "application/vnd.example.subject")
    return Descriptor(client.push_manifest(repository, content, MANIFEST_TYPE, "subject"), len(content))


def manifest(subject: Descriptor | None, artifact_type: str | None = EVIDENCE, **annotations: str) -> bytes:
    content: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": EMPTY_CONFIG,
        "layers": [EMPTY_CONFIG],
        "annotations": annotations,
    }
    if artifact_type is not None:
        content["artifactType"] = artifact_type
    if subject is not None:
        content["subject"] = {"mediaType": MANIFEST_TYPE, "digest": subject.digest, "size": subject.size}
    return json.dumps(content).encode()


def test_what_refers_to_a_manifest_is_found(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    assert client.referrers(repository, subject.digest) == []
    digests = {
        client.push_referrer(repository, manifest(subject, number=str(n)), MANIFEST_TYPE, subject.digest)
        for n in range(3)
    }
    other = client.push_referrer(repository, manifest(subject, "x/other"), MANIFEST_TYPE, subject.digest)
    found = client.referrers(repository, subject.digest, EVIDENCE)
    assert {each.descriptor.digest for each in found} == digests
    assert {each.annotations["number"] for each in found} == {"0", "1", "2"}
    assert {each.artifact_type for each in found} == {EVIDENCE}
    for each in found:
        document = client.get_manifest(repository, each.descriptor.digest)
        assert document is not None
        assert len(document.content) == each.descriptor.size
    everything = {each.descriptor.digest for each in client.referrers(repository, subject.digest)}
    assert everything == {*digests, other}
    assert client.referrers(repository, subject.digest, "x/nothing") == []


def test_referring_twice_changes_nothing(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    content = manifest(subject)
    first = client.push_referrer(repository, content, MANIFEST_TYPE, subject.digest)
    index = client.get_manifest(repository, referrers_tag(subject.digest))
    assert client.push_referrer(repository, content, MANIFEST_TYPE, subject.digest) == first
    assert client.get_manifest(repository, referrers_tag(subject.digest)) == index
    assert len(client.referrers(repository, subject.digest)) == 1


def test_the_type_of_the_config_stands_in_for_an_artifact_type(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    client.push_referrer(repository, manifest(subject, None), MANIFEST_TYPE, subject.digest)
    [found] = client.referrers(repository, subject.digest)
    assert found.artifact_type == "application/vnd.oci.empty.v1+json"


def test_what_others_put_into_the_index_stays(
    client: OciRegistry, repository: str, shared_registry: RealRegistry
) -> None:
    if isinstance(shared_registry, ReferrersRegistry):
        pytest.skip("needs no index")
    subject = subject_in(client, repository)
    theirs = manifest(subject, "x/theirs")
    digest = client.push_manifest(repository, theirs, MANIFEST_TYPE)
    entry = {
        "mediaType": MANIFEST_TYPE,
        "digest": digest,
        "size": len(theirs),
        "artifactType": "x/theirs",
        "data": "e30=",
    }
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry], "annotations": {"a": "b"}}
    client.push_manifest(repository, json.dumps(index).encode(), INDEX_TYPE, referrers_tag(subject.digest))
    client.push_referrer(repository, manifest(subject), MANIFEST_TYPE, subject.digest)
    document = client.get_manifest(repository, referrers_tag(subject.digest))
    assert document is not None
    first, second = json.loads(document.content)["manifests"]
    assert first == entry
    assert second["artifactType"] == EVIDENCE


def test_deleting_one_referrer_takes_it_out_of_the_index(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    one, two = (
        client.push_referrer(repository, manifest(subject, n=n), MANIFEST_TYPE, subject.digest) for n in ("1", "2")
    )
    assert client.delete_referrer(repository, subject.digest, one) is True
    assert [each.descriptor.digest for each in client.referrers(repository, subject.digest)] == [two]
    assert client.delete_referrer(repository, subject.digest, one) is False
    assert client.delete_referrer(repository, subject.digest, two) is True
    assert client.referrers(repository, subject.digest) == []
    assert client.get_manifest(repository, referrers_tag(subject.digest)) is None
    assert client.get_manifest(repository, subject.digest) is not None


def test_deleting_all_referrers_of_a_type(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    contents = [manifest(subject, n=n) for n in ("1", "2")]
    for content in contents:
        client.push_referrer(repository, content, MANIFEST_TYPE, subject.digest)
    other = client.push_referrer(repository, manifest(subject, "x/other"), MANIFEST_TYPE, subject.digest)
    deleted = client.delete_referrers(repository, subject.digest, EVIDENCE)
    assert {document.content for document in deleted} == set(contents)
    assert [each.descriptor.digest for each in client.referrers(repository, subject.digest)] == [other]
    assert len(client.delete_referrers(repository, subject.digest)) == 1
    assert client.delete_referrers(repository, subject.digest) == []
    assert client.list_tags(repository) == ["subject"]


def test_a_referrer_that_somebody_deleted_does_not_block_the_next(client: OciRegistry, repository: str) -> None:
    subject = subject_in(client, repository)
    gone = client.push_referrer(repository, manifest(subject, n="1"), MANIFEST_TYPE, subject.digest)
    client.delete_manifest(repository, gone)
    new = client.push_referrer(repository, manifest(subject, n="2"), MANIFEST_TYPE, subject.digest)
    assert new in {each.descriptor.digest for each in client.referrers(repository, subject.digest)}


def test_a_tag_is_written_only_where_there_is_no_api(
    client: OciRegistry, repository: str, shared_registry: RealRegistry
) -> None:
    subject = subject_in(client, repository)
    client.push_referrer(repository, manifest(subject), MANIFEST_TYPE, subject.digest)
    has_api = isinstance(shared_registry, ReferrersRegistry)
    assert (client.get_manifest(repository, referrers_tag(subject.digest)) is None) is has_api


def test_deletion_that_is_switched_off_says_so(tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry", deletable=False) as registry, registry.client() as client:
        subject = subject_in(client, "a/b")
        client.push_referrer("a/b", manifest(subject), MANIFEST_TYPE, subject.digest)
        with pytest.raises(Stalling) as caught:
            client.delete_referrers("a/b", subject.digest)
    assert caught.value.reason == "DeleteUnsupported"


def test_tags_are_listed_over_pages_and_deleted(client: OciRegistry, repository: str) -> None:
    assert client.list_tags(repository) == []
    contents = {f"t{n}": manifest(None, n=str(n)) for n in range(3)}
    client.push_bytes(repository, EMPTY)
    for tag, content in contents.items():
        client.push_manifest(repository, content, MANIFEST_TYPE, tag)
    assert client.list_tags(repository) == ["t0", "t1", "t2"]
    assert client.delete_tag(repository, "t1") is True
    assert client.delete_tag(repository, "t1") is False
    assert client.list_tags(repository) == ["t0", "t2"]


# Registries that know the API, and such that lie


SUBJECT = Descriptor("sha256:" + "1" * 64, 3)
API = f"/v2/a/b/referrers/{SUBJECT.digest}"
TAG = f"/v2/a/b/manifests/{referrers_tag(SUBJECT.digest)}"


def entry(number: int, artifact_type: str = EVIDENCE, **more: Any) -> dict[str, Any]:
    digest = f"sha256:{number:064x}"
    return {"mediaType": MANIFEST_TYPE, "digest": digest, "size": 2, "artifactType": artifact_type, **more}


def index(*entries: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(entries)}).encode()


def listed(web: RealHttpServer, artifact_type: str | None = EVIDENCE) -> list[str]:
    with fake(web) as client:
        return [each.descriptor.digest for each in client.referrers("a/b", SUBJECT.digest, artifact_type)]


def test_with_the_api_no_tag_is_asked_for_and_we_filter_ourselves(web: RealHttpServer) -> None:
    web.serve(API, index(entry(1), entry(2, "x/other"), entry(1)), Content_Type=INDEX_TYPE)
    assert listed(web) == [entry(1)["digest"]]
    assert [path for path, _ in web.requests] == [f"{API}?" + urllib.parse.urlencode({"artifactType": EVIDENCE})]
    assert len(listed(web, None)) == 2


def test_a_registry_that_knows_the_api_gets_no_tag(web: RealHttpServer) -> None:
    content = manifest(SUBJECT)
    path = f"/v2/a/b/manifests/sha256:{sha256_of(content)}"
    web.serve(f"PUT {path}", b"", status=201, OCI_Subject=SUBJECT.digest)
    with fake(web) as client:
        client.push_referrer("a/b", content, MANIFEST_TYPE, SUBJECT.digest)
    assert [each for each, _ in web.requests] == [path]


def test_a_registry_that_confirms_another_subject_gets_the_tag(web: RealHttpServer) -> None:
    content = manifest(SUBJECT)
    web.serve(f"PUT /v2/a/b/manifests/sha256:{sha256_of(content)}", b"", status=201, OCI_Subject=NOTHING)
    stored: list[bytes] = []

    def put(request: Any) -> None:
        stored.append(request.rfile.read(int(request.headers["Content-Length"])))
        web.serve(f"GET {TAG}", stored[-1], Content_Type=INDEX_TYPE)
        request.send_response(201)
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.handlers[f"PUT {TAG}"] = put
    with fake(web) as client:
        client.push_referrer("a/b", content, MANIFEST_TYPE, SUBJECT.digest)
    assert json.loads(stored[0])["manifests"][0]["digest"] == "sha256:" + sha256_of(content)
    assert len(stored) == 1


def test_an_index_that_others_keep_overwriting_is_given_up_for_now(web: RealHttpServer) -> None:
    content = manifest(SUBJECT)
    web.serve(f"PUT /v2/a/b/manifests/sha256:{sha256_of(content)}", b"", status=201)
    web.serve(f"PUT {TAG}", b"", status=201)
    web.serve(f"GET {TAG}", index(entry(7)), Content_Type=INDEX_TYPE)
    with fake(web) as client, pytest.raises(Transient, match="others keep changing"):
        client.push_referrer("a/b", content, MANIFEST_TYPE, SUBJECT.digest)
    assert len(web.requests) < 20


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_without_the_api_the_tag_is_asked(web: RealHttpServer, status: int) -> None:
    web.serve(API, b"no such page", status=status)
    web.serve(TAG, index(entry(1), entry(2, "x/other")), Content_Type=INDEX_TYPE)
    assert listed(web) == [entry(1)["digest"]]


def test_a_page_that_is_no_index_is_no_api(web: RealHttpServer) -> None:
    web.serve(API, b"{}", Content_Type="application/json")
    web.serve(TAG, index(entry(1)), Content_Type=INDEX_TYPE)
    assert listed(web) == [entry(1)["digest"]]


def pages(web: RealHttpServer, link: str, **headers: str) -> None:
    """Let the API answer with one entry per page and a `Link` of this form, where {} is the number of the next page."""

    def handler(request: Any) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
        number = int(query.get("page", ["0"])[0])
        body = index(entry(number))
        request.send_response(200)
        named = {"Content-Type": INDEX_TYPE, "Content-Length": str(len(body)), "Link": link.format(number + 1)}
        for name, value in {**named, **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    web.handlers[API] = handler


def test_pages_are_followed_and_bounded(web: RealHttpServer) -> None:
    pages(web, "<" + API + '?page={}>; rel="next"')
    assert len(listed(web)) == len(web.requests) == 20


def test_pages_in_a_circle_end(web: RealHttpServer) -> None:
    pages(web, "<" + API + '?page=0>; rel="next"')
    assert len(listed(web)) == 1


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:1/x", "https://127.0.0.1:1/x", "http://[::1", "//169.254.169.254/", "file:///etc/x"]
)
def test_a_list_does_not_go_on_elsewhere(web: RealHttpServer, target: str) -> None:
    pages(web, f'<{target}>; rel="next"')
    with pytest.raises(Transient, match="goes on elsewhere"):
        listed(web)


@pytest.mark.parametrize("link", ["", "nonsense", "<>", '<x>; rel="prev"', "<;,;>", '; rel="next"'])
def test_links_that_say_nothing_end_a_list(web: RealHttpServer, link: str) -> None:
    pages(web, link)
    assert len(listed(web)) == 1


def test_a_list_of_10_000_entries_is_cut_off(web: RealHttpServer) -> None:
    web.serve(API, index(*map(entry, range(10_000))), Content_Type=INDEX_TYPE)
    assert len(listed(web)) == MAX_REFERRERS
    web.handlers.clear()
    web.serve(TAG, index(*map(entry, range(10_000))), Content_Type=INDEX_TYPE)
    assert len(listed(web)) == MAX_REFERRERS


def test_our_entries_are_found_behind_a_thousand_others(web: RealHttpServer) -> None:
    others = [entry(number, "x/other") for number in range(5000)]
    web.serve(API, index(*others, entry(5001)), Content_Type=INDEX_TYPE)
    assert listed(web) == [entry(5001)["digest"]]


def test_an_index_that_is_full_is_not_added_to(web: RealHttpServer) -> None:
    content = manifest(SUBJECT)
    web.serve(f"PUT /v2/a/b/manifests/sha256:{sha256_of(content)}", b"", status=201)
    web.serve(f"GET {TAG}", index(*map(entry, range(MAX_REFERRERS))), Content_Type=INDEX_TYPE)
    with fake(web) as client, pytest.raises(Stalling) as caught:
        client.push_referrer("a/b", content, MANIFEST_TYPE, SUBJECT.digest)
    assert caught.value.reason == "ReferrersFull"


@pytest.mark.parametrize(
    "strange",
    [
        None,
        7,
        "x",
        [],
        {},
        {"digest": "sha256:" + "1" * 64},
        {"digest": 7, "size": 2},
        {"digest": "sha512:" + "1" * 128, "size": 2},
        {"digest": "sha256:" + "1" * 64, "size": -1},
        {"digest": "sha256:" + "1" * 64, "size": True},
        {"digest": "sha256:" + "1" * 64, "size": 2, "artifactType": 7},
        {"digest": "sha256:" + "1" * 64, "size": 2, "annotations": [1]},
    ],
)
def test_entries_that_make_no_sense_are_left_out(web: RealHttpServer, strange: Any) -> None:
    web.serve(API, index(strange, entry(5)), Content_Type=INDEX_TYPE)
    assert listed(web, None) == [entry(5)["digest"]]


BAD = [
    b"",
    b"not json",
    b"[]",
    b'{"manifests": [], "manifests": []}',
    b'{"manifests": {}}',
    b'{"manifests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"manifests": [], "x": NaN}',
    b'{"manifests": [], "x": "\\ud800"}',
    b"\xff",
    b" " * (4 * 1024 * 1024 + 1),
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_an_answer_of_the_api_that_cannot_be_read(web: RealHttpServer, body: bytes) -> None:
    web.serve(API, body, Content_Type=INDEX_TYPE)
    with pytest.raises(Transient) as caught:
        listed(web)
    assert caught.value.reason == "RegistryUnavailable"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("body", [*BAD, manifest(None)], ids=range(len(BAD) + 1))
def test_a_tag_that_holds_something_else_is_named(web: RealHttpServer, body: bytes) -> None:
    web.serve(TAG, body, Content_Type=INDEX_TYPE)
    with pytest.raises(Stalling) as caught:
        listed(web)
    assert caught.value.reason == "ManifestInvalid"
    assert referrers_tag(SUBJECT.digest) in caught.value.message


def test_a_subject_is_a_digest(client: OciRegistry, repository: str) -> None:
    with pytest.raises(Stalling) as caught:
        client.referrers(repository, "latest")
    assert caught.value.reason == "ReferenceInvalid"


def test_a_registry_that_is_down_while_asked(registry: RealRegistry) -> None:
    with registry.client() as client:
        subject = subject_in(client, "a/b")
        registry.kill()
        with pytest.raises(Transient) as caught:
            client.referrers("a/b", subject.digest)
    assert caught.value.reason == "RegistryUnavailable"
