// tracing/growth.h - what rises from mark to mark, and what outlives its siblings: properties of groups.
#pragma once

#include <cstdint>
#include <vector>

#include <absl/container/flat_hash_map.h>

#include "gpuledger/types.h"

namespace gpuledger {

class Growth {
 public:
  // An owner and stack.
  struct Group {
    OwnerId owner{0};
    SiteId site = kNoSite;
    uint64_t bytes = 0;
    std::vector<uint64_t> at_marks;  // bytes at each mark since its first one; the last kMostMarks of them
    uint64_t marks = 0, rises = 0;   // since its first mark; how often in a row the last ones rose
    uint64_t born = 0;               // the mark before which it came to be
  };
  static constexpr size_t kMostMarks = 64;

  void Change(OwnerId owner, SiteId site, Bytes bytes, bool more);
  void Mark();
  // Those that rose between all marks after the first `warmup`; none unless there are three such steps.
  [[nodiscard]] std::vector<Group> Growing(uint64_t warmup) const;

  // Siblings: blocks of one stack and size class.
  void Freed(SiteId site, Bytes charged, uint64_t lifetime);
  // How many siblings lived for at most kShort entries; an outlier is alive after kLong, and has kSiblings of them.
  static constexpr uint64_t kShort = 1'000, kLong = 10'000, kSiblings = 16;
  [[nodiscard]] uint64_t ShortLived(SiteId site, Bytes charged) const;

 private:
  absl::flat_hash_map<uint64_t, Group> groups_;
  absl::flat_hash_map<uint64_t, uint64_t> short_lived_;
  uint64_t marks_ = 0;
};

}  // namespace gpuledger
