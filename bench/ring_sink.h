// bench/ring_sink.h - where the benchmarks' records go: each thread keeps its last ones whole, as a recorder's buffers do.
#pragma once

#include <array>
#include <memory>

#include "gpuledger/record.h"

namespace gpuledger {

class RingSink final : public RecordSink {
 public:
  void Write(const Record& record) noexcept override {
    if (ring == nullptr) [[unlikely]] {
      owned = std::make_unique<Ring>();
      ring = owned.get();
    }
    ring->records[ring->next++ % ring->records.size()] = record;
  }

 private:
  struct Ring {
    std::array<Record, 4096> records;
    size_t next = 0;
  };
  // The plain pointer is what is read at each record; its owner frees it with the thread.
  static inline constinit thread_local Ring* ring = nullptr;
  static inline thread_local std::unique_ptr<Ring> owned;
};

}  // namespace gpuledger
