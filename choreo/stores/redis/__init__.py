"""Keys and leases in Redis."""

from choreo.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
