// Sizes as a user types them: refused with a sentence, or a number of bytes.
#include "fuzz_files.h"
#include "gpuledger/allocator.h"

using namespace gpuledger;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::StatusOr<Bytes> bytes = ParseBytes(TextOf(data, size));
  Ensure(bytes.ok() || bytes.status().code() == absl::StatusCode::kInvalidArgument);
  return 0;
}
