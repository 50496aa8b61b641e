-- Asks for the paths in a file, one after the other, and tells what was answered as one line of JSON.

function init(args)
   requests = {}
   for path in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("GET", path)
   end
   nth = 0
end

function request()
   nth = nth % #requests + 1
   return requests[nth]
end

function done(summary, latency, _)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   print(string.format(
      '{"answers": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}',
      summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
