// Modules, libraries and kernels. An image is not looked into: any name is a kernel of it, and running one does
// nothing.
#pragma once

#include <map>
#include <string>

#include "driver.h"

namespace fake_cuda {

struct Module {
  Context* context = nullptr;  // null: of a library, which belongs to no context
  std::map<std::string, Function*> functions;
};

// A CUfunction or a CUkernel: the fake makes no difference.
struct Function {
  Context* context = nullptr;
  Module* module = nullptr;
  std::string name;
  std::map<CUfunction_attribute, int> attributes;
};

}  // namespace fake_cuda
