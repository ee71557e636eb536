"""What is stored under which key, and the scripts that write and read it.

    elman:{ID}:header  hash: what the session is, and its used, position, version, fence, base (no change up to that
                       version can be a repeated one) and token (of the Create that made it)
    elman:{ID}:log     list: tokens in pieces, "START:CHECKSUM:" and the tokens
    elman:{ID}:states  hash: by position "CHECKSUM:" and the packed state
    elman:{ID}:calls   hash: by request_id "END:ENDED:CHECKSUM:", JSON, a newline and the answer
    elman:{ID}:order   list: the calls' request_ids, the latest last
    elman:{ID}:lease   hash: owner, fence, attempt; expires
    elman:{ID}:gone    string: the token of a session that was deleted; expires
    elman:ids          sorted set of all ids, all of score 0
    elman:used         sorted set of all ids by last use
    elman:caller:NAME  set of the ids of a caller's sessions

All of this is on one Redis, with replicas or without: a cluster would have to keep the last three elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

from elman_server.sessions.session import REMEMBERED_CALLS, TOKEN_BYTES

PREFIX = "elman:"
IDS, USED = f"{PREFIX}ids", f"{PREFIX}used"

_JOINED_BYTES = 16 * TOKEN_BYTES  # of a piece that is added to one before it as small, which is then written anew
_SAME_USE = 1.0  # seconds by which the order by last use may be behind

# What is written goes through these. Where memory is full Redis refuses a script at its first write, if that is one
# that may need memory; what has begun with another one may go on. So it does with what must work even then: leases, and
# whatever makes room. A script is made of what it needs and no more: all of it is run each time.

_COMMON = """
local header, log, states, calls, order, lease, gone, ids, used = unpack(KEYS)
local next_argument = 0
local function argument()
    next_argument = next_argument + 1
    return ARGV[next_argument]
end
local function number(key, field)
    return tonumber(redis.call('HGET', key, field))
end
local function exact(value)
    return string.format('%.0f', value)
end
local function refusal(answer)
    return {answer, redis.call('HGET', header, 'version') or '', redis.call('HGET', header, 'position') or ''}
end
"""

_FENCES = """
local function new_fence()
    local now = redis.call('TIME')
    local latest = math.max(number(header, 'fence') or 0, number(lease, 'fence') or 0)
    return exact(math.max(now[1] * 1000000 + now[2], latest + 1))
end
"""

_OBJECTION = """
local known = redis.call('HMGET', header, 'version', 'fence', 'base', 'position', 'used')
local known_position, known_use = tonumber(known[4]), tonumber(known[5])
-- What to answer to a change that is not to be made; nil if it is.
local function objection(version, fence)
    local latest, newest, base = tonumber(known[1]), tonumber(known[2]), tonumber(known[3])
    if not (latest and newest and base) then return 'conflict' end
    if newest > fence then return 'moved' end
    if latest == version - 1 then return nil end
    if newest == fence and base < version and version <= latest then return 'kept' end
    return 'conflict'
end
"""

_ADDING = f"""
local function add_call(request_id, call)
    redis.call('HSET', calls, request_id, call)
    if redis.call('LINDEX', order, -1) == request_id then return end
    redis.call('LREM', order, 0, request_id)
    redis.call('RPUSH', order, request_id)
    while redis.call('LLEN', order) > {REMEMBERED_CALLS} do
        redis.call('HDEL', calls, redis.call('LPOP', order))
    end
end
"""

_PIECES = f"""
local function packed(start, tokens)
    return start .. ':' .. string.sub(redis.sha1hex(start .. ':' .. tokens), 1, 8) .. ':' .. tokens
end
-- The start and the tokens of a piece; nil if it is damaged.
local function unpacked(piece)
    local start, tokens = string.match(piece, '^(%d+):%x+:(.*)$')
    if start and packed(start, tokens) == piece then return start, tokens end
