"""The scripts that make a bucket's append, a fold, a step of progress and a lease atomic in Redis or Valkey (Lua)."""

from __future__ import annotations

# KEYS: fence hash, blobs. ARGV: number of fences F, F x (field, expected or "", until), number of groups G,
# G x (number of blobs, empty base, milliseconds they are kept from now on, 0 for ever), then one string of records per
# blob. Returns the new length of every blob.
APPEND = """
local fences, at = tonumber(ARGV[1]), 2
for i = 1, fences do
  local current = redis.call('HGET', KEYS[1], ARGV[at]) or ''
  if current ~= ARGV[at + 1] then return redis.error_reply('FENCE ' .. ARGV[at] .. ' is at ' .. current) end
  at = at + 3
end
at = 2
for i = 1, fences do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  at = at + 3
end
local groups = tonumber(ARGV[at])
local record, key, lengths = at + 1 + 3 * groups, 2, {}
for g = 1, groups do
  local base, keep = ARGV[at + 3 * g - 1], ARGV[at + 3 * g]
  for i = 1, tonumber(ARGV[at + 3 * g - 2]) do
    local added = ARGV[record]
    local length = redis.call('APPEND', KEYS[key], added)
    if length == #added then
      redis.call('SET', KEYS[key], base .. added)
      length = #base + length
    end
    if keep ~= '0' then redis.call('PEXPIRE', KEYS[key], keep) end
    lengths[key - 1] = length
    record, key = record + 1, key + 1
  end
end
return lengths
"""

# KEYS: blobs. ARGV per blob: expected length, expected header, new blob, milliseconds it is kept from now on, or 0: as long
# as it would have been. Returns how many were replaced.
REPLACE = """
local done = 0
for i = 1, #KEYS do
  local a = 4 * i
  if redis.call('STRLEN', KEYS[i]) == tonumber(ARGV[a - 3])
     and redis.call('GETRANGE', KEYS[i], 0, 31) == ARGV[a - 2] then
    if ARGV[a] == '0' then redis.call('SET', KEYS[i], ARGV[a - 1], 'KEEPTTL')
    else redis.call('SET', KEYS[i], ARGV[a - 1], 'PX', ARGV[a]) end
    done = done + 1
  end
end
return done
"""

# KEYS: catalog of a bucket's ids, its fence hash, slices to write, slices to remove. ARGV: expected "until" or "", new one,
# epoch or "", numbers of slices to remove and to write, the removed slices' names in the catalog, then per slice to write its
# name in the catalog, the number of ids and id, time, ... Returns 1; 0 where it changed nothing.
KEEP_IDS = """
local current = redis.call('HGET', KEYS[1], 'until') or ''
if current ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'until', ARGV[2])
local removed, written = tonumber(ARGV[4]), tonumber(ARGV[5])
local at = 6
for i = 1, removed do
  redis.call('UNLINK', KEYS[2 + i])
  redis.call('HDEL', KEYS[1], ARGV[at])
  at = at + 1
end
for i = 1, written do
  local key, count = KEYS[2 + removed + i], tonumber(ARGV[at + 1])
  redis.call('HSET', KEYS[1], ARGV[at], '')
  for each = 1, count do
    redis.call('HSET', key, ARGV[at + 2 * each], ARGV[at + 2 * each + 1])
  end
  at = at + 2 + 2 * count
end
return 1
"""

# KEYS: leases, each "run job since place who". ARGV: "take", "force", "renew" or "release", run, job, since when, where and by
# whom in words, how long they are held from now on in milliseconds, runs that are known to have ended. All or none: returns the
# number of the first that another holds, and that lease; or nothing. A job that is started again takes its own.
LEASE = """
local mode, run, job, ended = ARGV[1], ARGV[2], ARGV[3], {}
for i = 6, #ARGV do ended[ARGV[i]] = true end
for i, key in ipairs(KEYS) do
  local lease = redis.call('GET', key)
  if lease and mode ~= 'force' then
    local its_run, its_job = string.match(lease, '^(%S+) (%S+)')
    if its_run == run then
      if mode == 'release' then redis.call('DEL', key) end
    elseif mode == 'renew' or (mode == 'take' and its_job ~= job and not ended[its_run]) then
      return {i, lease}
    end
  end
end
if mode ~= 'release' then
  for _, key in ipairs(KEYS) do redis.call('SET', key, run .. ' ' .. job .. ' ' .. ARGV[4], 'PX', ARGV[5]) end
end
return {}
"""

# KEYS: progress hash. ARGV: partition, next offset, newest arrival. Never goes back.
PROGRESS = """
local current = redis.call('HGET', KEYS[1], ARGV[1])
local offset, arrival = ARGV[2], ARGV[3]
if current then
  local o, a = string.match(current, '(%-?%d+),(%-?%d+)')
  if tonumber(o) > tonumber(offset) then offset = o end
  if tonumber(a) > tonumber(arrival) then arrival = a end
end
redis.call('HSET', KEYS[1], ARGV[1], offset .. ',' .. arrival)
return offset
"""
