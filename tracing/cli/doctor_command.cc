// gpuledger doctor: what works here, one line each, with one remedy where it does not.
#include <dlfcn.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <fmt/format.h>

#include "commands.h"
#include "gpuledger/cuda_upstream.h"
#include "json.h"
#include "python_package.h"
#include "terminal.h"

namespace gpuledger::cli {
namespace {

struct Finding {
  std::string what;
  bool good;
  std::string found;
  std::string remedy;  // "" if good
};

// What a shell command prints, and its exit code.
std::pair<std::string, int> Ask(const std::string& command) {
  std::string text;
  std::FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return {"", 127};
  std::array<char, 4096> buffer{};
  for (size_t got; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) text.append(buffer.data(), got);
  const int status = pclose(pipe);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return {text, WEXITSTATUS(status)};
}

Finding Driver() {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) {
    return {"CUDA driver", false, "libcuda.so.1 is not here", "install the NVIDIA driver; without it the CPU ways in work (torch on the CPU, host memory)"};
  }
  const absl::StatusOr<std::unique_ptr<CudaUpstream>> upstream = CudaUpstream::Open(DeviceId{0});
  if (!upstream.ok()) return {"CUDA driver", false, std::string(Message(upstream.status())), "see that nvidia-smi lists a device for this user"};
  return {"CUDA driver", true, fmt::format("{}, {} of memory", (*upstream)->name(), ToString((*upstream)->memory_info().total)), ""};
}

Finding Python() {
  const auto [text, code] = Ask("python3 -c 'import sys; print(sys.version.split()[0])'");
  if (code != 0) return {"Python", false, "python3 is not here", "install Python 3.10 or newer for gpuledger run -- python ..."};
  int major = 0, minor = 0;
  if (std::sscanf(text.c_str(), "%d.%d", &major, &minor) == 2 && (major > 3 || minor >= 10)) return {"Python", true, text, ""};
  return {"Python", false, text, "the package needs Python 3.10 or newer"};
}

Finding Torch() {
  const auto [text, code] = Ask("python3 -c 'import torch; print(torch.__version__)'");
  if (code != 0) return {"PyTorch", false, "python3 cannot import torch", "activate the environment that has it, or pip install torch==2.11.0"};
  const auto [attach, failed] = Ask("python3 -c 'import gpuledger.torch as t; t.install_cpu(); print(\"attaches on the CPU\")'");
  const size_t line = attach.rfind('\n');
  const std::string last = line == std::string::npos ? attach : attach.substr(line + 1);
  if (failed == 0) return {"PyTorch", true, fmt::format("{}, {}", text, last), ""};
  return {"PyTorch", false, fmt::format("{}, but gpuledger.torch does not load: {}", text, last), "build it with this environment's torch: pip install . in the checkout of gpuledger"};
}

Finding CudaMemory() {
  const auto [text, code] = Ask(R"(python3 -c 'from gpuledger._ways import outlook; print("\n" + "\n".join(map(str, outlook())))')");
  // Three lines, the last ones: whether it works, what was found, the remedy. The last one may be empty, and is then gone.
  const size_t at = text.rfind("\nTrue\n") != std::string::npos ? text.rfind("\nTrue\n") : text.rfind("\nFalse\n");
  if (code != 0 || at == std::string::npos) {
    return {"CUDA memory", false, "PyTorch's CUDA memory cannot be recorded", "pip install . in the checkout of gpuledger, with the Python that has torch"};
  }
  const bool good = text[at + 1] == 'T';
  const size_t found = text.find('\n', at + 1) + 1, end = text.find('\n', found);
  return {"CUDA memory", good, text.substr(found, end - found), good || end == std::string::npos ? "" : text.substr(end + 1)};
}

Finding Traces() {
  if (access(".", W_OK) != 0) return {"traces", false, "this folder cannot be written", "run in another one, or say where with gpuledger run -o FILE"};
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  if (limit.rlim_cur != RLIM_INFINITY) {
    return {"traces", false, fmt::format("files may have {} bytes at most", limit.rlim_cur), "ulimit -f unlimited"};
  }
  return {"traces", true, "this folder takes them", ""};
}

}  // namespace

ExitCode RunDoctor(const DoctorFlags& flags) {
  // As `run` finds them: what came with this program need not be installed.
  TellPythonsOfLibraries();
  if (const std::string package = PackageFolder(); !package.empty()) PutFirstOnPythonPath(package.substr(0, package.rfind('/')));
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  const Style style(stdout);
  for (const Finding& f : {Driver(), Python(), Torch(), CudaMemory(), Traces()}) {
    if (flags.json) {
      json.push_back({{"what", f.what}, {"works", f.good}, {"found", f.found}, {"remedy", f.remedy}});
      continue;
    }
    fmt::print("{}  {:<12} {}\n", f.good ? style.Good("ok") : style.Bad("--"), f.what, f.found);
    if (!f.good) fmt::print("      {:<10} {}\n", "remedy", f.remedy);
  }
  if (flags.json) PrintJson({{"findings", json}});
  return ExitCode::kFine;
}

}  // namespace gpuledger::cli
