#include "shared_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

namespace fake_cuda {
namespace {

ReceivedTicket Check(std::shared_ptr<File> file, uint64_t offset) {
  const std::unique_ptr<MappedTicket> ticket = MappedTicket::Map(*file, offset);
  if (ticket == nullptr) return {};
  return {std::move(file), offset, int((*ticket)->device)};
}

}  // namespace

int ExportTicket(const DeviceMemory& memory, uint64_t ticket_offset) {
  // Opened anew, not duplicated: each descriptor has a position of its own, and sending it on keeps that.
  const int fd = open(fmt::format("/proc/self/fd/{}", memory.file().fd()).c_str(), O_RDWR | O_CLOEXEC);
  if (fd >= 0) lseek(fd, off_t(ticket_offset), SEEK_SET);
  return fd;
}

ReceivedTicket ReceiveTicket(int fd) {
  const off_t offset = lseek(fd, 0, SEEK_CUR);
  if (offset <= 0) return {};
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return {};
  return Check(std::make_shared<File>(own), uint64_t(offset));
}

ReceivedTicket OpenTicket(int pid, int fd, uint64_t offset) {
  const int own = open(fmt::format("/proc/{}/fd/{}", pid, fd).c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0) return {};
  return Check(std::make_shared<File>(own), offset);
}

}  // namespace fake_cuda
