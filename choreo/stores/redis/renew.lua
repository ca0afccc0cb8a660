-- ARGV: lease_ms, then field, epoch, progress ("-": not told) a lease. Returns the numbers (from 1) of those lost.
local changes, lost = {}, {}
for i = 2, #ARGV, 3 do
  local field, epoch, progress = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if holds(field, epoch) then
    local found = lease(field)
    changes[#changes + 1] = field
    changes[#changes + 1] =
      lease_record(epoch, now_ms + ARGV[1], progress == '-' and found.progress or progress, found.owner)
  else
    lost[#lost + 1] = (i + 1) / 3
  end
end
if #changes > 0 then
  redis.call('HSET', KEYS[1], unpack(changes))
end
return lost
