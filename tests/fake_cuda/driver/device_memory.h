// The memory of a device: one sparse memfd, handed out in granules of 2 MiB.
//
// Behind the memory the file holds tickets, shared records by which other processes find a piece of it (see Ticket).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "address_space.h"
#include "options.h"

namespace fake_cuda {

struct Extent {
  uint64_t offset;
  uint64_t size;
};

// Describes a piece of memory, or an event, to other processes. Lives in the device's file and is mapped by all.
struct Ticket {
  static constexpr uint64_t kMagic = 0x74656b6369742d66;
  static constexpr uint64_t kSize = 1 << 16;
  static constexpr uint32_t kMostExtents = (kSize - 64) / sizeof(Extent);

  uint64_t magic;
  uint64_t size;
  std::atomic<uint32_t> foreign;  // how many other processes' objects use it
  uint32_t device;
  uint32_t extent_count;
  uint32_t reserved;
  std::atomic<uint64_t> recorded;  // of an event: how often it was recorded, and which of these is finished
  std::atomic<uint64_t> finished;
  uint64_t unused[2];
  Extent extents[];
};

// A file descriptor that is closed with its last user.
class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

// A ticket mapped into this process.
class MappedTicket {
 public:
  static std::unique_ptr<MappedTicket> Map(const File& file, uint64_t offset);  // null if there is none
  ~MappedTicket();
  Ticket* operator->() const { return ticket_; }
  uint64_t offset() const { return offset_; }

 private:
  MappedTicket(Ticket* ticket, uint64_t offset) : ticket_(ticket), offset_(offset) {}
  Ticket* const ticket_;
  const uint64_t offset_;
};

class DeviceMemory;

// Some granules of a device, this process's own or another's; the last one who holds it gives them back.
class Physical : public std::enable_shared_from_this<Physical> {
 public:
  ~Physical();
  Physical(const Physical&) = delete;
  Physical& operator=(const Physical&) = delete;

  uint64_t size() const { return size_; }
  int device() const { return device_; }
  bool imported() const { return owner_ == nullptr; }

  // Makes it visible at `address`, which is reserved: its bytes [offset, offset + size).
  void Map(Address address, uint64_t offset, uint64_t size, int protection) const;

  // How another process finds it: null if it has too many pieces for a ticket.
  const MappedTicket* ticket();

 private:
  friend class DeviceMemory;
  Physical(int device, DeviceMemory* owner, std::shared_ptr<File> file, std::vector<Extent> extents, uint64_t size);

  const int device_;
  DeviceMemory* const owner_;
  const std::shared_ptr<File> file_;
  const std::vector<Extent> extents_;
  const uint64_t size_;
  std::unique_ptr<MappedTicket> ticket_;
};

class DeviceMemory {
 public:
  DeviceMemory(int device, uint64_t total);

  uint64_t total() const { return total_; }
  uint64_t free();
  const File& file() const { return *file_; }

  // `size` is rounded up to granules; null: not enough is free.
  std::shared_ptr<Physical> Take(uint64_t size);

  // A new ticket, not yet filled in.
  std::unique_ptr<MappedTicket> NewTicket();

  // What the ticket at `offset` of `file` describes. If the file is this device's own, the piece itself.
  std::shared_ptr<Physical> Import(std::shared_ptr<File> file, uint64_t offset);
  bool Owns(const File& file) const;

 private:
  friend class Physical;
  struct Lingering {
    std::unique_ptr<MappedTicket> ticket;
    std::vector<Extent> extents;
  };
  void GiveBack(const std::vector<Extent>& extents);
  void Sweep();  // takes back what other processes have let go

  const int device_;
  const uint64_t total_;
  std::shared_ptr<File> file_;
  std::map<uint64_t, uint64_t> free_;  // offset -> size
  uint64_t free_bytes_;
  uint64_t next_ticket_;
  std::map<uint64_t, std::weak_ptr<Physical>> exported_;  // by ticket offset
  std::vector<Lingering> lingering_;                      // released here, still used by another process
};

}  // namespace fake_cuda
