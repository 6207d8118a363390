// This file is compiled once per instruction set (foreach_target.h includes it again and again).
#include "codec_simd.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "codec_floats.h"
#include "codec_reference.h"
#include "codec_tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec_simd.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace gpuledger::codec {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128

void Quantize(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source, uint64_t blocks,
              uint8_t* packed, float* absmax) {
  ReferenceQuantize(format, dialect, from, source, blocks * format.block, packed, absmax);
}

void Dequantize(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t blocks, FloatType to,
                void* out) {
  ReferenceDequantize(format, packed, absmax, blocks * format.block, to, out);
}

#else

constexpr hn::ScalableTag<float> kFloats;
constexpr hn::ScalableTag<int32_t> kInts;
constexpr hn::ScalableTag<uint32_t> kUints;
using Floats = hn::Vec<decltype(kFloats)>;
using Ints = hn::Vec<decltype(kInts)>;
constexpr size_t kLanes = hn::MaxLanes(kFloats);

// Lanes of the even and of the odd elements of a row of 2 * kLanes elements: two codes that share a byte are then in
// the same lane of two vectors.
struct Pairs {
  Floats even;
  Floats odd;
};

HWY_INLINE Pairs LoadPairs(const std::byte* source, float*) {
  Pairs pairs;
  hn::LoadInterleaved2(kFloats, reinterpret_cast<const float*>(source), pairs.even, pairs.odd);
  return pairs;
}

HWY_INLINE Pairs LoadPairs(const std::byte* source, BFloat16*) {
  const auto both = hn::LoadU(kUints, reinterpret_cast<const uint32_t*>(source));
  return {hn::BitCast(kFloats, hn::ShiftLeft<16>(both)),
          hn::BitCast(kFloats, hn::And(both, hn::Set(kUints, 0xffff0000u)))};
}

HWY_INLINE Pairs LoadPairs(const std::byte* source, Float16*) {
  constexpr hn::Rebind<hwy::float16_t, decltype(kFloats)> kHalves;
  const auto* elements = reinterpret_cast<const hwy::float16_t*>(source);
  const Floats low = hn::PromoteTo(kFloats, hn::LoadU(kHalves, elements));
  const Floats high = hn::PromoteTo(kFloats, hn::LoadU(kHalves, elements + kLanes));
  return {hn::ConcatEven(kFloats, high, low), hn::ConcatOdd(kFloats, high, low)};
}

// The largest bit pattern of a block, signs cleared: of floats, the largest magnitude, or a NaN if there is one.
template <class T>
HWY_INLINE uint32_t LargestBits(const std::byte* source, size_t count) {
  // Of two 16-bit elements in one lane of 32 bits, both maxima are kept and the lanes reduced in the end.
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int16_t>;
  constexpr hn::ScalableTag<Lane> kTag;
  constexpr size_t kStep = hn::MaxLanes(kTag);
  const auto mask = hn::Set(kTag, std::numeric_limits<Lane>::max());
  const auto* elements = reinterpret_cast<const Lane*>(source);
  auto largest = hn::And(hn::LoadU(kTag, elements), mask);
  for (size_t i = kStep; i < count; i += kStep) {
    largest = hn::Max(largest, hn::And(hn::LoadU(kTag, elements + i), mask));
  }
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(kTag, largest)));
  } else {
    const Ints both = hn::BitCast(kInts, largest);
    const Ints wider = hn::Max(hn::ShiftRight<16>(both), hn::And(both, hn::Set(kInts, 0xffff)));
    return static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(kInts, wider)));
  }
}

template <class T>
constexpr uint32_t kInfinityBitsOf = kInfinityBits;
template <>
constexpr uint32_t kInfinityBitsOf<BFloat16> = 0x7f80;
template <>
constexpr uint32_t kInfinityBitsOf<Float16> = 0x7c00;

HWY_INLINE float FromBits(uint32_t bits, float*) { return std::bit_cast<float>(bits); }
template <class T>
HWY_INLINE float FromBits(uint32_t bits, T*) {
  return ToFloat(T{static_cast<uint16_t>(bits)});
}

// Finds ranks: how many of 15 cut points are below each lane. Two ways; `Ranker` is that of this instruction set.
//
// A binary search in four steps; the cut point that a lane is compared with comes from a table of the step.
class SearchingRanker {
 public:
  HWY_INLINE explicit SearchingRanker(const Cuts& cuts)
      : levels_{Level<1>(cuts), Level<2>(cuts), Level<4>(cuts), Level<8>(cuts)}, cuts_(cuts) {}