end
-- Small pieces that follow each other become one, so that there are not too many to be read; damaged ones never.
local function add_piece(piece)
    local last = #piece < {_JOINED_BYTES} and redis.call('LINDEX', log, -1)
    if last and #last < {_JOINED_BYTES} then
        local start, tokens = unpacked(last)
        local following, more = unpacked(piece)
        if start and start + #tokens / {TOKEN_BYTES} == tonumber(following) then
            return redis.call('LSET', log, -1, packed(start, tokens .. more))
        end
    end
    redis.call('RPUSH', log, piece)
end
"""

_CUT = f"""
-- A piece without the tokens from `position` on; a damaged one as it is, so that its damage is found later.
local function cut_piece(piece, position)
    local start, tokens = unpacked(piece)
    return start and packed(start, string.sub(tokens, 1, (position - start) * {TOKEN_BYTES})) or piece
end
local function cut(position, state_position, open_calls_stay)
    local piece = redis.call('RPOP', log)
    while piece do
        if (tonumber(string.match(piece, '^(%d+):%x+:')) or position) < position then
            redis.call('RPUSH', log, cut_piece(piece, position))
            break
        end
        piece = redis.call('RPOP', log)
    end
    for _, at in ipairs(redis.call('HKEYS', states)) do
        if (tonumber(at) or math.huge) > state_position then redis.call('HDEL', states, at) end
    end
    for _, request_id in ipairs(redis.call('LRANGE', order, 0, -1)) do
        local stop, ended = string.match(redis.call('HGET', calls, request_id) or '', '^(%d+):([01]):')
        if not stop or tonumber(stop) > position or (ended == '0' and not open_calls_stay) then
            redis.call('LREM', order, 0, request_id)
            redis.call('HDEL', calls, request_id)
        end
    end
    redis.call('HSET', header, 'position', exact(position))
end
"""

CREATE = """
local token, session_id, caller = argument(), argument(), argument()
if redis.call('GET', gone) == token then return {'kept'} end
if redis.call('EXISTS', header) == 1 then
    return redis.call('HGET', header, 'token') == token and {'kept'} or refusal('conflict')
end
redis.call('HSET', header, 'token', token, 'fence', new_fence())
for _ = 1, tonumber(argument()) do
    redis.call('HSET', header, argument(), argument())
end
redis.call('DEL', log, states, calls, order)
for _ = 1, tonumber(argument()) do
    redis.call('HSET', states, argument(), argument())
end
for _ = 1, tonumber(argument()) do
    add_call(argument(), argument())
end
while next_argument < #ARGV do
    add_piece(argument())
end
redis.call('ZADD', ids, 0, session_id)
redis.call('ZADD', used, redis.call('HGET', header, 'used'), session_id)
redis.call('SADD', caller, session_id)
return {'kept'}
"""

ADVANCE = f"""
local version, fence = argument(), argument()
local session_id, start, stop, when = argument(), argument(), argument(), argument()
local answer = objection(tonumber(version), tonumber(fence))
if not answer and known_position ~= tonumber(start) then answer = 'conflict' end
if answer then return refusal(answer) end
redis.call('HSET', header, 'version', version, 'fence', fence, 'position', stop, 'used', when)
if not known_use or when - known_use > {_SAME_USE} then redis.call('ZADD', used, when, session_id) end
for _ = 1, tonumber(argument()) do
    redis.call('HDEL', states, argument())
end
for _ = 1, tonumber(argument()) do
    redis.call('HSET', states, argument(), argument())
end
for _ = 1, tonumber(argument()) do
    add_call(argument(), argument())
end
while next_argument < #ARGV do
    add_piece(argument())
