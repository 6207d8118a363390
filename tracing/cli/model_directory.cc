#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "commands.h"

namespace gpuledger::cli {
namespace {

namespace fs = std::filesystem;

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The same order in which the huggingface_hub package looks.
fs::path HubCache() {
  if (const std::string hub = Environment("HF_HUB_CACHE"); !hub.empty()) return hub;
  if (const std::string home = Environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (const std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty())
    return fs::path(cache) / "huggingface/hub";
  return fs::path(Environment("HOME")) / ".cache/huggingface/hub";
}

// "org/name" or "name", of characters that the hub allows: nothing that could lead out of the cache.
bool IsHubName(const std::string& name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.' || c == '/';
  };
  return !name.empty() && name.front() != '/' && name.back() != '/' && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), allowed) && std::count(name.begin(), name.end(), '/') <= 1 &&
         name.find("..") == std::string::npos;
}

bool IsRevision(const std::string& text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace

absl::StatusOr<std::string> ModelDirectory(const std::string& model) {
  std::error_code error;
  if (fs::is_directory(model, error)) return model;
  if (model.starts_with("synth:")) {
    return absl::InvalidArgumentError(fmt::format("{}: a model without a disk is named by --source {}", model, model));
  }
  if (fs::exists(model, error)) {
    return absl::InvalidArgumentError(
        fmt::format("{}: a file; MODEL is the directory that holds model.safetensors", model));
  }
  if (!IsHubName(model)) return absl::NotFoundError(fmt::format("{}: no such directory", model));
  const fs::path cache = HubCache();
  std::string folder = "models--" + model;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const fs::path entry = cache / folder;
  if (!fs::is_directory(entry, error)) {
    return absl::NotFoundError(fmt::format(
        "{}: no such directory, and no model of this name in the Hugging Face cache {}", model, cache.string()));
  }
  std::string revision;
  std::ifstream(entry / "refs/main") >> revision;
  const fs::path snapshot = entry / "snapshots" / revision;
  if (!IsRevision(revision) || !fs::is_directory(snapshot, error)) {
    return absl::NotFoundError(
        fmt::format("{}: {} has no snapshot of `main`; download the model again", model, entry.string()));
  }
  return snapshot.string();
}

}  // namespace gpuledger::cli
