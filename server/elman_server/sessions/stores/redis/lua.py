"""Lua functions that the scripts share. A script is prefixed with those that it needs and no others, since Redis runs
all of it each time."""

from __future__ import annotations

from elman_server.sessions.session import REMEMBERED_CALLS, TOKEN_BYTES

_MERGED_BYTES = 16 * TOKEN_BYTES  # pieces smaller than this are merged

COMMON = """
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

FENCES = """
local function new_fence()
    local now = redis.call('TIME')
    local latest = math.max(number(header, 'fence') or 0, number(lease, 'fence') or 0)
    return exact(math.max(now[1] * 1000000 + now[2], latest + 1))
end
"""

OBJECTION = """
local known = redis.call('HMGET', header, 'version', 'fence', 'base', 'position', 'used')
local known_position, known_use = tonumber(known[4]), tonumber(known[5])
-- The answer to a change that must not be made; nil if it may be made.
local function objection(version, fence)
    local latest, newest, base = tonumber(known[1]), tonumber(known[2]), tonumber(known[3])
    if not (latest and newest and base) then return 'conflict' end
    if newest > fence then return 'moved' end
    if latest == version - 1 then return nil end
    if newest == fence and base < version and version <= latest then return 'kept' end
    return 'conflict'
end
"""

PIECES = f"""
local function packed(start, tokens)
    return start .. ':' .. string.sub(redis.sha1hex(start .. ':' .. tokens), 1, 8) .. ':' .. tokens
end
-- The start and the tokens of a piece; nil if it is damaged.
local function unpacked(piece)
    local start, tokens = string.match(piece, '^(%d+):%x+:(.*)$')
    if start and packed(start, tokens) == piece then return start, tokens end
end
-- Merges small consecutive pieces, so that a session has few of them; never damaged ones.
local function add_piece(piece)
    local last = #piece < {_MERGED_BYTES} and redis.call('LINDEX', log, -1)
    if last and #last < {_MERGED_BYTES} then
        local start, tokens = unpacked(last)
        local following, more = unpacked(piece)
        if start and start + #tokens / {TOKEN_BYTES} == tonumber(following) then
            return redis.call('LSET', log, -1, packed(start, tokens .. more))
        end
    end
    redis.call('RPUSH', log, piece)
end
"""

# Needs PIECES.
ADDING = f"""
local function add_call(request_id, call)
    redis.call('HSET', calls, request_id, call)
    if redis.call('LINDEX', order, -1) == request_id then return end
    redis.call('LREM', order, 0, request_id)
    redis.call('RPUSH', order, request_id)
    while redis.call('LLEN', order) > {REMEMBERED_CALLS} do
        redis.call('HDEL', calls, redis.call('LPOP', order))
    end
end
-- Adds the states, calls and pieces that are the last arguments.
local function add_content()
    for _ = 1, tonumber(argument()) do
        redis.call('HSET', states, argument(), argument())
    end
    for _ = 1, tonumber(argument()) do
        add_call(argument(), argument())
    end
    while next_argument < #ARGV do
        add_piece(argument())
    end
end
"""

# Needs PIECES.
CUTTING = f"""
-- A piece without the tokens from `position` on; a damaged piece unchanged, so that its damage is found later.
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
