#include "allocation_trace.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "line_reader.h"

namespace gpuledger::replay {
namespace {

constexpr std::string_view kHeader = "op,id,size,stream,time_us";
constexpr size_t kColumns = 5;
constexpr uint64_t kLargest = uint64_t{1} << 62;  // what an allocator takes
constexpr uint64_t kLatest = uint64_t{1} << 53;   // in us: 285 years, and in ns within 64 bits
constexpr size_t kMostRows = 1'000'000'000;       // 16 GiB of memory

std::string_view Text(const absl::Status& status) { return {status.message().data(), status.message().size()}; }

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

absl::Status NotANumber(std::string_view what, std::string_view text) {
  return absl::InvalidArgumentError(fmt::format("{} is '{}', which is not a whole number of 64 bits", what, text));
}

// Takes one row after the other; messages are without path and line.
class Parser {
 public:
  explicit Parser(AllocationTrace& trace) : trace_(trace) {}
  absl::Status Take(std::string_view line);

 private:
  struct Seen {
    uint32_t index;
    Op last = Op::kAllocate;
    size_t freed_at = 0;  // row
  };

  absl::Status Allocate(uint64_t id, uint64_t size, uint64_t stream);
  absl::Status FreeOrComplete(Op op, uint64_t id, uint64_t size, uint64_t stream);

  AllocationTrace& trace_;
  absl::flat_hash_map<uint64_t, Seen> seen_;
  absl::flat_hash_map<uint64_t, uint32_t> streams_;
  uint32_t index_ = 0;  // of the row's allocation
  uint64_t first_us_ = 0, last_us_ = 0;
  Bytes live_;
};

absl::Status Parser::Allocate(uint64_t id, uint64_t size, uint64_t stream) {
  if (size == 0 || size > kLargest) {
    return absl::InvalidArgumentError(fmt::format("the size is {}; an allocation has 1 to 2^62 bytes", size));
  }
  if (size > kLargest - live_.count()) {
    return absl::InvalidArgumentError("with this allocation more than 2^62 bytes are in use");
  }
  const auto [known, is_new] = streams_.try_emplace(stream, trace_.streams);
  if (is_new) ++trace_.streams;
  index_ = static_cast<uint32_t>(trace_.allocations.size());
  if (!seen_.try_emplace(id, Seen{.index = index_}).second) {
    return absl::InvalidArgumentError(fmt::format("id {} is allocated a second time", id));
  }
  trace_.allocations.push_back({Bytes(size), known->second});
  live_ += Bytes(size);
  trace_.peak_requested = std::max(trace_.peak_requested, live_);
  return absl::OkStatus();
}

absl::Status Parser::FreeOrComplete(Op op, uint64_t id, uint64_t size, uint64_t stream) {
  const auto found = seen_.find(id);
  if (found == seen_.end()) return absl::InvalidArgumentError(fmt::format("id {} was not allocated before", id));
  Seen& seen = found->second;
  Allocation& allocation = trace_.allocations[seen.index];
  const auto known = streams_.find(stream);
  if (size != allocation.size.count() || known == streams_.end() || known->second != allocation.stream) {
    return absl::InvalidArgumentError(fmt::format("id {} was allocated with another size or stream", id));
  }
  index_ = seen.index;
  if (op == Op::kFree) {
    if (seen.last != Op::kAllocate) return absl::InvalidArgumentError(fmt::format("id {} is freed a second time", id));
    seen.freed_at = trace_.rows.size();
    live_ -= allocation.size;
  } else {
    if (seen.last == Op::kAllocate) return absl::InvalidArgumentError(fmt::format("id {} completes, but was not freed", id));
    if (seen.last == Op::kComplete) return absl::InvalidArgumentError(fmt::format("id {} completes a second time", id));
    allocation.used_elsewhere = trace_.rows.size() != seen.freed_at + 1;
  }
  seen.last = op;
  return absl::OkStatus();
}

absl::Status Parser::Take(std::string_view line) {
  std::array<std::string_view, kColumns> columns;
  size_t count = 0;
  for (std::string_view rest = line;;) {
    const size_t comma = rest.find(',');
    if (count < kColumns) columns[count] = rest.substr(0, comma);
    ++count;
    if (comma == rest.npos) break;
    rest.remove_prefix(comma + 1);
  }
  if (count != kColumns) {
    return absl::InvalidArgumentError(fmt::format("the number of columns is {}; it is {} ({})", count, kColumns, kHeader));
  }
  Op op;
  if (columns[0] == "a") {
    op = Op::kAllocate;
  } else if (columns[0] == "r") {
    op = Op::kFree;
  } else if (columns[0] == "c") {
    op = Op::kComplete;
  } else {
    return absl::InvalidArgumentError(fmt::format("op is '{}'; a, r and c are the known ones", columns[0]));
  }
  const auto id = Number(columns[1]), size = Number(columns[2]), stream = Number(columns[3]), time = Number(columns[4]);
  if (!id) return NotANumber("id", columns[1]);
  if (!size) return NotANumber("size", columns[2]);
  if (!stream) return NotANumber("stream", columns[3]);
  if (!time || *time > kLatest) return NotANumber("time_us", columns[4]);
  if (trace_.rows.empty()) first_us_ = last_us_ = *time;
  if (*time < last_us_) {
    return absl::InvalidArgumentError(fmt::format("time goes back, from {} us to {} us", last_us_, *time));
  }
  if (trace_.rows.size() == kMostRows) {
    return absl::InvalidArgumentError(fmt::format("more than {} rows are more than replay keeps in memory", kMostRows));
  }
  absl::Status status =
      op == Op::kAllocate ? Allocate(*id, *size, *stream) : FreeOrComplete(op, *id, *size, *stream);
  if (!status.ok()) return status;
  last_us_ = *time;
  trace_.rows.push_back({*time - first_us_, index_, op});
  return status;
}

}  // namespace

absl::StatusOr<AllocationTrace> ReadAllocationTrace(const std::string& path, const Progress& progress) {
  absl::StatusOr<LineReader> reader = LineReader::Open(path);
  if (!reader.ok()) return reader.status();
  AllocationTrace trace;
  trace.path = path;
  Parser parser(trace);
  std::string_view line;
  for (uint64_t number = 1;; ++number) {
    const auto at_line = [&](const absl::Status& status) {
      return absl::Status(status.code(), fmt::format("{}, line {}: {}", path, number, Text(status)));
    };
    const absl::StatusOr<bool> is_line = reader->Next(&line);
    if (!is_line.ok()) return at_line(is_line.status());
    if (number == 1 && (!*is_line || line != kHeader)) {
      return at_line(absl::InvalidArgumentError(fmt::format("the header is missing: {}", kHeader)));
    }
    if (!*is_line) break;
    if (number == 1) continue;
    if (absl::Status status = parser.Take(line); !status.ok()) return at_line(status);
    if (number % 65536 == 0 && progress && !progress(reader->compressed_position(), reader->compressed_size())) {
      return absl::CancelledError("stopped while the trace was read");
    }
  }
  if (trace.rows.empty()) return absl::InvalidArgumentError(fmt::format("{}, line 2: the trace has no rows", path));
  return trace;
}

}  // namespace gpuledger::replay
