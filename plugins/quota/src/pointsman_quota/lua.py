"""The ledger's atomic step as a script for redis; ``ledger.py`` says what it does and is tested against it.

``KEYS[1]`` is the hold, the others are scopes; ``ARGV[1]`` is a ``Step`` as JSON.
"""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """
local UNIT, TOP = 60000, 8000000000000000
local MAX_AHEAD_MS, LONGEST_LEASE_MS = 60000, 3960000
local AT_MS, REQUESTS, TOKENS, DAY, DAY_TOKENS, DAY_USD, MONTH, MONTH_TOKENS, MONTH_USD, LEASES =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local step = json_decode(ARGV[1])

local function int(number) return string.format('%.0f', number) end

local function load(key)
  local text = redis.call('GET', key)
  if text then return json_decode(text) end
  return nil
end

-- A third of the time of `json_encode`: the form is known, and all numbers are integers.
local function text(state)
  local leases = {}
  for expiry, lease in pairs(state[LEASES]) do
    leases[#leases + 1] = string.format('"%s":[%.0f,%.0f,%.0f]', expiry, lease[1], lease[2], lease[3])
  end
  return string.format('[%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,{', unpack(state, 1, 9))
    .. table.concat(leases, ',') .. '}]'
end

local function rolled(state, caps)
  if not state then
    state = {0, 0, 0, 0, 0, 0, 0, 0, 0, {}}
  end
  local now = step.now_ms
  if state[AT_MS] > now + MAX_AHEAD_MS then
    state[AT_MS] = now
    state[DAY], state[MONTH] = math.min(state[DAY], step.day), math.min(state[MONTH], step.month)
  end
  local at = math.max(now, state[AT_MS])
  local elapsed = at - state[AT_MS]
  state[AT_MS] = at
  state[REQUESTS] = math.max(0, state[REQUESTS] - (caps.requests or 0) * elapsed)
  state[TOKENS] = math.max(0, state[TOKENS] - (caps.tokens or 0) * elapsed)
  if step.day > state[DAY] then
    state[DAY], state[DAY_TOKENS], state[DAY_USD] = step.day, 0, 0
  end
  if step.month > state[MONTH] then
    state[MONTH], state[MONTH_TOKENS], state[MONTH_USD] = step.month, 0, 0
  end
  local leases = {}
  for expiry, lease in pairs(state[LEASES]) do
    local ends = tonumber(expiry) * 1000
    if now < ends and ends <= now + LONGEST_LEASE_MS then leases[expiry] = lease end
  end
  state[LEASES] = leases
  return state
end

local function fits(state, caps)
  local requests, tokens, usd = 1, step.tokens, step.usd_micros
  for _, lease in pairs(state[LEASES]) do
    requests, tokens, usd = requests + lease[1], tokens + lease[2], usd + lease[3]
  end
  return not (
    (caps.requests and state[REQUESTS] + UNIT > caps.requests_burst * UNIT)
    or (caps.tokens and state[TOKENS] + tokens * UNIT > caps.tokens_burst * UNIT)
    or (caps.concurrent and requests > caps.concurrent)
    or (caps.day_tokens and state[DAY_TOKENS] + tokens > caps.day_tokens)
    or (caps.day_usd_micros and state[DAY_USD] + usd > caps.day_usd_micros)
    or (caps.month_tokens and state[MONTH_TOKENS] + tokens > caps.month_tokens)
    or (caps.month_usd_micros and state[MONTH_USD] + usd > caps.month_usd_micros))
end

local function lease(state, tokens, usd)
  local expiry = int(step.expires_s)
  local present = state[LEASES][expiry] or {0, 0, 0}
  state[LEASES][expiry] = {present[1] + 1, present[2] + tokens, present[3] + usd}
end

local function release(state, hold)
  local expiry = int(hold[1])
  local present = state[LEASES][expiry]
  if not present then return end
  if present[1] > 1 then
    state[LEASES][expiry] = {present[1] - 1, math.max(0, present[2] - hold[2]),
                            math.max(0, present[3] - hold[3])}
  else
    state[LEASES][expiry] = nil
  end
end

local function spend(state, caps)
  if caps.tokens then state[TOKENS] = math.min(TOP, state[TOKENS] + step.tokens * UNIT) end
  state[DAY_TOKENS] = math.min(TOP, state[DAY_TOKENS] + step.tokens)
  state[DAY_USD] = math.min(TOP, state[DAY_USD] + step.usd_micros)
  state[MONTH_TOKENS] = math.min(TOP, state[MONTH_TOKENS] + step.tokens)
  state[MONTH_USD] = math.min(TOP, state[MONTH_USD] + step.usd_micros)
end

local function keep_hold(expires, tokens, usd)
  redis.call('SET', KEYS[1], string.format('[%.0f,%.0f,%.0f]', expires, tokens, usd),
             'EX', int(step.hold_keep_s))
end

local hold = load(KEYS[1])
local held = hold and hold[1] > 0
local states, before, fitting, done = {}, {}, true, false
for i, caps in ipairs(step.caps) do
  states[i] = rolled(load(KEYS[i + 1]), caps)
  before[i] = text(states[i])
end

if step['do'] == 'reserve' then
  if hold then
    return '[true,true,[' .. table.concat(before, ',') .. ']]'
  end
  for i, caps in ipairs(step.caps) do fitting = fitting and fits(states[i], caps) end
  if fitting or step.force then
    done = true
    for i, caps in ipairs(step.caps) do
      lease(states[i], step.tokens, step.usd_micros)
      if caps.requests then states[i][REQUESTS] = math.min(TOP, states[i][REQUESTS] + UNIT) end
    end
    keep_hold(step.expires_s, step.tokens, step.usd_micros)
  end
elseif step['do'] == 'settle' then
  if held or (not hold and step.anew) then
    done = true
    for i, caps in ipairs(step.caps) do
      if held then release(states[i], hold) end
      spend(states[i], caps)
    end
    if step.anew then keep_hold(0, 0, 0) else redis.call('DEL', KEYS[1]) end
  end
elseif step['do'] == 'renew' then
  if held then
    done = true
    for i in ipairs(step.caps) do
      release(states[i], hold)
      lease(states[i], hold[2], hold[3])
    end
    keep_hold(step.expires_s, hold[2], hold[3])
  end
elseif step['do'] == 'spend' then
  done = true
  for i, caps in ipairs(step.caps) do spend(states[i], caps) end
end

if done then
  for i in ipairs(step.caps) do redis.call('SET', KEYS[i + 1], text(states[i]), 'EX', int(step.keep_s)) end
end
return '[' .. tostring(done) .. ',' .. tostring(fitting) .. ',[' .. table.concat(before, ',') .. ']]'
"""
