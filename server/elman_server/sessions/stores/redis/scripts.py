"""The Lua scripts that write and read sessions, one per operation.

Everything is written by scripts. When its memory is full, Redis refuses a script at the first write if that command may
need memory; a script whose first write is another command may continue. That is how leases and everything that frees
memory work even then.

The arguments of a script stand in its first lines.
"""

from __future__ import annotations

import hashlib
from typing import Any

from elman_server.sessions.stores.redis.keys import IDS, SESSION_KEYS, USED, key_of
from elman_server.sessions.stores.redis.lua import ADDING, COMMON, CUTTING, FENCES, OBJECTION, PIECES

_USE_RESOLUTION = 1.0  # seconds by which the order by last use may lag

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
add_content()
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
if not known_use or when - known_use > {_USE_RESOLUTION} then redis.call('ZADD', used, when, session_id) end
for _ = 1, tonumber(argument()) do
    redis.call('HDEL', states, argument())
end
add_content()
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

# Not MULTI: when the memory is full, Redis refuses that even for reading.
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
-- A server that has acquired the lease meanwhile has a newer fence.
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
    CREATE: (FENCES, PIECES, ADDING),
    ADVANCE: (OBJECTION, PIECES, ADDING),
    REWIND: (OBJECTION, PIECES, CUTTING),
    DELETE: (),
    READ: (),
    REPAIR: (PIECES, CUTTING),
    ACQUIRE: (FENCES,),
    RENEW: (),
    RELEASE: (),
}
COMPLETE_SCRIPTS = {script: "".join((COMMON, *needs, script)) for script, needs in _NEEDS.items()}
_HASHES = {script: hashlib.sha1(complete.encode()).hexdigest() for script, complete in COMPLETE_SCRIPTS.items()}

Command = tuple[Any, ...]


def run_script(script: str, session_id: str, *arguments: object) -> Command:
    """Return the command that runs a script on a session."""
    keys = [*(key_of(session_id, name) for name in SESSION_KEYS), IDS, USED]
    return ("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)
