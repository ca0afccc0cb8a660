"""A Kafka that demands TLS, a password, a token or a certificate, and denies whatever is not granted."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import trustme
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography.hazmat.primitives import serialization as pem

from deploy.kafka.cluster import LocalKafka
from deploy.kafka.node import free_ports

USER, PASSWORD, PLAIN_USER, PLAIN_PASSWORD = "scram-user", "scr4m-secret", "plain-user", "pl4in-secret"
CLIENT, CLIENT_SECRET, CERTIFIED, KEY_PASSWORD = "oauth-client", "cl1ent-secret", "certified", "k3y-secret"
LOGIN = "org.apache.kafka.common.security"
RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


@dataclass(frozen=True)
class SecureKafka:
    """Addresses of its listeners, who may come in, and an administrator's hand on it.

    `sasl` wants TLS and SASL, `mtls` a certificate; whoever comes to `open` may do everything.
    """

    open: str
    sasl: str
    mtls: str
    folder: Path
    token_url: str
    admin: AdminClient

    def settings(self, way: str) -> dict[str, str]:
        """The variables with which a client comes in: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or mTLS."""
        found = {"security_protocol": "SASL_SSL", "sasl_mechanism": way, "ssl_cafile": f"{self.folder}/ca.pem"}
        if way == "mTLS":
            del found["sasl_mechanism"]
            found |= {"security_protocol": "SSL", "ssl_key_password": KEY_PASSWORD}
            found |= {f"ssl_{name}file": f"{self.folder}/client-{name}.pem" for name in ("cert", "key")}
        elif way == "OAUTHBEARER":
            told = {"token_endpoint_url": self.token_url, "client_id": CLIENT, "client_secret": CLIENT_SECRET}
            found |= {f"sasl_oauthbearer_{name}": text for name, text in told.items()} | {
                "sasl_oauthbearer_scope": "kafka"
            }
        elif way == "PLAIN":
            found |= {"sasl_username": PLAIN_USER, "sasl_password": PLAIN_PASSWORD}
        else:
            found |= {"sasl_username": USER, "sasl_password": PASSWORD}
        return {f"CHOREO_KAFKA_{name.upper()}": text for name, text in found.items()}

    def server(self, way: str) -> str:
        """The listener for such a client."""
        return self.mtls if way == "mTLS" else self.sasl

    def grant(self, principal: str, acls: Sequence[Mapping[str, Any]]) -> None:
        """What `choreo topics acl --json` prints, to one principal. Blocks."""
        bindings = [_binding(AclBinding, principal, acl, name) for acl in acls for name in acl["operations"]]
        for answer in self.admin.create_acls(bindings).values():
            answer.result(20)

    def take(self, principal: str, acl: Mapping[str, Any], operation: str) -> None:
        """The opposite, of one operation. Blocks."""
        (answer,) = self.admin.delete_acls([_binding(AclBindingFilter, principal, acl, operation)]).values()
        assert len(answer.result(20)) == 1


def _binding(kind: Any, principal: str, acl: Mapping[str, Any], operation: str) -> Any:
    where = RESOURCES[acl["resource_type"]], acl["name"], PATTERNS[acl["pattern_type"]]
    return kind(*where, principal, "*", OPERATIONS[operation], AclPermissionType.ALLOW)


@contextmanager
def secure_kafka(folder: Path) -> Iterator[SecureKafka]:
    """Started, and stopped in the end; Missing where there is no Java."""
    certificates(folder)
    admin, sasl, mtls, controller = free_ports(4)
    listeners = f"PLAINTEXT://127.0.0.1:{admin},SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{mtls}"
    kafka = LocalKafka(folder / "data", properties=properties(folder, listeners, controller), ports=[admin])
    with kafka, tokens() as token_url:
        client = AdminClient({"bootstrap.servers": f"127.0.0.1:{admin}", "log_level": 0})
        users = [
            UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
        ]
        for user in users:
            for answer in client.alter_user_scram_credentials([user]).values():
                answer.result(20)
        yield SecureKafka(f"127.0.0.1:{admin}", f"127.0.0.1:{sasl}", f"127.0.0.1:{mtls}", folder, token_url, client)


def certificates(folder: Path) -> None:
    """An authority, a broker's certificate for 127.0.0.1, a client's with an encrypted key; another authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    broker = authority.issue_cert("127.0.0.1")
    chain = b"".join(each.bytes() for each in broker.cert_chain_pems)
    (folder / "broker.pem").write_bytes(_pkcs8(broker.private_key_pem.bytes(), None) + chain)
    client = authority.issue_cert("client.example", common_name=CERTIFIED)
    (folder / "client-cert.pem").write_bytes(b"".join(each.bytes() for each in client.cert_chain_pems))
    (folder / "client-key.pem").write_bytes(_pkcs8(client.private_key_pem.bytes(), KEY_PASSWORD))


def _pkcs8(key: bytes, password: str | None) -> bytes:
    encryption = pem.BestAvailableEncryption(password.encode()) if password else pem.NoEncryption()
    loaded = pem.load_pem_private_key(key, None)
    return loaded.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)


def properties(folder: Path, listeners: str, controller: int) -> dict[str, str]:
    """Of server.properties. The plain listener, where whoever comes is a super user, is the administrator's."""
    names = ("PLAINTEXT", "SASL_SSL", "SSL")
    sasl = "listener.name.sasl_ssl"
    return {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": ",".join(f"{name}:{name}" for name in names) + ",CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.ssl.ssl.client.auth": "required",
        "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        f"{sasl}.plain.sasl.jaas.config": (
            f'{LOGIN}.plain.PlainLoginModule required user_{PLAIN_USER}="{PLAIN_PASSWORD}";'
        ),
        **{
            f"{sasl}.scram-sha-{size}.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;"
            for size in (256, 512)
        },
        # Tokens that nobody signed are taken: what is tested is that the client fetches one and hands it over.
        f"{sasl}.oauthbearer.sasl.jaas.config": (
            f'{LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }


@contextmanager
def tokens() -> Iterator[str]:
    """URL of a token endpoint for CLIENT and CLIENT_SECRET; 401 to anybody else."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tokens)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Tokens(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
        known = base64.b64encode(f"{CLIENT}:{CLIENT_SECRET}".encode()).decode()
        granted = self.headers.get("authorization") == f"Basic {known}"
        granted = granted and asked == {"grant_type": ["client_credentials"], "scope": ["kafka"]}
        now_s = int(time.time())
        claims = {"sub": CLIENT, "scope": "kafka", "iat": now_s, "exp": now_s + 600}
        token = ".".join((_part({"alg": "none"}), _part(claims), ""))
        body = (
            {"access_token": token, "token_type": "Bearer", "expires_in": 600}
            if granted
            else {"error": "invalid_client"}
        )
        told = json.dumps(body).encode()
        self.send_response(200 if granted else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _part(claims: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
