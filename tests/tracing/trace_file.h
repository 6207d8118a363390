// trace_file.h - traces for tests: rows written into a file that is gone after the test.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "allocation_trace.h"

namespace gpuledger::testing {

class TraceFile {
 public:
  static constexpr const char* kHeader = "op,id,size,stream,time_us\n";

  explicit TraceFile(const std::string& rows, const std::string& header = kHeader) {
    gzFile file = gzopen(path_.c_str(), "wb");
    const std::string text = header + rows;
    EXPECT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())), static_cast<int>(text.size()));
    EXPECT_EQ(gzclose(file), Z_OK);
  }
  TraceFile(const TraceFile&) = delete;
  ~TraceFile() { std::filesystem::remove(path_); }

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string bytes() const {
    std::ostringstream content;
    content << std::ifstream(path_, std::ios::binary).rdbuf();
    return content.str();
  }
  void Replace(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

 private:
  static std::string NewPath() {
    static std::atomic<int> count = 0;
    return fmt::format("{}gpuledger-{}-{}.trace.gz", ::testing::TempDir(), ::getpid(), ++count);
  }
  const std::string path_ = NewPath();
};

inline replay::AllocationTrace TraceOf(const std::string& rows) {
  return replay::ReadAllocationTrace(TraceFile(rows).path()).value();
}

}  // namespace gpuledger::testing
