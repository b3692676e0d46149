// What every CUDA op does around its kernel: device, stream, grid, launch check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "core/rows.h"
#include "cuda/for_each_row.cuh"

// Declared weak, for it is missing from a torch without CUDA, where no CUDA op is ever called.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace shfcas {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device current while it lives, for torch and for our own (static) CUDA runtime.
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
  // A CPU tensor gets here when another argument is on a CUDA device.
  static int32_t cuda_device(const char* op, const char* argument, const Tensor& tensor) {
    if (!tensor.is_cuda()) fail(op, argument, "a CUDA tensor, as the other arguments", device_of(tensor));
    return tensor.get_device_index();
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// Runs row(team, r) for every row: a thread each when rows are short, else a block each.
template <class Row>
void launch_rows(const char* op, const Rows& rows, cudaStream_t stream, const Row& row) {
  if (rows.count == 0) return;
  constexpr int64_t longest_for_a_thread = 32;
  const bool short_rows = rows.mean_length() <= longest_for_a_thread;
  const int64_t blocks = short_rows ? (rows.count + kBlockThreads - 1) / kBlockThreads : rows.count;
  const auto grid =
      static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20));  // the kernels stride over the rest
  if (short_rows)
    thread_per_row<<<grid, kBlockThreads, 0, stream>>>(rows.count, row);
  else
    block_per_row<<<grid, kBlockThreads, 0, stream>>>(rows.count, row);
  check_cuda(cudaGetLastError(), op);
}

}  // namespace shfcas
