#include "figures.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

namespace gpuledger::cli {

std::string Human(Bytes size) {
  constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (size.count() < 1024) return fmt::format("{} B", size.count());
  double value = static_cast<double>(size.count()) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string Count(uint64_t count) {
  const std::string digits = std::to_string(count);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string Shape(const std::vector<uint64_t>& shape) {
  return shape.empty() ? "scalar" : fmt::format("{}", fmt::join(shape, " x "));
}

std::string Line(std::string_view label, Bytes size, std::string_view remark) {
  return fmt::format("  {:<16}{:>11}  {:>17}{}{}\n", label, Human(size), ToString(size), remark.empty() ? "" : "  ",
                     remark);
}

std::string Line(std::string_view label, std::string_view text) { return fmt::format("  {:<16}{}\n", label, text); }

}  // namespace gpuledger::cli
