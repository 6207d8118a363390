// A report as JSON, by report.schema.json.
#include <nlohmann/json.hpp>

#include "gpuledger/leak_report.h"

namespace gpuledger {
namespace {

using Json = nlohmann::ordered_json;

std::string_view SeverityName(Severity severity) {
  switch (severity) {
    case Severity::kNone: return "none";
    case Severity::kInfo: return "info";
    case Severity::kWarning: return "warning";
    case Severity::kError: return "error";
  }
  return "";
}

Json StackJson(const std::vector<TraceFrame>& stack) {
  Json frames = Json::array();
  for (const TraceFrame& f : stack) {
    Json frame = {{"function", f.function}, {"file", f.file}, {"line", f.line}, {"python", f.python}};
    if (!f.python && f.function.empty()) frame["offset"] = f.offset;
    if (!f.build_id.empty()) frame["build_id"] = f.build_id;
    frames.push_back(std::move(frame));
  }
  return frames;
}

Json TotalJson(const ClassTotal& total) { return {{"bytes", total.bytes.count()}, {"count", total.count}}; }

Json GroupJson(const LeakGroup& g) {
  return {{"class", LeakClassName(g.leak_class)}, {"severity", SeverityName(g.severity)}, {"owner", g.owner}, {"role", RoleName(g.role)},
          {"bytes", g.bytes.count()}, {"count", g.count}, {"oldest_seconds", static_cast<double>(g.oldest_age_ns) * 1e-9},
          {"tensor", g.tensor}, {"holders", g.holders}, {"suppressed_by", g.suppressed_by}, {"stack", StackJson(g.stack)}};
}

}  // namespace

std::string ToJson(const LeakReport& r) {
  Json json = {{"live_bytes", r.live.count()}, {"in_use_bytes", r.in_use.count()}, {"pending_bytes", r.pending.count()},
               {"reserved_bytes", r.reserved.count()}, {"cached_bytes", r.cached.count()}, {"rounding_bytes", r.rounding.count()},
               {"peak_bytes", r.peak.count()}, {"settled", r.settled}, {"undecided_why", r.undecided_why},
               {"undecided", TotalJson(r.undecided)}, {"entries", r.entries}};
  Json classes = Json::object();
  for (int i = 0; i < kLeakClassCount; ++i) classes[std::string(LeakClassName(static_cast<LeakClass>(i)))] = TotalJson(r.classes[static_cast<size_t>(i)]);
  json["classes"] = std::move(classes);
  json["leaks"] = Json::array();
  for (const LeakGroup& g : r.leaks) json["leaks"].push_back(GroupJson(g));
  json["kept"] = Json::array();
  for (const LeakGroup& g : r.kept) json["kept"].push_back({{"owner", g.owner}, {"role", RoleName(g.role)}, {"bytes", g.bytes.count()}, {"count", g.count}});
  json["growth"] = Json::array();
  for (const GrowthGroup& g : r.growth) {
    Json marks = Json::array();
    for (const Bytes bytes : g.at_marks) marks.push_back(bytes.count());
    json["growth"].push_back({{"owner", g.owner}, {"bytes_at_marks", std::move(marks)}, {"suppressed_by", g.suppressed_by}, {"stack", StackJson(g.stack)}});
  }
  json["outliers"] = Json::array();
  for (const OutlierGroup& g : r.outliers) {
    json["outliers"].push_back({{"owner", g.owner}, {"bytes", g.bytes.count()}, {"siblings", g.siblings}, {"stack", StackJson(g.stack)}});
  }
  json["at_peak"] = Json::array();
  for (const PeakShare& s : r.at_peak) json["at_peak"].push_back({{"owner", s.owner}, {"role", RoleName(s.role)}, {"bytes", s.bytes.count()}, {"count", s.count}});
  if (!r.blocks_at_peak.empty()) {
    json["blocks_at_peak"] = Json::array();
    for (const BlockAtPeak& b : r.blocks_at_peak) {
      json["blocks_at_peak"].push_back({{"allocation", b.block.id.value()}, {"device", b.block.device.value()}, {"owner", b.owner},
                                        {"role", RoleName(b.block.payer.role)}, {"bytes", b.block.charged.count()},
                                        {"requested_bytes", b.block.requested.count()}, {"thread", b.block.thread.value()}, {"stack", StackJson(b.stack)}});
    }
  }
  if (r.trace.version != 0) {
    Json problems = Json::array();
    for (const TraceProblem& p : r.trace.problems) problems.push_back({{"offset", p.offset}, {"what", p.what}});
    json["trace"] = {{"version", r.trace.version}, {"process", r.trace.process}, {"parent", r.trace.parent}, {"command", r.trace.command},
                     {"began_unix_ns", r.trace.wall_clock_ns}, {"allocations", r.allocations}, {"lost_entries", r.trace.lost}, {"dropped_bytes", r.trace.dropped_bytes},
                     {"problems", std::move(problems)}};
  }
  // Names are bytes: what is no UTF-8 is replaced, not refused.
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace gpuledger
