// Names before what refers to them: owners, sites with their frames, modules.
#include <algorithm>
#include <functional>

#include "gpuledger/owner.h"
#include "gpuledger/sites.h"
#include "recorder_impl.h"

namespace gpuledger {

using trace::Extra;
using trace::ExtraEntry;
using trace::Ring;

void Recorder::Impl::WriteExtra(Ring& ring, const ExtraEntry& entry) {
  size_t bytes = 256 + std::min(entry.text.size(), trace::kLongestText / 2) + entry.text2.size();
  if (!entry.frames.empty()) bytes = trace::kLongestEntry;
  MakeRoom(ring, bytes);
  if (ring.at != nullptr) Commit(ring, trace::Encode(entry, ring.deltas, ring.at), entry.time);
}

void Recorder::Impl::NameOwner(Ring& ring, OwnerId owner, uint64_t time) {
  if (!owners.Contains(owner.value())) {
    WriteExtra(ring, {.kind = Extra::kOwner, .time = time, .id = owner.value(), .text = OwnerName(owner)});
    owners.Add(owner.value());
  }
  ring.known_owner = owner.value();
}

void Recorder::Impl::ForgetNamesIn(std::span<const unsigned char> segment) {
  trace::SegmentDecoder decoder(segment, ThreadId(0));
  for (trace::Decoded entry; decoder.Next(&entry);) {
    if (entry.is_record) continue;
    const auto id = static_cast<uint32_t>(entry.extra.id);
    if (entry.extra.kind == Extra::kOwner) owners.Remove(id);
    if (entry.extra.kind == Extra::kSite || entry.extra.kind == Extra::kStack) sites.Remove(id);
    if (entry.extra.kind == Extra::kModule) modules.Remove(id);
  }
}

namespace {

// The modules of a stack that `known` does not hold, then the stack.
void DescribeSite(SiteId site, uint64_t time, trace::IdSet& known, const std::function<void(const ExtraEntry&)>& write) {
  std::vector<SiteFrame> taken;
  if (!FramesOf(site, &taken)) {
    write({.kind = Extra::kSite, .time = time, .id = site.value(), .text = SiteName(site)});
    return;
  }
  std::vector<trace::StackFrame> frames;
  for (const SiteFrame& f : taken) {
    LoadedModule module;
    if (!f.python && f.module != 0 && !known.Contains(f.module) && ModuleById(f.module, &module)) {
      write({.kind = Extra::kModule, .time = time, .id = f.module, .value = module.load_address, .text = module.path, .text2 = module.build_id});
      known.Add(f.module);
    }
    frames.push_back({f.python, f.module, f.offset, f.function, f.file, f.line});
  }
  write({.kind = Extra::kStack, .time = time, .id = site.value(), .frames = frames});
}

}  // namespace

void Recorder::Impl::NameSite(Ring& ring, SiteId site, uint64_t time) {
  ring.known_site = site.value();
  if (site == kNoSite || sites.Contains(site.value())) return;
  DescribeSite(site, time, modules, [&](const ExtraEntry& entry) { WriteExtra(ring, entry); });
  sites.Add(site.value());
}

void Recorder::Impl::NameSites(const std::vector<uint32_t>& ids, const std::function<void(const ExtraEntry&)>& write) {
  trace::IdSet known;
  for (const uint32_t id : ids) {
    if (id != kNoSite.value()) DescribeSite(SiteId(id), 0, known, write);
  }
}

}  // namespace gpuledger
