// tracing/replay/allocation_trace.h - a recorded sequence of allocations and frees, as `gpuledger replay` reads it.
//
// A gzip file of CSV rows under the header `op,id,size,stream,time_us`. `op` is `a` (allocated), `r` (free requested) or
// `c` (free complete: later than `r` if other streams used the block); `id` joins the rows of an allocation and is not
// used again; `size` is what was asked for. A row's line in the file is its index here plus 2.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/progress.h"
#include "gpuledger/types.h"

namespace gpuledger::replay {

enum class Op : uint8_t { kAllocate, kFree, kComplete };

struct Row {
  uint64_t time_us;     // since the trace's first row
  uint32_t allocation;  // index into AllocationTrace::allocations
  Op op;
};

struct Allocation {
  Bytes size;
  uint32_t stream;  // 0, 1, ... in order of appearance
  // Rows of others lie between its free and the completion: work of another stream held the block that long. The
  // completion of all others is the row behind their free.
  bool used_elsewhere = false;
};

struct AllocationTrace {
  std::string path;
  std::vector<Row> rows;
  std::vector<Allocation> allocations;
  uint32_t streams = 0;
  Bytes peak_requested;  // of the sum of sizes, each from its `a` row until its `r` row

  [[nodiscard]] uint64_t duration_us() const { return rows.empty() ? 0 : rows.back().time_us; }
  static uint64_t LineOf(size_t row) { return row + 2; }
};

// Reads it as a stream; memory is 16 bytes a row and about 40 an allocation. Errors: kNotFound if there is no such file;
// kInvalidArgument names file and line for whatever is not such a trace: not gzip, truncated or damaged, another header or
// number of columns, an op, a number or a size (1 B to 2^62 B, as for all that live at once) that is none, an id that is
// not there or is there twice, a second free, time that goes back; kCancelled if `progress` says so.
absl::StatusOr<AllocationTrace> ReadAllocationTrace(const std::string& path, const Progress& progress = {});

}  // namespace gpuledger::replay
