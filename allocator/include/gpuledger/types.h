// gpuledger/types.h - every noun of the project, before any algorithm. Read this header first.
//
// A byte on a device is bought from an *upstream* as part of a *handle* (physical memory, a multiple of 2 MiB),
// mapped into a *range* of reserved addresses. A range is cut into *blocks*; a block is in use, pending (freed, but
// work that may touch it is still queued on a stream) or cached. Blocks in use are paid for by an *owner*.
// The equations that hold at every instant, per device:
//
//   reserved = in_use + pending + cached                      (CachingAllocator::CheckInvariants)
//   in_use   = sum of charged(owner, role)                    (Ledger::CheckInvariants)
//   charged  = requested + rounding                           (SizeClass)
//
// Sizes, devices, streams and addresses are types, and arithmetic that makes no sense does not compile
// (tests/allocator/must_not_compile.cc). Everything here is a value: thread-safe, no allocation, no device call.
#pragma once

#include <bit>
#include <compare>
#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

// The library hides every symbol that does not say this.
#define GPULEDGER_EXPORT [[gnu::visibility("default")]]

struct CUstream_st;  // what a cudaStream_t / CUstream points to; CUDA itself is not included here

namespace gpuledger {

// Prints `message` to stderr and aborts. For broken invariants and misuse, never for bad input.
[[noreturn]] GPULEDGER_EXPORT void Die(std::string_view message) noexcept;

// A size in bytes: unsigned, never converted implicitly, and overflow is always fatal.
class Bytes {
 public:
  constexpr Bytes() = default;
  template <std::unsigned_integral T>
  constexpr explicit Bytes(T count) : count_(count) {}

  [[nodiscard]] constexpr uint64_t count() const { return count_; }
  [[nodiscard]] constexpr bool is_zero() const { return count_ == 0; }
  static constexpr Bytes Max() { return Bytes(std::numeric_limits<uint64_t>::max()); }

  constexpr Bytes& operator+=(Bytes other) {
    if (other.count_ > std::numeric_limits<uint64_t>::max() - count_) Die("Bytes: addition overflows 64 bits");
    count_ += other.count_;
    return *this;
  }
  constexpr Bytes& operator-=(Bytes other) {
    if (other.count_ > count_) Die("Bytes: subtraction goes below zero");
    count_ -= other.count_;
    return *this;
  }
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return a += b; }
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return a -= b; }
  template <std::unsigned_integral T>
  friend constexpr Bytes operator*(Bytes a, T times) {
    if (times != 0 && a.count_ > std::numeric_limits<uint64_t>::max() / times) {
      Die("Bytes: multiplication overflows 64 bits");
    }
    return Bytes(a.count_ * static_cast<uint64_t>(times));
  }
  friend constexpr uint64_t operator/(Bytes a, Bytes b) {
    if (b.count_ == 0) Die("Bytes: division by zero");
    return a.count_ / b.count_;
  }
  template <std::unsigned_integral T>
  friend constexpr Bytes operator/(Bytes a, T parts) {
    if (parts == 0) Die("Bytes: division by zero");
    return Bytes(a.count_ / static_cast<uint64_t>(parts));
  }
  friend constexpr Bytes operator%(Bytes a, Bytes b) {
    if (b.count_ == 0) Die("Bytes: division by zero");
    return Bytes(a.count_ % b.count_);
  }
  friend constexpr bool operator==(Bytes a, Bytes b) { return a.count_ == b.count_; }
  friend constexpr auto operator<=>(Bytes a, Bytes b) { return a.count_ <=> b.count_; }

  // The smallest multiple of `unit` (not zero) that is at least this size. Fatal on overflow.
  [[nodiscard]] constexpr Bytes RoundUpTo(Bytes unit) const {
    const Bytes rest = *this % unit;
    return rest.is_zero() ? *this : *this + (unit - rest);
  }
  [[nodiscard]] constexpr Bytes RoundDownTo(Bytes unit) const { return *this - *this % unit; }

 private:
  uint64_t count_ = 0;
};

