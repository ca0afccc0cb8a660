-- KEYS: leases, keys, claims, buckets. Returns keys and claims together, claims, the oldest bucket, and every lease.
return {
  redis.call('HLEN', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('ZRANGE', KEYS[4], 0, 0),
  redis.call('HGETALL', KEYS[1])
}