end
return {{'kept'}}
"""

REWIND = """
local version, fence = argument(), argument()
local position, state_position = tonumber(argument()), tonumber(argument())
local answer = objection(tonumber(version), tonumber(fence))
if not answer and (known_position or -1) < position then answer = 'conflict' end
if answer then return refusal(answer) end
cut(position, state_position, false)
redis.call('HSET', header, 'version', version, 'fence', fence)
return {'kept'}
"""

DELETE = """
local fence, session_id, callers, milliseconds = argument(), argument(), argument(), argument()
local token, caller = redis.call('HGET', header, 'token'), redis.call('HGET', header, 'caller')
local here = redis.call('EXISTS', header) == 1
if here and (number(header, 'fence') or 0) > tonumber(fence) then return refusal('moved') end
redis.call('DEL', header, log, states, calls, order)
redis.call('ZREM', ids, session_id)
redis.call('ZREM', used, session_id)
if caller then redis.call('SREM', callers .. caller, session_id) end
if here then redis.call('DEL', lease) end
if token then redis.call('SET', gone, token, 'PX', milliseconds) end
return {'kept'}
"""

# Not MULTI: where memory is full that is refused even to those who only read.
READ = """
return {
    redis.call('HGETALL', header),
    redis.call('LRANGE', log, 0, -1),
    redis.call('HGETALL', states),
    redis.call('HGETALL', calls),
    redis.call('LRANGE', order, 0, -1),
}
"""

REPAIR = """
local known, version, pieces, position = argument(), argument(), tonumber(argument()), tonumber(argument())
if redis.call('HGET', header, 'version') ~= known then return 0 end
if pieces == 0 then redis.call('DEL', log) else redis.call('LTRIM', log, 0, pieces - 1) end
cut(position, position, true)
redis.call('HSET', header, 'version', version, 'base', version)
return 1
"""

ACQUIRE = """
local owner, attempt, milliseconds = argument(), argument(), argument()
local holder = redis.call('HGET', lease, 'owner')
if holder and holder ~= owner then return {0, redis.call('PTTL', lease), 0} end
local version = exact(number(header, 'version') or -1)
if redis.call('HGET', lease, 'attempt') == attempt then
    return {1, redis.call('HGET', lease, 'fence'), version}
end
local fence = new_fence()
redis.call('DEL', lease)
redis.call('HSET', lease, 'owner', owner, 'fence', fence, 'attempt', attempt)
redis.call('PEXPIRE', lease, milliseconds)
if redis.call('EXISTS', header) == 1 then redis.call('HSET', header, 'fence', fence) end
return {1, fence, version}
"""

RENEW = """
local owner, fence, milliseconds = argument(), argument(), argument()
-- Whoever has taken it meanwhile has done so under a newer fence.
if (number(header, 'fence') or number(lease, 'fence')) ~= tonumber(fence) then return 0 end
if redis.call('PEXPIRE', lease, milliseconds) == 0 then
    redis.call('HSET', lease, 'owner', owner, 'fence', fence)
    redis.call('PEXPIRE', lease, milliseconds)
end
return 1
"""

RELEASE = """
local owner, fence = argument(), argument()
if redis.call('HGET', lease, 'owner') == owner and redis.call('HGET', lease, 'fence') == fence then
    redis.call('DEL', lease)
end
return 1
"""

_NEEDS = {
    CREATE: (_FENCES, _ADDING, _PIECES),
    ADVANCE: (_OBJECTION, _ADDING, _PIECES),
    REWIND: (_OBJECTION, _PIECES, _CUT),
    DELETE: (),
    READ: (),
    REPAIR: (_PIECES, _CUT),
    ACQUIRE: (_FENCES,),
    RENEW: (),
    RELEASE: (),
}
SCRIPTS = {script: "".join((_COMMON, *needs, script)) for script, needs in _NEEDS.items()}
_HASHES = {script: hashlib.sha1(whole.encode()).hexdigest() for script, whole in SCRIPTS.items()}
_NAMES = ("header", "log", "states", "calls", "order", "lease", "gone")

Command = tuple[Any, ...]


def key_of(session_id: str, name: str) -> str:
    return f"{PREFIX}{{{session_id}}}:{name}"


def run_script(script: str, session_id: str, *arguments: object) -> Command:
    """The command that runs a script on a session."""
    keys = [*(key_of(session_id, name) for name in _NAMES), IDS, USED]
    return ("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)


def caller_key(caller: str) -> str:
    return f"{PREFIX}caller:{caller}"
