-- KEYS: leases, keys, claims, buckets, one bucket's list. ARGV: the bucket's name, most digests to take.
-- Returns how many keys were forgotten, how many digests were taken, how many of these put back: claims in flight.
local digests = redis.call('LRANGE', KEYS[5], 0, ARGV[2] - 1)
local gone, claims, kept = {}, {}, {}
if #digests > 0 then
  redis.call('LTRIM', KEYS[5], ARGV[2], -1)
  for i, value in ipairs(redis.call('HMGET', KEYS[2], unpack(digests))) do
    local state = value and string.sub(value, 1, 1)
    local epoch, field
    if state == 'C' then
      epoch, field = string.match(value, '^(%d+) %d+ (.*)$', 10)
    end
    if epoch and live(field, epoch) then
      kept[#kept + 1] = digests[i]
    elseif state then
      gone[#gone + 1] = digests[i]
    end
    if epoch and not live(field, epoch) then
      claims[#claims + 1] = digests[i]
    end
  end
end
local forgotten = #gone > 0 and redis.call('HDEL', KEYS[2], unpack(gone)) or 0
if #claims > 0 then
  redis.call('ZREM', KEYS[3], unpack(claims))
end
if #kept > 0 then
  redis.call('RPUSH', KEYS[5], unpack(kept))
elseif redis.call('EXISTS', KEYS[5]) == 0 then
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return {forgotten, #digests, #kept}
