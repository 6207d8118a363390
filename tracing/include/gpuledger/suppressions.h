// gpuledger/suppressions.h - leaks that are known: LeakSanitizer's syntax, and owners.
//
//   leak:PATTERN    a function, file or module of any frame of the stack: a substring, `*` any text, `^` and `$` the ends
//   owner:GLOB      the owner, as in OwnerMatches
//   owner:GLOB until=2026-12-31     no longer in force after that day
//   # a comment
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/types.h"

namespace gpuledger {

struct TraceFrame;

class GPULEDGER_EXPORT Suppressions {
 public:
  // kInvalidArgument names the line and what is wrong with it.
  static absl::StatusOr<Suppressions> Parse(std::string_view text);
  // The first rule in force that matches, as it was written; "" if none.
  [[nodiscard]] std::string Match(std::string_view owner, const std::vector<TraceFrame>& stack) const;

 private:
  struct Rule {
    bool owner;
    std::string pattern, written;
    int64_t until_day = INT64_MAX;  // days since 1970
  };
  std::vector<Rule> rules_;
};

}  // namespace gpuledger
