// A report as text, in the shape of LeakSanitizer's: what, how much, whose, held by whom, allocated where; then one summary that
// adds up.
#include <algorithm>

#include <fmt/format.h>

#include "gpuledger/leak_report.h"
#include "leak_lines.h"

namespace gpuledger {
namespace {

constexpr size_t kMostGroups = 40, kMostHolders = 8, kMostFrames = 12, kMostShares = 10, kMostKept = 5;

std::string Human(Bytes bytes) {
  const auto n = static_cast<double>(bytes.count());
  if (n < 1e3) return fmt::format("{} B", bytes.count());
  if (n < 1e6) return fmt::format("{:.1f} kB", n / 1e3);
  if (n < 1e9) return fmt::format("{:.1f} MB", n / 1e6);
  return fmt::format("{:.2f} GB", n / 1e9);
}

std::string Age(uint64_t ns) {
  const double s = static_cast<double>(ns) * 1e-9;
  if (s < 1) return fmt::format("{:.0f} ms", s * 1e3);
  if (s < 120) return fmt::format("{:.1f} s", s);
  if (s < 7200) return fmt::format("{:.0f} min", s / 60);
  return fmt::format("{:.1f} h", s / 3600);
}

std::string_view PluralS(uint64_t count) { return count == 1 ? "" : "s"; }

// Names are somebody's text: what would move a terminal's cursor is shown as a question mark.
std::string Plain(std::string_view text) {
  std::string plain(text);
  for (char& c : plain) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return plain;
}

struct Colours {
  explicit Colours(bool on) : bold(on ? "\x1b[1m" : ""), red(on ? "\x1b[31;1m" : ""), yellow(on ? "\x1b[33;1m" : ""), dim(on ? "\x1b[2m" : ""), off(on ? "\x1b[0m" : "") {}
  std::string_view bold, red, yellow, dim, off;
  [[nodiscard]] std::string_view Of(Severity severity) const {
    return severity == Severity::kError ? red : severity == Severity::kWarning ? yellow : bold;
  }
};

// A function without its parameters and template arguments: "at::empty_strided". JSON has all of it.
std::string Short(std::string_view function) {
  constexpr std::string_view kAnonymous = "(anonymous namespace)";
  std::string name;
  int depth = 0;
  for (size_t i = 0; i < function.size(); ++i) {
    if (function.substr(i).starts_with(kAnonymous)) {
      i += kAnonymous.size() - 1;
      if (depth == 0) name += "{anonymous}";
      continue;
    }
    const char c = function[i];
    if (c == '(' && depth == 0 && !name.ends_with("operator")) break;
    if (c == '<') ++depth;
    if (depth == 0) name += c;
    if (c == '>' && depth > 0) --depth;
  }
  return name.empty() ? std::string(function) : name;
}

void AddFrame(size_t number, const TraceFrame& f, const Colours& c, std::string& out) {
  const std::string_view file = f.line != 0 || f.python ? std::string_view(f.file) : std::string_view(f.file).substr(f.file.rfind('/') + 1);
  const std::string place = f.line != 0 ? fmt::format("{}:{}", file, f.line) : f.function.empty() ? fmt::format("{}+{:#x}", file, f.offset) : std::string(file);
  out += fmt::format("    {}#{:<2} {}{}\n", c.dim, number, Plain(f.function.empty() ? place : fmt::format("{}  {}", f.python ? f.function : Short(f.function), place)), c.off);
}

// In a Python program the way from Python down to the allocator is long and nobody's: its ends are shown.
void AddStack(const std::vector<TraceFrame>& stack, const Colours& c, std::string& out) {
  constexpr size_t kEnds = 2;
  const size_t python = static_cast<size_t>(std::find_if(stack.begin(), stack.end(), [](const TraceFrame& f) { return f.python; }) - stack.begin());
  size_t shown = 0;
  for (size_t i = 0; i < stack.size(); ++i) {
    if (shown == kMostFrames) {
      out += fmt::format("    {}... and {} more frames{}\n", c.dim, stack.size() - i, c.off);
      break;
    }
    if (python < stack.size() && i == kEnds && python > kEnds + 1) {
      out += fmt::format("    {}... {} native frames{}\n", c.dim, python - kEnds, c.off);
      i = python;
    }
    AddFrame(i, stack[i], c, out);
    ++shown;
  }
}

std::string Headline(LeakClass leak_class) {
  std::string name(LeakClassName(leak_class));
  name[0] = static_cast<char>(name[0] - 'a' + 'A');
  return leak_class == LeakClass::kScopeEscape ? "Scope-escape" : name;
}

void AddGroup(const LeakGroup& g, const Colours& c, std::string& out) {
  out += fmt::format("{}{} {} of {} in {} object{}{}, owner {}{}{} [{}]{}, oldest {}", c.Of(g.severity), Headline(g.leak_class),
                     g.severity == Severity::kError ? "leak" : g.severity == Severity::kWarning ? "leak (warning)" : "leak (info)", Human(g.bytes), g.count,
                     PluralS(g.count), c.off, c.bold, Plain(g.owner), c.off, RoleName(g.role), g.tensor.empty() ? "" : ", " + Plain(g.tensor),
                     Age(g.oldest_age_ns));
  for (size_t i = 0; i < g.holders.size() && i < kMostHolders; ++i) {
    out += fmt::format("\n    {}  {}", i == 0 ? "held by" : "       ", Plain(g.holders[i]));
  }
  if (g.holders.size() > kMostHolders) out += fmt::format("\n             and {} more", g.holders.size() - kMostHolders);
  out += g.stack.empty() ? "\n" : "\n  allocated from:\n";
  AddStack(g.stack, c, out);
  out += '\n';
}

void AddSummary(const LeakReport& r, const Colours& c, std::string& out) {
  out += fmt::format("{}{}{}\n", c.bold, r.settled ? "Live when the settle began" : "Live at the end", c.off);
  const auto line = [&](std::string_view name, Bytes bytes, uint64_t count, std::string_view note) {
    out += fmt::format("  {:<16} {:>20}   {:>8} object{:<1}{}\n", name, ToString(bytes), count, PluralS(count), note);
  };
  uint64_t count = 0;
  for (int i = 0; i < kLeakClassCount; ++i) {
    const ClassTotal& total = r.classes[static_cast<size_t>(i)];
    count += total.count;
    const auto leak_class = static_cast<LeakClass>(i);
    if (total.count == 0 && leak_class != LeakClass::kKept) continue;
    line(LeakClassName(leak_class), total.bytes, total.count,
         leak_class == LeakClass::kKept && r.undecided.count != 0 ? fmt::format("   of which undecided: {}", ToString(r.undecided.bytes))
         : leak_class == LeakClass::kDeferred                     ? "   freed, waiting for other streams: no leak"
                                                                  : "");
  }
  line("sum", r.live, count, "");
  const std::vector<LeakGroup> kept = OverLayers(r.kept);
  for (size_t i = 0; i < kept.size() && i < kMostKept; ++i) {
    out += fmt::format("  {}{}  {} in {} object{}, {} [{}]{}\n", c.dim, i == 0 ? "kept for" : "        ", ToString(kept[i].bytes), kept[i].count, PluralS(kept[i].count),
                       Plain(kept[i].owner), RoleName(kept[i].role), c.off);
  }
  out += fmt::format("  reserved {} = in use {} + pending {} + cached {}\n", ToString(r.reserved), ToString(r.in_use), ToString(r.pending), ToString(r.cached));
  if (!r.undecided_why.empty()) {
    out += fmt::format("  {}undecided{}: {}; cycles, tracebacks, views and what is lost cannot be told from what is kept\n", c.yellow, c.off, r.undecided_why);
  }
  out += '\n';
}

void AddPeak(const LeakReport& r, const Colours& c, std::string& out) {
  if (r.peak.is_zero()) return;
  out += fmt::format("{}Live at the peak{}, {} in use\n", c.bold, c.off, ToString(r.peak));
  Bytes shown;
  const std::vector<PeakShare> shares = OverLayers(r.at_peak);
  for (size_t i = 0; i < shares.size() && i < kMostShares; ++i) {
    const PeakShare& s = shares[i];
    shown += s.bytes;
    out += fmt::format("  {:>20}  {:5.1f} %  {} [{}]\n", ToString(s.bytes), 100.0 * static_cast<double>(s.bytes.count()) / static_cast<double>(r.peak.count()),
                       Plain(s.owner), RoleName(s.role));
  }
  if (shares.size() > kMostShares) out += fmt::format("  {:>20}           {} more\n", ToString(r.peak - std::min(r.peak, shown)), shares.size() - kMostShares);
  for (const BlockAtPeak& b : r.blocks_at_peak) {
    out += fmt::format("  {:>20}  allocation {}  {} [{}]\n", ToString(b.block.charged), b.block.id.value(), Plain(b.owner), RoleName(b.block.payer.role));
  }
  out += '\n';
}

}  // namespace

std::string ToText(const LeakReport& r, bool colour) {
  const Colours c(colour);
  std::string out;
  size_t shown = 0, suppressed = 0;
  Bytes hidden, leaked;
  uint64_t leaked_count = 0;
  for (const LeakGroup& g : OverLayers(r.leaks)) {
    if (!g.suppressed_by.empty()) {
      ++suppressed;
      continue;
    }
    if (g.severity == Severity::kError) leaked += g.bytes, leaked_count += g.count;
    if (shown == kMostGroups) {
      hidden += g.bytes;
      continue;
    }
    AddGroup(g, c, out);
    ++shown;
  }
  if (!hidden.is_zero()) out += fmt::format("... and {} in smaller groups\n\n", Human(hidden));
  for (const GrowthGroup& g : r.growth) {
    if (!g.suppressed_by.empty()) {
      ++suppressed;
      continue;
    }
    out += fmt::format("{}Growth{} of owner {}{}{}: more at every mark", c.red, c.off, c.bold, Plain(g.owner), c.off);
    for (size_t i = g.at_marks.size() - std::min<size_t>(g.at_marks.size(), 6); i < g.at_marks.size(); ++i) out += fmt::format("{} {}", i == 0 ? "" : ",", Human(g.at_marks[i]));
    out += g.stack.empty() ? "\n" : "\n  allocated from:\n";
    AddStack(g.stack, c, out);
    out += '\n';
  }
  for (size_t i = 0; i < r.outliers.size() && i < 5; ++i) {
    out += fmt::format("{}Lifetime outlier{}: {} of owner {} still live, {} siblings of the same stack and size were freed soon\n", c.bold, c.off,
                       Human(r.outliers[i].bytes), Plain(r.outliers[i].owner), r.outliers[i].siblings);
    AddStack(r.outliers[i].stack, c, out);
    out += '\n';
  }
  if (suppressed != 0) out += fmt::format("Suppressed by rules: {} group{}\n\n", suppressed, PluralS(suppressed));
  AddPeak(r, c, out);
  AddSummary(r, c, out);
  for (const TraceProblem& p : r.trace.problems) out += fmt::format("{}trace, offset {}{}: {}\n", c.yellow, p.offset, c.off, p.what);
  if (r.trace.lost != 0) out += fmt::format("{}{} entries were lost{}: the disk was full\n", c.yellow, r.trace.lost, c.off);
  const bool leaks = HasLeaks(r);
  out += fmt::format("{}SUMMARY{}: gpuledger: {}; peak {}, {} kept on purpose{}\n", leaks ? c.red : c.bold, c.off,
                     leaked_count != 0 ? fmt::format("{} leaked in {} object{}", Human(leaked), leaked_count, PluralS(leaked_count))
                     : leaks           ? std::string("growth")
                     : IsDecided(r)    ? std::string("no leaks")
                                       : std::string("no leaks found, but undecided"),
                     Human(r.peak), Human(r.classes[static_cast<size_t>(LeakClass::kKept)].bytes), IsDecided(r) ? "" : " as far as is known");
  return out;
}

}  // namespace gpuledger
