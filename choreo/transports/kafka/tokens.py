"""Tokens for SASL OAUTHBEARER by OAuth's client credentials (RFC 6749, 4.4), as librdkafka fetches its own."""

import asyncio
import base64
import time
import urllib.error
import urllib.request
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
from aiokafka import errors
from aiokafka.abc import AbstractTokenProvider

from choreo.errors import ConfigurationError

FETCH_S = 10.0
FRESH_SHARE = 0.8
"""Of a token's life, after which another is fetched; a connection needs it only when it begins."""
ANSWER_BYTES_MAX = 1024 * 1024


class TokenRefused(errors.KafkaConnectionError):  # type: ignore[misc]  # untyped
    """No token could be had. Of aiokafka's kind, so that its background takes it for a failed connection."""


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # untyped
    """Fetches a token when one is needed and keeps it while it is fresh.

    Raises:
        ConfigurationError: The endpoint is no http or https URL, or holds a password.
    """

    def __init__(self, url: str, client_id: str, secret: str, scope: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigurationError(
                "CHOREO_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: write https://HOST[:PORT]/PATH, without a user"
            )
        self._url, self._client_id = url, client_id
        credentials = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode()
        self._request = urllib.request.Request(  # nosec B310  # noqa: S310 (the scheme is checked above)
            url,
            urlencode({"grant_type": "client_credentials", **({"scope": scope} if scope else {})}).encode(),
            {"authorization": f"Basic {base64.b64encode(credentials).decode()}", "accept": "application/json"},
        )
        self._token, self._fresh_until_s = "", 0.0
        self._fetching = asyncio.Lock()

    async def token(self) -> str:
        """One that is fresh; TokenRefused says why there is none."""
        async with self._fetching:
            if time.monotonic() >= self._fresh_until_s:
                asked_s = time.monotonic()
                self._token, life_s = await asyncio.to_thread(self._fetch)
                self._fresh_until_s = asked_s + FRESH_SHARE * life_s
            return self._token

    def _fetch(self) -> tuple[str, float]:
        where = f"{self._url.partition('?')[0]} gives {self._client_id} no token"
        try:
            with urllib.request.urlopen(self._request, timeout=FETCH_S) as answer:  # nosec B310  # noqa: S310 (as above)
                told = orjson.loads(answer.read(ANSWER_BYTES_MAX))
            return str(told["access_token"]), float(told.get("expires_in", 0))
        except urllib.error.HTTPError as error:
            error.close()  # unread: its body may repeat what was sent
            raise TokenRefused(
                f"{where} (HTTP {error.code}): check CHOREO_KAFKA_SASL_OAUTHBEARER_CLIENT_ID and ..._CLIENT_SECRET"
            ) from None
        except OSError as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise TokenRefused(f"{where} ({why}): check CHOREO_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL") from None
        except (ValueError, KeyError, TypeError):
            raise TokenRefused(f"{where}: its answer has no access_token") from None
