#include "replay_text.h"

#include <fmt/format.h>

#include <filesystem>

#include "figures.h"
#include "measured_upstream.h"

namespace gpuledger::cli {
namespace {

double TraceSeconds(const Replayed& r) { return static_cast<double>(r.trace.duration_us()) / 1e6; }

std::string Seconds(double seconds) {
  return seconds < 1e-3 ? fmt::format("{:.1f} us", seconds * 1e6)
         : seconds < 1  ? fmt::format("{:.1f} ms", seconds * 1e3)
                        : fmt::format("{:.2f} s", seconds);
}

std::string Percent(double part, double whole) {
  return whole > 0 ? fmt::format("{:.2f} %", 100 * part / whole) : "no part";
}

std::string Plural(uint64_t count, std::string_view what) {
  return fmt::format("{} {}{}", Count(count), what, count == 1 ? "" : "s");
}

std::string UpstreamCalls(const Replayed& r) {
  std::string text;
  for (int i = 0; i < kUpstreamCallCount; ++i) {
    if (r.result.upstream_calls[i] == 0) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", replay::CallName(static_cast<UpstreamCall>(i)),
                        Count(r.result.upstream_calls[i]));
  }
  return text.empty() ? "no calls" : text;
}

}  // namespace

std::string ReplayText(const Replayed& r, const Style& style) {
  const replay::ReplayResult& result = r.result;
  const double trace_seconds = TraceSeconds(r);
  std::string text = fmt::format("{}: {} over {} on {}; {} upstream, {}\n\n",
                                 style.Bold(std::filesystem::path(r.trace.path).filename().string()),
                                 Plural(r.trace.rows.size(), "event"), Seconds(trace_seconds),
                                 Plural(r.trace.streams, "stream"), r.upstream, Plural(r.threads, "thread"));
  text += Line("peak requested", r.trace.peak_requested);
  text += Line("peak reserved", result.peak_reserved, fmt::format("{:.4f} x requested", r.Ratio(result.peak_reserved)));
  if (r.cap) text += Line("cap", *r.cap, fmt::format("{:.4f} x requested", r.Ratio(*r.cap)));
  if (r.min_cap) text += Line("smallest cap", *r.min_cap, fmt::format("{:.4f} x requested", r.Ratio(*r.min_cap)));
  text += Line("upstream time",
               fmt::format("{:>11}  {} of the trace; second half {}, {} of it", Seconds(result.upstream_seconds),
                           Percent(result.upstream_seconds, trace_seconds), Seconds(result.upstream_seconds_second_half),
                           Percent(result.upstream_seconds_second_half, trace_seconds / 2)));
  text += Line("upstream calls", UpstreamCalls(r));
  text += Line("allocator", fmt::format("{:>8.0f} ns  an allocation or free, beside the upstream's time", result.ns_per_event));
  text += result.completed
              ? fmt::format("  {}\n", style.Good("Completed"))
              : fmt::format("  {} at line {} of {}: out of memory\n", style.Bad("Stopped"), Count(result.stopped_at_line),
                            Count(replay::AllocationTrace::LineOf(r.trace.rows.size() - 1)));
  return text;
}

nlohmann::ordered_json ReplayJson(const Replayed& r) {
  const replay::ReplayResult& result = r.result;
  nlohmann::ordered_json calls;
  for (int i = 0; i < kUpstreamCallCount; ++i) {
    calls[std::string(replay::CallName(static_cast<UpstreamCall>(i)))] = result.upstream_calls[i];
  }
  nlohmann::ordered_json json = {{"trace", r.trace.path},
                                 {"upstream", r.upstream},
                                 {"threads", r.threads},
                                 {"events", r.trace.rows.size()},
                                 {"allocations", r.trace.allocations.size()},
                                 {"streams", r.trace.streams},
                                 {"completed", result.completed},
                                 {"peak_requested_bytes", r.trace.peak_requested.count()},
                                 {"peak_reserved_bytes", result.peak_reserved.count()},
                                 {"ratio", r.Ratio(result.peak_reserved)},
                                 {"upstream_calls", std::move(calls)},
                                 {"upstream_seconds", result.upstream_seconds},
                                 {"upstream_seconds_second_half", result.upstream_seconds_second_half},
                                 {"trace_seconds", TraceSeconds(r)},
                                 {"ns_per_event", result.ns_per_event}};
  if (r.cap) json["cap_bytes"] = r.cap->count();
  if (r.min_cap) json["min_cap_bytes"] = r.min_cap->count();
  if (!result.completed) {
    json["stopped_at_line"] = result.stopped_at_line;
    json["error"] = result.report;
    json["exit_code"] = 4;
  }
  return json;
}

}  // namespace gpuledger::cli
