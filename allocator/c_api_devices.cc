// The balance of each device, for C.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "c_api_arguments.h"
#include "gpuledger/process.h"

namespace gpuledger {
namespace {

bool IsOn(LedgerKeeper& keeper, std::string_view upstream, int32_t number) {
  return keeper.memory_name() == upstream && keeper.ledger().device() == DeviceId(number);
}

// Names of upstreams are literals, and those of owners are whole strings: both end in a zero byte and stay.
std::vector<gpuledger_device> Devices() {
  std::vector<gpuledger_device> devices;
  ForEachKeeper([&devices](LedgerKeeper& keeper) {
    const auto is_its = [&keeper](const gpuledger_device& d) { return IsOn(keeper, d.upstream, d.number); };
    auto device = std::find_if(devices.begin(), devices.end(), is_its);
    if (device == devices.end()) {
      const MemoryInfo memory = keeper.memory_info();
      device = devices.insert(device, {keeper.memory_name().data(), keeper.ledger().device().value(), memory.total.count(),
                                       memory.free.count(), 0, 0, 0, 0, 0});
    }
    const Totals totals = keeper.totals();
    device->reserved += totals.reserved.count(), device->in_use += totals.in_use.count();
    device->pending += totals.pending.count(), device->cached += totals.cached.count();
  });
  return devices;
}

void Add(gpuledger_usage& sum, const gpuledger_usage& u) {
  sum.in_use += u.in_use, sum.requested += u.requested, sum.pending += u.pending;
  sum.peak += u.peak, sum.at_device_peak += u.at_device_peak, sum.charged_ever += u.charged_ever;
  sum.count += u.count, sum.pending_count += u.pending_count;
}

}  // namespace
}  // namespace gpuledger

using namespace gpuledger;  // the functions below are C

gpuledger_status gpuledger_process_devices(gpuledger_device* devices, uint64_t room, uint64_t* count) noexcept {
  return Guard([&]() -> absl::Status {
    if (count == nullptr || (room != 0 && devices == nullptr)) return Missing("devices or count");
    const std::vector<gpuledger_device> all = Devices();
    std::copy_n(all.begin(), std::min<size_t>(room, all.size()), devices);
    *count = all.size();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_process_owners(const char* upstream, int32_t number, gpuledger_owner_usage* owners, uint64_t room,
                                          uint64_t* count) noexcept {
  return Guard([&]() -> absl::Status {
    if (upstream == nullptr || count == nullptr || (room != 0 && owners == nullptr)) return Missing("upstream, owners or count");
    std::map<std::pair<OwnerId, Role>, gpuledger_usage> sums;
    bool any = false;
    ForEachKeeper([&](LedgerKeeper& keeper) {
      if (!IsOn(keeper, upstream, number)) return;
      any = true;
      for (const OwnerUsage& o : keeper.ledger().usage_by_owner()) Add(sums[{o.payer.owner, o.payer.role}], ToC(o.usage));
    });
    if (!any) return absl::NotFoundError(fmt::format("no ledger of this process is of device {} of {}", number, upstream));
    std::vector<gpuledger_owner_usage> all;
    for (const auto& [payer, usage] : sums) {
      if (usage.in_use != 0) all.push_back({OwnerName(payer.first).data(), static_cast<gpuledger_role>(payer.second), usage});
    }
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.usage.in_use > b.usage.in_use; });
    std::copy_n(all.begin(), std::min<size_t>(room, all.size()), owners);
    *count = all.size();
    return absl::OkStatus();
  });
}
