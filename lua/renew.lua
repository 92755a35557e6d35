-- renew: gives the holder of the last token issued its full ttl again, from now on; or many holders.
--
-- One call may renew many leases of one holder and one ttl. Their replies then stand one after the
-- other in one flat array: {"RENEWED", 1, "STALE", 7, ...}. An error is about the whole call, and one
-- lease may have caused it: renew each in a call of its own then, so that the others are renewed.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
--   ...         string  the same three of each further lease, 100 leases at most: the server does
--                       nothing else meanwhile. On a Cluster all of them are in one slot
-- ARGV
--   1 holder    text, 1 to 255 bytes; as in acquire
--   2 mine      integer, 1 to 9007199254740991; the token, as granted
--   3 ttl_ms    integer, 10 to 604800000 milliseconds
--   4 keep_ms   integer, ttl_ms to 315360000000 milliseconds; how long the token key outlives this
--   5 about     JSON object, the info to be written anew with the tail that acquire writes; or "" to leave it
--   ...         mine and about of each further lease
-- RETURNS
--   {"RENEWED", described}   the lease has ttl_ms from now on; described is 0 if info is missing or
--                            tells another ttl: the caller then sends it at once, else 1
--   {"STALE", issued}        another token has been issued since, or the store forgot it (0)
--   {"FOREIGN", value}       the lock key holds what this holder did not write
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    a token key holds a value that no script of ours wrote
-- CALLS
--   RENEWED  O(1)  as a rule     MGET PEXPIRE*3
--   RENEWED  O(1)  lock is gone  MGET GET PEXPIRE*2 SET
--   RENEWED  O(1)  with info     MGET PEXPIRE*2 SET
--   RENEWED  O(n)  three leases  MGET PEXPIRE*9
--   STALE    O(1)  as a rule     MGET
--   FOREIGN  O(1)  as a rule     MGET
-- IDEMPOTENT  yes
-- SINCE       Redis 6.2

local lock, token, info = KEYS[1], KEYS[2], KEYS[3]
local holder, mine, ttl_ms, keep_ms, about = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
if #KEYS < 3 or #KEYS > 300 or #KEYS % 3 ~= 0 or #ARGV ~= #KEYS / 3 * 2 + 3
  or not within(ttl_ms, 10, 604800000) or not within(keep_ms, tonumber(ttl_ms), 315360000000) then
  return redis.error_reply('BADCALL renew: an argument is out of the range that its header gives')
end

local replies = {}
local function answer(status, value)
  replies[#replies + 1] = status
  replies[#replies + 1] = value
end
-- What to write once all leases have been looked at, for an error has to come before that.
local prolonged, ends, n = {}, {}, 0
local written, values, m = {}, {}, 0

local found = redis.call('MGET', unpack(KEYS))
local ttl_told = string.format('"ttl":%.14g,"token":', ttl_ms / 1000)
for i = 1, #KEYS / 3 do
  local tail = mine .. ',"since":'
  if not within(mine, 1, 2 ^ 53 - 1)
    or (about ~= '' and not string.find(about, '"token":' .. tail .. '[%d.]+}$')) then
    return redis.error_reply('BADCALL renew: a token is out of its range, or not that of the info')
  end

  -- MGET shows a key of another type as a missing one, and GET refuses it.
  local held_by, issued, described = unpack(found, 3 * i - 2, 3 * i)
  issued = issued or redis.call('GET', token)
  if issued and issued ~= mine and not within(issued, 0, 2 ^ 53) then
    return redis.error_reply('CORRUPT the token key holds no token')
  end
  held_by = held_by or (issued == mine and redis.call('GET', lock))
  if issued ~= mine then
    answer('STALE', tonumber(issued or 0))
  elseif held_by and held_by ~= holder then
    answer('FOREIGN', held_by)
  else
    described = described or redis.call('GET', info)
    n = n + 1
    prolonged[n], ends[n] = token, keep_ms
    if held_by then
      n = n + 1
      prolonged[n], ends[n] = lock, ttl_ms
    else
      -- Gone before its time (clock, eviction, DEL), and nobody was granted since: it is still ours.
      m = m + 1
      written[m], values[m] = lock, holder
    end
    -- As a rule it ends with this ttl, this token, and a "since" that is shorter than so many bytes.
    local expected = ttl_told .. tail
    local told = described and string.find(described, expected, -#expected - 24, true)
    local ours = told or (described and string.find(described, '"token":' .. tail .. '[%d.]+}$'))
    if about ~= '' and (ours or not described) then
      m = m + 1
      written[m], values[m] = info, about
    elseif ours then
      n = n + 1
      prolonged[n], ends[n] = info, ttl_ms
    end
    local missing = about == '' and not told and (ours or not described)
    answer('RENEWED', missing and 0 or 1)
  end
  lock, token, info = unpack(KEYS, 3 * i + 1, 3 * i + 3)
  mine, about = ARGV[2 * i + 4], ARGV[2 * i + 5]
end

-- These first, for they need no memory: the server then lets a SET pass even when memory is full.
for i = 1, n do redis.call('PEXPIRE', prolonged[i], ends[i]) end
for i = 1, m do redis.call('SET', written[i], values[i], 'PX', ttl_ms) end
return replies
