-- inspect: tells who has the lease on a name, and who waits for it. Changes nothing.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   4 queue     zset    the grants that are waited for, in order
--   5 waiters   hash    for each of them: channel, holder, ttl and about, as msgpack
-- ARGV
--   none
-- RETURNS
--   {"HELD", issued, count, line, holder, remaining_ms, info}  somebody has it
--   {"FREE", issued, count, line}                              nobody has it
--                          issued is 0 if the store forgot it; count is how many wait; line is
--                          holder, age_ms, holder, age_ms, ... for the first 100 of them;
--                          remaining_ms is -1 if the lock key never ends; info is "" if it does
--                          not belong to the last token issued
-- ERRORS
--   BADCALL    keys or arguments are missing
--   CORRUPT    the token key holds a value that no script of ours wrote
-- CALLS
--   HELD  O(1)  nobody waits  GET*3 PTTL ZCARD
--   HELD  O(1)  some wait     GET*3 PTTL ZCARD TIME ZRANGE HMGET
--   FREE  O(1)  as a rule     GET*2 ZCARD
-- IDEMPOTENT  yes
-- SINCE       Redis 6.2

local lock, token, info, queue, waiters = unpack(KEYS)
if #KEYS ~= 5 or #ARGV ~= 0 then
  return redis.error_reply('BADCALL inspect: takes 5 keys and no arguments')
end

local issued = redis.call('GET', token) or '0'
local number = tonumber(issued)
if not (number and number >= 0 and number <= 2 ^ 53 and string.format('%.0f', number) == issued) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
local held_by = redis.call('GET', lock)
local count, line = redis.call('ZCARD', queue), {}
if count > 0 then
  local time = redis.call('TIME')
  local places = redis.call('ZRANGE', queue, 0, 99, 'WITHSCORES')
  local ids = {}
  for i = 1, #places, 2 do table.insert(ids, places[i]) end
  for i, packed in ipairs(redis.call('HMGET', waiters, unpack(ids))) do
    local age_ms = (time[1] * 1000000 + time[2] - places[2 * i]) / 1000
    local done, parts = pcall(cmsgpack.unpack, packed or '')
    local who = done and type(parts) == 'table' and parts[2]
    table.insert(line, type(who) == 'string' and who or '')
    table.insert(line, math.max(0, math.floor(age_ms)))
  end
end
if not held_by then return {'FREE', tonumber(issued), count, line} end
local described = redis.call('GET', info) or ''
local remaining_ms = redis.call('PTTL', lock)
local ttl, last_token = string.match(described, '"ttl":([%d.]+),"token":(%d+),"since":[%d.]+}$')
if last_token ~= issued then
  described = ''
else
  -- More than was given is left only after the clock went back: the next acquire cuts it.
  remaining_ms = math.min(remaining_ms, ttl * 1000)
end
return {'HELD', tonumber(issued), count, line, held_by, remaining_ms, described}
