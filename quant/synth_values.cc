#include "synth_values.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec_floats.h"

namespace gpuledger {
namespace {

static_assert(std::endian::native == std::endian::little, "values are stored as safetensors wants them");

constexpr uint64_t kQuantiles = 8192;  // 16 KiB of 16-bit values: they stay in a core's first cache
constexpr int kLaneBits = 16;
constexpr uint64_t kGroup = 4;  // elements from one mix: four lanes

// What a tensor is, by its name: around which value its own are, and how closely.
struct Distribution {
  double mean;
  double deviation;
};
constexpr Distribution kDistributions[] = {{0, 0.02}, {1, 0.02}, {0, 0.002}};
enum Kind : size_t { kWeight, kNorm, kBias };

Kind KindOf(std::string_view name) {
  if (name.ends_with("bias")) return kBias;
  const std::string_view module = name.substr(0, name.rfind('.'));
  const std::string_view last = module.substr(module.rfind('.') + 1);  // npos + 1 is 0
  return absl::EndsWithIgnoreCase({last.data(), last.size()}, "norm") ? kNorm : kWeight;
}

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): each bit of the result depends on all of x.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;

uint64_t KeyOf(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return Mix(hash ^ Mix(seed + kStep));
}

// The integral of the standard normal density from 0 to z, by its series. Only +, -, *, / and sqrt are used, which all
// machines round alike; libraries differ in the last bit of exp and erf.
double HalfCdf(double z, double* density) {
  const double square = z * z / 2;
  double exponential = 1;  // of z^2 / 2
  for (double k = 1, term = 1; term > 1e-18 * exponential; ++k) exponential += term *= square / k;
  double sum = 0;
  for (double k = 1, term = z; term > 1e-18 * sum; k += 2) {
    sum += term;
    term *= z * z / (k + 2);
  }
  *density = 1 / (exponential * std::sqrt(2 * 3.14159265358979323846));
  return sum * *density;
}

// The median of each of the 8192 equally likely parts of the standard normal distribution, rising.
std::array<double, kQuantiles> StandardQuantiles() {
  std::array<double, kQuantiles> quantiles;
  double z = 0;
  for (uint64_t i = kQuantiles / 2; i < kQuantiles; ++i) {
    const double target = (static_cast<double>(i) + 0.5) / kQuantiles - 0.5;
    // Newton's method, from the quantile before: the integral is concave here, so it comes from below.
    double step = 1;
    for (int round = 0; round < 20 && step > 1e-15; ++round) {
      double density;
      const double missing = target - HalfCdf(z, &density);
      step = missing / density;
      z += step;
    }
    quantiles[i] = z;
    quantiles[kQuantiles - 1 - i] = -z;
  }
  return quantiles;
}

template <class T>
using Table = std::array<T, kQuantiles>;

template <class T>
using Tables = std::array<Table<T>, std::size(kDistributions)>;

template <class T>
const Tables<T>* MakeTables() {
  static const Table<double>* const standard = new Table<double>(StandardQuantiles());
  auto* const tables = new Tables<T>;
  for (size_t kind = 0; kind < tables->size(); ++kind) {
    for (size_t i = 0; i < kQuantiles; ++i) {
      const double value = kDistributions[kind].mean + kDistributions[kind].deviation * (*standard)[i];
      codec::FromFloat(static_cast<float>(value), &(*tables)[kind][i]);
    }
  }
  return tables;
}

template <class T>
void Fill(const Table<T>& table, uint64_t key, uint64_t offset, std::span<std::byte> out) {
  constexpr uint64_t kGroupBytes = kGroup * sizeof(T);
  const auto put_group = [&](uint64_t group, std::byte* to) {
    const uint64_t bits = Mix(key + group * kStep);
    for (uint64_t lane = 0; lane < kGroup; ++lane) {
      std::memcpy(to + lane * sizeof(T), &table[(bits >> (lane * kLaneBits)) & (kQuantiles - 1)], sizeof(T));
    }
  };
  uint64_t group = offset / kGroupBytes;
  std::byte part[kGroupBytes];
  if (const uint64_t skipped = offset % kGroupBytes; skipped != 0) {
    put_group(group++, part);
    const size_t size = std::min<uint64_t>(out.size(), kGroupBytes - skipped);
    std::memcpy(out.data(), part + skipped, size);
    out = out.subspan(size);
  }
  std::byte* to = out.data();
  std::byte* const end = to + out.size() / kGroupBytes * kGroupBytes;
  for (; to != end; to += kGroupBytes) put_group(group++, to);
  if (const size_t rest = out.size() % kGroupBytes; rest != 0) {
    put_group(group, part);
    std::memcpy(to, part, rest);
  }
}

}  // namespace

bool HasSynthValues(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBF16; }

void FillSynthValues(uint64_t seed, std::string_view name, Dtype dtype, uint64_t offset, std::span<std::byte> out) {
  // Never freed: another thread may still read when the process ends.
  static const Tables<float>* const float32 = MakeTables<float>();
  static const Tables<codec::Float16>* const float16 = MakeTables<codec::Float16>();
  static const Tables<codec::BFloat16>* const bfloat16 = MakeTables<codec::BFloat16>();
  const Kind kind = KindOf(name);
  const uint64_t key = KeyOf(seed, name);
  switch (dtype) {
    case Dtype::kF32:
      return Fill((*float32)[kind], key, offset, out);
    case Dtype::kF16:
      return Fill((*float16)[kind], key, offset, out);
    case Dtype::kBF16:
      return Fill((*bfloat16)[kind], key, offset, out);
    default:
      Die("synth: a dtype without values");
  }
}

}  // namespace gpuledger
