// Scratch memory that begins at a cache line.
#pragma once

#include <cstdint>
#include <new>
#include <utility>

namespace shfcas {

template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { release(); }

  // Room for at least size elements, of which nothing is kept when it grows.
  void reserve(int64_t size) {
    if (size <= size_) return;
    release();
    size_ = 0;
    data_ = static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kAlignment));
    size_ = size;
  }

  int64_t size() const { return size_; }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr;
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace shfcas