  HWY_INLINE Ints operator()(Floats x) const {
    Ints rank = hn::Zero(kInts);
    if constexpr (kLanes < 8) {  // no tables of eight
      for (const float cut : cuts_) rank = Add(rank, x, hn::Set(kFloats, cut));
      return rank;
    }
    rank = Add(rank, x, levels_[0]);
    rank = Descend(rank, x, levels_[1]);
    rank = Descend(rank, x, levels_[2]);
    return Descend(rank, x, levels_[3]);
  }

 private:
  // The cut points of one step: of kNodes nodes of the search tree.
  template <size_t kNodes>
  static HWY_INLINE Floats Level(const Cuts& cuts) {
    HWY_ALIGN float nodes[kLanes];
    for (size_t i = 0; i < kLanes; ++i) nodes[i] = cuts[(2 * (i % kNodes) + 1) * (8 / kNodes) - 1];
    return hn::Load(kFloats, nodes);
  }
  static HWY_INLINE Ints Add(Ints rank, Floats x, Floats cut) {
    return hn::Sub(rank, hn::BitCast(kInts, hn::VecFromMask(kFloats, hn::Gt(x, cut))));
  }
  static HWY_INLINE Ints Descend(Ints rank, Floats x, Floats level) {
    return Add(hn::Add(rank, rank), x, hn::TableLookupLanes(level, hn::IndicesFromVec(kFloats, rank)));
  }

  Floats levels_[4];
  const Cuts& cuts_;
};

// With tables of sixteen: [-1, 1] in 15 equal bins, where the bin of a value says which cut points it is compared with
// (kCompares at most) and how many are below all of the bin.
template <size_t kCompares>
class BinningRanker {
 public:
  HWY_INLINE explicit BinningRanker(const Cuts& cuts) {
    HWY_ALIGN float near[kCompares][kLanes];
    HWY_ALIGN int32_t below[kLanes];
    for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
      const int bin = lane % 16 < 8 ? lane % 16 : lane % 16 - 16;
      const float low = (static_cast<float>(bin) - 0.51f) / kBins;  // a little more than what rounds to the bin
      const float high = (static_cast<float>(bin) + 0.51f) / kBins;
      below[lane] = static_cast<int32_t>(std::count_if(cuts.begin(), cuts.end(), [=](float c) { return c < low; }));
      size_t found = 0;
      for (const float cut : cuts) {
        if (cut < low || cut > high) continue;
        if (found == kCompares) Die("codec: more cut points in a bin than comparisons");
        near[found++][lane] = cut;
      }
      for (; found < kCompares; ++found) near[found][lane] = 2.0f;  // above everything
    }
    below_ = hn::Load(kInts, below);
    for (size_t i = 0; i < kCompares; ++i) near_[i] = hn::Load(kFloats, near[i]);
  }

  HWY_INLINE Ints operator()(Floats x) const {
    // The sum's last bits are the bin as an integer, negative ones modulo 16.
    Ints bin = hn::BitCast(kInts, hn::MulAdd(x, hn::Set(kFloats, kBins), hn::Set(kFloats, 0x1.8p23f)));
    if constexpr (HWY_IS_DEBUG_BUILD)
      bin = hn::And(bin, hn::Set(kInts, 15));  // look-ups ignore the bits above, asserts do not
    Ints rank = hn::TableLookupLanes(below_, hn::IndicesFromVec(kInts, bin));
    const auto index = hn::IndicesFromVec(kFloats, bin);
    for (size_t i = 0; i < kCompares; ++i) {
      const auto above = hn::RebindMask(kInts, hn::Gt(x, hn::TableLookupLanes(near_[i], index)));
      rank = hn::IfThenElse(above, hn::Add(rank, hn::Set(kInts, 1)), rank);
    }
    return rank;
  }

 private:
  static constexpr float kBins = 7.49f;  // per unit; times 1 it still rounds to 7

  Ints below_;
  Floats near_[kCompares];
};

template <bool kFp4>
using Ranker = std::conditional_t<kLanes == 16, BinningRanker<kFp4 ? 3 : 2>, SearchingRanker>;

// FP4's codes are not in the order of their values; `kFlush`: dialect `cuda` tells FP4's zeros apart by the sign of
// what is not subnormal.
template <class T, bool kFp4, bool kFlush>
class BlockQuantizer {
 public:
  HWY_INLINE BlockQuantizer(const Encoding& encoding, size_t count)
      : ranker_(encoding.cuts), codes_(hn::LoadDup128(kBytes, encoding.codes.data())), count_(count) {}

  HWY_INLINE void operator()(const std::byte* source, float reciprocal, uint8_t* packed) const {
    const Floats scale = hn::Set(kFloats, reciprocal);
    for (size_t i = 0; i < count_; i += 2 * kLanes) {
      const Pairs pairs = LoadPairs(source + i * sizeof(T), static_cast<T*>(nullptr));
      const auto even = Code(pairs.even, scale);
      const auto odd = Code(pairs.odd, scale);
      constexpr hn::Rebind<uint8_t, decltype(kUints)> kPacked;
      hn::StoreU(hn::TruncateTo(kPacked, hn::Or(hn::ShiftLeft<4>(even), odd)), kPacked, packed + i / 2);
    }
  }

