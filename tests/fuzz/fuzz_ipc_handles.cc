// Handles of another process as bytes: refused with a sentence, or exactly what Encode makes of them. The check at the end is put
// there, or the fuzzer would never get past it.
#include <string>

#include "fuzz_files.h"
#include "ipc_handles.h"

using namespace gpuledger;

namespace {

void Read(std::string_view bytes) {
  const absl::StatusOr<cuda::SharedHandles> read = cuda::Decode(bytes);
  if (read.ok()) {
    Ensure(cuda::Encode(*read) == bytes && read->process > 0 && !read->size().is_zero());
  } else {
    Ensure(read.status().code() == absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(TextOf(data, size));
  Read(bytes);
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(hash >> 8 * i));
  Read(bytes);
  return 0;
}
