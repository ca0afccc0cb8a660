-- ARGV: lease_ms, owner, field ...  Returns the new epochs. Each is unique in its group: claims are found by it.
local epoch = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0'), now_us)
local changes, epochs = {}, {}
for i = 3, #ARGV do
  local former = lease(ARGV[i])
  epoch = epoch + 1
  epochs[#epochs + 1] = digits(epoch)
  changes[#changes + 1] = ARGV[i]
  changes[#changes + 1] =
    lease_record(digits(epoch), now_ms + ARGV[1], former and former.progress or '-', ARGV[2])
end
redis.call('HSET', KEYS[1], 'epoch', digits(epoch), unpack(changes))
return epochs
