#include "synth_config.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "file_io.h"

namespace gpuledger {
namespace {

using Json = nlohmann::ordered_json;

std::string Shown(const Json& value) {
  return Quoted(value.is_string() ? value.get_ref<const std::string&>() : value.dump(-1, ' ', true));
}

}  // namespace

ConfigReader::ConfigReader(std::string name, const Json& config, std::string prefix)
    : name_(std::move(name)), config_(config), prefix_(std::move(prefix)) {}

const Json* ConfigReader::Find(std::string_view key) const {
  const auto found = config_.find(key);
  return found == config_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigReader::Has(std::string_view key) const { return Find(key) != nullptr; }

uint64_t ConfigReader::Number(std::string_view key) {
  if (Has(key)) return Number(key, 1);
  Fail(key, "is missing, and without it the shapes are not known");
  return 1;
}

uint64_t ConfigReader::Number(std::string_view key, uint64_t fallback) {
  const Json* const value = Find(key);
  if (value == nullptr) return status_.ok() ? fallback : 1;
  const uint64_t number = value->is_number_unsigned() ? value->get<uint64_t>() : 0;
  if (number >= 1 && number <= kLargestConfigNumber) return status_.ok() ? number : 1;
  Fail(key, fmt::format("is {}; it must be a whole number from 1 to {}", Shown(*value), kLargestConfigNumber));
  return 1;
}

uint64_t ConfigReader::NumberOrNull(std::string_view key, uint64_t if_null) {
  return config_.contains(key) ? Number(key, if_null) : Number(key);
}

bool ConfigReader::Flag(std::string_view key, bool fallback) {
  const Json* const value = Find(key);
  if (value == nullptr) return status_.ok() && fallback;
  if (!value->is_boolean()) Fail(key, fmt::format("is {}; it must be true or false", Shown(*value)));
  return status_.ok() && value->get<bool>();
}

std::string ConfigReader::Text(std::string_view key, std::string_view fallback) {
  const Json* const value = Find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    Fail(key, fmt::format("is {}; it must be a string", Shown(*value)));
    return std::string(fallback);
  }
  return value->get<std::string>();
}

void ConfigReader::Fail(std::string_view key, std::string_view what) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(fmt::format("{}: {}{} {}", name_, prefix_, key, what));
}

}  // namespace gpuledger
