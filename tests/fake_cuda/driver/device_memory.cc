#include "device_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace fake_cuda {
namespace {

[[noreturn]] void Fail(const char* what) {
  std::perror(what);
  std::abort();
}

// Another process wrote it.
bool Plausible(const MappedTicket& ticket) {
  const uint32_t count = ticket->extent_count;
  if (count == 0 || count > Ticket::kMostExtents) return false;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const Extent& extent = ticket->extents[i];
    if (extent.size > ticket.offset() || extent.offset > ticket.offset() - extent.size) return false;
    sum += extent.size;
  }
  return sum == ticket->size;
}

}  // namespace

File::~File() { close(fd_); }

std::unique_ptr<MappedTicket> MappedTicket::Map(const File& file, uint64_t offset) {
  struct stat status;
  if (offset % Ticket::kSize != 0 || fstat(file.fd(), &status) != 0 || offset > uint64_t(status.st_size) ||
      uint64_t(status.st_size) - offset < Ticket::kSize) {
    return nullptr;
  }
  void* const at = mmap(nullptr, Ticket::kSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd(), off_t(offset));
  if (at == MAP_FAILED) return nullptr;
  std::unique_ptr<MappedTicket> result(new MappedTicket(static_cast<Ticket*>(at), offset));
  if ((*result)->magic != Ticket::kMagic) return nullptr;
  return result;
}

MappedTicket::~MappedTicket() { munmap(ticket_, Ticket::kSize); }

Physical::Physical(int device, DeviceMemory* owner, std::shared_ptr<File> file, std::vector<Extent> extents,
                   uint64_t size)
    : device_(device), owner_(owner), file_(std::move(file)), extents_(std::move(extents)), size_(size) {}

Physical::~Physical() {
  if (owner_ == nullptr) {
    (*ticket_)->foreign.fetch_sub(1);
    return;
  }
  if (ticket_ != nullptr) {
    owner_->exported_.erase(ticket_->offset());
    if ((*ticket_)->foreign.load() != 0) {
      owner_->lingering_.push_back({std::move(ticket_), extents_});
      return;
    }
  }
  owner_->GiveBack(extents_);
}

void Physical::Map(Address address, uint64_t offset, uint64_t size, int protection) const {
  uint64_t skipped = 0;
  for (const Extent& extent : extents_) {
    const uint64_t begin = std::max(offset, skipped), end = std::min(offset + size, skipped + extent.size);
    if (begin < end) {
      void* const at = reinterpret_cast<void*>(address + (begin - offset));
      const off_t from = off_t(extent.offset + (begin - skipped));
      if (mmap(at, end - begin, protection, MAP_SHARED | MAP_FIXED, file_->fd(), from) == MAP_FAILED) {
        Fail("fake CUDA: mapping device memory");
      }
    }
    skipped += extent.size;
  }
}

const MappedTicket* Physical::ticket() {
  if (ticket_ != nullptr) return ticket_.get();
  if (extents_.size() > Ticket::kMostExtents) return nullptr;
  std::unique_ptr<MappedTicket> ticket = owner_->NewTicket();
  (*ticket)->size = size_;
  (*ticket)->extent_count = uint32_t(extents_.size());
  std::copy(extents_.begin(), extents_.end(), (*ticket)->extents);
  ticket_ = std::move(ticket);
  owner_->exported_[ticket_->offset()] = weak_from_this();
  return ticket_.get();
}

DeviceMemory::DeviceMemory(int device, uint64_t total)
    : device_(device), total_(total), free_{{0, total}}, free_bytes_(total), next_ticket_(total) {
  const int fd = memfd_create("fake CUDA device", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, off_t(total)) != 0) Fail("fake CUDA: memfd_create");
  file_ = std::make_shared<File>(fd);
}

uint64_t DeviceMemory::free() {
  Sweep();
  return free_bytes_;
}

