"""The ledger's atomic step as a script for redis; ``ledger.py`` says what it does and is tested against it.

``KEYS[1]`` is the hold, the others are scopes; ``ARGV[1]`` is a ``Step`` as JSON.
"""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """
local UNIT, TOP = 60000, 8000000000000000
local step = json_decode(ARGV[1])

local function int(number) return string.format('%.0f', number) end

local function load(key)
  local text = redis.call('GET', key)
  if text then return json_decode(text) end
  return nil
end

local function rolled(state, caps)
  if not state then
    state = {at_ms = 0, requests = 0, tokens = 0, day = 0, day_tokens = 0, day_usd_micros = 0,
             month = 0, month_tokens = 0, month_usd_micros = 0, leases = {}}
  end
  local now = math.max(step.now_ms, state.at_ms)
  local elapsed = now - state.at_ms
  state.at_ms = now
  state.requests = caps.requests and math.max(0, state.requests - caps.requests * elapsed) or 0
  state.tokens = caps.tokens and math.max(0, state.tokens - caps.tokens * elapsed) or 0
  if step.day > state.day then
    state.day, state.day_tokens, state.day_usd_micros = step.day, 0, 0
  end
  if step.month > state.month then
    state.month, state.month_tokens, state.month_usd_micros = step.month, 0, 0
  end
  local leases = {}
  for expiry, lease in pairs(state.leases) do
    if tonumber(expiry) * 1000 > now then leases[expiry] = lease end
  end
  state.leases = leases
  return state
end

local function fits(state, caps)
  local requests, tokens, usd = 1, step.tokens, step.usd_micros
  for _, lease in pairs(state.leases) do
    requests, tokens, usd = requests + lease[1], tokens + lease[2], usd + lease[3]
  end
  return not (
    (caps.requests and state.requests + UNIT > caps.requests_burst * UNIT)
    or (caps.tokens and state.tokens + tokens * UNIT > caps.tokens_burst * UNIT)
    or (caps.concurrent and requests > caps.concurrent)
    or (caps.day_tokens and state.day_tokens + tokens > caps.day_tokens)
    or (caps.day_usd_micros and state.day_usd_micros + usd > caps.day_usd_micros)
    or (caps.month_tokens and state.month_tokens + tokens > caps.month_tokens)
    or (caps.month_usd_micros and state.month_usd_micros + usd > caps.month_usd_micros))
end

local function lease(state, tokens, usd)
  local expiry = int(step.expires_s)
  local present = state.leases[expiry] or {0, 0, 0}
  state.leases[expiry] = {present[1] + 1, present[2] + tokens, present[3] + usd}
end

local function release(state, hold)
  local expiry = int(hold.expires_s)
  local present = state.leases[expiry]
  if not present then return end
  if present[1] > 1 then
    state.leases[expiry] = {present[1] - 1, math.max(0, present[2] - hold.tokens),
                            math.max(0, present[3] - hold.usd_micros)}
  else
    state.leases[expiry] = nil
  end
end

local function spend(state, caps)
  state.tokens = caps.tokens and math.min(TOP, state.tokens + step.tokens * UNIT) or 0
  state.day_tokens = math.min(TOP, state.day_tokens + step.tokens)
  state.day_usd_micros = math.min(TOP, state.day_usd_micros + step.usd_micros)
  state.month_tokens = math.min(TOP, state.month_tokens + step.tokens)
  state.month_usd_micros = math.min(TOP, state.month_usd_micros + step.usd_micros)
end

local function keep_hold(expires, tokens, usd)
  redis.call('SET', KEYS[1], json_encode({expires_s = expires, tokens = tokens, usd_micros = usd}),
             'EX', int(step.hold_keep_s))
end

local hold = load(KEYS[1])
local held = hold and hold.expires_s > 0
local states, before, fitting, done = {}, {}, true, false
for i, caps in ipairs(step.caps) do
  states[i] = rolled(load(KEYS[i + 1]), caps)
  before[i] = json_encode(states[i])
end

if step['do'] == 'reserve' then
  if hold then
    return '{"done":true,"fits":true,"scopes":[' .. table.concat(before, ',') .. ']}'
  end
  for i, caps in ipairs(step.caps) do fitting = fitting and fits(states[i], caps) end
  if fitting or step.force then
    done = true
    for i, caps in ipairs(step.caps) do
      lease(states[i], step.tokens, step.usd_micros)
      states[i].requests = caps.requests and math.min(TOP, states[i].requests + UNIT) or 0
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
    if held then redis.call('DEL', KEYS[1]) else keep_hold(0, 0, 0) end
  end
elseif step['do'] == 'renew' then
  if held then
    done = true
    for i in ipairs(step.caps) do
      release(states[i], hold)
      lease(states[i], hold.tokens, hold.usd_micros)
    end
    keep_hold(step.expires_s, hold.tokens, hold.usd_micros)
  end
elseif step['do'] == 'spend' then
  done = true
  for i, caps in ipairs(step.caps) do spend(states[i], caps) end
end

if done then
  for i in ipairs(step.caps) do redis.call('SET', KEYS[i + 1], json_encode(states[i]), 'EX', int(step.keep_s)) end
end
return '{"done":' .. tostring(done) .. ',"fits":' .. tostring(fitting) .. ',"scopes":[' .. table.concat(before, ',') .. ']}'
"""
