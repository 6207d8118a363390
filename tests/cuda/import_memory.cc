// The other process of cuda_ipc_test: `import_memory DEVICE OFFSET` maps what the bytes on its standard input name (their
// number in 4 bytes first), prints the word at the offset, adds 1 to it, and when the input ends prints the word again.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>

#include "gpuledger/cuda_ipc.h"
#include "gpuledger/cuda_stream.h"

namespace {

using gpuledger::CudaStream;
using gpuledger::DevicePtr;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::printf("%s\n", status.ToString().c_str());
  std::exit(3);
}

uint32_t Word(CudaStream& stream, DevicePtr at) {
  uint32_t word = 0;
  Check(stream.Read(at, std::as_writable_bytes(std::span(&word, 1))));
  Check(stream.Wait());
  return word;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const gpuledger::DeviceId device(std::atoi(argv[1]));
  uint32_t count = 0;
  if (std::fread(&count, sizeof(count), 1, stdin) != 1) return 2;
  std::string bytes(count, '\0');
  if (std::fread(bytes.data(), 1, count, stdin) != count) return 2;

  absl::StatusOr<gpuledger::ImportedMemory> memory = gpuledger::ImportedMemory::Import(device, bytes);
  Check(memory.status());
  absl::StatusOr<std::unique_ptr<CudaStream>> stream = CudaStream::Create(device);
  Check(stream.status());
  const DevicePtr at = memory->base() + gpuledger::Bytes(std::strtoull(argv[2], nullptr, 10));
  const uint32_t word = Word(**stream, at);
  std::printf("%u\n", word);
  Check((*stream)->Fill(at, word + 1, 1));
  Check((*stream)->Wait());
  std::printf("%u\n", Word(**stream, at));
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  std::printf("%u\n", Word(**stream, at));
  return 0;
}
