-- acquire: grants the lease on a name if it is free and nobody waits for it; else may join the line.
--
-- KEYS
--   1 lock      string  the holder's readable id, for as long as the lease lasts
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   4 history   stream  what happened to the name
--   5 queue     zset    the grants that are waited for, in order
--   6 waiters   hash    for each of them: channel, holder, ttl and about, as msgpack
-- ARGV
--   1 holder    text, 1 to 255 bytes
--   2 grant     text, 32 hex digits; random, and the same in every repetition of this acquire
--   3 ttl_ms    integer, 10 to 604800000 milliseconds
--   4 keep_ms   integer, ttl_ms to 315360000000 milliseconds; how long token and history outlive it
--   5 about     JSON object with "holder"; what info shows beside grant, ttl, token and since
--   6 minting   "time" or "dense"
--   7 length    integer, 1 to 1000000; about how many entries the history keeps
--   8 waiting   "no"; "join" to be put at the end of the line; "stay" if it is in the line already
--   9 channel   text; where a waiter hears of its grant; "" if waiting is "no"
-- RETURNS
--   {"GRANTED", token, since_ms}           held; since_ms is the server's time of the grant
--   {"HELD", holder, remaining_ms}         somebody has it; -1 if the lock key never ends
--   {"QUEUED", holder, remaining_ms, place}  the same, and so many are before the caller in the line
--   {"GONE", issued}                       the caller is not in the line (any more): join anew
--   {"ENDED", token}                       this very grant was made and is over; or cancelled: 0
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    a key of this name holds a value that no script of ours wrote
--   EXHAUSTED  no token is left below 2^53
-- CALLS
--   GRANTED  O(1)      fresh              GET EXISTS XREVRANGE TIME SET*3 XADD PEXPIRE
--   GRANTED  O(1)      after a loss       GET EXISTS XREVRANGE TIME SET*3 XADD*2 PEXPIRE*2
--   GRANTED  O(1)      asked again        GET*3 EXISTS PTTL PEXPIRE*2
--   GRANTED  O(1)      after a renew      GET*3 EXISTS PTTL
--   GRANTED  O(1)      again, after end   GET*3 EXISTS SET*3
--   GRANTED  O(1)      info is gone too   GET EXISTS XREVRANGE TIME SET*3
--   GRANTED  O(log n)  first in line      GET*3 EXISTS ZSCORE XREVRANGE TIME ZRANGE*2 ZREM SET*3 HDEL XADD PEXPIRE
--   HELD     O(1)      as a rule          GET*3 EXISTS PTTL
--   HELD     O(1)      clock went back    GET*3 EXISTS PTTL PEXPIRE*2
--   HELD     O(log n)  the line is first  GET*3 EXISTS XREVRANGE TIME ZRANGE*2 HGET ZREM PUBLISH SET*3 HDEL XADD PEXPIRE
--   QUEUED   O(log n)  joins              GET*3 EXISTS ZSCORE XREVRANGE PTTL ZCARD TIME ZREVRANGE HSET ZADD PEXPIRE*2
--   QUEUED   O(log n)  stays              GET*3 EXISTS ZSCORE PTTL ZRANK PEXPIRE*2 HSET
--   QUEUED   O(log n)  the line is first  GET*3 EXISTS ZSCORE XREVRANGE TIME ZRANGE*2 HGET ZREM PUBLISH SET*3 HDEL XADD ZCARD ZREVRANGE HSET ZADD PEXPIRE*3
--   GONE     O(1)      as a rule          GET*3 EXISTS ZSCORE
--   ENDED    O(1)      as a rule          GET EXISTS XREVRANGE
--   ENDED    O(1)      somebody has it    GET*3 EXISTS ZSCORE XREVRANGE
-- IDEMPOTENT  yes, by grant: while it is the last one, a repetition gets the same token again
-- SINCE       Redis 6.2

local lock, token, info, history, queue, waiters = unpack(KEYS)
local holder, grant, ttl_ms, keep_ms, about, minting, length, waiting, channel = unpack(ARGV)

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
if #KEYS ~= 6 or #ARGV ~= 9 or #holder < 1 or #holder > 255 or not string.find(grant, '^%x+$')
  or #grant ~= 32 or not within(ttl_ms, 10, 604800000)
  or not within(keep_ms, tonumber(ttl_ms), 315360000000) or not string.find(about, '^{.*}$')
  or (minting ~= 'time' and minting ~= 'dense') or not within(length, 1, 1000000)
  or (waiting ~= 'no' and (channel == '' or (waiting ~= 'join' and waiting ~= 'stay'))) then
  return redis.error_reply('BADCALL acquire: an argument is out of the range that its header gives')
end

