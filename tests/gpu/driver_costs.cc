// What each driver call costs here, and each call of the upstream: medians and 99th percentiles, as JSON.
//
//   driver_costs FILE.json
//
// The driver is called directly, one function at a time; beside it stand the costs that FakeUpstream models.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "driver_api.h"
#include "gpuledger/cuda_upstream.h"
#include "gpuledger/fake_upstream.h"

namespace gpuledger::gpu {
namespace {

using cuda::AccessDescription;
using cuda::Address;
using cuda::AllocationProperties;
using cuda::Memory;

// Calls a function of libcuda.so.1 by its exported name; ends the program, with the error, if it fails.
class Driver {
 public:
  template <class... Arguments>
  void operator()(const char* exported, Arguments... arguments) const {
    const cuda::Result result = Try(exported, arguments...);
    if (result == cuda::kSuccess) return;
    std::fprintf(stderr, "%s failed with error %d\n", exported, static_cast<int>(result));
    std::exit(1);
  }
  template <class... Arguments>
  cuda::Result Try(const char* exported, Arguments... arguments) const {
    auto* const function = reinterpret_cast<cuda::Result (*)(Arguments...)>(dlsym(library_, exported));
    if (function == nullptr) {
      std::fprintf(stderr, "libcuda.so.1 has no %s\n", exported);
      std::exit(1);
    }
    return function(arguments...);
  }
  [[nodiscard]] bool loaded() const { return library_ != nullptr; }

 private:
  void* const library_ = dlopen("libcuda.so.1", RTLD_NOW);
};

double Nanoseconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
}

class Table {
 public:
  void Add(const std::string& call, Bytes size, std::vector<double> samples, const std::string& note = "") {
    std::sort(samples.begin(), samples.end());
    const double median = samples[samples.size() / 2], p99 = samples[samples.size() * 99 / 100];
    rows_ += fmt::format(
        "{}\n    {{\"call\": \"{}\", \"bytes\": {}, \"samples\": {}, \"median_ns\": {:.0f}, \"p99_ns\": {:.0f}, "
        "\"note\": \"{}\"}}",
        rows_.empty() ? "" : ",", call, size.count(), samples.size(), median, p99, note);
  }
  [[nodiscard]] const std::string& rows() const { return rows_; }

