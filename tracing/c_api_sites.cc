#include "gpuledger/c_status.h"
#include "gpuledger/gpuledger_tracing.h"
#include "gpuledger/sites.h"

using namespace gpuledger;  // NOLINT(google-build-using-namespace): the C boundary of this very library

gpuledger_status gpuledger_set_stacks(int native, int python) noexcept {
  return Guard([&] {
    SetStacks(native != 0, python != 0);
    return absl::OkStatus();
  });
}
