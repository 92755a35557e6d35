-- release: ends a lease by its holder's will, retires its token, and serves the next in line.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   4 history   stream  what happened to the name
--   5 queue     zset    the grants that are waited for, in order
--   6 waiters   hash    for each of them: channel, holder, ttl and about, as msgpack
-- ARGV
--   1 holder    text, 1 to 255 bytes; as in acquire
--   2 grant     text, 32 hex digits; as in acquire
--   3 mine      integer, 1 to 9007199254740991, the token; or 0 to cancel an acquire, whether it
--               was granted, is in the line, or never arrived
--   4 keep_ms   integer, 1 to 315360000000 milliseconds; how long token and history are kept
--   5 minting   "time" or "dense"
--   6 length    integer, 1 to 1000000; about how many entries the history keeps
-- RETURNS
--   {"RELEASED", token}    the lease has ended by this call, or by an earlier copy of it
--   {"STALE", issued}      it had ended before: another token has been issued since
--   {"CANCELLED", issued}  mine was 0: the grant is not held, and not in the line any more. If it never
--                          was, that is on record, and a copy of its acquire that comes as the next
--                          event is refused; one that joins, as one of the next ten events
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    the token key holds a value that no script of ours wrote
-- CALLS
--   RELEASED   O(1)      nobody waits  MGET PEXPIRE*2 SET DEL XADD EXISTS
--   RELEASED   O(1)      lock is gone  MGET GET*2 PEXPIRE*2 SET XADD EXISTS
--   RELEASED   O(log n)  hands over    MGET PEXPIRE*3 SET*4 DEL XADD*2 EXISTS TIME ZRANGE*2 HGET ZREM HDEL PUBLISH
--   RELEASED   O(1)      asked again   MGET GET*2 XREVRANGE
--   STALE      O(1)      as a rule     MGET XREVRANGE*2
--   CANCELLED  O(1)      as a rule     MGET XREVRANGE*2 ZRANGE ZREM XADD PEXPIRE
--   CANCELLED  O(log n)  was in line   MGET XREVRANGE*2 ZRANGE ZREM HDEL
--   CANCELLED  O(log n)  was the head  MGET XREVRANGE*2 ZRANGE*2 ZREM HDEL PTTL HGET PUBLISH
-- IDEMPOTENT  yes: a repetition finds the release in the history (its last 100 events)
-- SINCE       Redis 6.2

local lock, token, info, history, queue, waiters = unpack(KEYS)
local holder, grant, mine, keep_ms, minting, length = unpack(ARGV)

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
if #KEYS ~= 6 or #ARGV ~= 6 or not string.find(grant, '^%x+$') or #grant ~= 32
  or not within(mine, 0, 2 ^ 53 - 1) or not within(keep_ms, 1, 315360000000)
  or (minting ~= 'time' and minting ~= 'dense') or not within(length, 1, 1000000) then
  return redis.error_reply('BADCALL release: an argument is out of the range that its header gives')
end

local issued, held_by, described = unpack(redis.call('MGET', token, lock, info))
-- MGET shows a key of another type as a missing one, and GET refuses it.
issued = issued or redis.call('GET', token) or '0'
held_by = held_by or redis.call('GET', lock)
described = described or redis.call('GET', info)
if not within(issued, 0, 2 ^ 53) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
-- Its tail, as acquire and renew write it.
local ours = described and string.find(described, '"grant":"' .. grant .. '","ttl":[%d.]+,"token":'
  .. issued .. ',"since":[%d.]+}$', -150)

-- The same lines, up to the next mark, stand in acquire and release.
local CLAIM_MS, LINE_MS = 1000, 60000
local now_us
-- The next token, and the server's time in milliseconds.
local function mint(after)
  local time = redis.call('TIME')
  now_us = time[1] * 1000000 + time[2]
  return minting == 'dense' and after + 1 or math.max(after + 1, now_us), math.floor(now_us / 1000)
end
local function record(event, which, who, id)
  local done = redis.pcall('XADD', history, 'MAXLEN', '~', length, '*',
    'event', event, 'token', which, 'holder', who, 'grant', id)
  if not done.err then redis.pcall('PEXPIRE', history, keep_ms) end
end
-- Writes a grant, and returns its token as text.
local function write(number, since_ms, who, id, full_ms, lock_ms, fields)
  -- Lua's own conversion rounds above 1e14.
  local text = string.format('%.0f', number)
  local head = string.sub(fields, 1, -2) .. (string.find(fields, '^{%s*}$') and '' or ',')
  redis.call('SET', token, text, 'PX', tonumber(full_ms) > tonumber(keep_ms) and full_ms or keep_ms)
  redis.call('SET', lock, who, 'PX', lock_ms)
  redis.call('SET', info, head .. string.format('"grant":"%s","ttl":%.14g,"token":%s,"since":%.3f}',
    id, full_ms / 1000, text, since_ms / 1000), 'PX', full_ms)
  return text
end
local function give(lost, number, since_ms, who, id, full_ms, lock_ms, fields)
  local text = write(number, since_ms, who, id, full_ms, lock_ms, fields)
  if lost then record('loss', lost[4], lost[6], lost[8]) end
  record('grant', text, who, id)
