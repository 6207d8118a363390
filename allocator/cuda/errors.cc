// What the driver's errors mean, and what to do about them.
#include <fmt/format.h>

#include "driver.h"

namespace gpuledger::cuda {

std::string_view Remedy(Result result) {
  switch (result) {
    case kOutOfMemory:
      return "; free memory that this process or others hold on the device (nvidia-smi lists them)";
    case kNotInitialized:
      return "; was this process forked from one that uses CUDA? Start it with spawn instead";
    case kDeinitialized:
      return "; the driver is shutting down: the process is at its end";
    case kStubLibrary:
      return "; the libcuda.so.1 that was found is the toolkit's stub, for linking only: take its folder (stubs) out "
             "of "
             "LD_LIBRARY_PATH";
    case kDeviceUnavailable:
      return "; another process has the device for itself (nvidia-smi -q -d COMPUTE), or it is partitioned (MIG) and "
             "no "
             "instance is assigned";
    case kNoDevice:
      return "; no GPU is visible: look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and in a container at --gpus all";
    case kInvalidDevice:
      return "; nvidia-smi -L lists the devices, and CUDA_VISIBLE_DEVICES hides some";
    case kInvalidContext:
    case kContextIsDestroyed:
      return "; the device's primary context is gone (cudaDeviceReset, or the last release of it): open a new upstream "
             "afterwards";
    case kEccUncorrectable:
      return "; the GPU's memory has a fault: reset or replace it (nvidia-smi -q -d ECC)";
    case kOperatingSystem:
      return "; the operating system refused: look at ulimit -n, ulimit -v, and at the permissions of /dev/nvidia*";
    case kInvalidHandle:
      return "; was the stream destroyed, or made in another context than the device's primary one?";
    case kIllegalAddress:
    case kLaunchFailed:
      return "; a kernel has failed earlier and the context is lost: compute-sanitizer names the kernel and the "
             "address";
    case kNotPermitted:
      return "; the call is not permitted here, for instance from a host function of a stream";
    case kSystemNotReady:
      return "; the fabric manager does not run: systemctl start nvidia-fabricmanager";
    case kSystemDriverMismatch:
      return "; the driver's kernel module and its library are of different versions: reboot after the update";
    case kCompatNotSupportedOnDevice:
      return "; a forward-compatibility libcuda.so.1 is used on a GPU that has none: remove cuda-compat from the "
             "search "
             "path";
    case kStreamCaptureUnsupported:
    case kStreamCaptureImplicit:
      return "; a stream is being captured into a graph: do it before or after the capture";
    case kUnknown:
      return "; the kernel log (dmesg, lines with NVRM) may tell more; nvidia-modprobe -u -c 0 often helps";
    default:
      return "";
  }
}

absl::Status CudaStatus(const Driver& driver, Result result, std::string_view call, std::string_view what) {
  if (result == kSuccess) return absl::OkStatus();
  const char* name = nullptr;
  if (driver.cuGetErrorName(result, &name) != kSuccess || name == nullptr) name = "an error without a name";
  const std::string message =
      fmt::format("{}: {} failed with {} ({}){}", what, call, name, static_cast<int>(result), Remedy(result));
  return result == kOutOfMemory ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

}  // namespace gpuledger::cuda
