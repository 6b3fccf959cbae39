"""Authors with keys of every kind, and what they make in every format: as the tools do, built here byte by byte."""

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from outrider.trust.evidence import Evidence
from outrider.trust.keys import TrustedKey, parse_public_key

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
INTOTO = "application/vnd.in-toto+json"
STATEMENT = "https://outrider.dev/statement/v1"
COSIGN_SIGN = "https://sigstore.dev/cosign/sign/v1"
SHA256, SHA384 = hashes.SHA256(), hashes.SHA384()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Author:
    """A key pair, and what its holder makes with it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if kind == "rsa":
            self.private = rsa.generate_private_key(65537, 3072)
        else:
            self.private = ec.generate_private_key({"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}[kind])
        public = self.private.public_key()
        self.pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.private_pem = self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.hash: hashes.HashAlgorithm = SHA384 if kind == "p384" else SHA256
        self.key = self.trusted()

    def trusted(self, **scope: Any) -> TrustedKey:
        return parse_public_key(self.pem, f"secret/keys:{self.kind}.pub", **scope)

    def sign(self, data: bytes, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
        algorithm = algorithm or self.hash
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return self.private.sign(data, ec.ECDSA(algorithm))
        return self.private.sign(data, padding.PKCS1v15(), algorithm)

    def detached(self, data: bytes, algorithm: hashes.HashAlgorithm = SHA256) -> Evidence:
        return Evidence("Detached", self.sign(data, algorithm))

    def material(self) -> dict[str, Any]:
        return {"publicKey": {"hint": b64(hashlib.sha256(self.der).digest())}, "tlogEntries": []}

    def bundle(self, data: bytes) -> dict[str, Any]:
        name = "SHA2_384" if self.kind == "p384" else "SHA2_256"
        digest = hashlib.new(self.hash.name, data).digest()
        return {
            "mediaType": BUNDLE,
            "verificationMaterial": self.material(),
            "messageSignature": {
                "messageDigest": {"algorithm": name, "digest": b64(digest)},
                "signature": b64(self.sign(data)),
            },
        }

    def envelope(self, payload: bytes, payload_type: str = INTOTO) -> dict[str, Any]:
        pae = b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)
        return {"payload": b64(payload), "payloadType": payload_type, "signatures": [{"sig": b64(self.sign(pae))}]}

    def enveloping(self, payload: bytes) -> dict[str, Any]:
        return {"mediaType": BUNDLE, "verificationMaterial": self.material(), "dsseEnvelope": self.envelope(payload)}

    def attestation(self, digest: str, chain: tuple[bytes, ...] = ()) -> Evidence:
        return evidence("SigstoreAttestation", self.enveloping(attestation_payload(digest)), chain)

    def classic(self, digest: str, chain: tuple[bytes, ...] = ()) -> Evidence:
        payload = classic_payload(digest)
        return Evidence("CosignClassic", payload, b64(self.sign(payload, SHA256)), chain)


def evidence(format_: Any, value: dict[str, Any], chain: tuple[bytes, ...] = ()) -> Evidence:
    return Evidence(format_, json.dumps(value).encode(), chain=chain)


def attestation_payload(digest: str) -> bytes:
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest}, "annotations": {"a": "b"}}],
            "predicateType": COSIGN_SIGN,
            "predicate": {},
        }
    ).encode()


def classic_payload(digest: str) -> bytes:
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": "registry.example.com/team/agent"},
                "image": {"docker-manifest-digest": f"sha256:{digest}"},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()


def statement(data: bytes, **changes: Any) -> dict[str, Any]:
    """Return our statement about `data` as agent 1.4.0 for linux/amd64; `changes` are made to the predicate."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "node-agent", "digest": {"sha256": sha256(data)}}],
        "predicateType": STATEMENT,
        "predicate": {
            "component": "agent",
            "version": "1.4.0",
            "platform": "linux/amd64",
            "size": len(data),
            **changes,
        },
    }


def index_of(*documents: bytes) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"digest": f"sha256:{sha256(document)}", "size": len(document)} for document in documents],
        }
    ).encode()


def manifest_of(*files: bytes) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"digest": "sha256:" + "0" * 64, "size": 2},
            "layers": [{"digest": f"sha256:{sha256(file)}", "size": len(file)} for file in files],
        }
    ).encode()
