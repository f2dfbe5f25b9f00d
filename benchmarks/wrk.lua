-- Posts the bodies of a file in turn, one body a line, and prints what came of it as one line of JSON.

local threads, requests, place = {}, {}, 0

-- Of a thread; read by done(), which runs in a state of its own.
refused, first_refusal = 0, 0

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   wrk.headers["Content-Type"] = "application/json"
   for body in io.lines(args[1]) do
      table.insert(requests, wrk.format("POST", nil, nil, body))
   end
   -- With a pause, connections wait between requests: so long on average, and never in step.
   local pause_ms = tonumber(args[2] or "0")
   if pause_ms > 0 then
      math.randomseed(1)
      delay = function() return math.random(0, 2 * pause_ms) end
   end
end

function request()
   place = place % #requests + 1
   return requests[place]
end

function response(status)
   if status < 200 or status > 299 then
      refused = refused + 1
      if first_refusal == 0 then first_refusal = status end
   end
end

function done(summary, latency)
   local refused_by_all, first = 0, 0
   for _, thread in ipairs(threads) do
      refused_by_all = refused_by_all + thread:get("refused")
      if first == 0 then first = thread:get("first_refusal") end
   end
   local errors = summary.errors
   io.write(string.format(
      '{"answers": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "refused": %d, ' ..
      '"first_refusal": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      refused_by_all, first, errors.connect, errors.read, errors.write, errors.timeout
   ))
end
