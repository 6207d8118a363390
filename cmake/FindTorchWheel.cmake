# LibTorch out of the PyPI wheel, as the imported target torch_wheel (CPU part only).
# The wheel's own CMake files ask for a CUDA toolkit, so its libraries are imported directly.
# -E: pip hides the environment that it installs into by variables, from a build.
execute_process(COMMAND ${GPULEDGER_PYTHON} -E -c
  "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE torch_missing)
if(torch_missing OR NOT EXISTS ${torch_dir}/lib/libtorch_cpu.so)
  message(STATUS "gpuledger: LibTorch part left out: ${GPULEDGER_PYTHON} has no torch (pip install -r requirements.txt)")
  return()
endif()
file(STRINGS ${torch_dir}/version.py torch_version REGEX "^__version__ = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+" GPULEDGER_TORCH_VERSION "${torch_version}")
# Holders and workspaces are read out of PyTorch's own objects, whose layout others may not share.
set(GPULEDGER_TORCH_SUPPORTED 2.11)
if(NOT GPULEDGER_TORCH_VERSION VERSION_EQUAL GPULEDGER_TORCH_SUPPORTED)
  message(WARNING "gpuledger: LibTorch part left out: it is made for PyTorch ${GPULEDGER_TORCH_SUPPORTED}, ${torch_dir} is "
                  "${GPULEDGER_TORCH_VERSION}; there the pluggable way serves")
  return()
endif()

add_library(torch_wheel INTERFACE IMPORTED)
target_include_directories(torch_wheel SYSTEM INTERFACE ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
target_link_libraries(torch_wheel INTERFACE ${torch_dir}/lib/libc10.so ${torch_dir}/lib/libtorch_cpu.so)
# libtorch_cpu finds its CUDA libraries by its own run path; they are not ours to resolve.
target_link_options(torch_wheel INTERFACE -Wl,--unresolved-symbols=ignore-in-shared-libs -Wl,-rpath,${torch_dir}/lib)
target_compile_definitions(torch_wheel INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
message(STATUS "gpuledger: LibTorch ${GPULEDGER_TORCH_VERSION} in ${torch_dir}")

# The allocator of CUDA memory alone, as torch_cuda_wheel. No run path: who runs a program of it says where PyTorch is, since
# that may be another machine's.
if(NOT EXISTS ${torch_dir}/lib/libc10_cuda.so)
  message(STATUS "gpuledger: PyTorch's CUDA allocator, the peer in bench, left out: ${torch_dir} was built without CUDA")
  return()
endif()
add_library(torch_cuda_wheel INTERFACE IMPORTED)
target_include_directories(torch_cuda_wheel SYSTEM INTERFACE ${torch_dir}/include)
target_link_libraries(torch_cuda_wheel INTERFACE ${torch_dir}/lib/libc10.so ${torch_dir}/lib/libc10_cuda.so)
target_link_options(torch_cuda_wheel INTERFACE -Wl,--unresolved-symbols=ignore-in-shared-libs)
target_compile_definitions(torch_cuda_wheel INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