 private:
  std::string rows_;
};

void MeasureHandles(const Driver& driver, Table& table, Bytes size, size_t count) {
  const AllocationProperties properties = {
      cuda::kAllocationTypePinned, cuda::kHandleTypeNone, {cuda::kLocationTypeDevice, 0}, nullptr, {0, 0, 0, {}}};
  const AccessDescription access = {{cuda::kLocationTypeDevice, 0}, cuda::kAccessReadWrite};
  Address base = 0;
  driver("cuMemAddressReserve", &base, (size * count).count(), size_t{2} << 20, Address{0}, uint64_t{0});
  std::vector<Memory> handles(count);
  for (const bool measured : {false, true}) {  // the first time only warms up
    std::vector<double> create, map, set_access, unmap, release;
    for (size_t i = 0; i < count; ++i) {
      const Address at = base + i * size.count();
      create.push_back(
          Nanoseconds([&] { driver("cuMemCreate", &handles[i], size.count(), &properties, uint64_t{0}); }));
      map.push_back(Nanoseconds([&] { driver("cuMemMap", at, size.count(), size_t{0}, handles[i], uint64_t{0}); }));
      set_access.push_back(Nanoseconds([&] { driver("cuMemSetAccess", at, size.count(), &access, size_t{1}); }));
    }
    for (size_t i = 0; i < count; ++i) {
      unmap.push_back(Nanoseconds([&] { driver("cuMemUnmap", base + i * size.count(), size.count()); }));
      release.push_back(Nanoseconds([&] { driver("cuMemRelease", handles[i]); }));
    }
    if (!measured) continue;
    table.Add("cuMemCreate", size, create);
    table.Add("cuMemMap", size, map);
    table.Add("cuMemSetAccess", size, set_access);
    table.Add("cuMemUnmap", size, unmap);
    table.Add("cuMemRelease", size, release);
  }
  driver("cuMemAddressFree", base, (size * count).count());
}

// One call over many handles, per handle.
void MeasureOneCallForMany(const Driver& driver, Table& table, size_t count) {
  constexpr Bytes kSize = Bytes(uint64_t{2} << 20);
  const AllocationProperties properties = {
      cuda::kAllocationTypePinned, cuda::kHandleTypeNone, {cuda::kLocationTypeDevice, 0}, nullptr, {0, 0, 0, {}}};
  const AccessDescription access = {{cuda::kLocationTypeDevice, 0}, cuda::kAccessReadWrite};
  const size_t all = (kSize * count).count();
  std::vector<double> set_access, unmap;
  for (int round = 0; round < 10; ++round) {
    Address base = 0;
    driver("cuMemAddressReserve", &base, all, size_t{2} << 20, Address{0}, uint64_t{0});
    std::vector<Memory> handles(count);
    for (size_t i = 0; i < count; ++i) {
      driver("cuMemCreate", &handles[i], kSize.count(), &properties, uint64_t{0});
      driver("cuMemMap", base + i * kSize.count(), kSize.count(), size_t{0}, handles[i], uint64_t{0});
    }
    const double per_handle = 1.0 / static_cast<double>(count);
    set_access.push_back(Nanoseconds([&] { driver("cuMemSetAccess", base, all, &access, size_t{1}); }) * per_handle);
    unmap.push_back(Nanoseconds([&] { driver("cuMemUnmap", base, all); }) * per_handle);
    for (const Memory handle : handles) driver("cuMemRelease", handle);
    driver("cuMemAddressFree", base, all);
  }
  const std::string note = fmt::format("one call over {} handles, per handle", count);
  table.Add("cuMemSetAccess", kSize, set_access, note);
  table.Add("cuMemUnmap", kSize, unmap, note);
}

// A short call, in groups so that the clock does not count.
void MeasureShort(Table& table, const std::string& name, const std::function<void()>& call) {
  constexpr int kGroup = 32;
  std::vector<double> samples;
  for (int i = 0; i < 1000; ++i) {
    const double group = Nanoseconds([&] {
      for (int k = 0; k < kGroup; ++k) call();
    });
    if (i >= 50) samples.push_back(group / kGroup);
  }
  table.Add(name, Bytes(), samples, "mean of groups of 32");
}

void MeasureEvents(const Driver& driver, Table& table) {
  CUstream_st* stream = nullptr;
  CUstream_st* other = nullptr;
  cuda::Event event = nullptr;
  driver("cuStreamCreate", &stream, 1u);
  driver("cuStreamCreate", &other, 1u);
  driver("cuEventCreate", &event, cuda::kEventDisableTiming);
  MeasureShort(table, "cuEventRecord", [&] { driver("cuEventRecord", event, stream); });
  driver("cuStreamSynchronize", stream);
  MeasureShort(table, "cuEventQuery", [&] { driver.Try("cuEventQuery", event); });
  MeasureShort(table, "cuEventSynchronize", [&] { driver("cuEventSynchronize", event); });
  MeasureShort(table, "cuStreamWaitEvent", [&] { driver("cuStreamWaitEvent", other, event, 0u); });
  unsigned long long id = 0;
  MeasureShort(table, "cuStreamGetId", [&] { driver("cuStreamGetId", stream, &id); });
  cuda::CaptureStatus status = cuda::kCaptureNone;
  MeasureShort(table, "cuStreamIsCapturing", [&] { driver("cuStreamIsCapturing", stream, &status); });
  size_t free = 0, total = 0;
  MeasureShort(table, "cuMemGetInfo", [&] { driver("cuMemGetInfo_v2", &free, &total); });
  driver("cuEventDestroy_v2", event);
  driver("cuStreamDestroy_v2", stream);
  driver("cuStreamDestroy_v2", other);
}

// The upstream's calls, as an allocator meets them. False, with the error said, if one fails.
bool MeasureUpstream(Table& table) {
  const auto opened = CudaUpstream::Open(DeviceId(0));
  if (!opened.ok()) {
    std::fprintf(stderr, "%s\n", opened.status().ToString().c_str());
    return false;
  }
  CudaUpstream& upstream = **opened;
  const Bytes size = upstream.granularity();
  std::vector<double> reserve, unreserve, create, release, map, unmap, record, poll, wait, stream_wait;
  const Stream stream = Stream::Default(DeviceId(0));
  bool good = true;
  for (int i = 0; i < 550 && good; ++i) {
    const bool warm = i >= 50;
    const auto timed = [&](std::vector<double>& samples, const std::function<bool()>& call) {
      const double took = Nanoseconds([&] { good = call() && good; });
      if (warm) samples.push_back(took);
    };
    absl::StatusOr<Range> range = absl::UnknownError("");
    absl::StatusOr<HandleId> handle = absl::UnknownError("");
    absl::StatusOr<FenceId> fence = absl::UnknownError("");
    timed(reserve, [&] { return (range = upstream.Reserve(size * 512u)).ok(); });
    timed(create, [&] { return (handle = upstream.CreateHandle(size)).ok(); });
    if (!good) break;
    timed(map, [&] { return upstream.Map(range->base, *handle).ok(); });
    timed(record, [&] { return (fence = upstream.RecordFence(stream)).ok(); });
    timed(stream_wait, [&] { return upstream.MakeStreamWait(stream, *fence).ok(); });
    timed(poll, [&] { return upstream.PollFence(*fence).ok(); });
    good = upstream.WaitFence(*fence).ok() && good;
    timed(wait, [&] { return upstream.WaitFence(*fence).ok(); });
    upstream.DropFence(*fence);
    timed(unmap, [&] { return upstream.Unmap(range->base, *handle).ok(); });
    timed(release, [&] { return upstream.ReleaseHandle(*handle).ok(); });
    timed(unreserve, [&] { return upstream.Unreserve(*range).ok(); });
  }
  if (!good) {
    std::fprintf(stderr, "a call of the upstream failed\n");
    return false;
  }
  table.Add("Reserve", size * 512u, reserve);
  table.Add("Unreserve", size * 512u, unreserve);
  table.Add("CreateHandle", size, create);
  table.Add("ReleaseHandle", size, release);
  table.Add("Map", size, map);
  table.Add("Unmap", size, unmap);
  table.Add("RecordFence", Bytes(), record);
  table.Add("PollFence", Bytes(), poll);
  table.Add("WaitFence", Bytes(), wait, "of one that has passed");
  table.Add("MakeStreamWait", Bytes(), stream_wait);
  return true;
}

std::string Model() {
  const FakeCosts costs;
  return fmt::format(
      "{{\"Reserve\": {}, \"Unreserve\": {}, \"CreateHandle\": {}, \"ReleaseHandle\": {}, \"Map\": {}, \"Unmap\": {}, "
      "\"RecordFence\": {}, \"PollFence\": {}, \"WaitFence\": {}, \"MakeStreamWait\": {}}}",
      costs.reserve, costs.unreserve, costs.create, costs.release, costs.map, costs.unmap, costs.record_fence,
      costs.poll_fence, costs.wait_fence, costs.stream_wait);
}

int Run(const char* path) {
  const Driver driver;
  if (!driver.loaded() || driver.Try("cuInit", 0u) != cuda::kSuccess) {
    std::fprintf(stderr, "skipped: no usable CUDA device\n");
    return 77;
  }
  cuda::Context context = nullptr;
  char name[100] = {};
  int version = 0;
  driver("cuDriverGetVersion", &version);
  driver("cuDeviceGetName", &name[0], 100, 0);
  driver("cuDevicePrimaryCtxRetain", &context, 0);
  driver("cuCtxPushCurrent_v2", context);
  Table table;
  MeasureHandles(driver, table, Bytes(uint64_t{2} << 20), 256);
  MeasureHandles(driver, table, Bytes(uint64_t{32} << 20), 32);
  MeasureHandles(driver, table, Bytes(uint64_t{128} << 20), 8);
  MeasureOneCallForMany(driver, table, 512);
  MeasureEvents(driver, table);
  if (!MeasureUpstream(table)) return 1;
  std::FILE* const out = std::fopen(path, "w");
  if (out == nullptr) {
    std::fprintf(stderr, "%s cannot be written\n", path);
    return 1;
  }
  fmt::print(out, "{{\n  \"device\": \"{}\",\n  \"driver\": {},\n  \"model_ns\": {},\n  \"rows\": [{}\n  ]\n}}\n", name,
             version, Model(), table.rows());
  return std::fclose(out) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace gpuledger::gpu

int main(int argc, char** argv) {
  if (argc == 2) return gpuledger::gpu::Run(argv[1]);
  std::fprintf(stderr, "usage: driver_costs FILE.json\n");
  return 2;
}
