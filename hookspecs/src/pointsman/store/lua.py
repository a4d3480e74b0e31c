"""The Lua side of the redis backend."""

from __future__ import annotations

from typing import Final

from .base import MAX_COUNTER

NOT_A_COUNTER: Final = b"not a counter"
COUNTER_FULL: Final = b"counter full"

PRELUDE: Final = """
local json_decode = cjson.decode
local function json_encode(value)
  local kind = type(value)
  if kind == 'number' then
    if value ~= value or value == math.huge or value == -math.huge then
      error('not a finite number')
    end
    if value == math.floor(value) and math.abs(value) <= 2^53 then
      return string.format('%.0f', value + 0)
    end
    local text
    for digits = 15, 17 do
      text = string.format('%.' .. digits .. 'g', value)
      if tonumber(text) == value then break end
    end
    return text
  elseif kind == 'string' then
    return (string.gsub(cjson.encode(value), '\\\\/', '/'))
  elseif kind ~= 'table' then
    return cjson.encode(value)
  end
  local parts = {}
  if #value > 0 then
    for i = 1, #value do parts[i] = json_encode(value[i]) end
    return '[' .. table.concat(parts, ',') .. ']'
  end
  local names = {}
  for name in pairs(value) do names[#names + 1] = tostring(name) end
  table.sort(names)
  for i, name in ipairs(names) do parts[i] = json_encode(name) .. ':' .. json_encode(value[name]) end
  return '{' .. table.concat(parts, ',') .. '}'
end
"""
"""Put before the script of every ``AtomicOp``: ``json_decode`` and ``json_encode``."""

_SUM: Final = f"""
local function sum(key, amount)
  local text = redis.call('GET', key)
  local present = 0
  if text then
    present = string.match(text, '^%-?%d+$') and tonumber(text)
    if not present or math.abs(present) > {MAX_COUNTER} then
      return nil, {{'{NOT_A_COUNTER.decode()}', key}}
    end
  end
  if math.abs(present + amount) > {MAX_COUNTER} then
    return nil, {{'{COUNTER_FULL.decode()}', key}}
  end
  return present + amount, nil
end
"""

ADD: Final = (
    _SUM
    + """
local total, refused = sum(KEYS[1], tonumber(ARGV[1]))
if refused then return refused end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], 0, 'PX', ARGV[2], 'NX') end
redis.call('INCRBY', KEYS[1], ARGV[1])
return total
"""
)
"""``KEYS``: the counter. ``ARGV``: the amount; the time to live in milliseconds or ''. Returns the sum, or the reason
(``NOT_A_COUNTER`` or ``COUNTER_FULL``) and the key.
"""

UPDATE: Final = (
    _SUM
    + """
local checks, puts, deletes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local differing = {}
for i = 1, checks do
  local text = redis.call('GET', KEYS[i]) or ''
  if text ~= ARGV[3 + i] then
    differing[#differing + 1] = i
    differing[#differing + 1] = text
  end
end
if #differing > 0 then return differing end
local key, arg = checks + puts + deletes, 3 + checks + 2 * puts
while key < #KEYS do
  key, arg = key + 1, arg + 1
  local _, refused = sum(KEYS[key], tonumber(ARGV[arg]))
  if refused then return refused end
end
key, arg = checks, 3 + checks
for _ = 1, puts do
  key = key + 1
  if ARGV[arg + 2] == '' then
    redis.call('SET', KEYS[key], ARGV[arg + 1])
  else
    redis.call('SET', KEYS[key], ARGV[arg + 1], 'PX', ARGV[arg + 2])
  end
  arg = arg + 2
end
for _ = 1, deletes do
  key = key + 1
  redis.call('DEL', KEYS[key])
end
while key < #KEYS do
  key, arg = key + 1, arg + 1
  redis.call('INCRBY', KEYS[key], ARGV[arg])
end
return 1
"""
)
"""An ``Update``.

``KEYS``: those of the checks, the puts, the deletes, the adds. ``ARGV``: how many checks, puts and deletes there are;
the expected text of each check ('' for none); text and time to live (milliseconds or '') of each put; the amount of
each add. Returns 1; or for every check that failed its number and the present text ('' for none); or the reason that
an add is impossible (``NOT_A_COUNTER`` or ``COUNTER_FULL``) and its key.
"""
