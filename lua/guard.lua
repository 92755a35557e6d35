-- guard: refuses a token older than the newest it has seen, or runs commands, in one atomic step.
--
-- KEYS
--   1 mark      hash    the highest token accepted and the grant that it belongs to
--   ...         any     the keys that the commands use, in the same slot
-- ARGV
--   1 token     integer, 1 to 9007199254740991
--   2 grant     text; the random id of the token's grant, or "" if the caller does not know it
--   3 count     integer, 0 to 1000; how many commands follow
--   ...         for each command: the number of its words, 1 to 7000, then the words
-- RETURNS
--   {"ACCEPTED", highest, replies}         every command ran; replies are the server's, in order
--   {"STALE", highest, grant}              refused: nothing was done
--   {"FAILED", highest, replies, error}    the token is accepted, and the command after the last
--                                          reply failed; those before it stand, as in MULTI/EXEC
-- ERRORS
--   BADCALL    an argument is out of its range; nothing was done
--   CORRUPT    the mark holds a value that no script of ours wrote
-- CALLS
--   ACCEPTED  O(1)  the first token  HMGET EXISTS HSET and the commands
--   ACCEPTED  O(1)  a larger token   HMGET HSET and the commands
--   ACCEPTED  O(1)  the same token   HMGET and the commands
--   ACCEPTED  O(1)  checked again    HMGET HSET
--   STALE     O(1)  as a rule        HMGET
--   FAILED    O(1)  a larger token   HMGET HSET and the commands up to the failed one
-- IDEMPOTENT  as far as the commands are
-- SINCE       Redis 6.2

local mark = KEYS[1]
local token, grant, count = ARGV[1], ARGV[2], ARGV[3]

-- Whole numbers in their only spelling: they are passed on as they came.
local function within(text, low, high)
  local number = tonumber(text)
  return number and number >= low and number <= high
    and (string.find(text, '^[1-9]%d*$') or text == '0')
    and (number < 2 ^ 53 or text == '9007199254740992') -- which is what the next one is read as
end
local commands, at = {}, 4
for _ = 1, within(count, 0, 1000) and count or 0 do
  if not within(ARGV[at], 1, 7000) or at + ARGV[at] > #ARGV then break end
  local words = tonumber(ARGV[at])
  table.insert(commands, {unpack(ARGV, at + 1, at + words)})
  at = at + words + 1
end
if #KEYS < 1 or not within(token, 1, 2 ^ 53 - 1) or #commands ~= tonumber(count)
  or at ~= #ARGV + 1 then
  return redis.error_reply('BADCALL guard: an argument is out of the range that its header gives')
end

local seen = redis.call('HMGET', mark, 'token', 'grant')
local highest, last_grant = tonumber(seen[1] or '0'), seen[2] or ''
if not within(seen[1] or '0', 0, 2 ^ 53 - 1) or (not seen[1] and redis.call('EXISTS', mark) == 1) then
  return redis.error_reply('CORRUPT the mark holds no token')
end
local offered = tonumber(token)
local rival = grant ~= '' and last_grant ~= '' and grant ~= last_grant
if offered < highest or (offered == highest and rival) then
  return {'STALE', highest, last_grant}
end
-- A bare check writes in any case, so that no replica can answer it.
if offered > highest or (grant ~= '' and last_grant == '') or #commands == 0 then
  redis.call('HSET', mark, 'token', token, 'grant', grant ~= '' and grant or offered == highest and last_grant or '')
end

local replies = {}
for _, command in ipairs(commands) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err then
    return {'FAILED', offered, replies, reply.err}
  end
  table.insert(replies, reply)
end
return {'ACCEPTED', offered, replies}
