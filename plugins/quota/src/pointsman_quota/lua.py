"""The ledger's atomic step as a script for redis; ``ledger.py`` says what it does and is tested against it.

``KEYS[1]`` is the hold, the others are scopes; ``ARGV[1]`` is a ``Step`` as JSON.
"""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """
local UNIT, TOP = 60000, 8000000000000000
local MAX_AHEAD_MS, LONGEST_LEASE_MS = 60000, 3960000
local PICOS = 1000000
local AT_MS, REQUESTS, TOKENS, DAY, DAY_TOKENS, DAY_USD, MONTH, MONTH_TOKENS, MONTH_USD, LEASES, DAY_PICOS, MONTH_PICOS =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
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
    leases[#leases + 1] =
      string.format('"%s":[%.0f,%.0f,%.0f,%.0f]', expiry, lease[1], lease[2], lease[3], lease[4] or 0)
  end
  return string.format('[%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,{', unpack(state, 1, 9))
    .. table.concat(leases, ',') .. string.format('},%.0f,%.0f]', state[DAY_PICOS] or 0, state[MONTH_PICOS] or 0)
end

local function rolled(state, caps)
  if not state then
    state = {0, 0, 0, 0, 0, 0, 0, 0, 0, {}}
  end
  state[DAY_PICOS], state[MONTH_PICOS] = state[DAY_PICOS] or 0, state[MONTH_PICOS] or 0
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
    state[DAY], state[DAY_TOKENS], state[DAY_USD], state[DAY_PICOS] = step.day, 0, 0, 0
  end
  if step.month > state[MONTH] then
    state[MONTH], state[MONTH_TOKENS], state[MONTH_USD], state[MONTH_PICOS] = step.month, 0, 0, 0
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
  local requests, tokens, usd, picos = step.slots, step.tokens, step.usd_micros, step.usd_picos
  for _, lease in pairs(state[LEASES]) do
    requests, tokens, usd = requests + lease[1], tokens + lease[2], usd + lease[3]
    picos = picos + (lease[4] or 0)
  end
  -- Rounded up, since limits are whole micro-dollars.
  local day_usd = state[DAY_USD] + math.ceil((state[DAY_PICOS] + picos) / PICOS)
  local month_usd = state[MONTH_USD] + math.ceil((state[MONTH_PICOS] + picos) / PICOS)
  return not (
    (caps.requests and state[REQUESTS] + UNIT > caps.requests_burst * UNIT)
    or (step.slots > 0 and caps.concurrent and requests > caps.concurrent)
    or step.tokens > 0 and (
      (caps.tokens and state[TOKENS] + tokens * UNIT > caps.tokens_burst * UNIT)
      or (caps.day_tokens and state[DAY_TOKENS] + tokens > caps.day_tokens)
      or (caps.month_tokens and state[MONTH_TOKENS] + tokens > caps.month_tokens))
    or step.usd_micros + step.usd_picos > 0 and (
      (caps.day_usd_micros and day_usd + usd > caps.day_usd_micros)
      or (caps.month_usd_micros and month_usd + usd > caps.month_usd_micros)))
end

local function carried(usd, picos)
  local carry = math.floor(picos / PICOS)
  return usd + carry, picos - carry * PICOS
end

local function lease(state, slots, tokens, usd, picos)
  local expiry = int(step.expires_s)
  local present = state[LEASES][expiry] or {0, 0, 0, 0}
  usd, picos = carried(present[3] + usd, (present[4] or 0) + picos)
  state[LEASES][expiry] = {present[1] + slots, present[2] + tokens, usd, picos}
end

local function release(state, expires, slots, tokens, usd, picos)
  local expiry = int(expires)
  local present = state[LEASES][expiry]
  if not present then return end
  local requests = math.max(0, present[1] - slots)
  tokens = math.max(0, present[2] - tokens)
  usd, picos = carried(present[3] - usd, (present[4] or 0) - picos)
  if usd < 0 then usd, picos = 0, 0 end
  state[LEASES][expiry] = requests + tokens + usd + picos > 0 and {requests, tokens, usd, picos} or nil
end

local function count_requests(state, caps, more)
  if caps.requests then state[REQUESTS] = math.min(TOP, state[REQUESTS] + more * UNIT) end
end

local function add_money(state, usd, picos, more_usd, more_picos)
  local sum
  sum, state[picos] = carried(state[usd] + more_usd, state[picos] + more_picos)
  state[usd] = math.min(TOP, sum)
end

local function spend(state, caps)
  count_requests(state, caps, step.requests)
  if caps.tokens then state[TOKENS] = math.min(TOP, state[TOKENS] + step.tokens * UNIT) end
  state[DAY_TOKENS] = math.min(TOP, state[DAY_TOKENS] + step.tokens)
  state[MONTH_TOKENS] = math.min(TOP, state[MONTH_TOKENS] + step.tokens)
  add_money(state, DAY_USD, DAY_PICOS, step.usd_micros, step.usd_picos)
  add_money(state, MONTH_USD, MONTH_PICOS, step.usd_micros, step.usd_picos)
end

local function restore(state)
  if state[DAY] == step.of_day then
    state[DAY_TOKENS] = math.min(TOP, state[DAY_TOKENS] + step.day_tokens)
    add_money(state, DAY_USD, DAY_PICOS, step.day_usd_micros, step.day_usd_picos)
  end
  if state[MONTH] == step.of_month then
    state[MONTH_TOKENS] = math.min(TOP, state[MONTH_TOKENS] + step.tokens)
    add_money(state, MONTH_USD, MONTH_PICOS, step.usd_micros, step.usd_picos)
  end
end

local function keep_hold(expires, tokens, usd, slots, picos)
  redis.call('SET', KEYS[1], string.format('[%.0f,%.0f,%.0f,%.0f,%.0f]', expires, tokens, usd, slots, picos),
             'EX', int(step.hold_keep_s))
end

local hold = load(KEYS[1])
local held = hold and hold[1] > 0
local slots, picos = hold and (hold[4] or 1), hold and (hold[5] or 0)
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
      lease(states[i], step.slots, step.tokens, step.usd_micros, step.usd_picos)
      count_requests(states[i], caps, 1)
    end
    keep_hold(step.expires_s, step.tokens, step.usd_micros, step.slots, step.usd_picos)
  end
elseif step['do'] == 'settle' then
  if held or (not hold and step.without_hold) then
    done = true
    for i, caps in ipairs(step.caps) do
      if held then release(states[i], hold[1], slots, hold[2], hold[3], picos) end
      spend(states[i], caps)
    end
    if step.without_hold then keep_hold(0, 0, 0, 1, 0) else redis.call('DEL', KEYS[1]) end
  end
elseif step['do'] == 'free' then
  if held and slots > 0 then
    done = true
    for i in ipairs(step.caps) do release(states[i], hold[1], slots, 0, 0, 0) end
    keep_hold(hold[1], hold[2], hold[3], 0, picos)
  end
elseif step['do'] == 'renew' then
  if held then
    done = true
    for i in ipairs(step.caps) do
      release(states[i], hold[1], slots, hold[2], hold[3], picos)
      lease(states[i], slots, hold[2], hold[3], picos)
    end
    keep_hold(step.expires_s, hold[2], hold[3], slots, picos)
  end
elseif step['do'] == 'restore' then
  if not hold then
    done = true
    for i in ipairs(step.caps) do restore(states[i]) end
    keep_hold(0, 0, 0, 1, 0)
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
