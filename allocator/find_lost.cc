// FindLost: a conservative search of host memory for the addresses of blocks.
//
// Memory is copied by the kernel, for which a mapping that goes away meanwhile is an error and not a fault, and page by page only
// what was ever touched. What this file itself keeps about blocks lies in pages that are left out.
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "allocator_impl.h"
#include "gpuledger/process.h"
#include "scratch_memory.h"

namespace gpuledger {
namespace {

template <class T>
using ScratchVector = std::vector<T, ScratchMemory<T>>;

struct Extent {
  uint64_t begin, end;
};
struct Target {
  uint64_t begin, end;
  uint64_t mappings;  // 1, or where the driver notes what is mapped where: at each multiple of this, whatever blocks lie there
  uint32_t block;     // index
  bool found;

  // An address inside the block that the driver knows for itself shows no holder: nobody frees a block by it. The block's own first
  // address does, also where it is such a multiple.
  [[nodiscard]] bool IsNoted(uint64_t address) const { return mappings != 1 && address != begin && address % mappings == 0; }
};

// Sorted by address once Sort was called; overlaps are fine.
struct Extents {
  ScratchVector<Extent> all;
  void Add(const void* begin, size_t size) { all.push_back({reinterpret_cast<uint64_t>(begin), reinterpret_cast<uint64_t>(begin) + size}); }
  void Sort() {
    std::sort(all.begin(), all.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    size_t kept = 0;
    for (const Extent& e : all) {  // joined, so that ends are sorted too
      if (kept != 0 && e.begin <= all[kept - 1].end) {
        all[kept - 1].end = std::max(all[kept - 1].end, e.end);
      } else {
        all[kept++] = e;
      }
    }
    all.resize(kept);
  }
  // The first one that ends after `address`.
  [[nodiscard]] const Extent* After(uint64_t address) const {
    const auto it = std::partition_point(all.begin(), all.end(), [address](const Extent& e) { return e.end <= address; });
    return it == all.end() ? nullptr : &*it;
  }
};

struct Search {
  ScratchVector<Target> targets;  // by address, once gathered
  ScratchVector<LiveAllocation> blocks;
  Extents notes;                  // left out: the library's own notes, ranges of blocks, and what the search uses

  void Gather();
  void Look(const uint64_t* words, size_t count, uint64_t address);
  absl::Status LookEverywhere(uint64_t stack_pointer);
};

void Search::Gather() {
  ForEachAllocator([this](CachingAllocator& allocator) {
    const Upstream& upstream = allocator.upstream();
    const uint64_t mappings = upstream.capabilities().host_accessible ? 1 : upstream.granularity().count();
    allocator.LockForFork();
    allocator.impl().VisitNotes([this](const void* place, size_t size) { notes.Add(place, size); },
                                [this, mappings](const Charge::Entry& entry) {
                                  const uint64_t begin = entry.address.address();
                                  const auto index = static_cast<uint32_t>(blocks.size());
                                  targets.push_back({begin, begin + entry.requested.count(), mappings, index, false});
                                  blocks.push_back(entry.info());
                                });
    allocator.impl().VisitRanges([this](Range range) { notes.Add(range.base.unsafe_host_pointer(), range.size.count()); });
    allocator.UnlockAfterFork();
  });
  std::sort(targets.begin(), targets.end(), [](const Target& a, const Target& b) { return a.begin < b.begin; });
}

void Search::Look(const uint64_t* words, size_t count, uint64_t address) {
  const uint64_t lowest = targets.front().begin, span = targets.back().end - lowest;  // the last one ends last: blocks do not overlap
  for (size_t i = 0; i < count; ++i) {
    if (words[i] - lowest >= span) [[likely]] continue;
    auto it = std::partition_point(targets.begin(), targets.end(), [word = words[i]](const Target& t) { return t.end <= word; });
    if (it == targets.end() || words[i] < it->begin || it->found || it->IsNoted(words[i])) continue;
    const uint64_t place = address + i * sizeof(uint64_t);
    const Extent* note = notes.After(place);
    if (note == nullptr || place < note->begin) it->found = true;
  }
}

// A file of /proc, open for reading while it lives.
class ProcFile {
 public:
  explicit ProcFile(const char* path) : fd_(open(path, O_RDONLY | O_CLOEXEC)) {}
  ~ProcFile() {
    if (fd_ >= 0) close(fd_);
  }
  ProcFile(const ProcFile&) = delete;
  ProcFile& operator=(const ProcFile&) = delete;
  [[nodiscard]] bool ok() const { return fd_ >= 0; }
  // How many bytes came; 0 for an error.
  size_t Read(void* buffer, size_t size, uint64_t offset) const {
    const ssize_t got = pread(fd_, buffer, size, static_cast<off_t>(offset));
    return got < 0 ? 0 : static_cast<size_t>(got);
  }