std::shared_ptr<Physical> DeviceMemory::Take(uint64_t size) {
  Sweep();
  if (size == 0 || size > free_bytes_) return nullptr;
  size = (size + kGranule - 1) / kGranule * kGranule;
  if (size > free_bytes_) return nullptr;

  // In one piece if any is large enough, else in several: as on a GPU, only the sum counts.
  std::vector<Extent> extents;
  auto fits = std::find_if(free_.begin(), free_.end(), [&](const auto& piece) { return piece.second >= size; });
  for (uint64_t missing = size; missing > 0;) {
    auto piece = fits != free_.end() ? fits : free_.begin();
    const auto [offset, available] = *piece;
    const uint64_t taken = std::min(available, missing);
    extents.push_back({offset, taken});
    free_.erase(piece);
    if (available > taken) free_.emplace(offset + taken, available - taken);
    fits = free_.end();
    missing -= taken;
  }
  free_bytes_ -= size;
  return std::shared_ptr<Physical>(new Physical(device_, this, file_, std::move(extents), size));
}

void DeviceMemory::GiveBack(const std::vector<Extent>& extents) {
  for (Extent extent : extents) {
    free_bytes_ += extent.size;
    if (fallocate(file_->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(extent.offset), off_t(extent.size)) !=
        0) {
      Fail("fake CUDA: fallocate");
    }
    auto next = free_.lower_bound(extent.offset);
    if (next != free_.end() && next->first == extent.offset + extent.size) {
      extent.size += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto previous = std::prev(next);
      if (previous->first + previous->second == extent.offset) {
        previous->second += extent.size;
        continue;
      }
    }
    free_.emplace_hint(next, extent.offset, extent.size);
  }
}

void DeviceMemory::Sweep() {
  for (size_t i = 0; i < lingering_.size();) {
    if ((*lingering_[i].ticket)->foreign.load() != 0) {
      ++i;
      continue;
    }
    GiveBack(lingering_[i].extents);
    std::swap(lingering_[i], lingering_.back());
    lingering_.pop_back();
  }
}

std::unique_ptr<MappedTicket> DeviceMemory::NewTicket() {
  next_ticket_ = (next_ticket_ + Ticket::kSize - 1) / Ticket::kSize * Ticket::kSize;
  const uint64_t offset = next_ticket_;
  next_ticket_ += Ticket::kSize;
  if (ftruncate(file_->fd(), off_t(next_ticket_)) != 0) Fail("fake CUDA: ftruncate");
  Ticket first{};
  first.magic = Ticket::kMagic;
  first.device = uint32_t(device_);
  if (pwrite(file_->fd(), &first, sizeof(first), off_t(offset)) != sizeof(first)) Fail("fake CUDA: pwrite");
  return MappedTicket::Map(*file_, offset);
}

bool DeviceMemory::Owns(const File& file) const {
  struct stat mine, other;
  return fstat(file_->fd(), &mine) == 0 && fstat(file.fd(), &other) == 0 && mine.st_dev == other.st_dev &&
         mine.st_ino == other.st_ino;
}

std::shared_ptr<Physical> DeviceMemory::Import(std::shared_ptr<File> file, uint64_t offset) {
  if (Owns(*file)) {
    const auto found = exported_.find(offset);
    return found == exported_.end() ? nullptr : found->second.lock();
  }
  std::unique_ptr<MappedTicket> ticket = MappedTicket::Map(*file, offset);
  if (ticket == nullptr || !Plausible(*ticket)) return nullptr;
  (*ticket)->foreign.fetch_add(1);
  std::vector<Extent> extents((*ticket)->extents, (*ticket)->extents + (*ticket)->extent_count);
  std::shared_ptr<Physical> result(
      new Physical(device_, nullptr, std::move(file), std::move(extents), (*ticket)->size));
  result->ticket_ = std::move(ticket);
  return result;
}

}  // namespace fake_cuda