 private:
  static constexpr hn::Repartition<uint8_t, decltype(kUints)> kBytes{};

  // In the lowest byte of each lane; what is above it is cut off.
  HWY_INLINE hn::Vec<decltype(kUints)> Code(Floats x, Floats scale) const {
    if constexpr (kFlush) x = hn::IfThenZeroElse(hn::Lt(hn::Abs(x), hn::Set(kFloats, 0x1p-126f)), x);
    const Ints rank = ranker_(hn::Mul(x, scale));
    if constexpr (!kFp4) return hn::BitCast(kUints, rank);
    return hn::BitCast(kUints, hn::TableLookupBytes(codes_, hn::BitCast(kBytes, rank)));
  }

  Ranker<kFp4> ranker_;
  hn::Vec<hn::Repartition<uint8_t, decltype(kUints)> > codes_;
  size_t count_;
};

// What the SIMD code computes as the reference does: all of dialect `cpu` but NaNs and infinities; in `cuda`, scales at
// which neither reciprocal nor maximum is near the subnormals.
template <class T>
HWY_INLINE bool IsOrdinary(Dialect dialect, uint32_t bits) {
  if (bits >= kInfinityBitsOf<T>) return false;
  if (dialect == Dialect::kCpu) return true;
  const float largest = FromBits(bits, static_cast<T*>(nullptr));
  return largest >= 0x1p-100f && largest <= 0x1p100f;
}

template <class T, bool kFp4, bool kFlush>
void QuantizeBlocks(const FourBitFormat& format, Dialect dialect, FloatType from, const std::byte* source,
                    uint64_t blocks, uint8_t* packed, float* absmax) {
  const size_t count = format.block;
  const BlockQuantizer<T, kFp4, kFlush> quantize(EncodingOf(format.type, dialect), count);
  for (uint64_t b = 0; b < blocks; ++b, source += count * sizeof(T), packed += count / 2) {
    const uint32_t bits = LargestBits<T>(source, count);
    if (!IsOrdinary<T>(dialect, bits)) [[unlikely]] {
      ReferenceQuantize(format, dialect, from, source, count, packed, absmax + b);
      continue;
    }
    const float largest = FromBits(bits, static_cast<T*>(nullptr));
    absmax[b] = largest;
    const float reciprocal =
        dialect == Dialect::kCpu ? 1.0f / std::max(largest, kSmallestDivisor) : CudaReciprocal(largest);
    quantize(source, reciprocal, packed);
  }
}

void Quantize(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source, uint64_t blocks,
              uint8_t* packed, float* absmax) {
  const auto* bytes = static_cast<const std::byte*>(source);
  WithFloatType(from, [&]<class T>(T*) {
    if (format.type == QuantType::kNf4) {
      QuantizeBlocks<T, false, false>(format, dialect, from, bytes, blocks, packed, absmax);
    } else if (dialect == Dialect::kCpu) {
      QuantizeBlocks<T, true, false>(format, dialect, from, bytes, blocks, packed, absmax);
    } else {
      QuantizeBlocks<T, true, true>(format, dialect, from, bytes, blocks, packed, absmax);
    }
  });
}

// Values are found bytewise: of the 16 values that a block can have, one table per byte of the element.
constexpr hn::FixedTag<uint8_t, 16> kSixteenBytes;
constexpr hn::FixedTag<uint16_t, 8> kEightWords;
using SixteenBytes = hn::Vec<decltype(kSixteenBytes)>;

HWY_INLINE void StoreValues(const Floats values, float* out) { hn::StoreU(values, kFloats, out); }

HWY_INLINE void StoreValues(const Floats values, BFloat16* out) {
  const auto bits = hn::BitCast(kUints, values);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(kUints, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(kUints, 0x7fffu))));
  constexpr hn::Rebind<uint16_t, decltype(kUints)> kNarrow;
  hn::StoreU(hn::TruncateTo(kNarrow, rounded), kNarrow, reinterpret_cast<uint16_t*>(out));
}

HWY_INLINE void StoreValues(const Floats values, Float16* out) {
  if constexpr (kLanes >= 8) {
    constexpr hn::Rebind<hwy::float16_t, decltype(kFloats)> kNarrow;
    hn::StoreU(hn::DemoteTo(kNarrow, values), kNarrow, reinterpret_cast<hwy::float16_t*>(out));
  } else {  // without F16C: DemoteTo does not round ties to even
    HWY_ALIGN float wide[kLanes];
    hn::Store(values, kFloats, wide);
    for (size_t i = 0; i < kLanes; ++i) FromFloat(wide[i], out + i);
  }
}

