// quant/json_text.h - JSON from files that nobody has checked: read without recursion, errors that name the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <nlohmann/json.hpp>

namespace gpuledger {

inline constexpr int kMostJsonDepth = 64;
inline constexpr uint64_t kMostConfigBytes = 4u << 20;

// Receives the parser's events for one text. The parser keeps a stack of its own, one bit a level, so no input makes it
// recurse; a handler that refuses what it does not expect ends it at once.
class JsonHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  // `what` is what errors call the text ("the header"); `offset` is where in the file `path` it begins.
  JsonHandler(const std::string& path, std::string_view what, uint64_t offset)
      : path_(path), what_(what), offset_(offset) {}

  // Errors: kInvalidArgument for what is no JSON or not UTF-8, and whatever the events rejected.
  absl::Status Parse(std::string_view text);

  bool binary(binary_t&) final { return Reject("there is binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) final;

 protected:
  // Ends the parser with this error; always false, which is what an event returns then.
  bool Reject(std::string_view sentence);
  const std::string& path() const { return path_; }

 private:
  const std::string& path_;
  const std::string what_;
  const uint64_t offset_;
  uint64_t position_ = 0;
  absl::Status status_;
};

// The object that `text` is, nested at most kMostJsonDepth levels; `path` is the file that errors name.
absl::StatusOr<nlohmann::ordered_json> ParseJsonObject(const std::string& path, std::string_view text);

}  // namespace gpuledger