 private:
  const int fd_;
};

// A part of this process's memory; how many bytes came.
size_t Copy(const ProcFile& memory, void* to, uint64_t address, size_t size) {
  const iovec here{to, size}, there{reinterpret_cast<void*>(address), size};
  const ssize_t got = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
  if (got >= 0) return static_cast<size_t>(got);
  return memory.Read(to, size, address);  // slower, and allowed where that is forbidden
}

ScratchVector<char> AllOf(const ProcFile& file) {
  ScratchVector<char> text(size_t{1} << 20);
  size_t size = 0;
  while (const size_t got = file.Read(text.data() + size, text.size() - size, size)) {
    size += got;
    if (size == text.size()) text.resize(2 * text.size());
  }
  text.resize(size);
  text.push_back('\0');
  return text;
}

absl::Status Search::LookEverywhere(uint64_t stack_pointer) {
  constexpr uint64_t kPage = 4096, kPages = 512, kPresentOrSwapped = uint64_t{3} << 62;
  const ProcFile memory("/proc/self/mem"), pagemap("/proc/self/pagemap"), maps("/proc/self/maps");
  if (!maps.ok()) return absl::UnavailableError("/proc/self/maps cannot be read: nobody knows what is lost");
  ScratchVector<uint64_t> words(kPages * kPage / sizeof(uint64_t)), pages(kPages);
  notes.Add(words.data(), kPages * kPage);
  notes.Add(targets.data(), targets.capacity() * sizeof(Target));
  notes.Add(blocks.data(), blocks.capacity() * sizeof(LiveAllocation));
  notes.all.reserve(notes.all.size() + 1);
  notes.Add(notes.all.data(), notes.all.capacity() * sizeof(Extent));  // ranges begin where blocks do
  notes.Sort();
  const ScratchVector<char> text = AllOf(maps);
  uint64_t read = 0;
  for (const char* line = text.data(); *line != '\0';) {
    uint64_t begin = 0, end = 0;
    char what[5] = {};
    const bool parsed = std::sscanf(line, "%lx-%lx %4s", &begin, &end, what) == 3;
    const char* const newline = std::strchr(line, '\n');
    line = newline == nullptr ? "" : newline + 1;
    if (!parsed || std::strncmp(what, "rw", 2) != 0 || what[3] != 'p') continue;
    // Of its own stack, what the callers have: below there are only leftovers.
    if (begin <= stack_pointer && stack_pointer < end) begin = stack_pointer & ~uint64_t{7};
    while (begin < end) {
      const Extent* note = notes.After(begin);
      if (note != nullptr && note->begin <= begin && note->end - note->begin >= kPage) {  // a range of blocks
        begin = note->end;
        continue;
      }
      uint64_t until = std::min(end, (begin / kPage + kPages) * kPage);
      if (note != nullptr && note->begin > begin && note->end - note->begin >= kPage) until = std::min(until, note->begin);
      // Pages that were never touched hold nothing; reading them would only make the kernel work.
      const size_t count = (until - begin / kPage * kPage + kPage - 1) / kPage;
      const bool known = pagemap.ok() && pagemap.Read(pages.data(), count * sizeof(uint64_t), begin / kPage * sizeof(uint64_t)) == count * sizeof(uint64_t);
      size_t skipped = 0;
      while (known && skipped < count && (pages[skipped] & kPresentOrSwapped) == 0) ++skipped;
      if (skipped != 0) {
        begin = std::min(end, (begin / kPage + skipped) * kPage);
        continue;
      }
      size_t touched = 1;
      while (touched < count && (!known || (pages[touched] & kPresentOrSwapped) != 0)) ++touched;
      until = std::min(until, (begin / kPage + touched) * kPage);
      const size_t got = Copy(memory, words.data(), begin, until - begin) / sizeof(uint64_t);
      Look(words.data(), got, begin);
      read += got;
      begin = until;
    }
  }
  if (read == 0) return absl::UnavailableError("the kernel does not let this process read its own memory: nobody knows what is lost");
  return absl::OkStatus();
}

// In a frame of its own: what it leaves on the stack lies below the caller's.
[[gnu::noinline]] absl::Status Run(Search& search, uint64_t stack_pointer) {
  search.Gather();
  if (search.targets.empty()) return absl::OkStatus();
  return search.LookEverywhere(stack_pointer);
}

}  // namespace

absl::StatusOr<std::vector<LiveAllocation>> FindLost() {
  Search search;
  __builtin_unwind_init();  // the callers' registers go onto the stack
  uint64_t stack_pointer = 0;
  asm volatile("mov %%rsp, %0" : "=r"(stack_pointer));
  if (absl::Status s = Run(search, stack_pointer); !s.ok()) return s;
  std::vector<LiveAllocation> lost;
  for (const Target& target : search.targets) {
    if (!target.found) lost.push_back(search.blocks[target.block]);
  }
  return lost;
}

}  // namespace gpuledger
