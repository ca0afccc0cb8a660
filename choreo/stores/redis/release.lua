-- KEYS: leases, keys, claims. ARGV: most claims to free, then field, epoch a lease.
-- Returns how many leases are given up with all of their claims; a lease goes after the last of its claims.
local left, released = tonumber(ARGV[1]), 0
for i = 2, #ARGV, 2 do
  local field, epoch = ARGV[i], ARGV[i + 1]
  local digests = redis.call('ZRANGEBYSCORE', KEYS[3], epoch, epoch, 'LIMIT', 0, left)
  if #digests > 0 then
    redis.call('HDEL', KEYS[2], unpack(digests))
    redis.call('ZREM', KEYS[3], unpack(digests))
  end
  left = left - #digests
  if left == 0 then
    break
  end
  if holds(field, epoch) then
    redis.call('HSET', KEYS[1], field, lease_record(epoch, 0, lease(field).progress, ''))
  end
  released = released + 1
end
return released
