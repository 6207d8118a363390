// workspaces.h - memory that PyTorch keeps for a library, under its name.
#pragma once

namespace gpuledger::pytorch {

// Makes the workspaces of cuBLAS and cuBLASLt pay under those names, role scratch: PyTorch buys one for each thread and stream at the
// first product, in whatever scope that happens to be, and keeps it. Nothing without CUDA. Thread-safe; takes a microsecond.
void NameWorkspaces();

}  // namespace gpuledger::pytorch
