// One entry to bytes and back. FORMAT.md says the same in words.
#include "trace_format.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace gpuledger::trace {
namespace {

// The first byte: kind in the low four bits, flags above.
constexpr unsigned kExtra = 15;
constexpr unsigned kSamePayer = 1, kSameSite = 2, kSameStream = 4, kRegular = 8;  // of kAllocate
constexpr unsigned kNextInOrder = 1, kAsBefore = 2, kSameLedger = 4;             // of frees

void Put(unsigned char*& to, uint64_t value) {
  while (value >= 0x80) {
    *to++ = static_cast<unsigned char>(value | 0x80);
    value >>= 7;
  }
  *to++ = static_cast<unsigned char>(value);
}
void PutSigned(unsigned char*& to, uint64_t now, uint64_t before) {
  const auto change = static_cast<int64_t>(now - before);
  Put(to, (static_cast<uint64_t>(change) << 1) ^ static_cast<uint64_t>(change >> 63));
}
void PutText(unsigned char*& to, std::string_view text, size_t most) {
  size_t length = std::min(text.size(), most);
  // What is too long is cut between characters of UTF-8, where it is some.
  const auto inside = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80; };
  for (int back = 0; back < 3 && length > 0 && length < text.size() && inside(length); ++back) --length;
  Put(to, length);
  if (length != 0) std::memcpy(to, text.data(), length);  // an empty text may have no address
  to += length;
}

// What the allocator charges for a request; nothing where it would refuse it.
Bytes UsualCharge(Bytes requested) {
  if (requested.is_zero() || requested.count() > uint64_t{1} << 62) return Bytes();
  return SizeClass::For(requested).charged();
}

uint64_t StreamBits(CUstream_st* stream) { return reinterpret_cast<uintptr_t>(stream); }

void PutTime(unsigned char*& to, uint64_t time, Deltas& d) {
  PutSigned(to, time, d.time);
  d.time = time;
}
// Addresses of blocks are multiples of 512, and their differences small once divided by it.
void PutAddress(unsigned char*& to, uint64_t address, Deltas& d) {
  const auto change = static_cast<int64_t>(address - d.address);
  if (change % 512 == 0) {
    const int64_t blocks = change / 512;
    Put(to, (((static_cast<uint64_t>(blocks) << 1) ^ static_cast<uint64_t>(blocks >> 63)) << 1) | 1);
  } else {
    Put(to, 0);
    Put(to, address);
  }
  d.address = address;
}
void PutPayer(unsigned char*& to, const Record& r, Deltas& d) {
  Put(to, r.owner.value());
  *to++ = static_cast<unsigned char>(r.role);
  Put(to, r.scope.value());
  d.owner = r.owner.value(), d.role = static_cast<uint8_t>(r.role), d.scope = r.scope.value();
}
void PutLedger(unsigned char*& to, const Record& r, Deltas& d) {
  Put(to, r.ledger.value());
  PutSigned(to, static_cast<uint64_t>(int64_t{r.device.value()}), 0);
  d.ledger = r.ledger.value(), d.device = r.device.value();
}

// All fields, whatever the kind.
void PutFull(unsigned char*& to, const Record& r, Deltas& d) {
  PutLedger(to, r, d);
  Put(to, r.sequence);
  PutSigned(to, r.allocation.value(), d.allocation);
  PutAddress(to, r.address, d);
  Put(to, r.requested.count());
  Put(to, r.charged.count());
  Put(to, StreamBits(r.stream));
  PutPayer(to, r, d);
  Put(to, r.site.value());
  d.sequence = r.sequence, d.allocation = r.allocation.value(), d.stream = StreamBits(r.stream), d.site = r.site.value();
}

}  // namespace

uint32_t HeaderChecksum(const BlockHeader& header) {
  uint32_t hash = 2166136261u;  // FNV-1a
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  for (size_t i = 0; i < offsetof(BlockHeader, checksum); ++i) hash = (hash ^ bytes[i]) * 16777619u;
  return hash;
}

