// How a piece of device memory travels to another process: as a descriptor of the device's file that stands at a
// ticket.
#pragma once

#include <memory>

#include "device_memory.h"

namespace fake_cuda {

// A new descriptor, whose owner is the caller; -1: none is left.
int ExportTicket(const DeviceMemory& memory, uint64_t ticket_offset);

// What such a descriptor stands at. The caller keeps the descriptor.
struct ReceivedTicket {
  std::shared_ptr<File> file;  // null: it is no such descriptor
  uint64_t offset = 0;
  int device = 0;  // where the exporter has it
};
ReceivedTicket ReceiveTicket(int fd);

// The same for a file of another process of this user.
ReceivedTicket OpenTicket(int pid, int fd, uint64_t offset);

}  // namespace fake_cuda
