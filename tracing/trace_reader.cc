// Entries of all threads in the order of their times, one open segment a thread.
#include "gpuledger/trace_reader.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <queue>

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>

#include "gpuledger/owner.h"
#include "trace_index.h"

namespace gpuledger {
namespace {

using trace::Decoded;
using trace::Extra;
using trace::ExtraEntry;
using trace::SegmentPlace;

struct Module {
  std::string path, build_id;
};

// "leaky_load.cc:41 (Convert)", SiteHere's, as a frame.
TraceFrame FrameOf(std::string_view text) {
  TraceFrame frame;
  const size_t paren = text.rfind(" (");
  const std::string_view place = text.substr(0, paren);
  if (paren != std::string_view::npos && text.ends_with(')')) frame.function = text.substr(paren + 2, text.size() - paren - 3);
  const size_t colon = place.rfind(':');
  if (colon != std::string_view::npos) {
    std::from_chars(place.data() + colon + 1, place.data() + place.size(), frame.line);
  }
  frame.file = place.substr(0, colon);
  return frame;
}

// The segments of one thread, or of the snapshot, one after the other.
class Cursor {
 public:
  Cursor(const trace::TraceFile& file, const std::vector<SegmentPlace>& places, ThreadId thread)
      : file_(file), places_(places), thread_(thread) {
    if (!places_.empty()) key_ = places_.front().first_ns;
  }
  // When the next entry is, as far as is known without opening its segment.
  [[nodiscard]] uint64_t key() const { return key_; }
  [[nodiscard]] bool ready() const { return ready_; }
  [[nodiscard]] ThreadId thread() const { return thread_; }
  [[nodiscard]] const Decoded& decoded() const { return decoded_; }
  // Goes to the next entry; false at the end.
  bool Advance(std::vector<TraceProblem>* problems) {
    ready_ = false;
    while (true) {
      if (decoder_ && decoder_->Next(&decoded_)) {
        key_ = std::max(key_, decoded_.is_record ? decoded_.record.time.value() : decoded_.extra.time);
        return ready_ = true;
      }
      if (decoder_ && decoder_->bad()) {
        problems->push_back({places_[next_ - 1].offset, fmt::format("byte {} of this block's entries makes no entry: the rest of it is left out",
                                                                    decoder_->offset())});
      }
      decoder_.reset();
      if (next_ == places_.size()) return false;
      const SegmentPlace& place = places_[next_++];
      if (trace::LoadSegment(file_, place, &raw_, problems)) decoder_.emplace(raw_, thread_);
    }
  }

 private:
  const trace::TraceFile& file_;
  const std::vector<SegmentPlace>& places_;
  const ThreadId thread_;
  size_t next_ = 0;
  uint64_t key_ = 0;
  bool ready_ = false;
  std::vector<unsigned char> raw_;
  std::optional<trace::SegmentDecoder> decoder_;
  Decoded decoded_;
};

class FileReader final : public TraceReader {
 public:
  FileReader(std::unique_ptr<trace::TraceFile> file, trace::TraceIndex index) : file_(std::move(file)), index_(std::move(index)) {
    const trace::FileHeader& h = index_.header;
    info_.version = h.version;
    info_.process = h.process;
    info_.parent = h.parent;
    info_.wall_clock_ns = h.wall_clock_ns;
    info_.began = TimePoint(h.began_ns);
    info_.lost = h.lost;
    info_.dropped_bytes = h.dropped_bytes;
    info_.command.assign(h.command, std::min<size_t>(h.command_bytes, sizeof h.command));
    std::replace(info_.command.begin(), info_.command.end(), '\0', ' ');
    while (info_.command.ends_with(' ')) info_.command.pop_back();
    for (const auto& [thread, places] : index_.by_thread) {
      for (const SegmentPlace& place : places) entries_ += place.entries;
    }
    Rewind();
  }

  void Rewind() override {
    info_.problems = index_.problems;
    cursors_.clear();
    heap_ = {};
    last_ = nullptr;
    read_ = 0;
    snapshot_ = std::make_unique<Cursor>(*file_, index_.snapshot, ThreadId(0));
    for (const auto& [thread, places] : index_.by_thread) {
      cursors_.push_back(std::make_unique<Cursor>(*file_, places, ThreadId(thread)));
      heap_.push(cursors_.back().get());
    }
  }

  bool Next(TraceEntry* entry) override {
    while (snapshot_ != nullptr) {
      if (!snapshot_->Advance(&info_.problems)) {
        snapshot_.reset();
        break;
      }
      if (Deliver(snapshot_->decoded(), ThreadId(0), entry)) return true;
    }
    while (true) {
      if (last_ != nullptr) {  // its texts were valid until now
        if (last_->Advance(&info_.problems)) heap_.push(last_);
        last_ = nullptr;
      }
      if (heap_.empty()) return false;
      Cursor* const first = heap_.top();
      heap_.pop();
      last_ = first;
      if (!first->ready()) continue;  // only now is its segment opened
      if (Deliver(first->decoded(), first->thread(), entry)) return true;
    }
  }

  [[nodiscard]] const TraceInfo& info() const override { return info_; }
  [[nodiscard]] std::string_view owner_name(OwnerId owner) const override {
    const auto found = owners_.find(owner.value());
    if (found != owners_.end()) return found->second;
    if (owner == kUnattributed) return "unattributed";
    return unknown_.try_emplace(owner.value(), fmt::format("owner {}", owner.value())).first->second;
  }
  [[nodiscard]] const std::vector<TraceFrame>& site(SiteId site) const override {
    static const std::vector<TraceFrame> none;
    const auto found = sites_.find(site.value());
    return found == sites_.end() ? none : found->second;
  }
  [[nodiscard]] double progress() const override {
    return entries_ == 0 ? 0 : std::min(1.0, static_cast<double>(read_) / static_cast<double>(entries_));
  }

