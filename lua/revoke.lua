-- revoke: ends somebody else's lease, named by its token, and retires that token.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   4 history   stream  what happened to the name
--   5 queue     zset    the grants that are waited for, in order
--   6 waiters   hash    for each of them: channel, holder, ttl and about, as msgpack
-- ARGV
--   1 which     integer, 1 to 9007199254740991; the lease to end, as inspect shows it
--   2 keep_ms   integer, 1 to 315360000000 milliseconds; how long token and history are kept
--   3 length    integer, 1 to 1000000; about how many entries the history keeps
-- RETURNS
--   {"REVOKED", token}   the lease has ended by this call, or by an earlier copy of it
--   {"STALE", issued}    it had ended before: another token has been issued since
--   {"FOREIGN", value}   the lock key holds what the lease's holder did not write; nothing is done
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    the token key holds a value that no script of ours wrote
-- CALLS
--   REVOKED  O(1)  as a rule      GET*3 PEXPIRE*2 SET DEL XADD ZRANGE
--   REVOKED  O(1)  lock is gone   GET*3 PEXPIRE*2 SET XADD ZRANGE
--   REVOKED  O(1)  some wait      GET*3 PEXPIRE*2 SET DEL XADD ZRANGE HGET PUBLISH
--   REVOKED  O(1)  asked again    GET XREVRANGE
--   STALE    O(1)  as a rule      GET XREVRANGE
--   FOREIGN  O(1)  as a rule      GET*3
-- IDEMPOTENT  yes: a repetition finds the revocation in the history (its last 100 events)
-- SINCE       Redis 6.2

local lock, token, info, history, queue, waiters = unpack(KEYS)
local which, keep_ms, length = unpack(ARGV)

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
if #KEYS ~= 6 or #ARGV ~= 3 or not within(which, 1, 2 ^ 53 - 1)
  or not within(keep_ms, 1, 315360000000) or not within(length, 1, 1000000) then
  return redis.error_reply('BADCALL revoke: an argument is out of the range that its header gives')
end

local issued = redis.call('GET', token) or '0'
if not within(issued, 0, 2 ^ 53) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
if issued ~= which then
  for _, event in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', 100)) do
    local entry = {}
    for i = 1, #event[2], 2 do entry[event[2][i]] = event[2][i + 1] end
    if entry.token == which and entry.event == 'revoke' then return {'REVOKED', tonumber(which)} end
  end
  return {'STALE', tonumber(issued)}
end
local held_by = redis.call('GET', lock)
local described = redis.call('GET', info)
local TAIL = '"grant":"(%x+)","ttl":[%d.]+,"token":(%d+),"since":[%d.]+}$'
local grant, last_token = string.match(described or '', TAIL)
local ours = last_token == issued
local holder = ours and cjson.decode(described).holder
if held_by and held_by ~= holder then return {'FOREIGN', held_by} end

-- A first write that needs no memory: the server then lets the SET pass even when memory is full.
redis.call('PEXPIRE', token, keep_ms)
redis.call('SET', token, string.format('%.0f', issued + 1), 'PX', keep_ms)
local leavings = {}
if held_by then table.insert(leavings, lock) end
if ours then table.insert(leavings, info) end
if #leavings > 0 then
  local deleted = redis.pcall('DEL', unpack(leavings))
  if type(deleted) == 'table' and deleted.err then
    redis.call('SET', token, issued, 'PX', keep_ms)
    return deleted
  end
end
local done = redis.pcall('XADD', history, 'MAXLEN', '~', length, '*',
  'event', 'revoke', 'token', which, 'holder', holder or '', 'grant', grant or '')
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
return {'REVOKED', tonumber(which)}
