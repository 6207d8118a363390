// cli/python_package.h - the Python package that came with this program, for the Pythons that it starts.
#pragma once

#include <string>

namespace gpuledger::cli {

// The package's folder: of a checkout, an installed wheel, an installed package; "" if there is none beside this program.
std::string PackageFolder();

// Tells Pythons that are started from here which libraries to load, unless the environment says so already.
void TellPythonsOfLibraries();

// Puts a folder in front of PYTHONPATH.
void PutFirstOnPythonPath(const std::string& folder);

}  // namespace gpuledger::cli
