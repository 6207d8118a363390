#include "gpuledger/suppressions.h"

#include <charconv>
#include <chrono>
#include <optional>

#include <fmt/format.h>

#include "gpuledger/owner.h"
#include "gpuledger/trace_reader.h"

namespace gpuledger {
namespace {

using Days = std::chrono::sys_days;

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// "2026-12-31", as days since 1970; none if that is no day.
std::optional<int64_t> ParseDay(std::string_view text) {
  int year = 0;
  unsigned month = 0, day = 0;
  const auto number = [text](size_t begin, size_t length, auto* value) {
    const char* const end = text.data() + begin + length;
    return std::from_chars(text.data() + begin, end, *value).ptr == end;
  };
  if (text.size() != 10 || text[4] != '-' || text[7] != '-') return std::nullopt;
  if (!number(0, 4, &year) || !number(5, 2, &month) || !number(8, 2, &day)) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
  if (!date.ok()) return std::nullopt;
  return Days(date).time_since_epoch().count();
}

// LeakSanitizer's patterns: anywhere in the text; `*` is any text; `^` at the beginning and `$` at the end hold it there.
bool PatternMatches(std::string_view pattern, std::string_view text) {
  const bool from_begin = pattern.starts_with('^'), to_end = pattern.ends_with('$');
  if (from_begin) pattern.remove_prefix(1);
  if (to_end && !pattern.empty()) pattern.remove_suffix(1);
  size_t at = 0;
  for (bool anywhere = !from_begin;; anywhere = true) {
    const size_t star = pattern.find('*');
    const std::string_view piece = pattern.substr(0, star);
    if (star == std::string_view::npos && to_end) {  // the last piece, at the end
      const bool fits = text.size() - at >= piece.size() && text.ends_with(piece);
      return fits && (anywhere || text.size() - at == piece.size());
    }
    const size_t found = anywhere ? text.find(piece, at) : (text.substr(at).starts_with(piece) ? at : std::string_view::npos);
    if (found == std::string_view::npos) return false;
    if (star == std::string_view::npos) return true;
    at = found + piece.size();
    pattern.remove_prefix(star + 1);
  }
}

absl::Status Wrong(size_t line, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("suppressions, line {}: {}", line, what));
}

}  // namespace

absl::StatusOr<Suppressions> Suppressions::Parse(std::string_view text) {
  Suppressions parsed;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const std::string_view line = Trimmed(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.empty() || line.starts_with('#')) continue;
    const size_t colon = line.find(':');
    const std::string_view kind = line.substr(0, colon);
    if (colon == std::string_view::npos || (kind != "leak" && kind != "owner")) {
      return Wrong(number, fmt::format("'{}' is neither leak:PATTERN nor owner:GLOB", line));
    }
    Rule rule{.owner = kind == "owner", .pattern = {}, .written = std::string(line)};
    std::string_view pattern = line.substr(colon + 1);
    constexpr std::string_view kUntil = " until=";
    if (const size_t until = pattern.rfind(kUntil); until != std::string_view::npos) {
      const std::string_view date = pattern.substr(until + kUntil.size());
      const std::optional<int64_t> day = ParseDay(date);
      if (!day.has_value()) return Wrong(number, fmt::format("'{}' is no day; write until=2026-12-31", date));
      rule.until_day = *day;
      pattern = pattern.substr(0, until);
    }
    rule.pattern = Trimmed(pattern);
    if (rule.pattern.empty()) return Wrong(number, fmt::format("'{}' has no pattern; it would match everything", line));
    parsed.rules_.push_back(std::move(rule));
  }
  return parsed;
}

std::string Suppressions::Match(std::string_view owner, const std::vector<TraceFrame>& stack) const {
  if (rules_.empty()) return "";
  const int64_t today = std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now()).time_since_epoch().count();
  for (const Rule& rule : rules_) {
    if (rule.until_day < today) continue;
    if (rule.owner) {
      if (OwnerMatches(rule.pattern, owner)) return rule.written;
      continue;
    }
    for (const TraceFrame& frame : stack) {
      if (PatternMatches(rule.pattern, frame.function) || PatternMatches(rule.pattern, frame.file)) return rule.written;
    }
  }
  return "";
}

}  // namespace gpuledger
