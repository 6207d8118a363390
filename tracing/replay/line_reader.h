// tracing/replay/line_reader.h - the lines of a gzip file, one after the other.
#pragma once

#include <zlib.h>

#include <string>
#include <string_view>
#include <vector>

#include <absl/status/statusor.h>

#include "gpuledger/types.h"

namespace gpuledger::replay {

class LineReader {
 public:
  // kNotFound or kInvalidArgument with the path.
  static absl::StatusOr<LineReader> Open(const std::string& path);
  LineReader(LineReader&& other) noexcept;
  LineReader& operator=(LineReader&&) = delete;
  ~LineReader();

  // False at the end. The line, without its end ("\n" or "\r\n"), is valid until the next call. kInvalidArgument, without
  // path and line, if the file is not gzip, ends too early or is damaged, or a line is longer than any of a trace.
  absl::StatusOr<bool> Next(std::string_view* line);

  [[nodiscard]] Bytes compressed_size() const { return size_; }
  [[nodiscard]] Bytes compressed_position() const;

 private:
  LineReader(gzFile file, Bytes size);
  // More of the file behind what is left of the buffer; false if there is no more.
  absl::StatusOr<bool> Fill();

  gzFile file_;
  Bytes size_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // what of the buffer is still to be read
};

}  // namespace gpuledger::replay