inline namespace literals {
consteval Bytes operator""_B(unsigned long long n) { return Bytes(n); }
consteval Bytes operator""_KiB(unsigned long long n) { return Bytes(n) * 1024u; }
consteval Bytes operator""_MiB(unsigned long long n) { return Bytes(n) * (1024u * 1024u); }
consteval Bytes operator""_GiB(unsigned long long n) { return Bytes(n) * (1024u * 1024u * 1024u); }
consteval Bytes operator""_TiB(unsigned long long n) { return Bytes(n) * (uint64_t{1} << 40); }
}  // namespace literals

// The exact figure, "1,572,864 B".
GPULEDGER_EXPORT std::string ToString(Bytes size);

// A distinct integer: compared and hashed, never computed with, and never defaulted.
template <class Tag, class Value>
class Id {
 public:
  constexpr explicit Id(Value value) : value_(value) {}
  [[nodiscard]] constexpr Value value() const { return value_; }
  friend constexpr bool operator==(Id a, Id b) { return a.value_ == b.value_; }
  friend constexpr auto operator<=>(Id a, Id b) { return a.value_ <=> b.value_; }
  template <class H>
  friend H AbslHashValue(H state, Id id) {
    return H::combine(std::move(state), id.value_);
  }

 private:
  Value value_;
};

using DeviceId = Id<struct DeviceTag, int32_t>;            // index of a device within its upstream's kind
using OwnerId = Id<struct OwnerTag, uint32_t>;             // interned owner path (owner.h)
using SiteId = Id<struct SiteTag, uint32_t>;               // interned call stack; kNoSite if none was taken
using ScopeId = Id<struct ScopeTag, uint32_t>;             // a transient owner scope (owner.h), one number each; 0: none
using ThreadId = Id<struct ThreadTag, uint32_t>;           // dense, given to each thread when it is first asked for
using LedgerId = Id<struct LedgerTag, uint32_t>;           // dense, one number for each ledger of the process
using AllocationId = Id<struct AllocationTag, uint64_t>;   // unique in one process, never reused
using HandleId = Id<struct HandleTag, uint64_t>;           // one piece of physical memory of one upstream
using FenceId = Id<struct FenceTag, uint64_t>;             // one recorded fence of one upstream
using PoolId = Id<struct PoolTag, uint64_t>;               // the pools of all, or a private pool (allocator.h)
using TimePoint = Id<struct TimeTag, uint64_t>;            // nanoseconds of a steady clock

// Dense, given to each thread the first time it asks.
GPULEDGER_EXPORT ThreadId ThisThread();

inline constexpr SiteId kNoSite{0};

// What a block is to its owner. The order is that of reports.
enum class Role : uint8_t {
  kSource, kStaging, kQuantized, kScratch, kActivation, kGradient, kOptimizer, kCache, kOther
};
inline constexpr int kRoleCount = 9;
GPULEDGER_EXPORT std::string_view RoleName(Role role);
// False, and `role` untouched, if no role has that name.
GPULEDGER_EXPORT bool ParseRole(std::string_view name, Role* role);

// A stream together with its device. There is no stream without a device, and 0 or nullptr is not a stream:
// say Stream::Default(device).
class Stream {
 public:
  constexpr Stream(DeviceId device, CUstream_st* raw) : device_(device), raw_(raw) {}
  Stream(DeviceId, std::nullptr_t) = delete;
  Stream(DeviceId, int) = delete;
  static constexpr Stream Default(DeviceId device) {
    CUstream_st* const legacy = nullptr;
    return Stream(device, legacy);
  }
  [[nodiscard]] constexpr DeviceId device() const { return device_; }
  // The per-thread default stream (cudaStreamPerThread, handle 2): one handle, another stream in each thread.
  static Stream PerThread(DeviceId device) { return Stream(device, reinterpret_cast<CUstream_st*>(uintptr_t{2})); }
  [[nodiscard]] bool per_thread() const { return reinterpret_cast<uintptr_t>(raw_) == 2; }
  // The same stream by one handle: cudaStreamLegacy (1) is the default stream (0).
  [[nodiscard]] Stream Canonical() const { return reinterpret_cast<uintptr_t>(raw_) == 1 ? Default(device_) : *this; }
  [[nodiscard]] constexpr CUstream_st* raw() const { return raw_; }
  friend constexpr bool operator==(Stream a, Stream b) { return a.device_ == b.device_ && a.raw_ == b.raw_; }
  template <class H>
  friend H AbslHashValue(H state, Stream s) {
    return H::combine(std::move(state), s.device_, s.raw_);
  }

