"""How to trust a Kafka and be known to it, from `CHOREO_KAFKA_*`, for both clients; aiokafka's arguments from it."""

import logging
import ssl
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from choreo.errors import ConfigurationError
from choreo.transports.kafka.settings import wrong
from choreo.transports.kafka.tokens import ClientCredentials

log = logging.getLogger(__name__)

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"]


class KafkaSecurity(BaseSettings):
    """TLS and SASL, read from the environment. TLS verifies certificate and host name unless told otherwise.

    OAUTHBEARER is OAuth's client credentials: a token of an endpoint. For tokens from elsewhere hand
    `KafkaTransport(security=...)` the client's own arguments.
    """

    # A wrong value is not repeated in the error: it may be a password in the wrong variable.
    model_config = SettingsConfigDict(env_prefix="CHOREO_KAFKA_", frozen=True, hide_input_in_errors=True)

    security_protocol: Protocol = "PLAINTEXT"
    sasl_mechanism: Mechanism | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_oauthbearer_token_endpoint_url: str | None = None
    sasl_oauthbearer_client_id: str | None = None
    sasl_oauthbearer_client_secret: SecretStr | None = None
    sasl_oauthbearer_scope: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_key_password: SecretStr | None = None
    ssl_check_hostname: bool = True

    def arguments(self) -> dict[str, Any]:
        """What aiokafka's clients take.

        Raises:
            ConfigurationError: Something is missing or a file cannot be read; says which variable to set.
        """
        found: dict[str, Any] = {"security_protocol": self.security_protocol}
        if self.security_protocol.endswith("SSL"):
            found["ssl_context"] = self._tls()
        if self.security_protocol.startswith("SASL"):
            found.update(self._sasl())
        return found

    def _tls(self) -> ssl.SSLContext:
        password = self.ssl_key_password.get_secret_value() if self.ssl_key_password else ""
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
            context.check_hostname = self.ssl_check_hostname
            if self.ssl_certfile:
                # A function, and never None: OpenSSL would ask the terminal for it.
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, lambda: password)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"TLS for Kafka cannot be set up ({type(error).__name__}: {error}): check CHOREO_KAFKA_SSL_CAFILE, "
                "CHOREO_KAFKA_SSL_CERTFILE, CHOREO_KAFKA_SSL_KEYFILE and CHOREO_KAFKA_SSL_KEY_PASSWORD"
            ) from None
        if not self.ssl_check_hostname:
            log.warning("CHOREO_KAFKA_SSL_CHECK_HOSTNAME is off: any certificate of that authority is taken")
        return context

    def _sasl(self) -> dict[str, Any]:
        if self.sasl_mechanism is None:
            raise ConfigurationError(
                f"{self.security_protocol} needs CHOREO_KAFKA_SASL_MECHANISM, e.g. SCRAM-SHA-512"
            )
        found: dict[str, Any] = {"sasl_mechanism": self.sasl_mechanism}
        if self.sasl_mechanism == "GSSAPI":
            return found
        if self.sasl_mechanism == "OAUTHBEARER":
            return {**found, "sasl_oauth_token_provider": self._tokens()}
        if self.sasl_username is None or self.sasl_password is None:
            raise ConfigurationError(
                f"{self.sasl_mechanism} needs CHOREO_KAFKA_SASL_USERNAME and CHOREO_KAFKA_SASL_PASSWORD"
            )
        if self.sasl_mechanism == "PLAIN" and self.security_protocol == "SASL_PLAINTEXT":
            log.warning("SASL PLAIN without TLS: the password crosses the network readable; use SASL_SSL or SCRAM")
        secret = self.sasl_password.get_secret_value()
        return {**found, "sasl_plain_username": self.sasl_username, "sasl_plain_password": secret}

    def _tokens(self) -> ClientCredentials:
        url, client = self.sasl_oauthbearer_token_endpoint_url, self.sasl_oauthbearer_client_id
        secret = self.sasl_oauthbearer_client_secret
        if not url or not client or secret is None:
            names = ("TOKEN_ENDPOINT_URL", "CLIENT_ID", "CLIENT_SECRET")
            raise ConfigurationError(
                f"OAUTHBEARER needs {', '.join(f'CHOREO_KAFKA_SASL_OAUTHBEARER_{name}' for name in names)}"
            )
        return ClientCredentials(url, client, secret.get_secret_value(), self.sasl_oauthbearer_scope)


def principal_of(arguments: Mapping[str, Any]) -> str:
    """Who brokers take a client with these arguments for, as far as it can tell; aiokafka's or librdkafka's."""
    user = arguments.get("sasl_plain_username") or arguments.get("sasl.username")
    if user:
        return f"User:{user}"
    protocol = arguments.get("security_protocol") or arguments.get("security.protocol") or "PLAINTEXT"
    if protocol == "PLAINTEXT":
        return "User:ANONYMOUS"
    return "the subject of this client's certificate" if protocol == "SSL" else "the subject of this client's token"


def security_from_environment() -> KafkaSecurity:
    """As `CHOREO_KAFKA_*` say, or ConfigurationError naming the variable that is wrong."""
    try:
        return KafkaSecurity()
    except ValidationError as error:
        raise wrong("CHOREO_KAFKA_", error) from None
