#include "gpuledger/leak_classes.h"

namespace gpuledger {

std::string_view LeakClassName(LeakClass leak_class) {
  switch (leak_class) {
    case LeakClass::kUnbalanced: return "unbalanced";
    case LeakClass::kDeferred: return "deferred";
    case LeakClass::kLost: return "lost";
    case LeakClass::kCycle: return "cycle";
    case LeakClass::kTracebackHeld: return "traceback-held";
    case LeakClass::kScopeEscape: return "scope escape";
    case LeakClass::kSuperseded: return "superseded";
    case LeakClass::kViewPinned: return "view-pinned";
    case LeakClass::kKept: return "kept";
  }
  return "";
}

}  // namespace gpuledger