end
-- What is done with a line. Each run makes its functions anew: these only where somebody waits.
local function line()
  -- On a Cluster a waiter listens in the name's own slot, so its channel has the hash tag.
  local function publish(where, message)
    if string.find(where, '{', 1, true) then return redis.pcall('SPUBLISH', where, message) end
    return redis.pcall('PUBLISH', where, message)
  end
  -- Channel, holder, ttl and about of a waiter; nothing if no script of ours wrote them.
  local function parts(packed)
    local done, left = pcall(cmsgpack.unpack, packed or '')
    for i = 1, 4 do
      if not done or type(left) ~= 'table' or type(left[i]) ~= 'string' then return end
    end
    if within(left[3], 10, 604800000) and string.find(left[4], '^{.*}$') then return unpack(left) end
  end
  -- Tells the first two waiters that hear it when the name is free again: they watch for that.
  local function tell(remaining_ms)
    local place = 0
    for _, id in ipairs(redis.call('ZRANGE', queue, 0, 9)) do
      local where = parts(redis.pcall('HGET', waiters, id))
      local reached = where and publish(where,
        string.format('HEAD %s %.0f %.0f', id, remaining_ms, place))
      if type(reached) == 'number' and reached > 0 then place = place + 1 end
      if place == 2 then return end
    end
  end
  local function put_back(ticket, id)
    redis.call('ZADD', queue, ticket, id)
    redis.call('PEXPIRE', queue, LINE_MS)
  end
  -- Grants the free name to who has left the line for it, and returns there if the server refuses.
  local function hand(ticket, lost, number, since_ms, who, id, full_ms, lock_ms, fields)
    local done, refusal = pcall(give, lost, number, since_ms, who, id, full_ms, lock_ms, fields)
    if not done then
      put_back(ticket, id)
      error(refusal, 0)
    end
    redis.pcall('HDEL', waiters, id)
    tell(lock_ms)
  end
  -- Hands the free name to the first waiter that hears it, for a short time in which it must renew.
  -- Returns its holder and that time; or nothing, if the waiter `own` comes first.
  local function serve(number, since_ms, own, lost)
    local id, ticket = unpack(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES'))
    while id and id ~= own and number < 2 ^ 53 do
      local where, who, full_ms, fields = parts(redis.call('HGET', waiters, id))
      redis.call('ZREM', queue, id)
      local reached = where and publish(where,
        string.format('GRANT %s %.0f %.0f', id, number, since_ms))
      if type(reached) == 'table' then
        -- Nobody can be told here: the name goes to whoever asks, and the line stays.
        return put_back(ticket, id)
      elseif reached and reached > 0 then
        local claim_ms = math.min(CLAIM_MS, full_ms)
        hand(ticket, lost, number, since_ms, who, id, full_ms, claim_ms, fields)
        return who, claim_ms
      end
      redis.pcall('HDEL', waiters, id)
      id, ticket = unpack(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES'))
    end
  end
  return serve, hand, tell
end
-- End of the lines that are the same.

if mine == '0' and not ours or mine ~= '0' and issued ~= mine then
  -- A repetition most often comes at once.
  for _, count in ipairs({4, 100}) do
    for _, entry in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', count)) do
      -- Its names and values: event, token, holder, grant.
      local fields = entry[2]
      if fields[8] == grant and fields[2] == 'release' then
        return {'RELEASED', tonumber(fields[4])}
      end
    end
  end
  if mine ~= '0' then return {'STALE', tonumber(issued)} end
  local leaves_head = redis.call('ZRANGE', queue, 0, 0)[1] == grant
  local remaining_ms = leaves_head and redis.call('PTTL', lock)
  if redis.call('ZREM', queue, grant) == 1 then
    redis.pcall('HDEL', waiters, grant)
    if leaves_head then
      local _, _, tell = line()
      tell(math.max(0, remaining_ms))
    end
  else
    -- A cancel that is not on record must not be answered. The first write, the ZREM, needs no
    -- memory: the server then lets this one pass even when memory is full.
    redis.call('XADD', history, 'MAXLEN', '~', length, '*',
      'event', 'cancel', 'token', '0', 'holder', holder, 'grant', grant)
    redis.pcall('PEXPIRE', history, keep_ms)
  end
  return {'CANCELLED', tonumber(issued)}
end

-- A first write that needs no memory: the server then lets the SET pass even when memory is full.
redis.call('PEXPIRE', token, keep_ms)
-- The retired number was never granted, so no late renew can match it.
redis.call('SET', token, string.format('%.0f', issued + 1), 'PX', keep_ms)
local leavings = {}
if held_by == holder then table.insert(leavings, lock) end
if ours then table.insert(leavings, info) end
if #leavings > 0 then
  local deleted = redis.pcall('DEL', unpack(leavings))
  if type(deleted) == 'table' and deleted.err then
    redis.call('SET', token, issued, 'PX', keep_ms)
    return deleted
  end
end
record('release', issued, holder, grant)
-- What is left under these keys now is somebody else's, and is not written over. A refusal in the
-- middle leaves the name free: the waiters find that when they look.
if (not held_by or held_by == holder) and (not described or ours) then
  pcall(function()
    if redis.call('EXISTS', queue) == 1 then
      local serve = line()
      serve(mint(issued + 1))
    end
  end)
end
return {'RELEASED', tonumber(issued)}
