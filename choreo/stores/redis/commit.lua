-- KEYS: leases, keys, claims. ARGV: field, epoch, token, digests of 16 bytes a partition.
-- Returns the numbers (from 1) of the partitions refused; of a partition all or nothing is written.
local CHUNK = 1000 -- arguments that one call takes are bounded
local refused = {}
for i = 1, #ARGV, 4 do
  local field, epoch, token, packed = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local accepted, writes = holds(field, epoch), {}
  local at = 1
  while accepted and at <= #packed do
    local digests, changes = {}, {}
    while at <= #packed and #digests < CHUNK do
      digests[#digests + 1] = string.sub(packed, at, at + 15)
      at = at + 16
    end
    local done = {}
    for n, value in ipairs(redis.call('HMGET', KEYS[2], unpack(digests))) do
      if value and string.sub(value, 1, 1) == 'C' then
        local its_epoch, its_field = string.match(value, '^(%d+) %d+ (.*)$', 10)
        accepted = accepted and its_epoch == epoch and its_field == field
        done[#done + 1] = digests[n]
        changes[#changes + 1] = digests[n]
        changes[#changes + 1] = 'D' .. string.sub(value, 2, 9) .. token
      else -- done by this very request, which is repeated; else it was taken over, or its claim is lost
        accepted = accepted and value and string.sub(value, 10) == token
      end
    end
    if #done > 0 then
      writes[#writes + 1] = {changes, done}
    end
  end
  if accepted then
    for _, write in ipairs(writes) do
      redis.call('HSET', KEYS[2], unpack(write[1]))
      redis.call('ZREM', KEYS[3], unpack(write[2]))
    end
  else
    refused[#refused + 1] = (i + 3) / 4
  end
end
return refused