 private:
  DeviceId device_;
  CUstream_st* raw_;
};

// An address on a device. It can be moved by Bytes and compared, not dereferenced.
class DevicePtr {
 public:
  constexpr DevicePtr(DeviceId device, uint64_t address) : device_(device), address_(address) {}
  static constexpr DevicePtr Null(DeviceId device) { return DevicePtr(device, 0); }
  [[nodiscard]] constexpr DeviceId device() const { return device_; }
  [[nodiscard]] constexpr uint64_t address() const { return address_; }
  [[nodiscard]] constexpr bool is_null() const { return address_ == 0; }
  // The address as a host pointer; only for memory that its upstream calls host-accessible.
  [[nodiscard]] void* unsafe_host_pointer() const { return reinterpret_cast<void*>(address_); }

  friend constexpr DevicePtr operator+(DevicePtr p, Bytes offset) {
    return DevicePtr(p.device_, (Bytes(p.address_) + offset).count());
  }
  friend constexpr Bytes operator-(DevicePtr a, DevicePtr b) {
    if (a.device_ != b.device_) Die("DevicePtr: addresses of two devices subtracted");
    return Bytes(a.address_) - Bytes(b.address_);
  }
  friend constexpr bool operator==(DevicePtr a, DevicePtr b) {
    return a.device_ == b.device_ && a.address_ == b.address_;
  }
  template <class H>
  friend H AbslHashValue(H state, DevicePtr p) {
    return H::combine(std::move(state), p.device_, p.address_);
  }

 private:
  DeviceId device_;
  uint64_t address_;
};

// A requested size, rounded to what a block holds, with the bin that caches such blocks. Made by For() alone, so that
// a requested size is never used as a rounded one. Bins: eight per octave of the 512 B granules (README.md, "Placement").
class SizeClass {
 public:
  static constexpr Bytes kGranule = Bytes(512u);
  static constexpr int kBinCount = 8 * 56;

  // Requires: 0 < requested <= 2^62; fatal otherwise (the allocator turns such requests away first).
  static constexpr SizeClass For(Bytes requested) {
    if (requested.is_zero()) Die("SizeClass: a block has at least one byte");
    if (requested.count() > uint64_t{1} << 62) Die("SizeClass: larger than 2^62 bytes");
    const Bytes charged = requested.RoundUpTo(kGranule);
    return SizeClass(charged, BinOf(charged));
  }
  [[nodiscard]] constexpr Bytes charged() const { return charged_; }
  [[nodiscard]] constexpr int bin() const { return bin_; }

  // The bin in which a block of `size` (a multiple of kGranule) is kept. Non-decreasing in `size`.
  static constexpr int BinOf(Bytes size) {
    const uint64_t granules = size / kGranule;
    if (granules < 8) return static_cast<int>(granules);
    const int octave = std::bit_width(granules) - 4;  // granules >> octave is 8..15
    return 8 * octave + static_cast<int>(granules >> octave);
  }

 private:
  constexpr SizeClass(Bytes charged, int bin) : charged_(charged), bin_(bin) {}
  Bytes charged_;
  int bin_;
};
static_assert(SizeClass::For(Bytes(1u)).charged() == SizeClass::kGranule);
static_assert(SizeClass::For(Bytes(513u)).bin() == 2 && SizeClass::BinOf(Bytes(8u * 512u)) == 8);
static_assert(SizeClass::For(Bytes(uint64_t{1} << 62)).bin() < SizeClass::kBinCount);

}  // namespace gpuledger
