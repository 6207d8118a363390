// cli/terminal.h - colour and progress, both only where a person is looking.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>

#include "gpuledger/types.h"

namespace gpuledger::cli {

// Paints text if `stream` is a terminal, NO_COLOR is unset or empty, and TERM is not dumb.
class Style {
 public:
  explicit Style(std::FILE* stream);
  [[nodiscard]] std::string Good(std::string_view text) const { return Paint("32", text); }
  [[nodiscard]] std::string Bad(std::string_view text) const { return Paint("1;31", text); }
  [[nodiscard]] std::string Bold(std::string_view text) const { return Paint("1", text); }
  [[nodiscard]] std::string Dim(std::string_view text) const { return Paint("2", text); }

 private:
  [[nodiscard]] std::string Paint(std::string_view code, std::string_view text) const;
  bool colour_;
};

// A bar on stderr, if that is a terminal, for what takes over a second. Erased when it dies.
class ProgressBar {
 public:
  explicit ProgressBar(std::string_view label);
  ~ProgressBar() { Erase(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void Update(Bytes done, Bytes total);
  void Update(uint64_t done, uint64_t total, std::string_view unit);

 private:
  // `figures` is asked for when it is time to draw: "3 of 5 files".
  void Draw(double part, const std::function<std::string(double seconds)>& figures);
  void Erase();
  const std::string label_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point next_;
  bool drawn_ = false;
};

}  // namespace gpuledger::cli
