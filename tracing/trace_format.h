// tracing/trace_format.h - the bytes of a trace: what the recorder writes and the reader reads. Described in FORMAT.md.
//
// A file is a header and, after it, blocks at multiples of 64 bytes. Entries are in *segments*: up to 32 KiB of encoded
// entries of one thread, which can be decoded alone. A segment lives in its thread's ring (a block of segments that stays in
// place and is mapped by the writer) and later in a block of its own, compressed; its number says that it is the same one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "gpuledger/trace.h"

namespace gpuledger::trace {

inline constexpr uint64_t kFileMagic = 0x0a43525453554c47;  // "GLUSTRC\n", little endian
inline constexpr uint32_t kVersion = 1;
inline constexpr uint64_t kHeaderBytes = 4096;
inline constexpr uint64_t kAlignment = 64;
inline constexpr uint64_t kSegmentBytes = 32 << 10;  // with its header
inline constexpr uint32_t kSegmentsInRing = 4;
inline constexpr uint64_t kRingHead = 4096;          // a ring's block header, and padding to the first segment
inline constexpr uint64_t kRingBytes = kRingHead + kSegmentsInRing * kSegmentBytes;
inline constexpr size_t kLongestText = 8 << 10;      // longer ones are cut
inline constexpr size_t kLongestEntry = kLongestText + 256;

struct FileHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint32_t process, parent;
  int64_t wall_clock_ns;   // since 1970, when the trace began
  uint64_t began_ns;       // the same instant on the clock of the entries
  uint64_t first_offset;   // blocks before it were dropped, but for rings
  uint64_t snapshot;       // offset of the snapshot that the entries continue; 0: none; kSnapshotDue
  uint64_t last_ring;      // offset of the ring made last; 0: none. Each ring names the one before it
  uint64_t lost;           // entries that found no room on the disk
  uint64_t dropped_bytes;
  uint32_t ended;          // 1: the process ended in good order
  uint32_t command_bytes;
  char command[3072];
};
static_assert(sizeof(FileHeader) <= kHeaderBytes);
// Something was live when the trace began, and the snapshot of it is not written yet, or never was.
inline constexpr uint64_t kSnapshotDue = 1;

enum class BlockType : uint16_t { kSegment = 1, kRing = 2, kSnapshot = 3 };

inline constexpr uint32_t kBlockMagic = 0x4b4c4247;  // "GBLK"

struct BlockHeader {
  uint32_t magic;
  BlockType type;
  uint16_t reserved;
  uint32_t stored_bytes;   // after this header; a zstd frame with a checksum, but for rings
  uint32_t raw_bytes;      // decompressed
  uint64_t number;         // the segment's; of a snapshot: how many of its blocks follow
  uint64_t first_ns, last_ns;  // times of its first and last entry
  uint64_t previous_ring;  // of a ring
  uint32_t thread;
  uint32_t entries;
  uint32_t padding;
  uint32_t checksum;       // HeaderChecksum of all before
};
static_assert(sizeof(BlockHeader) == 64);

uint32_t HeaderChecksum(const BlockHeader& header);
// Magic and checksum are right, and the sizes are possible.
bool IsBlock(const BlockHeader& header);

// Of a segment in a ring. The writer alone changes it; `committed` is written last.
struct SegmentHeader {
  uint64_t number;     // 0: unused
  uint64_t first_ns;
  uint32_t committed;  // bytes of whole entries after this header
  uint32_t thread;
  uint32_t entries;    // written with `committed`
  uint32_t padding[9];
};
static_assert(sizeof(SegmentHeader) == 64);
inline constexpr size_t kSegmentRoom = kSegmentBytes - sizeof(SegmentHeader);

// What an entry is coded against: the entries before it in its segment.
struct Deltas {
  uint64_t time = 0, sequence = 0, allocation = 0, address = 0, stream = 0;
  uint32_t owner = 0, site = 0, scope = 0, ledger = 0;
  int32_t device = 0;
  uint8_t role = 0;
  bool free_requested = false;  // the last entry was a kFreeRequested
};

// Entries that are not records: names that records refer to, and what no ledger knows.
enum class Extra : uint8_t {
  kOwner,             // id, name
  kSite,              // id, text of its one frame (SiteHere, owner.h)
  kStack,             // id, frames (sites.h)
  kModule,            // id, load address, path, build id
  kMark,              // text
  kSettle,            // step
  kFact,              // device, allocation, kind, value, text
  kScopeEnded,        // scope
  kProgramEnded,
  // Of a snapshot:
  kLive,              // a record of kAllocate, and whether it is pending
  kCut,               // ledger, thread, sequence: entries of the thread up to it are in the snapshot
  kPeak,              // ledger, device, the most that was in use, reserved
  kPeakShare,         // ledger, owner, role, bytes at the peak
  kLineage,           // ledger, owner, closed or not
  kEndedScope,        // scope
};

struct StackFrame {  // as in sites.h
  bool python;
  uint32_t module;
  uint64_t offset;
  std::string_view function, file;
  uint32_t line;
};

// One entry that is not a record, to be written; what it has by its kind (above).
struct ExtraEntry {
  Extra kind;
  uint64_t time = 0;
  uint64_t id = 0;          // owner, site, module, allocation, scope, ledger
  uint64_t value = 0, more = 0, third = 0;
  int32_t device = 0;
  std::string_view text = {}, text2 = {};
  std::span<const StackFrame> frames = {};
  const Record* record = nullptr;
};

// Both append one entry to `to`, which has room for kLongestEntry, and return its length.
size_t Encode(const Record& record, Deltas& deltas, unsigned char* to);
size_t Encode(const ExtraEntry& entry, Deltas& deltas, unsigned char* to);

// An entry as it was read. Texts point into the segment.
struct Decoded {
  bool is_record = false;
  Record record;              // of kLive too
  ExtraEntry extra{};
  std::vector<StackFrame> frames;
};

// Reads the entries of one segment, whatever its bytes are.
class SegmentDecoder {
 public:
  SegmentDecoder(std::span<const unsigned char> bytes, ThreadId thread) : bytes_(bytes), thread_(thread) {}
  // False at the end, or where the bytes make no entry: then `bad` is true.
  bool Next(Decoded* decoded);
  [[nodiscard]] bool bad() const { return bad_; }
  [[nodiscard]] size_t offset() const { return at_; }

 private:
  uint64_t Varint();
  int64_t Signed();
  std::string_view Text();
  void ReadPayer();
  void ReadLedger();
  void ReadAddress();
  void ReadFull(Record& record);
  void Fill(Record& record) const;     // what every record has
  void FillAll(Record& record) const;  // and what those have that say what a block is
  bool ReadRecord(unsigned char head, Record& record);
  bool ReadExtra(Decoded* decoded);

  std::span<const unsigned char> bytes_;
  size_t at_ = 0;
  ThreadId thread_;
  Deltas deltas_;
  bool bad_ = false;
};

}  // namespace gpuledger::trace
