#include "redact.h"

#include <random>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

namespace gpuledger {
namespace {

// Words are numbered in the order of their first use, so that nothing can be guessed from them.
class Words {
 public:
  void Replace(std::string& text, std::string_view kind) {
    if (text.empty() || text == "unattributed") return;
    const auto [at, fresh] = words_.try_emplace(text, words_.size() + 1);
    text = fmt::format("{}-{}", kind, at->second);
  }
  void Replace(std::vector<TraceFrame>& stack) {
    for (TraceFrame& frame : stack) {
      Replace(frame.function, "function");
      Replace(frame.file, "file");
      frame.build_id.clear();
      frame.line = 0, frame.offset = 0;
    }
  }

 private:
  absl::flat_hash_map<std::string, size_t> words_;
};

}  // namespace

void Redact(LeakReport* report) {
  Words words;
  for (std::vector<LeakGroup>* const groups : {&report->leaks, &report->kept}) {
    for (LeakGroup& group : *groups) {
      words.Replace(group.owner, "owner");
      for (std::string& holder : group.holders) words.Replace(holder, "holder");
      words.Replace(group.stack);
      words.Replace(group.suppressed_by, "rule");
    }
  }
  for (GrowthGroup& group : report->growth) words.Replace(group.owner, "owner"), words.Replace(group.stack), words.Replace(group.suppressed_by, "rule");
  for (OutlierGroup& group : report->outliers) words.Replace(group.owner, "owner"), words.Replace(group.stack);
  for (PeakShare& share : report->at_peak) words.Replace(share.owner, "owner");
  for (BlockAtPeak& block : report->blocks_at_peak) words.Replace(block.owner, "owner"), words.Replace(block.stack);
  words.Replace(report->trace.command, "command");
  report->trace.process = report->trace.parent = 0;
}

}  // namespace gpuledger