 private:
  struct Later {
    bool operator()(const Cursor* a, const Cursor* b) const {
      return a->key() != b->key() ? a->key() > b->key() : a->thread() > b->thread();
    }
  };

  // Keeps names for itself; true if it is an entry for the caller.
  bool Deliver(const Decoded& d, ThreadId thread, TraceEntry* entry) {
    *entry = TraceEntry{};
    ++read_;
    if (d.is_record) {
      if (!cuts_.empty()) {
        const auto cut = cuts_.find({d.record.ledger.value(), d.record.thread.value()});
        if (cut != cuts_.end() && d.record.sequence <= cut->second) return false;  // it is in the snapshot
      }
      entry->record = d.record;
      return true;
    }
    const ExtraEntry& e = d.extra;
    entry->record.time = TimePoint(e.time);
    entry->record.thread = thread;
    entry->record.device = DeviceId(e.device);
    entry->text = e.text;
    switch (e.kind) {
      case Extra::kOwner: owners_.insert_or_assign(static_cast<uint32_t>(e.id), std::string(e.text)); return false;
      case Extra::kSite: sites_.insert_or_assign(static_cast<uint32_t>(e.id), std::vector<TraceFrame>{FrameOf(e.text)}); return false;
      case Extra::kModule: modules_.insert_or_assign(static_cast<uint32_t>(e.id), Module{std::string(e.text), std::string(e.text2)}); return false;
      case Extra::kStack: KeepStack(e); return false;
      case Extra::kCut:
        cuts_.insert_or_assign({static_cast<uint32_t>(e.id), static_cast<uint32_t>(e.value)}, e.more);
        return false;
      case Extra::kMark: entry->kind = EntryKind::kMark; return true;
      case Extra::kSettle:
        entry->kind = EntryKind::kSettle;
        entry->settle = static_cast<SettleStep>(std::min<uint64_t>(e.value, static_cast<uint64_t>(SettleStep::kEnd)));
        return true;
      case Extra::kFact:
        if (e.value > static_cast<uint64_t>(FactKind::kTensor)) return false;
        entry->kind = EntryKind::kFact;
        entry->fact = static_cast<FactKind>(e.value);
        entry->record.allocation = AllocationId(e.id);
        entry->value = e.more;
        return true;
      case Extra::kEndedScope:
      case Extra::kScopeEnded:
        entry->kind = EntryKind::kScopeEnded;
        entry->scope = ScopeId(static_cast<uint32_t>(e.id));
        return true;
      case Extra::kProgramEnded: entry->kind = EntryKind::kProgramEnded; return true;
      case Extra::kLive:
        entry->kind = EntryKind::kSnapshot;
        entry->record = d.record;
        entry->pending = e.value != 0;
        return true;
      case Extra::kPeak:
        entry->kind = EntryKind::kSnapshotPeak;
        entry->record.ledger = LedgerId(static_cast<uint32_t>(e.id));
        entry->value = e.value;
        entry->record.charged = Bytes(e.more);
        return true;
      case Extra::kPeakShare:
      case Extra::kLineage:
        entry->kind = e.kind == Extra::kLineage ? EntryKind::kSnapshotLineage : EntryKind::kSnapshotPeakShare;
        entry->record.ledger = LedgerId(static_cast<uint32_t>(e.id));
        entry->record.owner = OwnerId(static_cast<uint32_t>(e.value));
        entry->record.role = static_cast<Role>(std::min<uint64_t>(e.more, kRoleCount - 1));
        entry->value = e.kind == Extra::kLineage ? e.more : e.third;
        return true;
    }
    return false;
  }

  void KeepStack(const ExtraEntry& e) {
    std::vector<TraceFrame> frames;
    for (const trace::StackFrame& f : e.frames) {
      TraceFrame& frame = frames.emplace_back();
      frame.python = f.python;
      frame.function = f.function;
      frame.file = f.file;
      frame.line = f.line;
      frame.offset = f.offset;
      if (const auto module = modules_.find(f.module); !f.python && module != modules_.end()) {
        frame.file = module->second.path;
        frame.build_id = module->second.build_id;
      }
    }
    sites_.insert_or_assign(static_cast<uint32_t>(e.id), std::move(frames));
  }

  const std::unique_ptr<trace::TraceFile> file_;
  const trace::TraceIndex index_;
  TraceInfo info_;
  std::unique_ptr<Cursor> snapshot_;
  std::vector<std::unique_ptr<Cursor>> cursors_;
  std::priority_queue<Cursor*, std::vector<Cursor*>, Later> heap_;
  Cursor* last_ = nullptr;
  uint64_t entries_ = 0, read_ = 0;  // in the blocks; so far
  absl::flat_hash_map<uint32_t, std::string> owners_;
  mutable absl::flat_hash_map<uint32_t, std::string> unknown_;
  absl::flat_hash_map<uint32_t, std::vector<TraceFrame>> sites_;
  absl::flat_hash_map<uint32_t, Module> modules_;
  absl::flat_hash_map<std::pair<uint32_t, uint32_t>, uint64_t> cuts_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TraceReader>> TraceReader::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<trace::TraceFile>> file = trace::TraceFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<trace::TraceIndex> index = trace::MakeIndex(**file, path);
  if (!index.ok()) return index.status();
  return std::unique_ptr<TraceReader>(new FileReader(*std::move(file), *std::move(index)));
}

}  // namespace gpuledger