bool IsBlock(const BlockHeader& h) {
  return h.magic == kBlockMagic && h.checksum == HeaderChecksum(h) && h.type >= BlockType::kSegment &&
         h.type <= BlockType::kSnapshot && h.raw_bytes <= (h.type == BlockType::kRing ? kRingBytes : 2 * kSegmentBytes);
}

size_t Encode(const Record& r, Deltas& d, unsigned char* const begin) {
  unsigned char* to = begin;
  const bool next = r.sequence == d.sequence + 1, same_ledger = r.ledger.value() == d.ledger && r.device.value() == d.device;
  const bool was_request = d.free_requested;
  d.free_requested = false;
  if (r.kind == RecordKind::kAllocate) {
    const bool payer = r.owner.value() == d.owner && static_cast<uint8_t>(r.role) == d.role && r.scope.value() == d.scope;
    const bool site = r.site.value() == d.site;
    const bool stream = same_ledger && StreamBits(r.stream) == d.stream;
    const bool regular = next && !r.charged.is_zero() && r.charged == UsualCharge(r.requested);
    *to++ = static_cast<unsigned char>(static_cast<unsigned>(r.kind) | ((payer ? kSamePayer : 0u) | (site ? kSameSite : 0u) |
                                       (stream ? kSameStream : 0u) | (regular ? kRegular : 0u)) << 4);
    PutTime(to, r.time.value(), d);
    PutSigned(to, r.allocation.value(), d.allocation);
    Put(to, r.requested.count());
    PutAddress(to, r.address, d);
    if (!payer) PutPayer(to, r, d);
    if (!site) Put(to, d.site = r.site.value());
    if (!stream) {
      PutLedger(to, r, d);
      Put(to, d.stream = StreamBits(r.stream));
    }
    if (!regular) {
      PutSigned(to, r.sequence, d.sequence);
      Put(to, r.charged.count());
    }
  } else if (r.kind == RecordKind::kFreeRequested || r.kind == RecordKind::kFreeCompleted) {
    const bool as_before = r.kind == RecordKind::kFreeCompleted && was_request && next && same_ledger &&
                           r.allocation.value() == d.allocation && r.time.value() == d.time;
    *to++ = static_cast<unsigned char>(static_cast<unsigned>(r.kind) | ((next ? kNextInOrder : 0u) | (as_before ? kAsBefore : 0u) |
                                       (same_ledger ? kSameLedger : 0u)) << 4);
    if (!as_before) {
      PutTime(to, r.time.value(), d);
      PutSigned(to, r.allocation.value(), d.allocation);
      if (!same_ledger) PutLedger(to, r, d);
      if (!next) PutSigned(to, r.sequence, d.sequence);
    }
    d.free_requested = r.kind == RecordKind::kFreeRequested;
  } else {
    *to++ = static_cast<unsigned char>(r.kind);
    PutTime(to, r.time.value(), d);
    PutFull(to, r, d);
  }
  d.sequence = r.sequence, d.allocation = r.allocation.value();
  return static_cast<size_t>(to - begin);
}

size_t Encode(const ExtraEntry& e, Deltas& d, unsigned char* const begin) {
  unsigned char* to = begin;
  d.free_requested = false;
  *to++ = kExtra;
  *to++ = static_cast<unsigned char>(e.kind);
  PutTime(to, e.time, d);
  Put(to, e.id);
  Put(to, e.value);
  Put(to, e.more);
  Put(to, e.third);
  PutSigned(to, static_cast<uint64_t>(int64_t{e.device}), 0);
  PutText(to, e.text, kLongestText / 2);
  PutText(to, e.text2, 128);
  if (e.kind == Extra::kStack) {
    // As many frames as there is room for: the innermost ones.
    unsigned char* const count_at = to++;
    unsigned char count = 0;
    for (const StackFrame& frame : e.frames) {
      if (count == 127 || static_cast<size_t>(to - begin) + 64 + 2 * 256 > kLongestEntry) break;
      *to++ = frame.python ? 1 : 0;
      Put(to, frame.python ? frame.line : frame.module);
      Put(to, frame.offset);
      PutText(to, frame.function, 200);
      // The end of a path says more than its beginning.
      PutText(to, frame.file.size() > 255 ? frame.file.substr(frame.file.size() - 255) : frame.file, 255);
      ++count;
    }
    *count_at = count;
  }
  if (e.kind == Extra::kLive) PutFull(to, *e.record, d);
  return static_cast<size_t>(to - begin);
}

