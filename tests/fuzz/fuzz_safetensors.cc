// A whole safetensors file: refused with a sentence, or every tensor of it can be read and lies where it says.
#include <algorithm>
#include <vector>

#include "fuzz_files.h"
#include "gpuledger/safetensors.h"

using namespace gpuledger;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile memory(TextOf(data, size));
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(memory.path());
  if (!file.ok()) {
    Ensure(file.status().code() == absl::StatusCode::kInvalidArgument && file.status().message().size() < 2000);
    return 0;
  }
  uint64_t sum = 0;
  for (const TensorInfo& tensor : file->tensors()) {
    Ensure(file->Find(tensor.name) == &tensor);
    std::vector<std::byte> out(tensor.size.count());
    Ensure(file->Read(tensor, Bytes(), out).ok());
    Ensure(std::equal(out.begin(), out.end(), reinterpret_cast<const std::byte*>(data) + tensor.begin));
    sum += tensor.size.count();
  }
  Ensure(sum <= size);
  return 0;
}
