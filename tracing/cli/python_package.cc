#include "python_package.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include <fmt/format.h>

namespace gpuledger::cli {
namespace {

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// The folder of this program's file, "" if it cannot be found out.
std::string OwnFolder() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) return "";
  const std::string whole(path, static_cast<size_t>(length));
  return whole.substr(0, whole.rfind('/'));
}

}  // namespace

std::string PackageFolder() {
  const std::string own = OwnFolder();
  for (const char* const place : {"/../../../tracing/python/gpuledger", "/..", "/../share/gpuledger/python/gpuledger"}) {
    if (!Exists(own + place + "/_hook/sitecustomize.py")) continue;
    char resolved[PATH_MAX];
    return realpath((own + place).c_str(), resolved) != nullptr ? resolved : own + place;
  }
  return "";
}

void TellPythonsOfLibraries() {
  const std::string libraries = OwnFolder() + "/../lib";
  if (!Exists(libraries + "/libgpuledger.so")) return;
  setenv("GPULEDGER_LIBRARY", (libraries + "/libgpuledger.so").c_str(), /*overwrite=*/0);
  if (Exists(libraries + "/libgpuledger_torch.so")) setenv("GPULEDGER_TORCH_LIBRARY", (libraries + "/libgpuledger_torch.so").c_str(), /*overwrite=*/0);
}

void PutFirstOnPythonPath(const std::string& folder) {
  const char* const before = std::getenv("PYTHONPATH");
  setenv("PYTHONPATH", before != nullptr && *before != '\0' ? fmt::format("{}:{}", folder, before).c_str() : folder.c_str(), 1);
}

}  // namespace gpuledger::cli
