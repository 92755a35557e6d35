-- advance: makes the next token larger than a number that a resource has seen.
--
-- A lease that is held meanwhile ends: its token is not larger than that number, so the resource
-- refuses its holder anyway.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   4 history   stream  what happened to the name
--   5 queue     zset    the grants that are waited for, in order
--   6 waiters   hash    for each of them: channel, holder, ttl and about, as msgpack
-- ARGV
--   1 beyond    integer, 1 to 9007194959773696 (2^53 - 2^32); the next token is larger
--   2 keep_ms   integer, 1 to 315360000000 milliseconds; how long token and history are kept
--   3 length    integer, 1 to 1000000; about how many entries the history keeps
-- RETURNS
--   {"ADVANCED", beyond}   done
--   {"AHEAD", issued}      nothing to do: that many have been issued already
--   {"FOREIGN", value}     the lock key holds what no holder of ours wrote; nothing is done
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    the token key holds a value that no script of ours wrote
-- CALLS
--   ADVANCED  O(1)  the name is free  GET*3 SET XADD PEXPIRE ZRANGE
--   ADVANCED  O(1)  a lease is held   GET*3 SET DEL XADD PEXPIRE ZRANGE
--   ADVANCED  O(1)  some wait         GET*3 SET DEL XADD PEXPIRE ZRANGE HGET PUBLISH
--   ADVANCED  O(1)  asked again       GET XREVRANGE
--   AHEAD     O(1)  as a rule         GET
--   FOREIGN   O(1)  as a rule         GET*3
-- IDEMPOTENT  yes: a repetition finds the advance in the history (its last 100 events)
-- SINCE       Redis 6.2

local lock, token, info, history, queue, waiters = unpack(KEYS)
local beyond, keep_ms, length = unpack(ARGV)

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
if #KEYS ~= 6 or #ARGV ~= 3 or not within(beyond, 1, 2 ^ 53 - 2 ^ 32)
  or not within(keep_ms, 1, 315360000000) or not within(length, 1, 1000000) then
  return redis.error_reply('BADCALL advance: an argument is out of the range that its header gives')
end

local issued = redis.call('GET', token)
if issued and not within(issued, 0, 2 ^ 53) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
-- As a release does, this issues a number that is never granted: no old lease can match it.
local retired = string.format('%.0f', beyond + 1)
if issued == retired then
  for _, event in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', 100)) do
    local entry = {}
    for i = 1, #event[2], 2 do entry[event[2][i]] = event[2][i + 1] end
    if entry.event == 'advance' and entry.token == beyond then
      return {'ADVANCED', tonumber(beyond)}
    end
  end
end
if tonumber(issued or 0) >= tonumber(beyond) then return {'AHEAD', tonumber(issued)} end
local held_by = redis.call('GET', lock)
local described = redis.call('GET', info)
local TAIL = '"grant":"(%x+)","ttl":[%d.]+,"token":%d+,"since":[%d.]+}$'
local grant = string.match(described or '', TAIL)
local holder = grant and cjson.decode(described).holder
if held_by and held_by ~= holder then return {'FOREIGN', held_by} end

redis.call('SET', token, retired, 'PX', keep_ms)
local leavings = {}
if held_by then table.insert(leavings, lock) end
if grant then table.insert(leavings, info) end
if #leavings > 0 then
  local deleted = redis.pcall('DEL', unpack(leavings))
  if type(deleted) == 'table' and deleted.err then
    if issued then
      redis.call('SET', token, issued, 'PX', keep_ms)
    else
      redis.call('PEXPIRE', token, 0)
    end
    return deleted
  end
end
local done = redis.pcall('XADD', history, 'MAXLEN', '~', length, '*',
  'event', 'advance', 'token', beyond, 'holder', holder or '', 'grant', grant or '')
if not done.err then redis.pcall('PEXPIRE', history, keep_ms) end
-- On a Cluster a waiter listens in the name's own slot, so its channel has the hash tag.
local function publish(where, message)
  if string.find(where, '{', 1, true) then return redis.pcall('SPUBLISH', where, message) end
  return redis.pcall('PUBLISH', where, message)
end
-- The first waiter that hears it comes and takes the name. If none does, they find it by looking.
for _, id in ipairs(redis.pcall('ZRANGE', queue, 0, 9)) do
  local done, parts = pcall(cmsgpack.unpack, redis.pcall('HGET', waiters, id) or '')
  local reached = done and type(parts) == 'table' and type(parts[1]) == 'string'
    and publish(parts[1], 'HEAD ' .. id .. ' 0 0')
  if type(reached) == 'number' and reached > 0 then break end
end
return {'ADVANCED', tonumber(beyond)}
