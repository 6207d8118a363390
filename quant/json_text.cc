#include "json_text.h"

#include <fmt/format.h>

namespace gpuledger {
namespace {

// Hands the parser one character after the other and counts them, so that an error can say where it is.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, uint64_t* count) : at_(at), count_(count) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    ++at_;
    ++*count_;
    return *this;
  }
  friend bool operator==(const CountingIterator& a, const CountingIterator& b) { return a.at_ == b.at_; }
  friend bool operator!=(const CountingIterator& a, const CountingIterator& b) { return a.at_ != b.at_; }

 private:
  const char* at_;
  uint64_t* count_;
};

// Accepts an object of any content that does not nest too deep.
class DepthCheck final : public JsonHandler {
 public:
  explicit DepthCheck(const std::string& path) : JsonHandler(path, "it", 0) {}

  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool number_integer(int64_t) override { return Value(); }
  bool number_unsigned(uint64_t) override { return Value(); }
  bool number_float(double, const std::string&) override { return Value(); }
  bool string(std::string&) override { return Value(); }
  bool key(std::string&) override { return true; }
  bool start_object(size_t) override { return Deeper(); }
  bool start_array(size_t) override { return Value() && Deeper(); }
  bool end_object() override { return Shallower(); }
  bool end_array() override { return Shallower(); }

 private:
  bool Value() { return depth_ > 0 || Reject("is not a JSON object"); }
  bool Deeper() {
    return ++depth_ <= kMostJsonDepth || Reject(fmt::format("nests deeper than {} levels", kMostJsonDepth));
  }
  bool Shallower() {
    --depth_;
    return true;
  }
  int depth_ = 0;
};

}  // namespace

absl::Status JsonHandler::Parse(std::string_view text) {
  // The parser takes a zero byte for the end of its input and would overlook what follows.
  if (const size_t zero = text.find('\0'); zero != text.npos) {
    position_ = zero;
    Reject(fmt::format("{} has a zero byte", what_));
    return status_;
  }
  const CountingIterator begin(text.data(), &position_);
  const CountingIterator end(text.data() + text.size(), &position_);
  nlohmann::json::sax_parse(begin, end, this);
  return status_;
}

bool JsonHandler::parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
  // "[id] parse error at line 1, column 2: REASON; last read: 'TOKEN'": only the reason is short and printable.
  std::string_view reason = error.what();
  if (const size_t colon = reason.find(": "); colon != reason.npos) reason.remove_prefix(colon + 2);
  reason = reason.substr(0, reason.find("; last read"));
  position_ = position;
  return Reject(fmt::format("{} is not valid JSON: {}", what_, reason));
}

bool JsonHandler::Reject(std::string_view sentence) {
  status_ = absl::InvalidArgumentError(fmt::format("{}: {} ({}byte {} of the file)", path_, sentence,
                                                   offset_ == 0 ? "" : "in " + what_ + ", ", offset_ + position_));
  return false;
}

absl::StatusOr<nlohmann::ordered_json> ParseJsonObject(const std::string& path, std::string_view text) {
  if (absl::Status status = DepthCheck(path).Parse(text); !status.ok()) return status;
  return nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace gpuledger