local issued = redis.call('GET', token) or '0'
if not within(issued, 0, 2 ^ 53) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
-- As a rule the name is free and nobody waits: then there is nothing more to read.
local there = redis.call('EXISTS', lock, info, queue) > 0
local held_by = there and redis.call('GET', lock)
local described = there and redis.call('GET', info)
local last_grant, last_ttl, last_token, since
if described then
  -- The tail is shorter than that, and the caller's fields before it may be long.
  local TAIL = '"grant":"(%x+)","ttl":([%d.]+),"token":(%d+),"since":([%d.]+)}$'
  last_grant, last_ttl, last_token, since = string.match(described, TAIL, -150)
  if not last_grant then
    return redis.error_reply('CORRUPT the info key holds no description of a lease')
  end
end

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

local again = last_grant == grant and last_token == issued and (not held_by or held_by == holder)
local ticket = waiting ~= 'no' and not again and redis.call('ZSCORE', queue, grant)
if waiting == 'stay' and not again and not ticket then return {'GONE', tonumber(issued)} end

-- The history tells a grant that ended in silence, and a late copy of a call that has been answered
-- or given up. Cancels of rivals say nothing. Where a copy would only wait, a short look will do.
local last, own
local function look(count)
  for _, entry in ipairs(redis.call('XREVRANGE', history, '+', '-', 'COUNT', count)) do
    -- Its names and values: event, token, holder, grant.
    local fields = entry[2]
    own = own or (fields[8] == grant and fields)
    last = last or (fields[2] ~= 'cancel' and fields)
  end
end
if not again and not held_by then
  look(4)
  if not own and last == false then look(100) end
elseif not again and waiting == 'join' and not ticket then
  look(10)
elseif not again and held_by == holder and not described then
  look(1)
end
if own then
  again = own[2] == 'grant' and own[4] == issued and (not held_by or held_by == holder)
  if not again then return {'ENDED', tonumber(own[4])} end
end

if again then
  local since_ms = since and math.floor(since * 1000 + 0.5) or select(2, mint(0))
  if not held_by then
    write(tonumber(issued), since_ms, holder, grant, ttl_ms, ttl_ms, about)
  elseif redis.call('PTTL', lock) < tonumber(ttl_ms) then
    -- Never shorter: a late copy of this call may come after a renew.
    redis.call('PEXPIRE', lock, ttl_ms)
    redis.call('PEXPIRE', info, ttl_ms)
  end
  return {'GRANTED', tonumber(issued), since_ms}
end

local remaining_ms
if held_by then
  remaining_ms = redis.call('PTTL', lock)
  -- Only after the clock went back is more left than was given. A dead holder must not profit.
  if last_ttl and remaining_ms > last_ttl * 1000 and cjson.decode(described).holder == held_by then
    remaining_ms = last_ttl * 1000
    redis.call('PEXPIRE', lock, string.format('%.0f', remaining_ms))
    redis.call('PEXPIRE', info, string.format('%.0f', remaining_ms))
  end
else
  local number, since_ms = mint(issued)
  if number >= 2 ^ 53 then
    return redis.error_reply('EXHAUSTED the name has no token left below 2^53')
  end
  local lost = last and last[2] == 'grant' and last[4] == issued and last
  local serve, hand
  if there then
    serve, hand = line()
    held_by, remaining_ms = serve(number, since_ms, grant, lost)
  end
  if not held_by then
    if ticket then
      redis.call('ZREM', queue, grant)
      hand(ticket, lost, number, since_ms, holder, grant, ttl_ms, ttl_ms, about)
    else
      give(lost, number, since_ms, holder, grant, ttl_ms, ttl_ms, about)
    end
    return {'GRANTED', number, since_ms}
  end
end
if waiting == 'no' then return {'HELD', held_by, remaining_ms} end

local packed = cmsgpack.pack({channel, holder, ttl_ms, about})
if ticket then
  local place = redis.call('ZRANK', queue, grant)
  -- A first write that needs no memory: the server then lets the HSET pass even when memory is full.
  redis.call('PEXPIRE', queue, LINE_MS)
  redis.call('HSET', waiters, grant, packed)
  redis.call('PEXPIRE', waiters, LINE_MS)
  return {'QUEUED', held_by, remaining_ms, place}
end
local place = redis.call('ZCARD', queue)
-- Later than the last one, even if the clock went back.
if not now_us then mint(0) end
local newest = tonumber(redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')[2] or 0)
redis.call('HSET', waiters, grant, packed)
local done = redis.pcall('ZADD', queue, string.format('%.0f', math.max(now_us, newest + 1)), grant)
if type(done) == 'number' then done = redis.pcall('PEXPIRE', waiters, LINE_MS) end
if type(done) == 'number' then done = redis.pcall('PEXPIRE', queue, LINE_MS) end
if type(done) ~= 'number' then
  redis.pcall('ZREM', queue, grant)
  redis.pcall('HDEL', waiters, grant)
  return done
end
return {'QUEUED', held_by, remaining_ms, place}
