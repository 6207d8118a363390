// gpuledger run -- PROG ARGS: records a program, and reports when it ends.
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "commands.h"
#include "gpuledger/trace_reader.h"
#include "python_package.h"
#include "report_common.h"

namespace gpuledger::cli {
namespace {

volatile sig_atomic_t child = 0;

// What a process has sent to this one. What the terminal sends it sends to the program too, which must not get it twice.
void Forward(int signal, siginfo_t* from, void*) {
  if (child > 0 && from->si_code <= 0) kill(child, signal);
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}
std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// What the program under test finds in its environment: where to write, and for a Python the hook that attaches.
void PrepareEnvironment(const RunFlags& flags, const std::string& pattern) {
  // Whole, for children that are started somewhere else.
  char here[PATH_MAX];
  const bool relative = !pattern.starts_with('/') && getcwd(here, sizeof here) != nullptr;
  setenv("GPULEDGER_TRACE", (relative ? fmt::format("{}/{}", here, pattern) : pattern).c_str(), 1);
  setenv("GPULEDGER_STACKS", flags.stacks.c_str(), 1);
  if (!flags.limit.empty()) setenv("GPULEDGER_TRACE_LIMIT", flags.limit.c_str(), 1);
  if (!flags.way.empty()) setenv("GPULEDGER_TORCH", flags.way.c_str(), 1);
  TellPythonsOfLibraries();
  const std::string package = PackageFolder();
  if (package.empty()) return;
  PutFirstOnPythonPath(package + "/_hook");
  setenv("GPULEDGER_ATTACH", flags.attach.c_str(), 1);
}

// Files of the pattern that were begun since then: the program's own first, then its children's.
std::vector<std::string> TracesOf(const std::string& pattern, pid_t program, int64_t began_ns) {
  const std::string folder = FolderOf(pattern), name = NameOf(pattern);
  const size_t at = name.find("%p");
  const std::string front = name.substr(0, at), back = at == std::string::npos ? "" : name.substr(at + 2);
  std::vector<std::pair<bool, std::string>> found;
  if (DIR* const open = opendir(folder.c_str())) {
    while (const dirent* const entry = readdir(open)) {
      const std::string_view one(entry->d_name);
      if (!one.starts_with(front) || !one.ends_with(back)) continue;
      const std::string path = folder == "." && pattern.find('/') == std::string::npos ? std::string(one) : folder + "/" + entry->d_name;
      absl::StatusOr<std::unique_ptr<TraceReader>> trace = TraceReader::Open(path);
      if (!trace.ok() || (*trace)->info().wall_clock_ns < began_ns) continue;
      found.emplace_back((*trace)->info().process != static_cast<uint64_t>(program), path);
    }
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  std::vector<std::string> paths;
  for (auto& [other, path] : found) paths.push_back(std::move(path));
  return paths;
}

// Reports on stderr: stdout is the program's. What --check says of all of them.
ExitCode ReportOnAll(const std::vector<std::string>& traces, const RunFlags& flags, const ReportOptions& options) {
  const bool colour = isatty(STDERR_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  ExitCode worst = ExitCode::kFine;
  bool anything = false;
  for (size_t i = 0; i < traces.size(); ++i) {
    const absl::StatusOr<LeakReport> report = ReportOnFile(traces[i], options);
    if (!report.ok()) {
      worst = Fail(report.status(), false);
      continue;
    }
    if (i > 0 && report->allocations == 0) continue;  // a child that allocated nothing
    anything |= report->allocations > 0;
    std::string text = ToText(*report, colour);
    // Of children the summary alone, unless they leak.
    if (i > 0 && !HasLeaks(*report)) text = text.substr(text.rfind("SUMMARY"));
    if (!flags.no_report) {
      fmt::print(stderr, "\n{}\n{}trace:   {}\nnext:    gpuledger report {}{}\n", Describe(*report), text, traces[i], traces[i],
                 report->peak.is_zero() ? "" : " --blocks");
    }
    if (!flags.check) continue;
    const ExitCode code = CheckCode(*report, flags);
    if (worst != ExitCode::kLeaks && code != ExitCode::kFine) worst = code;
  }
  if (anything) return worst;
  fmt::print(stderr, "gpuledger: nothing was recorded: no way in attached (is it a program that links gpuledger, or a Python with torch? "
                     "gpuledger doctor says what works here)\n");
  return flags.check ? ExitCode::kInternal : ExitCode::kFine;
}

}  // namespace

void AddRunFlags(CLI::App& command, RunFlags& flags) {
  command.add_option("-o,--output", flags.output, "The trace; %p is the process id (default: gpuledger.PROG.%p.trace)");
  AddReportOptions(command, flags);
  command.add_flag("--no-report", flags.no_report, "Only records");
  command.add_option("--stacks", flags.stacks, "none, native, python or all")
      ->check(CLI::IsMember({"none", "native", "python", "all"}))->capture_default_str();
  command.add_option("--limit", flags.limit, "What the trace may take on disk, such as 8GiB; older entries are dropped beyond it (default: 2GiB)");
  command.add_option("--attach", flags.attach, "How to get into a Python program: torch (CPU and CUDA tensors), torch-cpu or none")
      ->check(CLI::IsMember({"torch", "torch-cpu", "none"}))->capture_default_str();
  command.add_option("--way", flags.way, "The way into PyTorch's CUDA memory: allocator, pluggable, observe or off (default: GPULEDGER_TORCH, else allocator)")
      ->check(CLI::IsMember({"allocator", "pluggable", "observe", "off"}));
  command.add_option("PROG", flags.program, "The program and its arguments, after --")->required();
  command.positionals_at_end();
}

int RunRun(const RunFlags& flags) {
  const absl::StatusOr<ReportOptions> options = ReportOptionsFrom(flags);
  if (!options.ok()) return static_cast<int>(Fail(options.status(), false));
  const std::string pattern = flags.output.empty() ? fmt::format("gpuledger.{}.%p.trace", NameOf(flags.program[0])) : flags.output;
  if (pattern.find("%p") == std::string::npos && Exists(pattern)) {
    return static_cast<int>(Fail(ExitCode::kUsage, fmt::format("{} exists already: a trace is never written over another file; remove it, or put %p into the name", pattern), false));
  }
  if (access(FolderOf(pattern).c_str(), W_OK) != 0) {
    return static_cast<int>(Fail(ExitCode::kUsage, fmt::format("{}: {}", FolderOf(pattern), std::strerror(errno)), false));
  }
  std::vector<char*> words;
  for (const std::string& word : flags.program) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  timespec began{};
  clock_gettime(CLOCK_REALTIME, &began);
  struct sigaction forward{};
  forward.sa_sigaction = Forward;
  forward.sa_flags = SA_SIGINFO;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaction(signal, &forward, nullptr);
  const pid_t program = fork();
  if (program < 0) return static_cast<int>(Fail(ExitCode::kInternal, fmt::format("fork: {}", std::strerror(errno)), false));
  if (program == 0) {
    for (const int one : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::signal(one, SIG_DFL);
    PrepareEnvironment(flags, pattern);
    execvp(words[0], words.data());
    const int error = errno;
    fmt::print(stderr, "gpuledger: {} cannot be run: {}\n", words[0], std::strerror(error));
    _exit(error == ENOENT ? 127 : 126);
  }
  child = program;
  int status = 0;
  while (waitpid(program, &status, 0) < 0 && errno == EINTR) {
  }
  child = 0;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (code == 126 || code == 127) return code;
  if (WIFSIGNALED(status)) fmt::print(stderr, "gpuledger: {} was ended by signal {} ({})\n", words[0], WTERMSIG(status), strsignal(WTERMSIG(status)));
  const ExitCode check = ReportOnAll(TracesOf(pattern, program, int64_t{began.tv_sec} * 1'000'000'000 + began.tv_nsec), flags, *options);
  return code != 0 ? code : static_cast<int>(check);
}

}  // namespace gpuledger::cli
