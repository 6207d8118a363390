#include "gpuledger/symbolise.h"

#include <cxxabi.h>
#include <elfutils/libdwfl.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include <fmt/format.h>

namespace gpuledger {
namespace {

std::string Demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> plain(abi::__cxa_demangle(name, nullptr, nullptr, &status), &std::free);
  return status == 0 && plain != nullptr ? plain.get() : name;
}

// One file of code, opened once. Offsets are those of its image; its load address here is an arbitrary one.
class ModuleFile {
 public:
  ModuleFile(const std::string& path, const std::string& build_id) {
    static const Dwfl_Callbacks callbacks = {.find_elf = dwfl_build_id_find_elf, .find_debuginfo = dwfl_standard_find_debuginfo,
                                             .section_address = dwfl_offline_section_address, .debuginfo_path = nullptr};
    dwfl_ = dwfl_begin(&callbacks);
    if (dwfl_ == nullptr || access(path.c_str(), R_OK) != 0) return;
    dwfl_report_begin(dwfl_);
    module_ = dwfl_report_elf(dwfl_, path.c_str(), path.c_str(), -1, kBase, false);
    dwfl_report_end(dwfl_, nullptr, nullptr);
    if (module_ == nullptr) return;
    GElf_Addr bias = 0;
    if (dwfl_module_getelf(module_, &bias) == nullptr) {
      module_ = nullptr;
      return;
    }
    const unsigned char* bits = nullptr;
    GElf_Addr at = 0;
    const int length = dwfl_module_build_id(module_, &bits, &at);
    std::string found;
    for (int i = 0; i < length; ++i) found += fmt::format("{:02x}", bits[i]);
    if (!build_id.empty() && found != build_id) module_ = nullptr;  // another build: its names would be wrong
    bias_ = bias;
  }
  ~ModuleFile() {
    if (dwfl_ != nullptr) dwfl_end(dwfl_);
  }
  ModuleFile(const ModuleFile&) = delete;
  ModuleFile& operator=(const ModuleFile&) = delete;

  void Name(TraceFrame& frame) {
    if (module_ == nullptr) return;
    const GElf_Addr address = bias_ + frame.offset;
    if (const char* const name = dwfl_module_addrname(module_, address); name != nullptr) frame.function = Demangled(name);
    Dwfl_Line* const line = dwfl_module_getsrc(module_, address);
    int number = 0;
    if (line == nullptr) return;
    const char* const source = dwfl_lineinfo(line, nullptr, &number, nullptr, nullptr, nullptr);
    if (source == nullptr || number <= 0) return;
    frame.file = source;
    frame.line = static_cast<uint32_t>(number);
  }

 private:
  static constexpr GElf_Addr kBase = 0x10000000;
  Dwfl* dwfl_ = nullptr;
  Dwfl_Module* module_ = nullptr;
  GElf_Addr bias_ = 0;
};

}  // namespace

void Symbolise(std::vector<TraceFrame>& frames) {
  // libdw is not made for threads.
  static std::mutex mutex;
  static auto& modules = *new std::map<std::pair<std::string, std::string>, std::unique_ptr<ModuleFile>>;
  const std::lock_guard lock(mutex);
  for (TraceFrame& frame : frames) {
    if (frame.python || !frame.function.empty() || frame.file.empty()) continue;
    std::unique_ptr<ModuleFile>& module = modules[{frame.file, frame.build_id}];
    if (module == nullptr) module = std::make_unique<ModuleFile>(frame.file, frame.build_id);
    module->Name(frame);
  }
}

}  // namespace gpuledger