// ---- and back ------------------------------------------------------------------------------------------------------------

uint64_t SegmentDecoder::Varint() {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (at_ >= bytes_.size()) break;
    const unsigned char byte = bytes_[at_++];
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  bad_ = true;
  return 0;
}

int64_t SegmentDecoder::Signed() {
  const uint64_t value = Varint();
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

std::string_view SegmentDecoder::Text() {
  const uint64_t length = Varint();
  if (bad_ || length > bytes_.size() - at_) {
    bad_ = true;
    return {};
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
  at_ += length;
  return text;
}

namespace {

uint64_t Moved(uint64_t from, int64_t by) { return from + static_cast<uint64_t>(by); }
Role RoleFrom(uint64_t value, bool& bad) {
  bad |= value >= static_cast<uint64_t>(kRoleCount);
  return bad ? Role::kOther : static_cast<Role>(value);
}
template <class T>
T Narrow(uint64_t value, bool& bad) {
  bad |= value > static_cast<uint64_t>(std::numeric_limits<T>::max());
  return bad ? T{} : static_cast<T>(value);
}
int32_t NarrowSigned(int64_t value, bool& bad) {
  bad |= value < INT32_MIN || value > INT32_MAX;
  return bad ? 0 : static_cast<int32_t>(value);
}

}  // namespace

// Mirrors of PutPayer, PutLedger, PutAddress, PutFull.
void SegmentDecoder::ReadPayer() {
  deltas_.owner = Narrow<uint32_t>(Varint(), bad_);
  deltas_.role = static_cast<uint8_t>(RoleFrom(Varint(), bad_));
  deltas_.scope = Narrow<uint32_t>(Varint(), bad_);
}
void SegmentDecoder::ReadLedger() {
  deltas_.ledger = Narrow<uint32_t>(Varint(), bad_);
  deltas_.device = NarrowSigned(Signed(), bad_);
}
void SegmentDecoder::ReadAddress() {
  const uint64_t coded = Varint();
  if ((coded & 1) == 0) {
    deltas_.address = Varint();
    return;
  }
  const uint64_t blocks = coded >> 1;
  const int64_t change = static_cast<int64_t>(blocks >> 1) ^ -static_cast<int64_t>(blocks & 1);
  deltas_.address += static_cast<uint64_t>(change) * 512;  // of any size, where the bytes are damaged
}

void SegmentDecoder::Fill(Record& r) const {
  r.time = TimePoint(deltas_.time);
  r.sequence = deltas_.sequence;
  r.allocation = AllocationId(deltas_.allocation);
  r.thread = thread_;
  r.ledger = LedgerId(deltas_.ledger);
  r.device = DeviceId(deltas_.device);
}

void SegmentDecoder::ReadFull(Record& r) {
  ReadLedger();
  deltas_.sequence = Varint();
  deltas_.allocation = Moved(deltas_.allocation, Signed());
  ReadAddress();
  r.requested = Bytes(Varint());
  r.charged = Bytes(Varint());
  deltas_.stream = Varint();
  ReadPayer();
  deltas_.site = Narrow<uint32_t>(Varint(), bad_);
  FillAll(r);
}

void SegmentDecoder::FillAll(Record& r) const {
  Fill(r);
  r.address = deltas_.address;
  r.stream = reinterpret_cast<CUstream_st*>(static_cast<uintptr_t>(deltas_.stream));
  r.owner = OwnerId(deltas_.owner);
  r.role = static_cast<Role>(deltas_.role);
  r.scope = ScopeId(deltas_.scope);
  r.site = SiteId(deltas_.site);
}

bool SegmentDecoder::ReadRecord(unsigned char head, Record& r) {
  const unsigned kind = head & 15u, flags = head >> 4;
  if (kind > static_cast<unsigned>(RecordKind::kOutOfMemory)) return false;
  r = Record{};
  r.kind = static_cast<RecordKind>(kind);
  if (r.kind == RecordKind::kAllocate) {
    deltas_.time = Moved(deltas_.time, Signed());
    deltas_.allocation = Moved(deltas_.allocation, Signed());
    r.requested = Bytes(Varint());
    ReadAddress();
    if ((flags & kSamePayer) == 0) ReadPayer();
    if ((flags & kSameSite) == 0) deltas_.site = Narrow<uint32_t>(Varint(), bad_);
    if ((flags & kSameStream) == 0) {
      ReadLedger();
      deltas_.stream = Varint();
    }
    if ((flags & kRegular) == 0) {
      deltas_.sequence = Moved(deltas_.sequence, Signed());
      r.charged = Bytes(Varint());
    } else {
      deltas_.sequence += 1;
      r.charged = UsualCharge(r.requested);
      if (r.charged.is_zero()) return false;
    }
    FillAll(r);
  } else if (r.kind == RecordKind::kFreeRequested || r.kind == RecordKind::kFreeCompleted) {
    if ((flags & kAsBefore) == 0) {
      deltas_.time = Moved(deltas_.time, Signed());
      deltas_.allocation = Moved(deltas_.allocation, Signed());
      if ((flags & kSameLedger) == 0) ReadLedger();
      if ((flags & kNextInOrder) == 0) deltas_.sequence = Moved(deltas_.sequence, Signed());
    }
    if ((flags & kNextInOrder) != 0) deltas_.sequence += 1;
    Fill(r);
  } else {
    deltas_.time = Moved(deltas_.time, Signed());
    ReadFull(r);
  }
  return !bad_;
}

bool SegmentDecoder::ReadExtra(Decoded* decoded) {
  ExtraEntry& e = decoded->extra = {};
  if (at_ >= bytes_.size()) return false;
  const unsigned char kind = bytes_[at_++];
  if (kind > static_cast<unsigned char>(Extra::kEndedScope)) return false;
  e.kind = static_cast<Extra>(kind);
  e.time = deltas_.time = Moved(deltas_.time, Signed());
  e.id = Varint(), e.value = Varint(), e.more = Varint(), e.third = Varint();
  e.device = NarrowSigned(Signed(), bad_);
  e.text = Text();
  e.text2 = Text();
  decoded->frames.clear();
  if (e.kind == Extra::kStack && !bad_) {
    const uint64_t count = Varint();
    for (uint64_t i = 0; i < count && !bad_; ++i) {
      StackFrame frame{};
      frame.python = Varint() == 1;
      (frame.python ? frame.line : frame.module) = Narrow<uint32_t>(Varint(), bad_);
      frame.offset = Varint();
      frame.function = Text();
      frame.file = Text();
      decoded->frames.push_back(frame);
    }
  }
  e.frames = decoded->frames;
  if (e.kind == Extra::kLive) {
    decoded->record = Record{};
    ReadFull(decoded->record);
    e.record = &decoded->record;
  }
  return !bad_;
}

bool SegmentDecoder::Next(Decoded* decoded) {
  if (bad_ || at_ >= bytes_.size()) return false;
  const unsigned char head = bytes_[at_++];
  decoded->is_record = (head & 15) != kExtra;
  const bool good = decoded->is_record ? ReadRecord(head, decoded->record) : ReadExtra(decoded);
  bad_ |= !good;
  return good;
}

}  // namespace gpuledger::trace
