#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "gpuledger/c_status.h"
#include "gpuledger/gpuledger_tracing.h"
#include "gpuledger/sites.h"
#include "gpuledger/symbolise.h"
#include "leak_groups.h"

using namespace gpuledger;  // NOLINT(google-build-using-namespace): the C boundary of this very library

namespace {

std::string LineOf(const TraceFrame& frame) {
  if (frame.line > 0) return fmt::format("{} {}:{}\n", frame.function, frame.file, frame.line);
  return fmt::format("{} {}+{:#x}\n", frame.function.empty() ? "??" : frame.function, frame.file, frame.offset);
}

}  // namespace

gpuledger_status gpuledger_set_stacks(int native, int python) noexcept {
  return Guard([&] {
    SetStacks(native != 0, python != 0);
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_take_site(uint32_t* site) noexcept {
  return Guard([&]() -> absl::Status {
    if (site == nullptr) return absl::InvalidArgumentError("site is NULL");
    *site = TakeSite().value();
    return absl::OkStatus();
  });
}

gpuledger_status gpuledger_site_text(uint32_t site, char* buffer, size_t size, size_t* needed) noexcept {
  return Guard([&]() -> absl::Status {
    if (buffer == nullptr && size > 0) return absl::InvalidArgumentError("buffer is NULL");
    if (std::vector<SiteFrame> taken; !FramesOf(SiteId(site), &taken)) return absl::NotFoundError(fmt::format("{} is no call stack of this process", site));
    std::vector<TraceFrame> frames = NamesOfThisProcess().stack(SiteId(site));
    Symbolise(frames);
    std::string text;
    for (const TraceFrame& frame : frames) text += LineOf(frame);
    if (needed != nullptr) *needed = text.size() + 1;
    if (size == 0) return absl::OkStatus();
    const size_t kept = std::min(size - 1, text.size());
    std::memcpy(buffer, text.data(), kept);
    buffer[kept] = '\0';
    return absl::OkStatus();
  });
}
