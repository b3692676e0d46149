// Host side of every CUDA op: device, stream, scratch memory, launch check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "cuda/kernel.cuh"

// Declared weak: it is missing from torch without CUDA, where no CUDA op is ever called.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace shfcas {

// Guard that makes a device current during its lifetime, for torch and for our (static) CUDA runtime.
class DeviceScope {
 public:
  DeviceScope(const char* op, const char* argument, const Tensor& tensor)
      : device_(cuda_device(op, argument, tensor)), guard_(device_) {
    check_cuda(cudaSetDevice(device_), "cudaSetDevice");
  }

  cudaStream_t current_stream() const {
    void* stream = nullptr;
    if (!aoti_torch_get_current_cuda_stream ||
        aoti_torch_get_current_cuda_stream(device_, &stream) != AOTI_TORCH_SUCCESS)
      throw std::runtime_error("shfcas: torch has no current CUDA stream");
    return static_cast<cudaStream_t>(stream);
  }

 private:
  // A CPU tensor arrives here if another argument is on a CUDA device.
  static int32_t cuda_device(const char* op, const char* argument, const Tensor& tensor) {
    if (!tensor.is_cuda()) fail(op, argument, "a CUDA tensor, as the other arguments", device_of(tensor));
    return tensor.get_device_index();
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Allocates kernel scratch memory with torch's allocator, which handles the current stream and graph capture.
inline Tensor new_scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op); }

}  // namespace shfcas
