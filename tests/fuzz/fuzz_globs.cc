// Owner globs: first line the glob, then the name. Whatever they are, the answer comes, and comes soon.
#include "fuzz_files.h"
#include "gpuledger/owner.h"

using namespace gpuledger;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = TextOf(data, size);
  const size_t line = text.find('\n');
  const std::string_view glob = text.substr(0, line);
  const std::string_view name = line == text.npos ? glob : text.substr(line + 1);
  const bool matches = OwnerMatches(glob, name);
  if (glob.find('*') == glob.npos) Ensure(matches == (glob == name));
  Ensure(OwnerMatches("**", name));
  return 0;
}
