// A trace of the recorder, whatever its bytes are: refused with a sentence, or a report whose classes sum to what is live. An
// input is the file as it is if its first byte is 0. Else it is what up to four segments hold, as threads' rings have them:
// no checksum keeps the fuzzer from what is behind.
#include <algorithm>
#include <cstring>

#include "fuzz_files.h"
#include "gpuledger/leak_report.h"
#include "trace_format.h"

using namespace gpuledger;
using trace::BlockHeader;
using trace::FileHeader;
using trace::SegmentHeader;

namespace {

uint32_t Checksum(const BlockHeader& header) {  // FORMAT.md
  uint32_t hash = 2166136261u;
  const auto* const bytes = reinterpret_cast<const unsigned char*>(&header);
  for (size_t i = 0; i < offsetof(BlockHeader, checksum); ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

std::string FileOf(std::string_view content, uint32_t segments) {
  std::string file(trace::kHeaderBytes + trace::kRingBytes, '\0');
  FileHeader header{};
  header.magic = trace::kFileMagic;
  header.version = trace::kVersion;
  header.header_bytes = trace::kHeaderBytes;
  header.first_offset = header.last_ring = trace::kHeaderBytes;
  std::memcpy(file.data(), &header, sizeof header);
  BlockHeader ring{};
  ring.magic = trace::kBlockMagic;
  ring.type = trace::BlockType::kRing;
  ring.stored_bytes = ring.raw_bytes = trace::kRingBytes - sizeof ring;
  ring.checksum = Checksum(ring);
  std::memcpy(file.data() + trace::kHeaderBytes, &ring, sizeof ring);
  const size_t each = std::min<size_t>(content.size() / segments, trace::kSegmentRoom);
  for (uint32_t i = 0; i < segments; ++i) {
    SegmentHeader segment{};
    segment.number = i + 1;
    segment.thread = i % 3 + 1;
    segment.committed = static_cast<uint32_t>(each);
    char* const to = file.data() + trace::kHeaderBytes + trace::kRingHead + i * trace::kSegmentBytes;
    std::memcpy(to, &segment, sizeof segment);
    std::memcpy(to + sizeof segment, content.data() + i * each, each);
  }
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest = TextOf(data + 1, size - 1);
  const MemoryFile file(data[0] == 0 ? std::string(rest) : FileOf(rest, data[0] % trace::kSegmentsInRing + 1));
  const absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(file.path());
  if (!reader.ok()) {
    Ensure(data[0] == 0 && reader.status().code() == absl::StatusCode::kInvalidArgument && !reader.status().message().empty());
    return 0;
  }
  ReportOptions options;
  options.symbolise = false;
  options.blocks = true;
  options.redact = size % 2 == 0;
  const absl::StatusOr<LeakReport> report = ReportOnTrace(**reader, options);
  Ensure(report.ok());
  Ensure(!ToText(*report, false).empty() && !ToJson(*report).empty());
  for (const TraceProblem& p : report->trace.problems) Ensure(!p.what.empty());
  return 0;
}
