// quant/synth_config.h - the values of a configuration by key, each checked; the first that is wrong is the error.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace gpuledger {

inline constexpr uint64_t kLargestConfigNumber = uint64_t{1} << 31;  // so that 2 * a * b fits in 64 bits

// After an error every number is 1 and every flag false: check status() before what they led to is used.
// `config` must outlive the reader.
class ConfigReader {
 public:
  // `prefix` is put before keys in errors, as in "text_config.".
  ConfigReader(std::string name, const nlohmann::ordered_json& config, std::string prefix = {});

  [[nodiscard]] const absl::Status& status() const { return status_; }
  [[nodiscard]] const nlohmann::ordered_json& config() const { return config_; }
  [[nodiscard]] bool Has(std::string_view key) const;  // and it is not null

  // A whole number from 1 to kLargestConfigNumber that must be there.
  uint64_t Number(std::string_view key);
  // ... that may be missing or null.
  uint64_t Number(std::string_view key, uint64_t fallback);
  // ... that may be null, but not missing: the family's own default is another number.
  uint64_t NumberOrNull(std::string_view key, uint64_t if_null);
  bool Flag(std::string_view key, bool fallback);
  std::string Text(std::string_view key, std::string_view fallback);

  // Makes this the error, unless there is one. The sentence is "NAME: KEY WHAT".
  void Fail(std::string_view key, std::string_view what);

 private:
  const nlohmann::ordered_json* Find(std::string_view key) const;  // null also for a JSON null
  const std::string name_;
  const nlohmann::ordered_json& config_;
  const std::string prefix_;
  absl::Status status_;
};

}  // namespace gpuledger
