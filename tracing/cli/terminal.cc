#include "terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "figures.h"

namespace gpuledger::cli {
namespace {

bool IsSet(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

bool IsCapable(std::FILE* stream) {
  const char* const term = std::getenv("TERM");
  return isatty(fileno(stream)) != 0 && (term == nullptr || std::string_view(term) != "dumb");
}

std::string Duration(double seconds) {
  const auto whole = static_cast<uint64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h", whole / 3600, whole / 60 % 60);
}

}  // namespace

Style::Style(std::FILE* stream) : colour_(IsCapable(stream) && !IsSet("NO_COLOR")) {}

std::string Style::Paint(std::string_view code, std::string_view text) const {
  return colour_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

ProgressBar::ProgressBar(std::string_view label)
    : label_(label),
      terminal_(IsCapable(stderr)),
      start_(std::chrono::steady_clock::now()),
      next_(start_ + std::chrono::seconds(1)) {}

void ProgressBar::Draw(double part, const std::function<std::string(double seconds)>& figures) {
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  constexpr int kWidth = 30;
  part = std::clamp(part, 0.0, 1.0);
  const int filled = static_cast<int>(part * kWidth);
  const std::chrono::duration<double> took = now - start_;
  const double left = part > 0 ? took.count() * (1 - part) / part : 0;
  fmt::print(stderr, "\r\x1b[K  {} [{:#<{}}{:.<{}}] {:3.0f} %  {}  {} left", label_, "", filled, "", kWidth - filled,
             100 * part, figures(took.count()), Duration(left));
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::Update(Bytes done, Bytes total) {
  if (total.is_zero()) return;
  Draw(static_cast<double>(done.count()) / static_cast<double>(total.count()), [&](double seconds) {
    return fmt::format("{} of {}  {:.2f} GB/s", Human(done), Human(total),
                       static_cast<double>(done.count()) / 1e9 / seconds);
  });
}

void ProgressBar::Update(uint64_t done, uint64_t total, std::string_view unit) {
  if (total == 0) return;
  Draw(static_cast<double>(done) / static_cast<double>(total),
       [&](double) { return fmt::format("{} of {} {}", Count(done), Count(total), unit); });
}

void ProgressBar::Erase() {
  if (drawn_) fmt::print(stderr, "\r\x1b[K");
  drawn_ = false;
}

}  // namespace gpuledger::cli
