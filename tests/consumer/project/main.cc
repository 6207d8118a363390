// Buys memory, charges it to an owner, quantizes into it, and lets it go: all from the installed headers.
#include <cstdio>
#include <vector>

#include <gpuledger/allocator.h>
#include <gpuledger/codec.h>
#include <gpuledger/fake_upstream.h>

using namespace gpuledger;

int main() {
  FakeUpstream upstream;
  CachingAllocator allocator(upstream, AllocatorOptions{});
  const OwnerId owner = InternOwner("consumer/weight");
  {
    const OwnerScope scope("consumer/weight", Role::kQuantized);
    absl::StatusOr<Buffer> buffer = allocator.Allocate(64_KiB, Stream::Default(upstream.device()), SiteHere());
    if (!buffer.ok()) {
      std::fprintf(stderr, "%s\n", buffer.status().ToString().c_str());
      return 1;
    }
    if (allocator.ledger().usage(owner).in_use != 64_KiB) return 2;
  }
  if (!allocator.ledger().usage(owner).in_use.is_zero() || !allocator.CheckInvariants().ok()) return 3;

  const std::vector<float> weights = {-1.0f, 0.0f, 0.5f, 1.0f};
  const FourBitFormat nf4;
  std::vector<uint8_t> packed(PackedBytes(weights.size()).count());
  std::vector<float> absmax(BlockCount(weights.size(), nf4.block));
  Quantize4Bit(nf4, Dialect::kCpu, FloatType::kFloat32, weights.data(), weights.size(), packed, absmax);
  if (packed[0] != 0x07 || (packed[1] & 15) != 15 || absmax[0] != 1.0f) return 4;
  std::printf("C++ consumer: owner charged and credited, four weights in %zu bytes\n", packed.size());
  return 0;
}
