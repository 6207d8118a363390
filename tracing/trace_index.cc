#include "trace_index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <fmt/format.h>

namespace gpuledger::trace {

absl::StatusOr<std::unique_ptr<TraceFile>> TraceFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string sentence = fmt::format("{}: {}", path, std::strerror(errno));
    if (errno == ENOENT) return absl::NotFoundError(sentence);
    if (errno == EACCES) return absl::PermissionDeniedError(sentence);
    return absl::InvalidArgumentError(sentence);
  }
  struct stat found{};
  if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(fmt::format("{} is not a file", path));
  }
  return std::unique_ptr<TraceFile>(new TraceFile(fd));
}

TraceFile::~TraceFile() { close(fd_); }

size_t TraceFile::Read(uint64_t offset, void* to, size_t bytes) const {
  size_t got = 0;
  while (got < bytes) {
    const ssize_t n = pread(fd_, static_cast<char*>(to) + got, bytes - got, static_cast<off_t>(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
  }
  return got;
}

uint64_t TraceFile::size() const {
  struct stat found{};
  return fstat(fd_, &found) == 0 ? static_cast<uint64_t>(found.st_size) : 0;
}

uint64_t TraceFile::DataFrom(uint64_t from) const {
  const off_t at = lseek(fd_, static_cast<off_t>(from), SEEK_DATA);
  if (at >= 0) return static_cast<uint64_t>(at);
  return errno == ENXIO ? size() : from;
}

namespace {

constexpr uint64_t kMostRings = 1 << 20;
constexpr int kMostLooks = 10;

// Copies what rings hold. A segment whose number changes meanwhile was drained: it is in a block, and found there.
void CopyRings(const TraceFile& file, TraceIndex& index, std::vector<std::pair<uint32_t, SegmentPlace>>& found) {
  uint64_t ring = index.header.last_ring;
  for (uint64_t seen = 0; ring != 0 && seen < kMostRings; ++seen) {
    BlockHeader head{};
    if (file.Read(ring, &head, sizeof head) != sizeof head || !IsBlock(head) || head.type != BlockType::kRing) {
      index.problems.push_back({ring, "a thread's ring should be here, and is not: what threads wrote last is lost"});
      return;
    }
    for (uint32_t i = 0; i < kSegmentsInRing; ++i) {
      const uint64_t at = ring + kRingHead + i * kSegmentBytes;
      std::vector<unsigned char> bytes(kSegmentBytes);
      SegmentHeader segment{}, again{};
      const size_t got = file.Read(at, bytes.data(), bytes.size());
      if (got < sizeof segment) continue;
      std::memcpy(&segment, bytes.data(), sizeof segment);
      file.Read(at, &again, sizeof again);
      if (segment.number == 0 || again.number != segment.number || segment.committed == 0) continue;
      if (segment.committed > kSegmentRoom) {
        index.problems.push_back({at, fmt::format("a segment of {} bytes has no room for {}", kSegmentRoom, segment.committed)});
        continue;
      }
      if (segment.committed > got - sizeof segment) {
        index.problems.push_back({at, "the file ends in the middle of what a thread wrote"});
        segment.committed = static_cast<uint32_t>(got - sizeof segment);
      }
      SegmentPlace place;
      place.number = segment.number;
      place.first_ns = segment.first_ns;
      place.raw_bytes = segment.committed;
      place.entries = segment.entries;
      place.copied.assign(bytes.begin() + sizeof segment, bytes.begin() + static_cast<ptrdiff_t>(sizeof segment + segment.committed));
      found.emplace_back(segment.thread, std::move(place));
    }
    ring = head.previous_ring < ring ? head.previous_ring : 0;  // the one before was made before: never a circle
  }
}

// Says what was skipped, but for the zeros that a hole or a writer at work leaves: from the first byte that is something.
void NoteSkipped(const TraceFile& file, uint64_t from, uint64_t to, TraceIndex& index) {
  std::vector<unsigned char> bytes(1 << 16);
  for (uint64_t at = from; at < to;) {
    at = std::max(at, file.DataFrom(at));  // over holes
    if (at >= to) return;
    const size_t got = file.Read(at, bytes.data(), std::min<uint64_t>(to - at, bytes.size()));
    if (got == 0) return;
    const auto end = bytes.begin() + static_cast<ptrdiff_t>(got);
    const auto something = std::find_if(bytes.begin(), end, [](unsigned char b) { return b != 0; });
    if (something != end) {
      at += static_cast<uint64_t>(something - bytes.begin());
      index.problems.push_back({at, fmt::format("{} bytes make no block; skipped", to - at)});
      return;
    }
    at += got;
  }
}

}  // namespace

absl::StatusOr<TraceIndex> MakeIndex(const TraceFile& file, const std::string& path) {
  TraceIndex index;
  const size_t got = file.Read(0, &index.header, sizeof index.header);
  if (got < offsetof(FileHeader, command) || index.header.magic != kFileMagic) {
    return absl::InvalidArgumentError(fmt::format("{} is not a trace of gpuledger: it does not begin like one", path));
  }
  if (index.header.version > kVersion) {
    return absl::InvalidArgumentError(fmt::format("{} is a trace of version {}; this gpuledger reads versions up to {}: use a newer one",
                                                  path, index.header.version, kVersion));
  }
  std::vector<std::pair<uint32_t, SegmentPlace>> in_rings;
  CopyRings(file, index, in_rings);

  const uint64_t size = file.size();
  absl::flat_hash_set<uint64_t> numbers;
  absl::flat_hash_map<uint64_t, SegmentPlace*> ring_by_number;
  for (auto& [thread, place] : in_rings) ring_by_number.emplace(place.number, &place);
  uint64_t at = std::max<uint64_t>(index.header.first_offset / kAlignment * kAlignment, kHeaderBytes);
  if (at > size && size > kHeaderBytes) {
    index.problems.push_back({offsetof(FileHeader, first_offset), "the header says that the first block lies behind the file's end"});
    at = kHeaderBytes;
  }
  at = std::min(at, size);
  uint64_t skipped_from = UINT64_MAX;
  std::vector<unsigned char> window(1 << 16);
  uint64_t window_at = 0, window_bytes = 0;
  const auto header_at = [&](uint64_t offset, BlockHeader* header) {
    if (offset < window_at || offset + sizeof *header > window_at + window_bytes) {
      window_at = offset;
      window_bytes = file.Read(offset, window.data(), window.size());
      if (window_bytes < sizeof *header) return false;
    }
    std::memcpy(header, window.data() + (offset - window_at), sizeof *header);
    return true;
  };
  // A block may be on its way into the file: what makes no block now may make one in a moment.
  int patience = index.header.ended != 0 ? 0 : kMostLooks;
  const auto appears_at = [&](uint64_t offset, BlockHeader* header) {
    const bool something = std::any_of(window.begin() + static_cast<ptrdiff_t>(offset - window_at),
                                       window.begin() + static_cast<ptrdiff_t>(offset - window_at + sizeof *header), [](unsigned char b) { return b != 0; });
    while (something && !IsBlock(*header) && patience > 0) {
      --patience;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      window_bytes = 0;
      if (!header_at(offset, header)) return;
    }
  };
  BlockHeader head{};
  while (at + sizeof head <= size && header_at(at, &head)) {
    if (skipped_from == UINT64_MAX && !IsBlock(head)) appears_at(at, &head);
    const bool ring = IsBlock(head) && head.type == BlockType::kRing;
    if (!IsBlock(head) || at + sizeof head + (ring ? 0 : head.stored_bytes) > size) {
      if (IsBlock(head) && !ring && !ring_by_number.contains(head.number)) {
        index.problems.push_back({at, "a block that ends with the file: its entries are left out"});
      }
      if (skipped_from == UINT64_MAX) skipped_from = at;
      at += kAlignment;
      if (head.magic == 0) at = std::max(at, file.DataFrom(at) / kAlignment * kAlignment);
      continue;
    }
    if (skipped_from != UINT64_MAX) {
      BlockHeader by_now{};
      window_bytes = 0;
      if (patience > 0 && header_at(skipped_from, &by_now) && IsBlock(by_now)) {
        --patience;
        at = std::exchange(skipped_from, UINT64_MAX);
        continue;
      }
      NoteSkipped(file, skipped_from, at, index);
    }
    skipped_from = UINT64_MAX;
    if (ring) {
      at += kRingBytes;
      continue;
    }
    SegmentPlace place{head.number, head.first_ns, at, head.stored_bytes, head.raw_bytes, head.entries, {}};
    if (head.type == BlockType::kSegment) {
      // What a ring has whole is not looked for in a block that may be torn; a ring that was copied too early has less.
      const auto copied = ring_by_number.find(head.number);
      const bool in_ring = copied != ring_by_number.end() && copied->second->raw_bytes >= head.raw_bytes;
      if (!in_ring && numbers.insert(head.number).second) index.by_thread[head.thread].push_back(std::move(place));
    } else if (at == index.header.snapshot || (!index.snapshot.empty() && index.snapshot.back().number == head.number + 1)) {
      index.snapshot.push_back(std::move(place));
    }
    index.bytes += head.stored_bytes;
    at += (sizeof head + head.stored_bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  // The last block of a writer that is at work, or was killed, may be torn: its ring has what is in it.
  if (skipped_from != UINT64_MAX && index.header.ended != 0) NoteSkipped(file, skipped_from, size, index);
  if (index.header.snapshot == kSnapshotDue) {
    index.problems.push_back({offsetof(FileHeader, snapshot), "what was live when the trace began was not written before the process ended: it is missing"});
  } else if (index.header.snapshot != 0 && (index.snapshot.empty() || index.snapshot.back().number != 0)) {
    index.problems.push_back({index.header.snapshot, "the snapshot of what was live is not whole: it is left out"});
    index.snapshot.clear();
  }
  for (auto& [thread, place] : in_rings) {
    if (numbers.insert(place.number).second) index.by_thread[thread].push_back(std::move(place));
  }
  for (auto& [thread, places] : index.by_thread) {
    std::sort(places.begin(), places.end(), [](const SegmentPlace& a, const SegmentPlace& b) { return a.number < b.number; });
  }
  return index;
}

bool LoadSegment(const TraceFile& file, const SegmentPlace& place, std::vector<unsigned char>* raw, std::vector<TraceProblem>* problems) {
  if (place.offset == 0) {
    *raw = place.copied;
    return true;
  }
  std::vector<unsigned char> stored(place.stored_bytes);
  raw->resize(place.raw_bytes);
  const bool there = file.Read(place.offset + sizeof(BlockHeader), stored.data(), stored.size()) == stored.size();
  const size_t got = there ? ZSTD_decompress(raw->data(), raw->size(), stored.data(), stored.size()) : 0;
  if (there && ZSTD_isError(got) == 0 && got == raw->size()) return true;
  raw->clear();
  problems->push_back({place.offset, there ? fmt::format("a damaged block ({}): its entries are left out",
                                                         ZSTD_isError(got) != 0 ? ZSTD_getErrorName(got) : "its length is wrong")
                                           : std::string("a block that ends with the file: its entries are left out")});
  return false;
}

}  // namespace gpuledger::trace
