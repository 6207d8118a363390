// Launches, which do nothing on a device, and what would fit on it.
#include <algorithm>

#include "driver.h"
#include "driver_functions.h"
#include "entry.h"
#include "module.h"
#include "stream.h"

namespace fake_cuda {
namespace {

constexpr unsigned kThreadsPerBlock = 1024, kThreadsPerProcessor = 2048, kBlocksPerProcessor = 32, kWarp = 32;
constexpr size_t kSharedPerProcessor = 233472, kReservedPerBlock = 1024;

CUresult Launch(CUfunction function, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared,
                CUstream stream) {
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
  const bool empty = grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || threads == 0;
  if (empty || threads > kThreadsPerBlock || shared > kSharedPerProcessor - kReservedPerBlock) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Node node{.type = CU_GRAPH_NODE_TYPE_KERNEL};
  node.kernel.func = function;
  node.kernel.gridDimX = grid[0];
  node.kernel.gridDimY = grid[1];
  node.kernel.gridDimZ = grid[2];
  node.kernel.blockDimX = block[0];
  node.kernel.blockDimY = block[1];
  node.kernel.blockDimZ = block[2];
  node.kernel.sharedMemBytes = shared;
  return Submit(stream, std::move(node));
}

unsigned BlocksPerProcessor(unsigned block, size_t shared) {
  if (block == 0 || block > kThreadsPerBlock) return 0;
  const unsigned rounded = (block + kWarp - 1) / kWarp * kWarp;
  const size_t by_shared = kSharedPerProcessor / (shared + kReservedPerBlock);
  return unsigned(std::min<size_t>({kThreadsPerProcessor / rounded, kBlocksPerProcessor, by_shared}));
}

CUresult MaxActive(int* blocks, CUfunction function, int block, size_t shared) {
  if (blocks == nullptr || block <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return *blocks = int(BlocksPerProcessor(unsigned(block), shared)), CUDA_SUCCESS;
}

CUresult MaxPotential(int* grid, int* block, CUfunction function, int limit) {
  if (grid == nullptr || block == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  constexpr int kProcessors = 132;
  *block = limit > 0 ? std::min(limit, int(kThreadsPerBlock)) : int(kThreadsPerBlock);
  *grid = kProcessors * int(BlocksPerProcessor(unsigned(*block), 0));
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void**, void**) {
  return Launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                   CUstream stream, void**) {
  return Launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void**, void**) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return Launch(function, {config->gridDimX, config->gridDimY, config->gridDimZ},
                {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes, config->hStream);
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  return Submit(stream, {.type = CU_GRAPH_NODE_TYPE_HOST, .work = [=] { function(data); }});
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int block, size_t shared) {
  return MaxActive(blocks, function, block, shared);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int block,
                                                              size_t shared, unsigned) {
  return MaxActive(blocks, function, block, shared);
}

CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction function, CUoccupancyB2DSize, size_t,
                                          int limit) {
  return MaxPotential(grid, block, function, limit);
}

CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, CUfunction function, CUoccupancyB2DSize,
                                                   size_t, int limit, unsigned) {
  return MaxPotential(grid, block, function, limit);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* shared, CUfunction function, int blocks, int block) {
  if (shared == nullptr || blocks <= 0 || block <= 0) return CUDA_ERROR_INVALID_VALUE;
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  const size_t each = kSharedPerProcessor / size_t(blocks);
  return *shared = each > kReservedPerBlock ? each - kReservedPerBlock : 0, CUDA_SUCCESS;
}

CUresult cuOccupancyMaxPotentialClusterSize(int* size, CUfunction function, const CUlaunchConfig*) {
  if (size == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return *size = 8, CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig*) {
  if (clusters == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (driver().functions.Find(function) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  return *clusters = 16, CUDA_SUCCESS;
}

}  // namespace fake_cuda
