#include "gpuledger/types.h"

#include <array>
#include <cstdio>
#include <cstdlib>

#include <fmt/format.h>

#include "text.h"

namespace gpuledger {

void Die(std::string_view message) noexcept {
  std::fprintf(stderr, "gpuledger: fatal: %.*s\n", static_cast<int>(message.size()), message.data());
  std::fflush(stderr);
  std::abort();
}

std::string ToString(Bytes size) { return WithThousands(size.count()) + " B"; }

std::string Human(Bytes size) {
  constexpr std::array<std::string_view, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (size < 1_KiB) return ToString(size);
  double value = static_cast<double>(size.count()) / 1024;
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fmt::format("{:.2f} {} ({})", value, kUnits[unit], ToString(size));
}

namespace {
constexpr std::array<std::string_view, kRoleCount> kRoleNames = {
    "source", "staging", "quantized", "scratch", "activation", "gradient", "optimizer", "cache", "other"};
}  // namespace

std::string_view RoleName(Role role) { return kRoleNames[static_cast<size_t>(role)]; }

bool ParseRole(std::string_view name, Role* role) {
  for (int i = 0; i < kRoleCount; ++i) {
    if (kRoleNames[static_cast<size_t>(i)] == name) {
      *role = static_cast<Role>(i);
      return true;
    }
  }
  return false;
}

}  // namespace gpuledger
