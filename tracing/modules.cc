#include "modules.h"

#include <elf.h>
#include <limits.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include <fmt/format.h>

namespace gpuledger {
namespace {

struct Range {
  uintptr_t end;
  uint32_t module;
  uintptr_t load;
};

struct Modules {
  std::mutex mutex;
  std::deque<LoadedModule> all;              // by id, from 1
  std::map<uintptr_t, Range> code;           // executable ranges by their beginning
  std::map<std::pair<std::string, uint64_t>, uint32_t> ids;
  unsigned long long loads = 0, unloads = 0;  // the loader's counts when it was last looked at
};
Modules& All() {
  static auto& modules = *new Modules;
  return modules;
}

std::string BuildIdOf(const dl_phdr_info& info) {
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info.dlpi_phdr[i];
    if (part.p_type != PT_NOTE) continue;
    const char* at = reinterpret_cast<const char*>(info.dlpi_addr + part.p_vaddr);
    const char* const end = at + part.p_memsz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      ElfW(Nhdr) note;
      std::memcpy(&note, at, sizeof note);
      const char* const name = at + sizeof note;
      const char* const data = name + (note.n_namesz + 3) / 4 * 4;
      if (data + note.n_descsz > end) break;
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0) {
        std::string hex;
        for (uint32_t b = 0; b < note.n_descsz; ++b) hex += fmt::format("{:02x}", static_cast<unsigned char>(data[b]));
        return hex;
      }
      at = data + (note.n_descsz + 3) / 4 * 4;
    }
  }
  return "";
}

int Note(dl_phdr_info* info, size_t, void* argument) {
  Modules& modules = *static_cast<Modules*>(argument);
  std::string path = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  if (path.empty()) {  // the program itself comes first
    char own[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", own, sizeof own);
    if (length > 0) path.assign(own, static_cast<size_t>(length));
  }
  uint32_t& id = modules.ids[{path, info->dlpi_addr}];
  if (id == 0) {
    modules.all.push_back({path, BuildIdOf(*info), info->dlpi_addr});
    id = static_cast<uint32_t>(modules.all.size());
  }
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
    modules.code[begin] = {begin + part.p_memsz, id, info->dlpi_addr};
  }
  return 0;
}

struct Counts {
  unsigned long long loads = 0, unloads = 0;
};
Counts CountsNow() {
  Counts counts;
  const auto first = [](dl_phdr_info* info, size_t, void* to) {
    *static_cast<Counts*>(to) = {info->dlpi_adds, info->dlpi_subs};
    return 1;
  };
  dl_iterate_phdr(first, &counts);
  return counts;
}

void LookAgain(Modules& modules, const Counts& now) {
  modules.code.clear();  // what was unloaded may have left its place to another
  dl_iterate_phdr(Note, &modules);
  modules.loads = now.loads;
  modules.unloads = now.unloads;
}

const Range* Find(const Modules& modules, uintptr_t address) {
  const auto after = modules.code.upper_bound(address);
  if (after == modules.code.begin()) return nullptr;
  const Range& range = std::prev(after)->second;
  return address < range.end ? &range : nullptr;
}

}  // namespace

CodePlace PlaceOf(uintptr_t address) {
  Modules& modules = All();
  const std::lock_guard lock(modules.mutex);
  const Range* range = Find(modules, address);
  if (range == nullptr) {
    const Counts now = CountsNow();
    if (now.loads == modules.loads && now.unloads == modules.unloads) return {};  // generated code
    LookAgain(modules, now);
    range = Find(modules, address);
  }
  if (range == nullptr) return {};
  return {range->module, address - range->load};
}

bool SomethingWasUnloaded() {
  Modules& modules = All();
  const std::lock_guard lock(modules.mutex);
  const Counts now = CountsNow();
  if (now.unloads == modules.unloads) return false;
  LookAgain(modules, now);
  return true;
}

void LockModulesForFork() noexcept { All().mutex.lock(); }
void UnlockModulesAfterFork() noexcept { All().mutex.unlock(); }

bool ModuleById(uint32_t module, LoadedModule* found) {
  Modules& modules = All();
  const std::lock_guard lock(modules.mutex);
  if (module == 0 || module > modules.all.size()) return false;
  *found = modules.all[module - 1];
  return true;
}

}  // namespace gpuledger
