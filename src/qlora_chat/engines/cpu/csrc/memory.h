// Memory that is zero at first: for intermediate results, and for weights, which lie in huge pages in the order of packing.
//
// Scope: where bytes come from and when they go back.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#ifdef __linux__
#include <sys/mman.h>
#endif

constexpr size_t HUGE_PAGE = size_t(2) << 20, LINE = 64;

struct Freed {
  void operator()(void* p) const { std::free(p); }
};

inline std::shared_ptr<uint8_t> zeros(size_t bytes) {
  const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : LINE;
  bytes = (std::max(bytes, size_t(1)) + page - 1) / page * page;
  auto* data = (uint8_t*)std::aligned_alloc(page, bytes);
  if (!data) throw std::bad_alloc();
  std::shared_ptr<uint8_t> owned(data, Freed{});
#ifdef MADV_HUGEPAGE
  if (page == HUGE_PAGE) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, bytes);
  return owned;
}

// Hands out pieces of large blocks one after the other. A model's matrices are smaller than huge pages, or end in the
// middle of one: apart from each other they would lie in small pages, or leave a megabyte unused each.
class Shelf {
 public:
  std::shared_ptr<uint8_t> take(size_t bytes) {
    bytes = (bytes + LINE - 1) / LINE * LINE;
    std::lock_guard<std::mutex> hold(lock_);
    auto block = block_.lock();  // gone when all who had a piece of it are
    if (!block || used_ + bytes > size_) {
      size_ = std::max(bytes, 16 * HUGE_PAGE);
      block = zeros(size_);
      block_ = block, used_ = 0;
    }
    const size_t at = used_;
    used_ += bytes;
    return {block, block.get() + at};
  }

 private:
  std::mutex lock_;
  std::weak_ptr<uint8_t> block_;
  size_t size_ = 0, used_ = 0;
};

template <class T>
struct Memory {
  T* data = nullptr;
  size_t size = 0;
  Memory() = default;
  explicit Memory(size_t n) : Memory(n, zeros(n * sizeof(T))) {}
  static Memory shelved(size_t n) {
    static Shelf shelf;
    return Memory(n, shelf.take(n * sizeof(T)));
  }

 private:
  std::shared_ptr<uint8_t> owned_;
  Memory(size_t n, std::shared_ptr<uint8_t> owned) : data((T*)owned.get()), size(n), owned_(std::move(owned)) {}
};
