#include <cstring>
#include <memory>

#include <fmt/format.h>

#include "c_api_arguments.h"
#include "gpuledger/allocator.h"
#include "gpuledger/fake_upstream.h"
#include "gpuledger/gpuledger.h"
#include "gpuledger/host_upstream.h"

struct gpuledger_allocator {
  std::unique_ptr<gpuledger::Upstream> upstream;
  std::unique_ptr<gpuledger::CachingAllocator> allocator;
};

namespace gpuledger {
namespace {

Stream StreamOf(const CachingAllocator& allocator, void* stream) {
  return Stream(allocator.upstream().device(), static_cast<CUstream_st*>(stream));
}

DevicePtr AddressOf(const CachingAllocator& allocator, uint64_t address) { return DevicePtr(allocator.upstream().device(), address); }

// Runs body(CachingAllocator&), or says that there is no allocator.
template <class Body>
gpuledger_status With(const gpuledger_allocator* handle, Body body) noexcept {
  return Guard([&]() -> absl::Status { return handle == nullptr ? Missing("allocator") : body(*handle->allocator); });
}

absl::StatusOr<std::unique_ptr<Upstream>> MakeUpstream(std::string_view name) {
  if (name == "host-anonymous") return std::make_unique<HostAnonymousUpstream>();
  if (name == "host-memfd") return std::make_unique<HostMemfdUpstream>();
  if (name == "fake") return std::make_unique<FakeUpstream>();
  return absl::InvalidArgumentError(fmt::format("no upstream is called '{}'; there are host-anonymous, host-memfd and fake", name));
}

}  // namespace
}  // namespace gpuledger

using namespace gpuledger;  // the functions below are C

const char* gpuledger_version(void) noexcept { return GPULEDGER_VERSION; }
const char* gpuledger_role_name(gpuledger_role role) noexcept {
  return role >= 0 && role < kRoleCount ? RoleName(static_cast<Role>(role)).data() : nullptr;
}

gpuledger_status gpuledger_create(const char* upstream, uint64_t cap, gpuledger_allocator** allocator) noexcept {
  return Guard([&]() -> absl::Status {
    if (upstream == nullptr || allocator == nullptr) return Missing("upstream or allocator");
    absl::StatusOr<AllocatorOptions> options = AllocatorOptions::FromEnvironment();
    if (!options.ok()) return options.status();
    if (cap != 0) options->cap = Bytes(cap);
    absl::StatusOr<std::unique_ptr<Upstream>> made = MakeUpstream(upstream);
    if (!made.ok()) return made.status();
    auto handle = std::make_unique<gpuledger_allocator>();
    handle->upstream = std::move(*made);
    handle->allocator = std::make_unique<CachingAllocator>(*handle->upstream, *options);
    *allocator = handle.release();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_destroy(gpuledger_allocator* allocator) noexcept {
  if (allocator == nullptr) return GPULEDGER_OK;
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (const Usage usage = a.ledger().usage(); usage.count > 0) {
      return absl::FailedPreconditionError(fmt::format("{} block(s) with {} are still in use", usage.count, ToString(usage.in_use)));
    }
    if (absl::Status s = a.Settle(); !s.ok()) return s;
    delete allocator;
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_allocate(gpuledger_allocator* allocator, uint64_t size, void* stream, uint64_t* address) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (address == nullptr) return Missing("address");
    absl::StatusOr<DevicePtr> block = a.AllocateRaw(Bytes(size), StreamOf(a, stream), CurrentSite());
    if (block.ok()) *address = block->address();
    return block.status();
  });
}

gpuledger_status gpuledger_free(gpuledger_allocator* allocator, uint64_t address) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    a.Free(AddressOf(a, address));
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_record_stream(gpuledger_allocator* allocator, uint64_t address, void* stream) noexcept {
  return With(allocator, [&](CachingAllocator& a) { return a.RecordStream(AddressOf(a, address), StreamOf(a, stream)); });
}

gpuledger_status gpuledger_transfer(gpuledger_allocator* allocator, uint64_t address, const char* owner, gpuledger_role role) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (owner == nullptr) return Missing("owner");
    absl::StatusOr<Role> to = RoleOf(role);
    if (!to.ok()) return to.status();
    return a.Transfer(AddressOf(a, address), {InternOwner(owner), *to});
  });
}

gpuledger_status gpuledger_settle(gpuledger_allocator* allocator) noexcept {
  return With(allocator, [](CachingAllocator& a) { return a.Settle(); });
}

gpuledger_status gpuledger_release_cached(gpuledger_allocator* allocator, uint64_t* released) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    const Bytes bytes = a.ReleaseCached();
    if (released != nullptr) *released = bytes.count();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_get_usage(const gpuledger_allocator* allocator, const char* owner, gpuledger_role role, gpuledger_usage* usage) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (usage == nullptr) return Missing("usage");
    const absl::StatusOr<Role> its_role = RoleOf(role);
    if (role != -1 && !its_role.ok()) return its_role.status();
    const Ledger& l = a.ledger();
    Usage u;
    if (owner != nullptr) {
      u = role == -1 ? l.usage(InternOwner(owner)) : l.usage(InternOwner(owner), *its_role);
    } else {
      u = role == -1 ? l.usage() : l.usage(*its_role);
    }
    *usage = ToC(u);
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_get_totals(const gpuledger_allocator* allocator, gpuledger_totals* totals) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (totals == nullptr) return Missing("totals");
    const Totals t = a.totals();
    *totals = {t.reserved.count(), t.in_use.count(), t.pending.count(), t.cached.count(), t.cap.count(), t.peak_reserved.count()};
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_open_lineage(gpuledger_allocator* allocator, const char* weight) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (weight == nullptr) return Missing("weight");
    a.ledger().OpenLineage(InternOwner(weight));
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_close_lineage(gpuledger_allocator* allocator, const char* weight) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (weight == nullptr) return Missing("weight");
    a.ledger().CloseLineage(InternOwner(weight));
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_residual(const gpuledger_allocator* allocator, const char* weight, uint64_t* bytes, uint64_t* allocations) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (weight == nullptr || bytes == nullptr) return Missing("weight or bytes");
    absl::StatusOr<Residual> residual = a.ledger().residual(InternOwner(weight));
    if (!residual.ok()) return residual.status();
    *bytes = residual->bytes.count();
    if (allocations != nullptr) *allocations = residual->allocations.size();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_report(const gpuledger_allocator* allocator, char* buffer, size_t size, size_t* needed) noexcept {
  return With(allocator, [&](CachingAllocator& a) -> absl::Status {
    if (buffer == nullptr && size > 0) return Missing("buffer");
    const std::string text = a.Report();
    if (needed != nullptr) *needed = text.size() + 1;
    if (size == 0) return absl::OkStatus();
    const size_t kept = std::min(size - 1, text.size());
    std::memcpy(buffer, text.data(), kept);
    buffer[kept] = '\0';
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_check(const gpuledger_allocator* allocator) noexcept {
  return With(allocator, [](CachingAllocator& a) { return a.CheckInvariants(); });
}
