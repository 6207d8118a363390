#include "ipc_handles.h"

#include <sys/syscall.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

namespace gpuledger::cuda {
namespace {

constexpr std::string_view kMagic = "gplgIPC1";
constexpr size_t kHead = 8 + 4 + 4 + 8, kEach = 4 + 8 + 8, kTail = 8;
constexpr uint64_t kUnit = uint64_t{2} << 20;        // every handle is a multiple of it
constexpr uint64_t kAllAddresses = uint64_t{1} << 57;  // more than any device addresses

// The numbers of the two calls are the same on all architectures; the C library's headers may be older than they are.
constexpr long kPidfdOpen = 434, kPidfdGetfd = 438;

template <class Value>
void Put(std::string& bytes, Value value) {
  for (size_t i = 0; i < sizeof(Value); ++i) bytes.push_back(static_cast<char>(value >> 8 * i));
}

template <class Value>
Value Get(std::string_view& bytes) {
  Value value = 0;
  for (size_t i = 0; i < sizeof(Value); ++i) value |= Value{static_cast<unsigned char>(bytes[i])} << 8 * i;
  bytes.remove_prefix(sizeof(Value));
  return value;
}

uint64_t Fnv1a(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

absl::Status NoHandles(std::string_view why) {
  return absl::InvalidArgumentError(fmt::format(
      "ImportedMemory::Import: these bytes are not what CudaUpstream::Export gave: {}; pass them on unchanged, between processes "
      "with the same gpuledger",
      why));
}

absl::Status Refused(int error, std::string_view call, int32_t process) {
  const std::string what = fmt::format("ImportedMemory::Import: {} of process {}: {}", call, process, std::strerror(error));
  switch (error) {
    case ESRCH:
      return absl::NotFoundError(what + "; the process has ended, or has another number here (containers that exchange "
                                        "memory need one pid namespace)");
    case EBADF:
      return absl::NotFoundError(what + "; the process has given the memory back: it has to keep it until it was imported");
    case EPERM:
      return absl::PermissionDeniedError(
          what + "; the kernel lets a process take descriptors only of one that it may trace: run both as one user, set "
                 "kernel.yama.ptrace_scope=0 or have the exporting process call prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY), and "
                 "in a container allow it (--cap-add=SYS_PTRACE)");
    case ENOSYS:
      return absl::UnimplementedError(what + "; memory is shared between processes on Linux 5.6 or later");
    default:
      return absl::InternalError(what);
  }
}

}  // namespace

Bytes SharedHandles::size() const {
  Bytes sum;
  for (const SharedHandle& handle : handles) sum += handle.size;
  return sum;
}

std::string Encode(const SharedHandles& shared) {
  std::string bytes(kMagic);
  bytes.reserve(kHead + shared.handles.size() * kEach + kTail);
  Put(bytes, static_cast<uint32_t>(shared.process));
  Put(bytes, static_cast<uint32_t>(shared.handles.size()));
  Put(bytes, shared.started);
  for (const SharedHandle& handle : shared.handles) {
    Put(bytes, static_cast<uint32_t>(handle.descriptor));
    Put(bytes, handle.number);
    Put(bytes, handle.size.count());
  }
  Put(bytes, Fnv1a(bytes));
  return bytes;
}

absl::StatusOr<SharedHandles> Decode(std::string_view bytes) {
  constexpr size_t kVersionAt = kMagic.size() - 1;
  if (bytes.substr(0, kVersionAt) != kMagic.substr(0, kVersionAt)) return NoHandles("they begin otherwise");
  if (bytes.size() < kHead + kTail) return NoHandles("they end too early");
  if (bytes[kVersionAt] != kMagic[kVersionAt]) return NoHandles("they are of another version");
  std::string_view tail = bytes.substr(bytes.size() - kTail);
  if (Get<uint64_t>(tail) != Fnv1a(bytes.substr(0, bytes.size() - kTail))) return NoHandles("they were changed or cut");
  std::string_view rest = bytes.substr(kMagic.size());
  SharedHandles shared;
  shared.process = static_cast<int32_t>(Get<uint32_t>(rest));
  const uint64_t count = Get<uint32_t>(rest);
  shared.started = Get<uint64_t>(rest);
  if (shared.process <= 0) return NoHandles("their process has no number");
  if (count == 0 || rest.size() != count * kEach + kTail) return NoHandles("their number is not what they say");
  uint64_t total = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const auto descriptor = static_cast<int32_t>(Get<uint32_t>(rest));
    const auto number = Get<uint64_t>(rest), size = Get<uint64_t>(rest);
    if (descriptor < 0 || size == 0 || size % kUnit != 0 || size > kAllAddresses - total) return NoHandles("a handle is none");
    total += size;
    shared.handles.push_back({descriptor, number, Bytes(size)});
  }
  return shared;
}

uint64_t StartOf(int32_t process) {
  std::FILE* const file = std::fopen(fmt::format("/proc/{}/stat", process).c_str(), "re");
  if (file == nullptr) return 0;
  char text[1024] = {};
  const size_t read = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  // The second field is the program's name in parentheses, with whatever in it; the start is the 22nd.
  std::string_view fields(text, read);
  const size_t name_end = fields.rfind(')');
  if (name_end == std::string_view::npos) return 0;
  fields.remove_prefix(name_end + 1);
  for (int field = 3; field < 22; ++field) {
    const size_t space = fields.find(' ', 1);
    if (space == std::string_view::npos) return 0;
    fields.remove_prefix(space);
  }
  return std::strtoull(fields.data(), nullptr, 10);
}

absl::StatusOr<std::vector<Descriptor>> TakeDescriptors(const SharedHandles& shared) {
  const Descriptor process(static_cast<int>(syscall(kPidfdOpen, shared.process, 0)));
  if (!process.valid()) return Refused(errno, "pidfd_open", shared.process);
  // Asked for with the process in hand: what has its number now keeps it.
  const uint64_t started = StartOf(shared.process);
  if (shared.started != 0 && started != 0 && started != shared.started) return Refused(ESRCH, "pidfd_open", shared.process);
  std::vector<Descriptor> taken;
  taken.reserve(shared.handles.size());
  for (const SharedHandle& handle : shared.handles) {
    taken.emplace_back(static_cast<int>(syscall(kPidfdGetfd, process.get(), handle.descriptor, 0)));
    if (!taken.back().valid()) return Refused(errno, "pidfd_getfd", shared.process);
  }
  return taken;
}

}  // namespace gpuledger::cuda