template <size_t kPlanes>
HWY_INLINE void LoadPlanes(const uint8_t* values, SixteenBytes* planes) {
  if constexpr (kPlanes == 2) {
    hn::LoadInterleaved2(kSixteenBytes, values, planes[0], planes[1]);
  } else {
    hn::LoadInterleaved4(kSixteenBytes, values, planes[0], planes[1], planes[2], planes[3]);
  }
}

// 32 elements from their bytes: plane k of the even elements, of the odd ones.
HWY_INLINE void StoreElements(const SixteenBytes (&even)[2], const SixteenBytes (&odd)[2], uint8_t* out) {
  hn::StoreInterleaved4(even[0], even[1], odd[0], odd[1], kSixteenBytes, out);
}
HWY_INLINE void StoreElements(const SixteenBytes (&even)[4], const SixteenBytes (&odd)[4], uint8_t* out) {
  auto* words = reinterpret_cast<uint16_t*>(out);
  const auto lower = [](SixteenBytes a, SixteenBytes b)
                         HWY_ATTR { return hn::BitCast(kEightWords, hn::InterleaveLower(kSixteenBytes, a, b)); };
  const auto upper = [](SixteenBytes a, SixteenBytes b)
                         HWY_ATTR { return hn::BitCast(kEightWords, hn::InterleaveUpper(kSixteenBytes, a, b)); };
  hn::StoreInterleaved4(lower(even[0], even[1]), lower(even[2], even[3]), lower(odd[0], odd[1]), lower(odd[2], odd[3]),
                        kEightWords, words);
  hn::StoreInterleaved4(upper(even[0], even[1]), upper(even[2], even[3]), upper(odd[0], odd[1]), upper(odd[2], odd[3]),
                        kEightWords, words + 32);
}

template <class T>
void DequantizeBlocks(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t blocks,
                      FloatType to, uint8_t* out) {
  const float* table = TableOf(format.type).data();
  const size_t bytes = format.block / 2;
  for (uint64_t b = 0; b < blocks; ++b, packed += bytes) {
    if ((std::bit_cast<uint32_t>(absmax[b]) & kMagnitudeBits) >= kInfinityBits) [[unlikely]] {
      ReferenceDequantize(format, packed, absmax + b, format.block, to, out);
      out += format.block * sizeof(T);
      continue;
    }
    HWY_ALIGN T values[16];
    const Floats scale = hn::Set(kFloats, absmax[b]);
    for (size_t i = 0; i < 16; i += kLanes) StoreValues(hn::Mul(hn::LoadU(kFloats, table + i), scale), values + i);
    SixteenBytes planes[sizeof(T)];
    LoadPlanes<sizeof(T)>(reinterpret_cast<const uint8_t*>(values), planes);
    for (size_t i = 0; i < bytes; i += 16, out += 32 * sizeof(T)) {
      const SixteenBytes codes = hn::LoadU(kSixteenBytes, packed + i);
      const SixteenBytes even_codes = hn::ShiftRight<4>(codes);
      const SixteenBytes odd_codes = hn::And(codes, hn::Set(kSixteenBytes, uint8_t{0x0f}));
      SixteenBytes even[sizeof(T)], odd[sizeof(T)];
      for (size_t k = 0; k < sizeof(T); ++k) {
        even[k] = hn::TableLookupBytes(planes[k], even_codes);
        odd[k] = hn::TableLookupBytes(planes[k], odd_codes);
      }
      StoreElements(even, odd, out);
    }
  }
}

void Dequantize(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t blocks, FloatType to,
                void* out) {
  auto* bytes = static_cast<uint8_t*>(out);
  WithFloatType(to, [&]<class T>(T*) { DequantizeBlocks<T>(format, packed, absmax, blocks, to, bytes); });
}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace gpuledger::codec
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gpuledger::codec {

HWY_EXPORT(Quantize);
HWY_EXPORT(Dequantize);

void QuantizeWholeBlocks(const FourBitFormat& format, Dialect dialect, FloatType from, const void* source,
                         uint64_t blocks, uint8_t* packed, float* absmax) {
  HWY_DYNAMIC_DISPATCH(Quantize)(format, dialect, from, source, blocks, packed, absmax);
}

void DequantizeWholeBlocks(const FourBitFormat& format, const uint8_t* packed, const float* absmax, uint64_t blocks,
                           FloatType to, void* out) {
  HWY_DYNAMIC_DISPATCH(Dequantize)(format, packed, absmax, blocks, to, out);
}

}  // namespace gpuledger::codec
#endif  // HWY_ONCE
