// Each case is wrong in one way and must not compile (CMakeLists.txt here runs the compiler on each, and once on none).
#include "gpuledger/allocator.h"

using namespace gpuledger;

void Cases(CachingAllocator& allocator, Ledger& ledger, const ChargeRequest& request, DevicePtr p) {
#if defined(CASE_SIGNED_BYTES)
  Bytes size(-1);
#elif defined(CASE_BYTES_FROM_INTEGER)
  Bytes size = 4096u;
#elif defined(CASE_BYTES_PLUS_INTEGER)
  (void)(1_KiB + 1u);
#elif defined(CASE_REQUESTED_AS_SIZE_CLASS)
  SizeClass size_class = 4_KiB;
#elif defined(CASE_STREAM_FROM_NULL)
  Stream stream(DeviceId{0}, nullptr);
#elif defined(CASE_STREAM_WITHOUT_DEVICE)
  Stream stream;
#elif defined(CASE_DEREFERENCED_DEVICE_POINTER)
  (void)*p;
#elif defined(CASE_OWNER_AS_SITE)
  SiteId site = InternOwner("a");
#elif defined(CASE_COPIED_CHARGE)
  Charge charge = ledger.Debit(request);
  Charge twice = charge;
#elif defined(CASE_OVERWRITTEN_CHARGE)
  Charge charge = ledger.Debit(request);
  charge = ledger.Debit(request);
#elif defined(CASE_FORGOTTEN_CHARGE)
  ledger.Debit(request);
#elif defined(CASE_FORGOTTEN_BUFFER)
  allocator.Allocate(1_KiB, Stream::Default(DeviceId{0}));
#elif defined(CASE_FORGOTTEN_SCOPE)
  OwnerScope("a", Role::kOther);
#elif defined(CASE_SCOPE_ON_THE_HEAP)
  auto* scope = new OwnerScope("a", Role::kOther);
#elif defined(CASE_COPIED_BUFFER)
  Buffer a, b = a;
#elif !defined(CASE_NONE)
#error "no such case"
#endif
  (void)allocator, (void)ledger, (void)request, (void)p;
}
