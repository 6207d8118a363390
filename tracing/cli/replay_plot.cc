#include "replay_plot.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "figures.h"

namespace gpuledger::cli {
namespace {

constexpr std::string_view kProgram = "gnuplot";

bool IsSvg(const std::string& path) { return path.ends_with(".svg"); }

bool OnPath(std::string_view program) {
  const char* const path = std::getenv("PATH");
  for (std::string_view rest = path != nullptr ? path : ""; !rest.empty();) {
    const size_t colon = rest.find(':');
    const std::string candidate = fmt::format("{}/{}", rest.substr(0, colon), program);
    if (::access(candidate.c_str(), X_OK) == 0) return true;
    if (colon == rest.npos) break;
    rest.remove_prefix(colon + 1);
  }
  return false;
}

// In gnuplot's single quotes only a quote is special.
std::string Quoted(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') quoted += '\'';
    if (static_cast<unsigned char>(c) >= ' ') quoted += c;
  }
  return quoted + "'";
}

struct Unit {
  double bytes;
  const char* name;
};

Unit UnitFor(Bytes peak) {
  constexpr Unit kUnits[] = {{1024.0 * 1024 * 1024, "GiB"}, {1024.0 * 1024, "MiB"}, {1024.0, "KiB"}};
  for (const Unit& unit : kUnits) {
    if (static_cast<double>(peak.count()) >= 2 * unit.bytes) return unit;
  }
  return {1, "B"};
}

std::string Script(const Replayed& r, const std::string& path, bool svg) {
  const replay::ReplayResult& result = r.result;
  const Bytes highest = std::max(result.peak_reserved, r.trace.peak_requested);
  const Unit unit = UnitFor(highest);
  const auto value = [&](Bytes size) { return static_cast<double>(size.count()) / unit.bytes; };
  const double seconds = std::max(static_cast<double>(r.trace.duration_us()) / 1e6, 1e-6);
  std::string title = std::filesystem::path(r.trace.path).filename().string();
  for (const std::string_view ending : {".gz", ".trace"}) {
    if (title.ends_with(ending)) title.resize(title.size() - ending.size());
  }
  std::string script;
  const auto say = [&](std::string_view line) { script.append(line).append("\n"); };
  say(svg ? "set terminal svg size 1200,640 dynamic enhanced background rgb 'white' font 'DejaVu Sans,15'"
          : "set terminal pngcairo size 1600,860 enhanced font 'DejaVu Sans,15' linewidth 1.3");
  say(fmt::format("set output {}", Quoted(path)));
  say("set encoding utf8");
  say("set termoption noenhanced");
  say(fmt::format("set title {} font 'DejaVu Sans,19' offset 0,1.2",
                  Quoted(fmt::format("{}: peak reserved {:.4f} \u00d7 peak requested{}", title, r.Ratio(result.peak_reserved),
                                     result.completed ? "" : "; out of memory"))));
  say("set border 3 linecolor rgb '#666666'");
  say("set tics nomirror textcolor rgb '#333333'");
  say("set grid linecolor rgb '#dddddd' linetype 1 linewidth 0.6");
  say("set key at graph 1, graph 1.01 right bottom horizontal samplen 2 width 2 Left reverse");
  say("set xlabel 'time of the trace (s)'");
  say(fmt::format("set ylabel 'memory ({})'", unit.name));
  say(fmt::format("set xrange [0:{}]", seconds));
  say(fmt::format("set yrange [0:{}]", value(highest) * 1.12));
  say("set lmargin 10\nset rmargin 4\nset bmargin 4\nset tmargin 5");
  const auto peak_line = [&](Bytes size, const char* what, const char* colour, const char* where) {
    say(fmt::format("set arrow from graph 0, first {0} to graph 1, first {0} nohead dashtype 2 linewidth 1.2 linecolor rgb '{1}' front",
                    value(size), colour));
    say(fmt::format("set label {} at graph 0.01, first {} left offset 0,{} textcolor rgb '{}' front",
                    Quoted(fmt::format("peak {}: {} ({})", what, Human(size), ToString(size))), value(size), where, colour));
  };
  peak_line(result.peak_reserved, "reserved", "#1f5a99", "0.6");
  peak_line(r.trace.peak_requested, "requested", "#b23a1e", "-0.7");
  say("$data << END");
  for (const replay::Sample& s : result.timeline) {
    say(fmt::format("{:.6f} {:.6f} {:.6f} {:.6f}", std::min(s.seconds, seconds), value(s.reserved), value(s.in_use),
                    value(s.requested)));
  }
  say("END");
  say("plot $data using 1:2 with filledcurves y1=0 fillcolor rgb '#dbe8f5' notitle, \\\n"
      "     $data using 1:3 with filledcurves y1=0 fillcolor rgb '#f6d9b8' title 'in use', \\\n"
      "     $data using 1:2 with lines linewidth 2 linecolor rgb '#1f5a99' title 'reserved', \\\n"
      "     $data using 1:4 with lines linewidth 1 linecolor rgb '#b23a1e' title 'requested'");
  return script;
}

// What gnuplot says goes to the caller's stderr.
absl::Status Run(const std::string& script) {
  std::FILE* const pipe = ::popen(std::string(kProgram).c_str(), "w");
  if (pipe == nullptr) return absl::UnavailableError(fmt::format("{} cannot be started: {}", kProgram, std::strerror(errno)));
  // If it ends before it has read all, its exit status tells, and not a signal that ends this program.
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  std::fwrite(script.data(), 1, script.size(), pipe);
  const int ended = ::pclose(pipe);
  std::signal(SIGPIPE, before);
  if (ended == 0) return absl::OkStatus();
  return absl::InternalError(fmt::format("{} ended with status {}", kProgram, WIFEXITED(ended) ? WEXITSTATUS(ended) : ended));
}

}  // namespace

absl::Status CheckPlot(const std::string& path) {
  if (!path.ends_with(".png") && !IsSvg(path)) {
    return absl::InvalidArgumentError(fmt::format("--plot {}: the name ends in .png or .svg, which says what is drawn", path));
  }
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(path, error).parent_path();
  if (!std::filesystem::is_directory(folder, error)) {
    return absl::NotFoundError(fmt::format("--plot {}: the directory it is to be in does not exist", path));
  }
  if (!OnPath(kProgram)) {
    return absl::NotFoundError(fmt::format("--plot: pictures are drawn by {}, which is not installed (Debian: gnuplot-nox)", kProgram));
  }
  return absl::OkStatus();
}

absl::Status WritePlot(const Replayed& replayed, const std::string& path) {
  const std::string whole = fmt::format("{}.{}.part", path, ::getpid());
  absl::Status status = Run(Script(replayed, whole, IsSvg(path)));
  std::error_code error;
  if (status.ok()) {
    std::filesystem::rename(whole, path, error);
    if (error) status = absl::InternalError(fmt::format("--plot {}: {}", path, error.message()));
  }
  if (!status.ok()) std::filesystem::remove(whole, error);
  return status;
}

}  // namespace gpuledger::cli
