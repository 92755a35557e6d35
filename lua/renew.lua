-- renew: gives the holder of the last token issued its full ttl again, from now on.
--
-- KEYS
--   1 lock      string  the holder's readable id
--   2 token     string  the last token issued
--   3 info      string  JSON that describes the lease
-- ARGV
--   1 holder    text, 1 to 255 bytes; as in acquire
--   2 mine      integer, 1 to 9007199254740991; the token, as granted
--   3 ttl_ms    integer, 10 to 604800000 milliseconds
--   4 keep_ms   integer, ttl_ms to 315360000000 milliseconds; how long the token key outlives this
--   5 about     JSON object, the info to be written anew with the tail that acquire writes; or "" to leave it
-- RETURNS
--   {"RENEWED", described}   the lease has ttl_ms from now on; described is 0 if info is missing or
--                            tells another ttl: the caller then sends it at once, else 1
--   {"STALE", issued}        another token has been issued since, or the store forgot it (0)
--   {"FOREIGN", value}       the lock key holds what this holder did not write
-- ERRORS
--   BADCALL    an argument is out of its range
--   CORRUPT    the token key holds a value that no script of ours wrote
-- CALLS
--   RENEWED  O(1)  as a rule     GET*3 PEXPIRE*3
--   RENEWED  O(1)  lock is gone  GET*3 PEXPIRE*2 SET
--   RENEWED  O(1)  with info     GET*3 PEXPIRE*2 SET
--   STALE    O(1)  as a rule     GET
--   FOREIGN  O(1)  as a rule     GET*2
-- IDEMPOTENT  yes
-- SINCE       Redis 6.2

local lock, token, info = unpack(KEYS)
local holder, mine, ttl_ms, keep_ms, about = unpack(ARGV)

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high and string.format('%.0f', number) == text
end
if #KEYS ~= 3 or #ARGV ~= 5 or not within(ttl_ms, 10, 604800000)
  or not within(keep_ms, tonumber(ttl_ms), 315360000000) or not within(mine, 1, 2 ^ 53 - 1)
  or not (about == '' or string.find(about, '"token":' .. mine .. ',"since":[%d.]+}$')) then
  return redis.error_reply('BADCALL renew: an argument is out of the range that its header gives')
end

local issued = redis.call('GET', token)
if issued and not within(issued, 0, 2 ^ 53) then
  return redis.error_reply('CORRUPT the token key holds no token')
end
if issued ~= mine then return {'STALE', tonumber(issued or 0)} end
local held_by = redis.call('GET', lock)
if held_by and held_by ~= holder then return {'FOREIGN', held_by} end
local described = redis.call('GET', info)

-- A first write that needs no memory: the server then lets a SET pass even when memory is full.
redis.call('PEXPIRE', token, keep_ms)
if held_by then
  redis.call('PEXPIRE', lock, ttl_ms)
else
  -- Gone before its time (clock, eviction, DEL), and nobody was granted since: it is still ours.
  redis.call('SET', lock, holder, 'PX', ttl_ms)
end
local TAIL = '"ttl":([%d.]+),"token":(%d+),"since":[%d.]+}$'
local told_ttl, told_token = string.match(described or '', TAIL)
local ours = told_token == mine
if about ~= '' and (ours or not described) then
  redis.call('SET', info, about, 'PX', ttl_ms)
elseif ours then
  redis.call('PEXPIRE', info, ttl_ms)
end
local told = about ~= '' or (ours and told_ttl * 1000 == tonumber(ttl_ms))
return {'RENEWED', (told or (described and not ours)) and 1 or 0}
