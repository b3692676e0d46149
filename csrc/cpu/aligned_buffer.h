// Scratch memory aligned to a cache line. Large buffers are aligned to huge pages, which saves most page
// faults.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

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

  // Allocates at least size elements. Growing discards the contents.
  void reserve(int64_t size) {
    if (size <= size_) return;
    release();
    size_ = 0;
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    alignment_ = bytes < 2 * kHugePage ? kCacheLine : kHugePage;
    data_ = static_cast<T*>(::operator new(bytes, std::align_val_t{alignment_}));
    size_ = size;
#ifdef __linux__
    if (alignment_ == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);  // only a hint; may fail
#endif
  }

  int64_t size() const { return size_; }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  void swap(AlignedBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(alignment_, other.alignment_);
  }

 private:
  static constexpr size_t kCacheLine = 64, kHugePage = size_t{1} << 21;

  void release() {
    if (data_) ::operator delete(data_, std::align_val_t{alignment_});
    data_ = nullptr;
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
  size_t alignment_ = kCacheLine;
};

}  // namespace shfcas
