-- Put before every script. KEYS[1] is the group's hash of leases: "partition:topic" -> "epoch expires_ms progress owner",
-- where progress is "-" until it is known, and "epoch" -> the newest epoch of the group.
-- Epochs are microseconds of the server's clock, so that one given after a loss of data is newer than those before it.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local known = {}

local function digits(number) -- tostring() would write 1.7e+15
  return string.format('%.0f', number)
end

local function lease(field)
  if known[field] == nil then
    local record = redis.call('HGET', KEYS[1], field)
    known[field] = false
    if record then
      local epoch, expires_ms, progress, owner = string.match(record, '^(%d+) (%d+) (%S+) (.*)$')
      known[field] = {epoch = epoch, expires_ms = tonumber(expires_ms), progress = progress, owner = owner}
    end
  end
  return known[field]
end

local function holds(field, epoch)
  local found = lease(field)
  return found and found.epoch == epoch
end

local function live(field, epoch)
  return holds(field, epoch) and lease(field).expires_ms > now_ms
end

local function lease_record(epoch, expires_ms, progress, owner)
  return epoch .. ' ' .. digits(expires_ms) .. ' ' .. progress .. ' ' .. owner
end
