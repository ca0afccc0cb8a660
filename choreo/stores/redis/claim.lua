-- KEYS: leases, keys, claims, buckets, then one list a bucket.
-- ARGV: number of leases; field, epoch a lease; units packed 29 bytes each: digest 16, fingerprint 8, lease 2, bucket 2,
-- solo 1 (numbers from 0); then name, end_ms a bucket.
-- Returns one number a unit in a text: deliveries if fresh, 0 done, -1 busy, -2 conflict; or the number of a lost lease.
-- A key is "D", fingerprint 8, token 5 when done; "C", fingerprint 8, "epoch deliveries field" when claimed.
local WIDTH = 29
local count = tonumber(ARGV[1])
for i = 1, count do
  if not holds(ARGV[2 * i], ARGV[2 * i + 1]) then
    return i
  end
end
local units, first_bucket = ARGV[2 * count + 2], 2 * count + 3
local digests = {}
for at = 1, #units, WIDTH do
  digests[#digests + 1] = string.sub(units, at, at + 15)
end
local values = redis.call('HMGET', KEYS[2], unpack(digests))
local answers, changes, scores, buckets, ours = {}, {}, {}, {}, {}

for i, digest in ipairs(digests) do
  local at = (i - 1) * WIDTH + 17
  local fingerprint = string.sub(units, at, at + 7)
  local lease_high, lease_low, bucket_high, bucket_low, solo = string.byte(units, at + 8, at + 12)
  local held = 2 * (lease_high * 256 + lease_low) + 2
  local field, epoch = ARGV[held], ARGV[held + 1]
  local value = ours[digest] or values[i]
  local answer, deliveries
  if not value then
    answer, deliveries = 1, 1
    local bucket = bucket_high * 256 + bucket_low
    buckets[bucket] = buckets[bucket] or {}
    table.insert(buckets[bucket], digest)
  elseif string.sub(value, 1, 1) == 'D' then
    answer = string.sub(value, 2, 9) == fingerprint and 0 or -2
  else
    local its_epoch, counted, its_field = string.match(value, '^(%d+) (%d+) (.*)$', 10)
    local is_ours = its_epoch == epoch and its_field == field
    counted = tonumber(counted)
    if not is_ours and live(its_field, its_epoch) then
      answer = -1
    elseif is_ours and solo == 0 then
      answer = counted
    else
      -- Somebody died with it. The first death is counted for the whole batch; after it only a delivery about to run
      -- alone is, since the others of its batch are innocent.
      answer = counted + 1
      deliveries = (solo == 1 or counted == 1) and counted + 1 or counted
    end
  end
  if deliveries then
    value = 'C' .. fingerprint .. epoch .. ' ' .. deliveries .. ' ' .. field
    ours[digest] = value
    changes[#changes + 1] = digest
    changes[#changes + 1] = value
    scores[#scores + 1] = epoch
    scores[#scores + 1] = digest
  end
  answers[i] = answer
end

if #changes > 0 then
  redis.call('HSET', KEYS[2], unpack(changes))
  redis.call('ZADD', KEYS[3], unpack(scores))
  for bucket, born in pairs(buckets) do
    redis.call('RPUSH', KEYS[5 + bucket], unpack(born))
    redis.call('ZADD', KEYS[4], ARGV[first_bucket + 2 * bucket + 1], ARGV[first_bucket + 2 * bucket])
  end
end
return table.concat(answers, ' ')
